"""The paper's tables of images, end to end on small copies of the benchmarks with a small random encoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crovca.cli.main import _run
from crovca.errors import ConfigError, FileFormatError, StorageError
from crovca.evaluation.evaluate import evaluate
from crovca.hasher import Hasher
from crovca.reproduce import paper
from crovca.reproduce import run as runs
from crovca.reproduce.inputs import Inputs
from crovca.reproduce.retrieval import FeatureWiseScorer
from crovca.reproduce.workspace import Workspace
from tests.encoders import tiny
from tests.reproduce import copies, pair_copies

SHORT = {"epochs": 1, "batch_size": 4}
PROBED = ("table4", "table5")
NAMES = ("dinov2", "dinov3-b", "dinov3-l", "dinov3-convnext-s")


@pytest.fixture
def make(benchmarks, dino, tmp_path):
    data, protocols = benchmarks

    def workspace(**changes):
        known = {"weights": dict.fromkeys(NAMES, str(dino)), "training": SHORT, "protocols": protocols}
        return Workspace(changes.pop("data", data), tmp_path / "work", **{"device": "cpu", **known, **changes})

    return workspace


@pytest.fixture
def never(monkeypatch):
    def stop():
        def fail(*_, **__):
            raise AssertionError("measured a second time")

        monkeypatch.setattr(runs, "measure_images", fail)

    return stop


def entries(results):
    return [row.found["0"] for row in results.rows()]


@pytest.mark.parametrize("dataset", ["cifar10", "coco", "nuswide21"])
def test_the_numbers_are_those_of_evaluate(make, dataset):
    workspace = make()
    cells = paper.cells("table1", dataset=dataset, encoder="dinov2")
    assert [cell.bits for cell in cells] == [None, 16, 32, 64]
    results = runs.reproduce(workspace, cells)
    assert not results.failed
    k = {"cifar10": 1000, "coco": 5000, "nuswide21": 5000}[dataset]
    ours, theirs = (workspace.embeddings("dinov2", dataset, split) for split in ("query", "database"))
    for cell, entry in zip(cells, entries(results), strict=True):
        assert cell.measurement.k == k
        training = cells[1].measurement.training if cell.bits is None else cell.measurement.training
        encoded = [workspace.encoded(training, 0, dataset, split) for split in ("query", "database")]
        expected = evaluate(*encoded, k=k, query_embeddings=ours.values, database_embeddings=theirs.values).to_dict()
        if cell.bits is None:
            assert entry["value"] == expected["float"]["cosine"]
            assert entry["map_min_k_r"] == expected["float_min_k_r"]["cosine"]
            continue
        found = expected["lengths"][0]
        assert entry["value"] == entry["map"] == found["map"]["asymmetric_hamming"]
        assert entry["hamming"] == found["map"]["hamming"]
        assert entry["map_min_k_r"] == found["map_min_k_r"]["asymmetric_hamming"]
        assert entry["expected_map"] == found["ties"]["expected_map"]["asymmetric_hamming"]
        assert entry["chance"] == expected["chance_map"]
        assert (entry["queries"], entry["database"]) == (expected["queries"], expected["database"])


def test_feature_wise_is_what_the_authors_first_release_computed(make):
    """As it is described: the transposed database is normalized along its last axis, the queries by item."""
    workspace = make()
    ours, theirs = (workspace.embeddings("dinov2", "cifar10", s).values[:] for s in ("query", "database"))
    database = theirs.T / np.linalg.norm(theirs.T, axis=-1, keepdims=True)
    expected = (ours / np.linalg.norm(ours, axis=1, keepdims=True)) @ database
    scorer = FeatureWiseScorer(ours, theirs)
    assert scorer.shape == expected.shape
    np.testing.assert_allclose(-scorer.distances(slice(2, 7)), expected[2:7], rtol=1e-4)
    results = runs.reproduce(workspace, paper.cells("table1", dataset="cifar10", encoder="dinov2")[:1])
    labels = [workspace.source("cifar10", split).labels for split in ("query", "database")]
    order = np.argsort(-expected, axis=1, kind="stable")
    relevant = labels[1][order] == labels[0][:, None]
    precision = relevant.cumsum(axis=1) / np.arange(1, 31)
    mean = ((precision * relevant).sum(axis=1) / relevant.sum(axis=1)).mean()
    assert entries(results)[0]["feature_wise"] == pytest.approx(mean)
    assert entries(results)[0]["feature_wise"] != entries(results)[0]["value"]


def test_a_feature_that_is_zero_everywhere_does_no_harm():
    scorer = FeatureWiseScorer(np.ones((1, 2), np.float32), np.array([[1, 0], [2, 0]], np.float32))
    np.testing.assert_allclose(scorer.distances(slice(None)), [[-0.31622776, -0.6324555]])


def test_a_rerun_measures_nothing_and_tables_share_their_numbers(make, never):
    workspace = make()
    cells = paper.cells("table1", dataset="flickr25k", encoder="dinov2")
    first = runs.reproduce(workspace, cells)
    never()
    again = runs.reproduce(make(), cells, kept=first.kept)
    assert [row.mean for row in again.rows()] == [row.mean for row in first.rows()]
    other = paper.cells("table11", dataset="flickr25k", encoder="dinov2")
    shared = runs.reproduce(make(), other, kept=first.kept)
    assert not shared.failed
    assert [row.mean for row in shared.rows()] == [row.mean for row in first.rows()][1:]


@pytest.mark.parametrize(
    ("table", "choice", "models"),
    [
        ("table2", {"dataset": "imagenet100"}, 3),
        ("table3", {"dataset": "flickr25k", "bits": 16, "encoder": "dinov2"}, 2),
        ("table4", {"dataset": "cifar10", "bits": [16, 256]}, 2),
        ("table5", {"dataset": "nuswide21", "encoder": "dinov3-b"}, 2),
        ("table12", {"dataset": "imagenet1k", "bits": 16}, 1),
    ],
)
def test_tables_end_to_end(make, table, choice, models):
    workspace = make()
    results = runs.reproduce(workspace, paper.cells(table, **choice))
    assert not results.failed
    for row in results.rows():
        if row.cell.measurement is None:
            assert (row.mean, row.difference) == (None, None)
            continue
        assert 0 <= row.mean <= 100
        assert row.spread is None
        assert row.difference == pytest.approx(row.mean - row.cell.value)
        assert row.found["0"]["left_out"] == {}
    made = [Hasher.load(path, device="cpu") for path in (workspace.work / "models").glob("*/*")]
    assert len(made) == models
    settings = {(one.hashcoder, one.learning_rate, one.weight_decay, one.fine_tuning.lora_rank) for one in made}
    assert settings == {
        ("small", 1e-3, 1e-2, 16) if table == "table2" else ("large", 1e-4, 1e-4, None if table in PROBED else 16)
    }  # the paper's Table 8
    assert {(one.epochs, one.batch_size, one.prototypes, one.nested) for one in made} == {(1, 4, "batch", False)}


def test_one_pass_of_the_encoder_serves_every_length_of_a_frozen_one(make, monkeypatch):
    from crovca.encoders.encoder import Encoder

    workspace = make()
    cells = [cell for cell in paper.cells("table4", dataset="cifar10") if cell.bits in (None, 16, 32)]
    for cell in cells:
        if cell.bits:
            workspace.model(cell.measurement.training, 0)
    counts = []
    embed = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, pixels: counts.append(len(pixels)) or embed(self, pixels))
    results = runs.reproduce(workspace, cells)
    assert len(results.rows()) == 3
    assert not results.failed
    assert sum(counts) == 30 + 10
    loads = (workspace.work / "embeddings" / "dinov3-convnext-s" / "cifar10").iterdir()
    assert {path.name for path in loads} == {"database", "query"}


def test_a_missing_dataset_fails_its_cells_alone(make, tmp_path):
    data = tmp_path / "data"
    protocols = copies.write(data, ["flickr25k"])
    workspace = make(data=data, protocols={**make().protocols, **protocols})
    cells = paper.cells("table1", dataset=["cifar10", "flickr25k"], encoder="dinov2")
    rows = runs.reproduce(workspace, cells).rows()
    for row in rows:
        if row.cell.dataset == "cifar10":
            assert row.mean is None
            assert "cifar10" in row.failed
        else:
            assert row.failed is None
            assert row.mean is not None


def test_weights_that_must_be_converted_fail_their_cells_alone(make):
    results = runs.reproduce(make(), paper.cells("table1", dataset="coco", bits=16))
    failed = {row.cell.measurement.encoder: row.failed for row in results.rows() if row.failed}
    assert "crovca convert" in failed["simdinov2"]
    assert "--weights swag=FOLDER" in failed["swag"]
    assert "dinov2" not in failed
    assert not results.hopeless


def test_any_error_is_a_failed_cell_and_training_is_not_tried_twice(make, monkeypatch):
    tried = []

    def fit(*_, **__):
        tried.append(1)
        raise RuntimeError("CUDA out of\n memory")

    monkeypatch.setattr("crovca.hasher.Hasher.fit", fit)
    results = runs.reproduce(make(), paper.cells("table3", bits=16, encoder="dinov2"))
    assert len(tried) == 2  # with labels and without, each for five datasets
    codes = [row for row in results.rows() if row.cell.bits]
    assert {row.failed for row in codes} == {"RuntimeError: CUDA out of memory"}
    assert results.hopeless


def test_seeds_are_all_kept_and_floats_have_one(make):
    workspace = make()
    cells = paper.cells("table1", dataset="coco", encoder="dinov2")[:2]
    results = runs.reproduce(workspace, cells, [0, 1, 2])
    plain, coded = results.rows()
    assert list(plain.found) == ["0"]
    assert plain.spread is None
    assert list(coded.found) == ["0", "1", "2"]
    assert len(set(coded.values)) > 1
    assert coded.mean == pytest.approx(np.mean(coded.values))
    assert coded.spread == pytest.approx(np.std(coded.values, ddof=1))
    assert len(results.measured()[cells[1].measurement]) == 3
    one = runs.reproduce(make(), cells, [1], kept=results.kept).rows()[1]
    assert one.values == [coded.values[1]]


def break_seeds(monkeypatch, *broken):
    """Training with these seeds fails."""
    fit = Hasher.fit

    def fails(self, *arguments, **more):
        if self.seed in broken:
            raise RuntimeError(f"no memory for seed {self.seed}" if len(broken) > 1 else "no memory")
        return fit(self, *arguments, **more)

    monkeypatch.setattr(Hasher, "fit", fails)


def test_a_seed_that_fails_is_told_from_those_that_do_not(make, monkeypatch):
    break_seeds(monkeypatch, 1)
    (row,) = runs.reproduce(make(), paper.cells("table1", dataset="coco", encoder="dinov2", bits=16), [0, 1]).rows()
    assert (row.asked, list(row.found), row.spread) == (2, ["0"], None)
    assert row.reasons == {1: "RuntimeError: no memory"}
    assert row.failed == "RuntimeError: no memory"
    described = row.to_dict()
    assert described["seeds_asked"] == 2
    assert described["failed_seeds"] == {"1": "RuntimeError: no memory"}


def test_numbers_of_this_run_are_told_from_kept_ones(make):
    cells = paper.cells("table1", dataset="coco", encoder="dinov2", bits=[16, 32])
    first = runs.reproduce(make(), cells[:1], [0, 1])
    assert (first.measured_now, first.kept_before) == (2, 0)
    second = runs.reproduce(make(), cells, [0, 1], kept=first.kept)
    assert (second.measured_now, second.kept_before) == (2, 2)


@pytest.mark.parametrize("seeds", [[], [-1], [True], ["0"]])
def test_seeds_must_be_numbers(make, seeds):
    with pytest.raises(ConfigError, match="seeds must be whole numbers"):
        runs.reproduce(make(), [], seeds)


def test_a_run_that_was_killed_between_cells_goes_on(make, monkeypatch):
    cells = paper.cells("table1", dataset=["coco", "nuswide21"], encoder="dinov2", bits=[16, 32])
    work = make().work
    with pytest.raises(KeyboardInterrupt), runs.opened(work) as (kept, save):

        def dies(content):
            save(content)
            if len(content) == 2:
                raise KeyboardInterrupt

        runs.reproduce(make(), cells, kept=kept, save=dies)
    measured = []
    measure = runs.measure_images
    monkeypatch.setattr(
        runs, "measure_images", lambda workspace, of, seed: measured.append(of.key) or measure(workspace, of, seed)
    )
    with runs.opened(work) as (kept, save):
        assert len(kept) == 2
        before = dict(kept)
        results = runs.reproduce(make(), cells, kept=kept, save=save)
    assert len(measured) == 2
    assert not any(key in entry for entry in before for key in measured)
    assert all(row.mean is not None for row in results.rows())
    assert len(json.loads((work / "results.json").read_text())["results"]) == 4


def test_shortened_runs_never_pass_for_the_papers(make):
    cells = paper.cells("table1", dataset="coco", encoder="dinov2", bits=16)
    short = runs.reproduce(make(), cells)
    longer = runs.reproduce(make(training={"epochs": 2, "batch_size": 4}), cells, kept=short.kept)
    nested = runs.reproduce(make(nested=True), cells, kept=longer.kept)
    key = cells[0].measurement.key
    assert list(nested.kept) == [
        f"{key} [batch_size=4, epochs=1]",
        f"{key} [batch_size=4, epochs=2]",
        f"{key} [nested, batch_size=4, epochs=1]",
    ]
    names = {path.name for path in (make().work / "models").iterdir()}
    assert names == {
        "dinov2-coco-unsupervised-lora-small-16bits-batch_size=4-epochs=1",
        "dinov2-coco-unsupervised-lora-small-16bits-batch_size=4-epochs=2",
        "dinov2-coco-unsupervised-lora-small-nested-batch_size=4-epochs=1",
    }
    whole = make(training={})
    assert runs.variant_of(whole, cells[0].measurement) == ""
    assert whole.name_of(cells[0].measurement.training) == "dinov2-coco-unsupervised-lora-small-16bits"


def test_floats_and_random_hashcoders_are_the_same_in_shortened_runs(make, never):
    workspace = make()
    cells = [cell for cell in paper.cells("table5", dataset="coco") if "Random" in cell.row]
    kept = runs.reproduce(workspace, cells).kept
    assert len(kept) == 2
    never()
    assert not runs.reproduce(make(training={"epochs": 3}, nested=True), cells, kept=kept).failed


def test_results_of_other_weights_are_refused(make, dino, other_dino, tmp_path, never):
    cells = paper.cells("table1", dataset="coco", encoder="dinov2", bits=16)
    kept = runs.reproduce(make(), cells).kept
    before = json.dumps(kept)
    moved = tmp_path / "moved"
    shutil.copytree(dino, moved)
    other = runs.reproduce(make(weights={"dinov2": str(other_dino)}), cells, kept=kept)
    (row,) = other.rows()
    assert row.mean is None
    assert "was begun with other weights of dinov2" in row.failed
    assert json.dumps(kept) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    assert runs.reproduce(make(weights={"dinov2": str(empty)}), cells, kept=kept).failed
    never()
    for place in (dino / ".", moved):  # the same weights
        assert not runs.reproduce(make(weights={"dinov2": str(place)}), cells, kept=kept).failed


def test_results_of_a_folder_whose_weights_changed_are_refused(make, dino, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(dino, folder)
    weights = {"dinov2": str(folder)}
    cells = paper.cells("table1", dataset="coco", encoder="dinov2", bits=16)
    kept = runs.reproduce(make(weights=weights), cells).kept
    copies.with_other_weights(dino, folder)
    (row,) = runs.reproduce(make(weights=weights), cells, kept=kept).rows()
    assert "was begun with other weights of dinov2" in row.failed


def test_nobody_else_works_in_the_folder(make):
    with (
        runs.opened(make().work),
        pytest.raises(StorageError, match=r"another run writes .*; wait for it, or give another --work"),
        runs.opened(make().work),
    ):
        pass
    with runs.opened(make().work) as (kept, _):
        assert kept == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"format_version": 2, "results": {}}', "version 2, this crovca reads 1"),
        ('{"format_version": 1}', "damaged"),
        ('{"format_version": 1, "results": {"x": {"0": {}}}}', "damaged"),
        ('{"format_version": 1, "results": {"x": 3}}', "damaged"),
    ],
)
def test_damaged_results_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(FileFormatError, match=message), runs.opened(tmp_path):
        pass


# --- the command -------------------------------------------------------------------------------------


@pytest.fixture
def command(benchmarks, dino, tmp_path, monkeypatch, capsys):
    """Runs ``crovca reproduce`` on the small copies: status, output, errors."""
    data, protocols = benchmarks
    monkeypatch.setattr(Inputs.__init__, "__kwdefaults__", {**Inputs.__init__.__kwdefaults__, "protocols": protocols})
    fixed = ["--data", str(data), "--work", str(tmp_path / "work"), "--device", "cpu"]
    fixed += [part for name in NAMES for part in ("--weights", f"{name}={dino}")]

    def run(*arguments, fixed=fixed):
        status = _run(["reproduce", *map(str, arguments), *fixed])
        return status, *capsys.readouterr()

    return run


ONE = ("table1", "--dataset", "coco", "--encoder", "dinov2", "--epochs", "1", "--batch-size", "4")


def test_the_command_prints_ours_beside_the_papers(command):
    status, out, errors = command(*ONE, "--seeds", "2")
    assert status == 0
    assert "NOT the paper's settings: epochs 1, batch size 4" in out
    assert "table1: Unsupervised hashing, LoRA (section 4.1.1), percent, mean ± standard deviation of 2 seeds" in out
    (line,) = [line for line in out.splitlines() if "COCO 16" in line]
    paper_value, ours, _, spread, difference = line.split()[-5:]
    assert paper_value == "87.5"
    assert float(difference) == pytest.approx(float(ours) - 87.5, abs=0.11)
    assert float(spread) >= 0
    assert "training dinov2-coco-unsupervised-lora-small-16bits" in errors
    status, again, errors = command(*ONE, "--seeds", "2")
    *numbers, last = out.splitlines()
    assert last.startswith("measured now: 7, kept from earlier runs: 0; all numbers, seed by seed: ")
    *same, last_again = again.splitlines()
    assert (status, same) == (0, numbers)
    assert last_again == last.replace("now: 7, kept from earlier runs: 0", "now: 0, kept from earlier runs: 7")
    assert errors == ""
    content = json.loads(command(*ONE, "--seeds", "2", "--json")[1])
    assert (content["measured_now"], content["kept"]) == (0, 7)


def test_the_command_prints_json(command):
    status, out, _ = command(*ONE, "--json")
    assert status == 0
    content = json.loads(out)
    assert content["changes"] == ["epochs 1", "batch size 4"]
    assert [cell["column"] for cell in content["cells"]] == ["COCO Orig", "COCO 16", "COCO 32", "COCO 64"]
    plain, coded = content["cells"][:2]
    assert plain["paper"] == 88.3
    assert set(plain["seeds"]["0"]) >= {"value", "map_min_k_r", "expected_map", "feature_wise", "chance", "k"}
    assert coded["values"] == [100 * coded["seeds"]["0"]["value"]]
    assert coded["seeds"]["0"]["hamming"] is not None
    assert coded["spread"] is None


def test_others_numbers_are_shown_and_not_run(command):
    status, out, _ = command("table12", "--dataset", "imagenet100", "--epochs", "1", "--batch-size", "2")
    assert status == 0
    (header,) = [line for line in out.splitlines() if line.startswith("row")]
    assert header.split() == ["row", "column", "paper", "published", "by", "ours", "difference"]
    (line,) = [line for line in out.splitlines() if "86.9" in line]
    assert line[header.index("paper") + 5 : header.index("published by") + 12].strip() == "OrthoHash"
    assert not line[header.index("published by") + 12 :].strip()  # nothing of ours
    assert "published" not in command(*ONE)[1]


def test_a_seed_that_fails_is_shown(command, monkeypatch):
    break_seeds(monkeypatch, 1, 2)
    status, out, _ = command(*ONE, "--bits", "16", "--seeds", "3")
    assert status == 0
    assert "mean ± standard deviation of up to 3 seeds" in out
    (line,) = [line for line in out.splitlines() if "COCO 16 " in line and "87.5" in line]
    assert "(1 of 3 seeds)" in line
    assert "±" not in line
    for seed in (1, 2):
        assert f"failed: DINOv2 ViT-B, COCO 16 (seed {seed}): RuntimeError: no memory for seed {seed}" in out


def test_other_weights_are_refused_by_the_command(command, other_dino, tmp_path):
    status, out, _ = command(*ONE, "--bits", "16")
    assert status == 0
    results = tmp_path / "work" / "results.json"
    before = results.read_bytes()
    fixed = ["--data", tmp_path, "--work", tmp_path / "work", "--weights", f"dinov2={other_dino}", "--device", "cpu"]
    status, out, _ = command(*ONE, "--bits", "16", fixed=map(str, fixed))
    assert status == 1
    assert "failed: DINOv2 ViT-B, COCO 16: " in out
    assert "was begun with other weights of dinov2" in out
    assert "give the same again or another --work" in out
    assert results.read_bytes() == before


def test_the_status_says_whether_everything_failed(command, tmp_path):
    empty = ["--data", str(tmp_path), "--work", str(tmp_path / "work2")]
    status, out, _ = command(*ONE, fixed=empty)
    assert status == 1
    assert "failed: DINOv2 ViT-B, COCO Orig" in out
    assert "and 1 more: coco: there is no folder" in out
    assert "results.json" not in out  # there is none
    assert out.splitlines()[-1] == "nothing was measured"
    assert not (tmp_path / "work2" / "results.json").exists()
    status, out, _ = command("table1", "--dataset", "coco", "--bits", "16", "--epochs", "1", "--batch-size", "4")
    assert status == 0  # dinov2 and dinov3-b could be measured
    assert "must be converted first" in out


@pytest.mark.parametrize(
    ("arguments", "fixed", "message"),
    [
        (["table2"], [], "give --data: the folder of the datasets"),
        (["table8"], None, "holds no results to reproduce; it is the settings of training"),
        (["table99"], None, "known are table1, table2"),
        (["table1", "--dataset", "mnist"], None, "it has cifar10"),
        (["table1", "--dataset", ","], None, "--dataset must be names with commas"),
        (["table1", "--bits", "x"], None, "--bits must be whole numbers"),
        (["table1", "--seeds", "0"], None, "--seeds must be at least 1"),
        (["table1", "--weights", "dinov2"], None, "--weights must be NAME=FOLDER"),
        (["table1", "--weights", "resnet=x"], None, "unknown encoder 'resnet'"),
        (["table1", "--query", "x.png"], None, "--query goes with pictures"),
        (["table1", "--epochs", "0"], None, "epochs must be a whole number of at least 1, got 0"),
        (["--list", "table1", "--epochs", "0"], [], "epochs must be a whole number of at least 1, got 0"),
        (["table1", "--batch-size", "1"], None, "batch_size must be a whole number of at least 2, got 1"),
        (["figure4", "--epochs", "0"], None, "epochs must be a whole number of at least 1, got 0"),
        (["table1", "--device", "tpu"], None, "unknown device 'tpu'"),
        (["table1", "--dtype", "foo"], None, "dtype must be 'auto' or one of"),
        (["table1", "--data", "nowhere"], None, "there is no folder nowhere; give the folder of the datasets"),
        (["figure3", "--query", "x.png"], None, "figure3 is a map of many items; it has no query"),
    ],
)
def test_what_the_command_refuses(command, tmp_path, benchmarks, arguments, fixed, message):
    if fixed is None:
        fixed = ["--work", str(tmp_path / "work")]
        fixed += [] if "--data" in arguments else ["--data", str(benchmarks[0])]
    status, out, errors = command(*arguments, fixed=fixed)
    assert status == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "work").exists()  # before anything ran


def test_alone_it_lists_what_there_is(command):
    status, out, _ = command(fixed=[])
    assert status == 0
    assert "table12" in out
    status, out, _ = command("--list", "table2", fixed=[])
    assert status == 0
    assert "imagenet1k" in out


def test_curves_are_measured_and_drawn(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    data = tmp_path / "pairs"
    protocols = pair_copies.write(data)
    monkeypatch.setattr(Inputs.__init__, "__kwdefaults__", {**Inputs.__init__.__kwdefaults__, "protocols": protocols})
    clip = tiny.save(tiny.models()["CLIP"][0], tmp_path / "clip", "CLIP")
    tiny.clip_tokenizer(clip)
    fixed = ["--data", str(data), "--work", str(tmp_path / "work"), "--weights", f"dfn-l={clip}"]
    shortened = ["--epochs", "1", "--batch-size", "4", "--device", "cpu", "--json"]
    status, out, _ = command("figure7", *shortened, fixed=fixed)
    content = json.loads(out)
    assert status == 0
    assert {len(cell["seeds"]["0"]["curve"]) for cell in content["cells"]} == {18}  # no more images there
    assert content["files"]
    assert all(Path(file).stat().st_size for file in content["files"])
    status, out, _ = command("table7", "--encoder", "dfn-l", *shortened, fixed=fixed)
    assert status == 0
    assert not [cell for cell in json.loads(out)["cells"] if cell["ours"] is None or cell["failed"]]


def test_pictures_are_drawn(command, dino, tmp_path):
    pytest.importorskip("matplotlib")
    query = "val_image/ILSVRC2012_val_00000002.JPEG"
    given = ["--weights", f"simdinov2={dino}", "--epochs", "1", "--batch-size", "4", "--query", query]
    status, out, _ = command("figure4", *given)
    assert status == 0
    assert "NOT the paper's settings: epochs 1, batch size 4" in out
    page = tmp_path / "work" / "figure4" / "figure4.html"
    assert out.splitlines()[-1].endswith(str(page))
    assert query in page.read_text()
    status, out, _ = command("figure4", *given, "--json")
    assert str(page) in json.loads(out)["files"]


def test_a_picture_that_cannot_be_drawn_is_a_failure_as_a_number_is(command, dino, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "empty").mkdir()
    fixed = ["--data", str(tmp_path / "empty"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    for table in (("table2", "--dataset", "imagenet100"), ("figure4", "--weights", f"simdinov2={dino}")):
        status, out, errors = command(*table, fixed=fixed)
        assert (status, errors) == (1, "") if table[0] == "figure4" else status == 1
        assert "failed: " in out
        assert "there is no folder" in out
    status, out, _ = command("figure4", "--json", fixed=fixed)
    content = json.loads(out)
    assert (status, content["files"]) == (1, [])
    assert "there is no folder" in content["failed"]


def test_a_query_that_is_none_is_a_wrong_option(command, dino):
    pytest.importorskip("matplotlib")
    status, _, errors = command("figure4", "--weights", f"simdinov2={dino}", "--query", "zebra.jpg")
    assert status == 2
    assert "zebra.jpg is none of the queries" in errors
