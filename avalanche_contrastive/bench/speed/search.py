"""Retrieval beside flat indices of faiss and metric-learning libraries, and the read-out's fit beside autograd."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_contrastive.bench.speed.measure import Comparison, seconds_of
from avalanche_contrastive.metrics import map_at_r, recall_at_k
from avalanche_contrastive.readout import fit_linear

__all__ = ["by_faiss", "by_metric_learning", "by_torchmetrics", "fits"]


def _cloud(count: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (count,), generator=draws)
    centre = torch.randn(classes, width, generator=draws)
    return centre[y] + 2 * torch.randn(count, width, generator=draws), y


def by_faiss() -> list[Comparison]:
    """The searches of 10,000 features of width 512 among themselves, as a flat index does them on one thread."""
    import faiss  # an extra

    def flat(unit: Any, k: int) -> Any:
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        found = index.search(unit, k)
        faiss.omp_set_num_threads(threads)
        return found

    features, y = _cloud(10_000, 512, 100)
    unit, r = F.normalize(features, dim=1).numpy(), int(y.bincount().max())
    searches = (
        ("Recall@1 and @10", partial(recall_at_k, features, y, (1, 10)), partial(flat, unit, 11)),
        ("mAP@R", partial(map_at_r, features, y), partial(flat, unit, r)),
    )
    return [
        Comparison(f"{what}, 10,000 x 512, 100 classes", "faiss, flat index", seconds_of(ours), seconds_of(theirs), 1.3)
        for what, ours, theirs in searches
    ]


def by_metric_learning() -> list[Comparison]:
    """Recall@1 and mAP@R of 2,000 features by pytorch-metric-learning's calculator."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # an extra

    features, y = _cloud(2_000, 128, 20)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), device=torch.device("cpu")
    )

    def ours() -> Tensor:
        return torch.tensor([recall_at_k(features, y, (1,))[1], map_at_r(features, y)])

    def theirs() -> Tensor:
        found = calculator.get_accuracy(F.normalize(features, dim=1), y)
        return torch.tensor([found["precision_at_1"], found["mean_average_precision_at_r"]])

    work = "Recall@1 and mAP@R, 2,000 x 128, 20 classes"
    return [Comparison(work, "pytorch-metric-learning", seconds_of(ours), seconds_of(theirs), 1.0, same=(ours, theirs))]


def by_torchmetrics() -> list[Comparison]:
    """Recall@1 of 500 features by torchmetrics' precision of rankings, which takes every pair as a row."""
    from torchmetrics.functional.retrieval import retrieval_precision  # comes with Avalanche

    features, y = _cloud(500, 128, 20)

    def ours() -> Tensor:
        return torch.tensor(recall_at_k(features, y, (1,))[1])

    def theirs() -> Tensor:
        unit = F.normalize(features, dim=1)
        similar = (unit @ unit.T).fill_diagonal_(-2)
        return torch.stack(
            [retrieval_precision(row, y == c, top_k=1) for row, c in zip(similar, y, strict=True)]
        ).mean()

    work = "Recall@1, 500 x 128, 20 classes"
    return [Comparison(work, "torchmetrics", seconds_of(ours), seconds_of(theirs), 1.0, same=(ours, theirs))]


def autograd_fit(x: Tensor, y: Tensor, *, lr: float, epochs: int, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """`readout.fit_linear` with an optimiser, a schedule and autograd; the same draws."""
    target, counts = torch.unique(y, return_inverse=True, return_counts=True)[1:]
    chances, draws = (1.0 / counts.float())[target], torch.Generator().manual_seed(0)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, x.shape[1], len(counts))
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    milestones = [int(share * epochs) for share in (0.6, 0.75, 0.9)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
    for _ in range(epochs):
        for rows in torch.multinomial(chances, len(x), replacement=True, generator=draws).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[rows]), target[rows]).backward()
            optimizer.step()
        schedule.step()
    return layer.weight.detach(), layer.bias.detach()


def fits() -> list[Comparison]:
    """Co2L's read-out: softmax regression of 5,000 features of width 512, 20 epochs."""
    features, y = _cloud(5_000, 512, 10)
    x = F.normalize(features, dim=1)
    ours, theirs = partial(fit_linear, x, y, lr=1.0, epochs=20), partial(autograd_fit, x, y, lr=1.0, epochs=20)
    work = "Co2L's read-out, 5,000 x 512, 10 classes, 20 epochs"
    same = (lambda: ours()[1:], theirs)
    return [Comparison(work, "autograd and torch.optim", seconds_of(ours), seconds_of(theirs), 0.5, same=same)]
