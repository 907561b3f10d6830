"""What stands in for a strategy's forward pass and criterion while a method trains on a batch."""

import sys
from types import MethodType
from typing import Any

import torch
from avalanche.training.templates.problem_type.supervised_problem import SupervisedProblem
from torch import Tensor

from avalanche_contrastive.plugins.guards import describe_failure
from avalanche_contrastive.plugins.views import plain_forward

__all__ = ["Step"]


class Step:
    """Stands in for ``strategy.forward()`` and ``strategy._criterion`` from the first iteration of an epoch to its end.

    Avalanche calls no plugin in the place of the loss, nor between the last plugin's ``before_forward`` and the model.
    It stands there all the time, because the loss may be wanted more than once (SAM, closures, trial steps): each time
    it is the method's, for the output at hand. For outputs that another plugin has made, and in an evaluation, it is
    the user's criterion.

    Args:
        method: the plugin.
        strategy: the one that trains.
        teacher_first: whether the teacher is asked before the student. Behind it, its layers would take memory of their
            own beside the student's activations, and more of it in all.
    """

    def __init__(self, method: Any, strategy: Any, *, teacher_first: bool) -> None:
        self.method, self.strategy, self.teacher_first = method, strategy, teacher_first
        self.criterion: Any = None  # the user's
        self.own_forward: Any = None  # the strategy's
        self._forward: Any = None  # what does the same
        self._own_criterion: Any = None
        self._stand_in = _CriterionInStep(self)
        self.output: Any = None  # of the last forward pass
        self._paused = False  # in the middle of a batch
        self._passes = 0

    def begin(self) -> None:
        """Stand in, for a new batch."""
        strategy = self.strategy
        if strategy._criterion is not self._stand_in:  # the first batch of an epoch, or one behind an evaluation
            self.criterion, self.own_forward = strategy._criterion, strategy.forward
            is_avalanches = getattr(self.own_forward, "__func__", None) is SupervisedProblem.forward
            is_plain = is_avalanches and not self.method.multi_head
            self._forward = MethodType(plain_forward, strategy) if is_plain else self.own_forward
            self._own_criterion = strategy.criterion
            strategy._criterion, strategy.forward = self._stand_in, self.forward
            if type(strategy).criterion is not SupervisedProblem.criterion:
                strategy.criterion = self.users_criterion
        self.output, self._passes, self._paused = None, 0, False

    def end(self) -> None:
        """Give everything back; harmless where nothing was taken."""
        strategy = self.strategy
        self.output = None
        if strategy._criterion is not self._stand_in:
            return
        strategy._criterion = self.criterion
        for name, own in (("forward", self.own_forward), ("criterion", self._own_criterion)):
            vars(strategy).pop(name, None)
            if getattr(strategy, name) != own:  # not a method of its class, but put there by the user
                setattr(strategy, name, own)

    def pause(self) -> None:
        """Give everything back while an evaluation lasts, which may come in the middle of a batch."""
        self._paused, output = self.strategy._criterion is self._stand_in and _is_in_train(self.strategy), self.output
        self.end()
        self.output = output

    def resume(self) -> None:
        """Go on with the batch, if there was one."""
        if self._paused:
            output, passes = self.output, self._passes
            self.begin()
            self.output, self._passes = output, passes

    def refuse(self) -> None:
        """End after an error: the batch has moved nothing."""
        self.method.guards.put_back()
        self.end()

    def forward(self) -> Any:
        """The strategy's own forward pass, as the method has it run."""
        strategy, method = self.strategy, self.method
        if not strategy.is_training:
            return self.own_forward()
        if self._passes == 0:
            for live, kept in method.guards.statistics:
                kept.copy_(live)
            if self.teacher_first and strategy.model is not method.teacher:
                method.teacher_forward(strategy)
        torch.clear_autocast_cache()  # the weights may have moved since autocast has rounded them
        try:
            run = method.forward_pass
            output = self._forward() if run is None else run(strategy, self._forward)
        except Exception as error:
            self.refuse()
            describe_failure(error, type(method).__name__, strategy)
            raise
        self._passes += 1
        if strategy.model is not method.teacher:
            self.output = output
        return output

    def users_criterion(self) -> Tensor:
        """A ``criterion()`` of the strategy's own, which must have asked for the loss at its end."""
        try:
            loss: Tensor = self._own_criterion()
        except Exception as error:
            if self.method.computed or not self.strategy.is_training:
                raise
            self.refuse()
            raise self.method.own_loss_error(self.strategy) from error
        if self.strategy.is_training and not self.method.computed:
            self.refuse()
            raise self.method.own_loss_error(self.strategy)
        return loss


class _CriterionInStep:
    """``strategy._criterion`` while a step lasts.

    Whatever else is asked of it, or set, is the user's criterion's: MIR sets ``reduction`` for a moment to compare
    outputs of its own.
    """

    def __init__(self, step: Step) -> None:
        vars(self)["step"] = step

    def __call__(self, output: Any, y: Any) -> Tensor:
        """The loss of an output: the method's for the batch's own, the user's criterion for any other."""
        step, strategy, method = self.step, self.step.strategy, self.step.method
        of_batch = output is strategy.mb_output or output is step.output
        if not strategy.is_training or not of_batch or (y is not strategy.mb_y and not _equal(y, strategy.mb_y)):
            users: Tensor = step.criterion(output, y)
            return users
        kept, strategy.mb_output = strategy.mb_output, output
        try:
            method.labels = method.guards.labels(strategy, multi_head=method.multi_head)
            loss: Tensor = method.objective(strategy)
            method.guards.check(strategy, loss, method.terms, method.of_batch.get("views"))
        except Exception:
            step.refuse()
            raise
        if kept is not output:  # asked for without a place in the strategy
            strategy.mb_output = kept
        method.computed = True
        if loss.requires_grad:
            loss.register_hook(method.backward.append)
        return loss

    def __getattr__(self, name: str) -> Any:
        if name == "step":  # in a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.step.criterion, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.step.criterion, name, value)


def _is_in_train(strategy: Any) -> bool:
    """Whether ``strategy.train`` is running. Nothing in a strategy tells it: after an error, all is as it was then."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "train" and frame.f_locals.get("self") is strategy:
            return True
    return False


def _equal(y: Any, of_batch: Any) -> bool:
    """Whether labels are those of the batch: a plugin may want the user's criterion of mixed ones."""
    return isinstance(y, Tensor) and y.shape == of_batch.shape and bool((y == of_batch).all())
