"""Augmentations of whole batches beside kornia's, and whole-batch fetching beside Avalanche's sample by sample."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from avalanche_contrastive.bench.speed.measure import Comparison, seconds_of
from avalanche_contrastive.data import MemoryImages, PadCropAugmentation, SimCLRAugmentation, fetch_whole_batches

__all__ = ["augmentations", "fetching"]


def augmentations() -> list[Comparison]:
    """Augmentations of a batch beside kornia's, which must be installed. Equal in distribution only."""
    import kornia.augmentation as kornia  # an extra

    found = []
    for count, side in ((512, 32), (128, 64)):
        x = torch.rand(count, 3, side, side)
        simclr = [
            kornia.RandomResizedCrop((side, side), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), cropping_mode="resample"),
            kornia.RandomHorizontalFlip(p=0.5),
            kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            kornia.RandomGrayscale(p=0.2),
        ]
        if side > 32:
            simclr.append(kornia.RandomGaussianBlur((side // 20 * 2 + 1,) * 2, (0.1, 2.0), p=0.5))
        pad_crop = [kornia.RandomCrop((side, side), padding=4, cropping_mode="resample"), simclr[1]]
        for name, ours, whose, theirs, target in (
            ("SimCLR's views", SimCLRAugmentation(), "kornia", torch.nn.Sequential(*simclr), 0.33),
            ("SimCLR's views", SimCLRAugmentation(), "torchvision, image by image", _torchvisions(side), 0.33),
            ("padded crop", PadCropAugmentation(), "kornia", torch.nn.Sequential(*pad_crop), 1.0),
        ):
            timed = seconds_of(partial(ours, x)), seconds_of(partial(theirs, x))
            found.append(Comparison(f"{name}, {count} x 3 x {side} x {side}", whose, *timed, target))
    return found


def _torchvisions(side: int) -> Callable[[Tensor], Tensor]:
    """SimCLR's set of torchvision's v2, which draws once for what it is given, for each image on its own."""
    jitter, blur = v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.GaussianBlur(side // 20 * 2 + 1)
    steps = [v2.RandomResizedCrop(side, (0.2, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([jitter], 0.8)]
    one = v2.Compose([*steps, v2.RandomGrayscale(0.2), *([v2.RandomApply([blur])] if side > 32 else [])])
    return lambda x: torch.stack([one(image) for image in x])


class _SampleBySample(TensorDataset):
    """Images that Avalanche fetches one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x)
        self.targets = y.tolist()

    def __getitem__(self, index: int) -> Any:
        return self.tensors[0][index], self.targets[index]


def fetching(count: int = 10_000) -> list[Comparison]:
    """An epoch of Avalanche's loader over images in memory beside the same over images of a plain data set."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 1, 28, 28), generator=draws, dtype=torch.uint8)
    y = torch.arange(count) % 10
    fetch_whole_batches()

    def epoch(images: object) -> Callable[[], object]:
        data = nc_benchmark(images, images, 2, task_labels=False, seed=0).train_stream[0].dataset
        return lambda: [None for _ in TaskBalancedDataLoader(data, batch_size=128, shuffle=True)]

    return [
        Comparison(
            f"an epoch's batches of 128, {count // 2:,} of 1 x 28 x 28",
            "Avalanche",
            seconds_of(epoch(MemoryImages(x, y))),
            seconds_of(epoch(_SampleBySample(x.float().div(255), y))),
            0.2,
        )
    ]
