"""Retrieval of images of the same class: Recall@K and mAP@R as pure functions, then as Avalanche metrics."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from avalanche.evaluation import PluginMetric
from torch import Tensor

from avalanche_contrastive.losses import came, check_choice
from avalanche_contrastive.metrics.base import SUFFIX, FeatureMetric, Level, chosen_levels
from avalanche_contrastive.metrics.sources import Data, Source

__all__ = ["RetrievalMetric", "map_at_r", "nearest_neighbours", "recall_at_k", "retrieval_metrics"]

Distance = Literal["cosine", "euclidean"]
Ties = Literal["positive", "index", "mean"]

WORKING_SET = 4_000_000  # similarities held at once: 16 MB in float32


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
    The two agree wherever no positive ties with a negative at the edge of the k. (``IndexFlatIP`` orders ties by the
    state of its heap, which is no rule that one could follow.)

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
    search = _Search.of("recall_at_k", features, y, gallery, gallery_y, distance, ties)
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
    search = _Search.of("map_at_r", features, y, gallery, gallery_y, distance, ties)
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
    q, g = _prepared(name, queries, gallery, distance)
    among = len(g) - (gallery is None)
    if k > among:
        raise ValueError(f"{name}: k = {k}, but each query has {among} images to search among.")
    found = [torch.empty(0, k, dtype=torch.int64, device=q.device)]
    for rows, similarity in _similarities(q, g, distance):
        if gallery is None:
            similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


@dataclass
class _Search:
    """Queries with something to find, and what they search in; both sorted by class.

    Sorted, the positives of a query are a run of columns, so that no (N, G) matrix of equal labels is needed.
    """

    queries: Tensor  # (Q, D)
    query_class: Tensor  # (Q,), index into starts and sizes
    own_column: Tensor | None  # (Q,), each query's own place in the gallery; None: it is not in it
    gallery: Tensor  # (G, D)
    gallery_index: Tensor  # (G,), place in the gallery as it was given
    starts: Tensor  # (C,), first column of each class
    sizes: Tensor  # (C,), images of each class in the gallery
    distance: Distance
    ties: Ties

    @classmethod
    def of(
        cls,
        name: str,
        features: Tensor,
        y: Tensor,
        gallery: Tensor | None,
        gallery_y: Tensor | None,
        distance: Distance,
        ties: Ties,
    ) -> "_Search":
        """Check what a user gave, and sort it."""
        check_choice(name, "distance", distance, ("cosine", "euclidean"))
        check_choice(name, "ties", ties, ("positive", "index", "mean"))
        if (gallery is None) != (gallery_y is None):
            raise ValueError(f"{name}: a gallery needs both its features (gallery) and its class ids (gallery_y).")
        queries, searched = _prepared(name, features, gallery, distance)
        y = check_y(name, "y", y, len(features))
        y_searched = y if gallery_y is None else check_y(name, "gallery_y", gallery_y, len(searched))
        order = torch.argsort(y_searched, stable=True)
        classes, sizes = torch.unique_consecutive(y_searched[order], return_counts=True)
        starts = sizes.cumsum(0) - sizes
        if gallery is None:
            column = torch.empty_like(order)
            column[order] = torch.arange(len(order), device=order.device)
        rows = torch.argsort(y, stable=True)
        query_class = torch.searchsorted(classes, y[rows]).clamp(max=max(len(classes) - 1, 0))
        if len(classes) == 0:
            rows, query_class = rows[:0], query_class[:0]
        to_find = (classes[query_class] == y[rows]) * sizes[query_class] - int(gallery is None)
        rows, query_class = rows[to_find > 0], query_class[to_find > 0]
        own = column[rows] if gallery is None else None
        return cls(queries[rows], query_class, own, searched[order], order, starts, sizes, distance, ties)

    def measure(self, ks: Sequence[int], *, at_r: bool) -> tuple[dict[int, float], float]:
        """Recall by k, and mAP@R (nan unless asked for)."""
        _check_ties("mAP@R", self.ties, at_r)
        if len(self.queries) == 0:
            return dict.fromkeys(ks, float("nan")), float("nan")
        hits, precisions = [], []
        wanted = torch.tensor(ks, device=self.queries.device)
        for rows, similarity in _similarities(self.queries, self.gallery, self.distance):
            if self.ties == "mean":
                hits.append(self._on_average(rows, similarity, ks))
                continue
            if self.ties == "index":
                rank, precision = self._in_index_order(rows, similarity)
            else:
                rank, precision = self._positives_first(rows, similarity, max(ks, default=0), at_r)
            hits.append((rank[:, None] < wanted).double())
            precisions.append(precision)
        recall = dict(zip(ks, torch.cat(hits).mean(dim=0).tolist(), strict=True))
        return recall, torch.cat(precisions).mean().item() if at_r else float("nan")

    def _positives(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of each query's class, (B, M), and which of them are its positives (not itself, no padding)."""
        starts, sizes = self.starts[self.query_class[rows]], self.sizes[self.query_class[rows]]
        offset = torch.arange(int(sizes.max()), device=rows.device)
        within = offset < sizes[:, None]
        columns = starts[:, None] + offset * within  # padding repeats the first column
        return columns, within if self.own_column is None else within & (columns != self.own_column[rows, None])

    def _positives_first(self, rows: Tensor, similarity: Tensor, k: int, at_r: bool) -> tuple[Tensor, Tensor]:
        """Negatives before the nearest positive (exact up to k), and average precision at R; both (B,).

        The similarities are used up: masked and reordered in place.
        """
        columns, is_positive = self._positives(rows)
        positives = similarity.gather(1, columns).masked_fill_(~is_positive, -torch.inf)
        similarity.scatter_(1, columns, -torch.inf)  # the positives and the query itself; negatives stay
        nearest = positives.amax(dim=1, keepdim=True)
        if not at_r:
            # Ones and zeros in the similarities' own memory: three times as fast as a boolean matrix and its sum.
            ahead = torch.gt(similarity, nearest, out=similarity).sum(dim=1)
            return ahead, torch.zeros_like(ahead)
        r = is_positive.sum(dim=1, keepdim=True)
        negatives = _largest(similarity, min(max(int(r.max()), k), similarity.shape[1]))
        positives = positives.sort(dim=1, descending=True).values
        ahead = negatives.shape[1] - torch.searchsorted(negatives, positives, right=True)
        place = torch.arange(1, positives.shape[1] + 1, device=rows.device)
        rank = place + ahead
        precision = (place / rank.double()).masked_fill_(rank > r, 0.0).sum(dim=1) / r[:, 0]
        return ahead[:, 0], precision

    def _on_average(self, rows: Tensor, similarity: Tensor, ks: Sequence[int]) -> Tensor:
        """Chance of a positive within the first k if tied images come in random order, (B, len(ks)).

        The similarities are used up.
        """
        columns, is_positive = self._positives(rows)
        positives = similarity.gather(1, columns).masked_fill_(~is_positive, -torch.inf)
        similarity.scatter_(1, columns, -torch.inf)
        nearest = positives.amax(dim=1, keepdim=True)
        reached = torch.ge(similarity, nearest, out=torch.empty_like(similarity)).sum(dim=1)
        ahead = torch.gt(similarity, nearest, out=similarity).sum(dim=1)
        negatives = reached - ahead
        tied = negatives + (positives == nearest).sum(dim=1)
        chances = []
        for k in ks:
            missed = (ahead < k).double()  # of those: all places that are left go to negatives
            for place in range(int((k - ahead).clamp(min=0, max=int(negatives.max()) + 1).max())):
                taken = (negatives - place).clamp(min=0) / (tied - place).clamp(min=1).double()
                missed *= torch.where(ahead + place < k, taken, 1.0)
            chances.append((ahead < k).double() - missed)
        return torch.stack(chances, dim=1) if chances else similarity.new_zeros(len(rows), 0)

    def _in_index_order(self, rows: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """The same where ties go by the lower gallery index: a whole sort, for comparison with faiss."""
        columns, is_positive = self._positives(rows)
        if self.own_column is not None:
            similarity.scatter_(1, self.own_column[rows, None], -torch.inf)
        relevant = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, columns, True)
        as_given = torch.argsort(self.gallery_index)
        order = similarity[:, as_given].sort(dim=1, descending=True, stable=True).indices
        hits = relevant[:, as_given].gather(1, order)
        r = is_positive.sum(dim=1, keepdim=True)
        place = torch.arange(1, hits.shape[1] + 1, device=rows.device)
        precision = (hits.cumsum(dim=1) / place.double() * (hits & (place <= r))).sum(dim=1) / r[:, 0]
        return hits.to(torch.uint8).argmax(dim=1), precision


def _prepared(name: str, queries: Tensor, gallery: Tensor | None, distance: Distance) -> tuple[Tensor, Tensor]:
    """Checked features of queries and gallery, in one precision, ready for inner products."""
    given = [("features", queries)] if gallery is None else [("features", queries), ("gallery", gallery)]
    for argument, x in given:
        check_features(name, argument, x)
    if gallery is not None and gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"{name}: features and gallery must have one width, got {queries.shape[1]} and {gallery.shape[1]}. Are "
            "both from the same layer of the same model?"
        )
    double = any(x.dtype == torch.float64 for _, x in given)
    parts = [x.double() if double else x.float() for _, x in given]
    if distance == "cosine":
        parts = [F.normalize(x, dim=1) for x in parts]
    elif parts[-1].numel():
        origin = _origin(parts[-1])
        parts = [x - origin for x in parts]
    return parts[0], parts[-1]


def _origin(x: Tensor) -> Tensor:
    """A point near the features (N, D), (D,), from which distances keep their digits.

    A mean far from zero would cancel in |q - g|^2 = |q|^2 - 2 q.g + |g|^2. It is rounded to a power of two of the
    order of the features' spread, so that to subtract it loses nothing: ties stay ties, and integers integers.
    """
    mean = x.mean(dim=0)
    spread = (x - mean).abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    step = torch.exp2(torch.log2(spread).ceil())
    return (mean / step).round() * step


def _similarities(queries: Tensor, gallery: Tensor, distance: Distance) -> Iterator[tuple[Tensor, Tensor]]:
    """For chunks of the queries: their rows (B,), and similarities (B, G) that the caller may overwrite.

    Larger is nearer: cosine, or q.g - |g|^2 / 2, which orders the gallery of a query as Euclidean distance does.
    """
    chunk = max(1, WORKING_SET // max(1, len(gallery)))
    # Products of a single row run through another kernel, in which copies of an image need not tie: two rows at least.
    memory = queries.new_empty(max(2, min(chunk, len(queries))), len(gallery))
    offset = None if distance == "cosine" else gallery.square().sum(dim=1) / -2
    for rows in torch.arange(len(queries), device=queries.device).split(chunk):
        q = queries[rows] if len(rows) > 1 else queries[rows].repeat(2, 1)
        out = memory[: len(q)]
        if offset is None:
            torch.mm(q, gallery.T, out=out)
        else:
            torch.addmm(offset, q, gallery.T, out=out)
        yield rows, out[: len(rows)]


def _largest(x: Tensor, k: int) -> Tensor:
    """The k largest values of each row, ascending; reorders x (B, N) in place."""
    if x.device.type != "cpu":
        return x.topk(k, dim=1).values.flip(1).contiguous()
    if k < x.shape[1]:
        x.numpy().partition(x.shape[1] - k, axis=1)  # several times as fast as torch's topk on a CPU
    return x[:, x.shape[1] - k :].sort(dim=1).values


def check_features(name: str, argument: str, x: Tensor) -> None:
    """Refuse what is no finite floating-point matrix."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"{name}: {argument} must be a floating-point tensor (N, D), got {came(x)}.")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name}: {argument} must be finite, got nan or infinity. Has the training diverged?")


def check_y(name: str, argument: str, y: Tensor, n: int) -> Tensor:
    """Class ids (n,) as int64, or an error."""
    if not isinstance(y, Tensor) or y.shape != (n,) or y.is_floating_point():
        raise ValueError(f"{name}: {argument} must be integer class ids of shape ({n},), got {came(y)}.")
    return y.long()


def _check_ties(name: str, ties: Ties, at_r: bool) -> None:
    if at_r and ties == "mean":
        raise ValueError(f"{name}: ties='mean' is a rule for Recall@K only. Use 'positive' or 'index'.")


def _checked_k(name: str, argument: str, k: int) -> int:
    if isinstance(k, bool) or not hasattr(k, "__index__") or operator.index(k) < 1:
        raise ValueError(f"{name}: {argument} must be a whole number >= 1, got {k!r}.")
    return operator.index(k)


def _checked_ks(name: str, argument: str, ks: Sequence[int], *, empty: bool = False) -> tuple[int, ...]:
    if not isinstance(ks, Iterable) or (len(found := tuple(ks)) == 0 and not empty):
        raise ValueError(f"{name}: {argument} must be a sequence of whole numbers >= 1, got {ks!r}.")
    return tuple(_checked_k(name, argument, k) for k in found)


class RetrievalMetric(FeatureMetric):
    """Recall@K and mAP@R on the features of any strategy's model.

    Args:
        ks: the values of K.
        level: "experience" (queries and gallery are that experience's data), "stream" (all evaluated experiences
            together) or "seen" (the same, images of classes trained so far only).
        layer: name of the layer whose output is the feature; None: the input of the last classifier layer.
        map_at_r: mAP@R, too.
        distance: "cosine" or "euclidean".
        ties: "positive", "index" or "mean", see ``recall_at_k``.
        gallery: data to search in instead, see ``Source``; None: leave-one-out.
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
        _check_ties("retrieval_metrics, map_at_r", ties, map_at_r)
        source = None if gallery is None else Source.of(gallery)
        super().__init__("retrieval_metrics", (level,), layer, source)
        self.ks = _checked_ks("retrieval_metrics", "ks", ks, empty=map_at_r)
        self.map_at_r, self.distance, self.ties = map_at_r, distance, ties

    @torch.no_grad()
    def measure(self, y: Tensor, *gathered: Tensor) -> dict[str, Any]:
        """Recall@K and mAP@R of gathered labels (N,) and features (N, D)."""
        gallery, gallery_y = self.sourced or (None, None)
        search = _Search.of("retrieval_metrics", gathered[0], y, gallery, gallery_y, self.distance, self.ties)
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
        layer: name of the layer whose output is the feature; None: the input of the last classifier layer.
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
