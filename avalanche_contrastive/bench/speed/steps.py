"""Training steps beside bare loops of the same mathematics, and the time of experiences when many went before."""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import SlimResNet18
from avalanche.training import Naive
from torch import Tensor, nn

from avalanche_contrastive.bench.speed.losses import lean_co2l, lean_contrast, view_taskwise
from avalanche_contrastive.bench.speed.measure import Comparison, Timed
from avalanche_contrastive.data import MemoryImages, fetch_whole_batches
from avalanche_contrastive.losses import batch_hard_triplet
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, SSILPlugin

__all__ = ["growth", "tiny_steps", "wide_steps"]

Batches: TypeAlias = list[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]  # of a model and a batch

CLASSES = 10
OLD = CLASSES // 2  # of the first of two experiences


class _Clock(SupervisedPlugin[Any]):
    """Processor seconds of the epochs of one experience, and its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.steps = 0.0, 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.steps += 1

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.seconds += time.process_time() - self.start


def _stream(shape: tuple[int, ...], images: int) -> Any:
    fetch_whole_batches()
    draws = torch.Generator().manual_seed(0)
    data = MemoryImages(torch.rand(images, *shape, generator=draws), torch.arange(images) % CLASSES)
    return nc_benchmark(data, data, 2, task_labels=False, shuffle=False).train_stream


def _strategy(model: nn.Module, batch_size: int, plugins: list[Any]) -> Any:
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        evaluator=None,
        plugins=plugins,
    )


def _trained(make: Callable[[], nn.Module], plugin: Callable[[], Any] | None, stream: Any, batch_size: int) -> Timed:
    """Processor seconds of a step in the second experience, under Avalanche."""

    def timed() -> float:
        strategy = _strategy(make(), batch_size, [plugin()] if plugin else [])
        strategy.train(stream[0])
        clock = _Clock()
        strategy.plugins.insert(0, clock)
        strategy.train(stream[1])
        return clock.seconds / clock.steps

    return timed


def _bare(model: nn.Module, batches: Batches, loss: Loss) -> Timed:
    """Processor seconds of a step in a loop without anything else; the batches are there already."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def timed() -> float:
        start = time.process_time()
        for x, y in batches:
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
        return (time.process_time() - start) / len(batches)

    return timed


def _batches(rows: int, shape: tuple[int, ...], replayed: int, steps: int) -> Batches:
    """Rows of the new classes, then replayed ones of the old."""
    draws = torch.Generator().manual_seed(1)
    y = torch.cat([OLD + torch.arange(rows - replayed) % OLD, torch.arange(replayed) % OLD])
    return [(torch.rand(rows, *shape, generator=draws), y) for _ in range(steps)]


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def bare_ssil(logits: Tensor, kept: Tensor, y: Tensor) -> Tensor:
    """SS-IL in the second of two experiences, old classes first: separated softmax and distillation."""
    total = torch.where(y < OLD, logits[:, :OLD].logsumexp(dim=1), logits[:, OLD:].logsumexp(dim=1))
    return (total - logits.gather(1, y[:, None])[:, 0]).mean() + view_taskwise(logits[:, :OLD], kept[:, :OLD], 1)


def bare_csd(logits: Tensor, features: Tensor, kept: Tensor, kept_features: Tensor, y: Tensor) -> Tensor:
    """CSD in the second of two experiences: cross-entropy, triplet, distillation and contrast, each with weight 1."""
    plasticity = F.cross_entropy(logits, y) + batch_hard_triplet(features, y)
    stability = view_taskwise(logits[:, :OLD], kept[:, :OLD], 1) + lean_contrast(features, kept_features, y)
    return plasticity + stability


def _methods(encoder: Callable[[], nn.Module], width: int) -> dict[str, tuple[Any, Any, int, int]]:
    """Of each method: its model, its plugin, the rows of a batch and those that are replayed besides."""

    def classifier() -> nn.Module:
        return nn.Sequential(encoder(), nn.Linear(width, CLASSES))

    return {
        "SS-IL": (classifier, lambda: SSILPlugin(500, batch_size_mem=32), 128, 32),
        "CSD": (classifier, CSDPlugin, 128, 0),
        "Co2L": (
            lambda: ContrastiveModel(encoder(), width, 128),
            lambda: Co2LPlugin(500, lambda x: x, readout_epochs=1),
            64,
            0,
        ),
    }


def _loss_of(method: str, teacher: nn.Module) -> Loss:
    def ssil(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            kept = teacher(x)
        return bare_ssil(model(x), kept, y)

    def csd(model: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            kept_features = teacher[0](x)  # type: ignore[index]
            kept = teacher[1](kept_features)  # type: ignore[index]
        features = model[0](x)
        return bare_csd(model[1](features), features, kept, kept_features, y)

    def co2l(model: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            kept = F.normalize(teacher.projector(teacher.encoder(x)), dim=1)  # type: ignore[operator]
        z = F.normalize(model.projector(model.encoder(x)), dim=1)
        half = len(y) // 2
        return lean_co2l(z.view(half, 2, -1), kept.view(half, 2, -1), y[:half], y[:half] >= OLD)

    return {"SS-IL": ssil, "CSD": csd, "Co2L": co2l}[method]


def _compared(
    method: str,
    title: str,
    encoder: Callable[[], nn.Module],
    *,
    width: int,
    shape: tuple[int, ...],
    steps: int,
    target: float,
) -> Comparison:
    make, plugin, rows, replayed = _methods(encoder, width)[method]
    stream = _stream(shape, 2 * rows * steps)
    model = make()
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    views = 2 if method == "Co2L" else 1
    bare = _bare(model, _batches(views * rows + replayed, shape, replayed, steps), _loss_of(method, teacher))
    plain = _methods(encoder, width)["CSD"][0]
    naive = _trained(plain, None, stream, rows)
    bare_naive = _bare(plain(), _batches(rows, shape, 0, steps), _cross_entropy)
    return Comparison(
        f"a step of {method}, {title}",
        "a bare loop plus Avalanche's own cost",
        _trained(make, plugin, stream, rows),
        lambda: bare() + naive() - bare_naive(),
        target,
    )


def tiny_steps() -> list[Comparison]:
    """A step of each method with a model so small that all else counts."""

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())

    small: dict[str, Any] = {"width": 64, "shape": (1, 8, 8), "steps": 40, "target": 1.1}
    return [_compared(method, "64-64-10", encoder, **small) for method in ("SS-IL", "CSD", "Co2L")]


def wide_steps() -> list[Comparison]:
    """A step of SS-IL with Avalanche's SlimResNet18."""

    def encoder() -> nn.Module:
        network: nn.Module = SlimResNet18(CLASSES)
        network.linear = nn.Identity()
        return network

    large: dict[str, Any] = {"width": 160, "shape": (3, 32, 32), "steps": 3, "target": 1.03}
    return [_compared("SS-IL", "SlimResNet18, 128 + 32 of 3 x 32 x 32", encoder, **large)]


def growth(experiences: int = 100, first: int = 10) -> list[Comparison]:
    """An experience after many that went before, beside one after a few; 20 classes that come back, 100 exemplars."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(64, 1, 8, 8, generator=draws), torch.arange(64) % 2
    fetch_whole_batches()

    def experience(number: int) -> Any:
        data = MemoryImages(x, (y + 2 * number) % 20)
        return nc_benchmark(data, data, 1, task_labels=False, shuffle=False, train_transform=None).train_stream[0]

    def seconds_at(last: int, make: Callable[[], nn.Module], plugin: Callable[[], Any]) -> Timed:
        def timed() -> float:
            strategy, seconds = _strategy(make(), 32, [plugin()]), []
            for number in range(last + 3):
                start = time.process_time()
                strategy.train(experience(number))
                seconds.append(time.process_time() - start)
            return statistics.median(seconds[last - 3 :])

        return timed

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())

    def classifier() -> nn.Module:
        return nn.Sequential(encoder(), nn.Linear(32, 20))

    kinds = {
        "SS-IL": (classifier, lambda: SSILPlugin(100, batch_size_mem=16)),
        "CSD": (classifier, CSDPlugin),
        "Co2L": (
            lambda: ContrastiveModel(encoder(), 32, 16, num_classes=20),
            lambda: Co2LPlugin(100, lambda images: images, readout_epochs=1),
        ),
    }
    return [
        Comparison(
            f"the {experiences}th experience of {method}, 20 returning classes",
            f"its {first}th",
            seconds_at(experiences, *made),
            seconds_at(first, *made),
            1.2,
        )
        for method, made in kinds.items()
    ]
