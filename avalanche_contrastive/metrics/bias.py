"""Which classes a classifier's scores favour: the newest against the old, and experience against experience."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from torch import Tensor

from avalanche_contrastive._checks import form_of
from avalanche_contrastive.metrics.base import GatheringMetric, Level, MatrixValue, chosen_levels
from avalanche_contrastive.metrics.search import check_y

__all__ = ["BiasMetric", "ScoreBias", "bias_metrics", "score_bias", "task_confusion"]


@dataclass(frozen=True)
class ScoreBias:
    """How scores favour the newest classes over the old.

    Attributes:
        predicted_share: share of images classified as one of the newest classes.
        true_share: share of images that are of one of the newest classes.
        logit_gap: mean logit of the newest classes minus mean logit of the old, mean over images. Zero for scores that
            treat all classes alike, on images balanced over classes.
        confusion: images by (true, predicted) kind, 0 old and 1 newest; (2, 2) int64.
    """

    predicted_share: float
    true_share: float
    logit_gap: float
    confusion: Tensor

    @property
    def old_as_new(self) -> float:
        """Share of the images of old classes that are classified as newest; nan without such images."""
        return (self.confusion[0, 1].double() / self.confusion[0].sum()).item()

    @property
    def new_as_old(self) -> float:
        """Share of the images of the newest classes that are classified as old; nan without such images."""
        return (self.confusion[1, 0].double() / self.confusion[1].sum()).item()


@torch.no_grad()
def score_bias(logits: Tensor, y: Tensor, *, old: Sequence[int], newest: Sequence[int]) -> ScoreBias:
    """How a classifier's scores favour the newest classes over the old.

    Images of any other class are left out, and logits of any other class take no part: an image is classified as the
    best of the classes seen so far.

    Args:
        logits: (N, K).
        y: class ids, (N,) integers.
        old: ids of the classes learned earlier, one at least.
        newest: ids of the classes learned last, one at least.

    Raises:
        ValueError: a wrong shape or type, classes that are missing, in both lists, or without a logit, or no image of
            any of them.
    """
    predicted, gap = _scored("score_bias", logits, old, newest)
    y = check_y("score_bias", "y", y, len(logits))
    kept = torch.isin(y, torch.tensor([*old, *newest], device=y.device))
    if not bool(kept.any()):
        raise ValueError("score_bias: y holds no image of the old or newest classes.")
    return _bias(y[kept], predicted[kept], gap[kept], newest)


def _scored(name: str, logits: Tensor, old: Sequence[int], newest: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Predicted class among old and newest, and logit gap, of each image; (N,) each."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"{name}: logits must be a floating-point tensor (N, K), got {form_of(logits)}.")
    if not old or not newest or set(old) & set(newest):
        raise ValueError(f"{name}: old and newest must be different classes, one at least each, got {old}, {newest}.")
    columns = torch.tensor([*old, *newest], device=logits.device)
    if int(columns.min()) < 0 or int(columns.max()) >= logits.shape[1]:
        raise ValueError(
            f"{name}: class {int(columns.max())} has no logit, the model gives {logits.shape[1]}. Is its last layer as "
            "wide as the largest class id + 1?"
        )
    scores = logits[:, columns]
    gap = scores[:, len(old) :].double().mean(dim=1) - scores[:, : len(old)].double().mean(dim=1)
    return columns[scores.argmax(dim=1)], gap


def _bias(y: Tensor, predicted: Tensor, gap: Tensor, newest: Sequence[int]) -> ScoreBias:
    new = torch.tensor(newest, device=y.device)
    is_new, said_new = torch.isin(y, new), torch.isin(predicted, new)
    confusion = torch.bincount(2 * is_new + said_new, minlength=4).reshape(2, 2).cpu()
    share = said_new.double().mean().item(), is_new.double().mean().item()
    return ScoreBias(*share, gap.mean().item(), confusion)


@torch.no_grad()
def task_confusion(predicted: Tensor, y: Tensor, groups: Tensor) -> Tensor:
    """Images by the experience of their true class and the experience of the predicted class.

    Args:
        predicted: class ids, (N,) integers in [0, K).
        y: class ids, (N,) integers in [0, K).
        groups: the experience of each class, (K,) integers; -1 takes no part.

    Returns:
        (T, T) int64, T the largest group + 1; rows are true, columns predicted. Images whose true or predicted class
        has no group are left out.

    Raises:
        ValueError: a wrong shape or type, or a class id outside [0, K).
    """
    name = "task_confusion"
    n = len(y) if isinstance(y, Tensor) and y.ndim else 0
    y, predicted = check_y(name, "y", y, n), check_y(name, "predicted", predicted, n)
    if not isinstance(groups, Tensor) or groups.ndim != 1 or groups.is_floating_point():
        raise ValueError(f"{name}: groups must be integers (K,), the experience of each class, got {form_of(groups)}.")
    for argument, ids in (("y", y), ("predicted", predicted)):
        if n and (int(ids.min()) < 0 or int(ids.max()) >= len(groups)):
            raise ValueError(
                f"{name}: {argument} must lie in [0, {len(groups)}), one group for each class, got {int(ids.min())} to "
                f"{int(ids.max())}."
            )
    groups = groups.long().to(y.device)
    tasks = int(groups.max()) + 1 if len(groups) else 0
    true, said = groups[y], groups[predicted]
    kept = (true >= 0) & (said >= 0)
    return torch.bincount(true[kept] * tasks + said[kept], minlength=tasks**2).reshape(tasks, tasks)


class BiasMetric(GatheringMetric):
    """Score bias and task confusion of any classifier, on the evaluated images of classes trained so far.

    The newest classes are those of the latest experience that had new ones. There is no value before the second such
    experience.

    Args:
        levels: "experience" and "seen", see ``bias_metrics``.
    """

    @property
    def ready(self) -> bool:
        """Whether there are old classes and newest ones."""
        return len(self.ledger.groups) > 1

    def batch(self, strategy: Any) -> tuple[Tensor, ...]:
        """Labels, predictions and logit gaps of images of seen classes."""
        y = strategy.mb_y.long()
        predicted, gap = _scored("bias_metrics", strategy.mb_output, self.ledger.old, self.ledger.newest)
        kept = torch.isin(y, torch.tensor(self.ledger.seen, device=y.device))
        return y[kept], predicted[kept], gap[kept]

    def measure(self, y: Tensor, *gathered: Tensor) -> dict[str, Any]:
        """Shares, gap and confusions by name."""
        predicted, gap = gathered
        bias = _bias(y, predicted, gap, self.ledger.newest)
        groups = torch.full((max(self.ledger.seen) + 1,), -1)
        for number, classes in enumerate(self.ledger.groups):
            groups[classes] = number
        return {
            "NewestShare_Predicted": bias.predicted_share,
            "NewestShare_True": bias.true_share,
            "LogitGap": bias.logit_gap,
            "OldAsNew": bias.old_as_new,
            "NewAsOld": bias.new_as_old,
            "OldNewConfusion": MatrixValue(bias.confusion),
            "TaskConfusion": MatrixValue(task_confusion(predicted, y, groups)),
        }

    def _measured(self, level: Level, rows: list[tuple[Tensor, ...]]) -> dict[str, Any] | None:
        """Leave out matrices of a single experience, and shares of no image."""
        values = super()._measured(level, rows) or {}
        matrices = level != "experience"
        return {k: v for k, v in values.items() if (matrices if isinstance(v, MatrixValue) else v == v)}

    def __str__(self) -> str:
        return "ScoreBias"


def bias_metrics(*, experience: bool = False, seen: bool = True) -> list[PluginMetric[Any]]:
    """Score bias as Avalanche plugin metrics, for any strategy whose model gives class logits in evaluation.

    On the evaluated images of classes trained so far: ``NewestShare_Predicted_Seen/eval_phase/...``, the share of
    predictions that fall on the newest classes, and ``NewestShare_True_Seen``, the share that should;
    ``LogitGap_Seen``; ``OldAsNew_Seen`` and ``NewAsOld_Seen``, the shares of old images taken for newest and of newest
    taken for old; and two matrices of counts, ``OldNewConfusion_Seen`` (2 x 2) and ``TaskConfusion_Seen`` (experience
    of the true class by experience of the predicted class), as ``MatrixValue``: ``value.matrix`` is the tensor.

    Args:
        experience: one value per evaluated experience (``..._Exp``); no matrices.
        seen: one value for all evaluated experiences together.

    Raises:
        ValueError: no level.
    """
    return [BiasMetric(chosen_levels("bias_metrics", experience=experience, seen=seen))]
