"""Figures 3, 4, 5 and 9: one page each, and the ids in it are those of rankings by hand."""

import json
import re

import numpy as np
import pytest

from crovca.baselines.linear import HashingBaseline
from crovca.errors import ConfigError, InvalidInputError
from crovca.ids import tie_order
from crovca.index.scoring import asymmetric_hamming_distance, cosine_distance
from crovca.reproduce import pictures
from crovca.reproduce.paper import all_cells, cells
from crovca.reproduce.workspace import Workspace
from tests.datasets.copies import lines, small, touch
from tests.needs import needs
from tests.reproduce import copies

needs("matplotlib", "openTSNE")

SYNSETS = ["n01440764", "n01537544", "n02391049", "n02488291"]  # the second to fourth are the paper's queries


def write_imagenet100(root):
    """Four synsets, six database images (four of them to train on) and two queries each."""
    hot = np.eye(4, dtype=int)
    database = [f"image/{synset}_{number}.JPEG" for synset in SYNSETS for number in range(6)]
    queries = [f"val_image/ILSVRC2012_val_{number:08d}.JPEG" for number in range(8)]
    root.mkdir(parents=True)
    touch(root, [*database, *queries])
    train = [row for row in range(24) if row % 6 < 4]
    (root / "database.txt").write_text(lines(database, np.repeat(hot, 6, axis=0)))
    (root / "train.txt").write_text(lines([database[row] for row in train], np.repeat(hot, 4, axis=0)))
    (root / "test.txt").write_text(lines(queries, np.tile(hot, (2, 1))[::-1]))  # the last class first
    return small("imagenet100", 16, 24, 8, classes=4)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, dino):
    """One for all tests of this file: what is trained once is used again."""
    data = tmp_path_factory.mktemp("data")
    protocols = copies.write(data, ["cifar10", "imagenet100"], imagenet100=write_imagenet100)
    return Workspace(
        data,
        tmp_path_factory.mktemp("work"),
        weights={"simdinov2": str(dino)},
        training={"epochs": 2, "batch_size": 8},
        protocols=protocols,
        device="cpu",
        dtype="float32",
    )


def drawn(workspace, name, **chosen):
    path = pictures.draw(name, workspace, all_cells(name), **chosen)
    page = path.read_text()
    assert path == workspace.work / name / f"{name}.html"
    assert set(re.findall(r'src="([^,]{0,22})', page)) <= {"data:image/jpeg;base64", "data:image/png;base64"}
    assert "http:" not in page
    assert "https:" not in page
    return page, json.loads((workspace.work / name / f"{name}.json").read_text())


def training(name):
    return next(cell.measurement.training for cell in all_cells(name) if cell.bits and cell.measurement)


def by_hand(workspace, query, method):
    """Ids and classes of the five nearest."""
    label = workspace.source("imagenet100", "query").labels[workspace.source("imagenet100", "query").ids == query][0]
    floats = {part: workspace.embeddings("simdinov2", "imagenet100", part) for part in ("query", "database", "train")}
    row = int(np.flatnonzero(floats["query"].ids == query)[0])
    asked, database = floats["query"].values[row : row + 1], floats["database"]
    if method == "float":
        distances = cosine_distance(asked, database.values[:])
    elif method == "baseline":
        baseline = HashingBaseline(16, seed=0).fit(floats["train"].values[:])
        distances = asymmetric_hamming_distance(baseline.logits(asked), baseline.encode(database.values[:]))
    else:
        ours = workspace.encoded(training("figure5"), 0, "imagenet100", "query")
        theirs = workspace.encoded(training("figure5"), 0, "imagenet100", "database")
        distances = asymmetric_hamming_distance(ours.logits[row : row + 1], theirs.codes)
    order = np.lexsort((tie_order(database.ids, len(database)), distances[0]))[:5]
    return database.ids[order].tolist(), (database.labels[order] == label).tolist()


def test_figure_5_shows_what_each_method_finds(workspace):
    page, content = drawn(workspace, "figure5")
    # the first queries of those classes: rows of test.txt go through the classes backwards
    assert [entry["query"][-7:] for entry in content["queries"]] == ["02.JPEG", "00.JPEG"]
    assert [entry["class"] for entry in content["queries"]] == [
        "indigo bird (n01537544)", "gray langur (n02488291)",
    ]  # fmt: skip
    for entry in content["queries"]:
        found = entry["neighbors"]
        assert list(found) == ["simdinov2, floats (cosine)", "Hashing-Baseline, 16 bits", "HashCoder, 16 bits"]
        for method, hits in zip(("float", "baseline", "ours"), found.values(), strict=True):
            ids, right = by_hand(workspace, entry["query"], method)
            assert [hit["id"] for hit in hits] == ids
            assert [hit["right"] for hit in hits] == right
            assert all(hit["id"] in page for hit in hits)
    flags = [hit["right"] for entry in content["queries"] for hits in entry["neighbors"].values() for hit in hits]
    assert (page.count('<img class="yes"'), page.count('<img class="no"')) == (sum(flags), len(flags) - sum(flags))
    assert 0 < sum(flags) < len(flags)
    assert page.count("<img") == 2 * (1 + 15)


def test_figure_4_is_a_zebra(workspace):
    page, content = drawn(workspace, "figure4")
    (entry,) = content["queries"]
    assert entry["query"].endswith("01.JPEG")
    assert "zebra (n02391049)" in page
    assert list(entry["neighbors"]) == ["simdinov2, floats (cosine)", "HashCoder, 16 bits"]
    assert content["model"] == workspace.name_of(training("figure4"))


def test_figure_9_enlarges_the_fifth_neighbor_of_figure_5(workspace):
    page, content = drawn(workspace, "figure9")
    _, whole = drawn(workspace, "figure5")
    ours = content["queries"][0]["neighbors"]["HashCoder, 16 bits"]
    assert ours == whole["queries"][0]["neighbors"]["HashCoder, 16 bits"]
    query, fifth = re.findall(r"<p class=\"large\"><img[^>]* alt=\"([^\"]*)\"", page)
    assert (query, fifth) == (content["queries"][0]["query"], ours[4]["id"])
    assert "<h3>neighbor 5</h3>" in page


def test_another_query_is_named_by_its_path(workspace):
    name = "val_image/ILSVRC2012_val_00000003.JPEG"
    whole = workspace.dataset("imagenet100").folder / name
    for path in (name, str(whole), str(whole.parent / "../val_image" / whole.name)):
        page, content = drawn(workspace, "figure5", query=path)
        assert "gray langur, for another query</h1>" in page
        assert [entry["query"] for entry in content["queries"]] == [name]
        assert content["queries"][0]["class"] == "n01440764"
    with pytest.raises(ConfigError, match=r"zebra.jpg is none of the queries .* such as val_image/ILSVRC2012_val_0"):
        drawn(workspace, "figure4", query="zebra.jpg")
    with pytest.raises(ConfigError, match="none of the queries"):  # an image of the database
        drawn(workspace, "figure4", query="image/n01440764_0.JPEG")


def test_a_class_that_is_not_there_says_what_to_do(tmp_path, dino):
    protocols = copies.write(tmp_path, ["imagenet100"])
    other = Workspace(tmp_path, tmp_path / "work", weights={"simdinov2": str(dino)}, protocols=protocols, device="cpu")
    with pytest.raises(ConfigError, match=r"no query of the class n02391049 \(zebra\).* --query PATH, such as val_im"):
        pictures.draw("figure4", other, all_cells("figure4"))
    assert not (tmp_path / "work" / "figure4").exists()


def test_a_query_that_cannot_be_read_is_named(tmp_path, dino):
    protocols = copies.write(tmp_path, ["imagenet100"], imagenet100=write_imagenet100)
    (tmp_path / "imagenet100/val_image/ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    weights = {"simdinov2": str(dino)}
    other = Workspace(tmp_path, tmp_path / "work", weights=weights, protocols=protocols, device="cpu")
    with pytest.raises(InvalidInputError, match=r"query val_image/ILSVRC2012_val_00000001\.JPEG could not be read"):
        pictures.draw("figure4", other, all_cells("figure4"))


def test_figure_3_maps_the_same_items_three_times(workspace):
    page, content = drawn(workspace, "figure3")
    assert page.count('<img alt="10 of the 10 queries') == 1
    assert (workspace.work / "figure3" / "figure3.png").read_bytes().startswith(b"\x89PNG")
    assert content["ids"] == sorted(workspace.source("cifar10", "query").ids.tolist())
    assert content["labels"] == [name.split("/")[1] for name in content["ids"]]
    assert list(content["places"]) == ["simdinov2, 32 floats", "HashCoder, 16 logits", "HashCoder, 16 bits"]
    assert all(np.array(places).shape == (10, 2) for places in content["places"].values())
    with pytest.raises(ConfigError, match="it has no query"):
        drawn(workspace, "figure3", query="test/cat/0.png")


def test_a_map_of_many_is_of_a_sample_that_stays_the_same(workspace, monkeypatch):
    monkeypatch.setattr(pictures, "ITEMS", 6)
    first, second = drawn(workspace, "figure3")[1], drawn(workspace, "figure3")[1]
    assert first == second
    assert len(set(first["ids"])) == 6


def test_what_is_no_picture_is_refused(workspace):
    with pytest.raises(ConfigError, match="figure6 has no picture to draw here"):
        pictures.draw("figure6", workspace, all_cells("figure6"))
    without = [cell for cell in cells("figure4") if cell.bits is None]
    with pytest.raises(ConfigError, match="choose cells with a model"):
        pictures.draw("figure4", workspace, without)
