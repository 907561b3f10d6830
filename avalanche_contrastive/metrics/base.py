"""What the metrics share: gathering over an evaluation, its levels, the ledger of classes, matrices for loggers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue, TensorImage
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

from avalanche_contrastive._checks import check_flag
from avalanche_contrastive.features import FeatureCapture
from avalanche_contrastive.metrics.sources import Source
from avalanche_contrastive.readout import check_rows
from avalanche_contrastive.tasks import ClassLedger

__all__ = ["FeatureMetric", "GatheringMetric", "Level", "MatrixValue", "chosen_levels", "emitted"]

Level = Literal["experience", "stream", "seen", "old"]
SUFFIX: dict[Level, str] = {"experience": "Exp", "stream": "Stream", "seen": "Seen", "old": "Old"}
CELL = 32  # pixels of a matrix's number in its picture


def chosen_levels(name: str, **levels: bool) -> tuple[Level, ...]:
    """The levels that a helper's flags ask for, one at least."""
    check_flag(name, **levels)
    chosen: tuple[Level, ...] = tuple(level for level in SUFFIX if levels.get(level))
    if not chosen:
        first, second, *others = levels
        more = "".join(f", and so is {other}" for other in others)
        raise ValueError(f"{name}: {first} and {second} are both False{more}, so there is nothing to measure.")
    return chosen


def emitted(metric: Any, strategy: Any, name: str, value: Any, *, experience: bool) -> MetricValue:
    """A value under its full name, with the evaluated stream and, for a value of one experience, that experience."""
    full = get_metric_name(name, strategy, add_experience=experience, add_task=False)
    return MetricValue(metric, full, value, strategy.clock.train_iterations)


class MatrixValue(AlternativeValues):
    """A matrix as every logger takes it: text loggers print it, TensorBoard and W&B draw it in grey.

    Attributes:
        matrix: the numbers.

    Args:
        matrix: shares in [0, 1], or counts >= 0; nan where there is none.
        by_row: draw each number as its share of the row's sum.
    """

    def __init__(self, matrix: Tensor, *, by_row: bool = True) -> None:
        self.matrix = matrix.detach().cpu()
        shares = self.matrix / self.matrix.sum(dim=1, keepdim=True).clamp(min=1) if by_row else self.matrix
        grey = shares.float().nan_to_num(0.0).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        super().__init__(TensorImage(grey[None]), self.matrix)

    def __str__(self) -> str:
        return "\n" + str(self.matrix)


class GatheringMetric(PluginMetric[dict[str, Any]], ABC):
    """Gathers tensors over an evaluation, and measures them per experience, stream, or group of classes.

    Nothing but the ledger of classes is held between evaluations.

    Args:
        levels: "experience" measures each evaluated experience; "stream" all of them together; "seen" the images of
            classes trained so far among them; "old" those of classes trained before the latest experience.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.ledger = ClassLedger()
        self._rows: list[tuple[Tensor, ...]] = []
        self._first = 0  # of the experience under evaluation
        self._prepared = False

    @abstractmethod
    def batch(self, strategy: Any) -> tuple[Tensor, ...]:
        """What to gather of the current batch, one row per image, labels first."""

    @abstractmethod
    def measure(self, y: Tensor, *gathered: Tensor) -> dict[str, Any]:
        """Values by name, of labels (N,) and what else was gathered, (N, ...) each; N >= 1."""

    def prepare(self, strategy: Any) -> None:
        """Called once per evaluation, when the model is adapted to the first experience of it."""

    @property
    def ready(self) -> bool:
        """Whether there is what the evaluated images are measured against."""
        return True

    def reset(self) -> None:
        """Forget what was gathered."""
        self._rows, self._first, self._prepared = [], 0, False

    def result(self) -> dict[str, Any] | None:
        """Values by name of all that was gathered so far; None before any sample."""
        return self._measured("stream", self._rows)

    def before_training(self, strategy: Any) -> None:
        """Forget what was kept of an earlier strategy, if this one is new."""
        self.ledger.begin(strategy)

    def before_training_exp(self, strategy: Any) -> None:
        """Learn which classes are trained on."""
        self.ledger.note(strategy)

    def before_eval(self, strategy: Any) -> None:
        """Forget the last evaluation."""
        self.reset()

    def before_eval_exp(self, strategy: Any) -> None:
        """Mark where the experience starts."""
        if self.levels == ("experience",):
            self._rows = []
        self._first = len(self._rows)
        if not self._prepared:
            self.prepare(strategy)
            self._prepared = True

    def after_eval_iteration(self, strategy: Any) -> None:
        """Gather the batch."""
        super().after_eval_iteration(strategy)
        if self.ready:
            self._rows.append(tuple(x.detach().clone() for x in self.batch(strategy)))

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit per experience."""
        return self._emitted(strategy, "experience", self._rows[self._first :])

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the other levels, and forget everything."""
        levels = [level for level in self.levels if level != "experience"]
        values = [value for level in levels for value in self._emitted(strategy, level, self._rows)]
        self.reset()
        return values

    def _emitted(self, strategy: Any, level: Level, rows: list[tuple[Tensor, ...]]) -> list[MetricValue]:
        if level not in self.levels:
            return []
        return [
            emitted(self, strategy, f"{name}_{SUFFIX[level]}", value, experience=level == "experience")
            for name, value in (self._measured(level, rows) or {}).items()
        ]

    def _measured(self, level: Level, rows: list[tuple[Tensor, ...]]) -> dict[str, Any] | None:
        if not rows:
            return None
        gathered = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        if level in ("seen", "old"):
            classes = torch.tensor(self.ledger.seen if level == "seen" else self.ledger.old, dtype=torch.int64)
            kept = torch.isin(gathered[0], classes.to(gathered[0].device))
            gathered = [x[kept] for x in gathered]
        return self.measure(*gathered) if len(gathered[0]) else None


class FeatureMetric(GatheringMetric):
    """A metric on the features of any strategy's model, taken as CSD takes its own.

    Args:
        name: of the helper, for errors.
        levels: see ``GatheringMetric``.
        layer: see ``FeatureCapture``.
        source: labelled images beside those evaluated, embedded once per evaluation; None: there are none.
    """

    def __init__(
        self, name: str, levels: Sequence[Level], layer: str | None = None, source: Source | None = None
    ) -> None:
        super().__init__(levels)
        self.name, self.source = name, source
        self.capture = FeatureCapture(layer)
        self.sourced: tuple[Tensor, Tensor] | None = None
        self._features: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Without images in the source nothing is measured, as before the first training."""
        return self.source is None or self.sourced is not None

    def prepare(self, strategy: Any) -> None:
        """Embed the source."""
        if self.source is not None:
            self.sourced = self.source.shared(strategy, self.capture.layer)

    def reset(self) -> None:
        """Forget what was gathered and embedded."""
        super().reset()
        self.sourced = self._features = None
        if self.source is not None:
            self.source.release()

    def before_training(self, strategy: Any) -> None:
        """Forget what was kept of an earlier strategy, if this one is new."""
        super().before_training(strategy)
        if self.source is not None:
            self.source.begin(strategy)

    def before_training_exp(self, strategy: Any) -> None:
        """Learn which classes, and which data, are trained on."""
        super().before_training_exp(strategy)
        if self.source is not None:
            self.source.note(strategy)

    def before_eval_forward(self, strategy: Any) -> None:
        """Listen for the batch's features."""
        if self.ready:
            self.capture.attach(strategy.model)

    def after_eval_forward(self, strategy: Any) -> None:
        """Take the batch's features."""
        if self.ready:
            self._features = check_rows(self.name, self.capture.take(strategy.mb_output), strategy.mb_y)

    def batch(self, strategy: Any) -> tuple[Tensor, ...]:
        """Labels and features."""
        features, self._features = self._features, None
        assert features is not None
        return strategy.mb_y.long(), features
