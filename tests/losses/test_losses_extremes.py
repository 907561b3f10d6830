"""Cold temperatures, huge logits, half precision, batches with nothing in them: values and gradients are finite."""

import math
from math import log

import pytest
import torch
import torch.nn.functional as F
from helpers.losses_by_hand import (
    HALF,
    PAIRS,
    assert_finite_with_gradient,
    assert_same_value,
    backward,
    leaf,
    units,
)
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)

DIRECTION = F.normalize(torch.tensor([3.0, -1.0, 2.0, 0.5]), dim=0)
SIGNS = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0])  # views of an image, and of a class, opposed
ROWS = {
    "identical": DIRECTION.expand(8, 4),
    "antipodal": SIGNS[:, None] * DIRECTION,
    "one-opposed": torch.cat([-DIRECTION[None], DIRECTION.expand(7, 4)]),
    "axes": torch.eye(4).repeat(2, 1),
}
Y8 = torch.tensor([0, 0, 1, 1, 2, 2, 0, 5])
COLD = 0.01
EMBEDDING = {
    "supcon": lambda s, t: asymmetric_supcon(s.unflatten(0, (4, 2)), Y8[::2], HALF, temperature=COLD),
    "supcon-official": lambda s, t: asymmetric_supcon(
        s.unflatten(0, (4, 2)), Y8[::2], temperature=COLD, base_temperature=0.07, reduction="all"
    ),
    "relation": lambda s, t: relation_distillation(
        s.unflatten(0, (4, 2)), t.unflatten(0, (4, 2)), temperature=COLD, teacher_temperature=COLD
    ),
    "contrastive": lambda s, t: contrastive_distillation(s, t, Y8, temperature=COLD),
    "contrastive-paper": lambda s, t: contrastive_distillation(s, t, Y8, temperature=COLD, form="paper"),
    "contrastive-raw": lambda s, t: contrastive_distillation(s, t, Y8, temperature=COLD, normalize=False),
    "triplet": lambda s, t: batch_hard_triplet(s, Y8),
}
embedding_losses = pytest.mark.parametrize("loss", EMBEDDING.values(), ids=EMBEDDING.keys())
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@embedding_losses
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("teacher", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_cold_extremes_are_finite(loss, rows, teacher, dtype):
    assert_finite_with_gradient(lambda x: loss(x, ROWS[teacher].to(dtype)), ROWS[rows].to(dtype))


@embedding_losses
@pytest.mark.parametrize("rows", ROWS)
def test_cold_extremes_have_no_infinite_intermediate(loss, rows):
    # Self-similarities are dropped, not masked: nothing on the way is infinite, forward and backward.
    x = leaf(ROWS[rows])
    with AllFinite() as mode:
        value = loss(x, ROWS["antipodal"])
        forward = mode.results
        value.backward()
    assert mode.infinite == []
    assert forward > 5, "the mode has seen the forward pass"
    assert mode.results > forward + 2, "and the backward pass"


class AllFinite(TorchDispatchMode):
    """Note every operation that gives nan or infinity, and count the results that were looked at."""

    def __init__(self):
        super().__init__()
        self.results, self.infinite = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point() and "empty" not in str(func):
            self.results += 1
            if not out.isfinite().all():
                self.infinite.append(str(func))
        return out


def test_all_finite_mode_sees_an_infinity():
    x = leaf(torch.zeros(2))
    with AllFinite() as mode:
        masked = x.masked_fill(torch.tensor([True, False]), float("-inf"))
        (masked.exp() * x.sqrt()).sum().backward()  # the root's slope at zero is infinite
    assert "masked_fill" in mode.infinite[0]
    assert len(mode.infinite) > 1, "the backward pass is looked at, too"


LOGITS = {
    "separated": lambda x: separated_softmax(x, torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 1, -1])),
    "taskwise": lambda x: taskwise_distillation(x, x.detach().flip(0)[:, :4], torch.tensor([0, 1, 0, 1])),
    "taskwise-flat-teacher": lambda x: taskwise_distillation(x, torch.zeros_like(x), torch.tensor([0, 1, 0, 1, 1])),
    "taskwise-cold": lambda x: taskwise_distillation(
        x, x.detach().flip(1), torch.tensor([0, 1, 0, 1, 1]), temperature=0.5
    ),
}
HUGE = {
    "all-high": torch.full((4, 5), 1e4),
    "all-low": torch.full((4, 5), -1e4),
    "mixed": 1e4 * torch.tensor([[1, -1, -1, 1, 1], [-1, -1, 1, 1, -1], [1, 1, -1, -1, 1], [-1, 1, 1, -1, -1]]),
}


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS.keys())
@pytest.mark.parametrize("logits", HUGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_huge_logits_are_finite(loss, logits, dtype):
    assert_finite_with_gradient(loss, HUGE[logits].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_very_low_logits_of_a_group_stay_above_what_is_masked(dtype):
    # The group {0, 2} is low throughout and the others are high: still a choice among two equal classes.
    logits = 1e4 * torch.tensor([[-1, 1, -1, 1, 1]], dtype=dtype)
    value = separated_softmax(logits, torch.tensor([0]), torch.tensor([0, 1, 0, 1, -1]))
    assert value.item() == pytest.approx(log(2), rel=1e-6)


def test_huge_logits_have_the_exact_loss():
    # Within class 1's group {1, 3} the label is 2e4 below: the loss is 2e4, the rest of the row is far away.
    logits = torch.tensor([[1e4, -1e4, -1e4, 1e4, 1e4]])
    assert separated_softmax(logits, torch.tensor([1]), torch.tensor([0, 1, 0, 1, -1])) == 2e4


def test_untrained_units_of_avalanche_do_not_leak_in():
    # IncrementalClassifier gives untrained classes about -1000; a class with -1 takes no part whatever it holds.
    logits, teacher = torch.randn(4, 5), torch.randn(4, 5)
    y, groups = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1, -1])
    for value in (-1000.0, 1e4, float("inf"), float("nan")):
        changed, changed_teacher = logits.clone(), teacher.clone()
        changed[:, 4], changed_teacher[:, 4] = value, value
        assert torch.equal(separated_softmax(changed, y, groups), separated_softmax(logits, y, groups))
        assert torch.equal(
            taskwise_distillation(changed, changed_teacher, groups), taskwise_distillation(logits, teacher, groups)
        )


def half_cases(x, teacher):
    """Every loss on rows x (8, 4): unit embeddings, features or logits as it likes."""
    return {name: function(x, teacher) for name, function in EMBEDDING.items()} | {
        "separated": separated_softmax(20 * x, Y8 % 4, torch.tensor([0, 1, 1, 0])),
        "taskwise": taskwise_distillation(20 * x, 20 * teacher, torch.tensor([0, 1, 1, 0])),
    }


@HALVES
def test_half_precision_is_computed_in_float32(dtype):
    x, teacher = units(8, 4, dtype=dtype), units(8, 4, dtype=dtype)
    # The logits are scaled in half precision here; the next test compares their values.
    low = half_cases(x, teacher)
    for name, value in low.items():
        assert value.dtype == torch.float32, name
    high = half_cases(x.float(), teacher.float())
    for name in EMBEDDING:
        assert torch.equal(low[name], high[name]), name


@HALVES
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, teacher = (20 * torch.randn(2, 8, 6)).to(dtype)
    groups = torch.tensor([0, 1, 1, 0, -1, 1])
    y = torch.tensor([0, 1, 2, 3, 5, 0, 1, 2])
    low, high = (separated_softmax(x, y, groups) for x in (logits, logits.float()))
    assert low.dtype == torch.float32
    assert torch.equal(low, high)
    low, high = (taskwise_distillation(x, t, groups) for x, t in ((logits, teacher), (logits.float(), teacher.float())))
    assert low.dtype == torch.float32
    assert torch.equal(low, high)


@HALVES
def test_half_precision_gradients_are_finite(dtype):
    x, teacher = units(8, 4, dtype=dtype), units(8, 4, dtype=dtype)
    for name in half_cases(x, teacher):
        assert_finite_with_gradient(lambda x, name=name: half_cases(x, teacher)[name], x)


@HALVES
@pytest.mark.parametrize("loss", [EMBEDDING[name] for name in ("relation", "contrastive", "contrastive-paper")])
def test_half_precision_student_with_float32_teacher(loss, dtype):
    # Under autocast one of the two often comes out of a float32 layer.
    x, teacher = units(8, 4, dtype=dtype), units(8, 4, dtype=torch.float32)
    assert torch.equal(loss(x, teacher), loss(x.float(), teacher))


@pytest.mark.parametrize("seed", range(5))
def test_autocast_value_is_the_float32_one(seed):
    torch.manual_seed(seed)
    x, teacher = units(8, 4, dtype=torch.float32), units(8, 4, dtype=torch.float32)
    expected = half_cases(x, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = half_cases(x, teacher)
        for name in expected:
            assert_finite_with_gradient(lambda x, name=name: half_cases(x, teacher)[name], x)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        assert found[name].item() == pytest.approx(value.item(), rel=1e-3), name


def test_autocast_stays_on_outside_the_loss():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch_hard_triplet(torch.randn(4, 3), PAIRS)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("reduction", ["anchors", "all", "sum"])
@pytest.mark.parametrize("base", [None, 0.07])
def test_no_anchor_is_zero_with_a_gradient_path(reduction, base):
    anchor = torch.zeros(4, dtype=torch.bool)
    z = leaf(units(4, 2, 3))
    value = asymmetric_supcon(z, PAIRS, anchor, base_temperature=base, reduction=reduction)
    assert value == 0
    assert value.requires_grad
    value.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("margin", [0.0, 1.0, 9.0])
@pytest.mark.parametrize("y", [[0, 1, 2, 3], [0, 0, 0, 0]], ids=["no-positive", "no-negative"])
def test_triplet_without_a_pair_is_zero_with_a_gradient_path(y, margin):
    value, gradient = backward(lambda x: batch_hard_triplet(x, torch.tensor(y), margin=margin), torch.randn(4, 3))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(4, 3))


def test_triplet_leaves_out_samples_without_positive():
    # Class 9 has one image: it serves as a negative, not as an anchor.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert batch_hard_triplet(features, torch.tensor([3, 3, 9]), margin=1.25).item() == pytest.approx(0.25)


def test_triplet_means_over_the_violating_samples_only():
    # Class 0 at 0 degrees (twice), class 1 at 90 and 60; margin 0.4.
    angle = torch.tensor([0.0, 0.0, 90.0, 60.0], dtype=torch.float64).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    # At 60: cos 60 - cos 30 + 0.4 = 0.034 > 0. At 90: 0 - cos 30 + 0.4 < 0. At 0, twice: cos 60 - 1 + 0.4 < 0.
    expected = math.cos(math.pi / 3) - math.cos(math.pi / 6) + 0.4
    assert_same_value(batch_hard_triplet(features, PAIRS, margin=0.4), expected)


def test_task_of_one_class_gives_separated_softmax_nothing():
    groups, y = torch.tensor([0, 1, 1]), torch.tensor([0, 0])
    value, gradient = backward(lambda x: separated_softmax(x, y, groups), torch.randn(2, 3))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 3))


def test_tasks_of_one_class_give_distillation_nothing():
    tasks, teacher = torch.tensor([4, 0, 2]), 9 * torch.randn(5, 3)
    value, gradient = backward(lambda x: taskwise_distillation(x, teacher, tasks), 9 * torch.randn(5, 4))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(5, 4))


@pytest.mark.parametrize("width", [0, 3], ids=["no-teacher-class", "all-minus-one"])
def test_no_task_is_zero_with_a_gradient_path(width):
    value, gradient = backward(
        lambda x: taskwise_distillation(x, torch.randn(5, width), torch.full((width,), -1)), torch.randn(5, 4)
    )
    assert value == 0
    assert torch.equal(gradient, torch.zeros(5, 4))


ONE = {
    "supcon": lambda x: asymmetric_supcon(x.reshape(1, 2, 2), torch.tensor([3])),
    "relation": lambda x: relation_distillation(x.reshape(1, 2, 2), x.reshape(1, 2, 2).flip(2)),
    "relation-one-view": lambda x: relation_distillation(x[None], x[None]),
    "separated": lambda x: separated_softmax(x, torch.tensor([0]), torch.tensor([0, 1, 1, 1])),
    "taskwise": lambda x: taskwise_distillation(x, x.detach(), torch.tensor([0, 1, 1, 0])),
    "contrastive": lambda x: contrastive_distillation(x, x.flip(1), torch.tensor([3])),
    "contrastive-paper": lambda x: contrastive_distillation(x, x.flip(1), torch.tensor([3]), form="paper"),
    "triplet": lambda x: batch_hard_triplet(x, torch.tensor([3])),
}


@pytest.mark.parametrize("loss", ONE.values(), ids=ONE.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_batch_of_one_has_nothing_to_learn(loss, dtype):
    # One contrast, one class in its group, equal models or no pair: each of these losses is zero for a single image.
    value, gradient = assert_finite_with_gradient(loss, torch.tensor([[0.6, 0.8, 0.8, -0.6]], dtype=dtype))
    assert value.abs() < 1e-6
    assert gradient.abs().max() < 1e-5


def test_one_image_among_its_own_group():
    value = separated_softmax(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([0]), torch.tensor([0, 1, 0]))
    assert_same_value(value, log(2), rel=1e-6)


ZERO_ROW = {
    "contrastive": lambda x: contrastive_distillation(x, torch.ones_like(x), PAIRS),
    "contrastive-paper": lambda x: contrastive_distillation(x, torch.ones_like(x), PAIRS, form="paper"),
    "triplet": lambda x: batch_hard_triplet(x, PAIRS),
}


@pytest.mark.parametrize("loss", ZERO_ROW.values(), ids=ZERO_ROW.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_feature_of_length_zero(loss, dtype):
    # All units of a ReLU dead for one image: it has no direction, so nothing should be drawn anywhere by 1e12.
    features = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.2, 1.0], [-1.0, 0.3]], dtype=dtype)
    _, gradient = assert_finite_with_gradient(loss, features)
    assert gradient.abs().max() < torch.finfo(torch.float16).max


@pytest.mark.parametrize(
    ("form", "student", "teacher"),
    [
        ("authors", torch.float32, torch.float64),
        ("paper", torch.float32, torch.float64),
        ("paper", torch.float64, torch.float32),
    ],
)
def test_student_and_teacher_of_different_precision(form, student, teacher):
    features, teacher_features = units(4, 3, dtype=student), units(4, 3, dtype=teacher)
    value = contrastive_distillation(features, teacher_features, PAIRS, form=form)
    expected = contrastive_distillation(features.double(), teacher_features.double(), PAIRS, form=form)
    assert_same_value(value, expected.item(), rel=1e-5)
