"""The augmentations by name: a callable that maps an image batch to one of the same shape, with a draw per image."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from avalanche_contrastive._outside import find
from avalanche_contrastive.bench.config import nearest
from avalanche_contrastive.bench.data.bank import DrawView
from avalanche_contrastive.data import BatchAugmentation, Normalisation, PadCropAugmentation, SimCLRAugmentation

Augmentation: TypeAlias = Callable[[Tensor], Tensor]

AUGMENTATIONS = ("", "simclr", "pad_crop")


def make_augmentation(
    name: str,
    image_shape: tuple[int, int, int],
    keywords: Mapping[str, Any],
    *,
    normalise: Normalisation | None = None,
    features: bool = False,
) -> Augmentation:
    """The augmentation of a config.

    Args:
        name: "" is the stream's own ``BatchAugmentation``. "simclr" is what Co2L and SimCLR train with: crop, flip,
            colour jitter, greyscale, and blur where an image is larger than 32 x 32. "pad_crop" is a crop after a
            black frame of 4 pixels, and a flip. "module:function" is your own: called with image_shape, the function
            returns a callable for batches.
        image_shape: (C, H, W).
        keywords: the stream's, of ``BatchAugmentation``. "simclr" takes its scale, ratio and flip from them,
            "pad_crop" its flip; the rest of them has no meaning there.
        normalise: (mean, std) where the stream's images are (x - mean) / std of images in [0, 1], one number for each
            channel. All but the stream's own work on the images in [0, 1].
        features: of a bank, in the place of images: a stored view is drawn, and there is no other augmentation.

    Raises:
        ValueError: unknown name, or a normalisation or number of channels that cannot be.
    """
    if features:
        if name:
            raise ValueError(f"augmentation {name!r} is for images, and these are features from a bank: leave it out")
        return DrawView()
    if name not in AUGMENTATIONS and ":" not in name:
        hint = nearest(str(name), AUGMENTATIONS)
        raise ValueError(f"unknown augmentation {name!r}{hint}, or '' for the stream's own")
    channels = image_shape[0]
    if normalise is not None and {len(values) for values in normalise} != {channels}:
        raise ValueError(
            f"augmentation: normalise must be (mean, std) with {channels} numbers each, one for each channel, got "
            f"{normalise}"
        )
    if ":" in name:
        return _own(name, image_shape, normalise)
    if name == "simclr":
        if channels not in (1, 3):
            raise ValueError(f"augmentation 'simclr' changes colours: images must have 1 or 3 channels, got {channels}")
        taken = {key: keywords[key] for key in ("scale", "ratio", "flip") if key in keywords}
        return SimCLRAugmentation(**taken, normalise=normalise)
    if name == "pad_crop":
        return PadCropAugmentation(flip=keywords.get("flip", 0.5), normalise=normalise)
    return BatchAugmentation(**keywords)


def _own(name: str, image_shape: tuple[int, int, int], normalise: Normalisation | None) -> Augmentation:
    """A user's augmentation of images in [0, 1], whatever the stream's normalisation."""
    augment = find(name)(image_shape)
    if not callable(augment):
        raise ValueError(f"{name} must return a callable for batches (B, C, H, W), got {type(augment).__name__}")

    @torch.no_grad()
    def on_plain_images(x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in normalise or ([0.0], [1.0]))
        with torch.autocast(x.device.type, enabled=False):
            changed = augment(x * std + mean)
        if not isinstance(changed, Tensor) or changed.shape != x.shape:
            form = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(f"augmentation {name!r} must keep the shape {tuple(x.shape)} of a batch, got {form}")
        return ((changed - mean) / std).to(x.dtype)

    return on_plain_images
