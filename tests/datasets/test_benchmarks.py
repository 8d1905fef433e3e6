"""Each benchmark, read from a small folder of the same shape."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.io import savemat

from crovca.datasets import PROTOCOLS, open_dataset, pin_checksums, rebuild_database, survey
from crovca.datasets.splits import export_splits
from crovca.errors import ConfigError, FileFormatError, OutputExistsError
from tests.datasets.copies import small, touch, write_coco, write_flickr25k, write_imagenet100, write_nuswide21

WRITERS = {
    "coco": write_coco,
    "imagenet100": write_imagenet100,
    "nuswide21": write_nuswide21,
    "flickr25k": write_flickr25k,
}


@pytest.fixture(params=WRITERS)
def copy(request, tmp_path):
    """A small copy of a benchmark: its name, folder and protocol."""
    folder = tmp_path / request.param
    return request.param, folder, WRITERS[request.param](folder)


def refused(name, folder, protocol, match):
    with pytest.raises(FileFormatError, match=match) as error:
        open_dataset(name, folder, protocol=protocol)
    assert "\n" not in str(error.value)


def as_set(dataset, split):
    found = dataset.splits[split]
    return {(path, tuple(np.atleast_1d(label))) for path, label in zip(found.paths, found.labels, strict=True)}


def test_a_copy_is_listed(copy):
    name, folder, protocol = copy
    dataset = open_dataset(name, folder, protocol=protocol)
    assert {split: len(items) for split, items in dataset.splits.items()} == protocol.counts
    for split, items in dataset.splits.items():
        assert all((folder / path).is_file() for path in items.paths)
        assert items.labels.dtype == (np.bool_ if protocol.multi_label else np.int64)
        source = {"query": "test"}.get(split, split)
        rows = [line.split() for line in (folder / f"{source}.txt").read_text().splitlines()]
        given = np.array([[int(label) for label in row[1:]] for row in rows])
        assert items.labels.tolist() == (given if protocol.multi_label else given.argmax(1)).tolist()
        assert [path.rsplit("/")[-1] for path in items.paths] == [row[0].rsplit("/")[-1] for row in rows]
    assert {"train.txt", "database.txt", "test.txt"} <= set(dataset.files)


def test_a_missing_image_is_named(copy):
    name, folder, protocol = copy
    line = (folder / "test.txt").read_text().splitlines()[0].split()[0]
    for image in folder.rglob(line.rsplit("/")[-1]):
        image.unlink()
    refused(
        name, folder, protocol, rf"{name}: 1 of the \d images of the split 'query' are not below .*{line}; get .*http"
    )


def test_all_missing_split_files_are_named(copy):
    name, folder, protocol = copy
    (folder / "train.txt").unlink()
    (folder / "database.txt").unlink()
    refused(
        name, folder, protocol, r"train.txt, database.txt are missing .*raw/ab14068/data/.*/train.txt.*/database.txt"
    )


def test_a_wrong_count_is_said_before_images_are_looked_for(copy):
    name, folder, protocol = copy
    shutil.rmtree(next(path for path in folder.iterdir() if path.is_dir() and path.name != "annotations"))
    counts = {**protocol.counts, "database": 117}
    refused(
        name, folder, replace(protocol, counts=counts), r"database.txt lists \d+ images, expected 117; fetch it again"
    )


def test_the_real_protocol_refuses_a_small_copy(copy):
    name, folder, _ = copy
    refused(name, folder, None, f"expected {PROTOCOLS[name].classes}|label columns")


def test_pinned_checksums_are_compared(copy):
    name, folder, protocol = copy
    dataset = open_dataset(name, folder, protocol=protocol)
    pins = json.loads(pin_checksums(dataset).read_text())
    assert set(pins["sha256"]) == set(dataset.files)
    open_dataset(name, folder, protocol=protocol)
    text = (folder / "train.txt").read_text()
    (folder / "train.txt").write_text(text.rstrip("\n"))  # the same items in other bytes
    refused(name, folder, protocol, "train.txt has the sha256 checksum .*, expected .*damaged or another version")


def test_published_checksums_are_compared(tmp_path):
    protocol = write_flickr25k(tmp_path / "f")
    protocol = replace(protocol, checksums={"train.txt": "md5:00000000000000000000000000000000"})
    refused("flickr25k", tmp_path / "f", protocol, "train.txt has the md5 checksum [0-9a-f]{32}, expected 0{32};")


@pytest.mark.parametrize("name", ["coco", "imagenet100", "nuswide21"])
def test_a_rebuilt_database_is_the_one_that_was_lost(name, tmp_path):
    protocol = WRITERS[name](tmp_path / name)
    before = as_set(open_dataset(name, tmp_path / name, protocol=protocol), "database")
    with pytest.raises(OutputExistsError, match="move it away"):
        rebuild_database(name, tmp_path / name, protocol=protocol)
    (tmp_path / name / "database.txt").unlink()
    refused(name, tmp_path / name, protocol, f"or rebuild it: crovca datasets {name} --folder DIR --rebuild")
    assert rebuild_database(name, tmp_path / name, protocol=protocol) == tmp_path / name / "database.txt"
    assert as_set(open_dataset(name, tmp_path / name, protocol=protocol), "database") == before


def test_a_rebuild_that_does_not_add_up_writes_nothing(tmp_path):
    protocol = write_imagenet100(tmp_path / "i")
    (tmp_path / "i/database.txt").unlink()
    (tmp_path / "i/image/n00000005_2.JPEG").unlink()
    with pytest.raises(FileFormatError, match="gives 11 images for the database, expected 12"):
        rebuild_database("imagenet100", tmp_path / "i", protocol=protocol)
    assert not (tmp_path / "i/database.txt").exists()
    with pytest.raises(ConfigError, match="only those of coco, imagenet100, nuswide21 can"):
        rebuild_database("flickr25k", tmp_path)


def test_coco_columns_that_no_category_explains(tmp_path):
    protocol = write_coco(tmp_path / "c")
    (tmp_path / "c/database.txt").unlink()
    first, *rest = (tmp_path / "c/test.txt").read_text().splitlines(keepends=True)
    path, *labels = first.split()
    labels[0] = "1" if labels[0] == "0" else "0"
    (tmp_path / "c/test.txt").write_text("".join([" ".join([path, *labels]) + "\n", *rest]))
    with pytest.raises(FileFormatError, match=r"no order of the categories .* differs in 1 of 24"):
        rebuild_database("coco", tmp_path / "c", protocol=protocol)


def test_coco_crowds_may_have_been_left_out(tmp_path):
    protocol = write_coco(tmp_path / "c")
    path = tmp_path / "c/annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"].append({"image_id": 0, "category_id": 90, "iscrowd": 1})
    path.write_text(json.dumps(content))
    before = as_set(open_dataset("coco", tmp_path / "c", protocol=protocol), "database")
    (tmp_path / "c/database.txt").unlink()
    rebuild_database("coco", tmp_path / "c", protocol=protocol)
    assert as_set(open_dataset("coco", tmp_path / "c", protocol=protocol), "database") == before


def test_coco_has_captions(tmp_path):
    protocol = write_coco(tmp_path / "c")
    queries = open_dataset("coco", tmp_path / "c", protocol=protocol).splits["query"]
    assert queries.captions.texts == ("caption 0 of 0", "caption 1 of 0", "caption 0 of 1", "caption 1 of 1")
    assert queries.captions.items.tolist() == [0, 0, 1, 1]
    (tmp_path / "c/annotations/captions_val2014.json").unlink()
    assert open_dataset("coco", tmp_path / "c", protocol=protocol).splits["query"].captions is None
    for broken, match in (("{}", "is not a captions file of COCO \\(no 'annotations'\\)"), ("[", "not valid JSON")):
        (tmp_path / "c/annotations/captions_val2014.json").write_text(broken)
        refused("coco", tmp_path / "c", protocol, match)


def test_tags_are_texts(tmp_path):
    dataset = open_dataset("nuswide21", tmp_path / "n", protocol=write_nuswide21(tmp_path / "n"))
    assert dataset.splits["query"].captions.texts == ("sea sky",)
    assert dataset.splits["train"].captions.texts == ("été",)  # 1001 has no tag, so no text
    assert dataset.splits["train"].captions.items.tolist() == [1]
    protocol = write_flickr25k(tmp_path / "f")
    tags = tmp_path / "f/mirflickr/meta/tags"
    tags.mkdir(parents=True)
    (tags / "tags1.txt").write_text("cat\nnikon d70\n")
    (tags / "tags2.txt").write_text("")
    queries = open_dataset("flickr25k", tmp_path / "f", protocol=protocol).splits["query"]
    assert queries.captions.texts == ("cat nikon d70",)
    assert queries.paths.tolist() == ["mirflickr/im1.jpg", "mirflickr/im2.jpg"]


def test_items_without_a_label_are_counted(tmp_path):
    protocol = write_flickr25k(tmp_path / "f")
    refused(
        "flickr25k", tmp_path / "f", replace(protocol, unlabeled={}), "'query' has 1 items without a label, expected 0"
    )
    refused("flickr25k", tmp_path / "f", replace(protocol, unlabeled={"query": 2}), "without a label, expected 2")


def test_imagenet100_in_the_usual_folders(tmp_path):
    protocol = write_imagenet100(tmp_path / "i")
    folder = tmp_path / "i"
    before = open_dataset("imagenet100", folder, protocol=protocol)
    synsets = ["n00000001", "n00000005", "n00000007", "n01000000"]
    for image in (folder / "image").iterdir():
        target = folder / "train" / image.name.split("_")[0] / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        image.rename(target)
    for synset, image in zip(synsets, sorted((folder / "val_image").iterdir()), strict=True):
        (folder / "val" / synset).mkdir(parents=True)
        image.rename(folder / "val" / synset / image.name)
    after = open_dataset("imagenet100", folder, protocol=protocol)
    for split in before.splits:
        assert before.splits[split].labels.tolist() == after.splits[split].labels.tolist()
    assert after.splits["query"].paths[1] == "val/n00000005/ILSVRC2012_val_00000001.JPEG"
    (folder / "database.txt").unlink()
    rebuild_database("imagenet100", folder, protocol=protocol)
    again = open_dataset("imagenet100", folder, protocol=protocol)
    assert as_set(again, "database") == as_set(after, "database")


def test_imagenet100_columns_follow_the_synsets(tmp_path):
    protocol = write_imagenet100(tmp_path / "i")
    text = (tmp_path / "i/train.txt").read_text()
    (tmp_path / "i/train.txt").write_text(text.replace("n00000001", "n99999999"))
    refused("imagenet100", tmp_path / "i", protocol, "columns are in alphabetical order")


@pytest.fixture
def imagenet1k(tmp_path):
    """Three synsets, two training and four validation images each; the protocol takes two queries a class."""
    folder = tmp_path / "imagenet1k"
    synsets = ["n00000001", "n00000002", "n00000009"]
    touch(folder, [f"train/{synset}/{synset}_{number}.JPEG" for synset in synsets for number in (1, 2)])
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(18)]
    touch(folder, [f"val/{synsets[number % 3]}/{name}" for number, name in enumerate(names)])
    solution = [f"{name.removesuffix('.JPEG')},{synsets[number % 3]} 1 2 3 4" for number, name in enumerate(names)]
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *solution[::-1]]))
    (folder / "LOC_synset_mapping.txt").write_text(
        "n00000001 tench, Tinca tinca\nn00000009 crane\nn00000002 great white shark, white shark\n"
    )
    return folder


def test_imagenet1k_takes_five_queries_a_class(imagenet1k):
    protocol = replace(small("imagenet1k", 6, 3, 15), classes=3, per_class={"query": 5, "database": 1})
    sorted_by_class = open_dataset("imagenet1k", imagenet1k, protocol=protocol)
    queries = sorted_by_class.splits["query"]
    assert queries.paths[:2].tolist() == [f"val/n00000001/ILSVRC2012_val_0000000{number}.JPEG" for number in (0, 3)]
    assert queries.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert sorted_by_class.splits["database"].paths[2] == "val/n00000009/ILSVRC2012_val_00000017.JPEG"
    for image in list((imagenet1k / "val").rglob("*.JPEG")):
        image.rename(imagenet1k / "val" / image.name)
    for folder in list((imagenet1k / "val").glob("n*")):
        folder.rmdir()
    flat = open_dataset("imagenet1k", imagenet1k, protocol=protocol)
    assert [path.rsplit("/")[-1] for path in flat.splits["query"].paths] == [
        path.rsplit("/")[-1] for path in queries.paths
    ]
    (imagenet1k / "LOC_val_solution.csv").unlink()
    refused("imagenet1k", imagenet1k, protocol, "LOC_val_solution.csv is missing .* or sort val into folders by synset")


def test_imagenet1k_counts(imagenet1k):
    refused("imagenet1k", imagenet1k, None, "has 3 synsets, expected 1,000")
    protocol = replace(small("imagenet1k", 6, 3, 15), classes=3, per_class={"query": 4})
    refused("imagenet1k", imagenet1k, protocol, "'query' has 5 items of class 0, expected 4")


def test_imagenet1k_prompts(imagenet1k, tmp_path):
    protocol = replace(
        PROTOCOLS["imagenet1k-text"], classes=3, counts={"database": 18, "query": 3}, per_class={"database": 6}
    )
    dataset = open_dataset("imagenet1k-text", imagenet1k, protocol=protocol)
    assert dataset.splits["query"].captions.texts == (
        "a photo of a tench.", "a photo of a great white shark.", "a photo of a crane.",
    )  # fmt: skip
    assert dataset.splits["query"].paths is None
    assert dataset.splits["query"].labels.tolist() == [0, 1, 2]
    export_splits(dataset, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "database.txt", "protocol.json", "query.captions.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["token", "csv"])
def test_flickr30k(tmp_path, kind):
    names = ["100.jpg", "20.jpg"]
    touch(tmp_path, [f"flickr30k_images/{name}" for name in names])
    if kind == "token":
        rows = [f"{name}#{number}\tText {number}, of {name} ." for name in names for number in range(5)]
        (tmp_path / "results_20130124.token").write_text("\n".join(rows) + "\n")
    else:
        rows = [f"{name}| {number}| Text {number}, of {name} ." for name in names for number in range(5)]
        rows[3] = rows[3].replace("3| Text", "3   Text")  # the broken row of Kaggle's file
        (tmp_path / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]))
    protocol = replace(PROTOCOLS["flickr30k"], counts={"query": 2}, captions={"query": 10})
    images = open_dataset("flickr30k", tmp_path, protocol=protocol).splits["query"]
    assert images.paths.tolist() == ["flickr30k_images/100.jpg", "flickr30k_images/20.jpg"]
    assert images.captions.texts[3] == "Text 3, of 100.jpg ."
    assert images.captions.items.tolist() == [0] * 5 + [1] * 5
    refused("flickr30k", tmp_path, None, "'query' holds 2 items, expected 31,783")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "'100.jpg' has 4 captions, expected 5"),
        (lambda rows: [*rows, rows[0]], "line 6: '100.jpg' has two captions of number 0"),
        (lambda rows: [*rows[:2], "garbage"], "line 3: expected an image, a number and a caption, got 'garbage'"),
    ],
)
def test_flickr30k_captions_that_do_not_fit(tmp_path, change, message):
    touch(tmp_path, ["images/100.jpg"])
    rows = [f"100.jpg#{number}\ttext" for number in range(5)]
    (tmp_path / "results_20130124.token").write_text("\n".join(change(rows)))
    refused("flickr30k", tmp_path, None, message)


def test_coco_text_takes_five_captions(tmp_path):
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (9, 4)]
    notes = [{"id": -row, "image_id": image, "caption": f"{image} {row}"} for image in (4, 9) for row in range(7)]
    touch(tmp_path, [f"val2017/{image['file_name']}" for image in images])
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/captions_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": notes}))
    protocol = replace(PROTOCOLS["coco-text"], counts={"query": 2}, captions={"query": 10})
    found = open_dataset("coco-text", tmp_path, protocol=protocol).splits["query"]
    assert found.paths.tolist() == ["val2017/000000000004.jpg", "val2017/000000000009.jpg"]
    assert found.captions.texts[:6] == ("4 6", "4 5", "4 4", "4 3", "4 2", "9 6")
    file.write_text(json.dumps({"images": images, "annotations": notes[:10]}))
    refused("coco-text", tmp_path, protocol, "000000000009.jpg has 3 captions .* expected at least 5")


def test_cc3m(tmp_path):
    refused("cc3m", tmp_path, None, "has no images in 00000/.*img2dataset")
    (tmp_path / "00000.tar").touch()
    refused("cc3m", tmp_path, None, "has .tar files, which 'crovca embed' takes")
    touch(tmp_path, ["00000/000000001.jpg", "00000/000000001.json", "00001/000010000.webp", "_tmp/x.jpg"])
    (tmp_path / "00000/000000001.txt").write_text("a  dog\n")
    refused("cc3m", tmp_path, None, "000010000.webp has no caption: 000010000.txt is not beside it")
    (tmp_path / "00001/000010000.txt").write_text("a cat")
    dataset = open_dataset("cc3m", tmp_path)
    assert dataset.splits["train"].paths.tolist() == ["00000/000000001.jpg", "00001/000010000.webp"]
    assert dataset.splits["train"].captions.texts == ("a dog", "a cat")
    assert "2 pairs" in dataset.notes[0]


def cells(values):
    found = np.empty((len(values), 1), object)
    found[:, 0] = values
    return found


@pytest.fixture
def ddbh(tmp_path):
    """Ten images with tags and labels, in the three .mat files; the index holds paths of another machine."""
    folder = tmp_path / "flickr25k"
    names = [f"im{number}.jpg" for number in range(10)]
    touch(folder, [f"mirflickr/{name}" for name in names])
    (folder / "ddbh").mkdir()
    labels = np.eye(24, dtype=np.int8)[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
    savemat(folder / "ddbh/index.mat", {"index": [f"/home/x/data/mirflickr/{name}" for name in names]})
    savemat(folder / "ddbh/caption.mat", {"caption": cells([f"tags of {name}" for name in names])})
    savemat(folder / "ddbh/label.mat", {"category": labels})
    return folder, small("flickr25k-ddbh", 4, None, 3)


def test_ddbh_draws_as_ddbh_does(ddbh):
    folder, protocol = ddbh
    dataset = open_dataset("flickr25k-ddbh", folder, protocol=protocol)
    np.random.seed(1814)  # noqa: NPY002
    drawn = np.random.permutation(range(10))  # noqa: NPY002
    expected = {"query": drawn[:3], "train": drawn[3:7], "database": drawn[3:]}
    for name, rows in expected.items():
        split = dataset.splits[name]
        assert split.paths.tolist() == [f"mirflickr/im{row}.jpg" for row in rows]
        assert split.labels.argmax(axis=1).tolist() == rows.tolist()
        assert split.captions.texts == tuple(f"tags of im{row}.jpg" for row in rows)


def test_ddbh_items_may_have_several_captions_or_a_text_file(ddbh):
    folder, protocol = ddbh
    several = cells([np.array(["one", "two, longer"][: 1 + row % 2], object) for row in range(10)])
    savemat(folder / "ddbh/caption.mat", {"caption": several})
    queries = open_dataset("flickr25k-ddbh", folder, protocol=protocol).splits["query"]
    odd = [int(path.removeprefix("mirflickr/im").removesuffix(".jpg")) % 2 for path in queries.paths]
    assert len(queries.captions) == 3 + sum(odd)
    (folder / "ddbh/caption.txt").write_text("".join(f"line {row}\n" for row in range(10)))
    refused("flickr25k-ddbh", folder, protocol, "both caption.mat and caption.txt")
    (folder / "ddbh/caption.mat").unlink()
    queries = open_dataset("flickr25k-ddbh", folder, protocol=protocol).splits["query"]
    assert queries.captions.texts[0] == f"line {queries.paths[0][len('mirflickr/im') : -len('.jpg')]}"


def test_ddbh_files_that_cannot_be_used(ddbh):
    folder, protocol = ddbh
    refused("flickr25k-ddbh", folder, None, "lists 10 images, expected at least 15,000")
    label = folder / "ddbh/label.mat"
    savemat(label, {"category": np.ones((10, 23))})
    refused("flickr25k-ddbh", folder, protocol, r"shape \(10, 23\), expected 24 columns")
    savemat(label, {"category": np.full((10, 24), 2)})
    refused("flickr25k-ddbh", folder, protocol, "must be 0 or 1")
    savemat(label, {"category": np.ones((9, 24))})
    refused("flickr25k-ddbh", folder, protocol, "9 labels for 10 items")
    savemat(label, {"labels": np.ones((10, 24))})
    refused("flickr25k-ddbh", folder, protocol, r"no variable 'category'; found \['labels'\]")
    label.write_bytes(label.read_bytes()[:200])
    refused("flickr25k-ddbh", folder, protocol, "not a readable .mat")
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    label.write_bytes(header + b"\x89HDF\r\n\x1a\n" + bytes(600))
    refused("flickr25k-ddbh", folder, protocol, r"version 7.3 \(HDF5\).*save it with -v7")
    label.unlink()
    refused("flickr25k-ddbh", folder, protocol, "ddbh/label.mat is missing .*QinLab-WFU")


def test_ddbh_images_that_repeat_or_are_missing(ddbh):
    folder, protocol = ddbh
    (folder / "mirflickr/im4.jpg").unlink()
    refused("flickr25k-ddbh", folder, protocol, "1 of the 10 images .*/home/x/data/mirflickr/im4.jpg")
    savemat(folder / "ddbh/index.mat", {"index": cells(["im1.jpg"] * 10)})
    refused("flickr25k-ddbh", folder, protocol, "lists 9 images more than once")


def test_survey_says_what_is_there(tmp_path):
    protocols = {name: write(tmp_path / name) for name, write in WRITERS.items()}
    (tmp_path / "nuswide21/database.txt").unlink()
    shutil.rmtree(tmp_path / "flickr25k")
    found = {entry.protocol.name: entry for entry in survey(tmp_path, protocols=protocols)}
    assert {name: entry.state for name, entry in found.items()} == {
        "coco": "found", "imagenet100": "found", "nuswide21": "unusable", "flickr25k": "absent",
    }  # fmt: skip
    assert "database.txt is missing" in found["nuswide21"].problem
    assert found["coco"].dataset.protocol is protocols["coco"]


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no dataset 'mnist'; known are cifar10, "):
        open_dataset("mnist", tmp_path)


def test_splits_are_exported_whole(tmp_path):
    dataset = open_dataset("coco", tmp_path / "coco", protocol=write_coco(tmp_path / "coco"))
    out = export_splits(dataset, tmp_path / "out")
    assert (out / "query.txt").read_text() == (tmp_path / "coco/test.txt").read_text()
    assert (out / "query.captions.csv").read_text().splitlines()[:2] == [
        "path,caption", f"{dataset.splits['query'].paths[0]},caption 0 of 0",
    ]  # fmt: skip
    facts = json.loads((out / "protocol.json").read_text())
    assert (facts["k"], facts["relevance"], facts["found"]["database"]) == (5000, "share a label", 10)
    with pytest.raises(OutputExistsError):
        export_splits(dataset, out)
    export_splits(dataset, out, force=True)
    with pytest.raises(OutputExistsError, match="would replace the input"):
        export_splits(dataset, tmp_path, force=True)
