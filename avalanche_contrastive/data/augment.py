"""Augmentations of whole batches, on any device, with a draw of its own for each image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_contrastive._checks import check_count, check_probability, check_weight, form_of
from avalanche_contrastive.data import images

__all__ = ["BatchAugmentation", "Normalisation", "PadCropAugmentation", "SimCLRAugmentation"]

Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel
CACHE = 2**18  # floats of a batch that are worked on at a time, by each thread
ATTEMPTS = 10  # of torchvision's RandomResizedCrop


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
        _check_ranges("BatchAugmentation", scale, ratio)
        check_probability("BatchAugmentation", flip=flip)
        if not 0 <= rotation <= 180:
            raise ValueError(f"BatchAugmentation: rotation must lie in [0, 180] degrees, got {rotation}.")
        self.scale, self.ratio, self.flip, self.rotation = scale, ratio, flip, rotation

    def __call__(self, x: Tensor) -> Tensor:
        """Augment (B, C, H, W) floats into the same shape."""
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"BatchAugmentation: x must be a floating-point batch (B, C, H, W), got {form_of(x)}.")

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


class _PlainImages(ABC):
    """An augmentation of images in [0, 1], or of images (x - mean) / std of such.

    No gradient flows through it. The random numbers are torch's, of the images' device.
    """

    def __init__(self, normalise: Normalisation | None) -> None:
        self.normalise = normalise
        if normalise is not None and (len(normalise[0]) != len(normalise[1]) or not min(normalise[1]) > 0):
            raise ValueError(
                f"{type(self).__name__}: normalise must be (mean, std), a number for each channel in both and std > 0, "
                f"got {normalise}."
            )
        self._range_is_known = False

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Augment (B, C, H, W) floats into the same shape."""
        name = type(self).__name__
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"{name}: a batch must be floating-point of shape (B, C, H, W), got {form_of(x)}.")
        with torch.autocast(x.device.type, enabled=False):
            if self.normalise is None:
                result = self._plain(x.float())
            else:
                mean, std = self._mean_and_std(x)
                result = self._plain(torch.addcmul(mean, x.float(), std)).sub_(mean).div_(std)
        return result.to(x.dtype)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({options})"

    def _plain(self, x: Tensor) -> Tensor:
        self._check_range(x)
        return self._in_parts(x, *self._draw(x))

    @abstractmethod
    def _draw(self, x: Tensor) -> tuple[Tensor, ...]:
        """What is random for each image of a batch, tensors with its first axis.

        The first is a number for what is done to an image: those with the same one have the same steps.
        """

    @abstractmethod
    def _apply(self, x: Tensor, *drawn: Tensor) -> Tensor:
        """Augment float32 images in [0, 1] by what was drawn, the first of it left out."""

    def _in_parts(self, x: Tensor, kind: Tensor, *drawn: Tensor) -> Tensor:
        """Augment as many images at a time as a processor's cache can hold, those of a kind together."""
        part = max(1, CACHE * torch.get_num_threads() // max(1, x[:1].numel()))
        if x.device.type != "cpu" or part >= len(x):
            return self._apply(x, *drawn)
        order, result = kind.argsort(), torch.empty_like(x)
        for rows in order.split(part):
            # A third of the time of x[rows], on a processor.
            result.index_copy_(0, rows, self._apply(*(values.index_select(0, rows) for values in (x, *drawn))))
        return result

    def _mean_and_std(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.normalise is not None
        if len(self.normalise[0]) != x.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: normalise has {len(self.normalise[0])} numbers for a batch of {x.shape[1]} "
                "channels."
            )
        mean, std = (_per_channel(tuple(values), x.device) for values in self.normalise)
        return mean, std

    def _check_range(self, plain: Tensor) -> None:
        if self._range_is_known or plain.numel() == 0:
            return  # once is enough, and on a GPU it waits for the batch
        low, high = plain.min().item(), plain.max().item()
        if not -1e-3 <= low <= high <= 1 + 1e-3:
            undone = "" if self.normalise is None else " once the normalisation is undone"
            raise ValueError(
                f"{type(self).__name__}: images must lie in [0, 1]{undone}, got [{low:.3g}, {high:.3g}]. Do they hold "
                "bytes (divide by 255), or are they normalised otherwise than normalise= says?"
            )
        self._range_is_known = True


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1). Kept, because the copy of a list to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _check_ranges(name: str, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name}: scale must be a range within (0, 1], got {scale}.")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"{name}: ratio must be a range of positive numbers, got {ratio}.")


def _uniform(limits: tuple[float, float], like: Tensor, *shape: int) -> Tensor:
    return torch.empty(*shape, dtype=like.dtype, device=like.device).uniform_(*limits)


def _chance(probability: float, like: Tensor) -> Tensor:
    return torch.rand(len(like), device=like.device) < probability


class PadCropAugmentation(_PlainImages):
    """A random crop of each image after a black frame, and a horizontal flip: the usual one on CIFAR.

    Args:
        padding: width of the frame, in pixels.
        flip: probability of the flip.
        normalise: (mean, std) of each channel where images are (x - mean) / std of images in [0, 1]; black is 0 there.
    """

    def __init__(self, padding: int = 4, *, flip: float = 0.5, normalise: Normalisation | None = None) -> None:
        check_count("PadCropAugmentation", 0, padding=padding)
        check_probability("PadCropAugmentation", flip=flip)
        self.padding, self.flip = padding, flip
        super().__init__(normalise)

    def _draw(self, x: Tensor) -> tuple[Tensor, ...]:
        top, left = torch.randint(-self.padding, self.padding + 1, (2, len(x)), device=x.device)
        return torch.zeros_like(top), top, left, _chance(self.flip, x)

    def _apply(self, x: Tensor, *drawn: Tensor) -> Tensor:
        return images.crop(x, *drawn)


class SimCLRAugmentation(_PlainImages):
    """What SimCLR and Co2L train with: crop, flip, colour jitter, greyscale and blur, drawn for each image.

    The same in distribution as torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter (with a probability),
    RandomGrayscale and GaussianBlur on single images; several times as fast as kornia's on a batch. Grey images, of one
    channel, have neither saturation nor hue. The defaults are Co2L's (SimCLR's jitter is twice as strong).

    Args:
        scale: range of the crop's area as a share of the image's.
        ratio: range of the crop's aspect ratio.
        flip: probability of a horizontal flip.
        brightness: the factor lies within 1 - brightness and 1 + brightness, but not below 0.
        contrast: likewise.
        saturation: likewise.
        hue: largest turn either way, as a share of the circle, at most 0.5.
        jitter: probability of the four changes of colour, which happen in random order.
        grayscale: probability of a grey image.
        blur: probability of a Gaussian blur, of images larger than 32 x 32 only; its kernel is as wide as a twentieth
            of the image, times two and one more.
        sigma: range of the kernel's standard deviation, in pixels.
        normalise: (mean, std) of each channel where images are (x - mean) / std of images in [0, 1].
    """

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        jitter: float = 0.8,
        grayscale: float = 0.2,
        blur: float = 0.5,
        sigma: tuple[float, float] = (0.1, 2.0),
        normalise: Normalisation | None = None,
    ) -> None:
        name = "SimCLRAugmentation"
        _check_ranges(name, scale, ratio)
        check_probability(name, flip=flip, jitter=jitter, grayscale=grayscale, blur=blur)
        check_weight(name, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
        if hue > 0.5:
            raise ValueError(f"{name}: hue is a share of the circle, at most 0.5, got {hue!r}.")
        if not 0 < sigma[0] <= sigma[1] < math.inf:
            raise ValueError(f"{name}: sigma must be a range of positive numbers, got {sigma}.")
        super().__init__(normalise)
        self.scale, self.ratio, self.flip = scale, ratio, flip
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.jitter, self.grayscale, self.blur, self.sigma = jitter, grayscale, blur, sigma

    def _draw(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"SimCLRAugmentation: images must have 1 or 3 channels, got {x.shape[1]}.")
        jittered, place = _chance(self.jitter, x), torch.rand(len(x), 4, device=x.device).argsort(dim=1)
        grey, blurred = _chance(self.grayscale, x), _chance(self.blur, x)
        kind = (place[:, 3] + 1) * jittered * 4 + grey * 2 + blurred
        window, jitters = self._windows(x), self._jitters(x, jittered, place)
        return kind, *window, _chance(self.flip, x), *jitters, grey, _uniform(self.sigma, x, len(x)), blurred

    def _apply(self, x: Tensor, *drawn: Tensor) -> Tensor:
        *window, steps, turn, grey, sigma, blurred = drawn
        x = images.color_jitter(images.resized_crop(x, *window), steps, turn)
        side = min(x.shape[2:])
        some_grey, some_blurred = images.anywhere(torch.stack([grey, blurred], dim=1))
        if some_grey:
            x = images.recolor(x, (~grey).to(x.dtype), grey.to(x.dtype), torch.zeros_like(sigma))
        if some_blurred and side > 32:
            x = images.blur(x, sigma, blurred, side // 20 * 2 + 1)
        return x

    def _windows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width of a window of each image, as torchvision's RandomResizedCrop draws them."""
        rows, columns = x.shape[2:]
        area = _uniform(self.scale, x, len(x), ATTEMPTS) * (rows * columns)
        ratio = _uniform((math.log(self.ratio[0]), math.log(self.ratio[1])), x, len(x), ATTEMPTS).exp()
        height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        fits = (height > 0) & (height <= rows) & (width > 0) & (width <= columns)
        # Where no attempt fits: the largest window in the middle of a ratio within the range.
        last_width = min(columns, round(rows * self.ratio[1]))
        last_height = min(rows, round(columns / self.ratio[0]))
        height = F.pad(height, (0, 1), value=last_height)
        width = F.pad(width, (0, 1), value=last_width)
        first = F.pad(fits, (0, 1), value=True).to(torch.uint8).argmax(dim=1, keepdim=True)
        height, width = height.gather(1, first)[:, 0], width.gather(1, first)[:, 0]
        free = torch.stack([rows - height, columns - width])
        drawn = torch.minimum((torch.rand_like(free) * (free + 1)).floor(), free)
        top, left = torch.where(first[:, 0] < ATTEMPTS, drawn, (free / 2).floor())
        return top, left, height, width

    def _jitters(self, x: Tensor, jittered: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The steps of each image's colour jitter, and the turn of its hue."""
        ranges = [(max(0.0, 1 - change), 1 + change) for change in (self.brightness, self.contrast, self.saturation)]
        factors = torch.stack([_uniform(limits, x, len(x)) for limits in ranges], dim=1)
        turn = _uniform((-self.hue, self.hue), x, len(x))
        return images.jitter_steps(torch.where(jittered[:, None], factors, 1.0), place), turn * jittered
