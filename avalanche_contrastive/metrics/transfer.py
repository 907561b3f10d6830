"""Forgetting and backward transfer of any figure that is better when higher: accuracy, Recall@K, a read-out."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_contrastive._checks import check_choice, check_flag
from avalanche_contrastive.metrics.base import chosen_levels, emitted
from avalanche_contrastive.metrics.retrieval import retrieval_metrics
from avalanche_contrastive.tasks import task_of

__all__ = ["ForgettingMetric", "backward_transfer", "forgetting", "retrieval_forgetting_metrics", "with_forgetting"]

Matrix = Tensor | Sequence[Sequence[float]]


@overload
def forgetting(matrix: Matrix, *, reduction: Literal["mean"] = "mean") -> float: ...


@overload
def forgetting(matrix: Matrix, *, reduction: Literal["none"]) -> Tensor: ...


def forgetting(matrix: Matrix, *, reduction: Literal["mean", "none"] = "mean") -> float | Tensor:
    """How far each earlier experience has fallen from its best (Chaudhry et al. 2018, arXiv:1801.10112)::

        f_j = max over i < T of R[i][j]  -  R[T][j]        for each experience j before the last one trained, T

    The maximum is over all earlier rows, as in the paper, and not only over those since j was learned. Avalanche's
    ``StreamForgetting`` is R[j][j] - R[T][j] instead, the negative of backward transfer.

    Args:
        matrix: R[i][j], the figure on experience j after training on experience i: (T, J) with J >= T (columns beyond
            T are of experiences still to come). nan is a value not measured.
        reduction: "mean" over j, or "none".

    Returns:
        In units of R; below zero where the last value is the best. A float, or (T - 1,) float64; nan where the last
        or all earlier values are missing, and left out of the mean; the mean of nothing (T = 1) is nan.

    Raises:
        ValueError: not a matrix with J >= T >= 1, or an unknown reduction.
    """
    r = _checked("forgetting", matrix, reduction)
    last = len(r) - 1
    best = r[:last, :last].nan_to_num(nan=-torch.inf).amax(dim=0) if last else r[0, :0]
    return _reduced(best.masked_fill(best == -torch.inf, torch.nan) - r[last, :last], reduction)


@overload
def backward_transfer(matrix: Matrix, *, reduction: Literal["mean"] = "mean") -> float: ...


@overload
def backward_transfer(matrix: Matrix, *, reduction: Literal["none"]) -> Tensor: ...


def backward_transfer(matrix: Matrix, *, reduction: Literal["mean", "none"] = "mean") -> float | Tensor:
    """What later training did to each earlier experience (Lopez-Paz and Ranzato 2017, arXiv:1706.08840)::

        b_j = R[T][j] - R[j][j]        for each experience j before the last one trained, T

    Below zero is loss. Arguments, result and errors are those of ``forgetting``.
    """
    r = _checked("backward_transfer", matrix, reduction)
    last = len(r) - 1
    return _reduced(r[last, :last] - r.diagonal()[:last], reduction)


def _checked(name: str, matrix: Matrix, reduction: str) -> Tensor:
    check_choice(name, "reduction", reduction, ("mean", "none"))
    try:
        r = torch.as_tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: matrix must be R[i][j], rows of numbers and of one length ({error}).") from error
    if r.ndim != 2 or not 1 <= r.shape[0] <= r.shape[1]:
        raise ValueError(
            f"{name}: matrix must be (T, J), a row for each of T experiences trained and a column for each of J >= T "
            f"experiences, got shape {tuple(r.shape)}."
        )
    return r


def _reduced(values: Tensor, reduction: str) -> float | Tensor:
    return values.nanmean().item() if reduction == "mean" else values


class ForgettingMetric:
    """Forgetting and backward transfer of what another metric emits per evaluated experience.

    The other metric is part of this one, which takes its place in Avalanche's evaluator, calls it at each hook and
    reads its values. (It does not inherit the empty hooks of ``PluginMetric``.) A row of the matrix is what was
    evaluated last before the next experience's training starts; an experience that is trained again, or
    comes in pieces (an online stream), starts no new row. Evaluated streams (validation, test) are kept apart.

    Attributes:
        matrices: R by metric and stream name, such as ("Recall@1", "test"): {trained: {evaluated: value}}, experiences
            by their number in the stream.

    Args:
        metric: any plugin metric, ours or Avalanche's, that emits numbers per evaluated experience.
        experience: emit a value per earlier experience.
        stream: emit the mean over earlier experiences.
        keep: emit the other metric's values, too.
    """

    def __init__(
        self, metric: PluginMetric[Any], *, experience: bool = True, stream: bool = True, keep: bool = False
    ) -> None:
        if not isinstance(metric, PluginMetric):
            raise ValueError(f"ForgettingMetric: metric must be a plugin metric, got {type(metric).__name__}.")
        check_flag("ForgettingMetric", keep=keep)
        self.metric, self.keep = metric, keep
        self.levels = chosen_levels("ForgettingMetric", experience=experience, stream=stream)
        self.trained: list[int] = []
        self.matrices: dict[tuple[str, str], dict[int, dict[int, float]]] = {}

    def matrix(self, metric: str, stream: str = "test") -> Tensor:
        """R of a metric ("Recall@1") on a stream, (T, J) float64; nan where nothing was measured.

        Columns are the experiences in the order of training, then those not trained yet.
        """
        rows = self.matrices[metric, stream]
        evaluated = sorted({j for row in rows.values() for j in row} - set(self.trained))
        columns = [*self.trained, *evaluated]
        values = [[rows.get(i, {}).get(j, float("nan")) for j in columns] for i in self.trained]
        return torch.tensor(values, dtype=torch.float64).reshape(len(self.trained), len(columns))

    def reset(self) -> None:
        """Forget the matrices."""
        self.trained, self.matrices = [], {}
        self.metric.reset()

    def result(self) -> dict[str, float]:
        """Forgetting by metric and stream name, as far as there is any."""
        means = {f"{name}/{stream}": forgetting(self.matrix(name, stream)) for name, stream in self.matrices}
        return {name: value for name, value in means.items() if value == value}

    def before_training(self, strategy: Any) -> Any:
        """Forget what was kept of an earlier strategy, if this one is new."""
        if strategy.clock.train_exp_counter == 0:
            self.trained, self.matrices = [], {}
        return self._passed(self.metric.before_training(strategy))

    def before_training_exp(self, strategy: Any) -> Any:
        """Start a row."""
        number = task_of(strategy.experience).current_experience
        if number not in self.trained:
            self.trained.append(number)
        return self._passed(self.metric.before_training_exp(strategy))

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Read the experience's values into the row."""
        emitted = _as_list(self.metric.after_eval_exp(strategy))
        values = self._passed(emitted)
        stream = strategy.experience.origin_stream.name
        number = strategy.experience.current_experience
        for name, value in _per_experience(emitted):
            if not self.trained:
                continue
            self.matrices.setdefault((name, stream), {}).setdefault(self.trained[-1], {})[number] = value
            if "experience" in self.levels and number in self.trained[:-1]:
                values.extend(self._values(strategy, name, stream, self.trained.index(number)))
        return values

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the means."""
        values = self._passed(self.metric.after_eval(strategy))
        stream = strategy.experience.origin_stream.name
        if "stream" in self.levels:
            for name, of in self.matrices:
                if of == stream:
                    values.extend(self._values(strategy, name, stream))
        return values

    def _values(self, strategy: Any, name: str, stream: str, place: int | None = None) -> list[MetricValue]:
        """Forgetting and backward transfer of the experience in that place of the training, or their means."""
        matrix = self.matrix(name, stream)
        values = []
        for what, of in (("Forgetting", forgetting), ("BWT", backward_transfer)):
            each = of(matrix, reduction="none")
            value = float(each.nanmean() if place is None else each[place])
            if value == value:
                full = f"{name}_{what}_{'Stream' if place is None else 'Exp'}"
                values.append(emitted(self, strategy, full, value, experience=place is not None))
        return values

    def _passed(self, values: Any) -> list[MetricValue]:
        return _as_list(values) if self.keep else []

    def __getattr__(self, name: str) -> Callable[[Any], list[MetricValue]]:
        if not name.startswith(("before_", "after_")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        hook = getattr(self.metric, name)  # a hook that is not defined above
        return lambda strategy: self._passed(hook(strategy))

    def __str__(self) -> str:
        return f"Forgetting({self.metric})"


def _as_list(values: Any) -> list[MetricValue]:
    if values is None:
        return []
    return list(values) if isinstance(values, Sequence) else [values]


def _per_experience(values: Iterable[MetricValue]) -> list[tuple[str, float]]:
    """Name without level and place, and value, of the numbers that belong to one evaluated experience."""
    numbers = [v for v in values if re.search(r"/Exp\d+$", v.name) and isinstance(v.value, (int, float))]
    return [(v.name.split("/")[0].removesuffix("_Exp"), float(v.value)) for v in numbers]


def with_forgetting(
    metrics: Iterable[PluginMetric[Any]], *, experience: bool = True, stream: bool = True
) -> list[ForgettingMetric]:
    """The same metrics, with forgetting and backward transfer of all that they emit per evaluated experience.

    ``with_forgetting(retrieval_metrics(ks=(1, 5)) + accuracy_metrics(experience=True))`` gives, beside what those give,
    ``Recall@1_Forgetting_Exp/eval_phase/test_stream/Exp000``, ``Recall@1_Forgetting_Stream/eval_phase/test_stream``,
    ``Recall@1_BWT_...``, and the same of ``Top1_Acc``: all under one definition, that of ``forgetting``, which is not
    Avalanche's own.

    Args:
        metrics: plugin metrics, ours or Avalanche's; those that emit nothing per experience stay as they are.
        experience: one value per earlier experience.
        stream: their mean.

    Raises:
        ValueError: anything but a plugin metric, or no level.
    """
    return [ForgettingMetric(metric, experience=experience, stream=stream, keep=True) for metric in metrics]


def retrieval_forgetting_metrics(
    *, experience: bool = True, stream: bool = True, **options: Any
) -> list[ForgettingMetric]:
    """Forgetting and backward transfer in retrieval, as Avalanche plugin metrics.

    They are named ``Recall@K_Forgetting_Exp/eval_phase/...`` and ``..._Stream/...``, ``Recall@K_BWT_...``, and the same
    of ``MAP@R``. Each evaluated experience's images are queries and gallery, unless a gallery is given. Where the
    values themselves are wanted as well, ``with_forgetting(retrieval_metrics(...))`` computes them once.

    Args:
        experience: one value per earlier experience.
        stream: their mean.
        options: of ``retrieval_metrics``: ks, map_at_r, layer, distance, ties, gallery.

    Raises:
        ValueError: as ``retrieval_metrics``.
    """
    chosen_levels("retrieval_forgetting_metrics", experience=experience, stream=stream)
    (metric,) = retrieval_metrics(experience=True, stream=False, **options)
    return [ForgettingMetric(metric, experience=experience, stream=stream)]
