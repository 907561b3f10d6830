"""What the losses compute with: gradients written out, a softmax for each task, precision. Needs torch only.

Nothing here reads a value of a GPU tensor, so no loss makes the host wait. The tests compare each kernel with a plain
formula.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "cross_entropy_of_others",
    "fill_diagonal",
    "finite_gradient",
    "float32",
    "full_precision",
    "positives",
    "softmax_of_others",
    "task_log_softmax",
    "unit_rows",
    "without_self",
]


# ---- softmax over similarities to all others


def cross_entropy_of_others(
    z: Tensor, target: Tensor, *, temperature: float, others: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Weighted sum of the cross-entropies of each row's similarities to all rows but itself with a target.

    With u the rows z and after them the rows others::

        loss = sum_i w_i ( log sum_{k != i} exp(z_i . u_k / t)  -  sum_k target_ik z_i . u_k / t )

    The gradient is written out: it takes one matrix of the size of the similarities and one product with it, where
    autograd takes three matrices and two products. Second derivatives are supported, ``torch.func`` goes by autograd.

    Args:
        z: (N, D).
        target: (N, N + M), without gradient; each row sums to one, z_i has none of its own.
        temperature: t.
        others: (M, D), without gradient.
        weight: w, (N,), without gradient; None is the mean.

    Returns:
        Scalar.
    """
    if weight is None:
        weight = z.new_full((len(z),), 1 / len(z))
    if torch._C._are_functorch_transforms_active():  # the function below would cost 26 us more to serve them, too
        columns = z if others is None else torch.cat([z, others])
        similarity = without_self(z / temperature @ columns.T)
        return ((similarity.logsumexp(dim=1) - (target * similarity).sum(dim=1)) * weight).sum()
    loss: Tensor = _CrossEntropyOfOthers.apply(z, target, temperature, others, weight)
    return loss


class _CrossEntropyOfOthers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, target: Tensor, temperature: float, others: Tensor | None, weight: Tensor
    ) -> Tensor:
        columns = z if others is None else torch.cat([z, others])
        similarity = without_self(z / temperature @ columns.T)
        to_target = torch.linalg.vecdot(target, similarity)
        highest = similarity.amax(dim=1, keepdim=True)
        share = similarity.sub_(highest).exp_()  # all in place: on a processor fresh memory takes as long as a step
        total = share.sum(dim=1, keepdim=True)
        loss = torch.dot((highest + total.log())[:, 0] - to_target, weight)
        if ctx.needs_input_grad[0]:
            slope = share.div_(total).sub_(target).mul_(weight[:, None])  # of the loss in each similarity
            square = slope[:, : len(z)]
            square.add_(square.T.clone(memory_format=torch.contiguous_format))  # z is both their rows and columns
            ctx.save_for_backward(z, target, others, weight, slope)
            ctx.temperature = temperature
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        z, target, others, weight, slope = ctx.saved_tensors
        n = len(z)
        with full_precision(z):
            if torch.is_grad_enabled():  # for a second derivative the slope must depend on z
                columns = z if others is None else torch.cat([z, others])
                slope = (softmax_of_others(z / ctx.temperature, columns) - target) * weight[:, None]
                gradient = (slope[:, :n] + slope[:, :n].T) @ z
            else:
                gradient = slope[:, :n] @ z
            if others is not None:
                gradient = gradient + slope[:, n:] @ others
            return gradient * (upstream / ctx.temperature), None, None, None, None


def softmax_of_others(rows: Tensor, columns: Tensor) -> Tensor:
    """The softmax of each row's similarities to all columns but its own, (R, N) with zeros on the diagonal."""
    return without_self(rows @ columns.T).softmax(dim=1)


def without_self(similarity: Tensor) -> Tensor:
    """Give self-similarities no weight in a softmax, in place, by the lowest number (nothing is infinite)."""
    return fill_diagonal(similarity, torch.finfo(similarity.dtype).min)


def fill_diagonal(x: Tensor, value: float) -> Tensor:
    """``x.fill_diagonal_(value)``, which a compiled graph could do for one size of ``x`` only."""
    if not torch.compiler.is_compiling():
        return x.fill_diagonal_(value)
    row, column = (torch.arange(size, device=x.device) for size in x.shape)
    return x.masked_fill_(row[:, None] == column, value)


def positives(y: Tensor, others: Tensor, dtype: torch.dtype, *, without_self: bool) -> Tensor:
    """Equal weights, with sum one, for all columns with the label of a row: (R, N) from labels (R,) and (N,)."""
    # Compared into floats at once: a matrix of bools and its conversion would take twice the time.
    same = torch.eq(y[:, None], others, out=torch.empty(len(y), len(others), dtype=dtype, device=y.device))
    if without_self:
        fill_diagonal(same, 0)
    return same.div_(same.sum(dim=1, keepdim=True))


# ---- a softmax for the classes of each task


def task_log_softmax(tasks: Tensor, *logits: Tensor) -> Iterable[Tensor]:
    """Log-softmax of each logits (B, K) within each task, tasks (K,) of any ids, those below 0 left out.

    All results have one and the same shape, so that they can be compared; which one is for the fastest way to decide.
    """
    if torch.compiler.is_compiling() or tasks.device.type != "cpu":
        return [_fixed_shape_log_softmax(x, tasks) for x in logits]
    layout = _layout(tuple(tasks.tolist()), logits[0].device)
    return [layout.log_softmax(x) for x in logits]


@dataclass(frozen=True)
class _Layout:
    """How the columns of logits are shared by tasks.

    Args:
        columns: those of the first task, then of the second, ...; a slice where they are consecutive.
        count: number of tasks.
        segment: for each of the columns the number of its task; None where all tasks have as many classes.
    """

    columns: Tensor | slice
    count: int
    segment: Tensor | None

    def log_softmax(self, x: Tensor) -> Tensor:
        if isinstance(self.columns, Tensor):
            x = x.index_select(1, self.columns)
        elif self.columns != slice(0, x.shape[1]):
            x = x[:, self.columns]
        if self.segment is not None:
            return _segment_log_softmax(x, self.segment, self.count)
        return x.view(len(x), self.count, -1).log_softmax(dim=2)


@lru_cache(maxsize=64)
def _layout(tasks: tuple[int, ...], device: torch.device) -> _Layout:
    """The layout of a table of tasks. Found once: the table changes with the experience, not with the step."""
    classes: dict[int, list[int]] = {}
    for column, task in enumerate(tasks):
        if task >= 0:
            classes.setdefault(task, []).append(column)
    order = [column for task in classes.values() for column in task]
    segment = [number for number, task in enumerate(classes.values()) for _ in task]
    first = order[0] if order else 0
    with torch.inference_mode(False):  # a tensor of inference mode could not be used in training later
        return _Layout(
            slice(first, first + len(order))
            if order == list(range(first, first + len(order)))
            else torch.tensor(order, device=device),
            len(classes),
            None
            if len({len(task) for task in classes.values()}) == 1
            else torch.tensor(segment, dtype=torch.long, device=device),
        )


def _fixed_shape_log_softmax(x: Tensor, tasks: Tensor) -> Tensor:
    """All K columns, in shapes that do not depend on what the table holds: for compiled graphs and tables on a GPU.

    A column without a task is set to zero, so that it says nothing to a comparison of two results.
    """
    first = (tasks[:, None] == tasks).to(torch.int8).argmax(dim=1)  # the first column of a column's task
    return _segment_log_softmax(x.masked_fill(tasks < 0, 0.0), first, len(tasks))


def _segment_log_softmax(x: Tensor, segment: Tensor, count: int) -> Tensor:
    """Log-softmax of (B, K) within each of ``count`` segments of the columns, segment (K,). Cost: K * B."""
    x = x.T.contiguous()  # sums over segments of rows are several times faster than over segments of columns
    index = segment[:, None].expand_as(x)
    highest = x.new_zeros(count, x.shape[1]).scatter_reduce(0, index, x.detach(), "amax", include_self=False)
    x = x - highest.index_select(0, segment)
    total: Tensor = x.new_zeros(count, x.shape[1]).index_add(0, segment, x.exp())
    return x - total.index_select(0, segment).log()


# ---- precision


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast, on the device of ``x``."""
    kind = x.device.type
    # A graph that is compiled under no autocast may be differentiated under one: it has to hold the switch.
    needed = torch.amp.is_autocast_available(kind) and (
        torch.compiler.is_compiling() or torch.is_autocast_enabled(kind)
    )
    return torch.autocast(kind, enabled=False) if needed else nullcontext()


def float32(x: Tensor) -> Tensor:
    """At least float32: half-precision similarities at temperature 0.01 are off by whole nats."""
    return x if x.dtype == torch.float64 else x.float()


def finite_gradient(loss: Tensor, x: Tensor, wide: Tensor) -> Tensor:
    """The loss; its gradient by a half-precision ``x`` is cut to the largest number of that precision.

    Far from unit length, or at a cold temperature, the derivative of a loss can be too large for float16. Only that is
    cut: what the caller multiplies the loss by comes on top and may overflow, which is how ``GradScaler`` finds its
    scale.

    Args:
        loss: scalar.
        x: what the caller gave.
        wide: the same in float32, which the loss was computed from.
    """
    if wide is not x and wide.requires_grad and loss.requires_grad and not torch.compiler.is_compiling():
        upstream: list[Tensor] = []
        loss.register_hook(upstream.append)
        wide.register_hook(partial(_cut, upstream, torch.finfo(x.dtype).max))
    return loss


def _cut(upstream: list[Tensor], largest: float, gradient: Tensor) -> Tensor:
    limit = upstream.pop().abs() * largest
    return gradient.clamp(-limit, limit)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, however long or short they are.

    A row of zeros (an image whose units are all dead), or so near to it that its square is none, stays as it is and
    gets a plain gradient. ``F.normalize`` would divide that gradient by 1e-12, which a single such image makes enough
    to end a training.
    """
    highest = torch.linalg.vector_norm(x.detach(), torch.inf, dim=1, keepdim=True)
    # Squares of what is left can neither overflow nor vanish. Its length is at least 1, or that of a row of zeros.
    x = x / torch.threshold(highest, torch.finfo(x.dtype).tiny ** 0.5, 1.0)
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.threshold(length, 0.5, 1.0)
