"""An index that outgrows its model: it says so, and learns anew, from the command line as a user does."""

import signal
import time

import numpy as np
import pytest

from crovca import CrovcaError, Hasher, HashIndex
from crovca.archive.ingest import add_items, build_index
from crovca.archive.refit import check_index, refit
from crovca.cli.main import main
from crovca.errors import ConfigError, InvalidInputError
from crovca.hasher.drift import Drift
from crovca.hashing.train import Silent
from tests.started import Started
from tests.test_cli import run, run_json

WIDTH = 16


class Listening(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def draw(kinds, count, seed=1):
    """Items of some kinds, each about its own direction."""
    centers = 3 * np.random.default_rng(0).normal(size=(40, WIDTH))
    rng = np.random.default_rng(seed)
    return (centers[rng.choice(kinds, count)] + rng.normal(size=(count, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Items of 20 kinds, more of the same and of others, another encoder's embeddings of all, a model, an index."""
    root = tmp_path_factory.mktemp("refit")
    old, same, new = draw(range(20), 600), draw(range(20), 200, 2), draw(range(20, 40), 200, 3)
    for name, values, start in (("old", old, 0), ("same", same, 1000), ("new", new, 2000)):
        np.savez(root / f"{name}.npz", embeddings=values, ids=np.arange(start, start + len(values)))
    turn = np.random.default_rng(9).normal(size=(WIDTH, 20)).astype(np.float32)
    order = np.random.default_rng(1).permutation(600)
    np.savez(root / "other.npz", embeddings=(old @ turn)[order], ids=order)
    run("train", root / "old.npz", "--bits", "32", "--epochs", "5", "-o", root / "model")
    return root


@pytest.fixture
def index(folder, tmp_path):
    build_index(folder / "old.npz", tmp_path / "index", model=folder / "model", observer=Silent())
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("outside", "items", "much"), [(1, 1, False), (0, 50, False), (2, 8, False), (27, 100, False), (28, 100, True)]
)
def test_much_is_beyond_doubt(outside, items, much):
    """Of 100 items of which a fifth is expected outside, 28 or more are by chance in 3 % of draws, 27 or more in 6."""
    assert Drift(np.repeat(np.array([1, 0], np.float32), [outside, items - outside]), 0.5).much is much


def test_a_hasher_says_what_lies_outside_of_what_it_learned(folder):
    hasher = Hasher.load(folder / "model")
    same, new = (hasher.drift(draw(kinds, 300, 7)) for kinds in (range(20), range(20, 40)))
    assert same.outside < 0.25 and not same.much
    assert new.outside > 0.7 and new.much and np.median(new.distances) > np.median(same.distances)
    assert "70" not in same.sentence() and "10 % is usual" in new.sentence()
    with pytest.raises(InvalidInputError, match=r"shape \(n, 16\)"):
        hasher.drift(np.zeros((3, 5), np.float32))
    with pytest.raises(ConfigError, match="faithfulness"):
        Hasher(8, faithfulness="kinds", epochs=1).fit(draw(range(20), 60)).drift(draw(range(20), 5))


def test_a_fingerprint_tells_models_apart_and_is_kept(folder, tmp_path):
    hasher = Hasher.load(folder / "model")
    hasher.save(tmp_path / "again")
    assert Hasher.load(tmp_path / "again").fingerprint == hasher.fingerprint
    assert Hasher(32, epochs=1).fit(draw(range(20), 60)).fingerprint != hasher.fingerprint


def test_a_check_tells_the_same_from_new_kinds(folder, index, capsys):
    same, new = check_index(index, folder / "same.npz"), check_index(index, folder / "new.npz")
    assert not same.advised and new.advised and new.drift.outside > same.drift.outside + 0.4
    assert 0 < new.recall <= 1 and 0 < new.recall_before <= 1
    assert new.sentence(index).endswith(f"learn anew with 'crovca index refit {index}'.")
    said = run_json(capsys, "index", "check", index, folder / "new.npz")
    assert said["refit"] and said["outside"] == new.drift.outside


def test_adding_warns_once_of_new_kinds(folder, index):
    heard = Listening()
    add_items(index, folder / "same.npz", observer=heard)
    assert not [text for text in heard.said if "outside" in text]
    add_items(index, folder / "new.npz", observer=heard)
    (warning,) = [text for text in heard.said if "outside" in text]
    assert "crovca index refit" in warning
    assert sum("kept as int8: cosine with the floats 0.999" in text for text in heard.said) == 2


def test_refit_learns_what_is_in_the_index_now(folder, index):
    add_items(index, folder / "new.npz", observer=Silent())
    before = HashIndex.open(index)
    queries = draw(range(20, 40), 50, 5)
    answers = before.search(embeddings=queries, k=5)
    made = refit(index, observer=Silent())
    assert (made.items, made.bits, made.keep) == (800, 32, "int8")
    assert not check_index(index, folder / "new.npz").advised
    assert (before.search(embeddings=queries, k=5).ids == answers.ids).all()  # the old codes, with the old model
    assert (before.search(before.view().model.logits(queries), 5).ids == answers.ids).all()
    assert before.refresh()
    hasher = Hasher.load(before.model_folder)
    assert before.origin.model == hasher.fingerprint
    stored = before.get(np.arange(600))
    assert stored.codes == hasher.encode(before.view().originals()[before.view().find_all(np.arange(600))])
    before.close()
    del answers, stored  # they hold what they were found in, the model among it
    with HashIndex.open(index, writable=True) as opened:
        assert opened.verify() == []
        assert sorted(path.name for path in index.glob("model*")) == [opened.model_folder.name]
    assert not (index / "refit.partial").exists()


def test_refit_changes_the_encoder_the_length_and_what_is_kept(folder, index, capsys):
    said = run_json(
        capsys, "index", "refit", index, "--embeddings", folder / "other.npz", "--bits", "16", "--keep", "float16"
    )
    assert (said["items"], said["bits"], said["keep"]) == (600, 16, "float16")
    with HashIndex.open(index) as opened, np.load(folder / "other.npz") as other:
        asked = other["embeddings"][:5]
        found = opened.search(embeddings=asked, k=1, rescore=20)
        assert found.ids[:, 0].tolist() == other["ids"][:5].tolist() and (found.distances < 1e-4).all()
        with pytest.raises(InvalidInputError, match=r"takes embeddings \(q, 20\)"):
            opened.search(embeddings=draw(range(3), 2))
    with pytest.raises(InvalidInputError, match="no embeddings of 600 items"):
        refit(index, embeddings=folder / "new.npz", observer=Silent())


def test_an_index_of_codes_gets_originals_and_a_given_model(folder, tmp_path):
    run("encode", folder / "model", folder / "old.npz", "-o", tmp_path / "codes.npz")
    build_index(tmp_path / "codes.npz", tmp_path / "index", model=folder / "model", observer=Silent())
    with pytest.raises(InvalidInputError, match="keeps no embeddings"):
        refit(tmp_path / "index", observer=Silent())
    options = {"embeddings": folder / "old.npz", "model": folder / "model", "keep": "int8"}
    assert refit(tmp_path / "index", **options, observer=Silent()).keep == "int8"
    Hasher(32, epochs=1, seed=4).fit(draw(range(20), 60)).save(tmp_path / "stranger")
    run("encode", tmp_path / "stranger", folder / "new.npz", "-o", tmp_path / "strange.npz")
    with pytest.raises(InvalidInputError, match="made by another model"):
        add_items(tmp_path / "index", tmp_path / "strange.npz", observer=Silent())
    with pytest.raises(CrovcaError, match="another model"):
        add_items(tmp_path / "index", folder / "new.npz", model=tmp_path / "stranger", observer=Silent())


def test_build_tune_search_and_info_by_the_command_line(folder, tmp_path, capsys):
    index = tmp_path / "index"
    built = run_json(capsys, "index", "build", folder / "old.npz", "--model", folder / "model", "-o", index,
                     "--target-recall", "0.8", "-k", "5")  # fmt: skip
    assert built["tuned"]["reached"] and built["tuned"]["k"] == 5 and built["disk_bytes"]["originals"]
    asked = ["search", index, "--embeddings", folder / "same.npz", "-k", "5"]
    tuned = run_json(capsys, *asked)
    assert tuned["scoring"] == "cosine"
    oversampling = built["tuned"]["chosen"]["oversampling"]
    same = run_json(capsys, *asked, "--rescore", oversampling, "--bits", built["tuned"]["chosen"]["bits"])
    assert same["results"] == tuned["results"]
    assert run_json(capsys, *asked, "--bits", "32")["scoring"] == "bce"
    with pytest.raises(SystemExit, match="1"):
        main(["index", "tune", str(index), "--target-recall", "0.9999"])
    assert "0.9999 is not reached" in capsys.readouterr().out
    run("index", "info", index)
    said = capsys.readouterr().out
    assert "embeddings: int8, 16 numbers an item" in said and "x32" in said


@pytest.mark.slow
@pytest.mark.starts
def test_a_killed_refit_leaves_the_old_index_and_is_taken_up_again(folder, index):
    process = Started(["-m", "crovca.cli.main", "index", "refit", index])
    while process.poll() is None and not (index / "refit.partial").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with HashIndex.open(index) as opened:
        assert opened.verify() == [] and opened.origin.model == Hasher.load(folder / "model").fingerprint
    assert refit(index, observer=Silent()).items == 600
    assert not (index / "refit.partial").exists()
