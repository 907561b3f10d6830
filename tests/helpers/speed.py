"""What the package's speed is measured against: bare formulations in torch, and libraries that do the same.

Each comparison is two functions of no argument that do the same work. `ratios` runs them in turn, in one process on one
thread, and divides what they take of the processor: other processes disturb both alike.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
from avalanche.training.losses import SCRLoss
from torch import Tensor
from torch.utils.data import TensorDataset

from avalanche_contrastive.data import MemoryImages, PadCropAugmentation, SimCLRAugmentation, fetch_whole_batches
from avalanche_contrastive.losses import (
    asymmetric_supcon,
    contrastive_distillation,
    relation_distillation,
    taskwise_distillation,
)

LOWEST = -1e9  # for similarities that take no part


@dataclass(frozen=True)
class Comparison:
    """A piece of work of ours and of somebody else.

    Args:
        work: what is done, in words.
        competitor: who else does it.
        ours: does it once.
        theirs: likewise, to the same result.
        target: ratio of our time to theirs that is wanted.
    """

    work: str
    competitor: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    target: float


def ratios(comparison: Comparison, rounds: int = 15, repeats: int = 1) -> list[float]:
    """Our processor time divided by theirs, of each round; the first of the two alternates."""
    comparison.ours(), comparison.theirs()
    found = []
    for number in range(rounds):
        pair = [comparison.ours, comparison.theirs][:: 1 if number % 2 else -1]
        seconds = {run: _seconds(run, repeats) for run in pair}
        found.append(seconds[comparison.ours] / seconds[comparison.theirs])
    return found


def summary(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _seconds(run: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return time.process_time() - start


# ---- Co2L: supervised contrast and relation distillation together


def lean_co2l(
    z: Tensor, z_teacher: Tensor, y: Tensor, anchor: Tensor, *, t: float = 0.5, k: float = 0.2, k_teacher: float = 0.01
) -> Tensor:
    """Both terms of Co2L by autograd from one matrix of similarities, reduction "all"; z (B, V, D)."""
    views, teacher = z.flatten(0, 1), z_teacher.flatten(0, 1)
    labels, anchor = y.repeat_interleave(z.shape[1]), anchor.repeat_interleave(z.shape[1])
    similarity = views @ views.T
    positive = (labels[:, None] == labels).to(z.dtype).fill_diagonal_(0)
    contrast = (similarity / t).fill_diagonal_(LOWEST).log_softmax(dim=1)
    contrast = -((positive * contrast).sum(dim=1) / positive.sum(dim=1) * anchor).sum() / len(views)
    target = (teacher @ teacher.T / k_teacher).fill_diagonal_(LOWEST).softmax(dim=1)
    return contrast - (target * (similarity / k).fill_diagonal_(LOWEST).log_softmax(dim=1)).sum() / len(views)


@torch.no_grad()
def written_out_co2l(
    z: Tensor, z_teacher: Tensor, y: Tensor, anchor: Tensor, *, t: float = 0.5, k: float = 0.2, k_teacher: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Value and gradient of `lean_co2l`, the gradient by hand: one matrix of slopes for both terms."""
    views, teacher = z.flatten(0, 1), z_teacher.flatten(0, 1)
    labels, anchor = y.repeat_interleave(z.shape[1]), anchor.repeat_interleave(z.shape[1])
    n = len(views)
    similarity = views @ views.T
    positive = (labels[:, None] == labels).to(z.dtype).fill_diagonal_(0)
    positive /= positive.sum(dim=1, keepdim=True)
    logits = (similarity / t).fill_diagonal_(LOWEST)
    total = logits.logsumexp(dim=1)
    value = ((total - (positive * logits).sum(dim=1)) * anchor).sum() / n
    slope = logits.sub_(total[:, None]).exp_().sub_(positive).mul_(anchor[:, None] / (n * t))
    relation = similarity.div_(k).fill_diagonal_(LOWEST).log_softmax(dim=1)
    target = (teacher @ teacher.T).div_(k_teacher).fill_diagonal_(LOWEST).softmax(dim=1)
    value = value - (target * relation).sum() / n
    slope.add_(relation.exp_().sub_(target), alpha=1 / (n * k))
    return value, (slope @ views + slope.T @ views).view_as(z)


# ---- SS-IL: distillation under a softmax for each task


def view_taskwise(logits: Tensor, teacher_logits: Tensor, tasks: int, *, temperature: float = 2.0) -> Tensor:
    """Task-wise distillation of equal, consecutive tasks."""
    student, teacher = (
        (x / temperature).unflatten(1, (tasks, -1)).log_softmax(dim=2) for x in (logits, teacher_logits)
    )
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature**2 / len(logits))


# ---- CSD: contrast with the teacher's features


def lean_contrast(features: Tensor, teacher_features: Tensor, y: Tensor, *, temperature: float = 0.07) -> Tensor:
    """CSD's contrast, the authors' form, by autograd."""
    b = len(y)
    student, teacher = F.normalize(features, dim=1), F.normalize(teacher_features, dim=1)
    similarity = (student @ torch.cat([student, teacher]).T / temperature).fill_diagonal_(LOWEST)
    same = (y[:, None] == y).to(features.dtype)
    positive = torch.cat([same.clone().fill_diagonal_(0), same], dim=1)
    return -((positive * similarity.log_softmax(dim=1)).sum(dim=1) / positive.sum(dim=1)).sum() / b


# ---- the comparisons


def step(loss: Callable[..., Tensor], x: Tensor, *arguments: object, **options: object) -> Callable[[], Tensor]:
    """The loss of x and its gradient."""

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        value = loss(leaf, *arguments, **options)
        value.backward()
        assert leaf.grad is not None
        return leaf.grad

    return run


def ours_co2l(z: Tensor, z_teacher: Tensor, y: Tensor, anchor: Tensor | None) -> Tensor:
    """Both terms of Co2L as its plugin calls them."""
    return asymmetric_supcon(z, y, anchor, reduction="all") + relation_distillation(z, z_teacher)


def loss_comparisons() -> list[Comparison]:
    """The losses with their gradients, at the sizes of the papers."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    z = F.normalize(normal(512, 2, 128), dim=2)
    z_teacher = F.normalize(z + 0.1 * normal(512, 2, 128), dim=2)
    y = torch.randint(4, (512,), generator=draws)
    half, every = y >= 2, torch.ones(512, dtype=torch.bool)
    small = F.normalize(normal(64, 2, 128), dim=2)
    logits, teacher_logits = 3 * normal(128, 1000), 3 * normal(128, 1000)
    features, teacher_features = normal(64, 512), normal(64, 512)
    size = "512 x 2 x 128"
    return [
        Comparison(
            f"Co2L, {size}, {what}",
            competitor,
            step(ours_co2l, z, z_teacher, y, ours),
            step(theirs, z, z_teacher, y, given),
            target,
        )
        for what, ours, given in (("half of them anchors", half, half), ("all anchors", None, every))
        for competitor, theirs, target in (("lean autograd", lean_co2l, 1.1),)
    ] + [
        Comparison(
            f"Co2L, {size}, half of them anchors",
            "gradient by hand",
            step(ours_co2l, z, z_teacher, y, half),
            lambda: written_out_co2l(z, z_teacher, y, half)[1],
            1.3,
        ),
        Comparison(
            "SupCon, 64 x 2 x 128",
            "Avalanche's SCRLoss",
            step(asymmetric_supcon, small, y[:64], temperature=0.07),
            step(SCRLoss(temperature=0.07), small, y[:64]),
            1.0,
        ),
        Comparison(
            "SS-IL's distillation, 128 x 1000, 10 tasks",
            "a view by task",
            step(taskwise_distillation, logits, teacher_logits, torch.arange(1000) // 100),
            step(view_taskwise, logits, teacher_logits, 10),
            1.2,
        ),
        Comparison(
            "CSD's contrast, 64 x 512",
            "lean autograd",
            step(contrastive_distillation, features, teacher_features, y[:64]),
            step(lean_contrast, features, teacher_features, y[:64]),
            1.1,
        ),
    ]


def augmentation_comparisons() -> list[Comparison]:
    """Augmentations of a batch beside kornia's, which must be installed. Equal in distribution only."""
    import kornia.augmentation as kornia

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
            taps = side // 20 * 2 + 1
            simclr.append(kornia.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5))
        pad_crop = [kornia.RandomCrop((side, side), padding=4, cropping_mode="resample"), simclr[1]]
        size = f"{count} x 3 x {side} x {side}"
        for name, ours, theirs, target in (
            ("SimCLR's views", SimCLRAugmentation(), simclr, 1 / 3),
            ("padded crop", PadCropAugmentation(), pad_crop, 1.0),
        ):
            layers = torch.nn.Sequential(*theirs)
            found.append(
                Comparison(
                    f"{name}, {size}", "kornia", lambda o=ours, x=x: o(x), lambda t=layers, x=x: t(x), round(target, 2)
                )
            )
    return found


class _SampleBySample(TensorDataset):
    """Images that Avalanche fetches one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x)
        self.targets = y.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.tensors[0][index], self.targets[index]


def fetch_comparisons(count: int = 10_000) -> list[Comparison]:
    """An epoch of Avalanche's loader over images in memory beside the same over images of a plain data set."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 1, 28, 28), generator=draws, dtype=torch.uint8)
    y = torch.arange(count) % 10
    fetch_whole_batches()

    def epoch(images: object) -> Callable[[], None]:
        data = nc_benchmark(images, images, 2, task_labels=False, seed=0).train_stream[0].dataset

        def run() -> None:
            for _ in TaskBalancedDataLoader(data, batch_size=128, shuffle=True):
                pass

        return run

    return [
        Comparison(
            f"an epoch's batches of 128, {count // 2:,} of 1 x 28 x 28",
            "Avalanche",
            epoch(MemoryImages(x, y)),
            epoch(_SampleBySample(x.float().div(255), y)),
            0.2,
        )
    ]
