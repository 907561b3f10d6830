"""Memory: the exemplars of any Avalanche storage policy, and how they come into a batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import (
    BalancedExemplarsBuffer,
    ClassBalancedBuffer,
    ExemplarsBuffer,
    ExperienceBalancedBuffer,
    ParametricBuffer,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from avalanche_contrastive._checks import check_count, form_of
from avalanche_contrastive._loaders import arguments_of, torch_loader
from avalanche_contrastive._torch import own_random_state, own_seed, preserved_modes
from avalanche_contrastive.data.compact import compacted
from avalanche_contrastive.data.fetch import joint_plan, plan_of
from avalanche_contrastive.data.memory import Batch, collate
from avalanche_contrastive.plugins.method import MethodPlugin
from avalanche_contrastive.tasks import is_piece

__all__ = ["AnyReplayLoader", "ReplayLoader", "ReplayMethodPlugin", "with_replay"]


class ReplayMethodPlugin(MethodPlugin):
    """A method with exemplars: every batch gets ``batch_size_mem`` replayed rows after its current ones.

    Attributes:
        storage_policy: Avalanche's buffer; updated after each experience.

    Args:
        mem_size: exemplars in all; 0 replays nothing.
        batch_size_mem: replayed rows per step; None adds no rows (the method mixes them in some other way).
        storage_policy: any Avalanche buffer of size ``mem_size``; None: class-balanced, random. Those of the
            papers' code are in ``plugins.exemplars``.
        teacher_mode: see ``MethodPlugin``.
    """

    def __init__(
        self,
        *,
        mem_size: int,
        batch_size_mem: int | None,
        storage_policy: ExemplarsBuffer | None,
        teacher_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__(teacher_mode=teacher_mode)
        name = type(self).__name__
        if batch_size_mem is not None:
            check_count(name, 1, batch_size_mem=batch_size_mem)
        self.mem_size = mem_size
        self.batch_size_mem = batch_size_mem
        self.storage_policy = _checked_storage(name, mem_size, storage_policy)
        self._memory: Any = None

    @property
    def memory(self) -> Any:
        """The exemplars of the earlier experiences, an Avalanche dataset.

        Read once after each experience: most of Avalanche's buffers put it together anew each time they are asked.
        """
        if self._memory is None:
            policy: Any = self.storage_policy
            in_groups = type(policy).buffer is BalancedExemplarsBuffer.buffer
            self._memory = compacted(policy.buffer_datasets) if in_groups else policy.buffer
        return self._memory

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """The teacher; and the memory as it is by now."""
        super().before_train_dataset_adaptation(strategy, **kwargs)
        self._memory = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a memory that is not empty at the start."""
        super().before_training_exp(strategy, **kwargs)
        if not self.ledger and (stored := len(self.memory)):
            raise ValueError(
                f"{type(self).__name__}: the storage policy holds {stored} samples before the first experience. Is it "
                "another plugin's too, or left from an earlier run? Give each plugin one of its own."
            )
        if is_piece(strategy.experience) and 0 < self.mem_size <= len(self.ledger) and _by_update(self.storage_policy):
            raise ValueError(
                f"{type(self).__name__}: {type(self.storage_policy).__name__} shares its {self.mem_size} slots between "
                f"the experiences, and each piece of an online stream is one: piece {len(self.ledger) + 1} and all "
                "after it would get none. Use ReservoirSamplingBuffer or ClassBalancedBuffer on online streams."
            )

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Add the replayed rows to whatever loader the other plugins have settled on by now, in an order of its own."""
        if self.batch_size_mem is None or len(self.memory) == 0:
            return
        if not isinstance(strategy.dataloader, (ReplayLoader, AnyReplayLoader)):
            strategy.dataloader = with_replay(strategy.dataloader, self.memory.train(), self.batch_size_mem)
        strategy.dataloader.order.seed = own_seed(len(self.ledger), strategy.clock.train_exp_epochs)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Teacher and ledger first, then the exemplars of the experience."""
        super().after_training_exp(strategy, **kwargs)
        # Avalanche's herding leaves the model in evaluation mode.
        with own_random_state(len(self.ledger)), preserved_modes(strategy.model):
            self._store(strategy)
        self._memory = None

    def _store(self, strategy: Any) -> None:
        if self.mem_size == 0:
            return  # Avalanche's herding fails on nothing to choose from
        try:
            self.storage_policy.post_adapt(strategy, strategy.experience)
            self._compact()
        except (RuntimeError, ValueError) as error:
            groups = getattr(self.storage_policy, "buffer_groups", {}).values()
            if all(len(group.buffer) > 0 for group in groups):
                raise
            raise ValueError(
                f"{type(self).__name__}: the storage policy cannot update a group without exemplars: {self.mem_size} "
                f"for {len(groups)} groups or more (classes or experiences, by its groupby=). Avalanche's selection by "
                "features, as in herding, needs one of each at least. Take a larger mem_size, or another policy."
            ) from error

    def _compact(self) -> None:
        """Let the buffers hold no more datasets than exemplars, whatever the number of experiences."""
        policy: Any = self.storage_policy
        for group in getattr(policy, "buffer_groups", {}).values() or [policy]:
            data = group.buffer
            if isinstance(data, AvalancheDataset) and len(data._datasets) > len(data):
                group.buffer = compacted([data])


def _by_update(storage_policy: ExemplarsBuffer) -> bool:
    """Whether a buffer keeps a group for each update, however many there are."""
    by_experience = isinstance(storage_policy, ParametricBuffer) and storage_policy.groupby == "experience"
    return by_experience or isinstance(storage_policy, ExperienceBalancedBuffer)


def _checked_storage(name: str, mem_size: int, storage_policy: ExemplarsBuffer | None) -> ExemplarsBuffer:
    """The storage policy of a plugin: the user's, or a class-balanced random one of ``mem_size`` samples."""
    check_count(name, 0, mem_size=mem_size)
    if storage_policy is None:
        return ClassBalancedBuffer(mem_size, adaptive_size=True)
    if not isinstance(storage_policy, ExemplarsBuffer):
        raise TypeError(
            f"{name}: storage_policy must be one of Avalanche's buffers (avalanche.training.storage_policy), got "
            f"{type(storage_policy).__name__}."
        )
    if storage_policy.max_size != mem_size:
        raise ValueError(
            f"{name}: mem_size is {mem_size}, but the storage policy holds {storage_policy.max_size}. Pass the same "
            "number to both."
        )
    return storage_policy


# ---- rows of the memory beside those of a loader


def with_replay(loader: Any, memory: Any, rows: int) -> "ReplayLoader | AnyReplayLoader":
    """A loader whose batches carry ``rows`` samples of the memory after the loader's own.

    The number of replayed rows is the same in every batch, however small the memory: it is gone through in random
    order, again and again, which follows from ``order.seed``. The global random state is not drawn from.

    Args:
        loader: torch's, one of Avalanche's, or anything that gives batches. The collation of the first two is used for
            the batch as a whole.
        memory: the replayed samples, an Avalanche dataset.
        rows: replayed samples per batch.
    """
    source = torch_loader(loader)
    return AnyReplayLoader(loader, memory, rows) if source is None else ReplayLoader(loader, source, memory, rows)


class ReplayLoader(DataLoader[Any]):
    """The torch loader of a loader, with rows of the memory behind its own in every batch."""

    def __init__(self, loader: Any, source: DataLoader[Any], memory: Any, rows: int) -> None:
        self.loader = loader
        data = _BothDatasets(source.dataset, memory, at_once=source.collate_fn in (default_collate, collate))
        self.order = _BothSamplers(source.batch_sampler, data.current_size, len(memory), rows)
        super().__init__(
            data,
            batch_sampler=self.order,
            collate_fn=_Collation(source.collate_fn, source.dataset),
            generator=source.generator,
            **arguments_of(source),
        )


class AnyReplayLoader:
    """The batches of any iterable, with rows of the memory behind each."""

    def __init__(self, loader: Any, memory: Any, rows: int) -> None:
        self.loader = loader
        self.order = _MemoryOrder(len(memory), rows)
        own_draws = torch.Generator()
        self.memory = DataLoader(memory, batch_sampler=self.order, collate_fn=memory.collate_fn, generator=own_draws)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch, replayed in zip(self.loader, self.memory, strict=False):
            yield _joined(batch, replayed)


class _MemoryOrder(Sampler[list[int]]):
    """Indices of the replayed rows, batch by batch without an end: all in random order, then all in another order."""

    def __init__(self, size: int, rows: int) -> None:
        self.size, self.rows, self.seed = size, rows, 0

    def __iter__(self) -> Iterator[list[int]]:
        draws = torch.Generator().manual_seed(self.seed)
        torch.empty((), dtype=torch.int64).random_(generator=draws)  # what a loader of torch's draws for its workers
        order: list[int] = []
        while True:
            while len(order) < self.rows:
                order = order + torch.randperm(self.size, generator=draws).tolist()
            yield order[: self.rows]
            order = order[self.rows :]


class _BothSamplers(_MemoryOrder):
    """Batches of indices of the current data, each followed by indices of the memory, which lies behind it."""

    def __init__(self, batches: Any, current: int, size: int, rows: int) -> None:
        super().__init__(size, rows)
        self.batches, self.current = batches, current

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch, replayed in zip(self.batches, super().__iter__(), strict=False):
            yield [*batch, *(self.current + i for i in replayed)]


class _BothDatasets(Dataset[Any]):
    """Current data and memory; the samples of a batch are fetched from both at once, or from each that can do that.

    Args:
        current: data set.
        memory: data set.
        at_once: whether the collation is torch's own, for which a fetched batch is collated already.
    """

    def __init__(self, current: Any, memory: Any, *, at_once: bool) -> None:
        self.current, self.memory, self.current_size = current, memory, len(current)
        first, second = (plan_of(current), plan_of(memory)) if at_once else (None, None)
        self.plan = None if first is None or second is None else joint_plan([first, second.cut_to(first)])

    def __len__(self) -> int:
        return self.current_size + len(self.memory)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        batch = None if self.plan is None else self.plan.fetch(indices)
        if batch is not None:
            return batch
        current = [i for i in indices if i < self.current_size]
        replayed = [i - self.current_size for i in indices if i >= self.current_size]
        return [_fetched(self.current, current), _fetched(self.memory, replayed)]


def _fetched(data: Any, indices: list[int]) -> Any:
    return data.__getitems__(indices) if hasattr(data, "__getitems__") else [data[i] for i in indices]


class _Collation:
    """A batch of the samples of both: each by torch's own collation, or all together by the user's.

    Another collation may make of samples what fits these samples only: it pads them to the longest, say.
    Class-balanced buffers of Avalanche add task labels to streams that have none: those are left out.
    """

    def __init__(self, collate: Any, current: Any) -> None:
        self.collate, self.current = collate, current

    def __call__(self, samples: Sequence[Any]) -> Any:
        if isinstance(samples, Batch):
            return samples.collated()
        current, replayed = samples
        if self.collate in (default_collate, collate) and len(current) and len(replayed):
            return _joined(self.collate(current), self.collate(replayed))
        if not len(replayed):
            return self.collate(current)
        width = len(current[0] if len(current) else self.current[0])  # none here, in one of several processes
        return self.collate([*current, *(tuple(sample)[:width] for sample in replayed)])


def _joined(batch: Any, rows: Any) -> list[Any]:
    if len(rows) < len(batch):
        raise ValueError(
            f"a current sample has {len(batch)} parts but a replayed one {len(rows)}: the training dataset carries "
            "attributes that the buffer does not. Does another plugin add some to strategy.adapted_dataset?"
        )
    names = ("images", "labels", *(f"parts {number}" for number in range(2, len(batch))))
    return [_joined_part(*parts) for parts in zip(names, batch, rows, strict=False)]


def _joined_part(name: str, current: Any, replayed: Any) -> Any:
    if isinstance(current, Mapping):
        return {key: _joined_part(name, part, replayed[key]) for key, part in current.items()}
    if isinstance(current, (list, tuple)) and current and isinstance(current[0], (Tensor, Mapping)):
        return [_joined_part(name, *parts) for parts in zip(current, replayed, strict=True)]
    tensors = isinstance(current, Tensor) and isinstance(replayed, Tensor)
    if not tensors or (current.shape[1:], current.dtype) != (replayed.shape[1:], replayed.dtype):
        sample, stored = (part[0] if isinstance(part, Tensor) else part for part in (current, replayed))
        raise ValueError(  # torch would mix the types
            f"{name} of this experience are {form_of(sample)}, those in the memory {form_of(stored)}, and one batch "
            "holds both. Give all experiences samples of one size and type, by a transform."
        )
    return torch.cat([current, replayed])
