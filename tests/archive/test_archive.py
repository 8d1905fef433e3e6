"""An archive that keeps in step with a folder: what a keeper of photographs does, from the command line."""

import csv
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crovca import HashIndex
from crovca.archive import archive as module
from crovca.archive.archive import Archive
from crovca.archive.demo_archive import write_pixel_encoder
from crovca.archive.pictures import described
from crovca.data.store import write_part
from crovca.embedding import pipeline
from crovca.errors import ConfigError, FileFormatError, OutputExistsError, StorageError
from crovca.hasher.drift import Drift
from crovca.sources import decode
from tests.archive.test_refit import Listening
from tests.encoders import tiny
from tests.needs import needs
from tests.started import Started
from tests.test_cli import run, run_json

needs("transformers")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    model, processor, _ = tiny.models()["CLIP"]
    tiny.save(model, folder / "clip", processor)
    tiny.clip_tokenizer(folder / "clip")
    return folder / "clip"


def picture(file, seed, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


@pytest.fixture
def root(tmp_path):
    for number in range(12):
        picture(tmp_path / "photos" / f"{1960 + number % 2}" / f"{number}.png", number)
    (tmp_path / "photos" / "1960" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "photos" / "notes.txt").write_text("not a picture")
    return tmp_path / "photos"


@pytest.fixture
def archive(root, clip, tmp_path):
    made = Archive.create(root, str(clip), tmp_path / "archive", bits=16)
    made.sync(device="cpu")
    return made


def ids(archive):
    with HashIndex.open(archive.index) as index:
        return sorted(id for batch in index.batches() for id in batch.ids.tolist())


def test_a_folder_becomes_an_archive_that_follows_it(root, clip, tmp_path, capsys):
    run("archive", "init", root, "--encoder", clip, "--bits", "16", "-o", tmp_path / "a")
    made = run_json(capsys, "archive", "sync", tmp_path / "a", "--left-out", tmp_path / "out.csv")
    assert (made["items"], made["new"], made["left_out"]) == (12, 13, 1)
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == ["1960/broken.jpg"]
    again = run_json(capsys, "archive", "sync", tmp_path / "a")
    assert (again["unchanged"], again["new"], again["left_out"]) == (12, 0, 1)  # the broken one is not tried again

    with HashIndex.open(tmp_path / "a" / "index") as index:
        codes, floats = index.get(["1960/4.png"]).codes, index.view().originals()
        before = floats.take(index.view().find_all(["1960/4.png"]))[:]
    (root / "1970").mkdir()
    (root / "1960" / "4.png").rename(root / "1970" / "moved.png")
    (root / "1960" / "2.png").unlink()
    picture(root / "1961" / "1.png", 100)  # another content
    os.utime(root / "1961" / "3.png", (1, 1))  # another time alone
    picture(root / "1970" / "new.png", 101)
    would = run_json(capsys, "archive", "sync", tmp_path / "a", "--dry-run")
    assert would["left_out"] == 1
    assert would["files"] == {
        "new": ["1970/new.png"],
        "changed": ["1961/1.png"],
        "moved": ["1960/4.png to 1970/moved.png"],
        "removed": ["1960/2.png"],
    }
    done = run_json(capsys, "archive", "sync", tmp_path / "a")
    assert {name: done[name] for name in ("new", "changed", "moved", "removed", "touched")} == {
        "new": 1, "changed": 1, "moved": 1, "removed": 1, "touched": 1
    }  # fmt: skip
    opened = Archive.open(tmp_path / "a")
    assert "1970/moved.png" in ids(opened) and not {"1960/4.png", "1960/2.png"} & set(ids(opened))
    with HashIndex.open(opened.index) as index:
        assert index.get(["1970/moved.png"]).codes.packed.tolist() == codes.packed.tolist()
        view = index.view()
        np.testing.assert_array_equal(view.originals().take(view.find_all(["1970/moved.png"]))[:], before)
    assert run_json(capsys, "archive", "sync", tmp_path / "a")["unchanged"] == 12
    assert run_json(capsys, "archive", "info", tmp_path / "a")["items"] == 12


def test_pictures_tell_what_they_are_without_being_asked(root, clip, tmp_path):
    exif = Image.Exif()
    exif[306], exif[274] = "2001:02:03 04:05:06", 6
    exif.get_ifd(0x8825).update({1: "S", 2: (10.0, 30.0, 0.0), 3: "E", 4: (20.0, 0.0, 36.0)})
    picture(root / "1961" / "taken.jpg", 50, exif=exif)
    (root / "1961" / "taken.jpg.json").write_text(json.dumps({"title": "On the lake", "size": 3, "stars": 4}))
    table = "id,place\n1961/taken.jpg,Bern\n1960/0.png,007\n"
    (tmp_path / "more.csv").write_text(table)
    made = Archive.create(root, str(clip), tmp_path / "a", bits=16, metadata=tmp_path / "more.csv")
    made.sync(device="cpu")
    with HashIndex.open(made.index) as index:
        (row,) = index.get(["1961/taken.jpg"]).metadata.to_pylist()
        assert row["taken"] == datetime.datetime(2001, 2, 3, 4, 5, 6)
        assert (row["folder"], row["file"], row["width"], row["height"]) == ("1961", "taken.jpg", 40, 50)
        assert row["latitude"] == pytest.approx(-10.5) and row["longitude"] == pytest.approx(20.01)
        assert (row["title"], row["stars"], row["place"]) == ("On the lake", "4", "Bern")
        assert row["size"] == (root / "1961" / "taken.jpg").stat().st_size
        assert index.get(["1960/0.png"]).metadata.to_pylist()[0]["place"] == "007"
    (tmp_path / "more.csv").write_text(table.replace("Bern", "Basel"))
    (root / "1961" / "taken.jpg.json").write_text(json.dumps({"title": "By the lake"}))
    os.utime(root / "1961" / "taken.jpg.json", (5, 5))
    assert Archive.open(tmp_path / "a").sync(device="cpu").plan.touched == ["1961/taken.jpg"]
    with HashIndex.open(made.index) as index:
        (row,) = index.get(["1961/taken.jpg"]).metadata.to_pylist()
        assert (row["title"], row["place"]) == ("By the lake", "Basel")


def test_metadata_that_name_no_picture_are_noticed(root, clip, tmp_path):
    for ids, said in (("/photos/1960/0.png", 1), ("1960/0.png\nnone.png", 0)):
        (tmp_path / "more.csv").write_text(f"id\n{ids}\n")
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        observer = Listening()
        made = Archive.create(root, str(clip), tmp_path / "a", bits=16, metadata=tmp_path / "more.csv")
        made.sync(device="cpu", observer=observer)
        assert sum("no picture is in" in text and "'1960/0.png'" in text for text in observer.said) == said


def test_ill_formed_exif_says_nothing_and_stops_nothing():
    data = (b"\xff\xd8\xff\xe1\x00\x20Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(16)), b"", b"no picture")
    assert [set(described(one).values()) for one in data] == [{None}] * 3


def test_an_empty_root_removes_nothing_unless_that_is_said(archive, root, tmp_path):
    shutil.move(root, tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is its disk mounted"):
        archive.sync(device="cpu")
    root.mkdir()
    with pytest.raises(StorageError, match=r"holds no pictures, while the archive knows 12.*--allow-empty"):
        archive.sync(device="cpu")
    assert len(ids(archive)) == 12
    assert archive.sync(device="cpu", allow_empty=True).items == 0


def test_links_to_folders_inside_are_not_followed_twice(archive, root, tmp_path):
    (root / "again").symlink_to(root / "1960")
    (root / "round").symlink_to(root)
    picture(tmp_path / "other" / "x.png", 77)
    (root / "linked").symlink_to(tmp_path / "other")
    archive.sync(device="cpu")
    assert [id for id in ids(archive) if not id.startswith("19")] == ["linked/x.png"]


def test_what_cannot_be_an_archive_is_refused(archive, root, clip, tmp_path):
    with pytest.raises(OutputExistsError):
        Archive.create(root, str(clip), archive.path)
    with pytest.raises(ConfigError, match="among the pictures"):
        Archive.create(root, str(clip), root / "archive")
    with pytest.raises(FileFormatError, match="no folder"):
        Archive.create(root / "none", str(clip), tmp_path / "b")
    with pytest.raises(ConfigError, match="no encoder of that name"):
        Archive.create(root, "dinov7", tmp_path / "b")
    with pytest.raises(FileFormatError, match="crovca archive init"):
        Archive.open(root)
    (tmp_path / "taken.csv").write_text("id,Width\n1960/0.png,3\n")
    with pytest.raises(ConfigError, match="'Width' is one that an archive knows"):
        Archive.create(root, str(clip), tmp_path / "b", metadata=tmp_path / "taken.csv")
    for content in ("[", "{}", '{"format_version": 1, "root": 3}', '{"format_version": 9}'):
        (archive.path / "archive.json").write_text(content)
        with pytest.raises(FileFormatError):
            Archive.open(archive.path)


def test_a_search_of_an_archive_is_a_page_of_pictures(archive, root, tmp_path, capsys):
    page = tmp_path / "page.html"
    run("search", archive.path, "--image", root / "1960" / "2.png", "-k", "5", "--html", page)
    text = page.read_text()
    assert text.count("data:image/webp") == 6 and "1960/2.png" in text and "sha256" not in text
    assert "http" not in text.replace("http-equiv", "")  # self-contained
    capsys.readouterr()
    run("dedup", archive.path, "--radius", "3")
    assert "could go" not in capsys.readouterr().out


def test_names_and_metadata_are_harmless_on_the_page(root, tmp_path):
    from crovca.archive.gallery import Picture, Section, write_gallery

    evil = '<script>alert("1")</script>'
    outside = Picture("../secret.png", evil, {evil: evil})
    picture(tmp_path / "secret.png", 1)
    write_gallery(tmp_path / "p.html", evil, [Section(evil, [outside, Picture("1960/0.png")])], root, note=evil)
    text = (tmp_path / "p.html").read_text()
    assert "<script" not in text and text.count("data:image/webp") == 1


@pytest.mark.torture
@pytest.mark.starts
def test_a_sync_that_is_killed_loses_nothing_and_goes_on(root, clip, tmp_path):
    """Killed at moments from the first to the last second; the end is what a sync in peace gives."""
    archive = Archive.create(root, str(clip), tmp_path / "a", bits=16)
    command = [sys.executable, "-m", "crovca.cli.main", "archive", "sync", str(archive.path), "--device", "cpu"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - started
    peaceful = ids(archive)
    shutil.rmtree(archive.index)
    (archive.path / "state.json").unlink()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for share in (0.5, 0.75, 0.9, 0.97):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
        time.sleep(share * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if archive.index.exists():
            with HashIndex.open(archive.index) as index:
                assert not index.verify()
    done = Archive.open(archive.path).sync(device="cpu")
    assert ids(archive) == peaceful and [one.id for one in done.left_out] == ["1960/broken.jpg"]
    assert sorted(p.name for p in Path(archive.path).iterdir()) == ["archive.json", "index", "lock", "state.json"]


def test_a_sync_that_is_killed_keeps_what_it_has_embedded(tmp_path, monkeypatch):
    """All but the last part of a round."""
    write_pixel_encoder(tmp_path / "pixels")
    for number in range(600):
        picture(tmp_path / "photos" / f"{number}.png", number)
    made = Archive.create(tmp_path / "photos", str(tmp_path / "pixels"), tmp_path / "archive", bits=16)
    written = []

    def killed(*part):
        written.append(part)
        if len(written) == 2:
            raise KeyboardInterrupt
        write_part(*part)

    with monkeypatch.context() as until_then:
        until_then.setattr(pipeline, "write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            made.sync(device="cpu")
    observer = Listening()
    assert made.sync(device="cpu", observer=observer).items == 600
    assert any("1 of 2 parts are done already" in text for text in observer.said)


@pytest.mark.slow
@pytest.mark.starts
def test_watching_takes_up_what_comes_until_ctrl_c(archive, root, tmp_path):
    begin = tmp_path / "begin.py"  # a background shell ignores Ctrl-C
    begin.write_text(
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.stderr = sys.stdout\n"
        "from crovca.cli.main import main; main(sys.argv[1:])\n"
    )
    said = [""]
    running = Started([begin, "archive", "sync", archive.path, "--watch", "1", "--device", "cpu"])
    try:
        for number in (100, 101):
            picture(root / "later" / f"{number}.png", number)
            while "1 new" not in said[-1]:
                said.append(running.stdout.readline())
                assert said[-1], said  # it has ended
            assert f"later/{number}.png" in ids(archive)
            said.append("")
        running.send_signal(signal.SIGINT)
        said += running.communicate()
    finally:
        running.kill()
    text = "".join(said)
    assert running.returncode == 130 and "Traceback" not in text
    assert text.count("1 new") == 2, text  # nothing is said of a round that finds nothing


def test_what_was_left_out_is_tried_again_when_more_formats_are_read(clip, tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    root = tmp_path / "photos"
    for number in range(8):
        picture(root / f"{number}.png", number)
    pillow_heif.from_pillow(Image.open(root / "0.png")).save(root / "phone.heic")
    made = Archive.create(root, str(clip), tmp_path / "archive", bits=16)
    with monkeypatch.context() as without:
        without.setattr(decode, "readable_formats", lambda: decode.FORMATS)
        without.setattr(module, "readable_formats", lambda: decode.FORMATS)
        assert [fault.id for fault in made.sync(device="cpu").left_out] == ["phone.heic"]
        assert not made.plan().new
    assert made.plan().new == ["phone.heic"]
    assert not made.sync(device="cpu").left_out and "phone.heic" in ids(made)


def test_what_every_round_finds_is_said_once(clip, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    for number in range(40):
        picture(root / f"{number}.png", number % 4)
    monkeypatch.setattr(module, "_ROUND", 16)
    made = Archive.create(root, str(clip), tmp_path / "archive", bits=16)
    first, second = Listening(), Listening()
    made.sync(device="cpu", observer=first)
    assert sum("embeddings are kept as int8" in text for text in first.said) == 1
    for number in range(40, 88):
        picture(root / f"{number}.png", 1000 + number)
    monkeypatch.setattr(Drift, "much", True)
    made.sync(device="cpu", observer=second)
    (said,) = [text for text in second.said if "outside" in text]
    assert "of the new pictures" in said and "crovca archive refit" in said
    assert sum("embeddings are kept as int8" in text for text in second.said) == 1


def test_the_first_model_learns_from_every_folder(clip, tmp_path, monkeypatch):
    """Files come by name, so the first ones are of a few folders only."""
    for folder in "abcd":
        for number in range(10):
            picture(tmp_path / "photos" / folder / f"{number}.png", 10 * ord(folder) + number)
    monkeypatch.setattr(module, "_ROUND", 16)
    learned = []
    original = module.Archive._put
    monkeypatch.setattr(
        module.Archive, "_put", lambda self, ids, *rest: learned.append(list(ids)) or original(self, ids, *rest)
    )
    made = Archive.create(tmp_path / "photos", str(clip), tmp_path / "archive", bits=16)
    made.sync(device="cpu")
    assert {id[0] for id in learned[0]} == set("abcd")
    assert sum(map(len, learned)) == len(ids(made)) == 40
