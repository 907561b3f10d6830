"""Each process's share of the batches of any loader, and its own random numbers beside the shared ones."""

import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.determinism.rng_manager import RNGManager
from torch.utils.data import DataLoader, Sampler

from avalanche_contrastive._loaders import arguments_of, torch_loader, unsharded
from avalanche_contrastive._torch import own_random_state
from avalanche_contrastive.parallel.collectives import Rows, split

__all__ = ["OwnRandom", "ShardedLoader"]


class OwnRandom:
    """Random numbers of this process alone, beside those that all processes draw alike (torch's, numpy's, Python's)."""

    def __init__(self) -> None:
        self._parked: dict[str, Any] = {}
        self._is_own = False

    def restart(self, *counters: int) -> None:
        """Begin anew from the user's seed and some counters, one of them the number of the process."""
        with own_random_state(*counters):
            self._parked = _random_state()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this process's numbers."""
        with self._drawing(own=True):
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Draw from the shared numbers, also within `own`."""
        with self._drawing(own=False):
            yield

    @contextmanager
    def _drawing(self, *, own: bool) -> Iterator[None]:
        before = self._is_own
        self._switch(own)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, own: bool) -> None:
        if own is self._is_own:
            return
        current = _random_state()
        for name, state in self._parked.items():
            RNGManager.random_generators[name]["load_state"](state)
        self._parked, self._is_own = current, own


def _random_state() -> dict[str, Any]:
    # To ask for a GPU where there is none takes longer than all the others.
    skipped = () if torch.cuda.is_initialized() else ("torch.cuda",)
    generators = RNGManager.random_generators.items()
    return {name: generator["save_state"]() for name, generator in generators if name not in skipped}


class ShardedLoader:
    """The rows of one process of every batch of a loader, which may be any; the batches are those of the loader.

    Of torch's and Avalanche's loaders only the own rows are loaded; any other is gone through whole by every process.
    A process that has no row of a (last, small) batch gets one of the others', see ``Rows``.

    Attributes:
        sizes: rows of each process in the batch that was given last.
        mark: a number that follows from what the whole of that batch is.

    Args:
        loader: gives batches as sequences of tensors with a common first axis.
        rank: of this process.
        processes: in all.
        random: this process's numbers, which samples are made with; their order is drawn from the shared ones.
    """

    def __init__(self, loader: Any, rank: int, processes: int, random: OwnRandom) -> None:
        self.loader = unsharded(loader)
        self.rank, self.processes, self.random = rank, processes, random
        self.sizes: tuple[int, ...] = ()
        self.mark = 0
        self._source: DataLoader[Any] | None = None
        self._sharded: DataLoader[Any] | None = None
        self._seeds = torch.Generator()  # of the workers
        self._batches: deque[tuple[tuple[int, ...], int]] = deque()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        source = torch_loader(self.loader)
        for batch, sizes, mark in self._sliced() if source is None else self._loaded(source):
            self.sizes, self.mark = sizes, mark
            yield batch

    def __getattr__(self, name: str) -> Any:
        # Whatever else another plugin asks of a loader is the whole one's.
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def _loaded(self, source: DataLoader[Any]) -> Iterator[tuple[Any, tuple[int, ...], int]]:
        """Own rows only are loaded."""
        if self._sharded is None or self._source is not source or not source.persistent_workers:
            # The seed of the workers, which one process would draw here: all later draws shall be the same.
            torch.empty((), dtype=torch.int64).random_(generator=source.generator)
            self._source, self._sharded = source, self._shard(source)
        self._batches.clear()
        with self.random.own():
            self._seeds.manual_seed(int(torch.randint(2**31, ())))
        batches = iter(self._sharded)
        while True:
            with self.random.own():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch, *self._batches.popleft()

    def _shard(self, source: DataLoader[Any]) -> DataLoader[Any]:
        sampler = _OwnRows(source.batch_sampler, self.rank, self.processes, self.random, self._batches)
        return DataLoader(
            source.dataset,
            batch_sampler=sampler,
            generator=self._seeds,
            collate_fn=source.collate_fn,
            **arguments_of(source),
        )

    def _sliced(self) -> Iterator[tuple[Any, tuple[int, ...], int]]:
        """Everything is loaded, with the shared random numbers, so that all processes see the same."""
        for batch in self.loader:
            rows = Rows(split(len(batch[1]), self.processes), self.rank)
            mark = zlib.crc32(batch[1].cpu().numpy().tobytes())
            yield [rows.own(x) for x in batch], rows.sizes, mark


class _OwnRows(Sampler[list[int]]):
    """Own indices of every batch of a batch sampler; notes of each batch how it is split and what it is."""

    def __init__(
        self, sampler: Any, rank: int, processes: int, random: OwnRandom, splits: deque[tuple[tuple[int, ...], int]]
    ) -> None:
        self.sampler, self.rank, self.processes, self.random, self.splits = sampler, rank, processes, random, splits

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self.sampler)
        while True:
            with self.random.shared():
                batch = next(batches, None)
            if batch is None:
                return
            indices = [int(index) for index in batch]
            rows = Rows(split(len(indices), self.processes), self.rank)
            self.splits.append((rows.sizes, zlib.crc32(str(indices).encode())))
            yield rows.own(indices)
