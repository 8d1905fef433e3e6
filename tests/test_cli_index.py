"""``crovca index``, ``search`` and ``dedup`` as a user gives them."""

import json
import os
import signal
import time

import numpy as np
import pytest

from crovca import Codes, Encoded, Hasher, HashIndex
from tests.encoders import tiny
from tests.started import Started
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
    """A folder of images in two colors, and a small random CLIP."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(24):
        color = ("red", "blue")[number % 2]
        pixels = rng.integers(0, 120, (40, 50, 3))
        pixels[..., 0 if color == "red" else 2] += 130
        (root / "images" / color).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels.astype(np.uint8)).save(root / "images" / color / f"{number}.png")
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
    by_text = run_json(capsys, "search", tmp_path / "index", "--text", "a cat", "--where", "label = 'blue'", "-k", "3")
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


@pytest.fixture
def album(photos, tmp_path):
    """A few of the photos, to add to; and an index of them."""
    import shutil

    (tmp_path / "album").mkdir()
    for number in range(16):
        shutil.copy(next(photos.glob(f"images/*/{number}.png")), tmp_path / "album")
    run("index", "build", tmp_path / "album", "--encoder", photos / "clip", "--bits", "8", "-o", tmp_path / "index")
    return tmp_path / "album"


def test_force_embeds_anew_what_has_changed(photos, album, tmp_path, capsys):
    import shutil

    command = ("index", "build", album, "--encoder", photos / "clip", "--bits", "8", "-o", tmp_path / "index")
    store = tmp_path / "index.embeddings"
    part = next(store.glob("part-*")).stat().st_ino
    run(*command, "--force")
    assert next(store.glob("part-*")).stat().st_ino == part  # nothing had changed: nothing was embedded
    shutil.copy(photos / "images" / "blue" / "17.png", album)
    assert run_json(capsys, *command, "--force")["items"] == 17
    assert "17.png" in run_json(capsys, "search", tmp_path / "index", "--id", "17.png")["results"][0]["query"]
    # Without --force a stale store is kept, and the line says how to go on.
    shutil.rmtree(tmp_path / "index")
    shutil.copy(photos / "images" / "red" / "18.png", album)
    error = fails(capsys, *command)
    assert "index.embeddings was begun with another" in error and "--force to begin anew" in error
    assert store.exists() and not (tmp_path / "index").exists()
    (store / "job.json").write_text("{")
    assert run_json(capsys, *command, "--force")["items"] == 18


def test_force_replaces_no_folder_of_something_else(photos, album, tmp_path, capsys):
    """The images lie where the embeddings would be kept."""
    import shutil

    source = tmp_path / "other.embeddings"
    shutil.copytree(tmp_path / "index.embeddings", source)
    shutil.copytree(album, source / "photos")
    shutil.copy(photos / "images" / "blue" / "17.png", source / "photos")
    assert "would replace the input" in fails(
        capsys, "index", "build", source / "photos", "--encoder", photos / "clip", "--bits", "8",
        "-o", tmp_path / "other", "--force",
    )  # fmt: skip
    assert len(list((source / "photos").iterdir())) == 17


def test_images_whose_ids_are_known_are_refused_before_they_are_embedded(photos, album, tmp_path, capsys, monkeypatch):
    import shutil

    from crovca.encoders.encoder import Encoder

    def unwanted(*_, **__):
        raise AssertionError("the encoder was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "load", unwanted)
        assert "16 of 16 ids are in the index already" in fails(capsys, "index", "add", tmp_path / "index", album)
    assert not list(tmp_path.glob("*.adding-*"))
    # Another encoder's embeddings are refused: which it is is seen only after embedding.
    for file in album.iterdir():
        file.unlink()
    shutil.copy(photos / "images" / "blue" / "17.png", album)
    model, processor, _ = tiny.models()["DINOv2"]
    tiny.save(model, tmp_path / "other", processor)
    said = fails(capsys, "index", "add", tmp_path / "index", album, "--encoder", tmp_path / "other")
    assert "come from another encoder" in said and "refit --embeddings" in said
    assert not list(tmp_path.glob("*.adding-*"))
    assert run_json(capsys, "index", "add", tmp_path / "index", album)["added"] == 1


def test_an_interrupted_add_goes_on_from_its_store(photos, album, tmp_path, capsys, monkeypatch):
    import shutil

    from crovca.archive import ingest
    from crovca.cli.main import main

    def interrupted(*_):
        raise KeyboardInterrupt

    for file in album.iterdir():
        file.unlink()
    shutil.copy(photos / "images" / "blue" / "17.png", album)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "of_embeddings", interrupted)
        with pytest.raises(SystemExit) as exit_:
            main(["index", "add", str(tmp_path / "index"), str(album)])
    assert exit_.value.code == 130
    assert len(list(tmp_path.glob("*.adding-*"))) == 1
    shutil.copy(photos / "images" / "red" / "18.png", album)  # what was begun is of no more use
    assert run_json(capsys, "index", "add", tmp_path / "index", album)["added"] == 2
    assert not list(tmp_path.glob("*.adding-*"))


def test_an_index_finds_its_encoder_from_every_folder(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    run("index", "build", "images", "--encoder", "clip", "--bits", "16", "-o", tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    query = photos / "images" / "red" / "2.png"
    assert run_json(capsys, "search", "index", "--image", query)["results"][0]["hits"]
    assert run_json(capsys, "index", "add", "index", photos / "images", "--replace")["replaced"] == 24


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
    same = [hit["metadata"]["label"] == result["query"][:3] for result in found["results"] for hit in result["hits"]]
    assert np.mean(same) > 0.8


def test_search_by_id_and_condition(folder, capsys):
    found = run_json(capsys, "search", folder / "index", "--id", "cat/2.jpg", "--id", "dog/3.jpg", "-k", "3",
                     "--where", "year < 1950", "--bits", "16")  # fmt: skip
    assert found["scoring"] == "hamming"
    for result in found["results"]:
        assert result["query"] not in [hit["id"] for hit in result["hits"]]
        assert all(hit["metadata"]["year"] < 1950 and hit["metadata"]["place"] == "Bern" for hit in result["hits"])
    run("search", folder / "index", "--id", "cat/2.jpg")
    text = capsys.readouterr().out
    assert "distance" in text and "place" in text and "1 query over 200 items: searched in" in text


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
    assert "holds no model" in fails(capsys, "search", tmp_path / "index", "--embeddings", folder / "more.npz")
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
    built = run_json(capsys, "index", "build", folder / "database.npz", "--bits", "16", "-o", tmp_path / "index")
    assert built["bits"] == 16
    assert run_json(capsys, "index", "info", tmp_path / "index")["model"] is True
    assert run_json(capsys, "search", tmp_path / "index", "--embeddings", folder / "more.npz")["results"]


def test_add_delete_compact_verify_info(folder, index, capsys):
    added = run_json(capsys, "index", "add", index, folder / "more.npz")
    assert (added["added"], added["items"]) == (40, 240)
    assert "40 of 40 ids are in the index already" in fails(capsys, "index", "add", index, folder / "more.npz")
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
    assert "1 group; 2 of 5 items have another within 0 bits" in capsys.readouterr().out
    assert "from 0 to 20" in fails(capsys, "dedup", tmp_path / "index", "--radius", "21")
    asked = ("dedup", tmp_path / "index", "-o", tmp_path / "groups.json")
    assert "exists already" in fails(capsys, *asked)
    run(*asked, "--force")
    assert len(json.loads((tmp_path / "groups.json").read_text())["groups"]) == 1


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
        (("index", "build", database, "--model", model, "--metadata", tmp_path / "bad.csv", *out), "no column 'id'"),
        (("index", "build", database, "--model", model, "--metadata", tmp_path / "twice.csv", *out), "occurs twice"),
        (("index", "build", database, "-o", index), "exists already"),
        (("index", "build", database, "-o", folder, "--force"), "replace"),
        (("index", "info", tmp_path / "none"), "is not an index"),
        (("index", "delete", index, "--where", "nonsense = 1"), "the columns are id"),
        (("search", index), "give one kind of query"),
        (("search", index, "--id", "ant/0.jpg", "--text", "x"), "give one kind of query"),
        (("search", index, "--id", "nobody"), "not in the index"),
        (("search", index, "--id", "ant/0.jpg", "--scoring", "bce"), "goes with hamming"),
        (("search", index, "--id", "ant/0.jpg", "--engine", "exact"), "not go with --id"),
        (("search", index, index, "--id", "ant/0.jpg"), "given twice"),
        (("search", index, "--id", "ant/0.jpg", "-k", "0"), "at least 1"),
        (("index", "build", database, "--bits", "5000", *out), "between 1 and 4,096"),
        (("search", index, "--image", "x.jpg"), "does not know which encoder"),
        (("search", index, "--text", "x"), "give --text-encoder"),
        (("search", index, "--embeddings", folder / "codes.npz"), "embeddings"),
        (("search", index, "--embeddings", folder / "more.npz", "-k", "0"), "at least 1"),
        (("search", index, "--embeddings", folder / "more.npz", "--engine", "buckets"), "takes codes of 1 to 24 bits"),
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
    assert "--force to begin anew" in fails(capsys, *build)


def test_two_writers_get_a_clear_line(folder, index, capsys):
    with HashIndex.open(index, writable=True):
        assert f"being written by process {os.getpid()}" in fails(capsys, "index", "delete", index, "ant/0.jpg")


@pytest.mark.starts
def test_a_killed_build_leaves_no_index_and_is_repeated(folder, tmp_path):
    output = tmp_path / "index"
    process = Started(["-m", "crovca.cli.main", "index", "build", folder / "database.npz", "-o", output])
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if not output.exists():
        run("index", "build", folder / "database.npz", "--model", folder / "model", "-o", output)
    with HashIndex.open(output) as index:
        assert len(index) == 200 and index.verify() == []


def test_nothing_is_added_where_an_id_of_a_later_block_is_known(folder, index, tmp_path, capsys, monkeypatch):
    from crovca.archive import ingest

    monkeypatch.setattr(ingest, "_BLOCK", 8)
    codes = Codes.from_bits(np.random.default_rng(0).integers(0, 2, (40, 32)))
    for last, message in (("ant/0.jpg", "1 of 40 ids are in the index already"), ("0", "'0' occurs twice")):
        ids = np.array([*map(str, range(39)), last])
        Encoded(codes, ids).save(tmp_path / "bad.npz")
        assert message in fails(capsys, "index", "add", index, tmp_path / "bad.npz")
        assert run_json(capsys, "index", "info", index)["items"] == 200
    assert message in fails(capsys, "index", "add", index, tmp_path / "bad.npz", "--replace")
    assert run_json(capsys, "index", "info", index)["items"] == 200
    assert run_json(capsys, "index", "add", index, folder / "more.npz")["added"] == 40


def test_metadata_that_lacks_some_items_is_noted_once(folder, tmp_path, capsys, monkeypatch):
    from crovca.archive import ingest

    monkeypatch.setattr(ingest, "_BLOCK", 64)
    run("index", "build", folder / "codes.npz", "--metadata", folder / "metadata.csv", "-o", tmp_path / "index")
    error = capsys.readouterr().err
    assert error.count("in the metadata") == 1 and "50 of 200 items are not in the metadata" in error


def test_the_metadata_of_all_results_is_read_at_once(folder, capsys, monkeypatch):
    from crovca.index.view import View

    calls = []
    read = View.metadata
    monkeypatch.setattr(View, "metadata", lambda self, rows: calls.append(len(rows)) or read(self, rows))
    found = run_json(capsys, "search", folder / "index", "--embeddings", folder / "more.npz", "-k", "9")
    assert len(calls) == 1
    with HashIndex.open(folder / "index") as opened:
        for result in found["results"]:
            expected = opened.get([hit["id"] for hit in result["hits"]]).metadata.to_pylist()
            assert [hit["metadata"] for hit in result["hits"]] == expected
    assert found["encode_seconds"] > 0


def numbered(tmp_path, name, count):
    codes = Codes.from_bits(np.random.default_rng(count).integers(0, 2, (count, 16)))
    Encoded(codes, np.arange(count) - 5).save(tmp_path / f"{name}.npz")
    run("index", "build", tmp_path / f"{name}.npz", "-o", tmp_path / name)
    return tmp_path / name


def test_ids_that_are_whole_numbers(tmp_path, capsys):
    index = numbered(tmp_path, "index", 20)
    empty = tmp_path / "empty"
    HashIndex.create(empty, 16).close()
    run("index", "info", empty)
    assert "0 items (0 deleted), codes of 16 bits, no items yet" in capsys.readouterr().out
    both = run_json(capsys, "search", empty, index, "--id", "3", "-k", "2")
    assert both["results"] == run_json(capsys, "search", index, "--id", "3", "-k", "2")["results"]
    for text, message in (("x3", "whole numbers, got 'x3'"), (str(2**63), "whole numbers of 64 bits")):
        assert message in fails(capsys, "search", index, "--id", text)
    run("index", "delete", index, "--", "-5")
    assert "1 item deleted, 19 left ('crovca index compact" in capsys.readouterr().out
    run("index", "delete", index, "--", "-5")
    assert "0 items deleted, 19 left\n" in capsys.readouterr().out


def test_an_index_given_twice_is_refused(folder, tmp_path, capsys):
    (tmp_path / "link").symlink_to(folder / "index")
    assert "link is given twice" in fails(capsys, "search", folder / "index", tmp_path / "link", "--id", "ant/0.jpg")


@pytest.mark.parametrize("option", [("--engine", "scan"), ("--model", "somewhere"), ("--text-encoder", "somewhere")])
def test_what_encodes_does_not_go_with_ids(folder, capsys, option):
    assert f"{option[0]} does not go with --id" in fails(
        capsys, "search", folder / "index", "--id", "ant/0.jpg", *option
    )


def test_too_many_bits_are_refused_before_anything_is_read(folder, tmp_path, capsys, monkeypatch):
    from crovca.archive import ingest

    monkeypatch.setattr(ingest, "source_kind", lambda *_: pytest.fail("the source was read"))
    assert "between 1 and 4,096, got 5000" in fails(
        capsys, "index", "build", folder / "database.npz", "--bits", "5000", "-o", tmp_path / "x"
    )


def test_a_piped_table_is_complete(tmp_path, capsys):
    ids = np.array([f"[bold]{'long/' * 50}{number}.jpg" for number in range(3)])
    Encoded(Codes.from_bits(np.eye(3, 16, dtype=bool)), ids).save(tmp_path / "codes.npz")
    lines = ["id,one,two", *(f"{one},{'a' * 150},{'b' * 150}" for one in ids)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    run("index", "build", tmp_path / "codes.npz", "--metadata", tmp_path / "metadata.csv", "-o", tmp_path / "index")
    assert "KiB" in capsys.readouterr().out
    run("search", tmp_path / "index", "--id", ids[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == ids[0]
    for one in ids[1:]:
        assert sum(line.split()[1:] == [one, "a" * 150, "b" * 150] for line in lines) == 1
    assert max(map(len, lines)) < 1000


def test_a_search_says_how_long_encoding_took(folder, capsys):
    run("search", folder / "index", "--embeddings", folder / "more.npz", "-k", "1")
    assert "40 queries over 200 items: models loaded and encoded in " in capsys.readouterr().out


def test_a_search_closes_its_indexes(folder, tmp_path, capsys, monkeypatch):
    closed = []
    close = HashIndex.close
    monkeypatch.setattr(HashIndex, "close", lambda self: closed.append(self.path) or close(self))
    a, b = numbered(tmp_path, "a", 20), numbered(tmp_path, "b", 3)
    del closed[:]
    run("search", a, b, "--id", "9")
    assert set(closed) == {a, b}
    del closed[:]
    fails(capsys, "search", a, "--id", "99")
    assert closed == [a]
