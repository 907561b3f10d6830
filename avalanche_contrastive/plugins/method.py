"""What the three methods share: the objective in the criterion's place, the teacher, and the ledger of classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins.strategy_plugin import SupervisedPlugin
from torch import Tensor, nn

from avalanche_contrastive._checks import check_choice
from avalanche_contrastive._rows import SharesBatches, sharing_plugin
from avalanche_contrastive._torch import leaves_of, unwrapped
from avalanche_contrastive.models import ContrastiveModel
from avalanche_contrastive.plugins.guards import Guards
from avalanche_contrastive.plugins.multihead import HeadGroups
from avalanche_contrastive.plugins.partners import OWN_LOSS_TEMPLATES, REFUSED
from avalanche_contrastive.plugins.step import Step
from avalanche_contrastive.readout import UNFITTED_LOGIT
from avalanche_contrastive.tasks import (
    check_stream,
    classes_of,
    is_in,
    is_piece,
    not_seen,
    pairs_of,
    seen_in,
    starts_task,
)
from avalanche_contrastive.teacher import frozen_copy

__all__ = ["MethodPlugin"]


class MethodPlugin(SupervisedPlugin[Any], ABC):
    """A method whose objective replaces the strategy's criterion while it trains.

    Within a training iteration the objective is the criterion of the batch's own output, however often the loss is
    asked for. Other plugins add their penalties to ``strategy.loss`` as ever, in either order of the list, and
    evaluation sees the user's criterion. After each experience the plugin keeps a frozen copy of the model, its teacher
    for the next.

    A task is an experience. On an online stream it is the experience that the pieces are cut from: all its classes are
    current in each of its pieces, and the teacher is the model as the previous task left it.

    Attributes:
        teacher: the model after the previous task, in evaluation mode and without gradients; None before, and in a
            method that asks none.
        ledger: class ids by the experience that brought them, ``ledger[0]`` first. Ids, never ranges; in a model with a
            head per task pairs (task label, class id). An experience, or a piece, without a new class has an empty
            entry; a task's first piece brings all its classes.
        multi_head: whether the model has a head per task.
        terms: the last step's loss terms by name, detached, before weighting.
        gives_logits: whether the model gives class logits in training; if not, projections.
        forward_pass: runs the strategy's forward pass, given as a function, of the student, or of the teacher in the
            model's place; None: it is run as it is.
        refused: plugins that have no meaning beside this method, with the reason; an error when training begins.

    Args:
        teacher_mode: "eval", or "train" to let the teacher's batch-norm layers normalise by the batch.
    """

    refused: Mapping[type, str] = REFUSED
    gives_logits = True
    forward_pass: Callable[[Any, Callable[[], Any]], Any] | None = None

    def __init__(self, *, teacher_mode: Literal["eval", "train"] = "eval") -> None:
        super().__init__()
        check_choice(type(self).__name__, "teacher_mode", teacher_mode, ("eval", "train"))
        self.supports_distributed = True  # beside DataParallel; Avalanche warns of plugins that do not say so
        self.teacher_mode = teacher_mode
        self.teacher: nn.Module | None = None
        self.ledger: list[list[Any]] = []
        self.terms: dict[str, Tensor] = {}
        self.multi_head = False
        self.guards = Guards(type(self).__name__)
        self.computed = False  # the objective, in this iteration
        self.backward: list[Tensor] = []  # gradients that have come back to it
        self.labels = torch.zeros(0, dtype=torch.long)  # what tells the classes of the batch's rows apart, (B,)
        self._current: list[Any] = []  # classes of the current task, as in the ledger
        self._taught = 0  # entries of the ledger that the teacher knows
        self._trained: nn.Module | None = None  # between experiences: the model that the last one has trained
        self._tables: dict[Any, Any] = {}  # what follows from the classes of the experience, see `table`
        self.of_batch: dict[str, Any] = {}  # what follows from the batch; forgotten with it
        self._step: Step | None = None  # while an experience is trained
        self._shares: SharesBatches | None = None  # the plugin beside which each process has a part of every batch

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the strategy that trains at this moment, or to its batch."""
        return {**vars(self), "_step": None, "_shares": None, "of_batch": {}, "_tables": {}, "backward": []}

    @abstractmethod
    def objective(self, strategy: Any) -> Tensor:
        """The method's whole loss, a scalar, for ``strategy.mb_output``, ``strategy.mb_y`` and ``self.labels``."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective asks a teacher; if not, no copy of the model is made."""
        return True

    @property
    def seen_classes(self) -> list[Any]:
        """Classes of all finished experiences, in the order of the ledger."""
        return seen_in(self.ledger)

    @property
    def past(self) -> list[list[Any]]:
        """The ledger as the teacher knows it, without the current task's pieces and without empty entries."""
        return [classes for classes in self.ledger[: self._taught] if classes]

    # ---- before an experience

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a strategy that the method cannot train with."""
        self._end_step()
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
        if isinstance(strategy, OWN_LOSS_TEMPLATES):
            raise self.own_loss_error(strategy)
        self.guards.before_training(strategy, self.refused, first=not self.ledger, teacher=self.needs_teacher)

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
        if self.gives_logits and isinstance(unwrapped(strategy.model), ContrastiveModel):
            raise ValueError(
                f"{type(self).__name__}: a ContrastiveModel gives projections in training, not class logits; it is "
                "Co2L's. Use a classifier."
            )
        if not self.multi_head:
            self._current = classes_of(experience)
            self._check_brought(strategy)
        elif starts_task(experience) or not self._current:
            self._current = pairs_of(experience)
        self._tables, self._shares = {}, sharing_plugin(strategy)
        self.guards.begin(strategy.model, strategy.device, self._current, self.seen_classes)

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

    # ---- within an iteration

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stand in for the forward pass and the criterion."""
        self.computed, self.backward, self.of_batch = False, [], {}
        if self._step is None:
            # Later where all heads are asked, or where processes put the batch together behind the student.
            first = self.teacher is not None and not self.multi_head and self._shares is None
            self._step = Step(self, strategy, teacher_first=first)
        self._step.begin()

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Stand in, in a loop that skips the hook before."""
        if self._step is None:
            self.before_training_iteration(strategy)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Make sure that the objective is the loss, before another one reaches the weights."""
        if not self.computed:
            self._end_step()
            raise self.own_loss_error(strategy)
        if isinstance(strategy.loss, Tensor) and not strategy.loss.requires_grad:
            self._end_step()
            raise ValueError(
                f"{type(self).__name__}: the loss does not depend on the weights, so nothing would be learned. Does "
                "the model's forward() detach what it gives, or is it run under torch.no_grad()?"
            )

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Make sure that the objective was trained on: some templates do not ask for it.

        The criterion stays the method's until the epoch ends, for plugins behind this one that ask for the loss here.
        """
        if not self.backward:
            self._end_step()
            raise self.own_loss_error(strategy)
        self.backward = []
        torch.clear_autocast_cache()  # an autocast around a whole training would keep its copies of the first weights
        if self.multi_head:
            self._mask_other_heads(strategy)  # for the metrics, which come next

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Give the criterion back."""
        self._end_step()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.end()
        self._step, self.of_batch = None, {}

    def own_loss_error(self, strategy: Any) -> RuntimeError:
        """The error for a strategy that trains on another loss."""
        return RuntimeError(
            f"{type(self).__name__}: {type(strategy).__name__} trains without calling strategy.criterion() between "
            "the forward and the backward pass, or with a criterion() of its own that leaves strategy._criterion out, "
            "so this method's objective would be ignored. Use Naive or another strategy that trains with its "
            "criterion."
        )

    # ---- in evaluation, and after an experience

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluation is done under the user's forward pass and criterion, also in the middle of a training step."""
        if self._step is not None:
            self._step.pause()
        torch.clear_autocast_cache()

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse broken images in evaluation, too."""
        self.guards.evaluated(strategy)

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """In a model with a head per task: no logit for what a head does not have."""
        if self.multi_head and (self.ledger or self._current):
            self._mask_other_heads(strategy)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Go on with a training step. Widths in evaluation are others than in training."""
        self._tables = {}
        if self._step is not None:
            self._step.resume()

    def _mask_other_heads(self, strategy: Any) -> None:
        """Avalanche pads the logits of a narrow head with zeros, which may be more than what its own classes get."""
        logits = strategy.mb_output
        if isinstance(unwrapped(strategy.model), ContrastiveModel) or not isinstance(logits, Tensor):
            return

        def make() -> HeadGroups:
            return self.head_groups(logits, lambda t: [self.classes_of_head([*self.seen_classes, *self._current], t)])

        heads = self.table("own", make, logits.shape[1])
        known = is_in(strategy.mb_task_id.long(), heads.labels)
        foreign = (heads.of(strategy.mb_task_id) < 0) & known[:, None]
        strategy.mb_output = logits.detach().masked_fill(foreign, UNFITTED_LOGIT)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The experience's new classes enter the ledger; the model becomes the teacher, if the task is over."""
        self._trained = strategy.model
        self.ledger.append(not_seen(self._current, self.ledger))
        if not is_piece(strategy.experience):
            self._take_teacher(strategy.model)
        self._end_step()
        self._tables, self._shares = {}, None
        self.guards.end()

    # ---- the teacher

    def _take_teacher(self, model: nn.Module) -> None:
        self._taught = len(self.ledger)
        self.teacher = frozen_copy(model, batchnorm=self.teacher_mode) if self.needs_teacher else None

    def teacher_forward(self, strategy: Any, ask: Callable[[], Any] | None = None) -> Any:
        """What the teacher gives for the current batch, (B, ...), without gradients; asked once for a batch.

        The strategy's own forward pass is run with the teacher in the model's place: whatever it makes of a batch and
        of a model's output is made here, too.

        Args:
            strategy: the one that trains.
            ask: is called instead of the forward pass.
        """
        teacher, model, x = self.teacher, strategy.model, strategy.mb_x
        assert teacher is not None
        version = getattr(x, "_version", 0)  # a plugin may change the batch in place
        batch, known, answer = self.of_batch.get("teacher", (None, 0, None))
        if batch is x and known == version:
            return answer
        rows = None if self._shares is None else self._shares.rows
        mode, strategy.model = teacher.training, teacher
        if not self.gives_logits:
            # Co2L's model as a whole gives projections in training mode; all its layers stay in evaluation mode.
            teacher.training = True
        try:
            with torch.no_grad():
                answer = ask() if ask is not None else strategy.forward() if rows is None else rows.run(strategy)
        finally:
            strategy.model = model
            if not self.gives_logits:
                teacher.training = mode
        self.of_batch["teacher"] = x, version, answer
        return answer

    def whole(self, x: Tensor) -> Tensor:
        """The whole batch (B, ...) of what this process has for its rows."""
        rows = None if self._shares is None else self._shares.rows
        return x if rows is None else rows.whole(x)

    def asked_again(self, strategy: Any) -> Tensor:
        """The output of ``strategy.forward()``, in the place of one that a loop or a plugin has made past it.

        Raises:
            ValueError: that one was made by other weights than the model's, as ``functional_call`` takes them.
        """
        given = strategy.mb_output
        own = {id(parameter) for parameter in strategy.model.parameters()}
        if isinstance(given, Tensor) and given.requires_grad and own.isdisjoint(leaves_of(given)):
            raise ValueError(
                f"{type(self).__name__}: the loss is asked of an output that this model's parameters have not made, "
                "nor strategy.forward(), in which the method sees views and features. Call strategy.forward() while "
                "the model has those weights (torch.nn.utils.stateless._reparametrize_module lends them to it)."
            )
        strategy.mb_output = strategy.forward()
        output: Tensor = strategy.mb_output
        return output

    # ---- classes

    def table(self, name: str, make: Callable[[], Any], *key: Any) -> Any:
        """What ``make`` gives, made once per experience for a name and a key (a width, a device)."""
        if (name, *key) not in self._tables:
            self._tables[name, *key] = make()
        return self._tables[name, *key]

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

    def head_groups(self, like: Tensor, groups: Callable[[int], list[list[int]]]) -> HeadGroups:
        """`class_groups` of each head, by its task label."""
        tasks = sorted({task for task, _ in (*self.seen_classes, *self._current)})
        return HeadGroups(tasks, [self.class_groups(like, groups(task)) for task in tasks])

    @staticmethod
    def classes_of_head(classes: list[Any], task: int | None) -> list[int]:
        """The ids of one head's classes, of pairs (task label, class id); without a head, of ids, all of them."""
        return classes if task is None else [c for t, c in classes if t == task]

    def check_logits(self, strategy: Any) -> Tensor:
        """The model's output as logits (B, K), or an error."""
        output = strategy.mb_output
        if not isinstance(output, Tensor) or output.ndim != 2:
            given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{type(self).__name__}: the model must give class logits (B, K) in training, got {given}. "
                "Is it an encoder without a classifier, or does another plugin replace strategy.mb_output? (Out of a "
                "dictionary or tuple, a forward() of the strategy's own takes the logits.)"
            )
        return output
