"""What the processes of one training tell each other: rows, gradients, batch statistics. Torch only.

Every process must call each of these at the same time. A batch is cut into as many blocks of rows as there are
processes; what each makes of its block is put together again by `Rows.whole`, and then every process computes the loss
of the whole batch. Gradients add up over processes on the way back through `Rows.whole`, and `average_gradients`
divides by their number: together exactly the gradient of the loss, and of whatever a penalty adds to it on every
process alike.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Rows", "agreed", "average_gradients", "broadcast", "of_all_processes", "processes", "rank", "split"]

Batch = TypeVar("Batch", Tensor, list[int])
Result = TypeVar("Result")


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def split(rows: int, parts: int) -> tuple[int, ...]:
    """Rows of each of ``parts`` blocks, as equal as can be, larger ones first; 0 where there are too few rows."""
    return tuple(rows // parts + (part < rows % parts) for part in range(parts))


def of_all_processes(value: Any) -> list[Any]:
    """What each process has for a picklable value, by rank; no tensors, which Avalanche's unpickler fails to read."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def agreed(do: Callable[[], Result], kind: type[Exception]) -> Result:
    """What a function gives, once it has succeeded in all processes. One that went on would wait for the others.

    Args:
        do: the function.
        kind: of the error in a process that has none itself.

    Raises:
        Exception: what the function has raised here, or else an error of that kind with the words of another process.
    """
    error: Exception | None = None
    try:
        result = do()
    except Exception as caught:
        error = caught
    others = [words for words in of_all_processes(None if error is None else str(error)) if words is not None]
    if error is not None:
        raise error
    if others:
        raise kind(f"failed in another process: {others[0]}")
    return result


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch lie on the processes; without sizes all are here, and nothing needs to be done.

    A process without a row works on one of the others' rows for show (a batch of none breaks many layers): what it
    makes of it is left out of everything.

    Args:
        sizes: rows of each process, in the order of their ranks.
        rank: of this process.
        extra: further rows for show that this process's tensors may have at their end.
    """

    sizes: tuple[int, ...] = ()
    rank: int = 0
    extra: int = 0

    @property
    def here(self) -> int:
        """Rows of this process."""
        return self.sizes[self.rank]

    @property
    def length(self) -> int:
        """Rows of a tensor of this process: its own, or the one for show."""
        return max(self.here, 1)

    def own(self, x: Batch) -> Batch:
        """This process's rows of a whole batch (N, ...), or of a list; one of the others' where it has none."""
        if not self.sizes:
            return x
        start = min(sum(self.sizes[: self.rank]), sum(self.sizes) - 1)
        return x[start : start + self.length]

    def whole(self, x: Tensor) -> Tensor:
        """The whole batch (N, ...) of what each process has for its rows, (n, ...); gradients flow back.

        Raises:
            ValueError: not a row for each of the rows here.
        """
        if not self.sizes:
            return x
        if x.ndim == 0 or len(x) not in (self.length, self.length + self.extra):
            raise ValueError(
                f"a batch is trained by {len(self.sizes)} processes and this one has {self.length} rows of it, but got "
                f"a tensor of shape {tuple(x.shape)} for them. Does the model give a row for each sample?"
            )
        gathered: Tensor = _Gather.apply(x[: self.here], self.sizes, self.rank)
        return gathered

    def whole_batch(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """`whole` of several tensors in one message, without gradients."""
        if not self.sizes:
            return list(batch)
        kinds = [(x.dtype, x.shape[1:]) for x in batch]
        packed = self.whole(torch.cat([_bytes(x) for x in batch], dim=1))
        widths = [dtype.itemsize * shape.numel() for dtype, shape in kinds]
        columns = packed.split(widths, dim=1)
        # A copy of its own: of a single row, a column counts as contiguous wherever it starts.
        return [
            column.clone(memory_format=torch.contiguous_format).view(dtype).reshape(len(packed), *shape)
            for column, (dtype, shape) in zip(columns, kinds, strict=True)
        ]

    def run(self, strategy: Any) -> Tensor:
        """The output of the strategy's forward pass for the whole batch, of which each process runs its rows."""
        batch, strategy.mbatch = strategy.mbatch, [self.own(part) for part in strategy.mbatch]
        try:
            with self.shared_statistics(strategy.model):
                return self.whole(strategy.forward())
        finally:
            strategy.mbatch = batch

    @contextmanager
    def shared_statistics(self, model: nn.Module) -> Iterator[None]:
        """Let the batch-norm layers of a model normalise by the whole batch while it runs on the rows here.

        torch's own ``SyncBatchNorm`` runs on GPUs only, and counts the row for show of a process that has none.
        """
        layers = [module for module in model.modules() if self.sizes and type(module).forward is _BatchNorm.forward]
        before = [vars(layer).get("forward") for layer in layers]  # within the same for more rows
        for layer in layers:
            layer.forward = partial(_batch_norm, layer, self)
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


class _Gather(torch.autograd.Function):
    """Rows of all processes, one after the other; the gradient of the own rows is the sum over all processes'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        height = max(sizes)
        padded = x.new_zeros(height, *x.shape[1:])
        padded[: len(x)] = x
        blocks = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(blocks, padded)
        return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.split(ctx.sizes)[ctx.rank], None, None


def _batch_norm(layer: Any, rows: Rows, x: Tensor) -> Tensor:
    """What ``layer(x)`` gives of the whole batch, for the rows here, (n, C, ...)."""
    if not layer.training and layer.running_mean is not None:
        plain: Tensor = _BatchNorm.forward(layer, x)
        return plain
    layer._check_input_dim(x)
    given = rows.length + rows.extra
    if len(x) % given:
        raise ValueError(
            f"a batch-norm layer got {len(x)} rows in a process that has {given} of the batch. Does the model run its "
            "batch in parts, one after the other? Several processes cannot tell which parts belong together."
        )
    axes = [0, *range(2, x.ndim)]
    values = x.numel() // x.shape[1] // given  # of each channel in a row
    total = values * sum(rows.sizes)
    if total == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    precise = x if x.dtype == torch.float64 else x.float()
    counted = precise[: len(x) // given * rows.length]
    mean, variance = _moments(counted, axes, rows, values, total)
    if layer.training and layer.track_running_stats:
        _keep_statistics(layer, mean.detach(), variance.detach() * (total / (total - 1)))
    shape = [1, -1, *[1] * (x.ndim - 2)]
    normal: Tensor = (precise - mean.reshape(shape)) * (variance + layer.eps).rsqrt().reshape(shape)
    if layer.affine:
        normal = normal * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    return normal.to(x.dtype)


def _moments(x: Tensor, axes: list[int], rows: Rows, values: int, total: int) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel over all processes; those of the parts put together, so exact."""
    mean = x.mean(dim=axes)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    squares = (x - mean.reshape(shape)).square().sum(dim=axes)
    world = len(rows.sizes)
    means, squares = _Gather.apply(torch.stack([mean, squares])[None], (1,) * world, rows.rank).unbind(dim=1)
    counts = torch.tensor([[values * size] for size in rows.sizes], dtype=x.dtype, device=x.device)
    mean = (counts * means).sum(dim=0) / total
    squares = squares * (counts > 0) + counts * (means - mean).square()
    return mean, squares.sum(dim=0) / total


@torch.no_grad()
def _keep_statistics(layer: Any, mean: Tensor, variance: Tensor) -> None:
    layer.num_batches_tracked += 1
    momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), momentum)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Let every process have the mean of all processes' gradients; one that is None counts as zero.

    A parameter that has a gradient on no process (another task's head) keeps none, and the optimiser leaves it alone.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for (device, dtype), group in kinds.items():
        has = torch.tensor([parameter.grad is not None for parameter in group], dtype=dtype, device=device)
        grads = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in group]
        flat = torch.cat([has, *grads]) / processes()
        dist.all_reduce(flat)
        has, *grads = flat.split([len(group), *[p.numel() for p in group]])
        for number, (parameter, grad) in enumerate(zip(group, grads, strict=True)):
            if parameter.grad is not None:
                parameter.grad.copy_(grad.view_as(parameter))
            elif has[number] > 0:
                parameter.grad = grad.view_as(parameter).clone()


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors of one device with those of process 0, in one message."""
    tensors = list(tensors)
    if not tensors:
        return
    flat = torch.cat([_bytes(x).flatten() for x in tensors])
    dist.broadcast(flat, 0)
    for x, part in zip(tensors, flat.split([x.numel() * x.element_size() for x in tensors]), strict=True):
        x.copy_(part.clone().view(x.dtype).reshape(x.shape))


def _bytes(x: Tensor) -> Tensor:
    """A tensor's memory, row by row: (n, bytes), or (1, 1) for a single number."""
    rows = x.detach().flatten(1) if x.ndim > 1 else x.detach().reshape(-1, 1)
    return rows.contiguous().view(torch.uint8)
