"""Retrieval of images of the same class: Recall@K and mAP@R as pure functions, then as Avalanche metrics."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from avalanche.evaluation import PluginMetric
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_count
from avalanche_contrastive.metrics.base import SUFFIX, FeatureMetric, Level, chosen_levels
from avalanche_contrastive.metrics.search import Distance, Search, Ties, check_ties, prepared, similarities
from avalanche_contrastive.metrics.sources import Data, Source

__all__ = ["RetrievalMetric", "map_at_r", "nearest_neighbours", "recall_at_k", "retrieval_metrics"]


@overload
def recall_at_k(
    features: Tensor,
    y: Tensor,
    k: int = 1,
    *,
    gallery: Tensor | None = None,
    gallery_y: Tensor | None = None,
    distance: Distance = "cosine",
    ties: Ties = "positive",
) -> float: ...


@overload
def recall_at_k(
    features: Tensor,
    y: Tensor,
    k: Sequence[int],
    *,
    gallery: Tensor | None = None,
    gallery_y: Tensor | None = None,
    distance: Distance = "cosine",
    ties: Ties = "positive",
) -> dict[int, float]: ...


@torch.no_grad()
def recall_at_k(
    features: Tensor,
    y: Tensor,
    k: int | Sequence[int] = 1,
    *,
    gallery: Tensor | None = None,
    gallery_y: Tensor | None = None,
    distance: Distance = "cosine",
    ties: Ties = "positive",
) -> float | dict[int, float]:
    """Share of images that have one of their own class among their k nearest others.

    Leave-one-out: each image queries all others; or a gallery of other images is given. A query whose class has no
    (other) image in the gallery has nothing to find and is left out, as in pytorch-metric-learning.

    Ties are equal bit for bit: copies of an image, not similarities that are merely close. By default a positive that
    ties with negatives comes before them, as in the CSD authors' code (arXiv:2205.05476, section 5). faiss's
    ``IndexFlatL2`` and pytorch-metric-learning put the lower gallery index first instead; ``ties="index"`` is that.
    The two agree wherever no positive ties with a negative at the edge of the k. (``IndexFlatIP`` has no fixed rule:
    its order of ties depends on the state of its heap.)

    Beware of features that have collapsed to a point, as those of a network whose units have died: all images tie, and
    by the default rule all are found. ``ties="mean"`` gives a tie what a random order of the tied images would give on
    average, so that such features score like chance.

    Memory: O(chunk * N), beside the features and a copy of them. Time: that of the similarities and little more;
    with ``ties="index"`` about ten times as much.

    Args:
        features: (N, D), not necessarily of unit length.
        y: class ids, (N,) integers.
        k: >= 1, or several.
        gallery: features to search in, (G, D); None: leave-one-out.
        gallery_y: class ids of the gallery, (G,).
        distance: "cosine", or "euclidean" between the features as they are.
        ties: "positive", "index" or "mean".

    Returns:
        In [0, 1], nan if no query has anything to find; for several k a dictionary by k.

    Raises:
        ValueError: a wrong shape, type or option, a k below 1, or features that are not finite.
    """
    ks = _checked_ks("recall_at_k", "k", k) if isinstance(k, Iterable) else (_checked_k("recall_at_k", "k", k),)
    search = Search.of("recall_at_k", features, y, gallery, gallery_y, distance, ties)
    recall, _ = search.measure(ks, at_r=False)
    return recall if isinstance(k, Iterable) else recall[ks[0]]


@torch.no_grad()
def map_at_r(
    features: Tensor,
    y: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_y: Tensor | None = None,
    distance: Distance = "cosine",
    ties: Ties = "positive",
) -> float:
    """Mean average precision at R (Musgrave et al. 2020, arXiv:2003.08505).

    A query with R positives in the gallery looks at its R nearest images; its score is the sum of the precision at
    the rank of each positive among them, divided by R. The mean is over queries that have a positive.

    Args, ties, memory and errors are those of ``recall_at_k``, but for ``ties="mean"``, which there is not.

    Returns:
        In [0, 1]; nan if no query has anything to find.
    """
    search = Search.of("map_at_r", features, y, gallery, gallery_y, distance, ties)
    return search.measure((), at_r=True)[1]


@torch.no_grad()
def nearest_neighbours(
    queries: Tensor, k: int, *, gallery: Tensor | None = None, distance: Distance = "cosine"
) -> Tensor:
    """Indices of the k nearest images of each query, nearest first; the order of ties is not defined.

    Args:
        queries: features, (N, D).
        k: >= 1, and at most the number of images to be found.
        gallery: features to search in, (G, D); None: all others of the queries.
        distance: "cosine" or "euclidean".

    Returns:
        (N, k), int64.

    Raises:
        ValueError: a wrong shape, type or option, or k out of range.
    """
    name = "nearest_neighbours"
    k = _checked_k(name, "k", k)
    check_choice(name, "distance", distance, ("cosine", "euclidean"))
    q, g = prepared(name, queries, gallery, distance)
    among = len(g) - (gallery is None)
    if k > among:
        raise ValueError(f"{name}: k = {k}, but each query has {among} images to search among.")
    found = [torch.empty(0, k, dtype=torch.int64, device=q.device)]
    for rows, similarity in similarities(q, g, distance):
        if gallery is None:
            similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def _checked_k(name: str, argument: str, k: int) -> int:
    check_count(name, 1, **{argument: k})
    return operator.index(k)


def _checked_ks(name: str, argument: str, ks: Sequence[int], *, empty: bool = False) -> tuple[int, ...]:
    if not isinstance(ks, Iterable) or (len(found := tuple(ks)) == 0 and not empty):
        raise ValueError(f"{name}: {argument} must be a sequence of whole numbers >= 1, got {ks!r}.")
    return tuple(_checked_k(name, argument, k) for k in found)


class RetrievalMetric(FeatureMetric):
    """Recall@K and mAP@R on the features of any strategy's model.

    Args:
        level: "experience", "stream" or "seen".
        ks, layer, map_at_r, distance, ties, gallery: see ``retrieval_metrics``.
    """

    def __init__(
        self,
        ks: Sequence[int],
        level: Level,
        layer: str | None = None,
        *,
        map_at_r: bool = False,
        distance: Distance = "cosine",
        ties: Ties = "positive",
        gallery: Data | None = None,
    ) -> None:
        check_choice("retrieval_metrics", "level", level, ("experience", "stream", "seen"))
        check_choice("retrieval_metrics", "distance", distance, ("cosine", "euclidean"))
        check_choice("retrieval_metrics", "ties", ties, ("positive", "index", "mean"))
        check_ties("retrieval_metrics, map_at_r", ties, map_at_r)
        source = None if gallery is None else Source.of(gallery)
        super().__init__("retrieval_metrics", (level,), layer, source)
        self.ks = _checked_ks("retrieval_metrics", "ks", ks, empty=map_at_r)
        self.map_at_r, self.distance, self.ties = map_at_r, distance, ties

    @torch.no_grad()
    def measure(self, y: Tensor, *gathered: Tensor) -> dict[str, Any]:
        """Recall@K and mAP@R of gathered labels (N,) and features (N, D)."""
        gallery, gallery_y = self.sourced or (None, None)
        search = Search.of("retrieval_metrics", gathered[0], y, gallery, gallery_y, self.distance, self.ties)
        recall, precision = search.measure(self.ks, at_r=self.map_at_r)
        values = {f"Recall@{k}": value for k, value in recall.items()} | ({"MAP@R": precision} if self.map_at_r else {})
        return {f"{name}{self.where}": value for name, value in values.items()}

    @property
    def where(self) -> str:
        """What the names of values say of the gallery."""
        return "" if self.source is None else f"_in_{self.source.name}"

    def __str__(self) -> str:
        return f"{f'Recall@{self.ks[0]}' if self.ks else 'MAP@R'}{self.where}_{SUFFIX[self.levels[0]]}"


def retrieval_metrics(
    *,
    ks: Sequence[int] = (1,),
    map_at_r: bool = False,
    experience: bool = True,
    stream: bool = True,
    seen: bool = False,
    layer: str | None = None,
    distance: Distance = "cosine",
    ties: Ties = "positive",
    gallery: Data | None = None,
) -> list[PluginMetric[Any]]:
    """Recall@K and mAP@R as Avalanche plugin metrics, for any strategy and model.

    They are named ``Recall@K_Exp/eval_phase/...``, ``Recall@K_Stream/eval_phase/...``, ``Recall@K_Seen/...``, and
    ``MAP@R_...``; with a gallery ``Recall@K_in_train_exp0-4_Exp/...``, by its name. A value is nan where no image has
    another of its class to find.

    Args:
        ks: the values of K.
        map_at_r: mAP@R, too.
        experience: one value per evaluated experience, which is then query set and gallery.
        stream: one value for all evaluated experiences together.
        seen: one value for the images, in all evaluated experiences together, of classes trained so far (those of the
            experience under training count); none before the first training.
        layer: name of the layer whose output is the feature; None: see ``FeatureCapture``.
        distance: "cosine" or "euclidean".
        ties: "positive", "index" or "mean", see ``recall_at_k``.
        gallery: data to search in instead of the evaluated images themselves, see ``Source``: with the training
            stream, for instance, each experience's images are queries against all classes. None: leave-one-out.

    Raises:
        ValueError: no K and no mAP@R, no level, or an unknown option.
    """
    levels = chosen_levels("retrieval_metrics", experience=experience, stream=stream, seen=seen)
    source = None if gallery is None else Source.of(gallery)
    return [
        RetrievalMetric(ks, level, layer, map_at_r=map_at_r, distance=distance, ties=ties, gallery=source)
        for level in levels
    ]
