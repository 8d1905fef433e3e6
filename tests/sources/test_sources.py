"""Sources: the same list every time, labels and captions at their items, damage at its place."""

import io
import json
import os
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crovca.data.store import save_store, write_manifest, write_part
from crovca.errors import CrovcaError, CrovcaWarning, FileFormatError, InvalidInputError
from crovca.sources import source as sources
from crovca.sources.decode import UnreadableItem, decode
from crovca.sources.opening import open_images, open_texts
from tests.pictures import as_bytes, picture, write_all

PICTURES = [as_bytes(picture(number)) for number in range(10)]
FILES = {f"{'ab'[number % 2]}/{number}.jpg": data for number, data in enumerate(PICTURES)}


def faults(source):
    found = {}
    for row, name in enumerate(source.ids.tolist()):
        try:
            source.read(row)
        except UnreadableItem as error:
            found[name] = error.reason
    return found


# --- folders ----------------------------------------------------------------------------------------------------


def test_a_folder(tmp_path):
    write_all(
        tmp_path, FILES | {"a/deep/er/x.PNG": PICTURES[0], "a/notes.txt": b"x", ".hidden/y.jpg": b"", "a/.z.jpg": b""}
    )
    found = open_images(tmp_path)
    assert found.ids.tolist() == sorted([*FILES, "a/deep/er/x.PNG"])
    assert found.labels.tolist() == [name[0] for name in found.ids]
    assert all(found.read(row) == FILES.get(name, PICTURES[0]) for row, name in enumerate(found.ids))
    assert found.notes == (f"1 files in {tmp_path.name} are not named like images and were passed over",)
    assert open_images(tmp_path).fingerprint == found.fingerprint
    (tmp_path / "a" / "0.jpg").write_bytes(PICTURES[1] + b"x")
    assert open_images(tmp_path).fingerprint != found.fingerprint


def test_images_beside_the_classes_leave_no_labels(tmp_path):
    write_all(tmp_path, FILES | {"top.jpg": PICTURES[0]})
    found = open_images(tmp_path)
    assert found.labels is None
    assert "subfolders are not taken as classes" in found.notes[0]


def test_links_are_followed_and_loops_end(tmp_path):
    write_all(tmp_path / "real", FILES)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "c").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "in" / "c2").symlink_to(tmp_path / "in")
    found = open_images(tmp_path / "in")
    assert found.ids.tolist()[:5] == [f"c/{number}.jpg" for number in range(0, 10, 2)]
    assert len(found) <= 10


def test_a_store_among_the_images_is_passed_over(tmp_path):
    write_all(tmp_path, FILES)
    before = open_images(tmp_path)
    write_all(tmp_path / "store", {"job.json": b"{}", "part-00000/x.jpg": b"", "part-00000/items.parquet": b""})
    assert open_images(tmp_path).fingerprint == before.fingerprint
    assert open_images(tmp_path).notes == before.notes


def test_a_name_that_is_not_utf8(tmp_path):
    write_all(tmp_path, {"good.jpg": PICTURES[0]})
    try:
        (tmp_path / os.fsdecode(b"b\xff.jpg")).write_bytes(PICTURES[0])
    except OSError:
        pytest.skip("this file system allows no such name")
    found = open_images(tmp_path)
    assert faults(found) == {"b\\udcff.jpg": "bad name"}


def test_files_that_change_while_they_are_read(tmp_path, monkeypatch):
    write_all(tmp_path, FILES)
    found = open_images(tmp_path)
    (tmp_path / "a" / "0.jpg").unlink()
    (tmp_path / "a" / "2.jpg").unlink()
    (tmp_path / "a" / "2.jpg").mkdir()
    monkeypatch.setattr(sources, "MAX_BYTES", len(PICTURES[4]) - 1)
    kept = {name: reason for name, reason in faults(found).items() if name in ("a/0.jpg", "a/2.jpg", "a/4.jpg")}
    assert kept == {"a/0.jpg": "missing", "a/2.jpg": "not a file", "a/4.jpg": "too large"}


# --- split files ------------------------------------------------------------------------------------------------


def test_a_split_file(tmp_path):
    write_all(tmp_path / "images", FILES | {"with space.jpg": PICTURES[3]})
    (tmp_path / "list.txt").write_text(
        "images/b/1.jpg 1 0 1\n\nimages/with space.jpg 0 0 0\r\nimages/a/0.jpg 0 1 0\nimages/none.jpg 0 1 0\n"
        "images/a/0.jpg 0 1 0\n"
    )
    found = open_images(tmp_path / "list.txt")
    assert found.ids.tolist()[:3] == ["images/b/1.jpg", "images/with space.jpg", "images/a/0.jpg"]
    assert found.labels[:3].tolist() == [[True, False, True], [False, False, False], [False, True, False]]
    assert found.read(1) == PICTURES[3]
    assert found.faults[4][0] == "duplicate"
    with pytest.raises(UnreadableItem, match="missing: there is no such file"):
        found.read(3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "list.txt").write_text("a/0.jpg 7\nb/1.jpg 12\n")
    found = open_images(tmp_path / "elsewhere" / "list.txt", root=tmp_path / "images")
    assert (found.labels.tolist(), found.read(1)) == ([7, 12], PICTURES[1])
    (tmp_path / "bare.txt").write_text("images/a/0.jpg\nimages/b/1.jpg\n")
    assert open_images(tmp_path / "bare.txt").labels is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"a.jpg 0 1\nb.jpg 0\n", "line 2: expected a path and 2 labels"),
        (b"a.jpg 0 1\nb.jpg 0 x\n", "line 2: expected"),
        (b"a.jpg 0 1\nb.jpg 0 3\n", "labels must be 0 or 1"),
        (b"\n", "lists no image"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_split_files_that_are_none(tmp_path, text, match):
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(FileFormatError, match=match):
        open_images(tmp_path / "list.txt")


# --- tables -----------------------------------------------------------------------------------------------------


def image_table(rows=range(10), **more):
    images = [{"bytes": PICTURES[row], "path": f"{row}.jpg"} for row in rows]
    return pa.table({"image": images, "label": pa.array([row % 3 for row in rows]), **more})


@pytest.mark.starts
def test_parquet_in_any_order_and_from_threads(tmp_path):
    pq.write_table(
        image_table(range(6), id=[f"i{row}" for row in range(6)]), tmp_path / "x-0.parquet", row_group_size=4
    )
    pq.write_table(image_table(range(6, 10), id=[f"i{row}" for row in range(6, 10)]), tmp_path / "x-1.parquet")
    found = open_images(tmp_path)
    assert found.ids.tolist() == [f"i{row}" for row in range(10)]
    assert found.labels.tolist() == [row % 3 for row in range(10)]
    order = np.random.default_rng(0).permutation(10).tolist()
    assert [found.read(row) for row in order] == [PICTURES[row] for row in order]
    results = {}
    threads = [threading.Thread(target=lambda row=row: results.update({row: found.read(row)})) for row in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict(enumerate(PICTURES))


def test_many_rows_of_one_row_group(tmp_path):
    values = [f"{row}".encode() for row in range(3000)]
    pq.write_table(pa.table({"img": values}), tmp_path / "x.parquet")
    found = open_images(tmp_path / "x.parquet")
    for row in (*range(0, 3000, 7), 5, 2999, 0):
        assert found.read(row) == values[row]
    assert found.ids.tolist() == list(range(3000))
    assert found.labels is None


def test_class_names_captions_and_what_is_missing(tmp_path):
    table = pa.table(
        {"image": [PICTURES[0], None, PICTURES[2]], "label": [1, 0, 1], "caption": ["x", None, ["y", "z"][0]]},
        metadata={"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})},
    )
    pq.write_table(table, tmp_path / "x.parquet")
    found = open_images(tmp_path / "x.parquet")
    assert found.labels.tolist() == ["dog", "cat", "dog"]
    assert found.captions == ["x", "", "y"]
    assert faults(found) == {1: "missing"}


def test_paths_in_a_table(tmp_path):
    write_all(tmp_path, FILES)
    pq.write_table(pa.table({"image": ["a/0.jpg", "a/none.jpg"], "id": [5, 9]}), tmp_path / "x.parquet")
    found = open_images(tmp_path / "x.parquet")
    assert found.read(0) == PICTURES[0]
    assert faults(found) == {9: "missing"}


def test_a_damaged_place_in_a_parquet_file(tmp_path):
    noise = np.random.default_rng(0)
    table = pa.table({"image": [noise.bytes(2000) for _ in range(400)]})
    pq.write_table(
        table, tmp_path / "x.parquet", row_group_size=200, compression="none", write_page_checksum=True,
        use_dictionary=False, data_page_size=20_000, write_batch_size=8,
    )  # fmt: skip
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    for place in range(300_000, 300_100):
        data[place] ^= 0xFF
    (tmp_path / "x.parquet").write_bytes(data)
    found = open_images(tmp_path / "x.parquet")
    bad = faults(found)
    assert set(bad.values()) == {"damaged"}
    assert 100 < min(bad) <= 150
    assert max(bad) < 200  # the second row group is whole
    again = open_images(tmp_path / "x.parquet")
    assert {row for row in (150, 20, 199, 0, 399) if _fails(again, row)} == {150, 20, 199, 0, 399} & set(bad)


def _fails(source, row):
    try:
        source.read(row)
    except UnreadableItem:
        return True
    return False


def test_a_saved_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "label": [row % 2 for row in range(10)]}
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    found = open_images(tmp_path / "one")
    assert (found.kind, found.labels.tolist()) == ("Hugging Face dataset", ["ant", "bee"] * 5)
    assert [found.read(row) for row in range(10)] == PICTURES
    with pytest.raises(InvalidInputError, match=r"holds the splits \['train'\]; give one of them"):
        open_images(tmp_path / "splits")
    assert len(open_images(tmp_path / "splits" / "train")) == 10


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image_column": "pic"}, "has no one column 'pic'; found"),
        ({"image_column": "label"}, "expected bytes, paths, or a struct"),
        ({"caption_column": "text"}, "has no one column 'text'"),
    ],
)
def test_columns_that_are_not_there(tmp_path, options, match):
    pq.write_table(image_table(), tmp_path / "x.parquet")
    with pytest.raises(InvalidInputError, match=match):
        open_images(tmp_path / "x.parquet", **options)


# --- tars -------------------------------------------------------------------------------------------------------


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(rows):
    for row in rows:
        yield f"{row:03}.jpg", PICTURES[row]
        yield f"{row:03}.cls", str(row % 3).encode()
        yield f"{row:03}.txt", f"picture {row}".encode()


def test_tars(tmp_path):
    write_tar(tmp_path / "s-0.tar", samples(range(4)))
    write_tar(tmp_path / "s-1.tar", samples(range(4, 10)))
    found = open_images(tmp_path)
    assert found.ids.tolist() == [f"s-{int(row > 3)}.tar/{row:03}.jpg" for row in range(10)]
    assert [found.read(row) for row in range(10)] == PICTURES
    assert found.labels.tolist() == [row % 3 for row in range(10)]
    assert found.captions == [f"picture {row}" for row in range(10)]
    assert open_images(tmp_path / "s-1.tar").ids.tolist()[0] == "004.jpg"


def test_samples_of_a_tar_in_every_state(tmp_path):
    write_tar(tmp_path / "x.tar", [
        ("d/a.jpg", PICTURES[0]), ("d/a.json", b'{"label": "ant", "caption": "an ant"}'),
        ("d/b.json", b'{"label": "bee"}'), ("d/c.png", b""), ("d/c.json", b'{"label": "cat"}'),
        ("d/e.seg.png", PICTURES[1]), ("d/f.jpg", PICTURES[2]), ("d/f.json", b"{broken"),
        ("d/a.jpg", PICTURES[5]), ("d/a.cls", b"dog"),
    ])  # fmt: skip
    found = open_images(tmp_path / "x.tar")
    assert faults(found) == {"d/b": "missing", "d/e": "missing", "d/f.jpg": "damaged", "d/a.jpg": "duplicate"}
    assert found.ids.tolist() == ["d/a.jpg", "d/b", "d/c.png", "d/e", "d/f.jpg", "d/a.jpg"]
    assert found.labels.tolist()[:3] == ["ant", "", "cat"]
    assert "captions are left out: 2 of 3" in " ".join(found.notes)


@pytest.mark.parametrize("how", ["cut in a member", "cut in a header", "damaged header", "no tar"])
def test_damaged_tars_give_what_they_have(tmp_path, how):
    write_tar(tmp_path / "x.tar", [(f"{row}.jpg", PICTURES[row]) for row in range(10)])
    data = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        starts = [(member.offset, member.offset_data) for member in tar]
    damaged = {
        "cut in a member": data[: starts[6][1] + 100],
        "cut in a header": data[: starts[6][0] + 100],
        "damaged header": data[: starts[6][0]] + b"\x99" * 512 + data[starts[6][1] :],
        "no tar": b"x" * 3000,
    }[how]
    (tmp_path / "x.tar").write_bytes(damaged)
    found = open_images(tmp_path / "x.tar")
    whole = [name for name in found.ids.tolist() if name not in faults(found)]
    assert whole == ([] if how == "no tar" else [f"{row}.jpg" for row in range(6)])
    assert set(faults(found).values()) <= {"damaged", "truncated"}
    assert len(faults(found)) >= 1
    for row in range(len(whole)):
        assert decode(found.read(row)).size == (60, 40)


# --- texts ------------------------------------------------------------------------------------------------------


def test_texts(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ntwo\nbad \xff\nthree\n")
    found = open_texts(tmp_path / "t.txt")
    assert len(found) == 5
    assert [found.read(row) for row in (0, 2, 4)] == ["one", "two", "three"]
    assert faults(found) == {1: "empty", 3: "not text"}
    (tmp_path / "t.csv").write_text('id,caption,label\nx,"a, ""b""\nc",ant\ny,d,bee\nz,e\n', encoding="utf-8")
    found = open_texts(tmp_path / "t.csv")
    assert found.ids.tolist() == ["x", "y", "z"]
    assert found.labels.tolist()[:2] == ["ant", "bee"]
    assert (found.read(0), found.read(1)) == ('a, "b"\nc', "d")
    assert faults(found) == {"z": "damaged"}
    pq.write_table(pa.table({"title": ["a", None, "b"], "n": [1, 2, 3]}), tmp_path / "t.parquet")
    found = open_texts(tmp_path / "t.parquet")
    assert found.ids.tolist() == [0, 1, 2]
    assert (found.read(2), faults(found)) == ("b", {1: "empty"})


def test_the_captions_of_a_store(tmp_path):
    part = tmp_path / "store" / "part-00000"
    part.mkdir(parents=True)
    columns = {"id": np.array(["x", "y"]), "labels": np.eye(2, dtype=bool), "caption": ["one", "two"]}
    write_part(part, np.zeros((2, 3), np.float32), columns)
    write_manifest(tmp_path / "store", [2], {})
    found = open_texts(tmp_path / "store")
    assert (found.ids.tolist(), found.labels.tolist()) == (["x", "y"], [[True, False], [False, True]])
    assert found.read(1) == "two"
    save_store(tmp_path / "bare", np.ones((2, 3), np.float32))
    with pytest.raises(InvalidInputError, match="a store without captions"):
        open_texts(tmp_path / "bare")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.doc", b"x", "not a source of texts"),
        ("t.txt", b"", "holds no text"),
        ("t.csv", b"a,b\n1,2\n", "no column of captions was recognized in"),
        ("t.csv", b'caption\n"x', "not a readable .csv"),
        ("t.csv", b"caption\n\xff\n", "not UTF-8"),
        ("t.parquet", b"PAR1", "not a readable .parquet"),
    ],
)
def test_texts_that_are_none(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CrovcaError, match=match):
        open_texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.parquet", b"PAR1", "not a readable .parquet"),
        ("x.tar.gz", b"\x1f\x8b", "a compressed tar"),
        ("x.jpg", b"", "a single image"),
        ("x.npz", b"", "not a source of images"),
    ],
)
def test_images_that_are_none(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=match):
        open_images(tmp_path / name)


def test_a_store_is_no_source_of_images(tmp_path):
    save_store(tmp_path / "store", np.ones((2, 3), np.float32))
    with pytest.raises(InvalidInputError, match="a store of embeddings already"):
        open_images(tmp_path / "store")


# --- what anybody may have written --------------------------------------------------------------------------------

CAPTIONS = ["a cat", "a dog\u2028in the rain", "a bird\x0bsings", "a fish\x85swims", "a cow\x1cgrazes"]


def test_lines_end_at_line_feeds_only(tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8", newline="")
    found = open_texts(tmp_path / "c.txt")
    assert [found.read(row) for row in range(len(found))] == CAPTIONS
    for end in ("\n", "\r\n"):
        content = end.join(["path,caption", *(f"{row}.jpg,{text}" for row, text in enumerate(CAPTIONS)), ""])
        (tmp_path / "c.csv").write_text("\ufeff" + content, encoding="utf-8", newline="")
        found = open_texts(tmp_path / "c.csv")
        assert [found.read(row) for row in range(len(found))] == CAPTIONS
        assert not found.faults
    names = ["a.jpg", "b\u2028c.jpg", "d\x85e.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(PICTURES[0])
    (tmp_path / "s.lst").write_text("\ufeff" + "".join(f"{name} 0\n" for name in names), encoding="utf-8", newline="")
    found = open_images(tmp_path / "s.lst")
    assert found.ids.tolist() == names
    assert not faults(found)
    assert all(decode(found.read(row)) for row in range(3))


def test_labels_that_only_look_like_numbers_stay_text(tmp_path):
    (tmp_path / "c.csv").write_text("caption,label\na,007\nb,7\nc,\u0663\n", encoding="utf-8")
    assert open_texts(tmp_path / "c.csv").labels.tolist() == ["007", "7", "\u0663"]
    (tmp_path / "c.csv").write_text("caption,label\na,10\nb,7\n", encoding="utf-8")
    assert open_texts(tmp_path / "c.csv").labels.tolist() == [10, 7]


def test_what_systems_put_into_folders_is_passed_over(tmp_path):
    for name in ("a/1.jpg", "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a/._1.jpg", "b/2.jpg",
                 "#recycle/3.jpg", "a/.DS_Store", "b/Thumbs.db", "desktop.ini"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PICTURES[0])
    found = open_images(tmp_path)
    assert found.ids.tolist() == ["a/1.jpg", "b/2.jpg"]
    assert found.labels.tolist() == ["a", "b"]
    assert not found.notes


def test_several_readings_of_a_folder(tmp_path):
    write_tar(tmp_path / "00000.tar", [("1.jpg", PICTURES[0]), ("2.jpg", PICTURES[1])])
    pq.write_table(pa.table({"url": ["x", "y"], "caption": ["x", "y"]}), tmp_path / "00000.parquet")
    found = open_images(tmp_path)  # as img2dataset writes it
    assert found.ids.tolist() == ["00000.tar/1.jpg", "00000.tar/2.jpg"]
    assert "of 1 .parquet and 1 .tar the tars are read" in found.notes
    pq.write_table(pa.table({"image": PICTURES[:2]}), tmp_path / "other.parquet")
    with pytest.raises(InvalidInputError, match="may both hold the images"):
        open_images(tmp_path)
    (tmp_path / "1.jpg").write_bytes(PICTURES[0])
    assert "the images themselves are read, not the 2 .parquet and 1 .tar beside them" in open_images(tmp_path).notes


def test_several_columns_of_images(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"mask": PICTURES[3:6], "image": PICTURES[:3]}), path)
    with pytest.warns(CrovcaWarning, match="images are taken from 'image', not 'mask'; --image-column names another"):
        assert open_images(path).read(0) == PICTURES[0]
    pq.write_table(pa.table({"mask": PICTURES[3:6], "scene": PICTURES[:3]}), path)
    with pytest.raises(InvalidInputError, match=r"\['mask', 'scene'\] may all be images; name one with --image-column"):
        open_images(path)
    assert open_images(path, image_column="scene").read(0) == PICTURES[0]


def test_lists_of_classes_follow_the_names_of_the_schema(tmp_path):
    features = {"labels": {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    written = {b"huggingface": json.dumps({"info": {"features": features}})}
    for labels, expected in (
        ([[0], [1]], [[1, 0, 0], [0, 1, 0]]),
        ([[0, 1], [1, 0]], [[1, 1, 0], [1, 1, 0]]),
        ([[2], []], [[0, 0, 1], [0, 0, 0]]),
    ):
        table = pa.table({"image": PICTURES[:2], "labels": pa.array(labels, pa.list_(pa.int64()))})
        pq.write_table(table.replace_schema_metadata(written), tmp_path / "p.parquet")
        assert open_images(tmp_path / "p.parquet").labels.astype(int).tolist() == expected
    table = pa.table({"image": PICTURES[:2], "labels": [[7], [0]]}).replace_schema_metadata(written)
    pq.write_table(table, tmp_path / "p.parquet")
    assert open_images(tmp_path / "p.parquet").labels is None


def test_paths_do_not_lead_out_of_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(PICTURES[0])
    (tmp_path / "out.jpg").write_bytes(PICTURES[1])
    paths = ["a.jpg", "../out.jpg", str(tmp_path / "out.jpg"), "x/../a.jpg", str(tmp_path / "in/a.jpg")]
    pq.write_table(pa.table({"image": paths}), tmp_path / "in/p.parquet")
    (tmp_path / "in/s.txt").write_text("\n".join(paths))
    for name in ("p.parquet", "s.txt"):
        found = open_images(tmp_path / "in" / name)
        reasons = []
        for row in range(5):
            try:
                assert found.read(row) == PICTURES[0]
                reasons.append("")
            except UnreadableItem as error:
                reasons.append(error.reason)
        assert reasons == ["", "missing", "missing", "", ""]


def test_hostile_tars(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content, kind, link in (
            ("a.jpg", PICTURES[0], tarfile.REGTYPE, ""), ("a.txt", b"", tarfile.SYMTYPE, "/etc/passwd"),
            ("b.jpg", PICTURES[1], tarfile.REGTYPE, ""), ("b.json", b"[" * 100_000, tarfile.REGTYPE, ""),
            ("c.jpg", PICTURES[2], tarfile.REGTYPE, ""),
            ("c.json", b'{"label": ' + b"9" * 4000 + b"}", tarfile.REGTYPE, ""),
            ("d.jpg", PICTURES[3], tarfile.REGTYPE, ""), ("d.cls", b"9" * 5000, tarfile.REGTYPE, ""),
            ("__MACOSX/._a.jpg", b"x", tarfile.REGTYPE, ""),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, link
            tar.addfile(member, io.BytesIO(content))
    found = open_images(tmp_path / "x.tar")
    assert faults(found) == {"b.jpg": "damaged", "c.jpg": "damaged", "d.jpg": "damaged"}
    assert found.read(0) == PICTURES[0]
    assert found.captions is None
