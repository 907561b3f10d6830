"""Views of a training batch, drawn where the model is called."""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.templates.problem_type.supervised_problem import SupervisedProblem
from torch import Tensor, nn

from avalanche_contrastive._torch import compiled_in_place, map_tensors, tensors_in
from avalanche_contrastive.data import stack_views

__all__ = ["Drawn", "is_plain", "plain_forward", "run_on", "views_of"]


Drawn = list[tuple[Any, int, Any]]  # batches as they were, and their views


def views_of(drawn: Drawn, augmentation: Callable[[Any], Any], views: int, x: Any) -> Any:
    """Views of a batch, (B, V, ...): the same ones, however often they are wanted within an iteration.

    Args:
        drawn: the views of this iteration so far; new ones are added.
        augmentation: maps a batch to one of the same shape, drawing for each image on its own.
        views: V.
        x: the batch, (B, ...), or a dictionary or tuple of tensors.
    """
    version = getattr(x, "_version", 0)  # a plugin may change the batch in place
    for batch, known, stacked in drawn:
        if (batch is x and known == version) or (batch is not x and _equal(batch, x)):
            return stacked
    if isinstance(x, Tensor):
        stacked = stack_views(x, augmentation, views)
    else:
        stacked = _stacked([augmentation(x) for _ in range(views)])
    drawn.append((x, version, stacked))
    return stacked


def plain_forward(strategy: Any) -> Any:
    """Avalanche's forward pass of a model without heads, which takes no task labels.

    Avalanche's own asks the experience in every batch whether it has them, which costs as much as a small layer.
    """
    return strategy.model(strategy.mb_x)


def is_plain(forward: Callable[[], Any]) -> bool:
    """Whether a strategy's forward pass is `plain_forward`: the model is called once, and what it gives is returned."""
    return getattr(forward, "__func__", None) is plain_forward


def run_on(make: Callable[[Any], Any], strategy: Any, forward: Callable[[], Any]) -> Any:
    """A strategy's forward pass in which the model gets what is made of its input.

    Args:
        make: maps what the model would get to what it gets.
        strategy: its model is called.
        forward: the pass.
    """
    if is_plain(forward):
        return strategy.model(make(strategy.mb_x))
    if getattr(forward, "__func__", None) is SupervisedProblem.forward or compiled_in_place(strategy.model):
        batch = strategy.mbatch
        strategy.mbatch = [make(batch[0]), *batch[1:]]
        try:
            return forward()
        finally:
            strategy.mbatch = batch

    def give(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (make(args[0]), *args[1:])

    # A forward pass of the user's own makes something of the batch first, or takes a part of it: only the call of the
    # model shows what its input is.
    handle = strategy.model.register_forward_pre_hook(give)
    try:
        return forward()
    finally:
        handle.remove()


def _equal(one: Any, other: Any) -> bool:
    """Whether two batches hold the same: a process cuts its rows out anew, and so may a forward pass of the user's."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _stacked(views: list[Any]) -> Any:
    """The first view, with each of its tensors replaced by those of all views, (B, V, ...)."""
    tensors = zip(*map(tensors_in, views), strict=True)
    return map_tensors(lambda _: torch.stack(next(tensors), dim=1), views[0])
