"""The six losses agree with a slow reading of the papers and with closed forms."""

import math
import random
from math import log

import pytest
import torch
import torch.nn.functional as F
from helpers.losses_by_hand import (
    HALF,
    PAIRS,
    SEEDS,
    assert_same_value,
    backward,
    labels,
    slow_contrastive,
    slow_relation_distillation,
    slow_separated_softmax,
    slow_supcon,
    slow_taskwise_distillation,
    slow_triplet,
    units,
)

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrast_and_relations,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("reduction", ["anchors", "all", "sum"])
def test_supcon_is_equation_10(seed, reduction):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    b, v, d = draw.randint(2, 9), draw.randint(2, 4), draw.randint(2, 6)
    z, y = units(b, v, d), labels(draw, b, draw.randint(1, 4))
    anchor = [draw.random() < 0.6 for _ in range(b)]
    temperature, base = draw.uniform(0.05, 1), draw.choice([None, 0.07, 0.5])
    value = asymmetric_supcon(
        z,
        torch.tensor(y),
        torch.tensor(anchor),
        temperature=temperature,
        base_temperature=base,
        reduction=reduction,
    )
    assert_same_value(value, slow_supcon(z, y, anchor, temperature, base, reduction))


@pytest.mark.parametrize("seed", SEEDS)
def test_supcon_without_anchor_mask_takes_every_view(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    z, y = units(5, draw.randint(2, 4), 4), labels(draw, 5, 3)
    assert_same_value(asymmetric_supcon(z, torch.tensor(y)), slow_supcon(z, y, [True] * 5, 0.5, None, "anchors"))


@pytest.mark.parametrize("seed", SEEDS)
def test_relation_distillation_is_equation_13(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    b, v = draw.randint(2, 6), draw.randint(1, 4)
    z, z_teacher = units(b, v, draw.randint(4, 6)), units(b, v, draw.randint(2, 3))
    t, t_teacher = draw.uniform(0.05, 1), draw.uniform(0.01, 1)
    value = relation_distillation(z, z_teacher, temperature=t, teacher_temperature=t_teacher)
    assert_same_value(value, slow_relation_distillation(z, z_teacher, t, t_teacher))


def test_relation_distillation_defaults_are_the_papers():
    z, z_teacher = units(4, 2, 5), units(4, 2, 5)
    assert_same_value(relation_distillation(z, z_teacher), slow_relation_distillation(z, z_teacher, 0.2, 0.01))


@pytest.mark.parametrize("seed", SEEDS)
def test_separated_softmax_is_ce_ss(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    k, b = draw.randint(2, 14), draw.randint(1, 9)
    ids = [-1, *draw.sample(range(100), draw.randint(1, 4))]
    groups = [draw.choice(ids) for _ in range(k)]
    groups[draw.randrange(k)] = ids[1]
    y = [draw.choice([c for c in range(k) if groups[c] >= 0]) for _ in range(b)]
    logits = 3 * torch.randn(b, k, dtype=torch.float64)
    value = separated_softmax(logits, torch.tensor(y), torch.tensor(groups))
    assert_same_value(value, slow_separated_softmax(logits, y, groups))


@pytest.mark.parametrize("seed", SEEDS)
def test_taskwise_distillation_is_tkd(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    width, b = draw.randint(1, 14), draw.randint(1, 9)
    k = width + draw.choice([0, 1, 5])
    ids = [-1, *draw.sample(range(100), draw.randint(1, 6))]
    tasks = [draw.choice(ids) for _ in range(width)]
    logits = 3 * torch.randn(b, k, dtype=torch.float64)
    teacher = 3 * torch.randn(b, width, dtype=torch.float64)
    temperature = draw.uniform(0.5, 4)
    value = taskwise_distillation(logits, teacher, torch.tensor(tasks), temperature=temperature)
    assert_same_value(value, slow_taskwise_distillation(logits, teacher, tasks, temperature))


def test_taskwise_distillation_default_temperature_is_two():
    logits, teacher, tasks = torch.randn(3, 5).double(), torch.randn(3, 4).double(), [7, 2, 2, 7]
    value = taskwise_distillation(logits, teacher, torch.tensor(tasks))
    assert_same_value(value, slow_taskwise_distillation(logits, teacher, tasks, 2.0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", ["authors", "paper"])
@pytest.mark.parametrize("normalize", [True, False])
def test_contrastive_distillation_is_its_equation(seed, form, normalize):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    b, d = draw.randint(2, 9), draw.randint(2, 6)
    y = labels(draw, b, draw.randint(1, 4))
    features, teacher = torch.randn(2, b, d, dtype=torch.float64)
    temperature = draw.uniform(0.05, 1)
    value = contrastive_distillation(
        features, teacher, torch.tensor(y), temperature=temperature, form=form, normalize=normalize
    )
    assert_same_value(value, slow_contrastive(features, teacher, y, temperature, form, normalize))


def test_contrastive_distillation_defaults_are_the_authors():
    features, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    y = [3, 1, 3, 9, 1, 3]
    value = contrastive_distillation(features, teacher, torch.tensor(y))
    assert_same_value(value, slow_contrastive(features, teacher, y, 0.07, "authors", True))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0, 3.5])
def test_triplet_is_batch_hard(seed, margin):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    b = draw.randint(1, 12)
    y = labels(draw, b, draw.randint(1, 4))
    features = torch.randn(b, draw.randint(2, 6), dtype=torch.float64) * 5
    assert_same_value(batch_hard_triplet(features, torch.tensor(y), margin=margin), slow_triplet(features, y, margin))


def test_triplet_margin_default_is_one():
    features, y = torch.randn(6, 3, dtype=torch.float64), [0, 1, 0, 1, 2, 2]
    assert_same_value(batch_hard_triplet(features, torch.tensor(y)), slow_triplet(features, y, 1.0))


# --- closed forms (methods.md, section 5) ---

IDENTICAL = F.normalize(torch.ones(4, 2, 5, dtype=torch.float64), dim=-1)  # 2N = 8 equal views
ORTHOGONAL = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 2, 4)  # 4 classes, 2 equal views each
TWO_CLASSES = torch.eye(2, dtype=torch.float64).repeat_interleave(2, dim=0)  # N = 4, orthogonal classes of two


def new_and_replayed():
    """3 new samples among 2 new classes, 5 replayed ones among 3 old classes, class ids interleaved."""
    return torch.zeros(8, 5, dtype=torch.float64), torch.tensor([1, 3, 3, 0, 2, 4, 4, 0]), torch.tensor([0, 1, 0, 1, 0])


CLOSED = {
    # Equal similarities: each positive has probability 1 / (2N - 1) among the 7 others, whatever t.
    "supcon-identical-anchors": (lambda: asymmetric_supcon(IDENTICAL, PAIRS, HALF), log(7)),
    # The mean over all 8 views counts the 4 that are no anchors as zeros: |S| / 2N = 1/2.
    "supcon-identical-all": (lambda: asymmetric_supcon(IDENTICAL, PAIRS, HALF, reduction="all"), log(7) / 2),
    # The sum is |S| = 4 such terms.
    "supcon-identical-sum": (lambda: asymmetric_supcon(IDENTICAL, PAIRS, HALF, reduction="sum"), 4 * log(7)),
    # The base temperature multiplies by 0.5 / 0.07 = 7.142857: 0.97296 * 7.142857 = 6.9497, and the two others alone.
    "supcon-identical-all-base": (
        lambda: asymmetric_supcon(IDENTICAL, PAIRS, HALF, base_temperature=0.07, reduction="all"),
        log(7) / 2 * 0.5 / 0.07,
    ),
    "supcon-identical-anchors-base": (
        lambda: asymmetric_supcon(IDENTICAL, PAIRS, HALF, base_temperature=0.07),
        log(7) * 0.5 / 0.07,
    ),
    # One positive at cosine 1, six negatives at cosine 0: -log(e^2 / (e^2 + 6)) at t = 0.5.
    "supcon-orthogonal": (
        lambda: asymmetric_supcon(ORTHOGONAL, torch.arange(4), HALF),
        log(1 + 6 * math.exp(-2)),
    ),
    # Student uniform over the 7 others; its cross-entropy with any teacher relation is log 7.
    "ird-identical": (lambda: relation_distillation(IDENTICAL, IDENTICAL), log(7)),
    "ird-identical-any-teacher": (
        lambda: relation_distillation(IDENTICAL, units(4, 2, 3), temperature=0.7, teacher_temperature=0.3),
        log(7),
    ),
    # At kappa* = 0.01 the teacher is one-hot on the other view (6 e^-100 elsewhere); the student's log of it at 0.2.
    "ird-orthogonal": (lambda: relation_distillation(ORTHOGONAL, ORTHOGONAL), log(1 + 6 * math.exp(-5))),
    # 2N - 1 = 7 equal terms in the denominator of each student: 3 students and 4 teachers.
    "csd-identical": (lambda: contrastive_distillation(IDENTICAL[:, 0], IDENTICAL[:, 0], PAIRS), log(7)),
    # At cosine 1: the other student of the class and its two teachers, 3; at cosine 0: two students and two teachers.
    "csd-orthogonal": (
        lambda: contrastive_distillation(TWO_CLASSES, TWO_CLASSES, PAIRS),
        log(3 + 4 * math.exp(-1 / 0.07)),
    ),
    # Teacher as anchor, three students in the denominator: one at cosine 1, two at 0; both positives at cosine 1.
    "csd-paper-orthogonal": (
        lambda: contrastive_distillation(TWO_CLASSES, TWO_CLASSES, PAIRS, form="paper", temperature=1.0),
        log(1 + 2 * math.exp(-1)),
    ),
    # N - 1 equal students in the denominator.
    "csd-paper-identical": (
        lambda: contrastive_distillation(IDENTICAL[:, 0], IDENTICAL[:, 0], PAIRS, form="paper", temperature=1.0),
        log(3),
    ),
    # Uniform within the group: B = 3 terms of log 2 (new classes) and R = 5 of log 3 (old classes), one pooled mean.
    "ssil-zero-logits": (lambda: separated_softmax(*new_and_replayed()), (3 * log(2) + 5 * log(3)) / 8),
    # Both uniform: no divergence.
    "tkd-zero-logits": (
        lambda: taskwise_distillation(torch.zeros(8, 5), torch.zeros(8, 3), torch.tensor([0, 1, 0])),
        0.0,
    ),
    # Orthogonal classes of two: farthest positive at cosine 1, nearest negative at 0: 0 - 1 + margin.
    "triplet-orthogonal": (lambda: batch_hard_triplet(TWO_CLASSES, PAIRS, margin=1.5), 0.5),
    # All rows equal: both cosines are 1, the margin stays.
    "triplet-identical": (lambda: batch_hard_triplet(IDENTICAL[:, 0], PAIRS, margin=0.3), 0.3),
}


@pytest.mark.parametrize(("loss", "expected"), CLOSED.values(), ids=CLOSED.keys())
def test_closed_form(loss, expected):
    assert_same_value(loss(), expected, rel=1e-12)


PRINTED = {
    "supcon-identical-anchors": 1.9459,
    "supcon-identical-all": 0.9730,
    "supcon-identical-all-base": 6.9497,
    "supcon-orthogonal": 0.59444,
    "ird-orthogonal": 0.03963,
    "csd-orthogonal": 1.098613,
    "csd-paper-orthogonal": 0.55144,
}


@pytest.mark.parametrize(("case", "printed"), PRINTED.items(), ids=PRINTED.keys())
def test_closed_form_has_the_digits_of_the_reference(case, printed):
    # The decimals of methods.md guard against a mistake in the formulas above.
    digits = len(str(printed).split(".")[1])
    assert CLOSED[case][0]().item() == pytest.approx(printed, abs=0.6 * 10**-digits)


def test_start_of_co2l_at_batch_512():
    # Near-identical features, 2N = 1024 views: log 1023 = 6.93 in the paper, times 0.5 / 0.07 = 7.14: 49.5.
    z = F.normalize(torch.ones(512, 2, 8) + 1e-3 * torch.randn(512, 2, 8), dim=-1)
    y = torch.arange(512) % 2
    assert asymmetric_supcon(z, y, reduction="all").item() == pytest.approx(6.93, abs=0.01)
    assert asymmetric_supcon(z, y, base_temperature=0.07, reduction="all").item() == pytest.approx(49.5, abs=0.1)


def test_tkd_of_equal_models_is_zero_with_zero_gradient():
    logits = 4 * torch.randn(6, 7, dtype=torch.float64)
    tasks = torch.tensor([2, 0, 0, 5, 2, -1])
    value, gradient = backward(lambda x: taskwise_distillation(x, logits[:, :6], tasks), logits)
    assert value.abs() < 1e-14
    assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("reduction", ["anchors", "all", "sum"])
@pytest.mark.parametrize("base_temperature", [None, 0.07])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-12), (torch.float16, 2e-3)])
def test_both_losses_of_co2l_at_once_are_those_one_by_one(reduction, base_temperature, dtype, slack):
    """Values, and the gradient of the weighted sum; in half precision up to its own rounding."""
    z, teacher = units(6, 2, 5).to(dtype), units(6, 2, 4).to(dtype)
    y = torch.tensor([3, 1, 1, 3, 0, 3])
    options = {"temperature": 0.3, "base_temperature": base_temperature, "reduction": reduction}
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    contrast = asymmetric_supcon(one, y, y > 1, **options)
    kept = relation_distillation(one, teacher, temperature=0.4, teacher_temperature=0.05)
    (contrast + 0.7 * kept).backward()
    loss, *values = contrast_and_relations(
        other, y, y > 1, teacher, **options, weight=0.7, distill_temperature=0.4, teacher_temperature=0.05
    )
    loss.backward()
    torch.testing.assert_close([loss, *values], [contrast + 0.7 * kept, contrast, kept], rtol=slack, atol=slack)
    torch.testing.assert_close(one.grad, other.grad, rtol=slack, atol=slack)
    assert not any(value.requires_grad for value in values)


def test_the_triplet_of_features_that_have_unit_length_already():
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 4
    unit = torch.nn.functional.normalize(x, dim=1)
    torch.testing.assert_close(batch_hard_triplet(unit, y, normalize=False), batch_hard_triplet(x, y))
