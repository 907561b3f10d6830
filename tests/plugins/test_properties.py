"""Properties that hold for every batch, stream and matrix: drawn by hypothesis, always the same ones."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from helpers.streams import Images, digits
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_contrastive import SSIL
from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)
from avalanche_contrastive.metrics import (
    backward_transfer,
    class_displacement,
    fit_readout,
    forgetting,
    linear_cka,
    map_at_r,
    nearest_neighbours,
    recall_at_k,
    relation_drift,
    score_bias,
    task_confusion,
)
from avalanche_contrastive.plugins.replay import with_replay

drawn = settings(
    deadline=None, derandomize=True, database=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
IDS = st.integers(0, 2**40)


def about(value, rel=1e-9):
    return pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True)


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- losses


@dataclass(frozen=True)
class Batch:
    """What all six losses need of one batch: B images, V views, D dimensions, K classes."""

    x: Tensor  # (B, V, D), some rows copies of others, some zero
    teacher: Tensor  # (B, V, D)
    y: Tensor  # (B,), any ids
    anchors: Tensor  # (B,)
    logits: Tensor  # (B, K)
    teacher_logits: Tensor  # (B, K)
    labels: Tensor  # (B,) in [0, K), each in a group
    groups: Tensor  # (K,)
    tasks: Tensor  # (K,)


@st.composite
def batches(draw):
    b, v, d, k = (draw(st.integers(*limits)) for limits in ((1, 7), (2, 3), (1, 5), (1, 6)))
    seed = draw(st.integers(0, 10_000))
    sources = torch.tensor(draw(st.lists(st.integers(-1, b - 1), min_size=b, max_size=b)))  # -1: an image of zeros
    classes = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True))
    groups = draw(st.lists(st.integers(-1, 3), min_size=k, max_size=k).filter(lambda g: max(g) >= 0))
    tasks = draw(st.lists(st.integers(-1, 3), min_size=k, max_size=k))
    in_group = [c for c in range(k) if groups[c] >= 0]

    def one_each(options):
        return torch.tensor(draw(st.lists(st.sampled_from(options), min_size=b, max_size=b)))

    return Batch(
        x=numbers(b, v, d, seed=seed)[sources] * (sources >= 0)[:, None, None],
        teacher=numbers(b, v, d, seed=seed + 1)[sources],
        y=one_each(classes),
        anchors=one_each([True, False]),
        logits=numbers(b, k, seed=seed + 2) * draw(st.sampled_from([0.1, 3.0, 300.0])),
        teacher_logits=numbers(b, k, seed=seed + 3) * 3,
        labels=one_each(in_group),
        groups=torch.tensor(groups),
        tasks=torch.tensor(tasks),
    )


def unit(x):
    return nn.functional.normalize(x, dim=-1)


EMBEDDING = {
    "supcon": lambda b: asymmetric_supcon(unit(b.x), b.y, b.anchors),
    "supcon, all": lambda b: asymmetric_supcon(unit(b.x), b.y, base_temperature=0.07, reduction="all"),
    "relation": lambda b: relation_distillation(unit(b.x), unit(b.teacher)),
}
FEATURES = {
    "contrastive": lambda b: contrastive_distillation(b.x[:, 0], b.teacher[:, 0], b.y),
    "contrastive, paper": lambda b: contrastive_distillation(b.x[:, 0], b.teacher[:, 0], b.y, form="paper"),
    "triplet": lambda b: batch_hard_triplet(b.x[:, 0], b.y),
}
LOGITS = {
    "separated": lambda b: separated_softmax(b.logits, b.labels, b.groups),
    "taskwise": lambda b: taskwise_distillation(b.logits, b.teacher_logits, b.tasks),
}
LOSSES = {**EMBEDDING, **FEATURES, **LOGITS}


def rows_of(batch, order):
    """The images of a batch in another order, or again."""
    per_image = ("x", "teacher", "y", "anchors", "logits", "teacher_logits", "labels")
    return replace(batch, **{name: getattr(batch, name)[order] for name in per_image})


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@drawn
@given(batch=batches(), data=st.data())
def test_the_order_of_images_does_not_matter(loss, batch, data):
    order = data.draw(st.permutations(range(len(batch.y))))
    assert loss(rows_of(batch, order)).item() == about(loss(batch).item())


@pytest.mark.parametrize("loss", {**EMBEDDING, **FEATURES}.values(), ids={**EMBEDDING, **FEATURES})
@drawn
@given(batch=batches(), ids=st.lists(IDS, min_size=4, max_size=4, unique=True))
def test_the_names_of_classes_do_not_matter(loss, batch, ids):
    _, number = torch.unique(batch.y, return_inverse=True)
    assert loss(replace(batch, y=torch.tensor(ids)[number])).item() == about(loss(batch).item())


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
@drawn
@given(batch=batches(), data=st.data())
def test_the_order_of_classes_and_the_names_of_groups_do_not_matter(loss, batch, data):
    k = len(batch.groups)
    order = torch.tensor(data.draw(st.permutations(range(k))))
    names = torch.tensor([*data.draw(st.lists(st.integers(0, 99), min_size=4, max_size=4, unique=True)), -1])
    other = replace(
        batch,
        logits=batch.logits[:, order],
        teacher_logits=batch.teacher_logits[:, order],
        labels=order.argsort()[batch.labels],
        groups=names[batch.groups][order],
        tasks=names[batch.tasks][order],
    )
    assert loss(other).item() == about(loss(batch).item())


@pytest.mark.parametrize("loss", EMBEDDING.values(), ids=EMBEDDING)
@drawn
@given(batch=batches(), data=st.data())
def test_the_order_of_views_does_not_matter(loss, batch, data):
    order = data.draw(st.permutations(range(batch.x.shape[1])))
    other = replace(batch, x=batch.x[:, order], teacher=batch.teacher[:, order])
    assert loss(other).item() == about(loss(batch).item())


@pytest.mark.parametrize("loss", FEATURES.values(), ids=FEATURES)
@drawn
@given(batch=batches(), seed=st.integers(0, 1000))
def test_the_lengths_of_features_do_not_matter(loss, batch, seed):
    lengths = numbers(2, len(batch.y), 1, 1, seed=seed).exp()
    other = replace(batch, x=batch.x * lengths[0], teacher=batch.teacher * lengths[1])
    assert loss(other).item() == about(loss(batch).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
@drawn
@given(batch=batches(), shift=st.floats(-50, 50))
def test_what_is_added_to_all_logits_does_not_matter(loss, batch, shift):
    other = replace(batch, logits=batch.logits + shift, teacher_logits=batch.teacher_logits - shift)
    assert loss(other).item() == about(loss(batch).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
@drawn
@given(batch=batches(), times=st.integers(2, 4))
def test_a_batch_that_is_repeated_has_the_loss_of_the_batch(loss, batch, times):
    assert loss(rows_of(batch, list(range(len(batch.y))) * times)).item() == about(loss(batch).item())


@pytest.mark.parametrize("name", LOSSES)
@drawn
@given(batch=batches(), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_losses_and_gradients_are_finite_and_no_loss_is_below_zero(name, batch, dtype):
    leaf = "logits" if name in LOGITS else "x"
    start = getattr(batch, leaf).to(dtype).requires_grad_()
    other = {key: getattr(batch, key).to(dtype) for key in ("teacher", "teacher_logits")}
    loss = LOSSES[name](replace(batch, **other, **{leaf: start}))
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    if name != "contrastive, paper":  # its positives need not be in its denominator
        assert loss.item() >= -1e-3
    assert start.grad is not None
    assert start.grad.isfinite().all()
    assert start.grad.dtype == dtype


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@drawn
@given(batch=batches())
def test_a_batch_of_one_has_a_finite_loss(loss, batch):
    assert loss(rows_of(batch, [0])).isfinite()


@drawn
@given(batch=batches())
def test_a_student_like_its_teacher_has_the_least_distillation(batch):
    same = taskwise_distillation(batch.teacher_logits, batch.teacher_logits, batch.tasks)
    assert same.item() == pytest.approx(0.0, abs=1e-9)
    z, teacher = unit(batch.x), unit(batch.teacher)
    at_one = {"temperature": 0.2, "teacher_temperature": 0.2}
    least = relation_distillation(teacher, teacher, **at_one)
    assert relation_distillation(z, teacher, **at_one) >= least - 1e-9


# ---- metrics


@st.composite
def labelled(draw, least=0):
    """Features (N, D), some of them copies, and labels."""
    n, d = draw(st.integers(least, 14)), draw(st.integers(1, 4))
    sources = draw(st.lists(st.integers(0, max(0, n - 1)), min_size=n, max_size=n))
    features = numbers(max(n, 1), d, seed=draw(st.integers(0, 10_000)))[torch.tensor(sources, dtype=torch.long)]
    y = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return features, torch.tensor(y, dtype=torch.long)


RULES = {
    "recall": lambda f, y: recall_at_k(f, y, 2),
    "recall, mean": lambda f, y: recall_at_k(f, y, 2, ties="mean"),
    "recall, euclidean": lambda f, y: recall_at_k(f, y, 1, distance="euclidean"),
    "map": map_at_r,
}


@pytest.mark.parametrize("measure", RULES.values(), ids=RULES)
@drawn
@given(labelled(), st.data())
def test_retrieval_depends_on_neither_order_nor_names(measure, images, data):
    features, y = images
    order = torch.tensor(data.draw(st.permutations(range(len(y)))), dtype=torch.long)
    ids = torch.tensor(data.draw(st.lists(IDS, min_size=4, max_size=4, unique=True)))
    value = measure(features, y)
    assert measure(features[order], ids[y[order]]) == about(value)
    assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(value) == (torch.unique(y, return_counts=True)[1] < 2).all()


@drawn
@given(labelled(), st.lists(st.integers(-8, 8), min_size=14, max_size=14))
def test_lengths_of_features_do_not_matter_to_cosine(images, powers):
    features, y = images
    lengths = 2.0 ** torch.tensor(powers[: len(y)], dtype=torch.float64)[:, None]  # exact: copies stay copies
    for k in (1, 3):
        assert recall_at_k(features * lengths, y, k) == about(recall_at_k(features, y, k))
    assert map_at_r(features * lengths, y) == about(map_at_r(features, y))


@drawn
@given(labelled(least=2))
def test_recall_grows_with_k_to_one_and_ties_are_between_the_worst_and_the_best(images):
    features, y = images
    found = list(recall_at_k(features, y, range(1, len(y))).values())
    assume(not math.isnan(found[0]))
    assert found == sorted(found)
    assert found[-1] == 1.0
    for k in (1, 2):
        assert recall_at_k(features, y, k, ties="mean") <= recall_at_k(features, y, k, ties="positive") + 1e-12
    assert recall_at_k(features.repeat(2, 1), y.repeat(2), 1) == 1.0, "a copy of its own class is nobody's second"


@drawn
@given(labelled(least=2), st.data())
def test_neighbours_are_others_and_no_one_comes_twice(images, data):
    features, _ = images
    k = data.draw(st.integers(1, len(features) - 1))
    found = nearest_neighbours(features, k)
    assert found.shape == (len(features), k)
    for image, row in enumerate(found.tolist()):
        assert image not in row
        assert len(set(row)) == len(row)


@drawn
@given(labelled(least=2), st.data())
def test_cka_is_symmetric_and_blind_to_rotation_length_shift_and_order(images, data):
    features, _ = images
    other = features.sin() + features.roll(1, 0) / 3
    value = linear_cka(features, other)
    assert linear_cka(other, features) == about(value)
    assert math.isnan(value) or -1e-12 <= value <= 1
    rotation = torch.linalg.qr(numbers(features.shape[1], features.shape[1], seed=data.draw(st.integers(0, 99))))[0]
    order = data.draw(st.permutations(range(len(features))))
    assert linear_cka((7.0 * features @ rotation + 3)[order], other[order]) == about(value, rel=1e-6)
    assert linear_cka(features, features) == about(value if math.isnan(value) else 1.0)


@drawn
@given(labelled(least=1), st.booleans(), st.data())
def test_displacement_is_a_distance(images, normalize, data):
    features, y = images
    before, between = features.sin() + 0.1, features.cos()

    def moved(now, then):
        return class_displacement(now, then, y, normalize=normalize)

    assert moved(features, features) == 0
    assert moved(features, before) == about(moved(before, features))
    assert moved(features, before) <= moved(features, between) + moved(between, before) + 1e-12
    order = data.draw(st.permutations(range(len(y))))
    assert class_displacement(features[order], before[order], y[order] + 5, normalize=normalize) == about(
        moved(features, before)
    )


@drawn
@given(labelled(least=2))
def test_no_features_drift_less_than_those_that_stay(images):
    features, _ = images
    previous, at_one = features + features.roll(1, 0).sin(), {"temperature": 0.2, "teacher_temperature": 0.2}
    assert relation_drift(features, previous, **at_one) >= relation_drift(previous, previous, **at_one) - 1e-9


@drawn
@given(batches(), st.data())
def test_score_bias_depends_on_neither_order_nor_what_all_logits_share(batch, data):
    k = batch.logits.shape[1]
    assume(k >= 2)
    old = data.draw(st.lists(st.sampled_from(range(k)), min_size=1, max_size=k - 1, unique=True))
    newest = [c for c in range(k) if c not in old]
    value = score_bias(batch.logits, batch.labels, old=old, newest=newest)
    order = data.draw(st.permutations(range(len(batch.labels))))
    other = score_bias(batch.logits[order] - 4, batch.labels[order], old=old[::-1], newest=newest[::-1])
    for one, same in zip(vars(value).values(), vars(other).values(), strict=True):
        assert torch.as_tensor(same, dtype=torch.float64).numpy() == about(
            torch.as_tensor(one, dtype=torch.float64).numpy(), rel=1e-6
        )


@drawn
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=20), st.lists(st.integers(-1, 3), min_size=5))
def test_task_confusion_counts_each_image_once_and_turns_over_with_its_arguments(pairs, groups):
    y, said = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    groups = torch.tensor(groups)
    counted = task_confusion(said, y, groups)
    kept = [pair for pair in pairs if groups[pair[0]] >= 0 and groups[pair[1]] >= 0]
    assert int(counted.sum()) == len(kept)
    assert torch.equal(task_confusion(y, said, groups), counted.T)


@drawn
@given(st.integers(2, 6), st.integers(0, 1000), st.floats(-5, 5), st.floats(0.1, 9))
def test_forgetting_is_blind_to_a_shift_and_at_least_what_transfer_lost(size, seed, shift, factor):
    matrix = numbers(size, size, seed=seed)
    for measure in (forgetting, backward_transfer):
        assert measure(matrix * factor + shift) == pytest.approx(factor * measure(matrix), abs=1e-6)
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-6


@pytest.mark.parametrize("kind", ["nearest_mean", "knn"])
@drawn
@given(labelled(least=1), st.data())
def test_read_outs_give_known_classes_whatever_their_names(kind, images, data):
    features, y = images
    features = features + torch.arange(len(y))[:, None] * 1e-3  # no copies: equal votes go to the lowest id
    ids = torch.tensor(sorted(data.draw(st.lists(IDS, min_size=4, max_size=4, unique=True))))
    said = fit_readout(features, y, kind=kind)(features)
    assert set(said.tolist()) <= set(y.tolist())
    assert torch.equal(fit_readout(features, ids[y], kind=kind)(features), ids[said])


# ---- replay and the ledger


@drawn
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32))
def test_replay_goes_through_the_memory_evenly_and_always_with_as_many_rows(stored, rows, batches_, seed):
    memory = [(torch.tensor([float(i)]), i) for i in range(stored)]

    def loader():
        made = with_replay(DataLoader([(torch.tensor([-1.0]), -1)] * batches_), memory, rows)
        made.order.seed = seed
        return made

    drawn_rows = [y[1:].tolist() for _, y in loader()]
    assert [len(part) for part in drawn_rows] == [rows] * batches_ == [rows] * len(loader())
    order = list(itertools.chain.from_iterable(drawn_rows))
    for start in range(0, len(order), stored):  # each whole pass has every exemplar once
        part = order[start : start + stored]
        assert len(set(part)) == len(part)
    assert drawn_rows == [y[1:].tolist() for _, y in loader()]


X, Y = (part[:60] for part in digits(6)[0])


@settings(drawn, max_examples=12)
@given(
    st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(0, 25),
)
def test_ledger_and_memory_hold_what_has_been_seen_and_nothing_twice(experiences, mem_size):
    data = []
    for number, classes in enumerate(experiences):
        numbered = X.clone()
        numbered[:, 0, 0, 0] = torch.arange(len(X)).float()  # which image it is
        numbered[:, 0, 0, 1] = number  # and of which experience: an image that comes back is another one
        rows = torch.isin(Y, torch.tensor(sorted(classes)))
        data.append(as_classification_dataset(Images(numbered[rows], Y[rows])))
    stream = with_classes_timeline(benchmark_from_datasets(train=data)).train_stream
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    strategy = SSIL(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-4),
        train_mb_size=64,
        mem_size=mem_size,
        separated=False,
        evaluator=None,
    )
    seen: set[int] = set()
    times: Counter[int] = Counter()
    for experience, classes in zip(stream, experiences, strict=True):
        strategy.train(experience)
        assert strategy.method.ledger[-1] == sorted(classes - seen)
        seen |= classes
        assert sorted(strategy.method.seen_classes) == sorted(seen)
        buffer = strategy.method.storage_policy.buffer
        images = [(*map(int, x[0, 0, :2].tolist()), int(y)) for x, y, *_ in (buffer[i] for i in range(len(buffer)))]
        assert len(set(images)) == len(images) <= mem_size
        assert all(int(Y[index]) == label in experiences[number] for index, number, label in images)
        times.update(classes)
        for c in seen:
            there, share = 6 * times[c], mem_size // len(seen)
            assert min(there, share) <= sum(label == c for *_, label in images) <= min(there, share + 1)
    assert len(strategy.method.ledger) == len(experiences)
