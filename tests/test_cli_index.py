"""``crovca index``, ``search`` and ``dedup`` as a user gives them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from crovca import Codes, Encoded, Hasher, HashIndex
from tests.encoders import tiny
from tests.test_cli import run, run_json

WORDS = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Embeddings with ids and labels, a model, codes, an index of them, and metadata."""
    root = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    values = (3 * rng.normal(size=(4, 12))[labels] + rng.normal(size=(240, 12))).astype(np.float32)
    ids = np.array([f"{WORDS[label]}/{number}.jpg" for number, label in enumerate(labels)])
    names = np.array(WORDS)[labels]
    for name, rows in (("database", slice(0, 200)), ("more", slice(200, 240))):
        np.savez(root / f"{name}.npz", embeddings=values[rows], labels=names[rows], ids=ids[rows])
    run("train", root / "database.npz", "--bits", "32", "--epochs", "5", "-o", root / "model")
    run("encode", root / "model", root / "database.npz", "-o", root / "codes.npz")
    lines = ["id,year,place", *(f"{one},{1900 + number},Bern" for number, one in enumerate(ids[:150]))]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    run("index", "build", root / "database.npz", "--model", root / "model", "--metadata", root / "metadata.csv",
        "-o", root / "index")  # fmt: skip
    return root


@pytest.fixture
def index(folder, tmp_path):
    """A copy to write into."""
    import shutil

    return shutil.copytree(folder / "index", tmp_path / "index")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images in two colours, and a small random CLIP."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(24):
        colour = ("red", "blue")[number % 2]
        pixels = rng.integers(0, 120, (40, 50, 3))
        pixels[..., 0 if colour == "red" else 2] += 130
        (root / "images" / colour).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels.astype(np.uint8)).save(root / "images" / colour / f"{number}.png")
    (root / "images" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    model, processor, _ = tiny.models()["CLIP"]
    tiny.save(model, root / "clip", processor)
    tiny.clip_tokenizer(root / "clip")
    return root


def test_a_folder_of_images_is_searched_after_one_command(photos, tmp_path, capsys):
    built = run_json(capsys, "index", "build", photos / "images", "--encoder", photos / "clip", "--bits", "16",
                     "-o", tmp_path / "index")  # fmt: skip
    assert built["items"] == 24 and built["bits"] == 16
    query = photos / "images" / "red" / "2.png"
    found = run_json(capsys, "search", tmp_path / "index", "--image", query, "-k", "24")
    assert found["exact"] and found["scoring"] == "bce"
    (result,) = found["results"]
    distance = {hit["id"]: hit["distance"] for hit in result["hits"]}
    # Its own code has the sign of every logit, but for those that float16 made another in the store.
    assert distance["red/2.png"] <= min(distance.values()) + 0.1
    distances = [hit["distance"] for hit in result["hits"]]
    assert distances == sorted(distances)
    assert {hit["metadata"]["label"] for hit in result["hits"]} <= {"red", "blue"}
    # The same as from Python, through embeddings of the query.
    by_text = run_json(
        capsys, "search", tmp_path / "index", "--text", "a cat", "--where", "label = 'blue'", "-k", "3"
    )
    assert all(hit["id"].startswith("blue/") for hit in by_text["results"][0]["hits"])
    added = run_json(capsys, "index", "add", tmp_path / "index", photos / "images", "--replace")
    assert (added["added"], added["replaced"]) == (0, 24)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index", "index.embeddings"]


def test_a_fine_tuned_model_brings_its_own_encoder(photos, tmp_path, capsys):
    pytest.importorskip("peft")
    pytest.importorskip("kornia")
    images = photos / "images"
    run("finetune", images, "--encoder", photos / "clip", "--bits", "16", "--supervised", "--epochs", "2",
        "--batch-size", "8", "-o", tmp_path / "model")  # fmt: skip
    run("index", "build", images, "--model", tmp_path / "model", "-o", tmp_path / "index")
    assert "--image FILE" in capsys.readouterr().out
    found = run_json(capsys, "search", tmp_path / "index", "--image", images / "red" / "2.png", "-k", "24")
    distance = {hit["id"]: hit["distance"] for hit in found["results"][0]["hits"]}
    assert len(distance) == 24 and distance["red/2.png"] == min(distance.values())
    assert "takes images only" in fails(capsys, "search", tmp_path / "index", "--text", "a cat")
    assert run_json(capsys, "index", "add", tmp_path / "index", images, "--replace")["replaced"] == 24


def test_an_encoder_with_other_weights_is_refused(photos, tmp_path, capsys):
    import shutil

    encoder = shutil.copytree(photos / "clip", tmp_path / "clip")
    run("index", "build", photos / "images", "--encoder", encoder, "--bits", "16", "-o", tmp_path / "index")
    model, *_ = tiny.models()["CLIP"]
    for _ in range(2):  # each adds noise to the weights
        tiny.save(model, encoder)
    assert "has other weights now than when the index was built" in fails(
        capsys, "search", tmp_path / "index", "--image", photos / "images" / "red" / "2.png"
    )


def fails(capsys, *arguments, status=2):
    from crovca.cli.main import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == status, error
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    return lines[0]


def test_search_by_embeddings_gives_what_python_gives(folder, capsys):
    found = run_json(capsys, "search", folder / "index", "--embeddings", folder / "more.npz", "-k", "7")
    more = np.load(folder / "more.npz")
    logits = Hasher.load(folder / "model").logits(more["embeddings"])
    with HashIndex.open(folder / "index") as index:
        expected = index.search(logits, 7)
    assert [result["query"] for result in found["results"]] == more["ids"].tolist()
    assert [[hit["id"] for hit in result["hits"]] for result in found["results"]] == expected.ids.tolist()
    same = [
        hit["metadata"]["label"] == result["query"][:3]
        for result in found["results"]
        for hit in result["hits"]
    ]
    assert np.mean(same) > 0.8


def test_search_by_id_and_condition(folder, capsys):
    found = run_json(capsys, "search", folder / "index", "--id", "cat/2.jpg", "--id", "dog/3.jpg", "-k", "3",
                     "--where", "year < 1950", "--bits", "16")  # fmt: skip
    assert found["scoring"] == "hamming"
    for result in found["results"]:
        assert result["query"] not in [hit["id"] for hit in result["hits"]]
        assert all(
            hit["metadata"]["year"] < 1950 and hit["metadata"]["place"] == "Bern" for hit in result["hits"]
        )
    run("search", folder / "index", "--id", "cat/2.jpg")
    text = capsys.readouterr().out
    assert "distance" in text and "place" in text and "1 query over 200 items: encoded in" in text


def test_several_indexes_are_searched_as_one(folder, tmp_path, capsys):
    codes = Encoded.load(folder / "codes.npz")
    for name, part in (("a", slice(0, 90)), ("b", slice(90, 200))):
        Encoded(codes.codes[part], codes.ids[part], codes.labels[part]).save(tmp_path / f"{name}.npz")
        run("index", "build", tmp_path / f"{name}.npz", "--model", folder / "model", "-o", tmp_path / name)
    asked = ("--embeddings", folder / "more.npz", "-k", "20")
    both = run_json(capsys, "search", tmp_path / "a", tmp_path / "b", *asked)["results"]
    one = run_json(capsys, "search", folder / "index", *asked)["results"]
    for ours, theirs in zip(both, one, strict=True):
        assert [hit["id"] for hit in ours["hits"]] == [hit["id"] for hit in theirs["hits"]]


def test_an_index_is_built_from_codes_alone(folder, tmp_path, capsys):
    run("index", "build", folder / "codes.npz", "-o", tmp_path / "index")
    assert "crovca search" in capsys.readouterr().out
    assert run_json(capsys, "search", tmp_path / "index", "--id", "ant/0.jpg")["results"][0]["hits"]
    assert "holds no model" in fails(
        capsys, "search", tmp_path / "index", "--embeddings", folder / "more.npz"
    )
    assert "holds no model" in fails(capsys, "index", "add", tmp_path / "index", folder / "more.npz")
    found = run_json(
        capsys, "search", tmp_path / "index", "--embeddings", folder / "more.npz", "--model", folder / "model"
    )
    assert len(found["results"]) == 40
    assert "goes with embeddings" in fails(
        capsys, "index", "build", folder / "codes.npz", "--bits", "8", "-o", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


def test_an_index_without_a_model_learns_one(folder, tmp_path, capsys):
    built = run_json(
        capsys, "index", "build", folder / "database.npz", "--bits", "16", "-o", tmp_path / "index"
    )
    assert built["bits"] == 16
    assert run_json(capsys, "index", "info", tmp_path / "index")["model"] is True
    assert run_json(capsys, "search", tmp_path / "index", "--embeddings", folder / "more.npz")["results"]


def test_add_delete_compact_verify_info(folder, index, capsys):
    added = run_json(capsys, "index", "add", index, folder / "more.npz")
    assert (added["added"], added["items"]) == (40, 240)
    assert "40 of 40 ids are in the index already" in fails(
        capsys, "index", "add", index, folder / "more.npz"
    )
    assert run_json(capsys, "index", "add", index, folder / "more.npz", "--replace")["replaced"] == 40
    assert run_json(capsys, "index", "delete", index, "ant/0.jpg", "nobody")["deleted"] == 1
    assert run_json(capsys, "index", "delete", index, "--where", "label = 'bee'")["deleted"] == 60
    (index.parent / "ids.txt").write_text("cat/2.jpg\ndog/3.jpg\n")
    assert run_json(capsys, "index", "delete", index, "--ids-from", index.parent / "ids.txt")["deleted"] == 2
    assert "give IDS, or --where, or --ids-from" in fails(capsys, "index", "delete", index)
    assert run_json(capsys, "index", "compact", index)["dropped"] > 0
    info = run_json(capsys, "index", "info", index, "--engines")
    assert info["items"] == 177 and info["deleted"] == 0 and info["engines"][0]["engine"] == "exact"
    assert info["metadata"] == {"label": "string", "year": "int64", "place": "string"}
    assert run_json(capsys, "index", "verify", index) == {"index": str(index), "problems": [], "items": 177}
    run("index", "info", index, "--engines")
    assert "177 items (0 deleted), codes of 32 bits, ids string" in capsys.readouterr().out


def test_verify_names_what_is_damaged(index, capsys):
    victim = next(index.glob("segments/*/codes.npy"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    from crovca.cli.main import main

    with pytest.raises(SystemExit) as exit_:
        main(["index", "verify", str(index)])
    assert exit_.value.code == 1
    assert f"damaged: segment {victim.parent.name}: codes.npy" in capsys.readouterr().out


def test_dedup(tmp_path, capsys):
    codes = Codes.from_bits([[0] * 20, [0] * 19 + [1], [1] * 20, [1] * 20, [0, 1] * 10])
    Encoded(codes, np.array(["a", "b", "c", "d", "e"])).save(tmp_path / "codes.npz")
    run("index", "build", tmp_path / "codes.npz", "-o", tmp_path / "index")
    found = run_json(capsys, "dedup", tmp_path / "index", "--radius", "1", "-o", tmp_path / "groups.json")
    assert {frozenset(group["ids"]) for group in found["groups"]} == {frozenset("ab"), frozenset("cd")}
    assert found["duplicates"] == 2
    assert json.loads((tmp_path / "groups.json").read_text())["groups"] == found["groups"]
    run("dedup", tmp_path / "index")
    assert "1 group; 1 of 5 items could go" in capsys.readouterr().out
    assert "from 0 to 20" in fails(capsys, "dedup", tmp_path / "index", "--radius", "21")
    assert "exists already" in fails(capsys, "dedup", tmp_path / "index", "-o", tmp_path / "groups.json")


def test_what_cannot_be_done_is_one_line_and_changes_nothing(folder, index, tmp_path, capsys):
    before = sorted(file.name for file in tmp_path.rglob("*"))
    (tmp_path / "bad.csv").write_text("name,year\na,1\n")
    (tmp_path / "twice.csv").write_text("id,year\na,1\na,2\n")
    database, model = folder / "database.npz", folder / "model"
    out = ("-o", tmp_path / "out")
    cases = [
        (("index", "build", tmp_path / "none", *out), "does not exist"),
        (("index", "build", folder, *out), "give --encoder"),
        (("index", "build", database, "--model", tmp_path / "none", *out), "none"),
        (("index", "build", database, "--model", model, "--bits", "64", *out), "between 1 and 32"),
        (
            ("index", "build", database, "--model", model, "--metadata", tmp_path / "bad.csv", *out),
            "no column 'id'",
        ),
        (
            ("index", "build", database, "--model", model, "--metadata", tmp_path / "twice.csv", *out),
            "occurs twice",
        ),
        (("index", "build", database, "-o", index), "exists already"),
        (("index", "build", database, "-o", folder, "--force"), "replace"),
        (("index", "info", tmp_path / "none"), "is not an index"),
        (("index", "delete", index, "--where", "nonsense = 1"), "the columns are id"),
        (("search", index), "give one kind of query"),
        (("search", index, "--id", "ant/0.jpg", "--text", "x"), "give one kind of query"),
        (("search", index, "--id", "nobody"), "not in the index"),
        (("search", index, "--id", "ant/0.jpg", "--scoring", "bce"), "goes with hamming"),
        (("search", index, "--id", "ant/0.jpg", "--engine", "exact"), "do not go with --id"),
        (("search", index, index, "--id", "ant/0.jpg"), "given twice"),
        (("search", index, "--id", "ant/0.jpg", "-k", "0"), "at least 1"),
        (("index", "build", database, "--bits", "5000", *out), "between 1 and 4,096"),
        (("search", index, "--image", "x.jpg"), "does not know which encoder"),
        (("search", index, "--text", "x"), "give --text-encoder"),
        (("search", index, "--embeddings", folder / "codes.npz"), "embeddings"),
        (("search", index, "--embeddings", folder / "more.npz", "-k", "0"), "at least 1"),
        (
            ("search", index, "--embeddings", folder / "more.npz", "--engine", "buckets"),
            "takes codes of 1 to 24 bits",
        ),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, *arguments), arguments
    left = {file.name for file in tmp_path.rglob("*")} - {"bad.csv", "twice.csv"}
    assert sorted(left) == sorted(set(before))


def test_an_index_is_built_anew_when_its_photographs_change(photos, tmp_path, capsys):
    import shutil

    images = shutil.copytree(photos / "images", tmp_path / "images")
    build = ("index", "build", images, "--encoder", photos / "clip", "--bits", "16", "-o", tmp_path / "index")
    run(*build)
    shutil.copy(images / "red" / "2.png", images / "red" / "100.png")
    assert "exists already" in fails(capsys, *build)
    assert run_json(capsys, *build, "--force")["items"] == 25
    assert "1 of 2 ids" not in fails(capsys, "index", "add", tmp_path / "index", images)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "index", "index.embeddings"]
    with HashIndex.open(tmp_path / "index", writable=True) as index:
        assert "being written" in fails(capsys, *build, "--force")
        assert len(index) == 25
    shutil.rmtree(tmp_path / "index")
    shutil.copy(images / "red" / "2.png", images / "red" / "101.png")
    assert "remove it" in fails(capsys, *build)


def test_two_writers_get_a_clear_line(folder, index, capsys):
    with HashIndex.open(index, writable=True):
        assert f"being written by process {os.getpid()}" in fails(
            capsys, "index", "delete", index, "ant/0.jpg"
        )


def test_a_killed_build_leaves_no_index_and_is_repeated(folder, tmp_path):
    output = tmp_path / "index"
    command = [
        sys.executable,
        "-m",
        "crovca.cli.main",
        "index",
        "build",
        str(folder / "database.npz"),
        "-o",
        str(output),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not output.exists():
        run("index", "build", folder / "database.npz", "--model", folder / "model", "-o", output)
    with HashIndex.open(output) as index:
        assert len(index) == 200 and index.verify() == []
