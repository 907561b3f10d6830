"""Operations on a batch of images (B, C, H, W) with a parameter of its own for each: crops, colours, blur.

Each is what ``torchvision.transforms.v2.functional`` does to one image, up to rounding. Images are floats in [0, 1], C
is 1 or 3, parameters are tensors (B,) of the same type and device. No value is read, so a GPU is never waited for; and
temporary tensors are few, because on a processor fresh memory takes longer than the arithmetic.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["anywhere", "blur", "color_jitter", "crop", "hue", "jitter_steps", "recolor", "resized_crop"]

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue, as torchvision's


# ---- places


def resized_crop(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor) -> Tensor:
    """Cut out a window, scale it bilinearly to the size of the image and mirror it where ``flip`` (B,) is True."""
    rows, columns = _window(x.shape[2], top, height), _window(x.shape[3], left, width)
    return _sample(x, rows, torch.where(flip[:, None], columns.flip(1), columns))


def crop(x: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Move the image up and to the left by some pixels, black behind it, and mirror it where ``flip`` is True."""
    rows, columns = (torch.arange(size, dtype=x.dtype, device=x.device) for size in x.shape[2:])
    columns = columns + left[:, None]
    return _sample(x, rows + top[:, None], torch.where(flip[:, None], columns.flip(1), columns))


def _window(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Where each of ``size`` pixels lies that show a window, (B, size), none of them outside it."""
    pixel = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5
    within = pixel * (length / size)[:, None] - 0.5
    return torch.minimum(within.clamp_(min=0), (length - 1)[:, None]).add_(start[:, None])


def _sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The image at rows (B, H) and columns (B, W), linear between pixels and black outside."""
    grid = torch.empty(len(x), *x.shape[2:], 2, dtype=x.dtype, device=x.device)
    for axis, position in enumerate((columns[:, None, :], rows[:, :, None])):
        size = x.shape[3 - axis]
        grid[..., axis] = (position * 2 + (1 - size)) / size  # pixels' centres from -1 + 1 / size to 1 - 1 / size
    return F.grid_sample(x, grid, align_corners=False)


# ---- colours


def recolor(x: Tensor, own: Tensor, grey: Tensor, mean: Tensor, out: Tensor | None = None) -> Tensor:
    """A mixture of each image, its grey version and the mean of that, cut to [0, 1]; a weight for each of the three.

    With a factor f, brightness is (f, 0, 0), contrast (f, 0, 1 - f) and saturation (f, 1 - f, 0); grey is (0, 1, 0).
    """
    plane = _to_grey(x.shape[1], x.device).to(x.dtype) @ x.flatten(2)
    shift = mean * plane.mean(dim=1)
    plane.mul_(grey[:, None]).add_(shift[:, None])
    plane = plane.view(len(x), 1, *x.shape[2:])
    return torch.mul(x, own[:, None, None, None], out=out).add_(plane).clamp_(0, 1)


@lru_cache(maxsize=16)
def _to_grey(channels: int, device: torch.device) -> Tensor:
    # Kept, because the copy of a list to a GPU waits for it.
    with torch.inference_mode(False):
        return torch.tensor(GREY if channels == 3 else (1.0,), dtype=torch.float32, device=device)


def hue(x: Tensor, turn: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue of colour images by a share of the circle, in [-0.5, 0.5]."""
    red, green, blue = x.unbind(1)
    highest = x.amax(dim=1)
    chroma = highest - x.amin(dim=1)
    # In sixths of the circle from red, and times the chroma: if blue is highest; if green is; if red is. By masks of
    # floats, since torch.where takes ten times as long on a processor.
    place, other, mask = torch.sub(red, green).add_(chroma, alpha=4), torch.sub(blue, red), torch.empty_like(chroma)
    place.lerp_(other.add_(chroma, alpha=2), torch.eq(highest, green, out=mask))
    place.lerp_(torch.sub(green, blue, out=other), torch.eq(highest, red, out=mask))
    place.div_(torch.clamp(chroma, min=1e-30, out=other)).add_(6 * turn[:, None, None])
    place.sub_(torch.div(place, 6, out=other).floor_(), alpha=6)
    # A channel lacks the more of the chroma the farther the hue is from the channel's own: red at 0, green 2, blue 4.
    out = torch.sub(place[:, None], 2 * torch.arange(3, device=x.device).view(3, 1, 1), out=out)
    lacking = out.abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.sub(highest[:, None], lacking.mul_(chroma[:, None]), out=out)


def color_jitter(x: Tensor, steps: Tensor, turn: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, in an order of its own for each image. Overwrites ``x``.

    Args:
        x: (B, C, H, W); a grey image has neither saturation nor hue.
        steps: what `jitter_steps` makes of the factors and orders, (B, 6, 3).
        turn: of the hue, (B,).
    """
    spare = torch.empty_like(x)
    *needed, turned = anywhere(torch.cat([steps[:, :, 0] != 1, (turn != 0)[:, None]], dim=1))
    for step in range(6):
        if step == 3 and turned and x.shape[1] == 3:
            x, spare = hue(x, turn, out=spare), x
        if needed[step]:
            own, grey, mean = steps[:, step].unbind(1)
            x, spare = recolor(x, own, grey, mean, out=spare), x
    return x


def anywhere(changes: Tensor) -> list[bool]:
    """Which of (B, N) changes happen in an image at all. All, on a GPU: it would have to be waited for to be asked."""
    some: list[bool] = changes.any(dim=0).tolist() if changes.device.type == "cpu" else [True] * changes.shape[1]
    return some


def jitter_steps(factors: Tensor, place: Tensor) -> Tensor:
    """The weights that `recolor` takes in each step of `color_jitter`.

    The hues of all images are turned at once. What comes before it in an image's order is done in three steps before,
    the rest in three steps afterwards; three of the six change nothing in an image. So no shape depends on an order.

    Args:
        factors: of brightness, contrast and saturation, (B, 3), >= 0; 1 changes nothing.
        place: a permutation of 0, 1, 2, 3 for each image, (B, 4): when brightness, contrast, saturation, hue change.

    Returns:
        (B, 6, 3).
    """
    step = torch.arange(4, device=place.device)
    now = place[:, None, :3] == step[:, None]  # (B, step, change)
    before, after = (side[:, :, None] for side in (step < place[:, 3:], step > place[:, 3:]))
    now = torch.cat([(now & before)[:, :3], (now & after)[:, 1:]], dim=1)
    factor = torch.where(now, factors[:, None], 1.0)
    return torch.stack([factor.prod(dim=2), 1 - factor[:, :, 2], 1 - factor[:, :, 1]], dim=2)


# ---- blur


def blur(x: Tensor, sigma: Tensor, on: Tensor, taps: int) -> Tensor:
    """Blur each image with a Gaussian kernel, the border reflected, where ``on`` (B,) is True.

    Args:
        x: (B, C, H, W), wider and higher than half the kernel. Overwritten on a processor, where nobody waits for a
            value and the other images are left alone; elsewhere they get a kernel of a single pixel.
        sigma: in pixels, > 0.
        on: whether at all.
        taps: width of the kernel, odd.
    """
    if x.device.type == "cpu" and not all(on.tolist()):
        rows = torch.tensor([row for row, is_on in enumerate(on.tolist()) if is_on], dtype=torch.long)
        return x.index_copy_(0, rows, blur(x.index_select(0, rows), sigma[rows], on[rows], taps))
    offset = torch.arange(taps, device=x.device) - taps // 2
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weight = torch.where(on[:, None], weight / weight.sum(dim=1, keepdim=True), (offset == 0).to(weight.dtype))
    padded = F.pad(x, (taps // 2,) * 4, mode="reflect")
    return _slide(_slide(padded, weight, 2), weight, 3)


def _slide(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Correlate an axis with a kernel (B, taps)."""
    taps = weight.shape[1]
    length = x.shape[axis] + 1 - taps
    result = x.narrow(axis, 0, length) * weight[:, 0, None, None, None]
    for tap in range(1, taps):
        result.addcmul_(x.narrow(axis, tap, length), weight[:, tap, None, None, None])
    return result
