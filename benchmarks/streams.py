"""The streams by name: which images, in which order, with or without a validation split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from torch import Tensor
from torch.utils.data import TensorDataset

SPLIT_SEED = 0  # train / test and train / validation are the same for every run; only the class order follows its seed
VALIDATION_SHARE = 0.2


class Images(TensorDataset):
    """Images with the integer targets that Avalanche's generators ask for."""

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__(x, y)
        self.targets: list[int] = y.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return self.tensors[0][index], self.targets[index]


@dataclass(frozen=True)
class Suite:
    """A stream and what belongs to its kind of image.

    Args:
        load: gives (train images, train targets, test images, test targets).
        classes: number of classes.
        experiences: number of experiences, equal in classes.
        channels: of an image.
        augmentation: keywords of BatchAugmentation; digits must not be mirrored.
    """

    load: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]
    classes: int
    experiences: int
    channels: int
    augmentation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """One run's data: an Avalanche benchmark, its class order, the evaluated images of each experience."""

    benchmark: Any
    class_order: list[int]
    counts: list[int]


def _load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16  # 16 is the darkest grey in these scans
    return _split(x, torch.tensor(targets, dtype=torch.long), 0.2)


def _split(x: Tensor, y: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stratified split with the fixed seed."""
    from sklearn.model_selection import train_test_split

    kept, held = train_test_split(np.arange(len(y)), test_size=share, stratify=y.numpy(), random_state=SPLIT_SEED)
    return x[kept], y[kept], x[held], y[held]


SUITES: Mapping[str, Suite] = {
    "split_digits": Suite(
        _load_digits,
        classes=10,
        experiences=5,
        channels=1,
        augmentation={"scale": (0.6, 1.0), "flip": 0.0, "rotation": 10.0},
    ),
}


def make_stream(suite: Suite, seed: int, *, validation: bool = False) -> Stream:
    """The stream of one run.

    Args:
        suite: an entry of SUITES.
        seed: decides the class order.
        validation: evaluate on a stratified fifth of the training images instead of the test images, which are then
            not even in the benchmark. For `tune`.
    """
    train_x, train_y, test_x, test_y = suite.load()
    if validation:
        train_x, train_y, test_x, test_y = _split(train_x, train_y, VALIDATION_SHARE)
    order = np.random.default_rng(seed).permutation(suite.classes).tolist()
    benchmark = nc_benchmark(
        Images(train_x, train_y),
        Images(test_x, test_y),
        n_experiences=suite.experiences,
        task_labels=False,
        fixed_class_order=order,
    )
    counts = [len(experience.dataset) for experience in benchmark.test_stream]
    return Stream(benchmark, order, counts)
