"""Replay rows beside the current ones, from any Avalanche storage policy."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExemplarsBuffer,
    ExperienceBalancedBuffer,
    ParametricBuffer,
)
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from avalanche_contrastive._checks import came, check_count
from avalanche_contrastive._torch import own_random_state, own_seed, preserved_modes
from avalanche_contrastive.plugins.method import MethodPlugin
from avalanche_contrastive.tasks import is_piece

__all__ = ["ReplayLoader", "ReplayMethodPlugin"]


class ReplayMethodPlugin(MethodPlugin):
    """A method with exemplars: every batch gets ``batch_size_mem`` replayed rows after its current ones.

    Attributes:
        storage_policy: Avalanche's buffer; updated after each experience.

    Args:
        mem_size: exemplars in all; 0 replays nothing.
        batch_size_mem: replayed rows per step; None adds no rows (the method mixes them in some other way).
        storage_policy: any Avalanche buffer of size ``mem_size``; None: class-balanced, random.
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
        self.storage_policy = make_storage(name, mem_size, storage_policy)
        self._memory: Any = None

    @property
    def memory(self) -> Any:
        """The exemplars of the earlier experiences, an Avalanche dataset.

        Read once per experience: most of Avalanche's buffers put it together anew each time they are asked.
        """
        if self._memory is None:
            self._memory = self.storage_policy.buffer
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

    def before_training_epoch(self, strategy: Any, num_workers: int = 0, **kwargs: Any) -> None:
        """Add the replayed rows to whatever loader the other plugins have settled on by now."""
        if self.batch_size_mem is None or isinstance(strategy.dataloader, ReplayLoader):
            return
        if len(self.memory) > 0:
            seed = own_seed(len(self.ledger), strategy.clock.train_exp_epochs)
            strategy.dataloader = ReplayLoader(
                strategy.dataloader, self.memory.train(), self.batch_size_mem, seed=seed, num_workers=num_workers
            )

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Give the loader back as it was."""
        if isinstance(strategy.dataloader, ReplayLoader):
            strategy.dataloader = strategy.dataloader.loader

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
        except (RuntimeError, ValueError) as error:
            groups = getattr(self.storage_policy, "buffer_groups", {}).values()
            if all(len(group.buffer) > 0 for group in groups):
                raise
            raise ValueError(
                f"{type(self).__name__}: the storage policy cannot update a group without exemplars: {self.mem_size} "
                f"for {len(groups)} groups or more (classes or experiences, by its groupby=). Avalanche's selection by "
                "features, as in herding, needs one of each at least. Take a larger mem_size, or another policy."
            ) from error


def _by_update(storage_policy: ExemplarsBuffer) -> bool:
    """Whether a buffer keeps a group for each update, however many there are."""
    by_experience = isinstance(storage_policy, ParametricBuffer) and storage_policy.groupby == "experience"
    return by_experience or isinstance(storage_policy, ExperienceBalancedBuffer)


def make_storage(name: str, mem_size: int, storage_policy: ExemplarsBuffer | None) -> ExemplarsBuffer:
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


class ReplayLoader:
    """A loader whose batches carry ``rows`` replayed samples after the loader's own.

    The number of replayed rows is the same in every batch, however small the memory: it is gone through in random
    order, again and again. Lives for one epoch, so that nothing holds an iterator in between.

    Args:
        loader: gives batches as sequences of tensors with a common first axis.
        memory: the replayed samples, an Avalanche dataset.
        rows: replayed samples per batch.
        seed: of the order; the global random state is not drawn from.
        num_workers: of the memory's own loader.
    """

    def __init__(self, loader: Any, memory: Any, rows: int, *, seed: int = 0, num_workers: int = 0) -> None:
        self.loader, self.memory, self.rows = loader, memory, rows
        self.seed, self.num_workers = seed, num_workers

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        current, memory = self.parts()
        replayed = iter(memory)
        for batch in current:
            yield self.joined([batch, next(replayed)])

    def parts(self) -> tuple[Any, DataLoader[Any]]:
        """The loaders of the current and of the replayed rows; the second never ends. `joined` joins their batches."""
        draws = torch.Generator().manual_seed(self.seed)
        replayed = DataLoader(
            self.memory,
            batch_size=self.rows,
            sampler=_Endless(len(self.memory), draws),
            generator=draws,
            num_workers=self.num_workers,
        )
        return self.loader, replayed

    @staticmethod
    def joined(batches: Sequence[Any]) -> list[Tensor]:
        """A batch of each of the ``parts`` as one."""
        return _joined(*batches)

    def __getattr__(self, name: str) -> Any:
        # Whatever else another plugin asks of a loader is the wrapped one's.
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


class _Endless(Sampler[int]):
    """All indices in random order, then all in another order, and so on."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.size, generator=self.generator).tolist()


def _joined(batch: Any, rows: Any) -> list[Tensor]:
    # Class-balanced buffers of Avalanche add task labels to streams that have none: those are left out.
    if len(rows) < len(batch):
        raise ValueError(
            f"a current sample has {len(batch)} parts but a replayed one {len(rows)}: the training dataset carries "
            "attributes that the buffer does not. Does another plugin add some to strategy.adapted_dataset?"
        )
    for number, (current, replayed) in enumerate(zip(batch, rows, strict=False)):
        if (current.shape[1:], current.dtype) != (replayed.shape[1:], replayed.dtype):  # torch would mix the types
            raise ValueError(
                f"{('images', 'labels')[number] if number < 2 else f'parts {number}'} of this experience are "
                f"{came(current[0])}, those in the memory {came(replayed[0])}, and one batch holds both. Give all "
                "experiences samples of one size and type, by a transform."
            )
    return [torch.cat([current, replayed]) for current, replayed in zip(batch, rows, strict=False)]
