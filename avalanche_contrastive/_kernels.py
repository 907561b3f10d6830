"""What the losses compute with: gradients written out, a softmax for each task, precision. Needs torch only.

Nothing here reads a value of a GPU tensor, so no loss makes the host wait. The tests compare each kernel with a plain
formula.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Term",
    "cross_entropy_of_others",
    "finite_gradient",
    "float32",
    "full_precision",
    "positives",
    "task_log_softmax",
    "unit_rows",
    "without_self",
]


# ---- softmax over similarities to all others


class Term(NamedTuple):
    """A cross-entropy of each row's similarities to all rows but itself, divided by a temperature, with a target.

    Args:
        target: (N, N + M), without gradient; each row sums to one, a row has none of its own.
        temperature: t.
        weight: w, (N,), without gradient; None is the mean.
        factor: f, of the term in a sum of several.
    """

    target: Tensor
    temperature: float
    weight: Tensor | None = None
    factor: float = 1.0


def cross_entropy_of_others(z: Tensor, *terms: Term, others: Tensor | None = None) -> tuple[Tensor, ...]:
    """The sum of weighted cross-entropies of the same similarities.

    With u the rows z and after them the rows others, the sum over the terms of::

        f * sum_i w_i ( log sum_{k != i} exp(z_i . u_k / t)  -  sum_k target_ik z_i . u_k / t )

    The gradient is written out, and computed at once: it takes a matrix of the size of the similarities for each term
    and one product for all, where autograd takes three matrices and two products for each. Second derivatives and
    ``torch.func`` go by autograd.

    Args:
        z: (N, D), of any precision.
        terms: S of them, in float32 at least.
        others: (M, D), likewise, without gradient.

    Returns:
        The sum, and behind it the S terms without gradient, not multiplied by f; all scalars.
    """
    with full_precision(z):
        wide = float32(z)
        # For torch.func the class below would cost every other call 26 us more.
        at_once = _by_autograd if torch._C._are_functorch_transforms_active() else _CrossEntropyOfOthers.apply
        total, *values = at_once(wide, others, terms)
        return total if wide is z else finite_gradient(total, z, wide), *values


def _by_autograd(z: Tensor, others: Tensor | None, terms: tuple[Term, ...]) -> tuple[Tensor, ...]:
    columns, losses = z if others is None else torch.cat([z, others]), []
    for term in terms:
        similarity = without_self(z / term.temperature @ columns.T)
        loss = similarity.logsumexp(dim=1) - (term.target * similarity).sum(dim=1)
        losses.append(loss.mean() if term.weight is None else (loss * term.weight).sum())
    total = sum((term.factor * loss for term, loss in zip(terms, losses, strict=True)), z.new_zeros(()))
    return total, *[loss.detach() for loss in losses]


class _CrossEntropyOfOthers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, others: Tensor | None, terms: tuple[Term, ...]) -> tuple[Tensor, ...]:
        columns = z if others is None else torch.cat([z, others])
        similarity, n = z @ columns.T, len(z)
        losses, slopes = [], []
        for term in terms:
            logits = similarity / term.temperature if term is not terms[-1] else similarity.div_(term.temperature)
            share = without_self(logits).softmax(dim=1)
            # The largest share is 1 / sum_k exp(logit_k - the highest logit).
            loss = logits.amax(dim=1) - share.amax(dim=1).log() - torch.linalg.vecdot(term.target, logits)
            losses.append(loss.mean() if term.weight is None else torch.dot(loss, term.weight))
            scale = 1 / (n * term.temperature) if term.weight is None else (term.weight / term.temperature)[:, None]
            slopes.append(share.sub_(term.target).mul_(scale if term.factor == 1 else scale * term.factor))
        total = losses[0] * terms[0].factor
        for term, loss in zip(terms[1:], losses[1:], strict=True):
            total = total.add(loss, alpha=term.factor)
        ctx.mark_non_differentiable(*losses)
        ctx.set_materialize_grads(False)
        if ctx.needs_input_grad[0]:
            slope = reduce(Tensor.add_, slopes)
            square = slope if others is None else slope[:, :n]
            square.add_(square.T.clone(memory_format=torch.contiguous_format))  # z is both their rows and columns
            ctx.save_for_backward(z, others, slope @ columns)
            ctx.terms = terms
        return total, *losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, None, None]:
        if upstream is None:
            return None, None, None
        z, others, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative it must depend on z
            with full_precision(z):
                (gradient,) = torch.autograd.grad(_by_autograd(z, others, ctx.terms)[0], z, create_graph=True)
        return gradient * upstream, None, None


def without_self(similarity: Tensor, value: float | None = None) -> Tensor:
    """Give self-similarities no weight in a softmax, in place, by the lowest number (nothing is infinite).

    Args:
        similarity: (R, N).
        value: for the diagonal, in place of the lowest number.
    """
    value = torch.finfo(similarity.dtype).min if value is None else value
    if not torch.compiler.is_compiling():
        return similarity.fill_diagonal_(value)
    row, column = (torch.arange(size, device=similarity.device) for size in similarity.shape)  # for any size
    return similarity.masked_fill_(row[:, None] == column, value)


def positives(y: Tensor, others: Tensor, dtype: torch.dtype, *, itself: bool) -> Tensor:
    """Equal weights, with sum one, for all columns with the label of a row: (R, N) from labels (R,) and (N,)."""
    # Compared into floats at once: a matrix of bools and its conversion would take twice the time.
    same = torch.eq(y[:, None], others, out=torch.empty(y.shape[0], others.shape[0], dtype=dtype, device=y.device))
    if not itself:
        without_self(same, 0)
    return same.div_(same.sum(dim=1, keepdim=True))


# ---- a softmax for the classes of each task


def task_log_softmax(tasks: Tensor, temperature: float, *given: Tensor) -> list[Tensor]:
    """Log-softmax within each task of logits divided by a temperature.

    Args:
        tasks: (K,) of any ids, those below 0 left out.
        temperature: T.
        given: logits (B, K) or wider; columns beyond K are left out.

    Returns:
        Of one and the same shape for all given, so that they can be compared; which one is for the fastest way to
        decide.
    """
    if torch.compiler.is_compiling() or tasks.device.type != "cpu":
        return [_fixed_shape_log_softmax(x[:, : len(tasks)] / temperature, tasks) for x in given]
    columns, count, segment = _layout(tuple(tasks.tolist()), given[0].device)
    if isinstance(columns, Tensor):
        logits = [x.index_select(1, columns) / temperature for x in given]
    else:  # the columns are taken first: what is divided lies side by side then
        logits = [(x if columns == slice(0, x.shape[1]) else x[:, columns]) / temperature for x in given]
    if segment is not None:
        return [_segment_log_softmax(x, segment, count) for x in logits]
    return [x.view(len(x), count, -1).log_softmax(dim=2) for x in logits]


class _Layout(NamedTuple):
    """How the columns of logits are shared by tasks.

    Args:
        columns: those of the first task, then of the second, ...; a slice where they are consecutive.
        tasks: their number.
        segment: for each of the columns the number of its task; None where all tasks have as many classes.
    """

    columns: Tensor | slice
    tasks: int
    segment: Tensor | None


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


_has_autocast = lru_cache(torch.amp.is_autocast_available)
_AS_IT_IS = nullcontext()


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast, on the device of ``x``."""
    kind = x.device.type
    if torch.compiler.is_compiling():
        # A graph that is compiled under no autocast may be differentiated under one: it has to hold the switch.
        needed = torch.amp.is_autocast_available(kind)
    else:
        needed = _has_autocast(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if needed else _AS_IT_IS


def float32(x: Tensor) -> Tensor:
    """At least float32: half-precision similarities at temperature 0.01 are off by whole nats."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def finite_gradient(loss: Tensor, x: Tensor, wide: Tensor) -> Tensor:
    """The loss; its gradient by a half-precision ``x`` is cut to the largest number of that precision.

    Far from unit length, or at a cold temperature, the derivative of a loss can be too large for float16. Only that is
    cut: what the caller multiplies the loss by comes on top and may overflow, which is how ``GradScaler`` finds its
    scale.

    Args:
        loss: scalar, or several in one tensor.
        x: what the caller gave.
        wide: the same in float32, which the loss was computed from.
    """
    if wide is not x and wide.requires_grad and loss.requires_grad and not torch.compiler.is_compiling():
        upstream: list[Tensor] = []
        loss.register_hook(upstream.append)
        wide.register_hook(partial(_cut, upstream, torch.finfo(x.dtype).max))
    return loss


def _cut(upstream: list[Tensor], largest: float, gradient: Tensor) -> Tensor:
    limit = upstream.pop().abs().sum() * largest
    return gradient.clamp(-limit, limit)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, however long or short they are.

    A row of zeros (an image whose units are all dead), or so near to it that its square is none, stays as it is and
    gets a plain gradient. ``F.normalize`` would divide that gradient by 1e-12, which a single such image makes enough
    to end a training.
    """
    highest = x.detach().abs().amax(dim=1, keepdim=True)
    # Squares of what is left can neither overflow nor vanish. Its length is at least 1, or that of a row of zeros.
    x = x / torch.threshold(highest, torch.finfo(x.dtype).tiny ** 0.5, 1.0)
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.threshold(length, 0.5, 1.0)
