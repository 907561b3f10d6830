"""Measures of compatible representations, beside three public codes of the same group."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from checkouts import Checkout
from replay import Part, difference
from torch import Tensor, nn

from avalanche_contrastive.metrics import compatibility as ours

METHOD = "compatibility"
SIZES = (2, 3, 5, 10)
ROUNDING = 1e-12


def parts(checkouts: Mapping[str, Checkout]) -> Iterator[Part]:
    """Comparisons with those of the three codes whose checkouts are given."""
    if "cl2r" in checkouts:
        stubs = ("cl2r.utils", "cl2r.model")
        with checkouts["cl2r"].modules("cl2r.metrics", "cl2r.eval", stubs=stubs) as (metrics, evaluation):
            yield from _summaries(metrics)
            yield _verification(evaluation)
    if "cores" in checkouts:
        with checkouts["cores"].modules("cores.metrics") as metrics:
            yield _average("cores", metrics.average_compatibility, "compatible")
            yield _multimodel("cores.metrics.average_multimodel_accuracy", metrics.average_multimodel_accuracy)
    if "iamcl2r" in checkouts:
        # NumPy has renamed a function.
        with mock.patch.object(np, "in1d", np.isin, create=True):
            names = ("iamcl2r.compatibility_metrics", "iamcl2r.performance_metrics")
            with checkouts["iamcl2r"].modules(*names) as (metrics, performance):
                yield _average("iamcl2r", metrics.average_compatibility, "incompatible")
                yield _multimodel(
                    "iamcl2r.compatibility_metrics.average_accuracy",
                    lambda c: metrics.average_accuracy(c) / 100,  # in percent
                )
                yield _identification(performance)


def _matrices(*, zeros: bool) -> list[Tensor]:
    """Ten matrices of each size, with zeros above the diagonal as theirs have, and with ties.

    Args:
        zeros: below the diagonal, too.
    """
    draws = torch.Generator().manual_seed(0)
    found = []
    for size in SIZES:
        for _ in range(10):
            c = torch.randint(0 if zeros else 1, 8, (size, size), generator=draws).double() / 8
            found.append(c.tril())
    return found


def _values(matrices: list[Tensor], measure: Any, theirs: Any) -> tuple[float, float]:
    """Ours gets nan above the diagonal, as ``compatibility_matrix`` gives it."""
    above = [torch.ones_like(c, dtype=torch.bool).triu(1) for c in matrices]
    own = [measure(c.masked_fill(hidden, torch.nan)) for c, hidden in zip(matrices, above, strict=True)]
    return difference([torch.tensor(own)], [torch.tensor([float(theirs(c.numpy().copy())) for c in matrices])])


def _summaries(metrics: Any) -> Iterator[Part]:
    yield _average("cl2r", metrics.average_compatibility, "compatible")
    for name in ("backward_compatibility", "forward_compatibility"):
        matrices = _matrices(zeros=True)
        yield Part(
            METHOD,
            name.replace("_", " "),
            f"cl2r.metrics.{name}",
            f"metrics.compatibility.{name}",
            f"{len(matrices)} matrices of {SIZES} models",
            *_values(matrices, getattr(ours, name), getattr(metrics, name)),
            bound=ROUNDING,
        )


def _average(code: str, theirs: Any, ties: Any) -> Part:
    matrices = _matrices(zeros=True)
    tied = sum(int((c == c.diagonal()).tril(-1).sum()) for c in matrices)
    return Part(
        METHOD,
        f"average compatibility ({code})",
        f"{code}: average_compatibility",
        f'metrics.compatibility.average_compatibility(ties="{ties}")',
        f"{len(matrices)} matrices of {SIZES} models, with {tied} ties",
        *_values(matrices, lambda c: ours.average_compatibility(c, ties=ties), theirs),
        note=f"a tie is {ties} here; in CL2R's code and CoReS's it is compatible, in that of CVPR 2024 incompatible",
        bound=ROUNDING,
    )


def _multimodel(name: str, theirs: Any) -> Part:
    matrices = _matrices(zeros=False)
    return Part(
        METHOD,
        f"average multi-model accuracy ({name.split('.')[0]})",
        name,
        "metrics.compatibility.average_multimodel_accuracy",
        f"{len(matrices)} matrices of {SIZES} models without a zero",
        *_values(matrices, ours.average_multimodel_accuracy, theirs),
        note="theirs leaves zeros out, as missing values; ours counts them",
        bound=ROUNDING,
    )


def _features(count: int, *, unit: bool, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, generator=draws)
    return nn.functional.normalize(x, dim=1) if unit else x


def _verification(evaluation: Any) -> Part:
    """Pairs, in ten folds; their features are of unit length when they arrive."""
    own, theirs = [], []
    for seed, count in enumerate((100, 103, 600)):  # folds of unequal sizes, too
        same = torch.arange(count) % 2 == 0
        a = _features(count, unit=True, seed=seed)
        near = a + 0.6 * _features(count, unit=False, seed=100 + seed)
        other = torch.where(same[:, None], near, _features(count, unit=False, seed=200 + seed))
        b = nn.functional.normalize(other, dim=1)
        own.append(ours.verification_accuracy(a, b, same))
        theirs.append(float(evaluation.verification(a.numpy(), b.numpy(), same.numpy())))
    return Part(
        METHOD,
        "verification",
        "cl2r.eval.verification",
        "metrics.compatibility.verification_accuracy",
        f"100, 103 and 600 pairs; accuracies {', '.join(f'{value:.3f}' for value in theirs)}",
        *difference([torch.tensor(own)], [torch.tensor(theirs)]),
        bound=ROUNDING,
    )


def _identification(performance: Any) -> Part:
    """Queries of one model among the class templates of another; theirs searches in float32."""
    own, theirs = [], []
    for seed in range(3):
        y = torch.arange(300) % 10
        centres = _features(10, unit=False, seed=300 + seed)
        gallery, queries = (centres[y] + 2 * _features(300, unit=False, seed=seed + s) for s in (400, 500))
        own.append(float(ours.compatibility_matrix([queries], [gallery], y, y, score="identification")[0, 0]))
        theirs.append(float(performance.identification(gallery.float(), y, queries.float(), y)))
    return Part(
        METHOD,
        "identification",
        "iamcl2r.performance_metrics.identification",
        'metrics.compatibility.compatibility_matrix(score="identification")',
        f"300 queries, 10 classes; accuracies {', '.join(f'{value:.3f}' for value in theirs)}",
        *difference([torch.tensor(own)], [torch.tensor(theirs)]),
        bound=ROUNDING,
    )
