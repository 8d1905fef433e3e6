"""The comparison: what is measured, what is kept, what fails, what is said."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crovca.baselines.linear import ITQ, PCA
from crovca.cli.main import main
from crovca.compare import run as module
from crovca.compare.methods import METHODS, choose_methods
from crovca.compare.results import Comparison, columns_of, conclusion, failures, marks, percent, shown
from crovca.compare.run import compare
from crovca.data.embeddings import as_embeddings
from crovca.data.encoded import Encoded
from crovca.errors import ConfigError, InvalidInputError, StorageError
from crovca.evaluation.evaluate import evaluate
from crovca.evaluation.situations import Judge, make_situations
from crovca.files import locked
from crovca.hashing.config import TrainingConfig

RANDOM = np.random.default_rng(0)
CENTERS = RANDOM.normal(size=(4, 20)) * 2


def items(count, first):
    labels = np.arange(count) % 4
    values = (CENTERS[labels] + RANDOM.normal(size=(count, 20))).astype(np.float32)
    return as_embeddings(values, labels, np.arange(first, first + count))


DATABASE, QUERY = items(300, 0), items(40, 1000)
QUICK = ["float_centered", "pca", "itq", "pq", "rabitq"]


@pytest.fixture(scope="module")
def state():
    return compare(DATABASE, QUERY, lengths=(8, 16), methods=QUICK, seeds=2)


def test_cells_are_what_evaluate_measures(state):
    assert set(state.cells) == {
        f"float_centered/{32 * 20}/0", "pca/8/0", "pca/16/0", "pq/8/0", "pq/8/1", "pq/16/0", "pq/16/1",
        "itq/8/0", "itq/8/1", "itq/16/0", "itq/16/1",
        "rabitq/8/0", "rabitq/8/1", "rabitq/16/0", "rabitq/16/1",
    }  # fmt: skip
    method = ITQ(16, seed=1).fit(DATABASE.values)
    ours, theirs = (
        Encoded(method.encode(side.values), side.ids, side.labels, method.logits(side.values))
        for side in (QUERY, DATABASE)
    )
    expected = evaluate(ours, theirs, query_embeddings=QUERY.values, database_embeddings=DATABASE.values)
    cell = state.cells["itq/16/1"]
    assert cell["bytes"] == 2
    for score in ("hamming", "asymmetric_hamming", "bce"):
        ranked = expected.lengths[0].scores[score]
        assert cell["scores"][score]["map"] == ranked.map
        assert cell["scores"][score]["map_min_k_r"] == ranked.map_min_k_r
        assert cell["scores"][score]["expected_map"] == ranked.expected_map
    recalls = expected.lengths[0].float_neighbour_recall
    found = cell["scores"]["asymmetric_hamming"]["float_neighbour_recall"]
    assert found == {name: value for name, value in recalls.items() if value is not None}
    own = state.cells[f"float_centered/{32 * 20}/0"]["scores"]["own"]
    assert own["map"] == pytest.approx(expected.floats["cosine_centred"].map, abs=1e-4)
    assert own["float_neighbour_recall"]["10@10"] > 0.99
    assert state.chance_map == expected.chance_map


def test_rows_have_means_and_spreads_and_failures_with_their_reason(state):
    rows = {(row.method.name, row.bits): row for row in state.rows()}
    maps = [state.cells[f"itq/8/{seed}"]["scores"]["hamming"]["map"] for seed in (0, 1)]
    assert rows["itq", 8].value("hamming", "map") == (np.mean(maps), np.std(maps, ddof=1))
    assert rows["pca", 8].value("hamming", "map")[1] == 0
    assert rows["rabitq", 8].failed.startswith("RaBitQ keeps 8 bytes")
    assert rows["itq", 8].failed is None


def test_five_measures_are_those_of_the_situations(state):
    situations = make_situations(DATABASE, QUERY)
    method = ITQ(16, seed=1)
    cell = state.cells["itq/16/1"]["measures"]
    assert list(cell) == ["seen", "new", "mixed"]
    for situation in situations:
        method.fit(situation.learned.values)
        judge = Judge(situation)
        measured = judge.of_codes(method.logits(situation.asked.values), method.encode(situation.searched.values))
        assert cell[situation.name] == measured.to_dict()
    assert cell["seen"]["map"] == pytest.approx(state.cells["itq/16/1"]["scores"]["asymmetric_hamming"]["map"])
    own = state.cells[f"float_centered/{32 * 20}/0"]["measures"]
    assert own["seen"]["order"] == pytest.approx(1, abs=0.01)
    assert own["new"]["distinct"] is None
    assert 0 < state.cells["pca/8/0"]["measures"]["seen"]["distinct"] < 1
    # 150 items to learn from are too few for PQ's centroids, which is said and costs nothing else
    assert "at least as many items, got 150" in state.cells["pq/8/0"]["held_out_failed"]
    assert "new" not in state.cells["pq/8/0"]["measures"]
    assert any("PQ (new, mixed), 8, 16 bits" in sentence for sentence in failures(state.rows()))
    itq = next(row for row in state.rows() if row.method.name == "itq" and row.bits == 16)
    maps = [state.cells[f"itq/16/{seed}"]["measures"]["new"]["map"] for seed in (0, 1)]
    assert itq.five("new", labeled=True) == (np.mean(maps), np.std(maps, ddof=1))
    assert compare(DATABASE, QUERY, lengths=(8,), methods=["pca"], seeds=1, hold_out=None).cells["pca/8/0"][
        "measures"
    ].keys() == {"seen"}


def test_a_rerun_does_only_what_is_missing(state, monkeypatch):
    fitted = []
    for method in (ITQ, PCA):
        fit = method.fit
        monkeypatch.setattr(
            method, "fit", lambda self, X, y=None, fit=fit: (fitted.append((type(self), self.bits)), fit(self, X, y))[1]
        )
    kept = json.loads(json.dumps(state.to_dict()))
    saved = []
    again = compare(
        DATABASE, QUERY, lengths=(8, 12, 16), methods=QUICK, seeds=2, kept=kept,
        save=lambda s: saved.append(dict(s.cells)),
    )  # fmt: skip
    assert sorted(fitted, key=str) == sorted(2 * [(PCA, 12), (ITQ, 12), (ITQ, 12)], key=str)  # and without half
    assert {key: again.cells[key] for key in state.cells if "rabitq" not in key} == {
        key: cell for key, cell in kept["cells"].items() if "rabitq" not in key
    }
    assert len(saved) == 1 + 2 + 2 + 6  # pca, itq, pq; rabitq failed before, and is tried again

    other = replace(QUERY, values=QUERY.values + 1)
    with pytest.raises(ConfigError, match="other data"):
        compare(DATABASE, other, lengths=(8,), methods=["pca"], kept=kept)


def test_without_labels_only_the_recall_of_float_neighbors_is_told():
    bare = replace(QUERY, labels=None)
    state = compare(DATABASE, bare, lengths=(8,), methods=["pca", "pq"], seeds=1)
    assert state.cells["pca/8/0"]["scores"]["hamming"]["map"] is None
    assert state.cells["pca/8/0"]["scores"]["hamming"]["float_neighbour_recall"]["10@100"] > 0
    assert state.cells["pca/8/0"]["measures"]["new"]["map"] is None
    row = next(row for row in state.rows() if row.method.name == "pca")
    assert row.five("new", labeled=False) == (state.cells["pca/8/0"]["measures"]["new"]["order"], 0)
    assert "seen" not in conclusion(state)
    assert "order" in conclusion(state)
    with pytest.raises(ConfigError, match="'orthohash' learns from labels"):
        compare(DATABASE, bare, methods=["orthohash"])
    assert not any(method.supervised for method in choose_methods(None, labeled=False))
    assert choose_methods(None, labeled=True) == list(METHODS)


def test_a_crash_of_a_method_is_a_failure_of_that_method(monkeypatch):
    def crash(self, values, random):
        raise np.linalg.LinAlgError("no\nconvergence")

    monkeypatch.setattr(PCA, "_learn", crash)
    state = compare(DATABASE, QUERY, lengths=(8,), methods=["pca", "lsh"], seeds=1)
    assert state.cells["pca/8/0"]["failed"] == "LinAlgError: no convergence"
    assert "failed" not in state.cells["lsh/8/0"]


def test_methods_can_learn_from_other_items():
    train = items(200, 5000)
    state = compare(DATABASE, QUERY, train=train, lengths=(8,), methods=["itq", "crovca"], seeds=1, epochs=2)
    assert state.trained == 200
    method = ITQ(8, seed=0).fit(train.values)
    ours, theirs = (
        Encoded(method.encode(side.values), side.ids, side.labels, method.logits(side.values))
        for side in (QUERY, DATABASE)
    )
    expected = evaluate(ours, theirs).lengths[0].scores["hamming"]
    assert state.cells["itq/8/0"]["scores"]["hamming"]["map"] == expected.map
    assert "failed" not in state.cells["crovca/8/0"]
    assert state.fingerprint != compare(DATABASE, QUERY, lengths=(8,), methods=["pca"], seeds=1).fingerprint
    bare = replace(train, labels=None)
    with pytest.raises(ConfigError, match="'orthohash' learns from labels"):
        compare(DATABASE, QUERY, train=bare, methods=["orthohash"])
    assert not any("orthohash" in key for key in compare(
        DATABASE, QUERY, train=bare, lengths=(8,), methods=["lsh"], seeds=1
    ).cells)  # fmt: skip


def test_all_learned_methods_take_the_epochs_that_are_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(TrainingConfig, "__post_init__", lambda self: seen.append(self.epochs))
    learned = [method.name for method in METHODS if method.learned]
    assert {"crovca", "crovca_supervised", "orthohash", "sdc", "fppq"} < set(learned)
    assert not {"itq", "pq", "lsh", "crovca_paper"} & set(learned)
    state = compare(DATABASE, QUERY, lengths=(8,), methods=learned, seeds=1, epochs=2)
    assert not any("failed" in cell for cell in state.cells.values())
    assert set(seen[1:]) == {2}  # the first is the warming up


def test_one_seed_has_no_spread(state):
    one = Comparison("", 10, 1, 1, True, 0.1, (16,), cells={"a": cell("crovca", 16, 0, 0.5)}).rows()[0]
    assert percent(one, "asymmetric_hamming", "map") == "50.0"
    assert percent(one, "bce", "map") == "-"
    two = next(row for row in state.rows() if row.method.name == "itq")
    assert "±" in percent(two, "hamming", "map")


def test_bad_input():
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        compare(DATABASE, QUERY, epochs=0)
    with pytest.raises(ConfigError, match="seeds must be at least 1"):
        compare(DATABASE, QUERY, seeds=0)
    with pytest.raises(ConfigError, match="unknown method 'itk'"):
        compare(DATABASE, QUERY, methods=["itk"])
    with pytest.raises(ConfigError, match="no lengths"):
        compare(DATABASE, QUERY, lengths=())
    narrow = as_embeddings(QUERY.values[:, :5], QUERY.labels)
    with pytest.raises(InvalidInputError, match="one width"):
        compare(DATABASE, narrow)


def cell(method, bits, seed, value, order=0.5, **more):
    score = {"map": value, "float_neighbour_recall": {"10@100": order}}
    name = "own" if method in ("pq", "float_centered") else "asymmetric_hamming"
    measures = {"seen": {"map": value, "order": order, **more}}
    return {
        "method": method, "bits": bits, "seed": seed, "bytes": bits // 8, "scores": {name: score}, "measures": measures,
    }  # fmt: skip


def of_cells(*cells):
    state = Comparison("", 10, 1, 1, True, 0.1, (16,), seeds=2)
    state.cells = {str(number): found for number, found in enumerate(cells)}
    return state


def marked(state, name):
    column = next(column for column in columns_of(state) if column.name == name)
    return {method: mark for (method, _), mark in marks(state.rows(), column, labeled=True).items()}


def test_marks_name_the_best_of_a_kind_and_what_is_level():
    state = of_cells(
        cell("crovca", 16, 0, 0.60), cell("crovca", 16, 1, 0.66),
        cell("pq", 16, 0, 0.65), cell("pq", 16, 1, 0.64),
        cell("itq", 16, 0, 0.40, order=0.9, shared=0.1), cell("itq", 16, 1, 0.41, order=0.9, shared=0.2),
        cell("pca", 16, 0, 0.30, shared=0.3),
        cell("orthohash", 16, 0, 0.9), cell("float_centered", 640, 0, 0.99),
    )  # fmt: skip
    assert marked(state, "seen") == {"pq": "*", "crovca": "~", "orthohash": "*"}
    assert marked(state, "order") == {"itq": "*", "orthohash": "*"}
    assert marked(state, "shared") == {"itq": "*"}  # the fewest
    assert [column.name for column in columns_of(state)][:2] == ["seen", "order"]
    text = conclusion(state)
    assert text.count(".\n") == 0
    assert "Best at 16 bits, in %: without labels to learn from seen PQ (64.5), order ITQ (90.0); with labels" in text
    failed = {"method": "pq", "bits": 16, "seed": 1, "failed": "why"}
    assert marked(of_cells(cell("pq", 16, 0, 0.9), failed, cell("itq", 16, 0, 0.5)), "seen") == {"itq": "*"}
    assert conclusion(of_cells()) == "No method with a length of its own was measured."


def test_values_are_shown_with_spread_and_mark():
    assert shown(None, 3, "*") == "-"
    assert shown((0.5, 0.0), 1) == "50.0"
    assert shown((0.5, 0.012), 2, "~") == "50.0 ± 1.2 ~"


def test_a_seed_that_failed_is_seen(monkeypatch):
    learn = ITQ._learn

    def learn_sometimes(self, values, random):
        if self.seed == 1:
            raise InvalidInputError("bad luck")
        return learn(self, values, random)

    monkeypatch.setattr(ITQ, "_learn", learn_sometimes)
    (row,) = compare(DATABASE, QUERY, lengths=(8,), methods=["itq"], seeds=3).rows()
    assert (len(row.cells), row.missing, row.failed) == (2, 1, "bad luck")
    assert percent(row, "hamming", "map").endswith("(2 of 3 seeds)")
    assert failures([row]) == ["ITQ, 8 (1 of 3 seeds) bits: bad luck"]


def test_no_number_of_ours_hangs_on_what_else_is_asked_for():
    alone = compare(DATABASE, QUERY, lengths=(16,), methods=["crovca"], seeds=1, epochs=2)
    beside = compare(DATABASE, QUERY, lengths=(8, 16, 32), methods=["crovca"], seeds=1, epochs=2, kept=alone.to_dict())
    whole = compare(DATABASE, QUERY, lengths=(8, 16, 32), methods=["crovca"], seeds=1, epochs=2)
    for bits in (8, 16, 32):
        key = f"crovca/{bits}/0"
        assert beside.cells[key]["scores"] == whole.cells[key]["scores"]


def test_kept_results_are_bound_to_the_code_that_makes_them(tmp_path, monkeypatch):
    copy = tmp_path / "crovca"
    shutil.copytree(Path(module.crovca.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module.crovca, "__file__", str(copy / "__init__.py"))

    def code():
        module._code.cache_clear()
        return module._code()

    try:
        before = code()
        (copy / "cli" / "main.py").write_text("# prints otherwise")
        assert code() == before
        (copy / "baselines" / "linear.py").write_text("# learns otherwise")
        assert code() != before
    finally:
        module._code.cache_clear()


def test_only_what_was_asked_for_is_shown():
    kept = compare(DATABASE, QUERY, lengths=(8,), methods=["pca", "itq"], seeds=2).to_dict()
    again = compare(DATABASE, QUERY, lengths=(8,), methods=["itq"], seeds=1, kept=kept)
    assert "pca/8/0" in again.cells
    assert [(row.method.name, len(row.cells)) for row in again.rows()] == [("itq", 1)]


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    for name, side in (("d", DATABASE), ("q", QUERY)):
        np.savez(tmp_path / f"{name}.npz", embeddings=side.values, labels=side.labels, ids=side.ids)
    np.savez(tmp_path / "bare.npz", embeddings=QUERY.values)
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return exit.value.code, out, err


def test_the_command_compares_keeps_and_reports(files, capsys):
    call = ["--database", files / "d.npz", "--query", files / "q.npz", "--bits", "8", "--methods",
            "pca,rabitq,float_centered", "-o", files / "out.json"]  # fmt: skip
    status, out, _ = run(capsys, *call)
    assert status == 0
    assert "PCA" in out
    assert "failed: RaBitQ, 8 bits: RaBitQ keeps 8 bytes" in out
    assert "* best, ~ not told from it" in out
    assert "Best at 8 bits, in %: without labels to learn from seen PCA" in out
    assert "new and mixed learned without 50 % of the classes" in out
    before = json.loads((files / "out.json").read_text())
    status, out, _ = run(capsys, *call, "--json", "--report", files / "report")
    assert status == 0
    found = json.loads(out)
    assert found["cells"]["pca/8/0"] == before["cells"]["pca/8/0"]
    assert found["conclusion"].startswith("Best at 8 bits")
    assert found["hold_out"] == 0.5
    page = (files / "report" / "index.html").read_text()
    assert "PCA" in page
    assert "RaBitQ keeps" in page
    assert json.loads((files / "report" / "metrics.json").read_text())["lengths"] == [8]


def test_the_command_with_training_items_and_epochs(files, capsys):
    call = ["--database", files / "d.npz", "--query", files / "q.npz", "--bits", "8", "--methods", "crovca"]
    status, out, err = run(capsys, *call, "--train", files / "bare.npz", "--epochs", "1", "--seeds", "1")
    assert status == 0
    assert "40 queries on 300 items, learned from 40 others, 1 epochs" in out
    assert "; one seed (" in out
    assert "with labels to learn from" not in out
    assert "mixed" not in out  # as there are other items to learn from
    assert "methods that learn from labels are left out" in err


def test_two_runs_do_not_write_one_file(files, capsys):
    call = ["--database", files / "d.npz", "--query", files / "q.npz", "--bits", "8", "--methods", "pca"]
    with locked(files / "out.json"):
        status, _, err = run(capsys, *call, "-o", files / "out.json")
    assert status == 2
    assert "another run writes" in err
    assert run(capsys, *call, "-o", files / "out.json")[0] == 0
    assert [path.name for path in files.iterdir() if "lock" in path.name] == []


def test_a_lock_that_was_removed_is_not_taken_for_the_one_that_stands_there(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    beside, opened = tmp_path / ".out.json.lock", []
    real = os.open

    def open_late(name, *arguments, **named):  # its owner goes between our opening and our locking
        descriptor = real(name, *arguments, **named)
        if name == beside:
            if not opened:
                beside.unlink()
            opened.append(name)
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    with locked(path), pytest.raises(StorageError, match="another run writes"), locked(path):
        pass
    assert len(opened) == 3
    assert not beside.exists()


def test_the_command_says_where_an_item_answers_itself(files, capsys):
    (files / "copy.npz").write_bytes((files / "bare.npz").read_bytes())
    call = ["--database", files / "bare.npz", "--query", files / "copy.npz", "--bits", "8", "--methods", "pca"]
    _, _, err = run(capsys, *call)
    assert "40 queries are in the database number for number" in " ".join(err.split())


def test_the_page_says_how_it_was_run(files, capsys):
    call = ["--database", files / "d.npz", "--query", files / "q.npz", "--bits", "8", "--methods", "sdc"]
    run(capsys, *call, "--train", files / "q.npz", "--seeds", "1", "--epochs", "1", "--report", files / "page")
    page = (files / "page" / "index.html").read_text()
    assert "40 queries on 300 items, learned from 40 others, 1 epochs, a random order scores" in page


def test_the_command_without_labels(files, capsys):
    call = ["--database", files / "d.npz", "--bits", "8", "--methods", "pca"]
    status, out, err = run(capsys, *call, "--query", files / "bare.npz")
    assert status == 0
    assert "no labels in bare.npz" in err
    assert "seen, new, mixed: order" in out
    status, out, err = run(capsys, *call, "--query", files / "q.npz", "--no-labels")
    assert status == 0
    assert "mAP" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "bare.npz", "--labels"], "there are none in bare.npz"),
        (["--query", "q.npz", "--methods", "itk"], "unknown method 'itk'"),
        (["--query", "q.npz", "--methods", ","], "--methods must be"),
        (["--query", "q.npz", "--bits", "x"], "--bits must be"),
        (["--query", "q.npz", "--no-labels", "--methods", "csq"], "'csq' learns from labels"),
        (["--query", "q.npz", "-o", "q.npz"], "would replace the input"),
        (["--query", "q.npz", "-o", "other.json"], "the kept results are of another run: crovca 0.0, now"),
        (["--query", "q.npz", "-o", "strange.json"], "strange.json is not what this version"),
        (["--query", "q.npz", "-o", "broken.json"], "not valid JSON"),
    ],
)
def test_the_command_refuses_in_one_line(files, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    (files / "other.json").write_text(json.dumps({"format": 4, "fingerprint": "x", "cells": {}, "version": "0.0"}))
    (files / "broken.json").write_text("{")
    (files / "strange.json").write_text('{"a": 1}')
    methods = [] if "--methods" in arguments else ["--methods", "pca"]
    status, _, err = run(capsys, "--database", "d.npz", *methods, *arguments)
    assert status == 2
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert message in err
