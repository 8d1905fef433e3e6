"""Split files: what is read, what is refused, what is written."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crovca.datasets import PROTOCOLS, Captions, Split, open_dataset
from crovca.datasets.splits import parse_split, to_classes, write_split
from crovca.datasets.structure import check_splits
from crovca.errors import FileFormatError


def test_a_split_file_is_read():
    paths, labels = parse_split("a/b c.jpg 0 1 0\n\td.jpg\t1 1  0\n".replace("\td", "d"), 3, "x")
    assert paths == ["a/b c.jpg", "d.jpg"]
    assert labels.dtype == np.bool_
    assert labels.astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0 1 0 1\n", "line 1: 4 label columns after the path, expected 3"),
        ("a.jpg 0 1 0\nb.jpg 0 1\n", "line 2: 2 label columns after the path, expected 3"),
        ("a.jpg\n", "line 1: 0 label columns"),
        ("a.jpg 0 1 0\n\nb.jpg 0 0 1\n", "line 2: 0 label columns"),
        ("a.jpg 0 1 2\n", "line 1: labels must be 0 or 1"),
        ("a.jpg 0 1 x\n", "line 1: labels must be 0 or 1"),
        ("a.jpg 0 01 0\n", "line 1: labels must be 0 or 1"),
        ("/etc/a.jpg 0 1 0\n", "'/etc/a.jpg' does not lie below"),
        ("b/../../a.jpg 0 1 0\n", "does not lie below"),
        ("a.jpg 0 1 0\nb.jpg 0 1 0\na.jpg 0 1 0\n", "'a.jpg' stands in line 1 and in line 3"),
    ],
)
def test_what_is_no_split_file(text, message):
    with pytest.raises(FileFormatError, match=message) as error:
        parse_split(text, 3, "train.txt")
    assert str(error.value).startswith("train.txt")
    assert "\n" not in str(error.value)


@given(st.data(), st.integers(2, 6))
def test_writing_and_reading_agree(tmp_path_factory, data, classes):
    name = st.text("ab /", min_size=1, max_size=6).map(lambda text: f"x{text}".replace("//", "/") + ".jpg")
    names = data.draw(st.lists(name, min_size=1, max_size=8, unique=True))
    row = st.lists(st.booleans(), min_size=classes, max_size=classes)
    labels = np.array(data.draw(st.lists(row, min_size=len(names), max_size=len(names))))
    path = tmp_path_factory.mktemp("split") / "s.txt"
    write_split(path, Split(np.array(names), labels))
    paths, again = parse_split(path.read_text(), classes, "s")
    assert paths == names
    assert np.array_equal(again, labels)


def test_one_class_is_written_as_its_number(tmp_path):
    write_split(tmp_path / "s.txt", Split(np.array(["a.jpg", "b c.jpg"]), np.array([7, 999])))
    assert (tmp_path / "s.txt").read_text() == "a.jpg 7\nb c.jpg 999\n"
    write_split(tmp_path / "t.txt", Split(np.array(["a.jpg"]), None))
    assert (tmp_path / "t.txt").read_text() == "a.jpg\n"


def test_one_hot_labels_are_classes():
    assert to_classes(np.eye(3, dtype=bool)[[2, 0]], ["a", "b"], "x").tolist() == [2, 0]
    with pytest.raises(FileFormatError, match="x: 'b' has 2 labels"):
        to_classes(np.array([[1, 0], [1, 1]], bool), ["a", "b"], "x")


def test_captions_know_their_item():
    captions = Captions.gather([["one", " two "], ["", "  "], ["three"]])
    assert captions.texts == ("one", "two", "three")
    assert captions.items.tolist() == [0, 0, 2]


def splits_of(train, database, query):
    labels = {name: np.ones((len(paths), 2), bool) for name, paths in locals().items()}
    return {
        name: Split(np.array(paths), labels[name])
        for name, paths in (("train", train), ("database", database), ("query", query))
    }


@pytest.mark.parametrize(
    ("nested", "splits", "message"),
    [
        (True, (["a"], ["a", "b"], ["c"]), None),
        (False, (["a"], ["b", "d"], ["c"]), None),
        (True, (["a"], ["b", "d"], ["c"]), "1 items of 'train' are not in 'database' \\(a\\)"),
        (False, (["a"], ["a", "b"], ["c"]), "'train' and 'database' share 1 items \\(a\\)"),
        (True, (["a"], ["a", "c"], ["c"]), "'query' and 'database' share 1 items \\(c\\)"),
        (False, (["a"], ["b", "d"], ["a"]), "'query' and 'train' share"),
        (True, (["a"], ["a", "b", "d"], ["c"]), "'database' holds 3 items, expected 2"),
    ],
)
def test_splits_are_compared_with_each_other(nested, splits, message):
    protocol = replace(PROTOCOLS["coco"], counts={"train": 1, "database": 2, "query": 1}, train_in_database=nested)
    if message is None:
        check_splits(protocol, splits_of(*splits))
        return
    with pytest.raises(FileFormatError, match=message):
        check_splits(protocol, splits_of(*splits))


def test_every_protocol_says_what_a_user_needs():
    """The counts and cut-offs of the paper's Table 9, and a source for everything."""
    table = {
        "flickr25k": (4_000, 20_000, 1_000, 5000),
        "nuswide21": (10_500, 193_734, 2_100, 5000),  # 2,000 in the table; the authors' file has 2,100
        "coco": (10_000, 117_218, 5_000, 5000),
        "cifar10": (50_000, 50_000, 10_000, 1000),
        "imagenet100": (13_000, 128_503, 5_000, 1000),
        "imagenet1k": (1_281_167, 45_000, 5_000, 1000),
    }
    for name, (train, database, query, k) in table.items():
        protocol = PROTOCOLS[name]
        assert protocol.counts == {"train": train, "database": database, "query": query}
        assert protocol.k == k
        assert protocol.relevance == ("share a label" if protocol.multi_label else "same class")
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.license
        assert all("http" in source.url or "the same" in source.url for source in protocol.sources)
    assert PROTOCOLS["flickr30k"].captions == {"query": 158_915}


def test_a_folder_that_is_not_there(tmp_path):
    for name in PROTOCOLS:
        with pytest.raises(FileFormatError, match=f"{name}: there is no folder .*http"):
            open_dataset(name, tmp_path / "none")
