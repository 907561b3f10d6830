"""What the three methods share: the swap of the criterion, the teacher, and the ledger of classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from avalanche.models import avalanche_forward
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins.strategy_plugin import SupervisedPlugin
from torch import Tensor, nn

from avalanche_contrastive._checks import check_choice
from avalanche_contrastive._rows import check_shared, rows_of
from avalanche_contrastive._torch import compiled_in_place, unwrapped
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins.guards import (
    LabelCheck,
    Witness,
    check_finite,
    check_loss,
    check_optimizer,
    position,
)
from avalanche_contrastive.plugins.partners import IGNORING_TEMPLATES, UNFIT, check_partners
from avalanche_contrastive.tasks import PAIR, check_stream, classes_of, is_piece, pair_codes, pairs_of, starts_task
from avalanche_contrastive.teacher import frozen_copy

__all__ = ["MethodPlugin"]


class MethodPlugin(SupervisedPlugin[Any], ABC):
    """A method whose objective replaces the strategy's criterion while it trains.

    The objective stands in for the criterion during one call of it, between the forward pass and the loss: other
    plugins add their penalties to ``strategy.loss`` as ever, in either order of the list, and evaluation sees the
    user's criterion. After each experience the plugin keeps a frozen copy of the model, its teacher for the next.

    A task is an experience. On an online stream it is the experience that the pieces are cut from: all its classes are
    current in each of its pieces, and the teacher is the model as the previous task left it.

    Attributes:
        teacher: the model after the previous task, in evaluation mode and without gradients; None before.
        ledger: class ids by the experience that brought them, ``ledger[0]`` first. Ids, never ranges; in a model with a
            head per task pairs (task label, class id). An experience, or a piece, without a new class has an empty
            entry; a task's first piece brings all its classes.
        multi_head: whether the model has a head per task.
        terms: the last step's loss terms by name, detached, before weighting.
        unfit: plugins that have no meaning beside this method, with the reason; refused when training begins.

    Args:
        teacher_mode: "eval", or "train" to let the teacher's batch-norm layers normalise by the batch.
    """

    unfit: Mapping[type, str] = UNFIT

    def __init__(self, *, teacher_mode: Literal["eval", "train"] = "eval") -> None:
        super().__init__()
        check_choice(type(self).__name__, "teacher_mode", teacher_mode, ("eval", "train"))
        self.supports_distributed = True  # beside DataParallel; Avalanche warns of plugins that do not say so
        self.teacher_mode = teacher_mode
        self.teacher: nn.Module | None = None
        self.ledger: list[list[Any]] = []
        self.terms: dict[str, Tensor] = {}
        self.multi_head = False
        self._current: list[Any] = []  # classes of the current task, as in the ledger
        self._taught = 0  # entries of the ledger that the teacher knows
        self._trained: nn.Module | None = None  # between experiences: the model that the last one has trained
        self._step = "idle"  # of an iteration: "idle", "computed" (the objective), "used" (as the loss)
        self._where = ""  # in the stream, in words
        self._check_labels = LabelCheck()
        self._witness: Any = None  # the handle of its hook, during a forward pass

    @abstractmethod
    def objective(self, strategy: Any) -> Tensor:
        """The method's whole loss, a scalar, for ``strategy.mb_output`` and ``strategy.mb_y``."""

    @property
    def seen_classes(self) -> list[Any]:
        """Classes of all finished experiences, in the order of the ledger."""
        return [c for classes in self.ledger for c in classes]

    @property
    def past(self) -> list[list[Any]]:
        """The ledger as the teacher knows it, without the current task's pieces and without empty entries."""
        return [classes for classes in self.ledger[: self._taught] if classes]

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a second method beside this one, each being the whole objective, and partners without a meaning."""
        check_shared(strategy, type(self).__name__)
        others = [p for p in strategy.plugins if isinstance(p, MethodPlugin) and p is not self]
        if others:
            raise ValueError(
                f"{type(self).__name__} is a whole method and cannot share a strategy with "
                f"{type(others[0]).__name__}. Use one of them; penalties of other plugins may stand beside it. "
                "(The strategies Co2L, SSIL and CSD bring their plugin themselves.)"
            )
        if self.ledger and strategy.clock.train_exp_counter == 0:
            raise ValueError(
                f"{type(self).__name__} has already been trained through {len(self.ledger)} experiences, but this "
                "strategy starts at its first: teacher, classes and memory of the other run would leak into it. Make "
                "a new plugin for each run."
            )
        if isinstance(strategy, IGNORING_TEMPLATES):
            self._refuse_template(strategy)
        check_partners(type(self).__name__, self.unfit, strategy.plugins)
        if not self.ledger:  # later the model may have grown past the optimiser's parameters
            check_optimizer(type(self).__name__, strategy)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse what the method has no meaning for, before Avalanche fails on it.

        The teacher is the model as the last task left it, whatever other plugins did to it at its end.
        """
        if len(strategy.experience.dataset) == 0:
            raise ValueError(
                f"{type(self).__name__}: experience {strategy.experience.current_experience} has no sample. Leave it "
                "out of the stream: train on those experiences whose dataset is not empty."
            )
        check_stream(type(self).__name__, strategy.experience, strategy.model)
        if self.ledger and starts_task(strategy.experience):
            # Not always strategy.model: a plugin before this one may have put a fresh model there (GDumb does).
            self._take_teacher(strategy.model if self._trained is None else self._trained)
        self._trained = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note the classes of the task."""
        experience = strategy.experience
        self.multi_head = is_multi_task_module(strategy.model)
        if not self.multi_head:
            self._current = classes_of(experience)
            self._check_brought(strategy)
        elif starts_task(experience) or not self._current:
            self._current = pairs_of(experience)

    def _check_brought(self, strategy: Any) -> None:
        """Refuse training data of classes that no experience has brought."""
        targets = getattr(strategy.adapted_dataset, "targets", None)
        labels = set() if targets is None else {int(c) for c in targets.uniques}
        if stray := sorted(labels.difference(self._current, self.seen_classes)):
            raise ValueError(
                f"{type(self).__name__}: the training data holds the classes {stray}, which neither this experience "
                f"({self._current}) nor an earlier one has brought, so that they would count as neither new nor old. "
                f"Does {type(strategy).__name__} train on several experiences at once, as JointTraining does? Train "
                "on one after the other, or on a stream of a single experience."
            )

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a step whose loss has not been computed."""
        self._step = "idle"

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a batch of broken images or labels before batch statistics or weights have seen it."""
        self._dismiss_witness()
        name, x, y = type(self).__name__, strategy.mb_x, strategy.mb_y
        self._where = position(strategy)
        check_finite(name, self._where, x, y)
        current, seen = self._current, self.seen_classes
        if self.multi_head:
            current, seen = [c for _, c in current], [c for _, c in seen]
        self._check_labels(name, self._where, y, len(x), current, seen)
        if not compiled_in_place(strategy.model):  # what compiles its own call compiles its hooks with it
            self._witness = strategy.model.register_forward_hook(Witness(name, self._where), always_call=True)

    def _dismiss_witness(self) -> None:
        if self._witness is not None:
            self._witness.remove()
        self._witness = None

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse broken images in evaluation, too: a figure that counts them would say nothing."""
        check_finite(type(self).__name__, position(strategy), strategy.mb_x, strategy.mb_y)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Put the objective in the criterion's place, for one call."""
        self._dismiss_witness()
        _restore_criterion(strategy)
        strategy._criterion = _Objective(self, strategy)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Make sure that the objective was the loss."""
        _restore_criterion(strategy)
        if self._step != "computed":
            self._refuse_template(strategy)
        self._step = "used"

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Make sure that the objective was trained on: some templates have a loop without it."""
        if self._step != "used":
            self._refuse_template(strategy)

    def _refuse_template(self, strategy: Any) -> None:
        raise RuntimeError(
            f"{type(self).__name__}: {type(strategy).__name__} trains without calling strategy.criterion() between "
            "the forward and the backward pass, so this method's objective would be ignored. Use Naive or another "
            "strategy that trains with its criterion. (Or does another plugin evaluate between the two?)"
        )

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Have autocast round the new weights: around a whole training it would keep its copies of the first ones."""
        torch.clear_autocast_cache()

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluation is done under the user's criterion, also after a training step that failed half-way."""
        self._dismiss_witness()
        _restore_criterion(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The experience's new classes enter the ledger; the model becomes the teacher, if the task is over."""
        self._trained = strategy.model
        known = set(self.seen_classes)
        self.ledger.append([c for c in self._current if c not in known])
        if not is_piece(strategy.experience):
            self._take_teacher(strategy.model)

    def _take_teacher(self, model: nn.Module) -> None:
        self.teacher = frozen_copy(model, batchnorm=self.teacher_mode)
        self._taught = len(self.ledger)

    def teacher_forward(self, strategy: Any) -> Tensor:
        """The teacher's output for the current batch, (B, K_teacher), without gradients."""
        assert self.teacher is not None
        rows = rows_of(strategy)
        task_ids = rows.own(strategy.mb_task_id) if hasattr(strategy.experience, "task_labels") else None
        with torch.no_grad(), rows.shared_statistics(self.teacher):
            output: Tensor = avalanche_forward(self.teacher, rows.own(strategy.mb_x), task_ids)
            return rows.whole(output)

    def row_labels(self, strategy: Any) -> Tensor:
        """What tells the classes of the batch's rows apart, (B,): class ids, or codes of pairs with the task label."""
        y: Tensor = strategy.mb_y
        return pair_codes(strategy.mb_task_id, y) if self.multi_head else y

    def is_current(self, labels: Tensor) -> Tensor:
        """Which row labels (B,) are of the current task, (B,) bool."""
        current = [task * PAIR + c for task, c in self._current] if self.multi_head else self._current
        return torch.isin(labels, torch.tensor(current, device=labels.device))

    def class_groups(self, like: Tensor, groups: list[list[int]]) -> Tensor:
        """The index of the group that each column of ``like`` (B, K) is in, (K,); -1 in none."""
        index = torch.full((like.shape[1],), -1, device=like.device)
        for number, classes in enumerate(groups):
            if not classes:  # of an experience that brought no class
                continue
            if max(classes) >= len(index):
                raise ValueError(
                    f"{type(self).__name__}: class {max(classes)} has no logit, the model gives {len(index)} only. "
                    "Make its last layer as wide as the largest class id + 1, or use a growing head "
                    "(avalanche.models.IncrementalClassifier)."
                )
            index[classes] = number
        return index

    def check_logits(self, strategy: Any) -> Tensor:
        """The model's output as logits (B, K), or an error."""
        output = strategy.mb_output
        if not isinstance(output, Tensor) or output.ndim != 2:
            came = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{type(self).__name__}: the model must give class logits (B, K) in training, got {came}. "
                "Is it an encoder without a classifier, or does another plugin replace strategy.mb_output?"
            )
        if isinstance(unwrapped(strategy.model), ContrastiveModel):
            raise ValueError(
                f"{type(self).__name__}: a ContrastiveModel gives projections in training, not class logits; it is "
                "Co2L's. Use a classifier."
            )
        return output


class _Objective:
    """Stands in for the criterion for one call and gives it back at once, so that no error can leave it there.

    Only the call for the output of the step counts: other plugins may want the user's criterion for outputs of theirs.
    """

    def __init__(self, method: MethodPlugin, strategy: Any) -> None:
        self.method, self.strategy, self.criterion = method, strategy, strategy._criterion

    def __call__(self, output: Any, y: Tensor) -> Tensor:
        if output is not self.strategy.mb_output:
            loss: Tensor = self.criterion(output, y)
            return loss
        _restore_criterion(self.strategy)
        self.method._step = "computed"
        loss = self.method.objective(self.strategy)
        check_loss(type(self.method).__name__, self.method._where, self.strategy, loss, self.method.terms)
        return loss


def _restore_criterion(strategy: Any) -> bool:
    """Give the user's criterion back; whether that was needed."""
    if not isinstance(strategy._criterion, _Objective):
        return False
    strategy._criterion = strategy._criterion.criterion
    return True
