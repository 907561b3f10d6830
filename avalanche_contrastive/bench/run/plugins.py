"""Small Avalanche plugins that every run shares: augmentation, accuracy with the task known, progress."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from avalanche_contrastive._outside import find
from avalanche_contrastive.metrics.base import emitted

REPLAY_LOADER = "replay_loader"  # how Avalanche's strategies and plugins call a replay loader of their own
SECONDS_BETWEEN_REPORTS = 0.5


class BatchAugment(SupervisedPlugin):
    """Augment what the model trains on, replayed images included; evaluation and buffers see the plain images.

    ER-ACE, ER-AML, DER++ and MIR draw their replay batch from a loader of their own, behind the plugin hooks: that one
    is wrapped. Only the reference gradients of GEM and A-GEM are of plain images.
    """

    def __init__(self, augmentation: Any):
        super().__init__()
        self.augmentation = augmentation

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Wrap the replay loaders, which exist by now."""
        for owner in (strategy, *strategy.plugins):
            loader = getattr(owner, REPLAY_LOADER, None)
            if loader is not None and not isinstance(loader, _Augmented):
                setattr(owner, REPLAY_LOADER, _Augmented(loader, self.augmentation, strategy.device))

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Augment the batch in place of the loader's; runs in training only."""
        strategy.mbatch[0] = self.augmentation(strategy.mbatch[0])


class _Augmented:
    """A replay loader whose images are augmented; features, of feature replay, are left alone."""

    def __init__(self, loader: Iterator[Any], augmentation: Any, device: torch.device):
        self.loader, self.augmentation, self.device = loader, augmentation, device

    def __iter__(self) -> "_Augmented":
        return _Augmented(iter(self.loader), self.augmentation, self.device)

    def __next__(self) -> tuple[Any, ...]:
        x, *rest = next(self.loader)
        return (self.augmentation(x.to(self.device)) if x.ndim == 4 else x, *rest)


class PlainBackward(SupervisedPlugin):
    """Leave an autocast for the backward pass: each gradient is taken in the precision of its forward pass.

    The last of the plugins, since others add to the loss just before that pass.
    """

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Leave the autocast."""
        self._off = torch.autocast(strategy.device.type, enabled=False)
        self._off.__enter__()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Enter it again."""
        self._off.__exit__(None, None, None)


class TaskAccuracy(PluginMetric[float]):
    """Accuracy of each experience with its classes known: logits of all other classes are left out.

    The same classifier, knowing at test time which experience an image is from: the "task-incremental accuracy"
    of Co2L's and DER's papers. Named ``TaskAcc_Exp/eval_phase/.../ExpNNN``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.right = 0
        self.seen = 0

    def reset(self) -> None:
        """Start counting anew."""
        self.right = self.seen = 0

    def result(self) -> float | None:
        """Share of images classified correctly, in [0, 1]; None before any image."""
        return self.right / self.seen if self.seen else None

    def before_eval_exp(self, strategy: Any) -> None:
        """Each experience counts on its own."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count the batch; the strategy's output is only read."""
        logits, y = strategy.mb_output, strategy.mb_y
        # A head that has not grown to a class yet cannot choose it.
        classes = sorted(int(c) for c in strategy.experience.classes_in_this_experience if int(c) < logits.shape[1])
        self.seen += len(y)
        if classes:
            known = torch.tensor(classes, device=logits.device)
            self.right += int((known[logits[:, known].argmax(dim=1)] == y).sum())

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the experience's accuracy."""
        return [emitted(self, strategy, str(self), self.result(), experience=True)]

    def __str__(self) -> str:
        return "TaskAcc_Exp"


class OwnMetric(PluginMetric[float]):
    """A figure of your own from the logits and classes of an evaluation, of each experience and of the whole stream.

    Named ``Own FUNCTION_Exp/.../ExpNNN`` and ``Own FUNCTION_Stream/...``.

    Args:
        name: "module:function"; the function takes logits (N, K) and classes (N,) and returns a number.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.figure = name, find(name)
        self.whole: list[list[tuple[Tensor, Tensor]]] = []  # batches of logits and classes, by experience

    def reset(self) -> None:
        """Forget the last evaluation."""
        self.whole = []

    def result(self) -> float | None:
        """Of all that has been seen; None before any image."""
        return self._of([batch for batches in self.whole for batch in batches])

    def before_eval(self, strategy: Any) -> None:
        """Begin anew."""
        self.reset()

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin an experience."""
        self.whole.append([])

    def after_eval_iteration(self, strategy: Any) -> None:
        """Keep the batch's logits and classes."""
        self.whole[-1].append((strategy.mb_output.detach().cpu(), strategy.mb_y.cpu()))

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the figure of the experience."""
        return [emitted(self, strategy, f"{self}_Exp", self._of(self.whole[-1]), experience=True)]

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the figure of the stream."""
        value = emitted(self, strategy, f"{self}_Stream", self.result(), experience=False)
        self.reset()
        return [value]

    def _of(self, batches: list[tuple[Tensor, Tensor]]) -> float | None:
        if not batches:
            return None
        width = max(logits.shape[1] for logits, _ in batches)  # a head may grow within an evaluation
        logits = torch.cat([F.pad(part, (0, width - part.shape[1]), value=-1000.0) for part, _ in batches])
        value = self.figure(logits, torch.cat([y for _, y in batches]))
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metric {self.name} must return a number, got {type(value).__name__}") from error

    def __str__(self) -> str:
        return f"Own {self.name.partition(':')[2]}"


class ReportProgress(SupervisedPlugin):
    """Report how far a run is, at most twice a second and at the end of each training step.

    Args:
        report: takes the share done, in [0, 1], and where the run stands in words.
        steps: number of times that ``train`` is called on something.
    """

    def __init__(self, report: Callable[[float, str], None], steps: int):
        super().__init__()
        self.report, self.steps = report, steps
        self._last = 0.0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Forget when the last report was: a checkpoint has the clock of another process."""
        self._last = 0.0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Report, unless it was just done."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_REPORTS:
            return
        self._last = now
        clock = strategy.clock  # Avalanche advances it after all plugins
        of_epoch = min(1.0, (clock.train_epoch_iterations + 1) / max(1, len(strategy.dataloader)))
        of_step = min(1.0, (clock.train_exp_epochs + of_epoch) / strategy.train_epochs)
        step = clock.train_exp_counter
        words = f"experience {step + 1}/{self.steps}, epoch {clock.train_exp_epochs + 1}/{strategy.train_epochs}"
        self.report((step + of_step) / self.steps, words)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Report the end of a step, however short it was."""
        done = strategy.clock.train_exp_counter + 1
        self.report(done / self.steps, f"experience {done}/{self.steps}")
