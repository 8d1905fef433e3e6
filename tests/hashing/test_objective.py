"""Every loss: a naive reference, a symmetry, a hand value, and a direction (collapse scores worse)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crovca.errors import ConfigError
from crovca.hasher import Hasher
from crovca.hashing.config import TrainingConfig
from crovca.hashing.objective import HashObjective, hash_loss
from crovca.hashing.targets import bits_of, other_views_bits
from crovca.hashing.terms.alignment import alignment_per_bit
from crovca.hashing.terms.diversity import coding_rate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses_of(logits, targets, lengths, diversity_weight=0.1):
    """The weighted sum, and the terms."""
    config = TrainingConfig(lengths=lengths, epochs=1, diversity_weight=diversity_weight)
    objective = HashObjective(lambda *_: targets, config)
    terms = objective(logits, torch.arange(logits.shape[1]))
    return hash_loss(terms, objective.weights), terms


def naive_alignment(logits: Tensor) -> float:
    """Mean over ordered pairs of different views, items and bits of BCE(bits of one, sigmoid of the other)."""
    views, items, bits = logits.shape
    total, count = 0.0, 0
    for teacher in range(views):
        for student in range(views):
            if teacher == student:
                continue
            for item in range(items):
                for bit in range(bits):
                    y = 1.0 if logits[teacher, item, bit] > 0 else 0.0
                    p = 1 / (1 + math.exp(-float(logits[student, item, bit])))
                    total -= y * math.log(p) + (1 - y) * math.log(1 - p)
                    count += 1
    return total / count


def naive_coding_rate(logits: Tensor, epsilon: float) -> float:
    """The formula as it is written, with a (b, b) matrix and its determinant in float64."""
    items, bits = logits.shape
    rows = [row / row.norm() for row in logits.double()]
    matrix = torch.eye(bits, dtype=torch.float64)
    for row in rows:
        matrix += bits / (items * epsilon) * torch.outer(row, row)
    return 0.5 * math.log(float(torch.linalg.det(matrix))) * (bits + items) / (bits * items)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_alignment_equals_naive_reference(views):
    logits = normal(views, 5, 3)
    found = alignment_per_bit(logits, other_views_bits(logits)).mean()
    assert float(found) == pytest.approx(naive_alignment(logits), rel=1e-5)


def test_alignment_is_symmetric_in_the_views():
    logits = normal(2, 6, 4)
    swapped = logits.flip(0)
    ours = alignment_per_bit(logits, other_views_bits(logits))
    theirs = alignment_per_bit(swapped, other_views_bits(swapped))
    torch.testing.assert_close(ours, theirs)


def test_alignment_hand_value():
    logits = torch.tensor([[[2.0]], [[-1.0]]])  # the teachers' bits are 1 and 0
    expected = (math.log1p(math.exp(2.0)) + math.log1p(math.exp(1.0))) / 2
    assert float(alignment_per_bit(logits, other_views_bits(logits))) == pytest.approx(expected)


def test_alignment_prefers_agreeing_views():
    logits = normal(1, 8, 4)
    agreeing, opposed = torch.cat([logits, logits]), torch.cat([logits, -logits])
    assert (
        alignment_per_bit(agreeing, other_views_bits(agreeing)).mean()
        < alignment_per_bit(opposed, other_views_bits(opposed)).mean()
    )


def test_teacher_receives_no_gradient():
    logits = normal(2, 3, 4).requires_grad_()
    targets = other_views_bits(logits)
    assert not targets.requires_grad
    alignment_per_bit(logits, targets)[0].backward()
    assert logits.grad is not None
    assert (logits.grad[..., 0] != 0).all()
    assert (logits.grad[..., 1:] == 0).all()


@pytest.mark.parametrize(("items", "bits"), [(7, 3), (3, 7), (5, 5), (2, 1)])
def test_coding_rate_equals_naive_reference(items, bits):
    logits = normal(items, bits)
    assert float(coding_rate(logits, 0.05)) == pytest.approx(naive_coding_rate(logits, 0.05), rel=1e-4)


def test_coding_rate_of_a_batch_of_views_is_that_of_each():
    logits = normal(3, 9, 4)
    torch.testing.assert_close(coding_rate(logits), torch.stack([coding_rate(view) for view in logits]))


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100))
def test_coding_rate_ignores_order_scale_and_rotation(seed, scale):
    logits = normal(8, 4, seed=seed)
    rotation = torch.linalg.qr(normal(4, 4, seed=seed + 1)).Q
    reference = coding_rate(logits)
    for same in (logits.flip(0), logits * scale, logits @ rotation, logits.flip(1)):
        torch.testing.assert_close(coding_rate(same), reference, rtol=1e-3, atol=1e-4)


def test_coding_rate_hand_value():
    # Two orthogonal unit vectors in two dimensions: I + 2/(2 eps) I = (1 + 1/eps) I.
    expected = 0.5 * 2 * math.log(1 + 1 / 0.05) * (2 + 2) / (2 * 2)
    assert float(coding_rate(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))) == pytest.approx(expected)


def test_coding_rate_range_of_the_reference_at_16_bits_and_256_items():
    collapsed = torch.ones(256, 16)
    ideal = torch.eye(16).repeat(16, 1)
    assert float(coding_rate(collapsed)) == pytest.approx(0.19, abs=0.005)
    assert float(coding_rate(ideal)) == pytest.approx(1.62, abs=0.005)


def test_loss_prefers_spread_codes_to_collapsed_ones():
    spread = normal(1, 64, 8).expand(2, -1, -1) * 4
    collapsed = torch.full((2, 64, 8), 4.0)
    (_, spread_terms), (worse, terms) = (
        losses_of(logits, other_views_bits(logits), (8,)) for logits in (spread, collapsed)
    )
    assert spread_terms["diversity"] > terms["diversity"]
    matched = torch.where(spread > 0, 4.0, -4.0)  # as sure as the collapsed ones
    assert losses_of(matched, other_views_bits(matched), (8,))[0] < worse


def test_gradient_pulls_a_nearly_collapsed_batch_apart():
    logits = (torch.ones(32, 4) + 0.01 * normal(32, 4)).requires_grad_()
    before = coding_rate(logits)
    (-before).backward()
    assert logits.grad is not None
    assert coding_rate(logits.detach() - 0.1 * logits.grad / logits.grad.norm()) > before


def test_nested_loss_is_the_mean_over_prefixes_as_codes_of_their_own():
    logits, lengths = normal(2, 10, 8), (2, 5, 8)
    targets = other_views_bits(logits)
    nested, terms = losses_of(logits, targets, lengths, 0.3)
    alone = [losses_of(logits[..., :length], targets[..., :length], (length,), 0.3) for length in lengths]
    torch.testing.assert_close(nested, torch.stack([loss for loss, _ in alone]).mean())
    rates = torch.stack([part["diversity"] for _, part in alone])
    torch.testing.assert_close(terms["diversity"], rates.mean())


def test_loss_is_computed_in_float32():
    logits = normal(2, 16, 4).to(torch.bfloat16)
    loss, _ = losses_of(logits, bits_of(logits), (4,))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, losses_of(logits.float(), bits_of(logits), (4,))[0])


def test_a_new_term_is_named_weighted_and_logged(monkeypatch):
    """Its function, its line in the table, its weight in the configuration: nothing else."""
    from crovca.hashing import objective

    def certainty(batch):
        return batch.logits.abs().mean()

    X = normal(60, 6).numpy()
    with pytest.raises(ConfigError, match="no term 'certainty' of the objective"):
        Hasher(8, faithfulness="kinds", epochs=1, terms={"certainty": 0.5}).fit(X)
    monkeypatch.setattr(objective, "TERMS", {**objective.TERMS, "certainty": certainty})
    plain = Hasher(8, faithfulness="kinds", epochs=3).fit(X).history_[-1]
    added = Hasher(8, faithfulness="kinds", epochs=3, terms={"certainty": 0.5}).fit(X).history_[-1]
    assert list(added) == [*list(plain)[:6], "certainty", *list(plain)[6:]]
    assert added["loss"] == pytest.approx(
        added["alignment"] - 0.1 * added["diversity"] + 0.5 * added["certainty"], rel=1e-5
    )
    assert (
        added["certainty"]
        < Hasher(8, faithfulness="kinds", epochs=3, terms={"certainty": 0.0}).fit(X).history_[-1]["certainty"]
    )
