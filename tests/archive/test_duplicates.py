"""Duplicates of an archive: edits are confirmed by pixels, bursts are told apart, and decisions are remembered."""

import csv
import json
import shutil
import sqlite3

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from scipy.ndimage import gaussian_filter

from crovca.archive import duplicates, pixels
from crovca.archive.archive import Archive
from crovca.archive.demo_archive import write_pixel_encoder
from crovca.archive.duplicates import decide, find, last_found, take_back
from crovca.errors import ConfigError, FileFormatError, InvalidInputError
from crovca.index import nearest
from tests.needs import needs
from tests.test_cli import run_json
from tests.test_cli_index import fails

needs("transformers")


def scene(seed, size=(320, 240)):
    """A picture with shapes and texture, like no other."""
    chance = np.random.default_rng(seed)
    noise = gaussian_filter(chance.normal(size=(size[1], size[0], 3)), (6, 6, 0))
    image = Image.fromarray(np.uint8(np.clip(128 + 900 * noise, 0, 255)))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y = chance.integers(0, size[0]), chance.integers(0, size[1])
        width, height = chance.integers(10, 90, 2)
        fill = tuple(chance.integers(0, 256, 3).tolist())
        (draw.ellipse if chance.random() < 0.5 else draw.rectangle)((x, y, x + width, y + height), fill)
    return image


EDITS = {
    "jpeg": lambda image: image,
    "half": lambda image: image.resize((160, 120)),
    "bright": lambda image: ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.75)).enhance(1.3),
    "crop": lambda image: image.crop((20, 20, 308, 236)),
    "turned": lambda image: image.rotate(3, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)),
}


def save(image, file, taken=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(0x8769)[36867] = taken
    image.save(file, quality=40 if "jpeg" in file.name else 92, exif=exif)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "pixels"
    write_pixel_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder):
    """Twenty scenes; of the first two all edits, of the third a burst, the fourth under two names."""
    folder = tmp_path_factory.mktemp("duplicates")
    root = folder / "photos"
    for seed in {*range(20)} - {2}:
        save(scene(seed), root / f"{seed}.png" if seed < 2 else root / f"{seed}.jpg")
    for seed in (0, 1):
        for name, edit in EDITS.items():
            save(edit(scene(seed)), root / f"{seed}-{name}.jpg")
    for second in range(3):
        moved = scene(2)
        ImageDraw.Draw(moved).ellipse((90 + 20 * second, 80, 150 + 20 * second, 160), fill=(110, 120, 130))
        save(moved, root / f"burst-{second}.jpg", f"2020:01:01 12:00:0{second}")
    (root / "sub").mkdir()
    shutil.copy(root / "3.jpg", root / "sub" / "again.jpg")
    archive = Archive.create(root, str(encoder), folder / "archive", bits=32)
    archive.sync(device="cpu")
    return archive


@pytest.fixture
def archive(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "archive")
    return Archive.open(tmp_path / "archive")


def told(found):
    return {(group.keep, group.items[0].kind, frozenset(one.id for one in group.items)) for group in found.groups}


def test_edits_are_copies_bursts_are_not_and_the_largest_is_kept(archive):
    pytest.importorskip("cv2")
    found = find(archive)
    groups = {group.keep: group for group in found.groups}
    for seed in (0, 1):
        assert {one.id for one in groups[f"{seed}.png"].items} == {f"{seed}-{name}.jpg" for name in EDITS}
    assert {one.kind for seed in (0, 1) for one in groups[f"{seed}.png"].items} == {"copy"}
    assert ("3.jpg", "copy", frozenset({"sub/again.jpg"})) in told(found)
    assert groups["3.jpg"].items[0].similarity == 1.0
    (burst,) = (group for group in found.groups if group.items[0].kind == "burst")
    assert {burst.keep, *(one.id for one in burst.items)} == {f"burst-{second}.jpg" for second in range(3)}
    assert len(found.groups) == 4 and found.undecided == 0
    assert find(archive).compared == 0  # nothing is compared, or decoded, twice


def test_a_picture_without_a_date_does_not_make_copies_of_a_burst(encoder, tmp_path):
    for second in range(3):
        save(scene(2), tmp_path / "photos" / f"burst-{second}.jpg", f"2020:01:01 12:00:0{second}")
    for seed in range(2, 20):
        save(scene(seed), tmp_path / "photos" / f"{seed}.jpg")
    archive = Archive.create(tmp_path / "photos", str(encoder), tmp_path / "archive", bits=32)
    archive.sync(device="cpu")
    copies = [group for group in find(archive).groups if group.items[0].kind == "copy"]
    assert [1 + len(group.items) for group in copies] == [2]
    (burst,) = (group for group in find(archive).groups if group.items[0].kind == "burst")
    assert len(burst.items) == 2


def test_only_what_is_new_is_asked_for_and_compared(archive, tmp_path, monkeypatch):
    asked = []

    def nearest_pairs(embeddings, rows, *rest):
        asked.append((len(embeddings), len(rows)))
        return nearest.nearest_pairs(embeddings, rows, *rest)

    monkeypatch.setattr(duplicates, "nearest_pairs", nearest_pairs)
    root = tmp_path / "photos"
    shutil.copytree(archive.root, root)
    marker = archive.path / "archive.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "root": str(root)}))
    archive = Archive.open(archive.path)
    first = find(archive)
    save(EDITS["half"](scene(7)), root / "7-half.jpg")
    archive.sync(device="cpu")
    shutil.rmtree(root)
    root.mkdir()
    for seed in range(4, 20):  # the others are known by their gray pictures alone
        save(scene(seed), root / f"{seed}.jpg")
    save(EDITS["half"](scene(7)), root / "7-half.jpg")
    again = find(archive)
    assert 0 < again.compared < first.compared
    assert asked == [(32, 32), (33, 1)]  # of two equal files one
    assert told(first) <= told(again)


def test_without_opencv_cut_and_turned_ones_are_undecided(archive, monkeypatch):
    monkeypatch.setattr(pixels, "find_spec", lambda name: None)
    found = find(archive)
    groups = {group.keep: {one.id for one in group.items} for group in found.groups}
    assert groups["0.png"] >= {"0-jpeg.jpg", "0-half.jpg", "0-bright.jpg"}
    assert found.undecided > 0


def test_what_a_person_keeps_apart_stays_apart(archive, capsys):
    assert ("3.jpg", "copy", frozenset({"sub/again.jpg"})) in told(find(archive))
    (group,) = (group for group in find(archive).groups if group.keep == "0.png")
    run_json(capsys, "duplicates", archive.path, "--not-duplicates", "0.png", "--not-duplicates", "0-half.jpg")
    for _ in range(2):
        together = [{group.keep, *(one.id for one in group.items)} for group in find(archive).groups]
        assert not any({"0.png", "0-half.jpg"} <= one for one in together)
    assert len(group.items) >= 3
    with pytest.raises(InvalidInputError, match="byte for byte"):
        decide(archive, "3.jpg", ["sub/again.jpg"], same=False)
    with pytest.raises(InvalidInputError, match="at least two"):
        decide(archive, "3.jpg", ["3.jpg"], same=False)
    assert "not in the index" in fails(
        capsys, "duplicates", archive.path, "--not-duplicates", "0.png", "--not-duplicates", "nobody"
    )


def test_the_one_to_keep_is_remembered_and_decisions_are_taken_back(archive):
    first = told(find(archive))
    decide(archive, "0-half.jpg", ["0.png", "0-jpeg.jpg"], same=True)
    decide(archive, "0-bright.jpg", ["0.png"], same=False)
    for groups in (last_found(archive.path)[0], find(archive).groups, last_found(archive.path)[0]):
        (group,) = (group for group in groups if group.keep == "0-half.jpg")
        assert {"0.png", "0-jpeg.jpg"} <= {one.id for one in group.items}
        assert "0-bright.jpg" not in {one.id for one in group.items}
    decide(archive, "0-bright.jpg", ["0.png"], same=True)  # the last word counts
    (group,) = (group for group in find(archive).groups if "0-bright.jpg" in {group.keep, *(i.id for i in group.items)})
    assert {"0.png", "0-half.jpg"} <= {group.keep, *(one.id for one in group.items)}
    for one in last_found(archive.path)[1]:
        take_back(archive, one.number)
    assert told(find(archive)) == first


def recolored(image):
    """The same in gray, of the opposite colors."""
    light, *colors = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (light, *(one.point(lambda value: 255 - value) for one in colors))).convert("RGB")


def test_recolored_ones_are_no_copies_and_those_in_gray_are_named(encoder, tmp_path):
    root = tmp_path / "photos"
    for seed in range(20):
        save(scene(seed), root / f"{seed}.png")
    save(recolored(scene(0)), root / "0-recolored.jpg")
    save(EDITS["half"](scene(0).convert("L")), root / "0-gray.jpg")
    save(EDITS["bright"](scene(0)), root / "0-bright.jpg")
    archive = Archive.create(root, str(encoder), tmp_path / "archive", bits=32)
    archive.sync(device="cpu")
    (group,) = find(archive).groups
    assert (group.keep, {one.id: one.kind for one in group.items}) == (
        "0.png", {"0-gray.jpg": "gray", "0-bright.jpg": "copy"})  # fmt: skip


def test_the_colors_of_cut_and_turned_ones_are_compared_where_they_lie():
    pytest.importorskip("cv2")
    shown = [
        scene(0),
        *(EDITS[name](scene(0)) for name in EDITS),
        *(EDITS[name](recolored(scene(0))) for name in EDITS),
    ]
    kept = [pixels.opened(pixels.shrink(image)) for image in shown]
    found = [pixels.Comparer(kept.__getitem__).compare(0, one) for one in range(1, len(kept))]
    assert [one.copy for one in found] == [True] * 5 + [False] * 5
    assert all(one.recolored for one in found[5:])


@pytest.mark.parametrize("way", range(3))
def test_a_black_thing_is_not_a_red_one_in_gray(way):
    colored = np.random.default_rng(0).uniform(20, 235, (400, 1)).astype(np.float32).repeat(3, axis=1)
    black = colored.copy()
    colored[:60], black[:60] = np.float32([200, 30, 30]), 20  # a tank on a motorcycle
    colored[60:70], black[60:70] = np.float32([20, 60, 180]), 20
    gray = (colored @ pixels._TO_GRAY[way])[:, None].repeat(3, axis=1)
    assert pixels._in_gray(colored, gray)
    assert pixels._in_gray(colored, 0.6 * gray + 60)
    assert not pixels._in_gray(colored, black)


def test_the_command_prints_and_writes_what_was_found(archive, capsys, tmp_path):
    page, table = tmp_path / "page.html", tmp_path / "groups.csv"
    before = sorted(archive.root.rglob("*"))
    said = run_json(capsys, "duplicates", archive.path, "--html", page, "--csv", table)
    assert set(said["groups"][0]) == {"keep", "items"}
    assert set(said["groups"][0]["items"][0]) == {"id", "similarity", "kind"}
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == sum(1 + len(group["items"]) for group in said["groups"])
    assert [row["id"] for row in rows if row["keep"] == "yes"] == [group["keep"] for group in said["groups"]]
    text = page.read_text()
    assert text.count("data:image/webp") == len(rows)
    assert "<script" not in text
    assert sorted(archive.root.rglob("*")) == before


def test_what_cannot_be_used_is_said(archive, encoder, tmp_path):
    fresh = Archive.create(archive.root, str(encoder), tmp_path / "fresh", bits=32)
    with pytest.raises(ConfigError, match="holds nothing yet"):
        find(fresh)
    (archive.path / "duplicates.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(FileFormatError, match="remove it, and everything is compared anew"):
        find(archive)
    (archive.path / "duplicates.sqlite").unlink()
    find(archive)
    with sqlite3.connect(archive.path / "duplicates.sqlite") as kept:
        kept.execute("UPDATE picture SET small = ?", (b"\xff\xd8damaged",))
        kept.execute("DELETE FROM pair")
    kept.close()
    with pytest.raises(FileFormatError, match="remove it, and everything is compared anew"):
        find(archive)


def test_agreement_does_not_see_brightness_and_sees_other_pictures():
    one = np.asarray(scene(0).convert("L"))
    dark = np.uint8(np.clip(0.6 * one + 10, 0, 255))
    everywhere = np.ones(one.shape, bool)
    assert pixels._agreement(one, dark, everywhere).blocks > 0.99
    assert pixels._agreement(one, np.asarray(scene(1).convert("L")), everywhere).blocks < 0.3
    assert pixels._agreement(one, np.full_like(one, 100), everywhere) == pixels.Agreement()  # nothing to tell them by
    assert pixels._agreement(one, dark, np.zeros(one.shape, bool)) == pixels.Agreement()


@pytest.mark.starts
def test_the_service_shows_what_was_confirmed_and_takes_decisions(archive):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from crovca.service.api import create_app
    from crovca.service.collection import Collection
    from crovca.service.guard import Limits

    for writable in (False, True):
        served = Collection(archive.index, name="photos", root=archive.root, writable=writable)
        headers = {"Authorization": "Bearer t"}
        with TestClient(create_app([served], Limits(token="t")), headers=headers) as client:
            if not writable:
                unasked = client.get("/c/photos/duplicates").text
                assert "confirmed by their pixels; " not in unasked and "crovca duplicates, with" in unasked
                assert client.get("/v1/collections/photos/duplicates").json()["confirmed"] is None
                find(archive)
                confirmed = client.get("/v1/collections/photos/duplicates").json()["confirmed"]
                assert confirmed == [
                    {"keep": one.keep, "items": [vars(item) for item in one.items]} for one in find(archive).groups
                ]
            page = client.get("/c/photos/duplicates").text
            assert page.count('class="confirmed"') == len(find(archive).groups)
            assert ("Not a duplicate</button>" in page) == writable
            pair = {"id": "0-half.jpg", "others": ["0.png"], "same": "false"}
            answer = client.post("/c/photos/duplicates", data=pair)
            assert answer.status_code == (200 if writable else 403)
            wrong = client.post("/c/photos/duplicates", data={**pair, "id": "nobody"})
            assert wrong.status_code == (400 if writable else 403)
            client.post("/c/photos/duplicates", data={**pair, "id": "1.png", "same": "true"})
            number = last_found(archive.path)[1][0].number if writable else 1
            assert client.post(f"/c/photos/duplicates/{number}/undo").status_code == (200 if writable else 403)
    (group,) = (group for group in last_found(archive.path)[0] if group.keep == "0.png")
    assert "0-half.jpg" not in {one.id for one in group.items}
    assert told(find(archive)) == {
        (one.keep, one.items[0].kind, frozenset(item.id for item in one.items)) for one in last_found(archive.path)[0]
    }
