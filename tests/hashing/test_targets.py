import pytest
import torch

from crovca.hashing.targets import ClassPrototypes, CrossView, move_apart, other_views_bits

ROWS = torch.arange(4)


def test_two_views_teach_each_other():
    logits = torch.tensor([[[1.0, -1.0]], [[-2.0, 3.0]]])
    assert CrossView()(logits, ROWS).tolist() == [[[0.0, 1.0]], [[1.0, 0.0]]]


def test_more_views_average_the_others_bits():
    logits = torch.tensor([[[1.0]], [[1.0]], [[-1.0]]])
    assert other_views_bits(logits).flatten().tolist() == [0.5, 0.5, 1.0]


def test_zero_is_no_one():
    assert other_views_bits(torch.zeros(2, 1, 1)).tolist() == [[[0.0]], [[0.0]]]


def test_batch_prototype_is_the_mean_over_items_and_views():
    classes = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[[3.0], [-1.0], [-5.0], [1.0]], [[1.0], [-1.0], [1.0], [1.0]]])
    teacher = ClassPrototypes(classes, 2, 1, momentum=0.0)
    targets = teacher(logits, ROWS)
    assert teacher.prototypes.flatten().tolist() == [0.5, -0.5]
    assert targets.tolist() == [[[1.0], [1.0], [0.0], [0.0]]] * 2


def test_running_prototype_remembers_earlier_batches():
    teacher = ClassPrototypes(torch.tensor([0, 1, 1, 1]), 3, 1, momentum=0.9)
    teacher(torch.tensor([[[4.0], [1.0]]]), torch.tensor([0, 1]))
    targets = teacher(torch.tensor([[[-1.0], [2.0]]]), torch.tensor([0, 2]))
    assert teacher.prototypes.flatten().tolist() == pytest.approx([0.9 * 4 - 0.1, 0.9 + 0.2, 0.0])
    assert targets.flatten().tolist() == [1.0, 1.0]  # the class's past outweighs one batch
    assert teacher.seen.tolist() == [True, True, False]


def test_items_of_several_classes_are_taught_by_the_mean_of_their_prototypes():
    classes = torch.tensor([[True, False], [False, True], [True, True]])
    teacher = ClassPrototypes(classes, 2, 2, momentum=0.0)
    logits = torch.tensor([[[4.0, -3.0], [-1.0, 1.0], [0.0, 0.0]]])
    targets = teacher(logits, torch.arange(3))
    # prototypes: (4 + 0)/2, (-3 + 0)/2 and (-1 + 0)/2, (1 + 0)/2
    assert teacher.prototypes.tolist() == [[2.0, -1.5], [-0.5, 0.5]]
    assert targets[0].tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]


def test_an_item_without_a_class_is_taught_by_its_other_view():
    classes = torch.tensor([[True, False], [False, False]])
    logits = torch.tensor([[[1.0], [1.0]], [[1.0], [-1.0]]])
    targets = ClassPrototypes(classes, 2, 1, momentum=0.0)(logits, torch.arange(2))
    assert targets[:, 1].flatten().tolist() == [0.0, 1.0]


def test_an_item_without_a_class_and_without_another_view_keeps_its_own_bits():
    classes = torch.tensor([[True, False], [False, False]])
    logits = torch.tensor([[[1.0, 2.0], [1.0, -1.0]]])
    targets = ClassPrototypes(classes, 2, 2, momentum=0.0)(logits, torch.arange(2))
    assert targets[0, 1].tolist() == [1.0, 0.0]


def test_a_class_met_after_settling_is_still_learned():
    teacher = ClassPrototypes(torch.tensor([0, 1]), 2, 8, settle_after=1)
    teacher(torch.ones(1, 1, 8), torch.tensor([0]))
    assert teacher(-torch.ones(1, 1, 8), torch.tensor([1])).sum() == 0
    assert teacher(torch.full((1, 1, 8), 30.0), torch.tensor([1])).sum() == 8
    assert teacher(-torch.ones(1, 1, 8), torch.tensor([0])).sum() == 8  # settled


def test_single_and_multi_hot_labels_agree():
    index = torch.tensor([0, 2, 1, 2])
    hot = torch.nn.functional.one_hot(index, 3).bool()
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    one, other = (ClassPrototypes(classes, 3, 5)(logits, ROWS) for classes in (index, hot))
    assert torch.equal(one, other)


def distances(prototypes):
    bits = (prototypes > 0).int()
    found = (bits[:, None] != bits[None]).sum(dim=2)
    found.fill_diagonal_(99)
    return found


def test_prototypes_are_moved_apart_at_the_least_certain_bits():
    prototypes = torch.tensor([[3.0, 3.0, 3.0, 3.0], [2.0, 2.0, 0.1, 2.0]])
    found = move_apart(prototypes)
    assert (found[0] == prototypes[0]).all()  # the surer class keeps its code
    assert found[1].tolist() == pytest.approx([2.0, 2.0, -0.1, 2.0])


def test_many_classes_in_16_bits_end_four_bits_apart():
    prototypes = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    assert distances(prototypes).min() < 4
    found = move_apart(prototypes)
    assert distances(found).min() >= 4
    assert torch.equal(found.abs(), prototypes.abs().clamp(min=1e-4))
    assert ((found > 0) != (prototypes > 0)).sum(dim=1).max() <= 3


def test_prototypes_that_are_apart_stay_as_they_are():
    prototypes = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    assert distances(prototypes).min() >= 4
    assert torch.equal(move_apart(prototypes), prototypes)


def test_more_classes_than_codes_end_as_far_apart_as_they_can():
    found = move_apart(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))
    assert len({tuple(row) for row in (found > 0).int().tolist()}) >= 14


def test_running_prototypes_settle_once():
    teacher = ClassPrototypes(torch.tensor([0, 1]), 2, 16, settle_after=2)
    logits = torch.ones(1, 2, 16)
    first = teacher(logits, torch.tensor([0, 1]))
    assert torch.equal(first[0, 0], first[0, 1])  # the same code
    settled = teacher(logits, torch.tensor([0, 1]))
    assert (settled[0, 0] != settled[0, 1]).sum() >= 3
    later = teacher(-logits, torch.tensor([0, 1]))
    assert torch.equal(later, settled)


def test_a_settled_teacher_is_restored_settled():
    teacher = ClassPrototypes(torch.tensor([0, 1]), 2, 16, settle_after=1)
    settled = teacher(torch.ones(1, 2, 16), torch.tensor([0, 1]))
    twin = ClassPrototypes(torch.tensor([0, 1]), 2, 16, settle_after=1)
    twin.load_state_dict(teacher.state_dict())
    assert torch.equal(twin(-torch.ones(1, 2, 16), torch.tensor([0, 1])), settled)


def test_what_is_settled_already_is_not_moved_again():
    """More classes than the bits hold apart at ease: moving them once more would change their codes."""
    teacher = ClassPrototypes(torch.arange(200), 200, 16, settle_after=2)
    prototypes = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    teacher.settle(prototypes, torch.ones(200, dtype=torch.bool))
    before = teacher.prototypes.clone()
    for _ in range(3):
        teacher(torch.randn(1, 200, 16), torch.arange(200))
    assert torch.equal(teacher.prototypes, before)
