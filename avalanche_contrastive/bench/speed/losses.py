"""The losses beside bare formulations of the same mathematics in torch, and Avalanche's supervised contrast."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from avalanche.training.losses import SCRLoss
from torch import Tensor

from avalanche_contrastive.bench.speed.measure import Comparison, seconds_of
from avalanche_contrastive.losses import (
    asymmetric_supcon,
    contrast_and_relations,
    contrastive_distillation,
    taskwise_distillation,
)

LOWEST = -1e9  # for similarities that take no part


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
    return contrast_and_relations(z, y, anchor, z_teacher, reduction="all")[0]


def comparisons() -> list[Comparison]:
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
    co2l, size = (z, z_teacher, y), "512 x 2 x 128"
    work, all_work = f"Co2L, {size}, half of them anchors", f"Co2L, {size}, all anchors"
    ours = step(ours_co2l, *co2l, half)
    return [
        _pair(work, "lean autograd", ours, step(lean_co2l, *co2l, half), 1.1),
        _pair(all_work, "lean autograd", step(ours_co2l, *co2l, None), step(lean_co2l, *co2l, every), 1.1),
        _pair(work, "gradient by hand", ours, lambda: written_out_co2l(*co2l, half)[1], 1.3),
        _pair(
            "SupCon, 64 x 2 x 128",
            "Avalanche's SCRLoss",
            step(asymmetric_supcon, small, y[:64], temperature=0.07),
            step(SCRLoss(temperature=0.07), small, y[:64]),
            1.0,
        ),
        _pair(
            "SS-IL's distillation, 128 x 1000, 10 tasks",
            "a view by task",
            step(taskwise_distillation, logits, teacher_logits, torch.arange(1000) // 100),
            step(view_taskwise, logits, teacher_logits, 10),
            1.2,
        ),
        _pair(
            "CSD's contrast, 64 x 512",
            "lean autograd",
            step(contrastive_distillation, features, teacher_features, y[:64]),
            step(lean_contrast, features, teacher_features, y[:64]),
            1.1,
        ),
    ]


def _pair(
    work: str, competitor: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], target: float
) -> Comparison:
    repeats = 1 if "512 x 2" in work else 10
    timed = seconds_of(ours, repeats), seconds_of(theirs, repeats)
    return Comparison(work, competitor, *timed, target, same=(ours, theirs))
