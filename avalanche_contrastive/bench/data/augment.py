"""The augmentations by name: a callable that maps an image batch to one of the same shape, with a draw per image."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from avalanche_contrastive._outside import find
from avalanche_contrastive.bench.config import nearest
from avalanche_contrastive.data import BatchAugmentation

Augmentation: TypeAlias = Callable[[Tensor], Tensor]
Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel

AUGMENTATIONS = ("", "simclr", "pad_crop")


def make_augmentation(
    name: str, image_shape: tuple[int, int, int], keywords: Mapping[str, Any], *, normalise: Normalisation | None = None
) -> Augmentation:
    """The augmentation of a config.

    Args:
        name: "" is the stream's own ``BatchAugmentation``. "simclr" is what Co2L and SimCLR train with: crop, flip,
            colour jitter, greyscale, and blur where an image is larger than 32 x 32. "pad_crop" is a crop after a
            black frame of 4 pixels, and a flip. These two are kornia's. "module:function" is your own: called with
            image_shape, the function returns a callable for batches.
        image_shape: (C, H, W).
        keywords: the stream's, of ``BatchAugmentation``. "simclr" takes its scale, ratio and flip from them,
            "pad_crop" its flip; the rest of them has no meaning there.
        normalise: (mean, std) where the stream's images are (x - mean) / std of images in [0, 1], one number for each
            channel. All but the stream's own work on the images in [0, 1].

    Raises:
        ValueError: unknown name or keyword, a shape, normalisation or number of channels that cannot be, or kornia is
            not installed.
    """
    if name not in AUGMENTATIONS and ":" not in name:
        hint = nearest(str(name), AUGMENTATIONS)
        raise ValueError(f"unknown augmentation {name!r}{hint}, or '' for the stream's own")
    unknown = set(keywords) - set(inspect.signature(BatchAugmentation).parameters)
    if unknown:
        raise ValueError(f"augmentation: keywords must be those of BatchAugmentation, got {', '.join(sorted(unknown))}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"augmentation: image_shape must be (C, H, W), each >= 1, got {image_shape}")
    if name == "":
        return BatchAugmentation(**keywords)
    if ":" in name:
        own = find(name)(image_shape)
        if not callable(own):
            raise ValueError(f"{name} must return a callable for batches (B, C, H, W), got {type(own).__name__}")
        return _OnPlainImages(name, own, image_shape, normalise, check_range=False)
    layers = (_simclr if name == "simclr" else _pad_crop)(_kornia(name), image_shape, keywords)
    return _OnPlainImages(name, nn.Sequential(*layers), image_shape, normalise)


def _simclr(kornia: Any, image_shape: tuple[int, int, int], keywords: Mapping[str, Any]) -> list[nn.Module]:
    channels, *size = image_shape
    if channels not in (1, 3):
        raise ValueError(f"augmentation 'simclr' changes colours: images must have 1 or 3 channels, got {channels}")
    colour = 0.4 if channels == 3 else 0.0  # a grey image has neither saturation nor hue
    layers = [
        # "resample" is one grid for the batch; kornia's default cuts image by image.
        kornia.RandomResizedCrop(
            tuple(size),
            scale=tuple(keywords.get("scale", (0.2, 1.0))),
            ratio=tuple(keywords.get("ratio", (3 / 4, 4 / 3))),
            cropping_mode="resample",
        ),
        kornia.RandomHorizontalFlip(p=keywords.get("flip", 0.5)),
        kornia.ColorJitter(0.4, 0.4, colour, colour / 4, p=0.8),
        kornia.RandomGrayscale(p=0.2),
    ]
    if (side := min(size)) > 32:
        kernel = side // 20 * 2 + 1
        layers.append(kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    return layers


def _pad_crop(kornia: Any, image_shape: tuple[int, int, int], keywords: Mapping[str, Any]) -> list[nn.Module]:
    return [
        kornia.RandomCrop(image_shape[1:], padding=4, cropping_mode="resample"),
        kornia.RandomHorizontalFlip(p=keywords.get("flip", 0.5)),
    ]


def _kornia(name: str) -> Any:
    try:
        import kornia.augmentation
    except ImportError as error:
        raise ValueError(
            f"augmentation {name!r} needs kornia, which is not installed ({error}): "
            "pip install 'avalanche-contrastive[bench]'"
        ) from error
    return kornia.augmentation


class _OnPlainImages:
    """An augmentation of images in [0, 1], whatever the stream's normalisation."""

    def __init__(
        self,
        name: str,
        augment: Augmentation,
        image_shape: tuple[int, int, int],
        normalise: Normalisation | None,
        *,
        check_range: bool = True,
    ) -> None:
        self.name, self.image_shape = name, tuple(image_shape)
        self.augment = augment
        self.mean, self.std = _channels(normalise, image_shape[0])
        self._range_is_known = not check_range

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Augment (B, C, H, W) floats into the same shape."""
        if x.shape[1:] != self.image_shape or not x.is_floating_point():
            raise ValueError(
                f"augmentation {self.name!r}: a batch must be floating-point of shape (B, "
                f"{', '.join(map(str, self.image_shape))}), got {x.dtype} of shape {tuple(x.shape)}"
            )
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            plain = x.float() * std + mean
            self._check_range(plain)
            changed = self.augment(plain)
            if not isinstance(changed, Tensor) or changed.shape != x.shape:
                form = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise ValueError(
                    f"augmentation {self.name!r} must keep the shape {tuple(x.shape)} of a batch, got {form}"
                )
            result: Tensor = (changed - mean) / std
        return result.to(x.dtype)

    def _check_range(self, plain: Tensor) -> None:
        if self._range_is_known or len(plain) == 0:
            return  # once is enough, and on a GPU it waits for the batch
        low, high = plain.min().item(), plain.max().item()
        if not -1e-3 <= low <= high <= 1 + 1e-3:
            raise ValueError(
                f"augmentation {self.name!r}: images must lie in [0, 1] once the normalisation is undone, got "
                f"[{low:.3g}, {high:.3g}]. Does the stream normalise its images otherwise than it says, or hold bytes?"
            )
        self._range_is_known = True

    def __repr__(self) -> str:
        return f"{self.name}({self.augment})"


def _channels(normalise: Normalisation | None, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as (C, 1, 1)."""
    mean, std = normalise if normalise is not None else ([0.0] * channels, [1.0] * channels)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"augmentation: normalise must be (mean, std) with {channels} numbers each, one per channel, and std > 0, "
            f"got {normalise}"
        )
    return torch.tensor(mean).reshape(-1, 1, 1), torch.tensor(std).reshape(-1, 1, 1)
