"""Converted weights compute what the source layout computes, written out here in plain torch on random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from crovca.cli.main import main
from crovca.encoders.convert import convert_checkpoint
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.errors import ConfigError, CrovcaError, FileFormatError
from tests.encoders import tiny
from tests.needs import needs

needs("transformers")


def weights(shapes, seed=0):
    """Random tensors; norms near 1, so that nothing vanishes."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=random)
        scale = 0.5 if len(shape) < 2 else 1.5 * (shape[-1] if len(shape) == 2 else shape[1:].numel()) ** -0.5
        state[name] = 1 + 0.3 * tensor if name.endswith(("norm1.weight", "norm2.weight", "gamma")) else scale * tensor
    return state


def shapes(**named):
    return {name: torch.Size(shape) for name, shape in named.items()}


def attention(x, state, qkv, out, heads, mask=None):
    """Fused query, key, value; softmax(q k' / sqrt(d)) v; output projection."""
    n, length, width = x.shape
    fused = x @ state[f"{qkv}weight"].T + state[f"{qkv}bias"]
    query, key, value = (
        part.reshape(n, length, heads, width // heads).transpose(1, 2) for part in fused.split(width, dim=-1)
    )
    scores = query @ key.transpose(-2, -1) / (width // heads) ** 0.5
    if mask is not None:
        scores = scores + mask
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(n, length, width)
    return mixed @ state[f"{out}.weight"].T + state[f"{out}.bias"]


def norm(x, state, name, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def patches_of(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def images(size, n=3):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def block_shapes(prefix, names, width, inner):
    qkv, out, first, second, up, down = names
    found = {}
    for name, shape in ((qkv, (3 * width, width)), (out, (width, width)), (up, (inner, width)), (down, (width, inner))):
        tail = "_" if name.endswith("in_proj") else "."
        found[f"{prefix}{name}{tail}weight"], found[f"{prefix}{name}{tail}bias"] = shape, shape[:1]
    for name in (first, second):
        found[f"{prefix}{name}.weight"] = found[f"{prefix}{name}.bias"] = (width,)
    return found


# SimDINOv2: the layout of github.com/facebookresearch/dinov2


def simdinov2_state(registers=4, layers=4, width=32, chunked=True):
    # A grid of 16 x 16 patches of 14 pixels, so that the size is 224; blocks in chunks of two.
    found = {
        "cls_token": (1, 1, width), "mask_token": (1, width), "pos_embed": (1, 257, width),
        "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    if registers:
        found["register_tokens"] = (1, registers, width)
    names = ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
    for i in range(layers):
        prefix = f"blocks.{i // 2}.{i}." if chunked else f"blocks.{i}."
        found |= block_shapes(prefix, names, width, 4 * width)
        found[f"{prefix}ls1.gamma"] = found[f"{prefix}ls2.gamma"] = (width,)
    return weights(shapes(**found))


def simdinov2_forward(state, x, heads, prefixes):
    tokens = patches_of(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], 1) + state["pos_embed"]
    if "register_tokens" in state:
        registers = state["register_tokens"].expand(len(x), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
    for p in prefixes:
        y = attention(norm(tokens, state, f"{p}norm1", 1e-6), state, f"{p}attn.qkv.", f"{p}attn.proj", heads)
        tokens = tokens + state[f"{p}ls1.gamma"] * y
        y = linear(F.gelu(linear(norm(tokens, state, f"{p}norm2", 1e-6), state, f"{p}mlp.fc1")), state, f"{p}mlp.fc2")
        tokens = tokens + state[f"{p}ls2.gamma"] * y
    return norm(tokens, state, "norm", 1e-6)[:, 0]


def as_teacher(state):
    """As the training code saves it: backbone and heads of the teacher."""
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
    teacher["dino_head.mlp.0.weight"] = torch.zeros(2, 2)
    return {"teacher": teacher}


@pytest.mark.parametrize("registers", [4, 0])
@pytest.mark.parametrize("chunked", [True, False])
def test_simdinov2(tmp_path, registers, chunked):
    state = simdinov2_state(registers, chunked=chunked)
    torch.save(as_teacher(state), tmp_path / "teacher.pth")
    encoder, notes = convert_checkpoint(tmp_path / "teacher.pth", tmp_path / "out", layout="simdinov2", heads=4)
    assert notes == []
    assert encoder.family.name == ("DINOv2 with registers" if registers else "DINOv2")
    x = images(224)
    prefixes = [f"blocks.{i // 2}.{i}." if chunked else f"blocks.{i}." for i in range(4)]
    expected = simdinov2_forward(state, x, 4, prefixes)
    loaded = Encoder.load(tmp_path / "out", device="cpu", dtype="float32")
    torch.testing.assert_close(loaded.embed(x), expected, rtol=1e-4, atol=2e-5)
    assert loaded.identity == encoder.identity
    assert loaded.preprocessing.resize == 256
    assert loaded.preprocessing.crop_rounding == "half_even"


def test_simdinov2_order_of_blocks_beyond_nine(tmp_path):
    """ "blocks.10" comes after "blocks.9", not after "blocks.1"."""
    state = simdinov2_state(layers=12, width=16)
    torch.save(as_teacher(state), tmp_path / "teacher.pth")
    encoder, _ = convert_checkpoint(tmp_path / "teacher.pth", tmp_path / "out", layout="simdinov2", heads=2)
    x = images(224)
    expected = simdinov2_forward(state, x, 2, [f"blocks.{i // 2}.{i}." for i in range(12)])
    torch.testing.assert_close(encoder.embed(x), expected, rtol=1e-4, atol=1e-4)


# torchvision's VisionTransformer


def torchvision_state(size, patch, layers=2, width=32, old=False):
    found = {
        "class_token": (1, 1, width), "conv_proj.weight": (width, 3, patch, patch), "conv_proj.bias": (width,),
        "encoder.pos_embedding": (1, (size // patch) ** 2 + 1, width),
        "encoder.ln.weight": (width,), "encoder.ln.bias": (width,),
        "heads.head.weight": (10, width), "heads.head.bias": (10,),
    }  # fmt: skip
    up, down = ("mlp.linear_1", "mlp.linear_2") if old else ("mlp.0", "mlp.3")
    names = ("self_attention.in_proj", "self_attention.out_proj", "ln_1", "ln_2", up, down)
    for i in range(layers):
        found |= block_shapes(f"encoder.layers.encoder_layer_{i}.", names, width, 2 * width)
    return weights(shapes(**found))


def torchvision_forward(state, x, heads, eps=1e-6, old=False):
    tokens = patches_of(x, state["conv_proj.weight"], state["conv_proj.bias"])
    tokens = torch.cat([state["class_token"].expand(len(x), -1, -1), tokens], 1) + state["encoder.pos_embedding"]
    up, down = ("linear_1", "linear_2") if old else ("0", "3")
    layers = sum(name.endswith("ln_1.weight") for name in state)
    for p in (f"encoder.layers.encoder_layer_{i}." for i in range(layers)):
        y = norm(tokens, state, f"{p}ln_1", eps)
        tokens = tokens + attention(y, state, f"{p}self_attention.in_proj_", f"{p}self_attention.out_proj", heads)
        y = F.gelu(linear(norm(tokens, state, f"{p}ln_2", eps), state, f"{p}mlp.{up}"))
        tokens = tokens + linear(y, state, f"{p}mlp.{down}")
    return norm(tokens, state, "encoder.ln", eps)[:, 0]


@pytest.mark.parametrize(
    ("variant", "size", "resize", "resample", "old"),
    [("imagenet1k_v1", 224, 256, 2, False), ("swag_e2e", 384, 384, 3, False), ("swag_linear", 224, 224, 3, True)],
)
def test_torchvision(tmp_path, variant, size, resize, resample, old):
    state = torchvision_state(size, size // 4, old=old)
    torch.save(state, tmp_path / "vit.pth")
    encoder, _ = convert_checkpoint(
        tmp_path / "vit.pth", tmp_path / "out", layout="torchvision", variant=variant, heads=4
    )
    assert encoder.family.name == "ViT"
    x = images(size)
    expected = torchvision_forward(state, x, 4, old=old)
    loaded = Encoder.load(tmp_path / "out", device="cpu", dtype="float32")
    torch.testing.assert_close(loaded.embed(x), expected, rtol=1e-4, atol=2e-5)
    preprocessing = loaded.preprocessing
    assert (preprocessing.size, preprocessing.resize, preprocessing.resample) == ((size, size), resize, resample)
    assert preprocessing.mean == (0.485, 0.456, 0.406)


def test_the_eps_of_torchvisions_norms_is_kept(tmp_path):
    """On tokens that hardly vary, 1e-6 and the 1e-12 of transformers give different embeddings."""
    state = torchvision_state(224, 56)
    for name in ("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"):
        state[name] *= 1e-3
    torch.save(state, tmp_path / "vit.pth")
    encoder, _ = convert_checkpoint(
        tmp_path / "vit.pth", tmp_path / "out", layout="torchvision", variant="swag_linear", heads=4
    )
    x = images(224)
    found = encoder.embed(x)
    torch.testing.assert_close(found, torchvision_forward(state, x, 4), rtol=1e-3, atol=1e-4)
    assert (found - torchvision_forward(state, x, 4, eps=1e-12)).abs().max() > 1e-2


# open_clip's CLIP


def open_clip_state(width=32, text=16, embed=12, layers=2, size=28, patch=14):
    found = {
        "visual.class_embedding": (width,), "visual.positional_embedding": ((size // patch) ** 2 + 1, width),
        "visual.proj": (width, embed), "visual.conv1.weight": (width, 3, patch, patch),
        "visual.ln_pre.weight": (width,), "visual.ln_pre.bias": (width,),
        "visual.ln_post.weight": (width,), "visual.ln_post.bias": (width,),
        "positional_embedding": (12, text), "text_projection": (text, embed), "token_embedding.weight": (64, text),
        "ln_final.weight": (text,), "ln_final.bias": (text,), "logit_scale": (),
    }  # fmt: skip
    names = ("attn.in_proj", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for i in range(layers):
        found |= block_shapes(f"visual.transformer.resblocks.{i}.", names, width, 4 * width)
        found |= block_shapes(f"transformer.resblocks.{i}.", names, text, 4 * text)
    return weights(shapes(**found))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def resblocks(x, state, prefix, heads, act, mask=None):
    for i in range(sum(name.startswith(prefix) and name.endswith("ln_1.weight") for name in state)):
        p = f"{prefix}.resblocks.{i}."
        y = norm(x, state, f"{p}ln_1", 1e-5)
        x = x + attention(y, state, f"{p}attn.in_proj_", f"{p}attn.out_proj", heads, mask)
        x = x + linear(act(linear(norm(x, state, f"{p}ln_2", 1e-5), state, f"{p}mlp.c_fc")), state, f"{p}mlp.c_proj")
    return x


def open_clip_image(state, x, heads, act):
    tokens = patches_of(x, state["visual.conv1.weight"], None)
    tokens = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), tokens], 1)
    tokens = norm(tokens + state["visual.positional_embedding"], state, "visual.ln_pre", 1e-5)
    tokens = resblocks(tokens, state, "visual.transformer", heads, act)
    return norm(tokens[:, 0], state, "visual.ln_post", 1e-5) @ state["visual.proj"]


def open_clip_text(state, ids, heads, act):
    """Whole context with zeros behind the end, as open_clip's tokenizer gives it; pooled where the id is highest."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    mask = torch.full((12, 12), -torch.inf).triu(1)
    x = norm(resblocks(x, state, "transformer", heads, act, mask), state, "ln_final", 1e-5)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]


def open_clip_folder(folder, state, *, config=True, **model):
    """As on the hub: weights, configuration, tokenizer."""
    folder.mkdir()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    tiny.clip_tokenizer(folder)
    described = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "patch_size": 14, "head_width": 8},
            "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
            **model,
        },
        "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
    }
    if config:
        (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder


IDS = torch.tensor([[62, 27, 63, *[0] * 9], [62, 1, 28, 30, 55, 63, *[0] * 6]])


@pytest.mark.parametrize(
    ("activation", "model", "act"),
    [
        ("auto", {}, F.gelu),
        ("auto", {"quick_gelu": True}, quick_gelu),
        ("quick_gelu", {}, quick_gelu),
        ("gelu", {"quick_gelu": True}, F.gelu),
    ],
)
def test_open_clip_both_towers(tmp_path, activation, model, act):
    state = open_clip_state()
    folder = open_clip_folder(tmp_path / "hub", state, **model)
    encoder, notes = convert_checkpoint(folder, tmp_path / "out", layout="open_clip", activation=activation)
    assert bool(notes) == (activation == "auto" and not model)
    assert all("--activation quick_gelu" in note for note in notes)
    x = images(28)
    assert encoder.family.name == "CLIP"
    loaded = Encoder.load(tmp_path / "out", device="cpu", dtype="float32")
    assert loaded.width == 12
    torch.testing.assert_close(loaded.embed(x), open_clip_image(state, x, 4, act), rtol=1e-4, atol=2e-5)
    other = quick_gelu if act is F.gelu else F.gelu
    assert (loaded.embed(x) - open_clip_image(state, x, 4, other)).abs().max() > 1e-3  # the test sees the difference

    texts = TextEncoder.load(tmp_path / "out", device="cpu", dtype="float32")
    expected = open_clip_text(state, IDS, 2, act)
    with torch.no_grad():
        found = texts.model(input_ids=IDS).text_embeds
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    tokens = texts.tokenizer(["b"], return_tensors="pt")["input_ids"]
    assert tokens.tolist() == [[62, 27, 63]]  # the tokenizer came along: start, "b</w>", end
    torch.testing.assert_close(texts.embed(["b"])[0], expected[0], rtol=1e-4, atol=2e-5)


def test_open_clip_newer_text_tower_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = open_clip_state()
    custom = {
        name if name.startswith(("visual", "logit")) else f"text.{name}": tensor for name, tensor in state.items()
    }
    folder = open_clip_folder(tmp_path / "hub", {}, custom_text=True)
    (folder / "open_clip_pytorch_model.bin").unlink()
    save_file({**custom, "text.attn_mask": torch.zeros(12, 12)}, folder / "open_clip_model.safetensors")
    encoder, _ = convert_checkpoint(folder, tmp_path / "out", layout="open_clip", activation="gelu")
    x = images(28)
    torch.testing.assert_close(encoder.embed(x), open_clip_image(state, x, 4, F.gelu), rtol=1e-4, atol=2e-5)


def test_open_clip_without_its_configuration(tmp_path):
    state = open_clip_state()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "epoch_1.pt")
    encoder, notes = convert_checkpoint(tmp_path / "epoch_1.pt", tmp_path / "out", layout="open_clip", heads=4)
    x = images(28)
    torch.testing.assert_close(encoder.embed(x), open_clip_image(state, x, 4, F.gelu), rtol=1e-4, atol=2e-5)
    assert "there is no open_clip_config.json" in notes[0]


def test_crops_of_the_converted_are_torchvisions(tmp_path):
    """Resized to 28 x 33: the offset is round(2.5) = 2; to 28 x 35: round(3.5) = 4, where transformers takes 3."""
    folder = open_clip_folder(tmp_path / "hub", open_clip_state())
    encoder, _ = convert_checkpoint(folder, tmp_path / "out", layout="open_clip", activation="gelu")
    for width, left in ((33, 2), (35, 4)):
        picture = np.zeros((28, width, 3), np.uint8)
        picture[:, left] = 255
        assert encoder.preprocessing.crop_image(Image.fromarray(picture))[0, 0, 0] == 255


# What is refused


def damaged(kind):
    state = simdinov2_state(layers=2)
    if kind == "missing":
        del state["blocks.0.1.attn.proj.bias"]
    elif kind == "extra":
        state["blocks.0.1.mlp.w12.weight"] = torch.zeros(2, 2)
    elif kind == "shape":
        state["blocks.0.0.ls1.gamma"] = torch.zeros(31)
    elif kind == "gap":
        state = {name.replace("blocks.0.1.", "blocks.0.2."): tensor for name, tensor in state.items()}
    elif kind == "grid":
        state["pos_embed"] = torch.zeros(1, 256, 32)
    elif kind == "heads":
        return state, {"heads": 5}
    return state, {"heads": 4}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "it has no tensor 'blocks.0.1.attn.proj.bias'"),
        ("extra", "1 tensors of this checkpoint of SimDINOv2 are not understood, as 'blocks.0.1.mlp.w12.weight'"),
        ("shape", "'blocks.0.0.ls1.gamma' is 31, expected 32"),
        ("gap", r"its blocks are numbered \[0, 2\], expected 0, 1, 2"),
        ("grid", "255 patches are not a square"),
        ("heads", "5 attention heads do not divide a width of 32"),
    ],
)
def test_a_simdinov2_that_is_not_understood(tmp_path, kind, message):
    state, options = damaged(kind)
    torch.save(as_teacher(state), tmp_path / "teacher.pth")
    with pytest.raises(CrovcaError, match=message):
        convert_checkpoint(tmp_path / "teacher.pth", tmp_path / "out", layout="simdinov2", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize("layout", ["torchvision", "open_clip", "simdinov2"])
@pytest.mark.parametrize("missing", range(0, 40, 3))
def test_every_tensor_is_needed(tmp_path, layout, missing):
    make = {
        "torchvision": lambda: torchvision_state(224, 56), "open_clip": open_clip_state,
        "simdinov2": lambda: simdinov2_state(layers=2),
    }[layout]  # fmt: skip
    state = {name: tensor for name, tensor in make().items() if not name.startswith("heads.")}
    name = sorted(state)[missing % len(state)]
    if name == "register_tokens":
        pytest.skip("a model without registers is a model too")
    del state[name]
    torch.save(state, tmp_path / "file.pth")
    variant = "imagenet1k_v1" if layout == "torchvision" else None
    with pytest.raises(FileFormatError, match=r"no tensor|not understood|blocks are numbered"):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "out", layout=layout, variant=variant, heads=4)
    assert not (tmp_path / "out").exists()


def test_another_variant_of_torchvision(tmp_path):
    torch.save(torchvision_state(224, 56), tmp_path / "vit.pth")
    with pytest.raises(FileFormatError, match="takes images of 224 x 224, the variant 'swag_e2e' of 384 x 384"):
        convert_checkpoint(tmp_path / "vit.pth", tmp_path / "out", layout="torchvision", variant="swag_e2e")
    with pytest.raises(ConfigError, match=r"weights need a variant, one of .*; none was given"):
        convert_checkpoint(tmp_path / "vit.pth", tmp_path / "out", layout="torchvision")
    with pytest.raises(FileFormatError, match="this is no checkpoint of SimDINOv2: it has no tensor 'cls_token'"):
        convert_checkpoint(tmp_path / "vit.pth", tmp_path / "out", layout="simdinov2")


def test_options_that_do_not_go_together(tmp_path):
    torch.save({}, tmp_path / "x.pth")
    for options, message in (
        ({"layout": "timm"}, "layout must be one of"),
        ({"layout": "simdinov2", "variant": "swag_e2e"}, "a variant goes with torchvision's"),
        ({"layout": "torchvision", "activation": "gelu"}, "an activation goes with open_clip's"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="is a folder; give the checkpoint's file"):
        convert_checkpoint(tmp_path, tmp_path / "out", layout="simdinov2")
    with pytest.raises(FileFormatError, match="has no weights of open_clip"):
        convert_checkpoint(tmp_path, tmp_path / "out", layout="open_clip")


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_checkpoints_that_cannot_be_read(tmp_path, capsys):
    file = tmp_path / "x.pth"
    torch.save({"teacher": Evil()}, file)
    with pytest.raises(FileFormatError, match="holds objects other than tensors, which are never unpickled"):
        convert_checkpoint(file, tmp_path / "out", layout="simdinov2")
    assert "unpickled" not in capsys.readouterr().out
    torch.save(simdinov2_state(layers=1), file)
    content = file.read_bytes()
    cuts = [content[: len(content) * part // 8] for part in range(8)]
    for damaged_content in (*cuts, b"not a checkpoint", b"broken", b"\x80\x02"):
        file.write_bytes(damaged_content)
        with pytest.raises(FileFormatError, match=r"x.pth (cannot be read|is no PyTorch file)"):
            convert_checkpoint(file, tmp_path / "out", layout="simdinov2")
    torch.save([1, 2], file)
    with pytest.raises(FileFormatError, match="holds a list, expected a dictionary of tensors"):
        convert_checkpoint(file, tmp_path / "out", layout="simdinov2")
    with pytest.raises(FileFormatError, match=r"none\.pth does not exist"):
        convert_checkpoint(tmp_path / "none.pth", tmp_path / "out", layout="simdinov2")
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(FileFormatError, match=r"x\.safetensors cannot be read"):
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "out", layout="simdinov2")


def test_the_command(tmp_path, capsys):
    folder = open_clip_folder(tmp_path / "hub", open_clip_state())
    out = tmp_path / "dfn-b"
    arguments = ["convert", str(folder), "--from", "open_clip", "-o", str(out)]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--json"])
    assert left.value.code == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["width"] == 12
    assert printed.err.startswith("note: activation: gelu, as open_clip_config.json does not ask for quick_gelu")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--force", "--activation", "quick_gelu"])
    assert left.value.code == 0
    assert capsys.readouterr().err == ""
    assert json.loads((out / "config.json").read_text())["vision_config"]["hidden_act"] == "quick_gelu"
    # A failing conversion leaves the earlier result as it was.
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"broken")
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--force"])
    assert left.value.code == 2
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dfn-b", "hub"]
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main([*arguments, "--force"])
    assert "is a folder of something else" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"
