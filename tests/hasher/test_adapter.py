import numpy as np
import pytest
import torch

from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.lora import adapt, checkpoint_gradients
from crovca.errors import ConfigError
from tests.encoders import tiny


def load(folder, kind=Encoder):
    return kind.load(folder, device="cpu", dtype="float32")


def pixels(encoder, items=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(items, 3, *encoder.preprocessing.size, generator=generator)


def test_adapted_encoder_gives_the_same_embeddings_until_it_learns(encoder):
    plain, adapted = load(encoder), load(encoder)
    adapter = adapt(adapted, rank=4)
    batch = pixels(plain)
    assert torch.equal(plain.embed(batch), adapted.embed(batch))
    with torch.no_grad():
        for parameter in adapter.parameters.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(plain.embed(batch), adapted.embed(batch), atol=1e-3)


def test_lora_is_what_the_paper_says(encoder):
    """Rank = alpha = 16 and dropout 0.1 on queries and values: 4 d r numbers a layer."""
    adapted = load(encoder)
    adapter = adapt(adapted)
    layers = dict(adapted.model.named_modules())
    later = "encoder.layer.0.attention.q_proj" in layers
    names = ("q_proj", "v_proj") if later else ("attention.query", "attention.value")
    assert adapter.targets == tuple(f"encoder.layer.{layer}.attention.{name}" for layer in range(2) for name in names)
    assert sum(parameter.numel() for parameter in adapter.parameters.parameters()) == 2 * 2 * 2 * 32 * 16
    layer = adapted.model.get_submodule(adapter.targets[0])
    assert layer.scaling == {"default": 1.0}
    assert layer.lora_dropout["default"].p == 0.1
    learned = [name for name, _ in adapter.parameters.named_parameters()]
    assert learned[0] == f"encoder.layer.0.attention.{names[0]}.lora_A.weight"


def test_only_the_adapter_gets_gradients(encoder):
    adapted = load(encoder)
    adapter = adapt(adapted, rank=2)
    adapted.forward(pixels(adapted)).square().sum().backward()
    with_gradient = {id(p) for p in adapted.model.parameters() if p.grad is not None}
    learned = {id(p) for p in adapter.parameters.parameters()}
    assert with_gradient == learned
    assert {id(p) for p in adapted.model.parameters() if p.requires_grad} == learned


def test_training_mode_switches_the_dropout_of_lora_alone(encoder):
    adapted = load(encoder)
    adapter = adapt(adapted, rank=2, dropout=0.5)
    with torch.no_grad():
        for parameter in adapter.parameters.parameters():
            parameter.add_(0.1)
    batch = pixels(adapted)
    adapter.train()
    assert not torch.equal(adapted.embed(batch), adapted.embed(batch))
    assert {name.split(".")[-2] for name, module in adapted.model.named_modules() if module.training} == {
        "lora_dropout"
    }
    adapter.train(False)
    assert torch.equal(adapted.embed(batch), adapted.embed(batch))


def test_initial_weights_come_from_the_seed_and_leave_other_chance_alone(encoder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (
        torch.cat([p.flatten() for p in adapt(load(encoder), seed=seed).parameters.parameters()]) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_every_family_can_be_adapted(tmp_path):
    for name, (model, processor, _) in tiny.models().items():
        adapted = load(tiny.save(model, tmp_path / name.replace(" ", "_"), processor))
        before = adapted.embed(pixels(adapted))
        adapter = adapt(adapted, rank=2)
        torch.testing.assert_close(adapted.embed(pixels(adapted)), before, msg=name)
        adapted.forward(pixels(adapted)).sum().backward()
        gradients = [p.grad for n, p in adapter.parameters.named_parameters() if "lora_B" in n]
        assert gradients, name
        assert all(gradient is not None for gradient in gradients), name


def test_text_towers_are_adapted_too(pair):
    adapted = load(pair, TextEncoder)
    before = adapted.embed(["a", "b c"])
    adapter = adapt(adapted, rank=2)
    assert torch.equal(adapted.embed(["a", "b c"]), before)
    assert len(adapter.targets) == 4


def test_what_cannot_be_adapted_says_so(encoder):
    with pytest.raises(ConfigError, match="lora_rank must be a whole number of at least 1, got 0"):
        adapt(load(encoder), rank=0)
    with pytest.raises(ConfigError, match=r"lora_dropout must lie in \[0, 1\), got 1"):
        adapt(load(encoder), dropout=1)
    twice = load(encoder)
    adapt(twice)
    with pytest.raises(ConfigError, match="has LoRA layers already"):
        adapt(twice)
    with pytest.raises(ConfigError, match="cannot be adapted"):
        adapt(load(encoder), targets=["no.such.layer"])


def test_gradient_checkpointing_keeps_less_and_computes_the_same(encoder, tmp_path):
    def gradients(checkpointing):
        adapted = load(encoder)
        adapter = adapt(adapted, rank=2)
        adapter.train()
        torch.manual_seed(3)
        kept = []
        batch = pixels(adapted)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            if checkpointing:
                with checkpoint_gradients(adapted):
                    output = adapted.forward(batch)
                    held = sum(kept)
                    output.square().sum().backward()
            else:
                output = adapted.forward(batch)
                held = sum(kept)
                output.square().sum().backward()
        return [p.grad.numpy() for p in adapter.parameters.parameters()], held

    plain, all_of_it = gradients(False)
    saving, part_of_it = gradients(True)
    assert all(np.array_equal(one, other) for one, other in zip(plain, saving, strict=True))
    assert part_of_it < 0.5 * all_of_it
    mobile = load(tiny.save(tiny.models()["MobileNetV2"][0], tmp_path / "m", "MobileNetV2"))
    with pytest.raises(ConfigError, match="no layers that gradient checkpointing knows"), checkpoint_gradients(mobile):
        pass
