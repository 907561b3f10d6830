"""The six losses by a slow reading of the papers, and what the tests of the losses share.

The references follow the equations term by term with Python floats: a loop for every sum, no tensor.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)

SEEDS = range(30)
LOSSES = (
    asymmetric_supcon,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
    contrastive_distillation,
    batch_hard_triplet,
)
log = math.log


# --- the slow reading ---


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def unit_list(a):
    length = math.sqrt(dot(a, a))
    return [p / length for p in a]


def slow_supcon(z, y, is_anchor, temperature, base_temperature, reduction):
    """Co2L Eq. 10: every view of every anchor image, positives of its label, denominator over all but itself."""
    views = [(image, row) for image, rows in enumerate(z.tolist()) for row in rows]
    total, anchors = 0.0, 0
    for i, (image, row) in enumerate(views):
        if not is_anchor[image]:
            continue
        anchors += 1
        denominator = sum(math.exp(dot(row, other) / temperature) for k, (_, other) in enumerate(views) if k != i)
        positives = [o for j, (other_image, o) in enumerate(views) if j != i and y[other_image] == y[image]]
        terms = [log(math.exp(dot(row, p) / temperature) / denominator) for p in positives]
        total += -sum(terms) / len(positives)
    if base_temperature is not None:
        total *= temperature / base_temperature
    return total / {"anchors": max(anchors, 1), "all": len(views), "sum": 1}[reduction]


def slow_relations(rows, temperature):
    """Co2L Eq. 12: for each view the softmax over the other views."""
    vectors = []
    for i, row in enumerate(rows):
        weights = [math.exp(dot(row, other) / temperature) for j, other in enumerate(rows) if j != i]
        vectors.append([w / sum(weights) for w in weights])
    return vectors


def slow_relation_distillation(z, z_teacher, temperature, teacher_temperature):
    """Co2L Eq. 13, mean over views."""
    student = slow_relations([row for views in z.tolist() for row in views], temperature)
    teacher = slow_relations([row for views in z_teacher.tolist() for row in views], teacher_temperature)
    crosses = [-sum(t * log(s) for t, s in zip(ts, ss, strict=True)) for ts, ss in zip(teacher, student, strict=True)]
    return sum(crosses) / len(crosses)


def slow_separated_softmax(logits, y, groups):
    """SS-IL CE-SS: the denominator runs over the classes of the label's group."""
    total = 0.0
    for row, label in zip(logits.tolist(), y, strict=True):
        rivals = [c for c in range(len(groups)) if groups[c] == groups[label]]
        total += -log(math.exp(row[label]) / sum(math.exp(row[c]) for c in rivals))
    return total / len(y)


def slow_taskwise_distillation(logits, teacher_logits, tasks, temperature):
    """SS-IL TKD: KL(teacher || student) within each task, mean over the batch, sum over tasks, times T^2."""
    total = 0.0
    for task in set(tasks) - {-1}:
        classes = [c for c, t in enumerate(tasks) if t == task]
        for student, teacher in zip(logits.tolist(), teacher_logits.tolist(), strict=True):
            student_sum = sum(math.exp(student[c] / temperature) for c in classes)
            teacher_sum = sum(math.exp(teacher[c] / temperature) for c in classes)
            for c in classes:
                p = math.exp(teacher[c] / temperature) / teacher_sum
                q = math.exp(student[c] / temperature) / student_sum
                total += p * log(p / q)
    return total / len(logits) * temperature**2


def slow_contrastive(features, teacher_features, y, temperature, form, normalize):
    """CSD: the authors' form (methods 3.2) or the paper's Eq. 8 (methods 3.1)."""
    student, teacher = features.tolist(), teacher_features.tolist()
    if normalize:
        student, teacher = [unit_list(f) for f in student], [unit_list(f) for f in teacher]
    n, total = len(y), 0.0
    for i in range(n):
        others = [student[a] for a in range(n) if a != i]
        if form == "paper":
            anchor, contrast = teacher[i], others
            positives = [student[p] for p in range(n) if y[p] == y[i]]
        else:
            anchor, contrast = student[i], others + teacher
            positives = [student[p] for p in range(n) if p != i and y[p] == y[i]]
            positives += [teacher[p] for p in range(n) if y[p] == y[i]]
        denominator = sum(math.exp(dot(anchor, a) / temperature) for a in contrast)
        total += sum(log(math.exp(dot(anchor, p) / temperature) / denominator) for p in positives) / len(positives)
    return -total / n


def slow_triplet(features, y, margin):
    """CSD's batch-hard triplet: Euclidean distances choose, cosines are compared, mean over the non-zero terms."""
    rows = [unit_list(f) for f in features.tolist()]
    terms = []
    for i, row in enumerate(rows):
        positives = [r for j, r in enumerate(rows) if j != i and y[j] == y[i]]
        negatives = [r for j, r in enumerate(rows) if y[j] != y[i]]
        if positives and negatives:
            farthest = max(positives, key=lambda r: math.dist(row, r))
            nearest = min(negatives, key=lambda r: math.dist(row, r))
            terms.append(max(0.0, dot(row, nearest) - dot(row, farthest) + margin))
    nonzero = [t for t in terms if t > 0]
    return sum(nonzero) / len(nonzero) if nonzero else 0.0


# --- helpers ---


def units(*shape, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).to(dtype)


def assert_same_value(value, expected, rel=1e-9):
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=rel, abs=1e-12)


def class_ids(draw, count):
    """Distinct ids with gaps between them, in no order."""
    return draw.sample(range(10_000), count)


def labels(draw, b, classes):
    ids = class_ids(draw, classes)
    return [draw.choice(ids) for _ in range(b)]


def leaf(x):
    return x.detach().clone().requires_grad_()


def backward(function, x):
    """The loss at x and its gradient."""
    x = leaf(x)
    value = function(x)
    value.backward()
    return value.detach(), x.grad


def assert_finite_with_gradient(function, x):
    value, gradient = backward(function, x)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.shape == x.shape
    assert gradient.dtype == x.dtype
    return value, gradient


# --- a batch of four images ---

PAIRS = torch.tensor([0, 0, 1, 1])
HALF = torch.tensor([True, True, False, False])  # 4 of the 8 views are anchors
