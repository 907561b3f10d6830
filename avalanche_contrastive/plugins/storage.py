"""The memories of the papers' code, as an Avalanche storage policy."""

from typing import Any

import torch
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ExemplarsBuffer

__all__ = ["ClassMemory"]


class ClassMemory(BalancedExemplarsBuffer[Any]):
    """As many exemplars of each class as of any other, or one more.

    Args:
        max_size: exemplars in all.
        first: keep the first images of each class in storage order, and the one more for the classes that came last
            (SS-IL's code). Otherwise images are drawn at random, and the classes with one more, too (Co2L's code).
    """

    def __init__(self, max_size: int, *, first: bool) -> None:
        super().__init__(max_size)
        self.first = first

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Take in the images of an experience, those of a class that comes back behind its stored ones."""
        for c, rows in sorted(exp.dataset.targets.val_to_idx.items()):
            order = range(len(rows)) if self.first else torch.randperm(len(rows)).tolist()
            images = exp.dataset.subset([int(rows[i]) for i in order][: self.max_size])
            group = self.buffer_groups.setdefault(int(c), _Exemplars(self.max_size))
            group.buffer = group.buffer.concat(images) if len(group.buffer) else images
        self.resize(agent, self.max_size)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Cut each class to its share."""
        self.max_size = new_size
        each = new_size // max(len(self.buffer_groups), 1)
        larger = [c for c, group in self.buffer_groups.items() if len(group.buffer) > each]
        spare = new_size - sum(min(len(group.buffer), each) for group in self.buffer_groups.values())
        order = larger[::-1] if self.first else [larger[i] for i in torch.randperm(len(larger)).tolist()]
        with_one_more = set(order[:spare])
        for c, group in self.buffer_groups.items():
            group.resize(strategy, each + (c in with_one_more))


class _Exemplars(ExemplarsBuffer):
    """Of one class, the most wanted first."""

    def resize(self, strategy: Any, new_size: int) -> None:
        self.max_size = new_size
        buffer: Any = self.buffer
        self.buffer = buffer.subset(list(range(min(new_size, len(buffer)))))
