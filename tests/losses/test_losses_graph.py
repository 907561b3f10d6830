"""No loss makes the host wait or depends on values for its shapes: counted operations, no data at all, compiled."""

import pytest
import torch
from helpers.losses_by_hand import backward, leaf, units
from helpers.operations import WAITING, Operations

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrast_and_relations,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)

GROUPS = torch.tensor([0, 1, 0, -1, 1, 2])
EQUAL, UNEQUAL = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([3, 1, -1, 3, 3, 1])
SHUFFLED = torch.tensor([0, 1, 2, 0, 2, 1])


def labels(x, classes=(0, 0, 1, 1)):
    """A label for each row of x, whose number is a multiple of eight."""
    return torch.tensor(classes, device=x.device).repeat(len(x) // len(classes))


def pairs(x):
    """Rows as two views of each image."""
    return x.unflatten(0, (-1, 2))


# Of x (B, 6): B / 2 images in 2 views, or the features or logits of B images, and a teacher's.
LOSSES = {
    "supcon": lambda x, t: asymmetric_supcon(pairs(x), labels(x[::2])),
    "supcon-anchors": lambda x, t: asymmetric_supcon(
        pairs(x), labels(x[::2]), labels(x[::2]) > 0, reduction="anchors", base_temperature=0.07
    ),
    "supcon-sum": lambda x, t: asymmetric_supcon(pairs(x), labels(x[::2]), labels(x[::2]) > 0, reduction="sum"),
    "contrast-and-relations": lambda x, t: contrast_and_relations(
        pairs(x), labels(x[::2]), labels(x[::2]) > 0, pairs(t), weight=0.7
    )[0],
    "relation": lambda x, t: relation_distillation(pairs(x), pairs(t)),
    "separated": lambda x, t: separated_softmax(x, labels(x, (0, 1, 2, 4, 5, 0, 1, 2)), GROUPS.to(x.device)),
    "taskwise": lambda x, t: taskwise_distillation(x, t, EQUAL.to(x.device)),
    "taskwise-shuffled": lambda x, t: taskwise_distillation(x, t, SHUFFLED.to(x.device)),
    "taskwise-unequal": lambda x, t: taskwise_distillation(x, t, UNEQUAL.to(x.device)),
    "contrastive": lambda x, t: contrastive_distillation(x, t, labels(x)),
    "contrastive-raw": lambda x, t: contrastive_distillation(x, t, labels(x), normalize=False),
    "contrastive-paper": lambda x, t: contrastive_distillation(x, t, labels(x), form="paper"),
    "triplet": lambda x, t: batch_hard_triplet(x, labels(x)),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def test_the_mode_sees_what_waits():
    x = torch.tensor([1.0, 0.0])
    with Operations() as mode:
        bool(x.sum() > 0), x.nonzero(), x.unique()
    assert {"_local_scalar_dense", "nonzero", "_unique2"} <= set(mode.names)


@losses
def test_no_operation_reads_a_value(loss):
    x, teacher = leaf(units(8, 6)), units(8, 6)
    with Operations() as mode:
        loss(x, teacher).backward()
    assert len(mode.names) > 5
    assert not WAITING & set(mode.names)


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_loss_needs_no_data_for_its_shapes(loss, dtype):
    # Tensors on "meta" have a shape and nothing else: whatever reads a value of theirs is an error.
    x = torch.empty(8, 6, device="meta", dtype=dtype, requires_grad=True)
    value = loss(x, torch.empty(8, 6, device="meta"))
    assert (value.shape, value.dtype) == ((), torch.float32)
    value.backward()
    assert x.grad.shape == x.shape


@losses
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["aot_eager", "inductor"]
)
def test_a_loss_compiles_into_one_graph(loss, backend, autocast, request):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    x, teacher = units(8, 6, dtype=torch.float32), units(8, 6, dtype=torch.float32)
    expected, slope = backward(lambda s: loss(s, teacher), x)
    with torch.autocast("cpu", enabled=autocast):
        value, gradient = backward(lambda s: compiled(s, teacher), x)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    # Torch runs the backward pass of plain operations under the autocast of its caller.
    plain = autocast and any(name in request.node.name for name in ("paper", "triplet"))
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=0.1 if plain else 1e-6)
    torch.compiler.reset()


@losses
def test_the_backward_pass_is_in_full_precision_under_autocast(loss, request):
    x, teacher = units(8, 6, dtype=torch.float32), units(8, 6, dtype=torch.float32)
    _, expected = backward(lambda s: loss(s, teacher), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, gradient = backward(lambda s: loss(s, teacher), x)
    plain = any(name in request.node.name for name in ("paper", "triplet"))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0.1 if plain else 1e-6)


@losses
def test_one_graph_serves_batches_of_any_size(loss):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (16, 8, 40):
            x, teacher = units(batch, 6), units(batch, 6)
            torch.testing.assert_close(compiled(leaf(x), teacher), loss(x, teacher))
    torch.compiler.reset()


def test_a_table_of_tasks_may_be_read_in_inference_mode_first():
    x, teacher, tasks = units(8, 6), units(8, 6), torch.tensor([5, 7, 5, 7, 5, 7])
    with torch.inference_mode():
        expected = taskwise_distillation(x, teacher, tasks)
    value, _ = backward(lambda s: taskwise_distillation(s, teacher, tasks), x)
    assert torch.equal(value, expected)


def test_a_changed_table_of_tasks_counts():
    x, teacher, tasks = units(8, 6), units(8, 6), torch.tensor([0, 0, 0, 1, 1, 1])
    before = taskwise_distillation(x, teacher, tasks)
    tasks[2] = 1
    assert taskwise_distillation(x, teacher, tasks) != before
    tasks[2] = 0
    assert taskwise_distillation(x, teacher, tasks) == before
