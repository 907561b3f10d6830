"""Two views of an image: in the data pipeline (``TwoViews``) or on the batch (``stack_views``)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["TwoViews", "stack_views"]


class TwoViews:
    """Run a random transform several times on one image and stack the results along a new leading axis.

    Wrap the *training* transform in it, ``TwoViews(transform)``; a batch is then (B, V, C, H, W). The transform must
    end in a tensor and draw anew at each call, as torchvision's random transforms do.

    Args:
        transform: maps an image (PIL, array or tensor) to a tensor (C, H, W).
        views: V >= 2.
    """

    def __init__(self, transform: Callable[[Any], Tensor], views: int = 2) -> None:
        if not callable(transform):
            raise TypeError(f"TwoViews: transform must be callable, got {type(transform).__name__}.")
        if views < 2:
            raise ValueError(f"TwoViews: views must be >= 2, got {views}. One view has no positive to be drawn to.")
        self.transform = transform
        self.views = views

    def __call__(self, image: Any) -> Tensor:
        """The views of one image, (V, C, H, W)."""
        views = [self.transform(image) for _ in range(self.views)]
        for view in views:
            if not isinstance(view, Tensor) or view.shape != views[0].shape:
                given = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
                raise TypeError(
                    f"TwoViews: transform must return tensors (C, H, W) of one size, got {given}. "
                    "Does it lack a final ToTensor, or crop to random sizes?"
                )
        return torch.stack(views)

    def __repr__(self) -> str:
        return f"TwoViews({self.transform!r}, views={self.views})"


def stack_views(x: Tensor, augmentation: Callable[[Tensor], Tensor], views: int = 2) -> Tensor:
    """Augment a batch several times: (B, C, H, W) -> (B, V, C, H, W).

    Args:
        x: images, (B, C, H, W) (or any batch that ``augmentation`` takes).
        augmentation: maps a batch to one of the same shape, drawing for each image on its own.
        views: V >= 2.

    Raises:
        ValueError: fewer than two views, or an augmentation that changes the shape.
    """
    if views < 2:
        raise ValueError(f"stack_views: views must be >= 2, got {views}. One view has no positive to be drawn to.")
    stacked = [augmentation(x) for _ in range(views)]
    for view in stacked:
        if not isinstance(view, Tensor) or view.shape != x.shape:
            given = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"augmentation must map a batch of shape {tuple(x.shape)} to one of the same shape, got {given}. "
                "Does it expect a single image, or make the views itself?"
            )
    return torch.stack(stacked, dim=1)
