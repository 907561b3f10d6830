"""Exact nearest-neighbour search in chunks, and what retrieval metrics count in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_contrastive._checks import check_choice, form_of

__all__ = ["Distance", "Search", "Ties", "check_features", "check_ties", "check_y", "prepared", "similarities"]

Distance = Literal["cosine", "euclidean"]
Ties = Literal["positive", "index", "mean"]

WORKING_SET = 8_000_000  # similarities held at once: 32 MB in float32
BLOCK = 8  # similarities that are looked at together


@dataclass
class Search:
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
        *,
        same_images: bool = False,
    ) -> "Search":
        """Check what a user gave, and sort it.

        With ``same_images`` the gallery is of the queries' images, in the same order, by another model.
        """
        check_choice(name, "distance", distance, ("cosine", "euclidean"))
        check_choice(name, "ties", ties, ("positive", "index", "mean"))
        if (gallery is None) != (gallery_y is None):
            raise ValueError(f"{name}: a gallery needs both its features (gallery) and its class ids (gallery_y).")
        queries, searched = prepared(name, features, gallery, distance)
        y = check_y(name, "y", y, len(features))
        y_searched = y if gallery_y is None else check_y(name, "gallery_y", gallery_y, len(searched))
        order = torch.argsort(y_searched, stable=True)
        classes, sizes = torch.unique_consecutive(y_searched[order], return_counts=True)
        starts = sizes.cumsum(0) - sizes
        own_image = gallery is None or same_images  # a query is in the gallery, and does not find itself
        column = torch.argsort(order)
        rows = torch.argsort(y, stable=True)
        query_class = torch.searchsorted(classes, y[rows]).clamp(max=max(len(classes) - 1, 0))
        if len(classes) == 0:
            rows, query_class = rows[:0], query_class[:0]
        to_find = (classes[query_class] == y[rows]) * sizes[query_class] - int(own_image)
        rows, query_class = rows[to_find > 0], query_class[to_find > 0]
        own = column[rows] if own_image else None
        return cls(queries[rows], query_class, own, searched[order], order, starts, sizes, distance, ties)

    def measure(self, ks: Sequence[int], *, at_r: bool) -> tuple[dict[int, float], float]:
        """Recall by k, and mAP@R (nan unless asked for)."""
        check_ties("mAP@R", self.ties, at_r)
        if len(self.queries) == 0:
            return dict.fromkeys(ks, float("nan")), float("nan")
        hits, precisions = [], []
        wanted = torch.tensor(ks, device=self.queries.device)
        for rows, similarity in similarities(self.queries, self.gallery, self.distance):
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

    def _without_positives(self, rows: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities of the positives (B, M), which of these are not padding, and the largest (B, 1).

        In ``similarity`` only the negatives keep theirs.
        """
        columns, is_positive = self._positives(rows)
        positives = similarity.gather(1, columns).masked_fill_(~is_positive, -torch.inf)
        similarity.scatter_(1, columns, -torch.inf)  # the positives and the query itself
        return positives, is_positive, positives.amax(dim=1, keepdim=True)

    def _positives_first(self, rows: Tensor, similarity: Tensor, k: int, at_r: bool) -> tuple[Tensor, Tensor]:
        """Negatives before the nearest positive (exact up to k), and average precision at R; both (B,).

        The similarities are used up: masked and reordered in place.
        """
        positives, is_positive, nearest = self._without_positives(rows, similarity)
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
        positives, _, nearest = self._without_positives(rows, similarity)
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
        """The same where the lower gallery index comes first in a tie: a whole sort, for comparison with faiss."""
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


def prepared(name: str, queries: Tensor, gallery: Tensor | None, distance: Distance) -> tuple[Tensor, Tensor]:
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


def similarities(queries: Tensor, gallery: Tensor, distance: Distance) -> Iterator[tuple[Tensor, Tensor]]:
    """For chunks of the queries: their rows (B,), and similarities (B, G) that the caller may overwrite.

    Larger is nearer: cosine, or q.g - |g|^2 / 2, which orders the gallery of a query as Euclidean distance does. Copies
    of an image have the same similarity to the last bit: it is computed once for all of them. (In a matrix product the
    last bits of a column may depend on where the column stands, on some processors.)
    """
    chunk = max(1, WORKING_SET // max(1, len(gallery)))
    distinct, copies = _without_copies(gallery)
    memory = queries.new_empty(min(chunk, len(queries)), len(distinct))
    offset = None if distance == "cosine" else distinct.square().sum(dim=1) / -2
    for rows in torch.arange(len(queries), device=queries.device).split(chunk):
        out = memory[: len(rows)]
        if offset is None:
            torch.mm(queries[rows], distinct.T, out=out)
        else:
            torch.addmm(offset, queries[rows], distinct.T, out=out)
        yield rows, out if copies is None else out[:, copies]


def _without_copies(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The distinct rows of x (N, D), and the place of each row among them, (N,); None if all rows are distinct."""
    if x.device.type != "cpu" or x.numel() == 0:
        distinct, places = torch.unique(x, dim=0, return_inverse=True) if x.numel() else (x, None)
    else:
        first, _ = _distinct(x[:, :16])
        if len(first) == len(x):  # rows that differ in their first columns differ
            return x, None
        first, places = _distinct(x)
        distinct = x[first]
    return (x, None) if len(distinct) == len(x) else (distinct, places)


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each distinct row, and which of them each row is: many times as fast as torch.unique."""
    # Rows as bytes; adding zero makes -0.0 equal to 0.0.
    rows = np.ascontiguousarray((x + 0.0).numpy()).view(np.dtype((np.void, x.shape[1] * x.element_size())))
    _, first, inverse = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(inverse.reshape(-1))


def _largest(x: Tensor, k: int) -> Tensor:
    """The k largest values of each row, ascending; reorders x (B, N) in place."""
    if x.device.type != "cpu":
        return x.topk(k, dim=1).values.flip(1).contiguous()
    if 2 * BLOCK * k <= x.shape[1]:
        x = _candidates(x, k)
    if k < x.shape[1]:
        x.numpy().partition(x.shape[1] - k, axis=1)  # several times as fast as torch's topk on a CPU
    return x[:, x.shape[1] - k :].sort(dim=1).values


def _candidates(x: Tensor, k: int) -> Tensor:
    """A part of each row of x (B, N) that holds its k largest values: they lie in the k blocks with the largest maxima.

    To look for these blocks, and then in them, takes less than half the time of looking through the whole row.
    """
    count = x.shape[1] // BLOCK
    blocks = x[:, : BLOCK * count].view(len(x), BLOCK, count)  # a block is a column of it: their maxima are the fastest
    order = blocks.amax(dim=1).numpy().argpartition(count - k, axis=1)
    best = torch.from_numpy(order[:, None, count - k :].repeat(BLOCK, axis=1))
    return torch.cat([blocks.gather(2, best).flatten(1), x[:, BLOCK * count :]], dim=1)


def check_features(name: str, argument: str, x: Tensor) -> None:
    """Refuse anything but a finite floating-point matrix."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"{name}: {argument} must be a floating-point tensor (N, D), got {form_of(x)}.")
    # A finite sum has finite terms, and takes a tenth of the time to know.
    if not bool(x.sum().isfinite()) and not bool(x.isfinite().all()):
        raise ValueError(f"{name}: {argument} must be finite, got nan or infinity. Has the training diverged?")


def check_y(name: str, argument: str, y: Tensor, n: int) -> Tensor:
    """Class ids (n,) as int64, or an error."""
    if not isinstance(y, Tensor) or y.shape != (n,) or y.is_floating_point():
        raise ValueError(f"{name}: {argument} must be integer class ids of shape ({n},), got {form_of(y)}.")
    return y.long()


def check_ties(name: str, ties: Ties, at_r: bool) -> None:
    """Refuse a rule for ties that mAP@R does not have."""
    if at_r and ties == "mean":
        raise ValueError(f"{name}: ties='mean' is a rule for Recall@K only. Use 'positive' or 'index'.")
