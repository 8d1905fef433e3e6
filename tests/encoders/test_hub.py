"""Local folders, short names, and a hub that answers as huggingface.co does, on this machine."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from crovca.encoders.encoder import Encoder
from crovca.encoders.families import ALIASES
from crovca.encoders.hub import locate
from crovca.errors import ConfigError, CrovcaError, EncoderError
from tests.encoders.hub_server import COMMIT, go_offline, point_to, serving

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")


@pytest.fixture
def hub(monkeypatch, tmp_path, folders):
    with serving(monkeypatch, tmp_path) as hub:
        hub.repositories["who/vit"] = folders["ViT"][0]
        yield hub


def refused(source, message, kind=EncoderError, **options):
    with pytest.raises(kind, match=message) as error:
        Encoder.load(source, device="cpu", dtype="float32", **options)
    assert len(str(error.value).splitlines()) == 1
    assert str(source) in str(error.value) or source in ALIASES
    return str(error.value)


def test_a_model_comes_from_the_hub_and_then_from_the_cache(hub, folders, monkeypatch):
    local = Encoder.load(folders["ViT"][0], device="cpu", dtype="float32")
    fetched = Encoder.load("who/vit", device="cpu", dtype="float32")
    assert fetched.identity == {**local.identity, "source": "who/vit", "revision": COMMIT}
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(fetched.embed(x), local.embed(x))
    go_offline(monkeypatch)
    hub.asked.clear()
    again = Encoder.load("who/vit", device="cpu", dtype="float32")
    assert again.identity == fetched.identity
    assert hub.asked == []
    by_commit = Encoder.load("who/vit", revision=COMMIT, device="cpu", dtype="float32")
    assert by_commit.identity == fetched.identity


def test_only_what_is_needed_is_fetched(hub, folders, tmp_path):
    folder = shutil.copytree(folders["ViT"][0], tmp_path / "repository")
    for name in ("pytorch_model.bin", "flax_model.msgpack", "model.onnx", "README.md"):
        (folder / name).write_bytes(b"large")
    hub.repositories["who/many"] = folder
    Encoder.load("who/many", device="cpu", dtype="float32")
    fetched = {path.rsplit("/", 1)[-1] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_repository_with_a_bin_alone(hub, folders, tmp_path):
    folder = shutil.copytree(folders["ViT"][0], tmp_path / "repository")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.repositories["who/bin"] = folder
    encoder = Encoder.load("who/bin", device="cpu", dtype="float32")
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(encoder.embed(x), Encoder.load("who/vit", device="cpu", dtype="float32").embed(x))


def test_what_the_hub_refuses(hub, folders):
    hub.repositories["who/gated"] = folders["ViT"][0]
    hub.gated.add("who/gated")
    refused("who/gated", "who/gated is gated: .* ask for it on its page .* 'hf auth login'")
    refused("who/nobody", "there is no model 'who/nobody' on the hub, or it is private and you are not logged in")
    refused("who/vit", "who/vit has no revision 'v9'; leave it out", revision="v9")


def test_a_repository_of_something_else(hub, tmp_path):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "open_clip_config.json").write_text("{}")
    hub.repositories["who/open_clip"] = tmp_path / "open_clip"
    refused("who/open_clip", "has no config.json; it is in the format of open_clip: convert it with 'crovca convert")


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    refused("who/vit", "who/vit is not in the local cache, and the hub cannot be reached .*onnect.*check the network")
    go_offline(monkeypatch)
    refused("who/vit", "who/vit at revision 'v2' is not in the local cache, and HF_HUB_OFFLINE", revision="v2")


def made(kind):
    """An exception of huggingface_hub as it is raised, whatever its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error.\n\nRequest id 123: many lines\nof text")
    return error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "a/b is gated"),
        ("RepositoryNotFoundError", "there is no model 'a/b' on the hub"),
        ("RevisionNotFoundError", "a/b has no revision 'r'"),
        ("LocalEntryNotFoundError", "a/b at revision 'r' is not in the local cache, and the hub cannot be reached"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE forbids to fetch it"),
        ("HfHubHTTPError", "cannot fetch a/b at revision 'r' from the hub: HfHubHTTPError: 401 Client"),
        ("EntryNotFoundError", "cannot fetch a/b at revision 'r' from the hub"),
        ("OSError", "cannot fetch a/b at revision 'r' from the hub: OSError"),
        ("TimeoutError", "the hub cannot be reached"),
    ],
)
def test_every_error_of_the_hub_is_one_line(monkeypatch, name, message):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    builtin = {"OSError": OSError, "TimeoutError": TimeoutError}
    kind = builtin.get(name) or getattr(huggingface_hub.errors, name)

    def fail(*arguments, **options):
        raise made(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(EncoderError, match=message) as error:
        locate("a/b", "r")
    assert len(str(error.value).splitlines()) == 1


def test_a_gated_short_name_says_how(monkeypatch):
    def fail(*arguments, **options):
        raise made(huggingface_hub.errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(EncoderError, match=r"facebook/dinov3-vitb16-pretrain-lvd1689m is gated: .* ask for access"):
        locate("dinov3-b")


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_short_names_lead_somewhere(name, monkeypatch, tmp_path):
    alias = ALIASES[name]
    if alias.hub_id is None:
        with pytest.raises(
            ConfigError, match=f"the encoder '{name}' has no weights that .*crovca convert .* -o {name}"
        ):
            locate(name)
        return
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda id_, **options: asked.append(id_) or str(tmp_path))
    assert locate(name).name == alias.hub_id
    assert set(asked) == {alias.hub_id}


def test_the_table_of_the_paper_has_short_names():
    assert {"simdinov2", "dinov2", "dinov3-s", "dinov3-b", "dinov3-l", "dfn-b", "dfn-l", "swag", "deit"} <= set(ALIASES)


def test_a_folder_goes_before_a_short_name(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["ViT"][0], tmp_path / "deit")
    monkeypatch.chdir(tmp_path)
    assert Encoder.load("deit", device="cpu", dtype="float32").identity["source"] == "deit"


def test_paths_that_are_no_model(tmp_path, folders):
    refused(str(tmp_path / "none"), "there is no folder '.*none'; expected a model's folder", ConfigError)
    refused("./none", "there is no folder './none'", ConfigError)
    refused("no-such-name", "there is no folder 'no-such-name' .* the short names are .*dinov2", ConfigError)
    refused("a/b/c", "'a/b/c' is neither a folder nor an id of the hub", ConfigError)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    refused(str(file), "is a file; give a folder .* 'crovca convert'", ConfigError)
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "it has no config.json, it is empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(str(tmp_path / "empty"), "it has no config.json, only a LoRA adapter")
    with pytest.raises(ConfigError, match="is a local folder, which has no revision 'main'; leave it out"):
        Encoder.load(folders["ViT"][0], revision="main")
    with pytest.raises(CrovcaError, match="the encoder's name is empty"):
        Encoder.load("")
