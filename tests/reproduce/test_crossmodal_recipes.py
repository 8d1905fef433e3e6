"""Tables 6 and 7, Figures 6 to 8: from the files of small copies to numbers that are computed by hand as well."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from crovca.codes import Codes
from crovca.data.encoded import Encoded
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.errors import ConfigError, FileFormatError, InvalidInputError
from crovca.evaluation.evaluate import evaluate
from crovca.hasher import Hasher
from crovca.ids import tie_order
from crovca.index.scoring import (
    asymmetric_hamming_distance,
    bce_distance,
    cosine_distance,
    hamming_distance,
    symmetric_bce_distance,
)
from crovca.reproduce import pairs
from crovca.reproduce import workspace as labs
from crovca.reproduce.crossmodal import draw_curves, measure_pairs, together
from crovca.reproduce.paper import Measurement, Training, all_cells, cells
from crovca.reproduce.run import reproduce
from crovca.reproduce.workspace import Workspace
from crovca.sources.decode import decode
from tests.encoders import tiny
from tests.needs import needs
from tests.reproduce import copies, pair_copies

needs("peft")
torch = pytest.importorskip("torch")

SHORT = {"epochs": 1, "batch_size": 4}
ADAPTED = Training("dfn-b", "flickr25k-ddbh", "pairs", "lora", 16)
PROBED = Training("dfn-l", "cc3m", "pairs", "probing", 256)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tiny.save(tiny.models()["CLIP"][0], tmp_path_factory.mktemp("encoders") / "clip", "CLIP")
    tiny.clip_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def benchmarks_of_pairs(tmp_path_factory):
    data = tmp_path_factory.mktemp("pairs")
    return data, pair_copies.write(data)


@pytest.fixture
def make(benchmarks_of_pairs, clip, tmp_path):
    """Makes labs on one work folder."""
    data, protocols = benchmarks_of_pairs

    def workspace(**changes):
        weights = {"dfn-b": str(clip), "dfn-l": str(clip)}
        known = {"weights": weights, "training": SHORT, "protocols": protocols, "device": "cpu"}
        known["dtype"] = "float32"
        return Workspace(changes.pop("data", data), tmp_path / "work", **{**known, **changes})

    return workspace


@pytest.fixture(scope="session")
def towers(clip):
    return Encoder.load(clip, device="cpu", dtype="float32"), TextEncoder.load(clip, device="cpu", dtype="float32")


def wanted(name, **chosen):
    return [cell.measurement for cell in cells(name, **chosen) if cell.measurement is not None]


def image_embeddings(towers, dataset, split):
    encoder, preprocessing = towers[0], towers[0].preprocessing
    images = [decode((dataset.folder / path).read_bytes()) for path in dataset.splits[split].paths]
    pixels = np.stack([preprocessing.crop_image(found.image, found.size) for found in images])
    return encoder.embed(preprocessing.normalize(torch.from_numpy(pixels))).numpy()


def text_embeddings(towers, dataset, split):
    return towers[1].embed(list(dataset.splits[split].captions.texts)).numpy()


def ranks(distances, ids):
    """Rows in order, ties by the rule."""
    return np.array([np.lexsort((tie_order(ids, len(ids)), row)) for row in distances])


def first_hit(order, right):
    """The place, from 0, of the first right answer of each query; ``right`` bool (q, n)."""
    return np.take_along_axis(right, order, axis=1).argmax(axis=1)


def precision_sum(order, right, k):
    flags = np.take_along_axis(right, order, axis=1)[:, :k]
    precisions = np.cumsum(flags, axis=1) / np.arange(1, k + 1)
    hits = flags.sum(axis=1)
    return np.where(hits, (precisions * flags).sum(axis=1) / np.maximum(hits, 1), 0)


@pytest.mark.parametrize("training", [ADAPTED, replace(ADAPTED, fitting="probing")], ids=["lora", "probing"])
def test_codes_of_texts_are_not_mixed_with_other_weights(make, clip, tmp_path, training):
    make().encoded_texts(training, 0, "flickr25k-ddbh", "query")
    other = copies.with_other_weights(clip, tmp_path / "other")
    workspace = make(weights={"dfn-b": str(other)})
    for split in ("query", "database"):
        with pytest.raises(ConfigError, match="was begun with other weights of dfn-b"):
            workspace.encoded_texts(training, 0, "flickr25k-ddbh", split)
        with pytest.raises(ConfigError, match="was begun with other weights of dfn-b"):
            workspace.encoded(training, 0, "flickr25k-ddbh", split)


# --- texts and pairs ------------------------------------------------------------------------------------------------


def test_texts_know_their_items_and_what_answers_them(make):
    workspace = make()
    captions = pairs.texts_of(workspace.dataset("coco-text"), "query")
    assert captions.ids[:6].tolist() == [
        *(f"val2017/000000000000.jpg#{number}" for number in range(5)), "val2017/000000000001.jpg#0",
    ]  # fmt: skip
    assert captions.texts[5] == pair_copies.words(100)
    assert captions.labels.tolist() == np.repeat(np.arange(12), 5).tolist()
    assert pairs.image_labels(workspace.dataset("coco-text"), "query").tolist() == list(range(12))
    tags = pairs.texts_of(workspace.dataset("flickr25k-ddbh"), "query")
    np.testing.assert_array_equal(tags.labels, workspace.dataset("flickr25k-ddbh").splits["query"].labels)
    prompts = pairs.texts_of(workspace.dataset("imagenet1k-text"), "query")
    assert prompts.ids.tolist() == ["0#0", "1#0", "2#0"]
    assert prompts.labels.tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="'database' of imagenet1k-text has no texts"):
        pairs.texts_of(workspace.dataset("imagenet1k-text"), "database")
    with pytest.raises(ConfigError, match="cc3m has no split 'query'; it has train"):
        pairs.texts_of(workspace.dataset("cc3m"), "query")


def test_any_text_reaches_the_encoder_as_it_is(make, tmp_path, towers):
    """Commas, quotes, and what some take for the end of a line."""
    texts = ['a, "b"', "c\u2028d", "e\x0bf\tg", "'h;", "i\r\nj"]
    root = tmp_path / "data" / "cc3m"
    pair_copies.write_cc3m(root, 6)
    pair_copies.paint(root)
    workspace = make(data=tmp_path / "data")
    split = workspace.dataset("cc3m").splits["train"]
    captions = type(split.captions).gather([[text] for text in [*texts, "k"]])
    workspace.dataset("cc3m").splits["train"] = type(split)(split.paths, None, captions)
    found = pairs.text_embeddings(workspace, "dfn-l", "cc3m", "train")
    assert found.ids.tolist() == [f"{path}#0" for path in split.paths]
    np.testing.assert_allclose(found.values[:], towers[1].embed([*texts, "k"]).numpy(), atol=1e-6)


def test_pairs_stay_pairs_when_images_are_broken(make, tmp_path, towers, monkeypatch):
    root = tmp_path / "data" / "cc3m"
    pair_copies.write_cc3m(root, 9)
    pair_copies.paint(root)
    (root / "00000/000000003.jpg").write_bytes(b"<html>gone</html>")
    workspace = make(data=tmp_path / "data")
    given = {}

    def fit(self, images, *, texts, **_):
        given.update(images=images[np.arange(len(images))], texts=texts[np.arange(len(texts))])
        given["shapes"] = (images.shape, texts.shape)
        return self

    monkeypatch.setattr(Hasher, "fit", fit)
    pairs.fit_pairs(workspace, PROBED, workspace.parameters("dfn-l", 16, 0), None)
    kept = [number for number in range(9) if number != 3]
    assert given["shapes"] == ((8, 8), (8, 1, 8))
    words = towers[1].embed([pair_copies.words(number) for number in kept]).numpy()
    np.testing.assert_allclose(given["texts"][:, 0], words, atol=1e-6)
    (root / "00000/000000003.jpg").write_bytes((root / "00000/000000004.jpg").read_bytes())
    images = image_embeddings(towers, workspace.dataset("cc3m"), "train")[kept]
    np.testing.assert_allclose(given["images"], images, atol=1e-6)
    assert workspace.left_out["cc3m/train"] == {"not an image": 1}


def test_an_image_with_fewer_captions_repeats_them(make, monkeypatch):
    workspace = make()
    split = workspace.dataset("coco-text").splits["query"]
    uneven = [[f"a{number}", "b", "c"][: 1 + number % 3] for number in range(12)]
    workspace.dataset("coco-text").splits["train"] = type(split)(split.paths, None, type(split.captions).gather(uneven))
    given = {}
    monkeypatch.setattr(Hasher, "fit", lambda self, images, *, texts, **_: given.update(texts=texts) or self)
    training = Training("dfn-l", "coco-text", "pairs", "probing", 16)
    pairs.fit_pairs(workspace, training, workspace.parameters("dfn-l", 16, 0), None)
    assert given["texts"].shape == (12, 3, 8)
    once, twice = given["texts"][np.array([0, 1])]
    assert (once[0] == once[1]).all() and (once[1] == once[2]).all()
    assert (twice[0] == twice[2]).all() and (twice[0] != twice[1]).any()


def test_too_few_pairs_are_refused(make, tmp_path):
    root = tmp_path / "data" / "cc3m"
    pair_copies.write_cc3m(root, 3)
    pair_copies.paint(root)
    for number in (0, 1):
        (root / f"00000/{number:09d}.jpg").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"at least 2 pairs .* there are 1"):
        make(data=tmp_path / "data").model(PROBED, 0)


def test_random_hashcoders_have_their_layers_in_common_and_are_not_trained(make, monkeypatch):
    monkeypatch.setattr("crovca.hasher.fit.train", None)
    hasher = make().model(Training("dfn-l", "cc3m", "random", "probing", 256), 3)
    image, text = hasher.towers_.coders
    assert image.layers is text.layers
    assert not torch.equal(image.norm.running_mean, text.norm.running_mean)
    assert hasher.hashcoder == "large"
    assert hasher.history_ == []


# --- measurements ---------------------------------------------------------------------------------------------------


def test_table_6_equals_evaluation_by_hand(make, towers, monkeypatch):
    workspace = make()
    measurements = wanted("table6", dataset="flickr25k-ddbh")
    assert [len(group) for group in together(measurements)] == [1, 1, 1, 1]
    found = measure_pairs(workspace, measurements, 0)
    assert list(found) == measurements

    (folder,) = (workspace.work / "models").glob("*/seed-0")
    hasher, dataset = Hasher.load(folder, device="cpu"), workspace.dataset("flickr25k-ddbh")
    assert (hasher.fine_tuning.crop_scale, hasher.fine_tuning.lora_rank, hasher.bits) == (0.4, 16, 16)
    for measurement, result in found.items():
        sides = {}
        for split in ("query", "database"):
            part = dataset.splits[split]
            files = [dataset.folder / path for path in part.paths]
            ids = {"image": part.paths, "text": np.array([f"{path}#0" for path in part.paths])}
            if measurement.training is not None:
                logits = {
                    "image": hasher.logits(files, modality="images"),
                    "text": hasher.logits(list(part.captions.texts), modality="texts"),
                }
            else:
                logits = {"image": image_embeddings(towers, dataset, split),
                          "text": text_embeddings(towers, dataset, split)}  # fmt: skip
            sides[split] = {
                kind: Encoded(Codes.from_logits(logits[kind]), ids[kind], part.labels, logits[kind])
                for kind in ("image", "text")
            }
        asks, answers = measurement.task.split("-")
        query, database = sides["query"][asks], sides["database"][answers]
        floats = {}
        if measurement.training is None:
            floats = {"query_embeddings": query.logits, "database_embeddings": database.logits}
        by_hand = evaluate(query, database, k=None, **floats)
        expected = by_hand.floats["cosine"] if floats else by_hand.lengths[0].scores["asymmetric_hamming"]
        assert result["value"] == pytest.approx(expected.map, abs=1e-6)
        assert result["map_min_k_r"] == pytest.approx(expected.map_min_k_r, abs=1e-6)
        assert result["chance"] == pytest.approx(by_hand.chance_map)
        assert (result["queries"], result["database"]) == (8, 22)
        if measurement.training is not None:
            assert result["hamming"] == pytest.approx(by_hand.lengths[0].map_of("hamming"))
    json.dumps(list(found.values()), allow_nan=False)

    monkeypatch.setattr(Encoder, "embed", None)
    monkeypatch.setattr(TextEncoder, "embed", None)
    monkeypatch.setattr(Hasher, "fit", None)
    assert measure_pairs(make(), measurements, 0) == found  # nothing is made a second time


def test_texts_are_encoded_in_parts_that_go_on(make, monkeypatch):
    whole = make().encoded_texts(ADAPTED, 0, "flickr25k-ddbh", "database")
    (file,) = (make().work / "codes").rglob("*.texts.npz")
    file.unlink()
    monkeypatch.setattr(labs, "_PART", 5)
    calls, encode = [], Hasher.encode_source

    def stopping(self, texts, **more):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, texts, **more)

    monkeypatch.setattr(Hasher, "encode_source", stopping)
    with pytest.raises(KeyboardInterrupt):
        make().encoded_texts(ADAPTED, 0, "flickr25k-ddbh", "database")
    again = make().encoded_texts(ADAPTED, 0, "flickr25k-ddbh", "database")
    assert calls == [5, 5, 5, 5, 5, 2]  # the third a second time
    np.testing.assert_array_equal(again.ids, whole.ids)
    np.testing.assert_allclose(again.logits, whole.logits, atol=1e-5)
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


def test_table_7_is_one_ranking_at_every_k(make, towers):
    workspace = make()
    measurements = wanted("table7", encoder="dfn-l")
    assert [len(group) for group in together(measurements)] == [3, 9]
    found = measure_pairs(workspace, measurements, 0)
    (folder,) = (workspace.work / "models").glob("*cc3m*/seed-0")
    hasher, dataset = Hasher.load(folder, device="cpu"), workspace.dataset("imagenet1k-text")
    assert (hasher.hashcoder, hasher.diversity_weight, hasher.bits) == ("large", 1.0, 256)
    images, texts = image_embeddings(towers, dataset, "database"), text_embeddings(towers, dataset, "query")
    ours, theirs = hasher.logits(texts, modality="texts"), hasher.logits(images, modality="images")
    codes = Codes.from_logits(theirs)
    distances = {
        "cosine": cosine_distance(texts, images),
        "asymmetric_hamming": asymmetric_hamming_distance(ours, codes),
        "bce": bce_distance(ours, codes),
        "symmetric_bce": symmetric_bce_distance(ours, codes, theirs),
    }
    labels = dataset.splits["database"].labels
    right = np.arange(3)[:, None] == labels
    for measurement, result in found.items():
        order = ranks(distances[measurement.score], dataset.splits["database"].paths)
        value = precision_sum(order, right, measurement.k).mean()
        assert result["value"] == pytest.approx(value, abs=1e-6), measurement.key
        assert len(result["curve"]) == measurement.k
        assert result["curve"][-1] == result["value"]


@pytest.mark.parametrize("name", ["figure6", "figure8"])
def test_recall_counts_an_images_own_captions(make, towers, name):
    """Both directions: of an image's five captions any one is right; a caption has one image."""
    workspace = make()
    chosen = [one for one in wanted(name) if one.score in ("asymmetric_hamming", "cosine")]
    found = measure_pairs(workspace, chosen, 0)
    dataset = workspace.dataset(chosen[0].dataset)
    part = dataset.splits["query"]
    items = part.captions.items
    vectors = {"image": image_embeddings(towers, dataset, "query"), "text": text_embeddings(towers, dataset, "query")}
    ids = {"image": part.paths, "text": pairs.texts_of(dataset, "query").ids}
    rows = {"image": np.arange(len(part)), "text": items}
    for measurement, result in found.items():
        asks, answers = measurement.task.split("-")
        if measurement.training is None:
            distances = cosine_distance(vectors[asks], vectors[answers])
            symmetric = None
        else:
            hasher = workspace.model(measurement.training, 0)
            ours = hasher.logits(vectors[asks], modality=f"{asks}s")
            codes = Codes.from_logits(hasher.logits(vectors[answers], modality=f"{answers}s"))
            distances = asymmetric_hamming_distance(ours, codes)
            symmetric = hamming_distance(Codes.from_logits(ours), codes)
        right = rows[asks][:, None] == rows[answers]
        order = ranks(distances, ids[answers])
        depth = min(50, len(rows[answers]))
        if measurement.metric == "recall":
            place = first_hit(order, right)
            expected = [(place < k).mean() for k in range(1, depth + 1)]
            first = replace(measurement, k=3)
            chance = measure_pairs(workspace, [first], 0)[first]["chance"]
            (own,) = set(right.sum(axis=1).tolist())
            everything = right.shape[1]
            assert chance == pytest.approx(1 - math.comb(everything - own, 3) / math.comb(everything, 3))
        else:
            expected = [precision_sum(order, right, k).mean() for k in range(1, depth + 1)]
        np.testing.assert_allclose(result["curve"], expected, atol=1e-6)
        assert result["hit"] == pytest.approx((first_hit(order, right) < depth).mean())
        if symmetric is not None and measurement.metric == "recall":
            other = first_hit(ranks(symmetric, ids[answers]), right)
            assert result["hamming"] == pytest.approx((other < depth).mean())


def test_what_a_dataset_is_not_for_is_refused(make):
    workspace = make()
    wrong = Measurement("dfn-l", None, "imagenet1k-text", "image-text", "cosine", "map", 5)
    with pytest.raises(ConfigError, match="imagenet1k-text is for text to image, not for image-text"):
        measure_pairs(workspace, [wrong], 0)
    wrong = Measurement("dfn-l", None, "coco-text", "image-text", "bce", "map", 5)
    with pytest.raises(ConfigError, match="ranked by cosine, not by bce"):
        measure_pairs(workspace, [wrong], 0)


def test_another_copy_of_the_texts_does_not_pass_for_the_first(make, tmp_path):
    for name in ("one", "two"):
        root = tmp_path / name / "flickr30k"
        pair_copies.write_flickr30k(root)
        pair_copies.paint(root)
    file = tmp_path / "two/flickr30k/results_20130124.token"
    file.write_text(file.read_text().replace("\t", "\tx ", 1))
    pairs.text_embeddings(make(data=tmp_path / "one"), "dfn-l", "flickr30k", "query")
    with pytest.raises((ConfigError, FileFormatError), match="begun with another"):
        pairs.text_embeddings(make(data=tmp_path / "two"), "dfn-l", "flickr30k", "query")


def test_nested_models_serve_shorter_codes(make):
    workspace = make(nested=True)
    short = Training("dfn-l", "cc3m", "pairs", "probing", 32)
    found = workspace.encoded_texts(short, 0, "coco-text", "query")
    whole = workspace.encoded_texts(PROBED, 0, "coco-text", "query")
    assert (found.codes.bits, whole.codes.bits) == (32, 256)
    np.testing.assert_array_equal(found.codes.packed, whole.prefix(32).codes.packed)
    assert len(list((workspace.work / "models").iterdir())) == 1


# --- curves ---------------------------------------------------------------------------------------------------------


def test_curves_are_drawn_with_their_numbers(make, tmp_path):
    pytest.importorskip("matplotlib")
    workspace = make()
    measured = {}
    for number, measurement in enumerate(wanted("figure8")):
        if measurement.score == "bce":
            continue  # it failed
        runs = [{"curve": [0.1 * seed, 0.2, 0.01 * number]} for seed in (1, 2)]
        measured[measurement] = runs[:1] if measurement.training is None else runs
    files = draw_curves("figure8", workspace, measured)
    assert [file.name for file in files] == [
        "figure8-text-image-map.png", "figure8-text-image-recall.png", "figure8-image-text-map.png",
        "figure8-image-text-recall.png", "figure8.json",
    ]  # fmt: skip
    assert all(file.parent == workspace.work / "figure8" for file in files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[:-1])
    content = json.loads(files[-1].read_text())
    assert content["curves"]["text-image map"]["HashCoder AH"] == pytest.approx([0.15, 0.2, 0.01])
    curves = content["curves_of_each_seed"]
    assert list(curves) == ["text-image map", "text-image recall", "image-text map", "image-text recall"]
    assert curves["text-image map"]["HashCoder AH"] == [[0.1, 0.2, 0.01], [0.2, 0.2, 0.01]]
    assert "HashCoder BCE" not in curves["text-image map"]


@pytest.mark.slow
def test_a_figure_from_data_to_curves(make):
    pytest.importorskip("matplotlib")
    workspace = make()
    results = reproduce(workspace, all_cells("figure6"), (0, 1))
    assert not results.failed
    files = draw_curves("figure6", workspace, results.measured())
    assert len(files) == 5
    curves = json.loads(files[-1].read_text())["curves_of_each_seed"]
    for lines in curves.values():
        assert {name: len(runs) for name, runs in lines.items()} == {
            "DFN (Large) Cosine": 1, "HashCoder AH": 2, "random HashCoder AH": 2, "HashCoder BCE": 2,
            "random HashCoder BCE": 2, "HashCoder symBCE": 2, "random HashCoder symBCE": 2,
        }  # fmt: skip
        assert all(0 <= share <= 1 for runs in lines.values() for run in runs for share in run)
    recall = curves["image-text recall"]
    assert all(run == sorted(run) and run[-1] > run[0] for runs in recall.values() for run in runs)
    assert recall["HashCoder AH"][0] != recall["HashCoder AH"][1] != recall["random HashCoder AH"][1]
