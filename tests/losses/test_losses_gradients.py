"""Gradients of the six losses: where they flow, where they do not, and that they are the derivatives."""

import pytest
import torch
from helpers.losses_by_hand import (
    HALF,
    PAIRS,
    backward,
    leaf,
    units,
)

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_separated_softmax_sends_nothing_across_groups(dtype):
    groups = torch.tensor([4, 1, 4, -1, 1, 4, 1])  # class ids interleaved, one class in no group
    y = torch.tensor([0, 1, 2, 4, 5, 6, 6])
    _, gradient = backward(lambda x: separated_softmax(x, y, groups), 10 * torch.randn(7, 7).to(dtype))
    own = groups[y][:, None] == groups
    assert (gradient[~own] == 0).all()
    assert (gradient[own] != 0).all()


def test_taskwise_distillation_sends_nothing_to_classes_without_task():
    tasks = torch.tensor([1, -1, 0, 1, 0])
    teacher = torch.randn(4, 5)
    _, gradient = backward(lambda x: taskwise_distillation(x, teacher, tasks), torch.randn(4, 8))
    used = torch.tensor([True, False, True, True, True, False, False, False])
    assert (gradient[:, ~used] == 0).all()
    assert (gradient[:, used] != 0).all()


def test_taskwise_gradient_within_a_task_sums_to_zero():
    # A softmax sees differences only: what one class of a task gains the others lose.
    tasks = torch.tensor([3, 0, 0, 3, 3, 0])
    teacher = torch.randn(5, 6, dtype=torch.float64)
    _, gradient = backward(lambda x: taskwise_distillation(x, teacher, tasks), torch.randn(5, 6, dtype=torch.float64))
    for task in (0, 3):
        assert gradient[:, tasks == task].sum(dim=1).abs().max() < 1e-12


def test_asymmetric_supcon_does_not_see_old_labels():
    z, anchor = units(6, 2, 5), torch.tensor([True, False, True, False, True, False])
    y = torch.tensor([8, 3, 8, 5, 9, 5])
    relabelled = torch.tensor([8, 5, 8, 1, 9, 3])
    value, gradient = backward(lambda x: asymmetric_supcon(x, y, anchor), z)
    again, gradient_again = backward(lambda x: asymmetric_supcon(x, relabelled, anchor), z)
    assert torch.equal(value, again)
    assert torch.equal(gradient, gradient_again)


def test_symmetric_supcon_does_see_old_labels():
    z = units(6, 2, 5)
    value = asymmetric_supcon(z, torch.tensor([8, 3, 8, 5, 9, 5]))
    assert value != asymmetric_supcon(z, torch.tensor([8, 5, 8, 1, 9, 3]))


def test_old_samples_still_repel_anchors():
    z, y, anchor = units(4, 2, 5), torch.tensor([0, 0, 1, 1]), HALF
    _, gradient = backward(lambda x: asymmetric_supcon(x, y, anchor), z)
    assert (gradient[~anchor] != 0).all()


TEACHERS = {
    "relation_distillation": lambda s, t: relation_distillation(s.unflatten(0, (3, 2)), t.unflatten(0, (3, 2))),
    "taskwise_distillation": lambda s, t: taskwise_distillation(s, t, torch.tensor([0, 1, 0, 1])),
    "contrastive_distillation-authors": lambda s, t: contrastive_distillation(s, t, PAIRS[[0, 1, 2, 3, 0, 2]]),
    "contrastive_distillation-paper": lambda s, t: contrastive_distillation(
        s, t, PAIRS[[0, 1, 2, 3, 0, 2]], form="paper"
    ),
}


@pytest.mark.parametrize("loss", TEACHERS.values(), ids=TEACHERS.keys())
def test_teacher_gets_no_gradient(loss):
    student, teacher = leaf(units(6, 4)), leaf(units(6, 4))
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert (student.grad != 0).any()


Y6 = torch.tensor([4, 1, 4, 1, 7, 7])
DIFFERENTIABLE = {
    "supcon": (
        (3, 2, 3),
        lambda x, t: asymmetric_supcon(x, torch.tensor([5, 2, 5]), torch.tensor([True, False, True])),
    ),
    "supcon-base-all": (
        (3, 3, 2),
        lambda x, t: asymmetric_supcon(x, torch.tensor([5, 2, 5]), base_temperature=0.07, reduction="all"),
    ),
    "supcon-sum": ((2, 2, 3), lambda x, t: asymmetric_supcon(x, torch.tensor([0, 1]), reduction="sum")),
    "relation": ((3, 2, 3), lambda x, t: relation_distillation(x, t, teacher_temperature=0.3)),
    "separated": ((6, 8), lambda x, t: separated_softmax(x, Y6, torch.tensor([0, 9, 0, -1, 9, 0, 9, 0]))),
    "taskwise": ((4, 6), lambda x, t: taskwise_distillation(x, t[:, :5], torch.tensor([3, 0, 3, -1, 0]))),
    "contrastive": ((6, 3), lambda x, t: contrastive_distillation(x, t, Y6, temperature=0.3)),
    "contrastive-paper": ((6, 3), lambda x, t: contrastive_distillation(x, t, Y6, temperature=0.3, form="paper")),
    "contrastive-raw": ((6, 3), lambda x, t: contrastive_distillation(x, t, Y6, temperature=1.0, normalize=False)),
    "triplet": ((6, 3), lambda x, t: batch_hard_triplet(x, Y6)),
}


@pytest.mark.parametrize(("shape", "loss"), DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_gradient_is_the_derivative(shape, loss):
    teacher = units(*shape)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), (leaf(units(*shape)),))
