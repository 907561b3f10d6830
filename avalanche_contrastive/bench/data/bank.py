"""A feature bank: what a frozen encoder gives for every image and for some augmented views of it, computed once.

Methods then train a small network on the features, which makes CIFAR-100 with a pretrained encoder a matter of minutes
on a CPU. The bank is one ``.npz`` file of plain arrays:

- ``train_features`` (N, 1 + V, D) and ``test_features`` (M, 1, D), float16: the plain image first, then its V views;
- ``train_labels``, ``test_labels``, ``class_names``;
- ``origin``: in JSON, what the features were made of, with digests of weights and data.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_contrastive._files import replacing
from avalanche_contrastive.bench.data.arrays import Array, Arrays, read_origin
from avalanche_contrastive.bench.data.encoders import Encoder

__all__ = ["DrawView", "make_bank"]

BATCH = 128  # images at once; part files hold one batch each, so that a killed call goes on there
Report = Callable[[int, int], None]  # batches done, of all


def make_bank(
    path: Path,
    data: Arrays,
    encoder: Encoder,
    *,
    name: str,
    title: str,
    views: int,
    augmentation: Callable[[Tensor], Tensor],
    transform: str,
    seed: int = 0,
    device: torch.device | str = "cpu",
    half: bool = True,
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Compute a bank and write it; a call that was killed goes on where it was.

    Args:
        path: of the bank.
        data: the images.
        encoder: see ``make_encoder``.
        name: of the encoder.
        title: of the data.
        views: V, augmented views of each training image.
        augmentation: maps images (B, C, H, W) in [0, 1] to the same shape, with a draw for each image.
        transform: the augmentation in words: parts of a killed call with other words are not used.
        seed: of the augmentation.
        device: that the encoder runs on.
        half: run the encoder in bfloat16 (autocast).
        report: is called after each batch.

    Returns:
        The bank's ``origin``.

    Raises:
        ValueError: there is a bank of another origin, or the encoder cannot be used on these images.
    """
    origin = _origin(data, encoder, name=name, title=title, views=views, transform=transform, seed=seed, half=half)
    if path.exists():
        return _same(path, origin)
    encoder = encoder.to(device)
    _features(encoder, _images(data.train.x[:2], 0, device), half)  # fails before anything is written
    parts = path.with_name(f".{path.name}.parts")
    _open_parts(parts, origin)
    jobs = _jobs(data, views)
    for number, (part, view, start) in enumerate(jobs):
        file = parts / f"{part}-{view}-{start:08d}.npy"
        if not file.exists():
            x = _images(data.train.x if part == "train" else data.test.x, start, device)
            if view:
                torch.manual_seed(seed * 1_000_003 + view * 100_003 + start)  # the same whenever it is computed
                x = augmentation(x)
            with replacing(file) as out:
                np.save(out, _features(encoder, x, half))
        report(number + 1, len(jobs))
    _write(path, parts, data, views, origin)
    shutil.rmtree(parts)
    return origin


def _origin(
    data: Arrays, encoder: Encoder, *, name: str, title: str, views: int, transform: str, seed: int, half: bool
) -> dict[str, Any]:
    """What decides the features."""
    return {
        "encoder": name,
        "weights": encoder.digest(),
        "image_size": encoder.size,
        "augmentation": transform if views else "",
        "views": views,
        "seed": seed,
        "precision": "bfloat16" if half else "float32",
        "data": title,
        "data_digest": _digest(data.train.x, data.train.y, data.test.x, data.test.y),
        "torch": torch.__version__,
    }


def _same(path: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a bank that is there; one that was made otherwise is not written over."""
    there = read_origin(path)
    for key, value in origin.items():
        if there.get(key) != value and key != "torch":
            raise ValueError(
                f"{path} is there, made otherwise: its {key} is {there.get(key)!r}, wanted is {value!r}. Give another "
                "name, or delete it"
            )
    return there


def _jobs(data: Arrays, views: int) -> list[tuple[str, int, int]]:
    """Part, view and first image of each batch."""
    jobs = [("train", view, start) for view in range(views + 1) for start in range(0, len(data.train.x), BATCH)]
    return jobs + [("test", 0, start) for start in range(0, len(data.test.x), BATCH)]


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for x in tensors:
        found.update(x.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _images(x: Tensor, start: int, device: torch.device | str) -> Tensor:
    """A batch of images as floats in [0, 1]."""
    x = x[start : start + BATCH].to(device)
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _open_parts(parts: Path, origin: Mapping[str, Any]) -> None:
    """The folder of part files; those of another origin are removed."""
    note = parts / "origin.json"
    text = json.dumps(origin, sort_keys=True)
    if parts.is_dir() and not (note.is_file() and note.read_text() == text):
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    note.write_text(text)


@torch.inference_mode()
def _features(encoder: Encoder, x: Tensor, half: bool) -> Array:
    try:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            features = encoder(x).float()
    except ValueError:
        raise
    except Exception as error:  # networks fail in many ways on images of another size
        raise ValueError(f"the encoder cannot take images of shape {tuple(x.shape)}: {error}") from error
    if not bool(features.isfinite().all()):
        raise ValueError("the encoder gave features that are not finite. Try float32 (--precision float32).")
    largest = torch.finfo(torch.float16).max
    stored: Array = features.clamp(-largest, largest).half().cpu().numpy()
    return stored


def _write(path: Path, parts: Path, data: Arrays, views: int, origin: Mapping[str, Any]) -> None:
    def joined(part: str, view: int) -> Array:
        return np.concatenate([_loaded(file) for file in sorted(parts.glob(f"{part}-{view}-*.npy"))])

    with replacing(path) as out:
        np.savez(
            out,
            train_features=np.stack([joined("train", view) for view in range(views + 1)], axis=1),
            train_labels=data.train.y.numpy(),
            test_features=joined("test", 0)[:, None],
            test_labels=data.test.y.numpy(),
            class_names=np.array(data.class_names),
            origin=np.array(json.dumps(origin, sort_keys=True)),
        )


def _loaded(file: Path) -> Array:
    try:
        found: Array = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        file.unlink()
        raise ValueError(
            f"{file} was damaged ({error}), and is removed. Give the command again: it computes this part alone."
        ) from error
    return found


class DrawView:
    """Put a random view of each image in the place of its plain features: (B, 1 + V, ...) to the same shape.

    Called again on the same batch, it draws from the views that are left, so that the two views of a contrastive loss
    are different ones.
    """

    def __init__(self) -> None:
        self._batch: Tensor | None = None
        self._order = torch.zeros(0, 0, dtype=torch.long)
        self._next = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The batch with another view at position 0 of the second axis."""
        if x.ndim < 3 or x.shape[1] < 2:
            raise ValueError(
                f"DrawView: a batch of features with views, (B, 1 + V, ..., D), is needed, got {tuple(x.shape)}. "
                "Was the bank made without views?"
            )
        if x is not self._batch or self._next == x.shape[1] - 1:
            self._batch, self._next = x, 0
            self._order = torch.rand(len(x), x.shape[1] - 1, device=x.device).argsort(dim=1) + 1
        chosen = self._order[:, self._next]
        self._next += 1
        return torch.cat([x[torch.arange(len(x), device=x.device), chosen][:, None], x[:, 1:]], dim=1)

    def __repr__(self) -> str:
        return "DrawView()"
