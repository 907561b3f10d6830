"""Scores of queries in a gallery: retrieval, identification (1:N) and verification (1:1)."""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_contrastive._checks import check_count
from avalanche_contrastive.metrics.search import Search, check_features, check_y
from avalanche_contrastive.readout import full_precision

__all__ = ["Mapping", "Scorer", "verification_accuracy", "verification_pairs"]

Mapping = Callable[[Tensor, int], Tensor]  # query features (N, D) and another width D' to features (N, D')


class Scorer:
    """A score of queries in a gallery.

    Args:
        name: of the caller, for errors.
        score, same_images, mapping, pairs, seed: see ``compatibility_matrix``.
    """

    def __init__(
        self, name: str, score: str, *, same_images: bool, mapping: Mapping | None, pairs: int, seed: int
    ) -> None:
        recall = re.fullmatch(r"recall@([1-9]\d*)", score) if isinstance(score, str) else None
        if recall is None and score not in ("map@r", "identification", "verification"):
            raise ValueError(
                f"{name}: score must be 'recall@K' (K = 1, 2, ...), 'map@r', 'identification' or 'verification', got "
                f"{score!r}."
            )
        check_count(name, 1, pairs=pairs)
        check_count(name, 0, seed=seed)
        self.name, self.score, self.k = name, score, int(recall[1]) if recall else 0
        self.same_images, self.mapping, self.pairs, self.seed = same_images, mapping, pairs, seed

    @torch.no_grad()
    def __call__(self, queries: Tensor, y_query: Tensor, gallery: Tensor, y_gallery: Tensor) -> float:
        """The score of queries (N, D) in a gallery (G, D')."""
        queries = self._as_wide(queries, gallery)
        gallery = gallery.to(queries.device)
        y_query = check_y(self.name, "y_query", y_query, len(queries)).to(queries.device)
        y_gallery = check_y(self.name, "y_gallery", y_gallery, len(gallery)).to(queries.device)
        if self.score == "identification":
            return _identification(queries, y_query, gallery, y_gallery)
        if self.score == "verification":
            return self._verification(queries, y_query, gallery, y_gallery)
        search = Search.of(
            self.name, queries, y_query, gallery, y_gallery, "cosine", "positive", same_images=self.same_images
        )
        recall, precision = search.measure((self.k,) if self.k else (), at_r=not self.k)
        return recall[self.k] if self.k else precision

    def _as_wide(self, queries: Tensor, gallery: Tensor) -> Tensor:
        check_features(self.name, "queries", queries)
        check_features(self.name, "gallery", gallery)
        if queries.shape[1] != gallery.shape[1] and self.mapping is not None:
            queries = self.mapping(queries, gallery.shape[1])
            check_features(self.name, "mapped queries", queries)
        if queries.shape[1] != gallery.shape[1]:
            raise ValueError(
                f"{self.name}: queries are {queries.shape[1]} wide and the gallery is {gallery.shape[1]}, so that they "
                "have no similarity. Has the model grown? Give a mapping from one width to the other (mapping=)."
            )
        if self.same_images and len(queries) != len(gallery):
            raise ValueError(
                f"{self.name}: with same_images there must be as many queries as images in the gallery, got "
                f"{len(queries)} and {len(gallery)}."
            )
        return queries

    def _verification(self, queries: Tensor, y_query: Tensor, gallery: Tensor, y_gallery: Tensor) -> float:
        rows, columns, same = verification_pairs(
            y_query, y_gallery, self.pairs, seed=self.seed, same_images=self.same_images
        )
        return verification_accuracy(queries[rows], gallery[columns], same) if len(same) else float("nan")


def _identification(queries: Tensor, y_query: Tensor, gallery: Tensor, y_gallery: Tensor) -> float:
    classes, target, counts = torch.unique(y_gallery, return_inverse=True, return_counts=True)
    gallery = full_precision(gallery)
    mean = gallery.new_zeros(len(classes), gallery.shape[1]).index_add(0, target, gallery) / counts[:, None]
    known = torch.isin(y_query, classes)
    if not bool(known.any()):
        return float("nan")
    with torch.autocast(queries.device.type, enabled=False):
        nearest = (full_precision(queries[known]).to(mean) @ F.normalize(mean, dim=1).T).argmax(dim=1)
    return float((classes[nearest] == y_query[known]).double().mean())


def verification_pairs(
    y_query: Tensor, y_gallery: Tensor, pairs: int = 6000, *, seed: int = 0, same_images: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a query and an image of the gallery, of the same class and of different ones in turn.

    Queries are drawn with replacement from those that have such a partner, and partners from all that there are; the
    generator is the function's own.

    Args:
        y_query: class ids, (N,).
        y_gallery: class ids, (G,).
        pairs: how many, P.
        seed: of the draws.
        same_images: queries and gallery are the same images: none is paired with itself.

    Returns:
        Rows of the queries (P,), rows of the gallery (P,), and whether they are of one class, (P,) bool. P = 0 where
        one of the two kinds does not exist.

    Raises:
        ValueError: a wrong shape or type, or with ``same_images`` not as many queries as images in the gallery.
    """
    name = "verification_pairs"
    check_count(name, 1, pairs=pairs)
    check_count(name, 0, seed=seed)
    y = check_y(name, "y_query", y_query, len(y_gallery) if same_images else len(y_query)).cpu()
    others = check_y(name, "y_gallery", y_gallery, len(y_gallery)).cpu()
    draws = torch.Generator().manual_seed(seed)
    order = torch.argsort(others, stable=True)
    start = torch.searchsorted(others[order], y)
    size = torch.searchsorted(others[order], y, right=True) - start  # images of the query's class, in a row
    place = torch.argsort(order)[torch.arange(len(y))] - start if same_images else torch.zeros_like(y)
    rows, columns = torch.empty(2, pairs, dtype=torch.int64)
    for same in (True, False):
        turn = slice(0 if same else 1, None, 2)
        partners = size - int(same_images) if same else len(others) - size
        able = torch.nonzero(partners > 0)[:, 0]
        if len(able) == 0:
            return rows[:0], columns[:0], torch.zeros(0, dtype=torch.bool)
        count = len(rows[turn])
        row = able[torch.randint(len(able), (count,), generator=draws)]
        step = (torch.rand(count, generator=draws, dtype=torch.float64) * partners[row]).long()
        if not same:
            step += size[row]  # past the query's class, round the end
        elif same_images:
            step = (place[row] + 1 + step) % size[row]  # past itself, round its class
        rows[turn], columns[turn] = row, order[(start[row] + step) % len(others)]
    return rows, columns, torch.arange(pairs) % 2 == 0


@torch.no_grad()
def verification_accuracy(a: Tensor, b: Tensor, same: Tensor, *, folds: int = 10) -> float:
    """Share of pairs that a threshold on their squared distance rightly takes for one class or for two.

    Features are of unit length first. A pair counts as of one class below a threshold, of 0, 0.001, ... 3.999 the first
    that is right most often on the other folds. Folds are runs of pairs in the given order; the mean is over folds.

    Args:
        a: features of one side, (P, D).
        b: features of the other side, (P, D).
        same: whether a pair is of one class, (P,) bool.
        folds: at most P.

    Returns:
        In [0, 1].

    Raises:
        ValueError: a wrong shape or type, or fewer pairs than folds.
    """
    name = "verification_accuracy"
    check_features(name, "a", a)
    check_features(name, "b", b)
    check_count(name, 2, folds=folds)
    if a.shape != b.shape or same.shape != (len(a),) or len(a) < folds:
        raise ValueError(
            f"{name}: a and b must be features (P, D) of P >= {folds} pairs and same (P,), got {tuple(a.shape)}, "
            f"{tuple(b.shape)} and {tuple(same.shape)}."
        )
    a, b = (F.normalize(x.double(), dim=1) for x in (a, b))
    distance, same = (a - b).square().sum(dim=1).cpu(), same.cpu()
    sizes = torch.tensor([len(part) for part in distance.tensor_split(folds)])
    fold = torch.arange(folds).repeat_interleave(sizes)
    thresholds = torch.arange(4000, dtype=torch.float64) / 1000
    first = torch.searchsorted(thresholds, distance, right=True)  # the first threshold above each distance
    # Below its first threshold a pair counts as of two classes, from there on as of one: a step up where that is right.
    steps = torch.zeros(folds, 4001, dtype=torch.int64).index_put_((fold, first), 2 * same.long() - 1, accumulate=True)
    different = torch.zeros(folds, dtype=torch.int64).index_add_(0, fold, (~same).long())
    hits = different[:, None] + steps[:, :-1].cumsum(dim=1)  # (folds, thresholds)
    best = (hits.sum(dim=0) - hits).argmax(dim=1, keepdim=True)  # on the other folds, the first of equals
    return float((hits.gather(1, best)[:, 0] / sizes.double()).mean())
