"""Training steps beside bare loops of the same mathematics, and the time of experiences when many went before."""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import SlimResNet18
from avalanche.training import Naive
from avalanche.training.plugins import ReplayPlugin
from torch import Tensor, nn

from avalanche_contrastive.bench.methods.networks import make_encoder
from avalanche_contrastive.bench.run.measure import clock, describe_device
from avalanche_contrastive.bench.speed.losses import lean_co2l, lean_contrast, view_taskwise
from avalanche_contrastive.bench.speed.measure import Comparison, LeftOutError, Timed
from avalanche_contrastive.data import MemoryImages, fetch_whole_batches
from avalanche_contrastive.losses import batch_hard_triplet
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, SSILPlugin

__all__ = ["growth", "on_gpu", "tiny_steps", "wide_steps"]

Batches: TypeAlias = list[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]  # of a model and a batch

CLASSES = 10
OLD = CLASSES // 2  # of the first of two experiences
MEMORY, REPLAYED = 500, 32  # exemplars, and those in each batch of SS-IL
ROWS = {"SS-IL": 128, "CSD": 128, "Co2L": 64}  # of a batch


class _Clock(SupervisedPlugin[Any]):
    """The time at the end of each step of an experience."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.times.append(_now(strategy.device))


def _now(device: torch.device) -> float:
    """Processor seconds; on a GPU seconds of the clock on the wall, when it has done its work."""
    return time.process_time() if device.type == "cpu" else clock(device)


class _WrittenOut(Naive):
    """Avalanche's Naive with a loss of model and batch written into it, without anything else."""

    written: Loss

    def forward(self) -> None:
        pass

    def criterion(self) -> Tensor:
        return self.written(self.model, self.mb_x, self.mb_y)


def _stream(shape: tuple[int, ...], images: int, device: str) -> Any:
    fetch_whole_batches()
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    data = MemoryImages(x, torch.arange(images) % CLASSES)
    return nc_benchmark(data, data, 2, task_labels=False, shuffle=False).train_stream


def _strategy(model: nn.Module, batch_size: int, plugins: list[Any], kind: type[Naive] = Naive) -> Any:
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        device=next(model.parameters()).device,
        train_mb_size=batch_size,
        evaluator=None,
        plugins=plugins,
    )


def _per_step(times: list[float]) -> float:
    """The median of the steps: what else runs on the machine disturbs some of them."""
    return statistics.median(end - start for start, end in pairwise(times))


def _trained(make: Callable[[], Any], *experiences: Any) -> Timed:
    """Seconds of a step of a strategy in the last of the experiences."""

    def timed() -> float:
        strategy = make()
        for experience in experiences[:-1]:
            strategy.train(experience)
        clock = _Clock()
        strategy.plugins.insert(0, clock)
        strategy.train(experiences[-1])
        return _per_step(clock.times)

    return timed


def _bare(model: nn.Module, batches: Batches, loss: Loss) -> Timed:
    """Seconds of a step in a loop without anything else; the batches are there already."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def timed() -> float:
        times = []
        for x, y in batches:
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
            times.append(_now(x.device))
        return _per_step(times)

    return timed


def _batches(rows: int, shape: tuple[int, ...], steps: int, device: str) -> Batches:
    """Rows of the new classes."""
    x, y = torch.rand(steps, rows, *shape, generator=torch.Generator().manual_seed(1)), OLD + torch.arange(rows) % OLD
    return [(batch, y.to(device)) for batch in x.to(device)]


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def bare_ssil(logits: Tensor, kept: Tensor, y: Tensor) -> Tensor:
    """SS-IL in the second of two experiences, old classes first: separated softmax and distillation."""
    total = torch.where(y < OLD, logits[:, :OLD].logsumexp(dim=1), logits[:, OLD:].logsumexp(dim=1))
    return (total - logits.gather(1, y[:, None])[:, 0]).mean() + view_taskwise(logits[:, :OLD], kept[:, :OLD], 1)


def bare_csd(logits: Tensor, features: Tensor, kept: Tensor, kept_features: Tensor, y: Tensor) -> Tensor:
    """CSD in the second of two experiences: cross-entropy, triplet, distillation and contrast, each with weight 1."""
    plasticity = F.cross_entropy(logits, torch.where(y < OLD, -100, y)) + batch_hard_triplet(features, y)
    stability = view_taskwise(logits[:, :OLD], kept[:, :OLD], 1) / 4 + lean_contrast(features, kept_features, y)
    return plasticity + stability


def _methods(
    encoder: Callable[[], nn.Module],
    width: int,
    classes: int,
    memory: int,
    replayed: int,
    projection: int,
    device: str = "cpu",
) -> dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]]:
    """Of each method: what makes its model, and what makes its plugin."""

    def classifier() -> nn.Module:
        return nn.Sequential(encoder(), nn.Linear(width, classes)).to(device)

    def contrastive() -> nn.Module:
        return ContrastiveModel(encoder(), width, projection, num_classes=classes).to(device)

    return {
        "SS-IL": (classifier, lambda: SSILPlugin(memory, batch_size_mem=replayed)),
        "CSD": (classifier, CSDPlugin),
        "Co2L": (contrastive, lambda: Co2LPlugin(memory, lambda x: x, readout_epochs=1)),
    }


def _loss_of(method: str, teacher: Any, shape: tuple[int, ...]) -> Loss:
    """The mathematics of a method for a batch of new rows: teacher, replayed rows (SS-IL) and views (Co2L) included."""
    memory, labels = torch.rand(MEMORY, *shape), torch.arange(MEMORY) % OLD

    def ssil(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        rows = torch.randint(MEMORY, (REPLAYED,))
        x, y = torch.cat([x, memory.index_select(0, rows)]), torch.cat([y, labels.index_select(0, rows)])
        with torch.no_grad():
            kept = teacher(x)
        return bare_ssil(model(x), kept, y)

    def csd(model: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            kept_features = teacher[0](x)
            kept = teacher[1](kept_features)
        features = model[0](x)
        return bare_csd(model[1](features), features, kept, kept_features, y)

    def co2l(model: Any, x: Tensor, y: Tensor) -> Tensor:
        x = torch.stack([x, x], dim=1).flatten(0, 1)
        with torch.no_grad():
            kept = F.normalize(teacher.projector(teacher.encoder(x)), dim=1)
        z = F.normalize(model.projector(model.encoder(x)), dim=1)
        return lean_co2l(z.unflatten(0, (-1, 2)), kept.unflatten(0, (-1, 2)), y, y >= OLD)

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
    rows: int | None = None,
    device: str = "cpu",
) -> list[Comparison]:
    methods, rows = _methods(encoder, width, CLASSES, MEMORY, REPLAYED, 128, device), rows or ROWS[method]
    (make, plugin), classifier = methods[method], methods["CSD"][0]
    stream, batches = _stream(shape, 2 * rows * steps, device), _batches(rows, shape, steps, device)
    loss = _loss_of(method, copy.deepcopy(make()).eval().requires_grad_(False), shape)

    def written_out() -> Any:
        strategy = _strategy(make(), rows, [], _WrittenOut)
        strategy.written = loss
        return strategy

    ours = _trained(lambda: _strategy(make(), rows, [plugin()]), *stream)
    naive = _trained(lambda: _strategy(classifier(), rows, []), *stream)
    bare, bare_naive = _bare(make(), batches, loss), _bare(classifier(), batches, _cross_entropy)
    beside = {
        "a bare loop plus Avalanche's own cost": lambda: bare() + naive() - bare_naive(),
        "the bare loss written into Avalanche's Naive": _trained(written_out, stream[1]),
        "a bare loop": bare,
    }
    return [Comparison(f"a step of {method}, {title}", what, ours, theirs, target) for what, theirs in beside.items()]


def tiny_steps() -> list[Comparison]:
    """A step of each method with a model so small that all else counts."""

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())

    small: dict[str, Any] = {"width": 64, "shape": (1, 8, 8), "steps": 40, "target": 1.1}
    return [row for method in ("SS-IL", "CSD", "Co2L") for row in _compared(method, "64-64-10", encoder, **small)[:2]]


def wide_steps() -> list[Comparison]:
    """A step of SS-IL with Avalanche's SlimResNet18."""

    def encoder() -> nn.Module:
        network: nn.Module = SlimResNet18(CLASSES)
        network.linear = nn.Identity()
        return network

    large: dict[str, Any] = {"width": 160, "shape": (3, 32, 32), "steps": 3, "target": 1.03}
    return _compared("SS-IL", "SlimResNet18, 128 + 32 of 3 x 32 x 32", encoder, **large)[:1]


def on_gpu(device: str = "cuda", rows: int = 512, steps: int = 12) -> list[Comparison]:
    """A step of Co2L with ResNet-18 and two views of each row, all of it on a GPU.

    Raises:
        LeftOutError: there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LeftOutError("torch finds no GPU here")
    title = f"ResNet-18, {2 * rows:,} views of 3 x 32 x 32, on {describe_device(device)}"
    large: dict[str, Any] = {"width": 512, "shape": (3, 32, 32), "steps": steps, "target": 1.05}
    encoder = partial(make_encoder, "resnet18", (3, 32, 32))
    return _compared("Co2L", title, encoder, rows=rows, device=device, **large)[2:]


def growth(
    last: int = 100, first: int = 10, *, classes: int = 20, new: int = 2, images: int = 64, memory: int = 100
) -> list[Comparison]:
    """An experience of some classes, which come back in turn, after many that went before, beside one after a few."""
    x, y = torch.rand(images, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(images) % new
    fetch_whole_batches()

    def experience(number: int) -> Any:
        data = MemoryImages(x, (y + new * number) % classes)
        return nc_benchmark(data, data, 1, task_labels=False, shuffle=False, train_transform=None).train_stream[0]

    def seconds_at(number: int, make: Callable[[], nn.Module], plugin: Callable[[], Any]) -> Timed:
        def timed() -> float:
            strategy, seconds = _strategy(make(), 32, [plugin()]), []
            for at in range(number + 3):
                start = time.process_time()
                strategy.train(experience(at))
                seconds.append(time.process_time() - start)
            return statistics.median(seconds[number - 3 :])

        return timed

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())

    methods, work = _methods(encoder, 32, classes, memory, 16, 16), f"{classes:,} returning classes, memory {memory:,}"
    beside = [(method, f"its {first}th", seconds_at(first, *parts), 1.2) for method, parts in methods.items()]
    if memory <= 100:  # it has a group of exemplars for each experience: beside 1,000 classes that is other work
        replay = seconds_at(last, methods["CSD"][0], lambda: ReplayPlugin(memory, batch_size_mem=16))
        beside.append(("SS-IL", f"the {last}th of Avalanche's Replay", replay, 1.0))
    return [
        Comparison(f"the {last}th experience of {method}, {work}", what, seconds_at(last, *methods[method]), ref, most)
        for method, what, ref, most in beside
    ]
