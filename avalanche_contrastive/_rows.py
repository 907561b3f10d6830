"""Which rows of a batch a process has: all of them, unless a plugin shares each batch between several processes."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor

__all__ = ["BatchRows", "SharesBatches", "check_shared", "sharing_plugin"]

Batch = TypeVar("Batch", Tensor, list[int])


class BatchRows(Protocol):
    """How the rows of a batch lie on the processes."""

    def own(self, x: Batch, /) -> Batch:
        """This process's rows of a whole batch (N, ...)."""

    def whole(self, x: Tensor, /) -> Tensor:
        """The whole batch (N, ...) from the rows (n, ...) of each process; gradients flow back."""

    def whole_batch(self, batch: Sequence[Tensor], /) -> list[Tensor]:
        """`whole` of several tensors, without gradients."""

    def run(self, strategy: Any, /) -> Tensor:
        """The output of the strategy's forward pass for the whole batch, of which each process runs its rows."""


class SharesBatches:
    """What marks a plugin that gives each process a part of every batch.

    Attributes:
        rows: of the current batch; None between batches.
    """

    rows: BatchRows | None = None


def sharing_plugin(strategy: Any) -> SharesBatches | None:
    """The strategy's plugin that shares the batches between processes; None where every process has all rows."""
    return next((plugin for plugin in strategy.plugins if isinstance(plugin, SharesBatches)), None)


def check_shared(strategy: Any, name: str) -> None:
    """Refuse processes that are joined while nothing brings their batches together.

    Raises:
        ValueError: several processes, and a strategy without a plugin that shares the batches.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes > 1 and sharing_plugin(strategy) is None:
        raise ValueError(
            f"{name}: {processes} processes are joined (torch.distributed), but the strategy has no DataParallel "
            "plugin: each would train a model of its own, and Avalanche would give each a part of some loaders. Add "
            "avalanche_contrastive.parallel.DataParallel() to its plugins."
        )
