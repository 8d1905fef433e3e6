"""Towers give the embedding that the family's model defines, whatever the batch; damaged ones are refused."""

import importlib.util
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from crovca.encoders import encoder as module
from crovca.encoders.encoder import Encoder, TextEncoder, choose_dtype
from crovca.encoders.families import FAMILIES, lora_targets
from crovca.encoders.library import quiet
from crovca.errors import ConfigError, CrovcaError, EncoderError, FileFormatError, InvalidInputError
from crovca.files import sha256
from tests.encoders import tiny
from tests.started import ended

transformers = pytest.importorskip("transformers")

NAMES = [*(family.name for family in FAMILIES), "other"]


def load(folder, kind=Encoder, **options):
    return kind.load(folder, **{"device": "cpu", "dtype": "float32", **options})


def pixels(encoder, n=5):
    return torch.randn(n, 3, *encoder.preprocessing.size, generator=torch.Generator().manual_seed(1))


def whole_model(folder):
    """The model as transformers loads it on its own, both towers."""
    with quiet():
        return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.fixture
def vit(folders, tmp_path):
    """A copy of a ViT's folder, to be damaged."""
    return shutil.copytree(folders["ViT"][0], tmp_path / "vit")


# What each family's embedding is, written out by hand.
EMBEDDINGS = {
    "CLIP": lambda m, x: m.visual_projection(m.vision_model(pixel_values=x).pooler_output),
    "SigLIP": lambda m, x: m.vision_model(pixel_values=x).pooler_output,
    "DeiT": lambda m, x: m(pixel_values=x).last_hidden_state[:, 0],
    "ViT": lambda m, x: m(pixel_values=x).last_hidden_state[:, 0],
    "DINOv2": lambda m, x: m(pixel_values=x).last_hidden_state[:, 0],
    "DINOv2 with registers": lambda m, x: m(pixel_values=x).last_hidden_state[:, 0],
    "DINOv3 ViT": lambda m, x: m(pixel_values=x).last_hidden_state[:, 0],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_is_the_familys(folders, name):
    folder, width = folders[name]
    encoder = load(folder)
    assert encoder.family.name == name
    assert encoder.width == width
    x = pixels(encoder)
    found = encoder.embed(x)
    assert found.shape == (5, width)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    take = EMBEDDINGS.get(name, lambda m, x: m(pixel_values=x).pooler_output.reshape(5, -1))
    with torch.no_grad():
        expected = take(whole_model(folder), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-3  # and differs between images
    assert (found[0] - found[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_and_threads_do_not_matter(folders, name):
    encoder = load(folders[name][0])
    x = pixels(encoder, 7)
    together = encoder.embed(x)
    alone = torch.cat([encoder.embed(x[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together, encoder.embed(x))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.testing.assert_close(together, encoder.embed(x), rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    contiguous = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(together, encoder.embed(contiguous), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_frozen_and_in_evaluation_mode(folders, name):
    encoder = load(folders[name][0])
    assert not any(module_.training for module_ in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    if name in ("CLIP", "SigLIP"):  # a pattern for LoRA must not find the text tower
        assert not any("text" in key for key, _ in encoder.model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(folders, name, dtype):
    if name == "other" and dtype == "float16":
        pytest.skip("one half-precision run of a convolutional model is enough")
    encoder = load(folders[name][0])
    half = load(folders[name][0], dtype=dtype)
    assert half.dtype == getattr(torch, dtype)
    assert {p.dtype for p in half.model.parameters()} == {half.dtype}
    if name == "DINOv3 ViT":  # of the rotary position embedding
        assert {buffer.dtype for buffer in half.model.buffers()} == {torch.float32}
    assert not any(p.requires_grad for p in half.model.parameters())
    x = pixels(encoder)
    found = half.embed(x)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, encoder.embed(x)).min() > 0.98


def test_identity(folders):
    folder = folders["ViT"][0]
    encoder = load(folder)
    assert encoder.identity == {
        "source": str(folder),
        "revision": None,
        "family": "ViT",
        "output": "cls",
        "weights_sha256": sha256(folder / "model.safetensors"),
    }


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3, 27, 28),
        torch.zeros(3, 28, 28),
        torch.zeros(1, 28, 28, 3),
        torch.zeros(1, 3, 28, 28, dtype=torch.uint8),
    ],
)
def test_other_pixels_are_refused(folders, x):
    encoder = load(folders["ViT"][0])
    with pytest.raises(InvalidInputError, match=r"takes floats \(B, 3, 28, 28\), got .*; prepare images with"):
        encoder.embed(x)


def test_numbers_that_are_not_finite_are_refused(folders):
    encoder = load(folders["ViT"][0])
    with pytest.raises(EncoderError, match="gave an embedding that is not finite in float32"):
        encoder.embed(torch.full((1, 3, 28, 28), torch.nan))


def test_an_empty_batch(folders):
    assert load(folders["DINOv2"][0]).embed(torch.zeros(0, 3, 28, 28)).shape == (0, 32)


# LoRA


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks for it
@pytest.mark.parametrize("name", NAMES)
def test_lora_finds_its_layers_and_trains_only_itself(folders, name):
    peft = pytest.importorskip("peft")
    encoder = load(folders[name][0])
    x = pixels(encoder)
    before = encoder.embed(x)
    targets = lora_targets(encoder.model, encoder.family.lora)
    layers = {"MobileNetV2": 34, "DINOv3 ConvNeXt": 8, "other": 8}.get(name, 4)  # two layers, query and value
    assert len(targets) == layers
    encoder.model = peft.get_peft_model(
        encoder.model, peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=True)
    ).eval()
    torch.testing.assert_close(encoder.embed(x), before, rtol=1e-5, atol=1e-6)
    encoder.forward(x).square().sum().backward()
    trained = {key for key, p in encoder.model.named_parameters() if p.requires_grad}
    assert all("lora_" in key for key in trained)
    assert len(trained) == 2 * layers
    with_gradient = {key for key, p in encoder.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {key for key in trained if "lora_B" in key} == with_gradient  # A has none while B is 0


def test_both_generations_of_names_are_targets():
    class Attention(torch.nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in names:
                self.add_module(name, torch.nn.Linear(2, 2))

    old = torch.nn.Sequential(Attention("query", "key", "value", "dense"))
    new = torch.nn.Sequential(Attention("q_proj", "k_proj", "v_proj", "o_proj"))
    patterns = FAMILIES[0].lora
    assert lora_targets(old, patterns) == ["0.query", "0.value"]
    assert lora_targets(new, patterns) == ["0.q_proj", "0.v_proj"]


def test_lora_targets_that_match_nothing_are_an_error(folders):
    model = load(folders["DINOv3 ConvNeXt"][0]).model
    with pytest.raises(ConfigError, match=r"no layer of DINOv3ConvNextModel matches .*called .*pointwise_conv1"):
        lora_targets(model, ["q_proj"])
    with pytest.raises(ConfigError, match="must be regular expressions"):
        lora_targets(model, ["(q"])


# Files


def test_weights_in_a_bin_and_in_parts(folders, vit, tmp_path):
    expected = load(vit)
    x = pixels(expected)
    state = load_file(vit / "model.safetensors")
    (vit / "model.safetensors").unlink()
    torch.save(state, vit / "pytorch_model.bin")
    assert torch.equal(load(vit).embed(x), expected.embed(x))

    with quiet():
        whole = transformers.ViTModel.from_pretrained(folders["ViT"][0], add_pooling_layer=False)
        whole.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    shutil.copy(vit / "preprocessor_config.json", tmp_path / "parts")
    found = load(tmp_path / "parts")
    assert torch.equal(found.embed(x), expected.embed(x))
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    assert len(found.identity["weights_sha256"]) == 64
    next((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(FileFormatError, match=r"model.safetensors.index.json names 'model-.*' ?.*, which is not in"):
        load(tmp_path / "parts")


def test_a_bin_is_never_unpickled(vit, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (vit / "model.safetensors").unlink()
    torch.save({"weights": Evil()}, vit / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(FileFormatError, match="its weights cannot be read"):
        load(vit)
    assert not (tmp_path / "ran").exists()


def change_config(folder, **values):
    content = json.loads((folder / "config.json").read_text())
    content.update(values)
    (folder / "config.json").write_text(json.dumps(content))


def without_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.attention.attention.query.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(file, share=0.5):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def as_bin(folder, share=1.0):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    truncate(folder / "pytorch_model.bin", share)


DAMAGE = {
    "missing tensor": (without_a_tensor, r"1 weights of ViTModel are not in its files, as '.*1.attention.*weight'"),
    "one layer more": (lambda f: change_config(f, num_hidden_layers=3), r"weights of ViTModel are not in its files"),
    "wider": (lambda f: change_config(f, intermediate_size=48), "do not belong together"),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "its weights cannot be read .*; they may be truncated"),
    "empty": (lambda f: truncate(f / "model.safetensors", 0), "its weights cannot be read"),
    "truncated bin": (lambda f: as_bin(f, 0.6), "its weights cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights: expected model.safetensors or"),
    "no config": (lambda f: (f / "config.json").unlink(), "is no model of transformers: it has no config.json$"),
    "broken config": (lambda f: truncate(f / "config.json"), "is not valid JSON"),
    "no type": (lambda f: change_config(f, model_type=None), "config.json has no model_type; expected a model"),
    "timm": (lambda f: change_config(f, model_type=None, architecture="vit_base"), "a timm model, which crovca does"),
    "newer type": (lambda f: change_config(f, model_type="dinov9"), "cannot read its config.json .*pip install -U"),
    "no preprocessor": (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_config.json, which"),
    "another size": (lambda f: change_config(f, image_size=56), "says images of 56 x 56, preprocessor_config"),
    "four channels": (lambda f: change_config(f, num_channels=4), "takes images of 4 channels"),
    "NaFlex": (lambda f: change_config(f, model_type="siglip2"), "NaFlex models take patches"),
    "text tower": (lambda f: change_config(f, model_type="clip_text_model"), "is the text tower of CLIP"),
    "another pair": (lambda f: change_config(f, model_type="blip", vision_config={}), "several towers in a way that"),
    "heads": (lambda f: change_config(f, num_attention_heads=5), "its weights are of other shapes than"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_loaded_is_refused_in_one_line(vit, name, capfd):
    damage, message = DAMAGE[name]
    damage(vit)
    with pytest.raises(CrovcaError, match=message) as error:
        load(vit)
    assert len(str(error.value).splitlines()) == 1
    assert str(vit) in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_loading_is_silent(folders, capfd):
    for name in ("ViT", "CLIP", "other"):
        load(folders[name][0])
    assert capfd.readouterr() == ("", "")


def test_a_model_without_a_pooled_output_is_refused(tmp_path):
    config = transformers.SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4)
    folder = tiny.save(transformers.SegformerModel(config), tmp_path / "segformer", "ViT")
    sizes = {"image_processor_type": "ViTImageProcessor", "size": 64}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    with pytest.raises(EncoderError, match=r"has no pooler_output, so it does not say which .* use a model that pools"):
        load(folder)


def test_a_pooled_output_of_a_grid_is_flattened(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 24], depths=[1, 1, 1, 1])
    encoder = load(tiny.save(transformers.ResNetModel(config), tmp_path / "resnet", "ConvNext"))
    assert encoder.width == 24
    assert encoder.embed(pixels(encoder)).shape == (5, 24)


def test_a_clip_whose_towers_name_another_width(folders, tmp_path):
    """Both configs of the towers may hold the default of 512: that of the pair counts."""
    config = json.loads((folders["CLIP"][0] / "config.json").read_text())
    assert config["vision_config"].get("projection_dim") != config["projection_dim"]
    assert load(folders["CLIP"][0]).width == config["projection_dim"] == 8


def test_an_image_tower_alone(folders, tmp_path):
    with quiet():
        tower = transformers.CLIPVisionModelWithProjection.from_pretrained(
            folders["CLIP"][0], config=load(folders["CLIP"][0]).model.config
        )
        tower.save_pretrained(tmp_path / "tower")
    shutil.copy(folders["CLIP"][0] / "preprocessor_config.json", tmp_path / "tower")
    encoder, whole = load(tmp_path / "tower"), load(folders["CLIP"][0])
    x = pixels(encoder)
    assert torch.equal(encoder.embed(x), whole.embed(x))


# Texts

TEXTS = ["a", "a cat and dogs", "", "the same text but much longer than twelve tokens", "Zebra"]


def test_clip_texts_are_projected(folders):
    folder = folders["CLIP"][0]
    encoder = load(folder, TextEncoder)
    found = encoder.embed(TEXTS)
    assert encoder.width == 8
    assert encoder.max_tokens == 12
    assert encoder.identity["family"] == "CLIP text"
    model, tokenizer = whole_model(folder), encoder.tokenizer
    with torch.no_grad():
        for text, row in zip(TEXTS, found, strict=True):
            tokens = tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
            assert tokens["input_ids"].shape[1] <= 12
            pooled = model.text_model(input_ids=tokens["input_ids"]).pooler_output
            torch.testing.assert_close(row, model.text_projection(pooled)[0], rtol=1e-4, atol=1e-5)


def test_siglip_texts_are_padded_to_the_end_and_lower_case(folders):
    folder = folders["SigLIP"][0]
    encoder = load(folder, TextEncoder)
    model = whole_model(folder)
    ids = torch.tensor([[2, 4, 5, 3, *[0] * 8]])
    with torch.no_grad():
        expected = model.text_model(input_ids=ids).pooler_output
    torch.testing.assert_close(encoder.embed(["ONE two", "three"])[:1], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=9,
        max_position_embeddings=10,
    )  # fmt: skip
    folder = tiny.save(transformers.BertModel(config), tmp_path_factory.mktemp("text") / "bert")
    tiny.word_tokenizer(folder, limit=None)
    return folder


def test_other_texts_are_mean_pooled_over_their_tokens(bert):
    encoder = load(bert, TextEncoder)
    assert encoder.width == 16
    assert encoder.max_tokens == 10  # the model's, as the tokenizer names none
    texts = ["one two three", "four", "", " ".join(["five"] * 40)]
    rows = [[2, 4, 5, 6, 3], [2, 7, 3], [2, 3], [2, *[8] * 8, 3]]
    model = whole_model(bert)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in rows]
    torch.testing.assert_close(encoder.embed(texts), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert encoder.identity["output"] == "mean"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_texts_in_half_precision_are_near(folders, bert, dtype):
    for folder in (folders["CLIP"][0], folders["SigLIP"][0], bert):
        found = load(folder, TextEncoder, dtype=dtype).embed(["one two", "five"])
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, load(folder, TextEncoder).embed(["one two", "five"])).min() > 0.98


def test_lora_targets_of_text_towers(folders, bert):
    for folder in (folders["CLIP"][0], folders["SigLIP"][0], bert):
        encoder = load(folder, TextEncoder)
        assert len(lora_targets(encoder.model, encoder.tower.lora)) == 4


def test_positions_of_roberta_begin_at_two(tmp_path):
    config = transformers.RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9,
        max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    folder = tiny.save(transformers.RobertaModel(config), tmp_path / "roberta")
    tiny.word_tokenizer(folder, limit=None)
    encoder = load(folder, TextEncoder)
    assert encoder.max_tokens == 10
    assert encoder.embed(["one " * 99]).shape == (1, 16)


def test_the_encoder_half_of_a_t5(tmp_path):
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=9, decoder_start_token_id=0
    )
    folder = tiny.save(transformers.T5Model(config), tmp_path / "t5")
    tiny.word_tokenizer(folder)
    assert load(folder, TextEncoder).embed(["one", "two three"]).shape == (2, 16)


def test_texts_that_are_none(folders, bert):
    encoder = load(bert, TextEncoder)
    assert encoder.embed([]).shape == (0, 16)
    for wrong in ("one", [1, 2], [None]):
        with pytest.raises(InvalidInputError, match="texts must be a list of strings"):
            encoder.embed(wrong)
    with pytest.raises(EncoderError, match="is a ViT, which takes images; texts need a text encoder"):
        load(folders["ViT"][0], TextEncoder)


def test_a_text_encoder_without_a_tokenizer(folders, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileFormatError, match="its tokenizer cannot be loaded"):
        load(folder, TextEncoder)
    tiny.word_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FileFormatError, match="has no padding token"):
        load(folder, TextEncoder)


# Devices and the libraries


def test_devices_and_dtypes_that_are_not_there(folders):
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        load(folders["ViT"][0], device="tpu")
    with pytest.raises(ConfigError, match="there is no device 'cuda:77'"):
        load(folders["ViT"][0], device="cuda:77")
    with pytest.raises(ConfigError, match=r"dtype must be 'auto' or one of .*got 'int8'"):
        load(folders["ViT"][0], dtype="int8")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512f avx512_bf16", torch.bfloat16), ("fpu amx_bf16", torch.bfloat16), ("fpu avx512f", torch.float32)],
)
def test_auto_takes_bfloat16_where_the_processor_has_it(tmp_path, monkeypatch, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    found = module._cpu_has_bfloat16(tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "_cpu_has_bfloat16", lambda: found)
    assert choose_dtype("auto", torch.device("cpu")) is expected


def test_a_system_without_cpuinfo_has_no_fast_bfloat16(tmp_path):
    assert not module._cpu_has_bfloat16(tmp_path / "none")


BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"
LOAD = "from crovca.encoders.encoder import Encoder\nfrom crovca.errors import EncoderError\n"


def run_with(tmp_path, package, content, code):
    """Run it where a package of this content is installed: (status, standard output, errors)."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(content)
    information = tmp_path / f"{package}-0.99.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.99.0\n")
    return run(tmp_path, code)


def run(folder, code):
    """A process that has imported torch, and not yet transformers; ``folder`` is its first place for packages."""
    script = folder / "script.py"
    script.write_text(f"import sys; assert 'transformers' not in sys.modules\n{code}")
    return ended([script], cwd=folder, forget=("crovca", "transformers", "peft"))


@pytest.mark.starts
def test_a_broken_torchvision_is_named(folders, tmp_path):
    """Where it stops transformers, the message says so; where it does not, nothing is wrong."""
    code = f"{LOAD}try:\n    Encoder.load({str(folders['ViT'][0])!r}, device='cpu')\n    print('loaded')\n"
    code += "except EncoderError as error:\n    print(error)\n"
    status, said, errors = run_with(tmp_path, "torchvision", BROKEN, code)
    assert (status, errors) == (0, "")
    (line,) = said.splitlines()
    assert line == "loaded" or "the installed torchvision does not work" in line


@pytest.mark.starts
def test_a_torchvision_that_stops_transformers_is_named(folders, tmp_path):
    """As in versions of transformers that import it at once."""
    code = f"""{LOAD}
import transformers, types
class Lazy(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        import torchvision
for name in ("AutoConfig", "ViTModel"):
    setattr(transformers, name, property())
from crovca.encoders import library
lazy = Lazy("transformers"); lazy.__version__ = "5"
library.transformers = lambda: lazy
try:
    Encoder.load({str(folders["ViT"][0])!r}, device="cpu")
except EncoderError as error:
    print(error)
"""
    _, said, _ = run_with(tmp_path, "torchvision", BROKEN, code)
    (line,) = said.splitlines()
    assert "the installed torchvision does not work with torch" in line
    assert "operator torchvision::nms does not exist" in line
    assert "pip uninstall torchvision" in line


@pytest.mark.parametrize("package", ["transformers"])
@pytest.mark.starts
def test_a_library_that_does_not_import(folders, tmp_path, package):
    code = f"{LOAD}try:\n    Encoder.load({str(folders['ViT'][0])!r}, device='cpu')\n"
    code += "except EncoderError as error:\n    print(error)\n"
    _, said, errors = run_with(tmp_path, package, "raise ValueError('half installed')\n", code)
    assert said == f"{package} is installed but does not import (half installed); reinstall it\n", errors


def test_a_library_that_is_absent(folders, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else real(name))
    with pytest.raises(ImportError, match=r"needs the package 'transformers'.*pip install 'crovca\[images\]'"):
        load(folders["ViT"][0])


@pytest.mark.starts
def test_nothing_of_torchvision_timm_or_open_clip_is_imported(folders, tmp_path):
    code = (
        f"{LOAD}import sys\nEncoder.load({str(folders['CLIP'][0])!r}, device='cpu')\n"
        "sys.exit(bool({'torchvision', 'timm', 'open_clip'} & set(sys.modules)))"
    )
    status, _, errors = run(tmp_path, code)
    assert status == 0, errors


# Real weights and photographs

RECIPE = [("float32", 0.99, 0.97), ("bfloat16", 0.999, 0.99)]


@pytest.mark.parametrize(("dtype", "median", "least"), RECIPE)
def test_stored_embeddings_of_real_photographs(shared, dtype, median, least):
    """The stored ones were computed in bfloat16, the longer side rounded to nearest."""
    from dataclasses import replace

    from PIL import Image

    stored = np.load(shared / "data" / "caltech100" / "mobilenet_v2_query.npz")
    encoder = load(shared / "models" / "mobilenet_v2_1.0_224", dtype=dtype)
    preprocessing = replace(encoder.preprocessing, resize_rounding="nearest")
    rows = np.arange(0, 1000, 25)
    crops = []
    for id_ in stored["ids"][rows]:
        with Image.open(shared / "data" / "caltech100" / "images" / id_) as image:
            crops.append(preprocessing.crop_image(image.convert("RGB")))
    found = encoder.embed(preprocessing.normalize(torch.from_numpy(np.stack(crops))))
    cosine = torch.cosine_similarity(found, torch.from_numpy(stored["embeddings"][rows].astype(np.float32)))
    assert cosine.median() > median
    assert cosine.min() > least
