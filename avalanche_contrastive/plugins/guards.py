"""What a method asks before it learns from anything: a refused batch leaves the model as it was."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.models.batch_renorm import BatchRenorm2D
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from avalanche_contrastive._checks import form_of
from avalanche_contrastive._rows import check_shared
from avalanche_contrastive._torch import tensors_in
from avalanche_contrastive.plugins.partners import check_copy, check_optimizer, check_partners, check_strategy
from avalanche_contrastive.tasks import PAIR, pair_codes

__all__ = ["Guards", "describe_failure", "position"]

SHOWN = 5  # rows of a batch, or classes, that a message names


class Guards:
    """Looks at every training batch and its loss.

    The batch, its labels and the loss are judged together by one number, read once per step, before the backward pass:
    each reading makes the host wait for the device. Until then a broken batch has moved nothing but batch statistics,
    which are put back.

    Attributes:
        is_current: which rows of the batch are of the current task's classes, (B,) bool.
        statistics: of the model's normalising layers: the live ones, and as they were before the batch.

    Args:
        name: of the plugin, begins every message.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._current: list[Any] = []
        self._seen: list[Any] = []
        # What a label may name, sorted: class ids, or codes of pairs with the task label. After them, for a label above
        # all, the last one once more; and which of them are the current task's.
        self._known, self._found = torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        self._new = self.is_current = torch.zeros(1, dtype=torch.bool)
        self.statistics: list[tuple[Tensor, Tensor]] = []
        self._labels: tuple[Tensor, Tensor, Tensor] | None = None  # of the batch: ids, codes, and the codes found

    def before_training(self, strategy: Any, refused: Mapping[type, str], *, first: bool, teacher: bool) -> None:
        """Refuse a strategy that a method cannot train with.

        Args:
            strategy: the one that trains.
            refused: kinds of plugins, with the reason.
            first: whether nothing has been trained yet: later the model may have grown past the optimiser's parameters.
            teacher: whether the model will be copied.
        """
        check_shared(strategy, self.name)
        check_partners(self.name, refused, strategy.plugins)
        check_strategy(
            self.name,
            model=strategy.model,
            optimizer=strategy.optimizer,
            train_mb_size=strategy.train_mb_size,
            train_epochs=strategy.train_epochs,
            eval_mb_size=strategy.eval_mb_size,
            criterion=strategy._criterion,
            plugins=strategy.plugins,
        )
        if first:
            check_optimizer(self.name, strategy)
        if first and teacher:
            check_copy(self.name, strategy.model)

    def begin(self, model: nn.Module, device: torch.device, current: list[Any], seen: list[Any]) -> None:
        """Before an experience: class ids, or pairs (task label, class id), of the current task and of earlier ones."""
        self._current, self._seen = current, seen
        known = _codes([*current, *seen])
        found, new = [*known, known[-1]], set(_codes(current))
        self._known, self._found = torch.tensor(known, device=device), torch.tensor(found, device=device)
        self._new = torch.tensor([code in new for code in found], device=device)
        layers = [module for module in model.modules() if isinstance(module, (_NormBase, BatchRenorm2D))]
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self.statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def end(self) -> None:
        """After an experience: hold nothing."""
        self._current, self._seen, self.statistics, self._labels = [], [], [], None

    def put_back(self) -> None:
        """A batch has been refused: the batch statistics are those from before it."""
        for live, kept in self.statistics:
            live.copy_(kept)

    def labels(self, strategy: Any, *, multi_head: bool) -> Tensor:
        """What tells the classes of the batch's rows apart, (B,): class ids, or codes of pairs with the task label.

        A row of an unknown class goes on as one of a known class, until `check` refuses it: looked up as it is, its
        label would fail without a place, or take the device with it.

        Raises:
            ValueError: labels that are no integers, or not one per image.
        """
        x, y, *others = strategy.mbatch
        first = [x] if isinstance(x, Tensor) else tensors_in(x)[:1]
        rows = [part.shape[0] for part in first if part.ndim > 0]
        rows += [len(x)] if isinstance(x, (list, tuple)) else []  # of tensors (B, ...), or of B samples
        is_right = isinstance(y, Tensor) and not y.is_floating_point() and y.ndim == 1
        if not is_right or (rows and y.shape[0] not in rows):
            raise ValueError(
                f"{self.name}: labels of {position(strategy)} must be integer class ids of shape "
                f"({rows[0] if rows else 'B'},), one per image, got {form_of(y)}. Are they one-hot or mixed, "
                "given as floats, or with an axis of their own? Then change them by a target transform."
            )
        y = y.long()
        codes = pair_codes(strategy.mb_task_id, y) if multi_head else y
        place = torch.searchsorted(self._known, codes)
        found, self.is_current = self._found.index_select(0, place), self._new.index_select(0, place)
        self._labels = y, codes, found
        strategy.mbatch = [x, found % PAIR if multi_head else found, *others]
        return found

    def check(self, strategy: Any, loss: Tensor, terms: Mapping[str, Tensor], views: Any = None) -> None:
        """Refuse a step from which nothing can be learned, before its gradient reaches the weights.

        Args:
            strategy: the one that trains.
            loss: scalar.
            terms: of the loss, by name.
            views: that were made of the batch.

        Raises:
            ValueError: images or labels, with experience, epoch, batch, and the rows.
            FloatingPointError: the loss, with the same and its terms.
        """
        assert self._labels is not None
        y, codes, found = self._labels
        total = loss.detach()
        inputs = strategy.mb_x if views is None else views  # what the model has seen
        for x in (inputs,) if isinstance(inputs, Tensor) else tensors_in(inputs):
            if x.is_floating_point():
                total = total + x.sum(dtype=torch.float32)  # finite where all values are, unless they are huge
        # On the CPU nobody has to wait for a value; elsewhere it is read with the others.
        all_known = torch.equal(codes, found) if codes.is_cpu else (codes == found).all()
        if all_known is not True:
            total = total / all_known  # by zero where a label is unknown
        if math.isfinite(total.item()):
            return
        self._check_images(strategy, strategy.mb_x, y, "images")
        self._check_images(strategy, views, y, "views that the augmentation made of the images")
        self._check_labels(strategy, y, codes == found)
        self._check_loss(strategy, loss, terms)

    def evaluated(self, strategy: Any) -> None:
        """Refuse broken images in evaluation, too: a figure that counts them would say nothing."""
        x, y, *others = strategy.mbatch
        if isinstance(y, Tensor) and not y.is_floating_point() and y.dtype != torch.long:  # criteria want 64 bits
            strategy.mbatch = [x, y.long(), *others]
        if not all(part.sum(dtype=torch.float32).isfinite() for part in tensors_in(x) if part.is_floating_point()):
            self._check_images(strategy, x, y, "images")

    def _check_images(self, strategy: Any, images: Any, y: Any, what: str) -> None:
        for x in tensors_in(images):
            if bool(x.isfinite().all()):
                continue
            broken = ~x.isfinite().flatten(1).all(dim=1) if x.ndim > 1 else ~x.isfinite()
            rows = broken.nonzero()[:, 0].tolist()
            first = x[rows[0]]
            label = f" (label {int(y[rows[0]])})" if isinstance(y, Tensor) and y.shape == (len(x),) else ""
            raise ValueError(
                f"{self.name}: {what} of {position(strategy)} are not finite: row{'s' * (len(rows) > 1)} "
                f"{listed(rows)} of the {len(x)} in the batch; row {rows[0]}{label} has {int(first.isnan().sum())} NaN "
                f"and {int(first.isinf().sum())} infinite values of {first.numel()}. Is a file damaged, or does a "
                "transform divide by zero? Nothing has been learned from this batch."
            )

    def _check_labels(self, strategy: Any, y: Tensor, known: Tensor) -> None:
        wrong = (~known).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{self.name}: labels of {position(strategy)} name classes that are in neither the current "
                f"({listed(self._current)}) nor the earlier ({listed(self._seen) or 'none'}) experiences: row "
                f"{wrong[0]} of the batch has {int(y[wrong[0]])}, and {len(wrong)} of {len(y)} rows are so. Does the "
                "dataset give other labels than its `targets` say, by a target transform perhaps?"
            )

    def _check_loss(self, strategy: Any, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        if math.isfinite(loss.item()):
            return
        parts = ", ".join(f"{key} {float(value):.4g}" for key, value in terms.items())
        rates = sorted({group["lr"] for group in strategy.optimizer.param_groups})
        largest = max((float(part.float().abs().max()) for part in tensors_in(strategy.mb_x)), default=math.nan)
        raise FloatingPointError(
            f"{self.name}: the loss of {position(strategy)} is {loss.item()} ({parts}), though all images are finite "
            f"(largest value {largest:.4g}): the model has diverged. Is the learning rate "
            f"({', '.join(f'{float(rate):g}' for rate in rates)}) too high? This step has not been taken: the weights "
            "are those after the one before."
        )


def _codes(classes: list[Any]) -> list[int]:
    return sorted({c[0] * PAIR + c[1] if isinstance(c, tuple) else c for c in classes})


def position(strategy: Any) -> str:
    """Where a strategy is in its stream, for an error; all is counted from 0, as in Avalanche's own output."""
    clock = strategy.clock
    experience = getattr(strategy.experience, "current_experience", clock.train_exp_counter)
    if not strategy.is_training:
        return f"evaluation of experience {experience}"
    epoch, batch = clock.train_exp_epochs, clock.train_epoch_iterations
    return f"experience {experience}, epoch {epoch}, batch {batch} (counted from 0)"


def listed(values: list[Any]) -> str:
    """The first few of many values."""
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def describe_failure(error: Exception, name: str, strategy: Any) -> None:
    """Add to an error of the model where it was, and of what batch."""
    inputs = [form_of(x) for x in tensors_in(strategy.mb_x)] or [type(strategy.mb_x).__name__]
    types = sorted({str(parameter.dtype) for parameter in strategy.model.parameters()})
    hint = ""
    if isinstance(strategy.mb_x, Tensor) and types and str(strategy.mb_x.dtype) not in types:
        hint = " Is that type meant, or does the transform lack a ToTensor or a .float()?"
    error.add_note(
        f"  {name}: this was in {position(strategy)}. The model's input was {', '.join(inputs)}, its parameters are "
        f"{', '.join(types) or 'none'}.{hint}"
    )
