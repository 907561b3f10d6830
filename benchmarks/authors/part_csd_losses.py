"""CSD: each loss of the authors' plugin by itself, and Recall@K."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import avalanche.training.plugins
import torch
from avalanche.training.plugins import SupervisedPlugin
from checkouts import Checkout, no_gpu_needed
from replay import Part, difference
from torch import Tensor, nn

from avalanche_contrastive.losses import batch_hard_triplet, contrastive_distillation, taskwise_distillation
from avalanche_contrastive.metrics import recall_at_k

METHOD = "CSD"
OLD, CLASSES, BATCH, WIDTH = 4, 6, 24, 8
Losses = dict[str, Tensor]


def parts(checkout: Checkout) -> Iterator[Part]:
    """The losses one by one, and Recall@K."""
    with ExitStack() as stack:
        # What Avalanche has renamed since.
        old_name = mock.patch.object(avalanche.training.plugins, "StrategyPlugin", SupervisedPlugin, create=True)
        stack.enter_context(old_name)
        names = ("trainer.plugins", "metric.recall_at_k", "metric.nearest_neighbor")
        stubs = ("avalanche.training.strategies",)
        plugins, recall, neighbours = stack.enter_context(checkout.modules(*names, stubs=stubs))
        yield from _losses(plugins)
        yield _recall(recall, neighbours)


def _losses(plugins: Any) -> Iterator[Part]:
    names = {
        "ceLoss": ("cross-entropy of new classes", "torch's cross_entropy, as CSDPlugin(ce='weighted') takes it"),
        "tripletLoss": ("triplets", "losses.batch_hard_triplet"),
        "kdLoss": ("distillation of logits", "losses.taskwise_distillation, divided by T^2"),
        "contrastiveLoss": ("contrast", "losses.contrastive_distillation"),
    }
    sides: list[dict[str, list[Tensor]]] = [{name: [] for name in names} for _ in range(2)]
    active = []
    for seed in range(3):
        for kept, losses_of in zip(sides, (_ours, _theirs), strict=True):
            batch = _batch(seed)
            losses = losses_of(plugins, *batch)
            for name, loss in losses.items():
                leaf = batch[0] if name in ("tripletLoss", "contrastiveLoss") else batch[1]
                kept[name] += [loss.detach(), *torch.autograd.grad(loss, leaf, retain_graph=True)]
        active.append(_share_of_active_triplets(_batch(seed)[0], _batch(seed)[4]))
    for name, (words, ours) in names.items():
        of_triplets = f"; {min(active):.0%} to {max(active):.0%} of the triplets are active"
        yield Part(
            METHOD,
            words,
            f"trainer.plugins.ILFGIR_plugin.before_backward: {name}",
            ours,
            f"loss and gradient of 3 batches of {BATCH} images{of_triplets if name == 'tripletLoss' else ''}",
            *difference(sides[0][name], sides[1][name]),
        )


def _batch(seed: int) -> tuple[Tensor, ...]:
    """Features and logits of the student and the teacher, and labels: new classes in groups that lie well apart."""
    draws = torch.Generator().manual_seed(seed)
    y = OLD + torch.arange(BATCH) % (CLASSES - OLD)
    centres = 3 * torch.randn(CLASSES, WIDTH, generator=draws)
    features, kept = (centres[y] + torch.randn(BATCH, WIDTH, generator=draws) for _ in range(2))
    logits, kept_logits = torch.randn(BATCH, CLASSES, generator=draws), torch.randn(BATCH, OLD, generator=draws)
    return features.requires_grad_(), logits.requires_grad_(), kept, kept_logits, y


def _ours(plugins: Any, features: Tensor, logits: Tensor, kept: Tensor, kept_logits: Tensor, y: Tensor) -> Losses:
    one_task = torch.zeros(OLD, dtype=torch.long)
    return {
        "ceLoss": nn.functional.cross_entropy(logits, y),
        "tripletLoss": batch_hard_triplet(features, y),
        "kdLoss": taskwise_distillation(logits, kept_logits, one_task, temperature=2.0) / 4,
        "contrastiveLoss": contrastive_distillation(features, kept, y),
    }


def _theirs(plugins: Any, features: Tensor, logits: Tensor, kept: Tensor, kept_logits: Tensor, y: Tensor) -> Losses:
    plugin = plugins.ILFGIR_plugin("", "", None, lambda x: (kept_logits, kept), 1.0, 1.0)
    strategy = SimpleNamespace(mb_output=(logits, features), mb_x=kept, mb_y=y, loss=torch.zeros(()))
    plugin.after_forward(strategy)
    with no_gpu_needed():
        plugin.before_backward(strategy)
    return {name: getattr(plugin, name) for name in ("ceLoss", "tripletLoss", "kdLoss", "contrastiveLoss")}


def _share_of_active_triplets(features: Tensor, y: Tensor) -> float:
    unit = nn.functional.normalize(features.detach(), dim=1)
    cosines, same = unit @ unit.T, y[:, None] == y
    positive = cosines.masked_fill(~same, 2).min(dim=1).values
    negative = cosines.masked_fill(same, -2).max(dim=1).values
    return float((negative - positive + 1 > 0).double().mean())


def _recall(recall: Any, neighbours: Any) -> Part:
    """Leave one out, among well and badly separated classes."""
    ours, theirs = [], []
    for seed in range(4):
        draws = torch.Generator().manual_seed(seed)
        y = torch.arange(120) % 6
        centres = torch.randn(6, WIDTH, generator=draws)
        features = seed * centres[y] / 2 + torch.randn(120, WIDTH, generator=draws)
        distances = neighbours.pair_wise_cosine_dist(features.numpy(), features.numpy())
        for k in (1, 2, 4):
            measure = recall.RecallAtK(k)
            measure.update(distances, y.numpy(), y.numpy())
            theirs.append(measure.result())
            ours.append(float(recall_at_k(features, y, k=k)))
    return Part(
        METHOD,
        "Recall@K",
        "metric.recall_at_k.RecallAtK, metric.nearest_neighbor.pair_wise_cosine_dist",
        "metrics.recall_at_k",
        f"{len(ours)} values, from {min(theirs):.2f} to {max(theirs):.2f}",
        *difference([torch.tensor(ours)], [torch.tensor(theirs)]),
    )
