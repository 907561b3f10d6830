"""Views of a training batch, made when the model is called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avalanche_contrastive.data import stack_views
from avalanche_contrastive.plugins.guards import check_finite

__all__ = ["ViewMaker"]


class ViewMaker:
    """A forward pre-hook that gives the model views of its batch, and keeps them by what the model made of them."""

    def __init__(self, augmentation: Callable[[Tensor], Tensor], views: int, where: str, y: Tensor) -> None:
        self.augmentation, self.views, self.where, self.y = augmentation, views, where, y
        self.stacked: Tensor | None = None
        self.kept: list[tuple[Any, Tensor | None]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "ViewMaker":
        # A copy of the model gets views, but keeps its own.
        return ViewMaker(self.augmentation, self.views, self.where, self.y)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Views in the place of the batch."""
        self.stacked = stack_views(args[0], self.augmentation, self.views)
        check_finite("Co2LPlugin", self.where, self.stacked, self.y, "views that the augmentation made of the images")
        return (self.stacked, *args[1:])

    def keep(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the views by the output."""
        self.kept.append((output, self.stacked))

    def views_of(self, output: Any) -> Tensor | None:
        """The views that gave an output; another plugin may have called the model since."""
        return next((views for result, views in self.kept if result is output), self.stacked)
