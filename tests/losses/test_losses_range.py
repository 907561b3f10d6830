"""Inputs near the ends of what a type can hold: values and gradients are finite, and right where they can be."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from helpers.losses_by_hand import HALF, backward, units

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)

Y8 = torch.tensor([0, 0, 1, 1, 2, 2, 0, 5])
GROUPS = torch.tensor([0, 1, 1, 0])


def supcon_cases():
    options = itertools.product(["anchors", "all", "sum"], [None, 0.07, 1e-6], [0.01, 0.5, 100.0], [None, HALF])
    for reduction, base, temperature, anchor in options:
        yield lambda s, t, r=reduction, b=base, k=temperature, a=anchor: asymmetric_supcon(
            s.unflatten(0, (4, 2)), Y8[::2], a, temperature=k, base_temperature=b, reduction=r
        )


def relation_cases():
    for temperature, teacher in itertools.product([0.01, 0.2, 50.0], [0.001, 0.01, 1.0]):
        yield lambda s, t, k=temperature, q=teacher: relation_distillation(
            s.unflatten(0, (4, 2)), t.unflatten(0, (4, 2)), temperature=k, teacher_temperature=q
        )


def contrastive_cases():
    for temperature, form, unit in itertools.product([0.01, 0.07, 1.0], ["authors", "paper"], [True, False]):
        yield lambda s, t, k=temperature, f=form, u=unit: contrastive_distillation(
            s, t, Y8, temperature=k, form=f, normalize=u
        )


CASES = {
    "supcon": list(supcon_cases()),
    "relation": list(relation_cases()),
    "contrastive": list(contrastive_cases()),
    "triplet": [lambda s, t, m=margin: batch_hard_triplet(s, Y8, margin=m) for margin in (0.0, 1.0, 1e4)],
    "separated": [lambda s, t: separated_softmax(s, Y8 % 4, GROUPS)],
    "taskwise": [lambda s, t, k=t: taskwise_distillation(s, t, GROUPS, temperature=k) for t in (0.01, 2.0, 1e3)],
}
SCALES = {
    torch.float16: [1e-6, 1e-3, 1.0, 1e4, 3e4],
    torch.bfloat16: [1e-35, 1e-20, 1e-6, 1.0, 1e4, 1e13],
    torch.float32: [1e-42, 1e-35, 1e-20, 1e-6, 1.0, 1e4, 1e13],
}
TYPES = pytest.mark.parametrize("dtype", SCALES, ids=str)


def shapes():
    """Rows (8, 4) of length one, or all but the first."""
    torch.manual_seed(0)
    rows = units(8, 4)
    direction = F.normalize(torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64), dim=0)
    yield from (rows, direction.expand(8, 4), torch.eye(4, dtype=torch.float64).repeat(2, 1))
    yield from (torch.cat([first * rows[:1], rows[1:]]) for first in (1e4, 1e-6, 0.0))


@TYPES
@pytest.mark.parametrize("name", CASES)
def test_every_gradient_is_finite(name, dtype):
    scales = SCALES[dtype]
    count = 0
    for rows, scale, teacher, far in itertools.product(shapes(), scales, shapes(), (1.0, scales[0], scales[-1])):
        x, other = (rows * scale).to(dtype), (teacher * far).to(dtype)
        if not (x.isfinite().all() and other.isfinite().all()):
            continue
        for loss in random.sample(CASES[name], min(3, len(CASES[name]))):
            value, gradient = backward(lambda s, loss=loss, other=other: loss(s, other), x)
            assert value.isfinite(), (scale, far)
            assert gradient.isfinite().all(), (scale, far)
            assert gradient.dtype == dtype
            count += 1
    assert count > 300


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", ["triplet", "contrastive", "contrastive-paper"])
def test_a_float16_gradient_is_the_right_one_or_the_largest_number(name, scale):
    losses = {
        "triplet": lambda s: batch_hard_triplet(s, Y8),
        "contrastive": lambda s: contrastive_distillation(s, s.detach().roll(1, 0), Y8),
        "contrastive-paper": lambda s: contrastive_distillation(s, s.detach().roll(1, 0), Y8, form="paper"),
    }
    x = (units(8, 4) * scale).half()
    _, found = backward(losses[name], x)
    _, exact = backward(losses[name], x.double())
    largest = torch.finfo(torch.float16).max
    assert (exact.abs().max() > largest) == (scale == 1e-6)
    torch.testing.assert_close(found.double(), exact.clamp(-largest, largest), rtol=2e-3, atol=1e-6)


def test_a_scale_on_top_of_the_loss_may_overflow():
    # torch.amp.GradScaler finds its scale by overflows: to cut them as well would starve the other gradients.
    x = (1e-6 * units(8, 4)).half().requires_grad_()
    (2.0**4 * batch_hard_triplet(x, Y8)).backward()
    assert x.grad.isinf().any()
    mild = units(8, 4).half().requires_grad_()
    (2.0**10 * batch_hard_triplet(mild, Y8)).backward()
    _, once = backward(lambda s: batch_hard_triplet(s, Y8), mild)
    torch.testing.assert_close(mild.grad, once * 2**10, rtol=1e-3, atol=1e-3)


def test_a_half_precision_gradient_may_be_taken_again():
    x = (1e-6 * units(8, 4)).half().requires_grad_()
    loss = batch_hard_triplet(x, Y8)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (halved,) = torch.autograd.grad(0.5 * loss, x)
    torch.testing.assert_close(halved, 0.5 * first)


@pytest.mark.parametrize("scale", [1e-17, 1e-9, 1.0, 1e9, 1e30, 1e37])
@pytest.mark.parametrize("form", ["authors", "paper"])
def test_length_of_float32_features_does_not_matter_to_the_value(form, scale):
    features, teacher = torch.randn(2, 8, 4)
    expected = contrastive_distillation(features, teacher, Y8, form=form)
    found, gradient = backward(lambda s: contrastive_distillation(s, teacher, Y8, form=form), features * scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    _, once = backward(lambda s: contrastive_distillation(s, teacher, Y8, form=form), features)
    torch.testing.assert_close(gradient * scale, once, rtol=1e-3, atol=1e-5)
