import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crovca.embedding.items import plain, uncropped
from crovca.embedding.pool import ImagePool
from crovca.encoders.encoder import Encoder
from crovca.errors import ConfigError, CrovcaError, FileFormatError, InvalidInputError
from crovca.files import sha256
from crovca.hasher import Hasher
from crovca.hasher.image_views import ImagesAndTexts, ImageViews
from crovca.hashing import train as training
from crovca.hashing.train import Silent
from crovca.sources.opening import open_images
from tests.encoders import tiny
from tests.hasher.models import rewrite
from tests.pictures import as_bytes, picture

QUICK = {"bits": 16, "epochs": 3, "batch_size": 8, "dtype": "float32", "device": "cpu"}


class Recorder(Silent):
    def __init__(self, stop_at=None):
        self.messages, self.stop_at = [], stop_at

    def progress(self, state):
        if state.step == self.stop_at:
            raise KeyboardInterrupt

    def message(self, text):
        self.messages.append(text)


def same_weights(one, other):
    ours, theirs = one.towers_.state_dict(), other.towers_.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def trained(encoder, photos):
    recorder = Recorder()
    hasher = Hasher.for_images(encoder, **QUICK).fit(photos, observer=recorder)
    return hasher, recorder.messages


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    trained[0].save(folder)
    return folder


# --- training ---


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(training, "_LOG_EVERY", 1)


@pytest.mark.usefixtures("every_step")
def test_training_lowers_the_loss(encoder, photos):
    hasher = Hasher.for_images(encoder, **QUICK | {"epochs": 20, "batch_size": 24}).fit(photos)
    losses = [entry["loss"] for entry in hasher.history_]
    assert np.mean(losses[-5:]) < losses[0] - 0.05
    assert hasher.pairing_ == ("views",)


def test_classes_are_learned(encoder, photos):
    source = open_images(photos)
    settings = QUICK | {"epochs": 60, "batch_size": 24, "learning_rate": 3e-3}
    hasher = Hasher.for_images(encoder, **settings).fit(source, source.labels)
    distances = hasher.encode(photos).hamming(hasher.encode(photos))
    same = source.labels[:, None] == source.labels[None, :]
    assert distances[same].mean() < 0.5 * distances[~same].mean()
    assert hasher.classes_.tolist() == ["flat", "tall"]
    assert hasher.pairing_ == ("views", "classes")


@pytest.mark.parametrize("family", ["DINOv2 with registers", "MobileNetV2"])
def test_what_is_frozen_stays_to_the_bit(tmp_path, photos, family):
    """Weights, and the statistics of batch normalizations, which a network in training mode would change."""
    made, processor, _ = tiny.models()[family]
    folder = tiny.save(made, tmp_path / "encoder", processor)
    hasher = Hasher.for_images(folder, **QUICK, lora_rank=2, head_epochs=0).fit(photos)
    before = Encoder.load(folder, device="cpu", dtype="float32").model.state_dict()
    after = hasher.towers_["images"].encoder.model.state_dict()
    kept = {name.replace(".base_layer", ""): value for name, value in after.items() if ".lora_" not in name}
    assert before.keys() == kept.keys()
    assert all(torch.equal(before[name], kept[name]) for name in before)
    learned = [value for name, value in after.items() if "lora_B" in name]
    assert all(value.abs().max() > 0 for value in learned)


def test_the_head_learns_alone_in_the_first_epoch(encoder, photos):
    fit = lambda **more: Hasher.for_images(encoder, **QUICK | more).fit(photos).towers_  # noqa: E731
    for towers, moved in ((fit(epochs=1), False), (fit(epochs=2), True), (fit(epochs=1, head_epochs=0), True)):
        after = {name: value for name, value in towers["images"].adapter.named_parameters() if "lora_B" in name}
        assert len(after) == 4
        assert all(bool(value.abs().max() > 0) == moved for value in after.values())
        assert towers.coders[0].layers[0].bias.abs().max() > 0


def test_the_run_says_how_much_is_trained(trained, encoder):
    hasher, messages = trained
    encoders = sum(p.numel() for p in Encoder.load(encoder, device="cpu").model.parameters())
    lora = 2 * 2 * 2 * 32 * 16
    head = 32 * 32 + 32 + 32 * 16 + 16 + 2 * 16
    assert (hasher.towers_.trained, hasher.towers_.total) == (lora + head, encoders + lora + head)
    said = f"{lora + head:,} of {encoders + lora + head:,} parameters are trained"
    assert any(text.startswith(said) and "LoRA of rank 16 in 4 layers" in text for text in messages)


def test_without_lora_the_encoder_is_probed(encoder, photos, tmp_path):
    recorder = Recorder()
    hasher = Hasher.for_images(encoder, **QUICK, lora_rank=None).fit(photos, observer=recorder)
    plain_encoder = Encoder.load(encoder, device="cpu", dtype="float32")
    pixels = torch.stack([torch.from_numpy(plain(plain_encoder.preprocessing)(path.read_bytes()))
                          for path in sorted(photos.rglob("*.png"))])  # fmt: skip
    expected = plain_encoder.embed(plain_encoder.preprocessing.normalize(pixels)).numpy()
    np.testing.assert_array_equal(hasher.embed(photos), expected)
    assert any("the encoder is frozen" in text for text in recorder.messages)
    hasher.save(tmp_path / "probe")
    assert not any("lora" in name for name in load_file(tmp_path / "probe" / "model.safetensors"))
    assert np.array_equal(Hasher.load(tmp_path / "probe", device="cpu").logits(photos), hasher.logits(photos))


def test_the_same_seed_gives_the_same_model(encoder, photos, trained):
    torch.manual_seed(123)
    assert same_weights(trained[0], Hasher.for_images(encoder, **QUICK).fit(photos))
    assert not same_weights(trained[0], Hasher.for_images(encoder, **QUICK, seed=1).fit(photos))


def test_training_leaves_the_chance_of_others_alone(encoder, photos):
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    Hasher.for_images(encoder, **QUICK | {"epochs": 1}).fit(photos)
    assert torch.equal(torch.rand(2), expected)


def test_compiling_and_checkpointing_change_nothing(encoder, photos):
    make = lambda **more: Hasher.for_images(encoder, **QUICK | {"epochs": 2}, **more).fit(photos)  # noqa: E731
    usual = make()
    assert same_weights(usual, make(gradient_checkpointing=True))
    compiled = make(compile="aot_eager")
    np.testing.assert_allclose(compiled.logits(photos), usual.logits(photos), atol=1e-3)


@pytest.mark.parametrize("stop_at", [10, 20])
def test_an_interrupted_run_ends_in_the_same_model(tmp_path, encoder, photos, stop_at):
    source = open_images(photos)
    settings = QUICK | {"epochs": 9}
    whole = Hasher.for_images(encoder, **settings).fit(source, source.labels)
    partial = tmp_path / "model.partial"
    saving = {"checkpoint": partial, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        Hasher.for_images(encoder, **settings).fit(source, source.labels, **saving, observer=Recorder(stop_at))
    state = load_file(partial / "state.safetensors")
    assert not any("embeddings" in name or "base_layer" in name for name in state)  # what is learned, no more
    recorder = Recorder()
    resumed = Hasher.for_images(encoder, **settings).fit(source, source.labels, **saving, observer=recorder)
    assert f"going on from step {stop_at - 1} of 27" in recorder.messages
    assert same_weights(whole, resumed)
    assert whole.history_ == resumed.history_
    with pytest.raises(ConfigError, match=r"unfinished run with lora_rank = 16, now it is 8"):
        Hasher.for_images(encoder, **settings, lora_rank=8).fit(source, source.labels, **saving)


def test_views_do_not_depend_on_memory_threads_or_shares(photos, encoder):
    source = open_images(photos)
    preprocessing = Encoder.load(encoder, device="cpu").preprocessing
    cpu = torch.device("cpu")
    rows = np.array([3, 20, 5, 11])
    expected = None
    for places, threads in (((), 1), ([(cpu, 10_000)], 3), ([(cpu, 10**9)], 2), ([(cpu, 9_000), (cpu, 10**9)], 2)):
        with ImagePool(source, uncropped(preprocessing.size), places=places, threads=threads) as pool:
            views = ImageViews(pool, np.arange(len(source)), preprocessing, cpu)
            for _ in range(2):
                random = np.random.default_rng(4)
                found = views.views(rows, random)
                expected = expected or found
                assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            half = views.views(rows[2:], np.random.default_rng(4))
            assert all(torch.equal(one, other[2:]) for one, other in zip(half, expected, strict=True))
            another = views.views(rows, np.random.default_rng(5))
            assert not torch.equal(another[0], expected[0])
            assert pool.kept == (0 if not places else 1 if len(places) == 1 and places[0][1] == 10_000 else 4)
    assert [tuple(view.shape) for view in expected] == [(4, 3, 28, 28)] * 2
    assert not torch.equal(*expected)


def test_batches_prepared_ahead_are_the_same(encoder, photos, monkeypatch, trained):
    usual = training.train
    monkeypatch.setattr(
        "crovca.hasher.fit_images.train", lambda *given, **named: usual(*given, **named | {"prefetch": 2})
    )
    assert same_weights(trained[0], Hasher.for_images(encoder, **QUICK).fit(photos))


def test_images_that_cannot_be_read_are_left_out_and_said(tmp_path, encoder, photos):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "flat" / "00b.jpg").write_bytes(b"")
    (tmp_path / "photos" / "tall" / "cut.jpg").write_bytes(as_bytes(picture())[:400])
    recorder = Recorder()
    source = open_images(tmp_path / "photos")
    hasher = Hasher.for_images(encoder, **QUICK | {"epochs": 1}).fit(source, source.labels, observer=recorder)
    assert hasher.left_out_ == {"empty": 1, "truncated": 1}
    assert any(text.startswith("2 of 26 items are left out (1 empty, 1 truncated), the first is flat/00b.jpg")
               for text in recorder.messages)  # fmt: skip
    found = hasher.encode_source(source)
    assert len(found.logits) == len(found.rows) == 24
    assert {source.ids[row]: fault[0] for row, fault in found.faults.items()} == {
        "flat/00b.jpg": "empty", "tall/cut.jpg": "truncated",
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"flat/00b\.jpg cannot be read: empty: 0 bytes \(and 1 more"):
        hasher.encode(source)
    for path in (tmp_path / "photos").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="training needs at least 2 items that can be read; of 26"):
        Hasher.for_images(encoder, **QUICK).fit(tmp_path / "photos")


def test_settings_that_cannot_be(encoder, photos):
    for settings, message in (
        ({"crop_scale": None}, "images alone are taught by augmented views"),
        ({"crop_scale": 2.0}, r"crop_scale must lie in \(0, 1\]"),
        ({"lora_rank": 0}, "lora_rank must be"),
        ({"views": 1}, "views must be a whole number of at least 2"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"encoder": ""}, "give an encoder"),
        ({"encoder": "/nowhere"}, "there is no folder '/nowhere'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Hasher.for_images(**{"encoder": encoder, **QUICK, **settings}).fit(photos)


def test_presets_bring_loras_settings():
    hasher = Hasher.for_images("x", preset="imagenet1k", bits=32)
    assert (hasher.fine_tuning.lora_rank, hasher.fine_tuning.lora_dropout, hasher.fine_tuning.crop_scale) == (
        16,
        0.1,
        0.4,
    )
    assert (hasher.hashcoder, hasher.learning_rate, hasher.nested, hasher.prototypes) == ("large", 1e-4, False, "batch")
    probe = Hasher.for_pairs(encoder="x", preset="cc3m")
    assert (probe.fine_tuning.lora_rank, probe.fine_tuning.crop_scale, probe.epochs, probe.diversity_weight) == (
        None,
        None,
        1,
        1.0,
    )
    assert Hasher.for_images("x", preset="small", lora_rank=4).fine_tuning.lora_rank == 4


# --- the model ---


def test_a_model_comes_back_and_holds_no_encoder_weights(model, trained, photos, encoder):
    loaded = Hasher.load(model, device="cpu")
    assert loaded.modalities == ("images",)
    assert np.array_equal(loaded.logits(photos), trained[0].logits(photos))
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "log.jsonl", "model.safetensors"]
    weights = load_file(model / "model.safetensors")
    assert {name.split(".")[2] for name in weights} == {"adapter", "coder"}
    described = json.loads((model / "config.json").read_text())
    entry = described["towers"][0]["encoder"]
    assert weights[f"towers.0.adapter.{entry['lora']['targets'][0]}.lora_A.weight"].shape == (16, 32)
    assert entry["source"] == str(encoder.resolve())
    assert (entry["family"], entry["revision"], len(entry["weights_sha256"])) == ("DINOv2 with registers", None, 64)
    assert entry["lora"]["rank"] == 16
    assert entry["preprocessing"]["crop"] == [28, 28]


def test_images_of_every_kind_give_the_same_code(model, photos):
    hasher = Hasher.load(model, device="cpu")
    path = photos / "flat" / "00.png"
    image = Image.open(path)
    kinds = [str(path), path, path.read_bytes(), image, np.asarray(image), torch.from_numpy(np.array(image))]
    logits = hasher.logits(kinds)
    assert logits.shape == (6, 16)
    np.testing.assert_allclose(logits, np.repeat(logits[:1], 6, axis=0), atol=1e-5)
    assert len(hasher.encode([path, path], bits=16)) == 2
    assert hasher.encode([]).packed.shape == (0, 2)
    turned, clear = image.convert("P"), image.convert("RGBA")
    np.testing.assert_allclose(hasher.logits([clear]), logits[:1], atol=1e-5)
    assert hasher.logits([turned, image.convert("L")]).shape == (2, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 32), np.float32), r"this model takes images .* got an array of shape \(4, 32\)"),
        (torch.zeros(4, 32), "this model takes images"),
        ([np.zeros(32, np.float32)], r"item 0 is an array of float32 \(32,\)"),
        ([np.zeros((8, 8, 3), np.float32)], r"item 0 is an array of float32 \(8, 8, 3\)"),
        (["nowhere.jpg"], r"nowhere\.jpg cannot be read: missing: there is no such file"),
        ([b"no image"], "item 0 cannot be read: not an image"),
        ([3], "item 0 is a int"),
        (b"bytes", "images must be a list of paths"),
        (7, "images must be a list of paths"),
        ("nowhere", "nowhere does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(model, given, message):
    hasher = Hasher.load(model, device="cpu")
    with pytest.raises(CrovcaError, match=message):
        hasher.encode(given)


def test_a_file_of_embeddings_is_refused(model, tmp_path):
    np.save(tmp_path / "e.npy", np.zeros((3, 32), np.float32))
    with pytest.raises(InvalidInputError, match=r"e\.npy holds embeddings; this model takes images"):
        Hasher.load(model, device="cpu").encode(tmp_path / "e.npy")


def test_an_encoder_that_moved_or_changed(model, trained, encoder, photos, tmp_path):
    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    moved = tmp_path / "encoder"
    shutil.copytree(encoder, moved)
    rewrite(changed, lambda config: config["towers"][0]["encoder"].update(source=str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match=r"needs its encoder .*gone.*; if it lies elsewhere, name its folder"):
        Hasher.load(changed)
    found = Hasher.load(changed, encoder=moved, device="cpu")
    assert np.array_equal(found.logits(photos), trained[0].logits(photos))
    weights = load_file(moved / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"was trained with other weights of .*encoder \(sha256"):
        Hasher.load(changed, encoder=moved)
    (moved / "config.json").unlink()
    with pytest.raises(CrovcaError, match="needs its encoder"):
        Hasher.load(changed, encoder=moved)


def test_an_adapter_fits_whatever_transformers_calls_the_layers(model, trained, photos, tmp_path):
    """Earlier ones wrote "attention.attention.query" where later ones have "attention.q_proj"."""
    later = {".attention.query": ".q_proj", ".attention.value": ".v_proj"}
    other = later | {there: here for here, there in later.items()}
    renamed_layer = partial(re.sub, "|".join(map(re.escape, other)), lambda found: other[found[0]])
    shutil.copytree(model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    renamed = {renamed_layer(name): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model" / "model.safetensors")
    lora = json.loads((model / "config.json").read_text())["towers"][0]["encoder"]["lora"]
    targets = [renamed_layer(name) for name in lora["targets"]]

    def named(config, targets):
        config["towers"][0]["encoder"]["lora"]["targets"] = targets
        config["sha256"]["model.safetensors"] = sha256(tmp_path / "model" / "model.safetensors")

    rewrite(tmp_path / "model", lambda config: named(config, targets))
    found = Hasher.load(tmp_path / "model", device="cpu")
    assert np.array_equal(found.logits(photos), trained[0].logits(photos))
    rewrite(tmp_path / "model", lambda config: named(config, targets[:-1]))
    with pytest.raises(ConfigError, match="it has 4 layers for LoRA, and the adapter is of 3 others"):
        Hasher.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tower: tower.pop("encoder"), "config.json is incomplete: 'encoder' is missing in towers"),
        (lambda tower: tower["encoder"].pop("lora"), "config.json is incomplete: 'lora' is missing"),
        (lambda tower: tower["encoder"]["lora"].update(rank=8), "the weights do not fit the configuration"),
        (lambda tower: tower.update(width=31), "the weights do not fit the configuration"),
        (lambda tower: tower.update(modality="texts"), "names other towers"),
        (lambda tower: tower["encoder"]["preprocessing"].update(mean="x"), "."),
        (lambda tower: tower.update(encoder=7), "encoder in towers.* is of type int"),
        (lambda tower: tower.update(encoder=None), "does not say which encoders"),
    ],
)
def test_a_changed_config_is_one_error(model, tmp_path, change, message):
    shutil.copytree(model, tmp_path / "model")
    rewrite(tmp_path / "model", lambda config: change(config["towers"][0]))
    with pytest.raises(CrovcaError, match=message):
        Hasher.load(tmp_path / "model", device="cpu")


def test_an_encoder_is_named_for_models_of_images_only(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    Hasher(bits=8, epochs=1).fit(X).save(tmp_path / "model")
    with pytest.raises(ConfigError, match="a model of embeddings, which has no encoder"):
        Hasher.load(tmp_path / "model", encoder="x")


# --- images and texts ---


def test_images_and_texts_meet(pair, photos, tmp_path):
    source = open_images(photos)
    texts = [["a b c", "b c"] if label == "flat" else ["x y", "y z x"] for label in source.labels]
    settings = QUICK | {"epochs": 100, "batch_size": 24, "learning_rate": 1e-2}
    hasher = Hasher.for_pairs(encoder=pair, **settings).fit(source, texts=texts)
    assert hasher.history_[-1]["loss"] < hasher.history_[0]["loss"]
    words = hasher.encode(["a b c", "x y"], modality="texts")
    nearest = words.hamming(hasher.encode(photos, modality="images")).argmin(axis=0)
    assert (nearest == (source.labels == "tall")).mean() > 0.8
    for tower in hasher.towers_:  # both learned
        assert all(value.abs().max() > 0 for name, value in tower.adapter.named_parameters() if "lora_B" in name)
    hasher.save(tmp_path / "model")
    loaded = Hasher.load(tmp_path / "model", device="cpu")
    assert loaded.modalities == ("images", "texts")
    assert np.array_equal(loaded.logits(["a", "b"], modality="texts"), hasher.logits(["a", "b"], modality="texts"))
    assert np.array_equal(loaded.logits(photos, modality="images"), hasher.logits(photos, modality="images"))
    zeros = np.zeros((2, 8), np.float32)
    for wrong, modality in ((zeros, "texts"), ("a", "texts"), (zeros, "images"), (["a"], None)):
        with pytest.raises(InvalidInputError):
            loaded.encode(wrong, modality=modality)


def test_pairs_without_a_text_are_left_out(pair, photos):
    source = open_images(photos)
    texts = ["a"] * 22 + ["", " "]
    quick = QUICK | {"epochs": 1}
    assert Hasher.for_pairs(encoder=pair, **quick).fit(source, texts=texts).left_out_ == {"empty": 2}
    for wrong, message in (
        (["a"] * 5, "24 images and texts of 5 items"),
        ("a", "texts must be a list of strings"),
        ([1] * 24, "texts must be|not iterable"),
        (None, "have no captions of their own"),
    ):
        with pytest.raises((InvalidInputError, TypeError), match=message):
            Hasher.for_pairs(encoder=pair, **quick).fit(source, texts=wrong)


def test_the_texts_of_a_share_are_those_of_the_batch(photos):
    class Fixed:
        def __len__(self):
            return 6

        def views(self, rows, random):
            random.integers(5)
            return [torch.from_numpy(rows)]

    pairs = ImagesAndTexts(Fixed(), [[f"{row} {number}" for number in range(row + 1)] for row in range(6)])
    rows = np.array([5, 1, 4, 2])
    _, whole = pairs.views(rows, np.random.default_rng(0))
    _, half = pairs.views(rows[2:], np.random.default_rng(0))
    assert half == whole[2:]
    drawn = {pairs.views(rows, np.random.default_rng(seed))[1][0] for seed in range(60)}
    assert drawn == {f"5 {number}" for number in range(6)}


# --- real ---


@pytest.mark.usefixtures("every_step")
def test_real_photographs_with_a_real_encoder():
    """30 photographs of 6 classes through ImageNet's MobileNetV2: six steps lower the loss."""
    from pathlib import Path

    shared = Path(__file__).parents[3] / "shared"
    folder, encoder = shared / "data" / "caltech100" / "images", shared / "models" / "mobilenet_v2_1.0_224"
    if not folder.is_dir() or not encoder.is_dir():
        pytest.skip(f"needs the photographs and the encoder in {shared}")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())[::16][:6]
    images = [image for path in classes for image in sorted(path.iterdir())[:5]]
    settings = {"bits": 16, "epochs": 1, "batch_size": 5, "lora_rank": 4, "head_epochs": 0, "dtype": "float32"}
    hasher = Hasher.for_images(encoder, **settings, device="cpu").fit(images)
    losses = [entry["loss"] for entry in hasher.history_]
    assert len(losses) == 6
    assert np.mean(losses[-2:]) < losses[0] - 0.02
