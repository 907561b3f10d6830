"""Our side of a comparison: a strategy trains, its batches are kept, and the authors' code trains on them again."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

__all__ = [
    "Images",
    "Part",
    "Playback",
    "Recorder",
    "copied",
    "difference",
    "largest",
    "seeded",
    "stream_of",
    "values_of",
]


@dataclass(frozen=True)
class Part:
    """What was compared, and the largest difference.

    Attributes:
        method: "Co2L", "SS-IL", "CSD" or "compatibility".
        name: of the part, unique in its method.
        theirs: the authors' code that ran.
        ours: the code of this package that ran.
        size: how much was compared.
        absolute: largest absolute difference.
        relative: largest difference over the largest value of the same tensor.
        note: where the two disagree on purpose, or what the figure is.
        bound: absolute difference that rounding, or chance, explains.
    """

    method: str
    name: str
    theirs: str
    ours: str
    size: str
    absolute: float
    relative: float
    note: str = ""
    bound: float = 1e-10


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of two lists of tensors, and the largest in units of its tensor's largest value."""
    absolute, relative = [0.0], [0.0]
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"tensors of shapes {tuple(a.shape)} and {tuple(b.shape)} are compared")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError("there are values that are not finite: the comparison would say nothing")
        apart = float((a.double() - b.double()).abs().max())
        absolute.append(apart)
        relative.append(apart / max(float(b.double().abs().max()), 1e-300) if apart else 0.0)
    return max(absolute), max(relative)


def largest(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> tuple[float, float]:
    """The largest differences over all experiences."""
    each = [difference(*pair) for pair in zip(ours, theirs, strict=True)]
    return max(absolute for absolute, _ in each), max(relative for _, relative in each)


def values_of(*modules: nn.Module) -> list[Tensor]:
    """Copies of all floating-point values, layer by layer in the order of their definition."""
    layers = [layer for module in modules for layer in module.modules()]
    values = [value for layer in layers for value in (*layer.parameters(False), *layer.buffers(False))]
    return [value.detach().clone() for value in values if value.is_floating_point()]


@torch.no_grad()
def copied(into: Sequence[nn.Module], values: Sequence[Tensor]) -> None:
    """Give modules the values of others with the same layers."""
    layers = [layer for module in into for layer in module.modules()]
    own = [v for layer in layers for v in (*layer.parameters(False), *layer.buffers(False)) if v.is_floating_point()]
    for target, value in zip(own, values, strict=True):
        target.copy_(value)


def seeded(seed: int) -> None:
    """Every random generator that either side draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


class Images(TensorDataset):
    """Noise around one image per class, float64, with the integer targets that Avalanche wants."""

    def __init__(self, shape: tuple[int, ...], classes: int, per_class: int, *, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        y = torch.arange(classes).repeat_interleave(per_class)
        centres = torch.rand(classes, *shape, generator=draws)
        super().__init__(centres[y] + 0.3 * torch.randn(len(y), *shape, generator=draws), y)
        self.targets = y.tolist()

    def __getitem__(self, index: int) -> Any:
        return self.tensors[0][index], self.targets[index]


def stream_of(images: Images, experiences: int, **options: Any) -> Any:
    """Class-incremental experiences in the natural order of the classes."""
    return nc_benchmark(images, images, n_experiences=experiences, task_labels=False, shuffle=False, **options)


class Recorder(SupervisedPlugin[Any]):
    """Keeps what a strategy trains on, by experience, epoch and batch, and what comes of it.

    Attributes:
        batches: [experience][epoch][batch] of (x, y, task labels).
        rates: learning rate of each step.
        weights: values of the parts after each experience.
        starts: values of the parts when each experience begins, the model adapted to it.

    Args:
        parts: modules whose values are kept.
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = parts
        self.batches: list[list[list[tuple[Tensor, Tensor, Tensor]]]] = []
        self.rates: list[float] = []
        self.weights: list[list[Tensor]] = []
        self.starts: list[list[Tensor]] = []

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.rates)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note the start."""
        self.batches.append([])
        self.starts.append(values_of(*self.parts))

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Begin an epoch."""
        self.batches[-1].append([])

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep a batch and its rate."""
        x, y, t = strategy.mb_x, strategy.mb_y, strategy.mb_task_id
        self.batches[-1][-1].append((x.clone(), y.clone(), t.clone()))
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the outcome."""
        self.weights.append(values_of(*self.parts))


class Playback:
    """A loader that gives recorded batches, epoch after epoch.

    Args:
        epochs: the batches of each, in the form that the one who asks for them wants.
    """

    def __init__(self, epochs: Sequence[Sequence[Any]]) -> None:
        self.length = len(epochs[0])
        self.epochs = iter(epochs)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(next(self.epochs))
