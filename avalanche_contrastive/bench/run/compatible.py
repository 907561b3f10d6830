"""Whether a run's models stay compatible, measured on classes that are never trained on."""

import math
from typing import Any

from avalanche_contrastive.bench.data.kinds import Stream
from avalanche_contrastive.metrics.compatibility import (
    CompatibilityMetric,
    average_compatibility,
    average_multimodel_accuracy,
    backward_compatibility,
    compatibility_metrics,
    forward_compatibility,
    update_gain,
)
from avalanche_contrastive.metrics.sources import Source

SCORES = ("recall@1", "identification", "verification")


def unseen_metrics(stream: Stream) -> list[Any]:
    """Avalanche's metrics of each score; none where the stream has no unseen classes."""
    if stream.unseen is None:
        return []
    query, gallery = (Source(data, name) for data, name in zip(stream.unseen, ("queries", "gallery"), strict=True))
    return [metric for score in SCORES for metric in compatibility_metrics(query=query, gallery=gallery, score=score)]


def compatibility_figures(strategy: Any) -> dict[str, dict[str, Any]]:
    """By score the matrix C[t][k], null above the diagonal, and its summaries, null where one step has no such thing.

    Summaries are those of ``metrics.compatibility``; ``update_gain`` is the mean over the old galleries.
    """
    found = {}
    for metric in strategy.evaluator.metrics:
        if isinstance(metric, CompatibilityMetric):
            c = metric.matrix
            found[metric.scored.score] = {
                "matrix": [[_finite(value) for value in row] for row in c.tolist()],
                "self_test": _finite(c[-1, -1].item()),
                "average_compatibility": _finite(average_compatibility(c)),
                "average_compatibility_ties_incompatible": _finite(average_compatibility(c, ties="incompatible")),
                "backward_compatibility": _finite(backward_compatibility(c)),
                "forward_compatibility": _finite(forward_compatibility(c)),
                "average_multimodel_accuracy": _finite(average_multimodel_accuracy(c)),
                "update_gain": _finite(update_gain(c)[:-1].nanmean().item()),
            }
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
