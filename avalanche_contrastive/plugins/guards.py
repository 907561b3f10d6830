"""What a training step needs, looked at before it changes anything: a refused batch leaves the model as it was."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule
from torch import Tensor, nn

from avalanche_contrastive._checks import came, check_count

SHOWN = 5  # rows of a batch, or classes, that a message names


def position(strategy: Any) -> str:
    """Where a strategy is in its stream, for an error; all is counted from 0, as in Avalanche's own output."""
    clock = strategy.clock
    experience = getattr(strategy.experience, "current_experience", clock.train_exp_counter)
    if not strategy.is_training:
        return f"evaluation of experience {experience}"
    epoch, batch = clock.train_exp_epochs, clock.train_epoch_iterations
    return f"experience {experience}, epoch {epoch}, batch {batch} (counted from 0)"


def check_finite(name: str, where: str, x: Any, y: Any, what: str = "images") -> None:
    """Refuse a batch with a value that is NaN or infinite.

    Args:
        name: begins the message.
        where: ``position``.
        x: images, (B, ...); what is no tensor of floats is not looked at.
        y: labels, (B,).
        what: the images, in words.

    Raises:
        ValueError: with experience, epoch, batch, and the rows.
    """
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return
    total = x.sum() if x.is_complex() else x.sum(dtype=torch.float32)
    # One pass over the batch; only what looks bad (or is huge) is looked at value by value.
    if math.isfinite(abs(total.item())) or bool(x.isfinite().all()):
        return
    broken = ~x.isfinite().flatten(1).all(dim=1) if x.ndim > 1 else ~x.isfinite()
    rows = broken.nonzero()[:, 0].tolist()
    first = x[rows[0]]
    label = f" (label {int(y[rows[0]])})" if isinstance(y, Tensor) and y.shape == (len(x),) else ""
    raise ValueError(
        f"{name}: {what} of {where} are not finite: row{'s' * (len(rows) > 1)} {listed(rows)} of the "
        f"{len(x)} in the batch; row {rows[0]}{label} has {int(first.isnan().sum())} NaN and "
        f"{int(first.isinf().sum())} infinite values of {first.numel()}. Is a file damaged, or does a transform divide "
        "by zero? Nothing has been learned from this batch."
    )


def listed(values: list[int]) -> str:
    """The first few of many numbers."""
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


class LabelCheck:
    """Refuses labels that are no class ids, or none of the current or an earlier experience."""

    def __init__(self) -> None:
        self._of: tuple[int, tuple[int, ...]] = (-1, ())
        self._classes = torch.zeros(0, dtype=torch.long)

    def __call__(self, name: str, where: str, y: Any, rows: int, current: list[int], seen: list[int]) -> None:
        """Check the labels of a batch of ``rows`` samples against the class ids.

        Raises:
            ValueError: with experience, epoch, batch, and the rows.
        """
        if not isinstance(y, Tensor) or y.shape != (rows,) or y.dtype.is_floating_point or y.dtype == torch.bool:
            raise ValueError(
                f"{name}: labels of {where} must be integer class ids of shape ({rows},), one per image, "
                f"got {came(y)}. Are they one-hot or mixed, or given as floats?"
            )
        of = (len(seen), tuple(current))
        if of != self._of or self._classes.device != y.device:
            self._of, self._classes = of, torch.tensor(sorted({*current, *seen}), device=y.device)
        known = torch.isin(y, self._classes)
        if not bool(known.all()):
            wrong = (~known).nonzero()[:, 0].tolist()
            raise ValueError(
                f"{name}: labels of {where} name classes that are in neither the current "
                f"({listed(current)}) nor the earlier ({listed(seen) or 'none'}) experiences: row {wrong[0]} of the "
                f"batch has {int(y[wrong[0]])}, and {len(wrong)} of {rows} rows are so. Does the dataset give other "
                "labels than its `targets` say, by a target transform perhaps?"
            )


def check_loss(name: str, where: str, strategy: Any, loss: Tensor, terms: dict[str, Tensor]) -> None:
    """Refuse a loss from which nothing can be learned, before its gradient reaches the weights.

    Raises:
        FloatingPointError: with experience, epoch, batch, and the terms.
    """
    if math.isfinite(loss.item()):
        return
    parts = ", ".join(f"{key} {float(value):.4g}" for key, value in terms.items())
    rates = sorted({group["lr"] for group in strategy.optimizer.param_groups})
    largest = float(strategy.mb_x.abs().max()) if isinstance(strategy.mb_x, Tensor) else float("nan")
    raise FloatingPointError(
        f"{name}: the loss of {where} is {loss.item()} ({parts}), though all images are finite (largest "
        f"value {largest:.4g}): the model has diverged. Is the learning rate "
        f"({', '.join(f'{float(rate):g}' for rate in rates)}) too high? This step has not been taken: the weights are "
        "those after the one before."
    )


def check_optimizer(name: str, strategy: Any) -> None:
    """Refuse an optimiser with which this model cannot learn, or not what was meant.

    Raises:
        ValueError: it holds no parameter of the model, or has a learning rate that is no rate; or no parameter wants a
            gradient.
    """
    groups, model = strategy.optimizer.param_groups, strategy.model
    if wrong := [group["lr"] for group in groups if not 0 <= float(group["lr"]) < math.inf]:
        raise ValueError(f"{name}: the optimiser's learning rate must be a finite number >= 0, got {float(wrong[0])}.")
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"{name}: none of the {len(parameters)} parameters of {type(model).__name__} wants a gradient, so nothing "
            "would be learned. Is it frozen (requires_grad_(False)), or a teacher?"
        )
    # Avalanche would add the model's to a foreign optimiser without a word. Heads that grow may have new ones by now.
    held = {id(parameter) for group in groups for parameter in group["params"]}
    growing = {id(p) for m in model.modules() if isinstance(m, DynamicModule) for p in m.parameters()}
    fixed = [parameter for parameter in parameters if id(parameter) not in growing]
    if fixed and not any(id(parameter) in held for parameter in fixed):
        raise ValueError(
            f"{name}: the optimiser holds none of the {len(fixed)} parameters of this {type(model).__name__}. Was it "
            "made for another model, or for a copy? Make it of model.parameters()."
        )


def check_template(
    name: str,
    *,
    model: Any,
    optimizer: Any,
    train_mb_size: int,
    train_epochs: int,
    eval_mb_size: int | None,
    criterion: Any,
    plugins: Any,
    **others: Any,
) -> None:
    """Refuse what Avalanche takes, and only fails at later or trains nothing with.

    Raises:
        TypeError: no model, optimiser, criterion or list of plugins.
        ValueError: no samples per step, or no epochs.
    """
    if not isinstance(model, nn.Module):
        came = getattr(model, "__name__", type(model).__name__)
        raise TypeError(f"{name}: model must be a torch module, got {came}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        came = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise TypeError(f"{name}: optimizer must be a torch optimiser of the model's parameters, got {came}.")
    check_count(name, 1, train_mb_size=train_mb_size, train_epochs=train_epochs)
    if eval_mb_size is not None:
        check_count(name, 1, eval_mb_size=eval_mb_size)
    if not callable(criterion):
        raise TypeError(f"{name}: criterion must be callable, got {type(criterion).__name__}.")
    if plugins is not None:
        _check_plugins(name, plugins)


def _check_plugins(name: str, plugins: Any) -> None:
    if not isinstance(plugins, Sequence):
        raise TypeError(f"{name}: plugins must be a list of plugins, got {type(plugins).__name__}.")
    for number, plugin in enumerate(plugins):
        if plugin is None or isinstance(plugin, type):
            came = "None" if plugin is None else f"the class {plugin.__name__} itself: make one of it"
            raise TypeError(f"{name}: plugins[{number}] must be a plugin, got {came}.")


class Witness:
    """A forward hook that speaks only when the forward pass fails: the error then says where, and of what batch."""

    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Add a note to the error under way."""
        error = sys.exception()
        if output is not None or error is None or not args:
            return
        x, types = args[0], sorted({str(parameter.dtype) for parameter in module.parameters()})
        hint = ""
        if isinstance(x, Tensor) and types and str(x.dtype) not in types:
            hint = " Is that type meant, or does the transform lack a ToTensor or a .float()?"
        error.add_note(
            f"  {self.name}: this was in {self.where}. The model's input was {came(x)}, its parameters are "
            f"{', '.join(types) or 'none'}.{hint}"
        )
