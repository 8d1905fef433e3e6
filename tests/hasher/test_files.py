"""Model folders from anybody: a clear error, or the unchanged model."""

import json
import random
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from crovca.errors import ConfigError, CrovcaError, FileFormatError
from crovca.files import sha256
from crovca.hasher import Hasher
from crovca.hasher.files import has_encoder
from tests.hasher.models import rewrite

X = np.random.default_rng(0).normal(size=(80, 10)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    Hasher(bits=16, epochs=2, device="cpu").fit(X, X[:, 0] > 0).save(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def used(folder):
    """Everything that a user sees of a model."""
    hasher = Hasher.load(folder, device="cpu")
    fitted = (hasher.history_, hasher.pairing_, hasher.lengths_, hasher.config_, hasher.left_out_)
    return hasher.logits(X).tolist(), hasher.get_params(), hasher.classes_.tolist(), fitted


def mutated(data, chance):
    """A byte or a bit changed, something cut, zeroed or put in; more often near the ends."""
    data = bytearray(data)
    at = chance.choice([chance.randrange(len(data)), chance.randrange(min(len(data), 400))])
    match chance.choice(["flip", "byte", "cut", "zero", "insert"]):
        case "flip":
            data[at] ^= 1 << chance.randrange(8)
        case "byte":
            data[at] = chance.randrange(256)
        case "cut":
            del data[at:]
        case "zero":
            data[at : at + 8] = bytes(8)
        case "insert":
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


def test_every_mutation_is_an_error_or_changes_nothing(saved, model):
    chance, expected = random.Random(5), used(saved)
    contents = {path.name: path.read_bytes() for path in saved.iterdir()}
    refused = 0
    for _ in range(300):
        name = chance.choice(sorted(contents))
        (model / name).write_bytes(mutated(contents[name], chance))
        try:
            assert used(model) == expected
        except CrovcaError as error:
            refused += 1
            assert "\n" not in str(error)
        (model / name).write_bytes(contents[name])
    assert refused > 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "model of format version 2, this crovca reads 3; train it again"),
        (lambda c: c.update(format_version=4), "format version 4, this crovca reads 3; upgrade crovca"),
        (lambda c: c.update(format_version=True), "format version True"),
        (lambda c: c.update(more=1), "unknown configuration key 'more'"),
        (lambda c: c.pop("towers"), "'towers' is missing"),
        (lambda c: c.update(towers={}), "towers in config.json is of type dict"),
        (lambda c: c["towers"][0].update(width=10**12), "embeddings of 1000000000000 numbers"),
        (lambda c: c["towers"][0].update(width=1 << 20), "the weights do not fit"),
        (lambda c: c["towers"][0].update(width="10"), "width in .* is of type str"),
        (lambda c: c["towers"].append(c["towers"][0]), "names other towers"),
        (lambda c: c["parameters"].update(bits=4096), "contradicts itself"),
        (lambda c: c["parameters"].update(bits=10**9), "bits must lie between"),
        (lambda c: c["parameters"].update(bits=True), "bits must be a whole number"),
        (lambda c: c["parameters"].update(seed=-1), "seed"),
        (lambda c: c["parameters"].update(learning_rate=10**400), "."),
        (lambda c: c["parameters"].update(feature_dropout="x"), "."),
        (lambda c: c["parameters"].update(start="elsewhere"), "start must be"),
        (lambda c: c["parameters"].update(modalities=["images"]), "images need an encoder"),
        (lambda c: c["parameters"].update(fine_tuning={"encoder": "/etc"}), "is missing in parameters.fine_tuning"),
        (lambda c: c["parameters"].pop("seed"), "'seed' is missing in parameters"),
        (lambda c: c["parameters"].update(extra=1), "unknown configuration key 'extra'"),
        (lambda c: c["training"].update(epochs=0), "epochs must be"),
        (lambda c: c["training"].update(terms=7), "incomplete configuration"),
        (lambda c: c["training"].update(hashcoder="large"), "contradicts itself"),
        (lambda c: c["fitted"].update(classes=[[1]]), "fitted.classes holds no names"),
        (lambda c: c["fitted"].update(neighbor_recall=7.0), r"must lie in \[0, 1\]"),
        (lambda c: c["fitted"].update(left_out={"a": "b"}), "left_out holds no counts"),
        (lambda c: c["sha256"].pop("log.jsonl"), "does not match its checksum"),
    ],
)  # fmt: skip
def test_what_somebody_wrote_on_purpose_is_checked(model, change, message):
    rewrite(model, change)
    with pytest.raises(CrovcaError, match=message):
        Hasher.load(model)


def test_a_config_that_was_edited_is_refused(model):
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(FileFormatError, match="does not match its checksum"):
        Hasher.load(model)
    (model / "config.json").write_text(" ".join(text.split("\n")))  # the same, written down otherwise
    assert Hasher.load(model).seed == 0


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}', "7", ""])
def test_json_that_is_none(model, text):
    (model / "config.json").write_text(text)
    for look in (Hasher.load, has_encoder):
        with pytest.raises(FileFormatError):
            look(model)


def test_weights_that_do_not_belong(model):
    weights = load_file(model / "model.safetensors")
    for name, change in {
        "towers.0.coder.norm.bias": lambda value: value * float("nan"),
        "towers.0.coder.norm.weight": lambda value: value.half(),
        "towers.0.coder.layers.0.weight": lambda value: value[:, :5].contiguous(),
    }.items():
        save_file({**weights, name: change(weights[name])}, model / "model.safetensors")
        sums = {"model.safetensors": sha256(model / "model.safetensors")}
        rewrite(model, lambda config, sums=sums: config["sha256"].update(sums))
        with pytest.raises(FileFormatError, match=r"not finite|do not fit the configuration"):
            Hasher.load(model)
    for name in ("log.jsonl", "model.safetensors", "config.json"):
        (model / name).unlink()
        with pytest.raises(FileFormatError, match=f"{name} is missing"):
            Hasher.load(model)


def test_no_link_is_followed_where_something_is_written_or_removed(saved, tmp_path):
    """MODEL.partial as a link to somebody's folder; a model that is a link is replaced itself."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    (tmp_path / "model.partial").symlink_to(mine)
    with pytest.raises(ConfigError, match="is a symbolic link, into which nothing is written"):
        Hasher(bits=8, epochs=1).fit(X, checkpoint=tmp_path / "model.partial")
    shutil.copytree(saved, tmp_path / "theirs")
    (tmp_path / "model").symlink_to(tmp_path / "theirs")
    before = (tmp_path / "theirs" / "config.json").read_bytes()
    Hasher(bits=8, epochs=1).fit(X).save(tmp_path / "model", force=True)
    assert (tmp_path / "theirs" / "config.json").read_bytes() == before
    assert Hasher.load(tmp_path / "model").bits == 8
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_what_a_model_says_of_itself(saved):
    described = json.loads((saved / "config.json").read_text())
    assert described["format_version"] == 3
    assert described["towers"] == [{"modality": "embeddings", "width": 10, "encoder": None}]
    assert described["training"]["epochs"] == 2
    assert not has_encoder(saved)
    assert not has_encoder(saved / "nowhere")
