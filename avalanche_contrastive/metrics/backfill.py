"""Embedding a stored gallery again, part by part: how much each part improves the search."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_count
from avalanche_contrastive.metrics.scores import Scorer
from avalanche_contrastive.metrics.search import check_features

__all__ = ["BackfillCurve", "backfill_curve"]


class BackfillCurve(NamedTuple):
    """The score of a gallery against the share of it that has been embedded again.

    Attributes:
        share: in [0, 1], (S,) float64.
        score: (S,) float64.
        area: under the curve, the mean score over the shares.
    """

    share: Tensor
    score: Tensor
    area: float


@torch.no_grad()
def backfill_curve(
    queries: Tensor,
    stored: Tensor,
    renewed: Tensor,
    y_query: Tensor,
    y_gallery: Tensor,
    *,
    score: str = "recall@1",
    order: Literal["random", "oldest", "drift"] = "random",
    age: Tensor | None = None,
    drift: Tensor | None = None,
    steps: int = 10,
    same_images: bool = False,
    pairs: int = 6000,
    seed: int = 0,
) -> BackfillCurve:
    """How the score rises while a stored gallery is embedded again, image by image.

    Args:
        queries: features by the new model, (N, D).
        stored: the gallery's features as they are stored, (G, D), by one old model or by several.
        renewed: the same images' features by the new model, (G, D).
        y_query: class ids, (N,) integers.
        y_gallery: class ids, (G,) integers.
        score: see ``compatibility_matrix``.
        order: which images come first: "random"; "oldest", by ``age``; "drift", those that have moved most.
        age: when each was stored, (G,), such as the number of the experience; lower is older.
        drift: how far each has moved, (G,), as estimated before it is embedded again, from its class or age, say. None:
            the angle between stored and renewed. It is known only afterwards: an upper end for orders by drift.
        steps: S - 1 parts of equal size.
        same_images, pairs: see ``compatibility_matrix``.
        seed: of the random order, also among images of one age or drift.

    Raises:
        ValueError: a wrong shape, type or option.
    """
    name = "backfill_curve"
    check_choice(name, "order", order, ("random", "oldest", "drift"))
    check_count(name, 1, steps=steps)
    check_features(name, "stored", stored)
    check_features(name, "renewed", renewed)
    if stored.shape != renewed.shape:
        shapes = f"{tuple(stored.shape)} and {tuple(renewed.shape)}"
        raise ValueError(f"{name}: stored and renewed must be of the same images and of one width, got {shapes}.")
    scored = Scorer(name, score, same_images=same_images, mapping=None, pairs=pairs, seed=seed)
    first = torch.randperm(len(stored), generator=torch.Generator().manual_seed(seed))
    if order == "oldest":
        first = first[_per_image(name, "age", age, len(stored))[first].argsort(stable=True)]
    elif order == "drift":
        angle = -F.cosine_similarity(stored.double(), renewed.double()) if drift is None else drift
        first = first[_per_image(name, "drift", angle, len(stored))[first].argsort(stable=True, descending=True)]
    mixed = stored.to(torch.promote_types(stored.dtype, renewed.dtype), copy=True)
    share, scores = torch.arange(steps + 1, dtype=torch.float64) / steps, []
    for done in share.tolist():
        rows = first[: round(done * len(stored))].to(stored.device)
        mixed[rows] = renewed[rows].to(mixed)
        scores.append(scored(queries, y_query, mixed, y_gallery))
    curve = torch.tensor(scores, dtype=torch.float64)
    return BackfillCurve(share, curve, torch.trapezoid(curve, share).item())


def _per_image(name: str, argument: str, x: Tensor | None, n: int) -> Tensor:
    if not isinstance(x, Tensor) or x.shape != (n,):
        given = "none" if x is None else f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: {argument} must be a number for each of {n} images, ({n},), got {given}.")
    return x.cpu()
