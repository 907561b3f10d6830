"""Retrieval metrics: a pure function first, then the Avalanche metrics that gather features for it."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

from avalanche_contrastive.losses import came
from avalanche_contrastive.models import FeatureCapture

__all__ = ["RetrievalMetric", "recall_at_k", "retrieval_metrics"]

_WORKING_SET = 10_000_000  # similarities held at once: 40 MB in float32


@torch.no_grad()
def recall_at_k(features: Tensor, y: Tensor, k: int = 1) -> float:
    """Share of images that have one of their own class among their k nearest others, by cosine similarity.

    Leave-one-out: each image queries all others. A tie between a positive and a negative counts for the positive, as
    in the CSD authors' code (arXiv:2205.05476, section 5); similarities tie when they are equal bit for bit. An image
    that is the only one of its class has nothing to find and is left out, as in pytorch-metric-learning. Memory:
    O(chunk * N).

    Args:
        features: (N, D), not necessarily of unit length.
        y: class ids, (N,).
        k: >= 1.

    Returns:
        In [0, 1]; nan if no class has two images.
    """
    return _recall_at(features, y, (_checked_k("recall_at_k", "k", k),))[k]


def _recall_at(features: Tensor, y: Tensor, ks: tuple[int, ...]) -> dict[int, float]:
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"recall_at_k: features must be a floating-point tensor (N, D), got {came(features)}.")
    if not isinstance(y, Tensor) or y.shape != (len(features),) or y.is_floating_point():
        raise ValueError(f"recall_at_k: y must be integer class ids of shape ({len(features)},), got {came(y)}.")
    unit = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)
    if len(unit) == 0:
        return dict.fromkeys(ks, float("nan"))
    if not bool(unit.isfinite().all()):
        raise ValueError("recall_at_k: features must be finite, got nan or infinity. Has the training diverged?")
    _, inverse, counts = torch.unique(y, return_inverse=True, return_counts=True)
    # Sorted by class, the positives of neighbouring queries lie in a narrow band of columns.
    order = torch.argsort(inverse, stable=True)
    unit, inverse = unit[order], inverse[order]
    ends = counts.cumsum(0)
    indices = torch.arange(len(unit), device=unit.device)
    ranks = []
    for rows in indices.split(max(1, _WORKING_SET // len(unit))):
        similarity = unit[rows] @ unit.T
        first, last = inverse[rows[0]], inverse[rows[-1]]
        low, high = int(ends[first] - counts[first]), int(ends[last])
        band, columns = similarity[:, low:high], indices[low:high]
        same = inverse[rows, None] == inverse[columns]
        best = band.masked_fill(~same | (rows[:, None] == columns), -2.0).amax(dim=1)  # cosines lie in [-1, 1]
        band.masked_fill_(same, -2.0)
        ranks.append((similarity > best[:, None]).sum(dim=1))
    rank = torch.cat(ranks)[counts[inverse] > 1]
    return {k: (rank < k).double().mean().item() if len(rank) else float("nan") for k in ks}


def _checked_k(name: str, argument: str, k: int) -> int:
    if isinstance(k, bool) or not hasattr(k, "__index__") or operator.index(k) < 1:
        raise ValueError(f"{name}: {argument} must be a whole number >= 1, got {k!r}.")
    return operator.index(k)


def _checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(ks, Iterable) or len(found := tuple(ks)) == 0:
        raise ValueError(f"retrieval_metrics: ks must be a sequence of whole numbers >= 1, got {ks!r}.")
    return tuple(_checked_k("retrieval_metrics", "ks", k) for k in found)


class RetrievalMetric(PluginMetric[dict[int, float]]):
    """Recall@K of an experience, or of a whole evaluation stream, on the features of any strategy's model.

    Args:
        ks: the values of K.
        level: "experience" (the gallery is that experience's data) or "stream" (all evaluated experiences together).
        layer: name of the layer whose output is the feature; None: the input of the last classifier layer.
    """

    def __init__(self, ks: Sequence[int], level: Literal["experience", "stream"], layer: str | None = None) -> None:
        super().__init__()
        self.ks, self.level = _checked_ks(ks), level
        self.capture = FeatureCapture(layer)
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._k = self.ks[0]

    def reset(self) -> None:
        """Forget the features gathered."""
        self._features, self._labels = [], []

    def result(self) -> dict[int, float] | None:
        """Recall by K; None before any sample."""
        if not self._features:
            return None
        return _recall_at(torch.cat(self._features), torch.cat(self._labels), self.ks)

    def before_eval(self, strategy: Any) -> None:
        """Start anew."""
        self.reset()

    def before_eval_exp(self, strategy: Any) -> None:
        """Start anew where each experience is on its own."""
        if self.level == "experience":
            self.reset()

    def before_eval_forward(self, strategy: Any) -> None:
        """Listen for the batch's features."""
        self.capture.attach(strategy.model)

    def after_eval_forward(self, strategy: Any) -> None:
        """Take the batch's features."""
        features = self.capture.take(strategy.mb_output).detach()
        if len(features) != len(strategy.mb_y):
            raise ValueError(
                f"retrieval_metrics: {len(features)} features for {len(strategy.mb_y)} images. Does the model split "
                "its batch between heads, or the stream make views in evaluation? Name a layer: layer='...'."
            )
        self._features.append(features.clone())
        self._labels.append(strategy.mb_y.detach().clone())

    def after_eval_exp(self, strategy: Any) -> list[MetricValue] | None:
        """Emit per experience."""
        return self._package(strategy) if self.level == "experience" else None

    def after_eval(self, strategy: Any) -> list[MetricValue] | None:
        """Emit for the stream."""
        values = self._package(strategy) if self.level == "stream" else None
        self.reset()
        return values

    def _package(self, strategy: Any) -> list[MetricValue]:
        values = []
        for k, recall in (self.result() or {}).items():
            self._k = k  # Avalanche names a value by str(metric)
            name = get_metric_name(self, strategy, add_experience=self.level == "experience", add_task=False)
            values.append(MetricValue(self, name, recall, strategy.clock.train_iterations))
        return values

    def __str__(self) -> str:
        return f"Recall@{self._k}_{'Exp' if self.level == 'experience' else 'Stream'}"


def retrieval_metrics(
    *, ks: Sequence[int] = (1,), experience: bool = True, stream: bool = True, layer: str | None = None
) -> list[PluginMetric[Any]]:
    """Recall@K as Avalanche plugin metrics, for any strategy and model.

    They are named ``Recall@K_Exp/eval_phase/...`` and ``Recall@K_Stream/eval_phase/...``.

    Args:
        ks: the values of K.
        experience: one value per evaluated experience, which is then query set and gallery.
        stream: one value for all evaluated experiences together.
        layer: name of the layer whose output is the feature; None: the input of the last classifier layer.
    """
    if not (experience or stream):
        raise ValueError("retrieval_metrics: experience and stream are both False, so there is nothing to measure.")
    levels: list[Literal["experience", "stream"]] = []
    if experience:
        levels.append("experience")
    if stream:
        levels.append("stream")
    return [RetrievalMetric(ks, level, layer) for level in levels]
