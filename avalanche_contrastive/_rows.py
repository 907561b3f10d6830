"""Which rows of a batch a process has: all of them, unless a plugin shares each batch between several processes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["BatchRows", "SharesBatches", "WholeBatch", "check_shared", "rows_of"]

Batch = TypeVar("Batch", Tensor, list[int])


class BatchRows(Protocol):
    """How the rows of a batch lie on the processes."""

    def own(self, x: Batch, /) -> Batch:
        """This process's rows of a whole batch (N, ...)."""

    def whole(self, x: Tensor, /) -> Tensor:
        """The whole batch (N, ...) from the rows (n, ...) of each process; gradients flow back."""

    def whole_batch(self, batch: Sequence[Tensor], /) -> list[Tensor]:
        """`whole` of several tensors, without gradients."""

    def shared_statistics(self, model: nn.Module, /) -> AbstractContextManager[None]:
        """Let batch norm use the whole batch while the model runs on the rows of this process."""


class WholeBatch:
    """All rows are here: nothing has to be done."""

    def own(self, x: Batch) -> Batch:
        """All rows."""
        return x

    def whole(self, x: Tensor) -> Tensor:
        """The rows are the whole batch."""
        return x

    def whole_batch(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """The rows are the whole batch."""
        return list(batch)

    def shared_statistics(self, model: nn.Module) -> AbstractContextManager[None]:
        """Batch norm sees the whole batch anyway."""
        return nullcontext()


WHOLE_BATCH = WholeBatch()


class SharesBatches:
    """What marks a plugin that gives each process a part of every batch.

    Attributes:
        rows: of the current batch; None between batches.
    """

    rows: BatchRows | None = None


def rows_of(strategy: Any) -> BatchRows:
    """How the rows of the strategy's current batch lie on the processes."""
    for plugin in strategy.plugins:
        if isinstance(plugin, SharesBatches) and plugin.rows is not None:
            return plugin.rows
    return WHOLE_BATCH


def check_shared(strategy: Any, name: str) -> None:
    """Refuse processes that are joined while nothing brings their batches together.

    Raises:
        ValueError: several processes, and a strategy without a plugin that shares the batches.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes > 1 and not any(isinstance(plugin, SharesBatches) for plugin in strategy.plugins):
        raise ValueError(
            f"{name}: {processes} processes are joined (torch.distributed), but the strategy has no DataParallel "
            "plugin: each would train a model of its own, and Avalanche would give each a part of some loaders. Add "
            "avalanche_contrastive.parallel.DataParallel() to its plugins."
        )
