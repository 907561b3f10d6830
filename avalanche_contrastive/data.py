"""Two views of an image: in the data pipeline (``TwoViews``) or on the batch (``stack_views``)."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BatchAugmentation", "TwoViews", "stack_views"]


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
                came = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
                raise TypeError(
                    f"TwoViews: transform must return tensors (C, H, W) of one size, got {came}. "
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
            came = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"augmentation must map a batch of shape {tuple(x.shape)} to one of the same shape, got {came}. "
                "Does it expect a single image, or make the views itself?"
            )
    return torch.stack(stacked, dim=1)


class BatchAugmentation:
    """Random resized crop, horizontal flip and rotation of a batch, with a draw of its own for each image.

    torchvision's v2 transforms draw once for a whole batch, which makes them useless as contrastive views of a
    batch; per image they are several times slower. This is one affine grid for all images.

    Args:
        scale: range of the crop's area as a share of the image's. A side that would leave the image is cut to it
            (torchvision draws again instead).
        ratio: range of the crop's aspect ratio, relative to the image's own; (1, 1) keeps it.
        flip: probability of a horizontal flip.
        rotation: largest rotation either way, in degrees on a square image.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rotation: float = 0.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"BatchAugmentation: scale must be a range within (0, 1], got {scale}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"BatchAugmentation: ratio must be a range of positive numbers, got {ratio}.")
        if not 0 <= flip <= 1:
            raise ValueError(f"BatchAugmentation: flip is a probability in [0, 1], got {flip}.")
        if not 0 <= rotation <= 180:
            raise ValueError(f"BatchAugmentation: rotation must lie in [0, 180] degrees, got {rotation}.")
        self.scale, self.ratio, self.flip, self.rotation = scale, ratio, flip, rotation

    def __call__(self, x: Tensor) -> Tensor:
        """Augment (B, C, H, W) floats into the same shape."""
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"BatchAugmentation: x must be a floating-point batch (B, C, H, W), got {x.dtype} of shape "
                f"{tuple(x.shape)}."
            )

        def draw(low: float, high: float) -> Tensor:
            return torch.empty(len(x), device=x.device).uniform_(low, high)

        area, ratio = draw(*self.scale), draw(math.log(self.ratio[0]), math.log(self.ratio[1])).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        angle = draw(-self.rotation, self.rotation) * (math.pi / 180)
        sign = torch.where(draw(0, 1) < self.flip, -1.0, 1.0)
        # Rows of the matrix that takes output to input coordinates: rotate within the crop, then move the crop.
        theta = torch.stack(
            [
                torch.stack([width * angle.cos() * sign, -width * angle.sin(), draw(-1, 1) * (1 - width)], dim=1),
                torch.stack([height * angle.sin() * sign, height * angle.cos(), draw(-1, 1) * (1 - height)], dim=1),
            ],
            dim=1,
        )
        # Half-precision coordinates miss their pixels, also under autocast: sample in float32.
        with torch.autocast(x.device.type, enabled=False):
            grid = F.affine_grid(theta.float(), list(x.shape), align_corners=False)
            sampled = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)
        return sampled.to(x.dtype)

    def __repr__(self) -> str:
        return f"BatchAugmentation(scale={self.scale}, ratio={self.ratio}, flip={self.flip}, rotation={self.rotation})"
