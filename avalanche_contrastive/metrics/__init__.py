"""What a continual learner's features and scores are worth: pure functions, and Avalanche metrics made of them."""

from avalanche_contrastive.metrics.base import MatrixValue
from avalanche_contrastive.metrics.bias import BiasMetric, ScoreBias, bias_metrics, score_bias, task_confusion
from avalanche_contrastive.metrics.compatibility import (
    BackfillCurve,
    CompatibilityMetric,
    average_compatibility,
    average_multimodel_accuracy,
    backfill_curve,
    backward_compatibility,
    compatibility_matrix,
    compatibility_metrics,
    forward_compatibility,
    update_gain,
    verification_accuracy,
    verification_pairs,
)
from avalanche_contrastive.metrics.drift import (
    DriftMetric,
    class_displacement,
    drift_metrics,
    linear_cka,
    relation_drift,
)
from avalanche_contrastive.metrics.readout import ReadOutMetric, fit_readout, readout_metrics
from avalanche_contrastive.metrics.retrieval import (
    RetrievalMetric,
    map_at_r,
    nearest_neighbours,
    recall_at_k,
    retrieval_metrics,
)
from avalanche_contrastive.metrics.sources import Source
from avalanche_contrastive.metrics.transfer import (
    ForgettingMetric,
    backward_transfer,
    forgetting,
    retrieval_forgetting_metrics,
    with_forgetting,
)

__all__ = [
    "BackfillCurve",
    "BiasMetric",
    "CompatibilityMetric",
    "DriftMetric",
    "ForgettingMetric",
    "MatrixValue",
    "ReadOutMetric",
    "RetrievalMetric",
    "ScoreBias",
    "Source",
    "average_compatibility",
    "average_multimodel_accuracy",
    "backfill_curve",
    "backward_compatibility",
    "backward_transfer",
    "bias_metrics",
    "class_displacement",
    "compatibility_matrix",
    "compatibility_metrics",
    "drift_metrics",
    "fit_readout",
    "forgetting",
    "forward_compatibility",
    "linear_cka",
    "map_at_r",
    "nearest_neighbours",
    "readout_metrics",
    "recall_at_k",
    "relation_drift",
    "retrieval_forgetting_metrics",
    "retrieval_metrics",
    "score_bias",
    "task_confusion",
    "update_gain",
    "verification_accuracy",
    "verification_pairs",
    "with_forgetting",
]
