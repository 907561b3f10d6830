"""What a continual learner's features and scores are worth: pure functions, and Avalanche metrics made of them."""

from avalanche_contrastive.metrics.base import MatrixValue
from avalanche_contrastive.metrics.bias import BiasMetric, ScoreBias, bias_metrics, score_bias, task_confusion
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
    "BiasMetric",
    "DriftMetric",
    "ForgettingMetric",
    "MatrixValue",
    "ReadOutMetric",
    "RetrievalMetric",
    "ScoreBias",
    "Source",
    "backward_transfer",
    "bias_metrics",
    "class_displacement",
    "drift_metrics",
    "fit_readout",
    "forgetting",
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
    "with_forgetting",
]
