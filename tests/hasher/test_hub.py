"""Models go to a hub, on this machine, and come back; the card says what is known."""

import json
import re
import shutil

import numpy as np
import pytest

from crovca.compare.beside import learn_like, measure_beside
from crovca.data.embeddings import as_embeddings
from crovca.errors import ConfigError, EncoderError, FileFormatError, InvalidInputError, ServerError
from crovca.evaluation.situations import FIVE
from crovca.files import read_json
from crovca.hasher import Hasher
from crovca.hasher.hub import model_card
from tests.encoders.hub_server import COMMIT, huggingface_hub, serving
from tests.hasher.models import rewrite

X = np.random.default_rng(0).normal(size=(80, 10)).astype(np.float32)
MEASURED = {"map": 0.7162, "order": 0.9, "distinct": None}
MEASURES = {
    "labeled": True,
    "counts": {},
    "float": {"seen": {"map": 0.8}},
    "methods": {"model": {"16": {"seen": MEASURED, "new": {"map": 0.5}}}},
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_of_tests")
    with serving(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.fixture(scope="module")
def hasher():
    return Hasher(bits=20, epochs=2, device="cpu").fit(X, X[:, 0] > 0)


def test_a_model_goes_to_the_hub_and_comes_back(hub, hasher):
    told = {"data": "80 things", "license": "apache-2.0", "measures": MEASURES, "datasets": ["who/things"]}
    url = hasher.push_to_hub("who/codes", encoder="who/vit", **told)
    assert url.endswith(f"who/codes/commit/{COMMIT}")
    pushed = hub.repositories["who/codes"]
    assert sorted(file.name for file in pushed.iterdir()) == [
        "README.md", "config.json", "log.jsonl", "model.safetensors",
    ]  # fmt: skip
    assert "/api/validate-yaml" in hub.asked  # which answers an error where the hub would
    hub.asked.clear()
    back = Hasher.from_pretrained("who/codes", revision=COMMIT, device="cpu")
    assert back.fingerprint == hasher.fingerprint
    assert np.array_equal(back.logits(X), hasher.logits(X))
    assert not any(path.endswith("README.md") for path in hub.asked)

    card = huggingface_hub.ModelCard.load(pushed / "README.md")
    assert card.data.to_dict() == {
        "library_name": "crovca", "license": "apache-2.0", "base_model": "who/vit",
        "pipeline_tag": "feature-extraction", "tags": ["crovca", "hashing", "binary-codes"],
        "datasets": ["who/things"],
    }  # fmt: skip
    assert f"|  | {' | '.join(FIVE)} |\n|---|---|---|---|---|---|\n" in card.text
    assert "| model, 16 bits | 71.6 | 50.0 | - | 90.0 | - |\n| floats | 80.0 | - | - | - | - |\n" in card.text
    for said in ("| learned from | 80 things |", "| 16, 20 bits", "classes; 2 classes", hasher.fingerprint):
        assert said.replace("| 16, 20 bits", "lengths | 16, 20 bits") in card.text


def test_the_example_of_the_card_runs(hub, hasher):
    hasher.push_to_hub("who/codes")
    (example,) = re.findall("```py\n(.*?)```", (hub.repositories["who/codes"] / "README.md").read_text(), re.DOTALL)
    names = {"embeddings": X}
    exec(example, names)
    assert np.array_equal(names["codes"].packed, hasher.encode(X).packed)


def test_measures_as_they_are_measured():
    chance = np.random.default_rng(0)
    labels = np.arange(240) % 8
    values = (chance.normal(size=(8, 12))[labels] + 0.5 * chance.normal(size=(240, 12))).astype(np.float32)
    items, asked = as_embeddings(values[:200], labels[:200]), as_embeddings(values[200:], labels[200:])
    hasher = Hasher(bits=16, epochs=2, device="cpu").fit(items)
    logits = hasher.logits(asked), hasher.logits(items)
    five = measure_beside(items, asked, logits, (16,), relearn=learn_like(hasher, (16,)), hold_out=0.5)
    text = model_card(hasher, "who/codes", measures=json.loads(json.dumps(five.to_dict())))
    assert "*seen*, *new* and *mixed* are mAP, for kinds" in text
    seen = five.methods["model"][16]["seen"]
    (line,) = (line for line in text.splitlines() if line.startswith("| model, 16 bits |"))
    shown = [float(number) for number in line.split("|")[2:-1]]
    assert (shown[0], shown[3], shown[4]) == tuple(
        round(100 * value, 1) for value in (seen.map, seen.order, seen.distinct)
    )
    assert "| floats | " in text


def test_pairs_are_told_apart_on_the_card():
    both = Hasher.for_pairs(bits=8, epochs=1, device="cpu").fit(X, texts=X[:, :6])
    text = model_card(both, "who/pairs")
    assert 'hasher.encode(images, modality="images")  # images: float32 (n, 10)' in text
    assert 'hasher.encode(texts, modality="texts")  # texts: float32 (n, 6)' in text
    assert "| learned from | not said |" in text
    assert "Not measured, or not said." in text


def test_an_encoder_goes_by_its_id(hub, encoder, photos, tmp_path):
    hasher = Hasher.for_images(encoder, 12, epochs=1, batch_size=12, dtype="float32", device="cpu").fit(photos)
    with pytest.raises(ConfigError, match=r"lies in the folder .* which nobody else has; .* encoder='owner/name'"):
        hasher.push_to_hub("who/photos")
    assert not hub.asked
    hub.repositories["who/encoder"] = encoder
    hasher.push_to_hub("who/photos", encoder="who/encoder")
    pushed = hub.repositories["who/photos"]
    for file in ("config.json", "README.md", "log.jsonl"):
        assert str(encoder) not in (pushed / file).read_text()
    assert 'hasher.encode(["a.jpg", "b.jpg"])\n' in (pushed / "README.md").read_text()
    assert "| LoRA, images | rank 16 |" in (pushed / "README.md").read_text()
    back = Hasher.from_pretrained("who/photos", device="cpu")
    assert back.towers_["images"].encoder.identity["source"] == "who/encoder"
    assert np.array_equal(back.logits(photos), hasher.logits(photos))
    assert read_json(pushed / "config.json", "model")["parameters"]["fine_tuning"]["encoder"] == "who/encoder"
    back.push_to_hub("who/again")  # the id and the commit that it was found under
    towers = read_json(hub.repositories["who/again"] / "config.json", "model")["towers"]
    assert (towers[0]["encoder"]["source"], towers[0]["encoder"]["revision"]) == ("who/encoder", COMMIT)

    def elsewhere(config):
        config["towers"][0]["encoder"]["source"] = str(encoder)

    rewrite(pushed, elsewhere)
    hub.repositories["who/hostile"] = shutil.copytree(pushed, tmp_path / "hostile")
    with pytest.raises(ConfigError, match=r"who/hostile names its encoder .* no id of the hub; .* encoder="):
        Hasher.from_pretrained("who/hostile", device="cpu")
    told = Hasher.from_pretrained("who/hostile", device="cpu", encoder=encoder)
    assert np.array_equal(told.logits(photos), hasher.logits(photos))


def test_a_folder_is_as_good(hasher, tmp_path):
    hasher.save(tmp_path / "model")
    assert np.array_equal(Hasher.from_pretrained(tmp_path / "model", device="cpu").logits(X), hasher.logits(X))
    with pytest.raises(ConfigError, match="is a local folder, which has no revision 'v1'"):
        Hasher.from_pretrained(tmp_path / "model", revision="v1")
    with pytest.raises(ConfigError, match="there is no folder"):
        Hasher.from_pretrained(tmp_path / "none")


def test_a_branch(hub, hasher):
    hasher.push_to_hub("who/codes", revision="better", private=True)
    assert list(dict.fromkeys(hub.asked)) == [
        "/api/repos/create", "/api/models/who/codes/branch/better", "/api/validate-yaml",
        "/api/models/who/codes/preupload/better", "/api/models/who/codes/commit/better",
    ]  # fmt: skip


def test_what_cannot_be(hub, hasher, encoder, monkeypatch):
    with pytest.raises(EncoderError, match="there is no model 'who/nobody' on the hub"):
        Hasher.from_pretrained("who/nobody")
    hub.repositories["who/vit"] = encoder
    with pytest.raises(FileFormatError, match=r"who/vit is no model of crovca: it has no log\.jsonl"):
        Hasher.from_pretrained("who/vit")
    with pytest.raises(ServerError, match=r'cannot be pushed .* "license" must be one of') as error:
        hasher.push_to_hub("who/codes", license="mine")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InvalidInputError, match="five_measures"):
        hasher.push_to_hub("who/codes", measures={"map": 0.5})
    hasher.push_to_hub("who/codes")
    weights = hub.repositories["who/codes"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(FileFormatError, match="does not match its checksum"):
        Hasher.from_pretrained("who/codes")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(ServerError, match="needs a token"):
        hasher.push_to_hub("who/others")
