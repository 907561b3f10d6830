"""Compatible representations: can queries of a new model search a gallery that an old model has embedded?

A gallery of features is stored while the model goes on learning. ``C[t, k]`` is the score of queries that the model
after experience t embeds, in the gallery as the model after experience k <= t has embedded it. ``C[k, k]``, the
self-test, is the score that the gallery had when it was stored. Where new queries score as well in the old gallery, it
need not be embedded again. Definitions are those of CL2R (Biondi, Pernici, Bruni, Mugnai and Del Bimbo, TOMM 2023);
where the two public codes differ, both are given.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_flag
from avalanche_contrastive.metrics.backfill import BackfillCurve, backfill_curve
from avalanche_contrastive.metrics.base import MatrixValue, emitted
from avalanche_contrastive.metrics.scores import Mapping, Scorer, verification_accuracy, verification_pairs
from avalanche_contrastive.metrics.sources import Data, Source
from avalanche_contrastive.tasks import is_piece, task_of

__all__ = [
    "BackfillCurve",
    "CompatibilityMetric",
    "average_compatibility",
    "average_multimodel_accuracy",
    "backfill_curve",
    "backward_compatibility",
    "compatibility_matrix",
    "compatibility_metrics",
    "forward_compatibility",
    "update_gain",
    "verification_accuracy",
    "verification_pairs",
]

# ---- the matrix


@torch.no_grad()
def compatibility_matrix(
    queries: Sequence[Tensor],
    galleries: Sequence[Tensor],
    y_query: Tensor,
    y_gallery: Tensor | Sequence[Tensor],
    *,
    score: str = "recall@1",
    same_images: bool = False,
    mapping: Mapping | None = None,
    pairs: int = 6000,
    seed: int = 0,
) -> Tensor:
    """C[t, k]: queries of the model after experience t, in the gallery stored after experience k <= t.

    Scores, all in [0, 1], better when higher, and nan where there is nothing to find:

    - "recall@K" and "map@r": ``recall_at_k`` and ``map_at_r`` by cosine similarity, with their rule for ties.
    - "identification" (1:N): a query is of the class whose template is nearest; a template is the mean feature of a
      class in the gallery, of unit length, and the nearest has the largest inner product. The share that is right,
      of the queries whose class is in the gallery.
    - "verification" (1:1): ``verification_accuracy`` of ``verification_pairs``.

    Args:
        queries: features (N, D_t) of the same N images by T models.
        galleries: features (G, D_k) as stored after each of T experiences; of any floating-point type.
        y_query: class ids, (N,) integers.
        y_gallery: class ids, (G,), or one tensor for each gallery where they hold different images.
        score: see above.
        same_images: queries and gallery are the same images in the same order, and no image finds itself. (It is in
            the template of its class all the same.)
        mapping: makes query features of another width as wide as the gallery's, ``mapping(queries, width)``; None:
            widths that differ are an error. Where a model has grown by further dimensions:
            ``lambda queries, width: queries[:, :width]``.
        pairs: for "verification".
        seed: of the pairs.

    Returns:
        (T, T) float64 with nan above the diagonal.

    Raises:
        ValueError: a wrong shape, type or option, or features of different widths.
    """
    name = "compatibility_matrix"
    y_galleries = [y_gallery] * len(galleries) if isinstance(y_gallery, Tensor) else list(y_gallery)
    if not len(queries) == len(galleries) == len(y_galleries) or len(queries) == 0:
        raise ValueError(
            f"{name}: queries and galleries must be the features of T >= 1 models each, got {len(queries)} and "
            f"{len(galleries)}, with labels of {len(y_galleries)} galleries."
        )
    scored = Scorer(name, score, same_images=same_images, mapping=mapping, pairs=pairs, seed=seed)
    matrix = torch.full((len(queries), len(queries)), torch.nan, dtype=torch.float64)
    for t, features in enumerate(queries):
        for k in range(t + 1):
            matrix[t, k] = scored(features, y_query, galleries[k], y_galleries[k])
    return matrix


# ---- summaries of a matrix


def average_compatibility(
    matrix: Tensor | Sequence[Sequence[float]], *, ties: Literal["compatible", "incompatible"] = "compatible"
) -> float:
    """AC: the share of pairs t > k of models in which C[t, k] is as good as the self-test C[k, k].

    Args:
        matrix: C, (T, T); what is above the diagonal does not count, and nan is a value not measured.
        ties: what C[t, k] = C[k, k] counts as. "compatible" is CL2R's code, "incompatible" that of its successor
            (stationary representations, CVPR 2024).

    Returns:
        In [0, 1]; nan for T = 1.

    Raises:
        ValueError: not a square matrix with T >= 1, or another option.
    """
    check_choice("average_compatibility", "ties", ties, ("compatible", "incompatible"))
    c = _checked("average_compatibility", matrix)
    self_test = c.diagonal().expand_as(c)
    good = c >= self_test if ties == "compatible" else c > self_test
    measured = _below(c) & ~(c - self_test).isnan()
    return good[measured].double().mean().item()


def backward_compatibility(matrix: Tensor | Sequence[Sequence[float]]) -> float:
    """BC: mean over the galleries i < T of C[T, i] - C[i, i], the last model in old galleries against their self-tests.

    Argument and errors are those of ``average_compatibility``; nan for T = 1.
    """
    c = _checked("backward_compatibility", matrix)
    return (c[-1, :-1] - c.diagonal()[:-1]).nanmean().item()


def forward_compatibility(matrix: Tensor | Sequence[Sequence[float]]) -> float:
    """FC: mean over the models i >= 2 of C[i, i - 1] - C[i, i], the previous gallery against a new one.

    Argument and errors are those of ``average_compatibility``; nan for T = 1.
    """
    c = _checked("forward_compatibility", matrix)
    return (c.diagonal(-1) - c.diagonal()[1:]).nanmean().item()


def average_multimodel_accuracy(matrix: Tensor | Sequence[Sequence[float]]) -> float:
    """AM: mean of C on and below the diagonal, zeros included. (A later public code takes zeros for missing values.)

    Argument and errors are those of ``average_compatibility``.
    """
    c = _checked("average_multimodel_accuracy", matrix)
    return c[_below(c, 0)].nanmean().item()


def update_gain(matrix: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """How much the score would rise if gallery k were embedded again with the last model: C[T, T] - C[T, k].

    Argument and errors are those of ``average_compatibility``.

    Returns:
        (T,) float64, 0 for the last.
    """
    c = _checked("update_gain", matrix)
    return c[-1, -1] - c[-1]


def _checked(name: str, matrix: Tensor | Sequence[Sequence[float]]) -> Tensor:
    try:
        c = torch.as_tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: matrix must be C[t][k], T rows of T numbers ({error}).") from error
    if c.ndim != 2 or c.shape[0] != c.shape[1] or len(c) == 0:
        raise ValueError(f"{name}: matrix must be (T, T) with T >= 1, got shape {tuple(c.shape)}.")
    return c.cpu()


def _below(c: Tensor, diagonal: int = -1) -> Tensor:
    return torch.ones_like(c, dtype=torch.bool).tril(diagonal)


# ---- Avalanche's metric


class CompatibilityMetric(PluginMetric[dict[str, Any]]):
    """Stores a gallery's features after each experience, and searches all stored ones with the current model's queries.

    It holds features, labels and numbers, and no model. All pieces of an online stream's experience have one gallery,
    stored at its end; an experience that is trained twice in a row has one, too.

    Attributes:
        galleries: features (G, D_k) as stored after each experience, on the processor.
        labels: their class ids, (G,) each.
        rows: C, a list of t + 1 scores for each experience t.

    Args:
        query, gallery, score, layer, half, mapping, pairs, seed: see ``compatibility_metrics``.
    """

    def __init__(
        self,
        query: Data,
        gallery: Data | None = None,
        *,
        score: str = "recall@1",
        layer: str | None = None,
        half: bool = False,
        mapping: Mapping | None = None,
        pairs: int = 6000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_flag("compatibility_metrics", half=half)
        options: dict[str, Any] = {"mapping": mapping, "pairs": pairs, "seed": seed}
        same_images = gallery is None or gallery is query
        self.scored = Scorer("compatibility_metrics", score, same_images=same_images, **options)
        self.query = Source.of(query)
        if same_images and (isinstance(self.query.data, str) or callable(self.query.data)):
            raise ValueError(
                "compatibility_metrics: without a gallery the queries search among themselves, so they must be the "
                "same images after each experience, not 'seen' or a function. Give experiences or a dataset, or a "
                "gallery."
            )
        self.gallery = self.query if same_images else Source.of(gallery)
        self.layer, self.half = layer, half
        self.reset()

    def reset(self) -> None:
        """Forget all galleries."""
        self.galleries: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.rows: list[list[float]] = []
        self._last: int | None = None  # the experience of the last gallery
        self._due: int | None = None  # an experience of which pieces were trained, and no gallery stored yet

    @property
    def matrix(self) -> Tensor:
        """C, (T, T) float64 with nan above the diagonal."""
        matrix = torch.full((len(self.rows), len(self.rows)), torch.nan, dtype=torch.float64)
        for t, row in enumerate(self.rows):
            matrix[t, : t + 1] = torch.tensor(row, dtype=torch.float64)
        return matrix

    def result(self) -> dict[str, Any]:
        """The matrix and its summaries by name, without those that need more experiences."""
        if not self.rows:
            return {}
        c = self.matrix
        values = {
            "SelfTest": c[-1, -1].item(),
            "AverageCompatibility": average_compatibility(c),
            "BackwardCompatibility": backward_compatibility(c),
            "ForwardCompatibility": forward_compatibility(c),
            "AverageMultimodelAccuracy": average_multimodel_accuracy(c),
            "UpdateGain": update_gain(c)[:-1].nanmean().item(),
        }
        numbers = {f"{name}_{self.where}": value for name, value in values.items() if value == value}
        return numbers | {f"Compatibility_{self.where}": MatrixValue(c, by_row=False)}

    @property
    def where(self) -> str:
        """Score and data, for the names of values."""
        of = "" if self.scored.same_images else f"of_{self.query.name}_"
        return f"{self.scored.score}_{of}in_{self.gallery.name}"

    def before_training(self, strategy: Any) -> None:
        """Forget what was kept of an earlier strategy, if this one is new."""
        if strategy.clock.train_exp_counter == 0:
            self.reset()
        self.query.begin(strategy)
        self.gallery.begin(strategy)

    def before_train_dataset_adaptation(self, strategy: Any) -> list[MetricValue]:
        """Store the gallery of the previous experience, if it had pieces: Avalanche does not mark each last one."""
        return self._store(strategy) if self._due not in (None, _number(strategy)) else []

    def before_training_exp(self, strategy: Any) -> None:
        """Note the data that training starts on."""
        self.query.note(strategy)
        self.gallery.note(strategy)

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Store the gallery, and search all."""
        self._due = _number(strategy)
        return [] if is_piece(strategy.experience) else self._store(strategy)

    def after_training(self, strategy: Any) -> list[MetricValue]:
        """The same after the last piece of an online stream."""
        return [] if self._due is None else self._store(strategy)

    def _store(self, strategy: Any) -> list[MetricValue]:
        queries, gallery = self.query.embed(strategy, self.layer), self.gallery.embed(strategy, self.layer)
        if queries is None or gallery is None:
            raise ValueError("compatibility_metrics: there must be one query and one image in the gallery at least.")
        older = len(self.rows) - (self._due == self._last)  # the same experience once more: its gallery is replaced
        galleries = [*self.galleries[:older], _stored(gallery[0], half=self.half)]
        labels = [*self.labels[:older], _stored(gallery[1])]
        row = [self.scored(*queries, features, y) for features, y in zip(galleries, labels, strict=True)]
        self.galleries, self.labels, self.rows = galleries, labels, [*self.rows[:older], row]
        self._last, self._due = self._due, None
        return [emitted(self, strategy, name, value, experience=False) for name, value in self.result().items()]

    def __str__(self) -> str:
        return f"Compatibility_{self.where}"


def _number(strategy: Any) -> int:
    return int(task_of(strategy.experience).current_experience)


@torch.inference_mode(False)
def _stored(x: Tensor, *, half: bool = False) -> Tensor:
    """A copy on the processor, which can be used anywhere."""
    kept = (x.half() if half else x).detach().to("cpu", copy=True)
    if half and not bool(kept.isfinite().all()):
        raise ValueError(
            "compatibility_metrics: features are too large for half precision (65504), or not finite. Leave half out; "
            "or has the training diverged?"
        )
    return kept


def compatibility_metrics(
    *,
    query: Data,
    gallery: Data | None = None,
    score: str = "recall@1",
    layer: str | None = None,
    half: bool = False,
    mapping: Mapping | None = None,
    pairs: int = 6000,
    seed: int = 0,
) -> list[PluginMetric[Any]]:
    """Whether new queries can search old galleries, as an Avalanche plugin metric, for any strategy and model.

    After each training experience the gallery is embedded by the model as it is and its features are stored, and the
    queries, embedded by the same model, search all galleries stored so far. Values are named by score and data, such as
    ``Compatibility_recall@1_in_test_exp0-4/train_phase/...``, the matrix C (``MatrixValue``), or, with a gallery,
    ``..._recall@1_of_test_exp0-4_in_train_exp0-4/...``; ``SelfTest_...`` is C[t, t]; and its summaries
    ``AverageCompatibility_...``, ``BackwardCompatibility_...``, ``ForwardCompatibility_...``,
    ``AverageMultimodelAccuracy_...`` and ``UpdateGain_...`` (mean over the old galleries). Neither training nor the
    model is touched. Images of classes that are never trained on are the hardest test, and the nearest to real use.

    Args:
        query: images that search, see ``Source``: experiences, a dataset, or a stream.
        gallery: images that are searched. None: the queries' own, where none finds itself.
        score: "recall@K", "map@r", "identification" or "verification", see ``compatibility_matrix``.
        layer: name of the layer whose output is the feature; None: see ``FeatureCapture``.
        half: store features in half precision, G x D x 2 bytes for each experience.
        mapping: for models whose features grow wider, see ``compatibility_matrix``.
        pairs, seed: for "verification".

    Raises:
        ValueError: data or an option of another kind.
    """
    options: dict[str, Any] = {"layer": layer, "half": half, "mapping": mapping, "pairs": pairs, "seed": seed}
    return [CompatibilityMetric(query, gallery, score=score, **options)]
