"""Models on the hub: what is pushed is what is loaded, and the card says what is known. The hub is a folder here."""

import shutil

import huggingface_hub
import numpy as np
import pytest

from crovca import Hasher
from crovca.errors import ConfigError, EncoderError, FileFormatError
from crovca.hasher.hub import card


@pytest.fixture(scope="module")
def hasher():
    X = np.random.default_rng(0).normal(size=(80, 12)).astype(np.float32)
    return Hasher(bits=24, epochs=1, device="cpu").fit(X)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """What of the hub's library is used, over a folder."""
    folder = tmp_path / "hub"

    def create_repo(repo_id, *, private, token, exist_ok):
        assert (repo_id, token, exist_ok) == ("me/codes", "secret", True)
        folder.mkdir(exist_ok=True)

    def upload_folder(*, repo_id, folder_path, token, commit_message):
        shutil.copytree(folder_path, folder, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(repo_id, *, revision, allow_patterns):
        if revision not in (None, "main"):
            raise huggingface_hub.errors.RevisionNotFoundError("no such revision", response=Answer())
        fetched = tmp_path / "cache"
        fetched.mkdir(exist_ok=True)
        for name in allow_patterns:
            if (folder / name).exists():
                shutil.copy(folder / name, fetched)
        return str(fetched)

    class Answer:
        headers, status_code, request = {}, 404, None

    for function in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return folder


def test_what_is_pushed_is_loaded_again(hasher, repository):
    address = hasher.push_to_hub("me/codes", token="secret", license="apache-2.0", data="Noise.")
    assert address == "https://hub/me/codes/commit/1"
    assert sorted(file.name for file in repository.iterdir()) == [
        "README.md", "config.json", "log.jsonl", "model.safetensors",
    ]  # fmt: skip
    loaded = Hasher.from_pretrained("me/codes", revision="main", device="cpu")
    assert loaded.fingerprint == hasher.fingerprint
    with pytest.raises(EncoderError, match="has no revision 'old'"):
        Hasher.from_pretrained("me/codes", revision="old")
    (repository / "model.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError):
        Hasher.from_pretrained("me/codes")


def test_a_folder_is_taken_as_it_is(hasher, tmp_path):
    hasher.save(tmp_path / "model")
    assert Hasher.from_pretrained(tmp_path / "model", device="cpu").fingerprint == hasher.fingerprint
    with pytest.raises(ConfigError, match="which has no revision 'x'"):
        Hasher.from_pretrained(tmp_path / "model", revision="x")
    with pytest.raises(ConfigError, match="there is no folder 'nowhere'"):
        Hasher.from_pretrained("nowhere")


def test_the_card_says_what_is_known(hasher):
    measures = {16: {"seen": 0.5, "order": 0.81}, 24: {"seen": 0.6, "order": 0.9, "distinct": 1.0}}
    text = card(hasher, "me/codes", license="mit", data="Texts of the parish registers.", measures=measures)
    read = huggingface_hub.ModelCard(text)
    assert read.data.license == "mit"
    assert read.data.library_name == "crovca"
    assert read.data.pipeline_tag == "feature-extraction"
    assert 'Hasher.from_pretrained("me/codes")' in read.text
    assert "Texts of the parish registers." in read.text
    assert "| 24 | 60.0 | 90.0 | 100.0 |" in read.text and "| 16 | 50.0 | 81.0 |  |" in read.text
    bare = huggingface_hub.ModelCard(card(hasher, "me/codes"))
    assert bare.data.license is None
    assert "It was not measured" in bare.text


def test_an_example_of_the_card_runs(hasher, repository):
    hasher.push_to_hub("me/codes", token="secret")
    text = (repository / "README.md").read_text()
    code = text.split("```python")[1].split("```")[0]
    names = {"X": np.zeros((2, 12), np.float32) + np.arange(12, dtype=np.float32)}
    exec(code, names)
    assert names["codes"].bits == 24 and names["logits"].shape == (2, 24)
