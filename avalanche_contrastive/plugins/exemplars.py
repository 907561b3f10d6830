"""How the authors choose the images that their methods store, for Avalanche's buffers."""

from typing import Any

import torch
from avalanche.training.storage_policy import ClassBalancedBuffer, ExemplarsSelectionStrategy

__all__ = ["FirstExemplarsSelection", "RandomRemainderBuffer"]


class FirstExemplarsSelection(ExemplarsSelectionStrategy):
    """Keep the first images of each class, in the order of the data set: the choice of SS-IL's authors.

    Give it to a buffer that is balanced over classes, and the buffer to the plugin::

        ParametricBuffer(2000, groupby="class", selection_strategy=FirstExemplarsSelection())
    """

    def make_sorted_indices(self, strategy: Any, data: Any) -> list[int]:
        """The indices of the data as they are, those to keep longest first."""
        return list(range(len(data)))


class RandomRemainderBuffer(ClassBalancedBuffer):
    """A class-balanced buffer that deals the places left over to classes at random, as Co2L's authors do.

    Of M images for K classes each class has M // K places; the remaining M % K places go to as many classes, drawn
    anew at each update. (Avalanche's ``ClassBalancedBuffer`` gives them to the first classes.) The memory can hold
    fewer than M images after an update: a class that has given up an image cannot take it back.

    Args:
        max_size: M.
    """

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size, adaptive_size=True)

    def get_group_lengths(self, num_groups: int) -> list[int]:
        """Places of each class."""
        lengths = [self.max_size // num_groups] * num_groups
        for group in torch.randperm(num_groups)[: self.max_size % num_groups].tolist():
            lengths[group] += 1
        return lengths
