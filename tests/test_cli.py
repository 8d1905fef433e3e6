"""The commands as a user gives them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from sklearn.base import clone

import crovca
from crovca.cli import doctor
from crovca.cli.main import app, main
from crovca.cli.output import notes_for_warnings
from crovca.codes import Codes
from crovca.data.embeddings import load_embeddings
from crovca.data.encoded import Encoded
from crovca.evaluation.situations import Judge, make_situations
from crovca.hasher import Hasher
from crovca.hashing.train import Silent
from crovca.index.index import HashIndex
from crovca.metrics import METRICS

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A database and queries with ids and labels, texts beside them, and two models."""
    root = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    images = (2 * random.normal(size=(4, 10))[labels] + random.normal(size=(200, 10))).astype(np.float32)
    texts = (np.eye(4)[labels] + 0.1 * random.normal(size=(200, 4))).astype(np.float32)
    ids = np.array([f"{label}/{number}.jpg" for number, label in enumerate(labels)])
    names = np.array(["ant", "bee", "cat", "dog"])[labels]
    for name, rows in (("database", slice(0, 160)), ("query", slice(160, 200))):
        np.savez(root / f"{name}.npz", embeddings=images[rows], labels=names[rows], ids=ids[rows])
        np.savez(root / f"{name}_texts.npz", embeddings=texts[rows], labels=names[rows])
    run("train", root / "database.npz", "--bits", "32", "--epochs", "5", "-o", root / "model")
    run("train", "--images", root / "database.npz", "--texts", root / "database_texts.npz", "--bits", "16",
        "--epochs", "5", "-o", root / "two")  # fmt: skip
    return root


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 0


def run_json(capsys, *arguments):
    capsys.readouterr()
    run(*arguments, "--json")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1  # one object and nothing else
    return json.loads(lines[0])


def test_train_says_what_it_chose(folder, tmp_path, capsys):
    found = run_json(capsys, "train", folder / "database.npz", "--epochs", "1", "--bits", "20", "-o", tmp_path / "m")
    assert found["pairing"] == ["classes"]
    assert found["lengths"] == [16, 20]
    assert any("has labels: learning its classes (--unsupervised leaves them unused)" in n for n in found["notes"])
    found = run_json(
        capsys, "train", folder / "database.npz", "--unsupervised", "--epochs", "1", "--bits", "8", "-o", tmp_path / "n"
    )
    assert found["pairing"] == ["neighbors"]
    assert "the labels in database.npz are not used" in found["notes"]
    assert Hasher.load(tmp_path / "n").lengths_ == (8,)


@pytest.mark.parametrize(
    ("flags", "lengths"),
    [(["--no-nested"], (32,)), (["--nested", "4,9"], (4, 9, 32)), ([], (16, 32)), (["--preset", "small"], (32,))],
)
def test_lengths(folder, tmp_path, flags, lengths):
    run("train", folder / "database.npz", "--bits", "32", "--epochs", "1", *flags, "-o", tmp_path / "m")
    assert Hasher.load(tmp_path / "m").lengths_ == lengths


def test_presets_train_as_in_the_paper(folder, tmp_path):
    run("train", folder / "database.npz", "--preset", "imagenet1k", "--bits", "8", "-o", tmp_path / "m")
    hasher = Hasher.load(tmp_path / "m")
    assert (hasher.hashcoder, hasher.epochs, hasher.prototypes, hasher.center) == ("large", 5, "batch", False)


def test_encode_writes_codes_with_ids_and_labels(folder, tmp_path, capsys):
    found = run_json(capsys, "encode", folder / "model", folder / "query.npz", "--bits", "16", "-o", tmp_path / "c.npz")
    assert (found["items"], found["bits"], found["bytes_per_item"]) == (40, 16, 2)
    codes = Encoded.load(tmp_path / "c.npz")
    data = np.load(folder / "query.npz")
    assert codes.codes == Hasher.load(folder / "model").encode(data["embeddings"], bits=16)
    assert codes.ids.tolist() == data["ids"].tolist()
    assert codes.labels.tolist() == data["labels"].tolist()
    assert codes.logits is None
    run("encode", folder / "model", folder / "query.npz", "--logits", "-o", tmp_path / "d.npz")
    assert Codes.from_logits(Encoded.load(tmp_path / "d.npz").logits) == Codes.load(tmp_path / "d.npz")


def test_evaluate_prints_one_object(folder, capsys):
    arguments = ["--database", folder / "database.npz", "--query", folder / "query.npz"]
    found = run_json(capsys, "evaluate", folder / "model", *arguments, "--bits", "8,16,32", "--top-k", "50")
    assert (found["k"], found["queries"], found["database"], found["left_out"]) == (50, 40, 160, 0)
    assert [length["bits"] for length in found["lengths"]] == [8, 16, 32]
    assert all(list(length["map"]) == list(METRICS) for length in found["lengths"])
    assert found["lengths"][2]["map"]["asymmetric_hamming"] > 3 * found["chance_map"] > 0
    everything = run_json(capsys, "evaluate", folder / "model", *arguments, "--top-k", "all")
    assert everything["k"] == 160
    assert [length["bits"] for length in everything["lengths"]] == [16, 32]


def test_evaluate_leaves_a_querys_own_item_out(folder, capsys):
    both = ["--database", folder / "database.npz", "--query", folder / "database.npz"]
    assert run_json(capsys, "evaluate", folder / "model", *both)["left_out"] == 160


def test_evaluate_without_labels(folder, tmp_path, capsys):
    np.savez(tmp_path / "bare.npz", embeddings=np.load(folder / "query.npz")["embeddings"])
    arguments = ["--database", folder / "database.npz", "--query", tmp_path / "bare.npz"]
    found = run_json(capsys, "evaluate", folder / "model", *arguments)
    assert found["chance_map"] is None
    assert set(found["lengths"][0]["map"].values()) == {None}
    assert 0 < found["lengths"][0]["float_neighbour_recall"]["10@100"] <= 1


def test_evaluate_holds_out_classes(folder, tmp_path, capsys):
    """A model of the same parameters learns half of the classes, or of the cells where there are no labels."""
    both = ["--database", folder / "database.npz", "--query", folder / "query.npz", "--bits", "8"]
    run("train", folder / "database.npz", "--unsupervised", "--bits", "16", "--epochs", "2", "-o", tmp_path / "m")
    found = run_json(capsys, "evaluate", tmp_path / "m", *both, "--hold-out-classes", "0.5", "--seed", "1")
    five = found["five_measures"]
    assert five["labeled"]
    assert list(five["counts"]) == ["seen", "new", "mixed"]
    counts = five["counts"]
    assert counts["new"]["learned"] + counts["new"]["searched"] == counts["mixed"]["searched"] == 160
    assert set(five["methods"]) == {"model", "ITQ"}
    ours = five["methods"]["model"]["8"]
    assert ours["seen"]["map"] == pytest.approx(found["lengths"][0]["map"]["asymmetric_hamming"])
    assert ours["seen"]["order"] == pytest.approx(found["lengths"][0]["float_neighbour_recall"]["10@100"])
    _, new, _ = make_situations(load_embeddings(folder / "database.npz"), load_embeddings(folder / "query.npz"), seed=1)
    fresh = clone(Hasher.load(tmp_path / "m")).fit(new.learned.values)
    expected = Judge(new).of_codes(fresh.logits(new.asked.values)[:, :8], fresh.encode(new.searched.values).prefix(8))
    assert ours["new"]["map"] == pytest.approx(expected.map)
    assert five["float"]["mixed"]["order"] == 1

    for name in ("database", "query"):
        np.savez(tmp_path / f"{name}.npz", embeddings=np.load(folder / f"{name}.npz")["embeddings"])
    bare = ["--database", tmp_path / "database.npz", "--query", tmp_path / "query.npz", "--hold-out-classes", "0.5"]
    run("evaluate", tmp_path / "m", *bare, "--bits", "8,16")
    printed = capsys.readouterr().out
    assert "seen, new, mixed: order" in printed
    assert "ITQ, 8 bits" in printed


@pytest.mark.parametrize(
    ("model", "share", "message"),
    [
        ("model", "1.5", "a share between 0 and 1"),
        ("two", "0.5", "takes images or two modalities"),
        ("model", "0.05", "both need at least 2"),
    ],
)
def test_evaluate_refuses_to_hold_out(folder, capsys, model, share, message):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(folder / model), "--database", str(folder / "database.npz"), "--query",
              str(folder / "query.npz"), "--hold-out-classes", share, "--database-modality", "images",
              "--query-modality", "images"][: None if model == "two" else 8])  # fmt: skip
    assert exit_.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_evaluate_prints_a_table(folder, capsys):
    capsys.readouterr()
    run("evaluate", folder / "model", "--database", folder / "database.npz", "--query", folder / "query.npz")
    printed = capsys.readouterr().out
    for text in ("mAP@160", "float, centered", "16 bits", "32 bits", "A random order scores", "distinct codes"):
        assert text in printed


@pytest.mark.slow
def test_evaluate_writes_a_report(folder, tmp_path):
    pytest.importorskip("openTSNE")
    (tmp_path / "images").mkdir()
    run("evaluate", folder / "model", "--database", folder / "database.npz", "--query", folder / "query.npz",
        "--report", tmp_path / "report", "--images", tmp_path / "images")  # fmt: skip
    assert "no image" in (tmp_path / "report" / "index.html").read_text("utf-8")


def test_force_restarts_an_interrupted_run(folder, tmp_path, capsys):
    """A run that was begun with other settings is refused by name, and with --force begun anew."""
    data = folder / "database.npz"

    class Stopping(Silent):
        def progress(self, state):
            raise KeyboardInterrupt

    begun = Hasher(bits=8, epochs=9, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        begun.fit(load_embeddings(data), checkpoint=tmp_path / "m.partial", observer=Stopping())
    command = ["train", data, "-o", tmp_path / "m", "--unsupervised", "--bits", "16", "--epochs", "1"]
    with pytest.raises(SystemExit) as exit_:
        main([str(part) for part in command])
    assert exit_.value.code == 2
    assert "unfinished run with bits = 8, now it is 16" in " ".join(capsys.readouterr().err.split())
    run(*command, "--force")
    assert Hasher.load(tmp_path / "m").bits == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_the_dial_is_an_option(folder, tmp_path, capsys):
    for given, expected in (("kinds", None), ("order", 0.8), ("0.5", 0.1)):
        found = run_json(capsys, "train", folder / "database.npz", "-o", tmp_path / "m", "--epochs", "1", "--bits", "8",
                         "--faithfulness", given, "--force")  # fmt: skip
        assert ("order" in found) == (expected is not None)
        found = Hasher.load(tmp_path / "m").config_.faithfulness
        assert found == (expected and pytest.approx(expected))


def test_two_modalities(folder, tmp_path, capsys):
    run("encode", folder / "two", folder / "query_texts.npz", "-o", tmp_path / "texts.npz")  # by their width
    run("encode", folder / "two", folder / "query.npz", "--modality", "images", "-o", tmp_path / "images.npz")
    hasher = Hasher.load(folder / "two")
    texts = np.load(folder / "query_texts.npz")["embeddings"]
    assert Codes.load(tmp_path / "texts.npz") == hasher.encode(texts, modality="texts")
    found = run_json(
        capsys, "evaluate", folder / "two", "--database", folder / "database.npz", "--query",
        folder / "query_texts.npz", "--query-modality", "texts", "--database-modality", "images",
    )  # fmt: skip
    assert found["float"] == {"cosine": None, "cosine_centred": None}  # their widths differ
    assert found["lengths"][0]["map"]["bce"] > 2 * found["chance_map"]


def test_demo_reaches_the_numbers_it_promises(capsys):
    found = run_json(capsys, "demo")
    scores = {row["what"]: row["map"] for row in found["rows"]}
    assert found["k"] == 1000
    assert scores["the 64 floats themselves, cosine"] == pytest.approx(0.666, abs=0.002)
    assert scores["unsupervised, 16 bits"] > 0.66
    assert scores["supervised, 16 bits"] > 0.93
    assert scores["class name to image, 64 bits"] > 0.9


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command, capsys):
    run(*command, "--help")
    printed = capsys.readouterr().out
    assert "Usage: crovca" in printed
    assert "--help" in printed


@pytest.mark.starts
def test_the_installed_command_and_its_version():
    done = subprocess.run([sys.executable, "-m", "crovca.cli.main", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"crovca {crovca.__version__}\n")


def test_a_mistyped_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["trian"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: No such command 'trian'")


@pytest.mark.parametrize("command", [[], ["archive"], ["index"]])
def test_crovca_alone_shows_the_help_and_fails(command, capsys):
    """A script that forgot the command must not go on."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith(" ".join(["Usage: crovca", *command])) and "Commands:" in err and err.count("\n") > 5


def test_the_log_is_shown_when_it_is_asked_for(tmp_path, monkeypatch, capsys):
    def write(name):
        with notes_for_warnings(), HashIndex.create(tmp_path / name, 8) as index:
            index.add([1, 2], Codes.from_bits(np.eye(2, 8, dtype=bool)))
        return capsys.readouterr().err

    assert write("quiet") == ""
    monkeypatch.setenv("CROVCA_LOG", "info")
    told = " ".join(write("told").split())
    assert "info: crovca.index.index: " in told
    assert "2 items" in told
    monkeypatch.setenv("CROVCA_LOG", "loud")
    with pytest.raises(SystemExit) as ended:
        main(["datasets"])
    assert ended.value.code == 2
    assert "CROVCA_LOG must be debug, info, warning or error, got 'loud'" in capsys.readouterr().err


def test_doctor_says_what_is_there(tmp_path, capsys, monkeypatch):
    found = run_json(capsys, "doctor", "--path", tmp_path)
    assert found["wrong"] == [] and found["folder"].startswith("can hold an index")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert "needed and not right: numpy>=2.2: 0.0.1, needed is >=2.2" in said
    assert "pip install 'crovca[serve]'" in said


@pytest.mark.parametrize(
    ("module", "expected"), [("PIL.Image", "pip install 'crovca[images]'"), ("crovca.x", "internal error")]
)
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(capsys, monkeypatch, module, expected):
    def demo(stage):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("crovca.archive.demo.run_demo", demo)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    assert ended.value.code == 1 and expected in capsys.readouterr().err
