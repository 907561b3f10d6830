"""The learning-rate schedules and epochs per experience of the papers, restarted exactly at each experience."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.plugins.strategy_plugin import SupervisedPlugin

from avalanche_contrastive._checks import check_choice, check_count, check_flag, check_positive, check_weight

__all__ = ["ExperienceSchedule"]

NAME = "ExperienceSchedule"
BASE = "base_lr"  # key in a parameter group, where torch's schedulers keep theirs too: optimiser state dicts carry it


class ExperienceSchedule(SupervisedPlugin[Any]):
    """Sets the learning rate before every step, and the number of epochs of each experience where ``epochs`` is given.

    The base rate of a parameter group is the one it has when the experience begins. Afterwards it is put back, so
    that every experience starts from the optimiser's own rate and nothing leaks into whatever comes next; so are the
    strategy's ``train_epochs``. Everything else follows from ``strategy.clock``: the schedule has no counter of its
    own. After an error inside an experience the next ``train`` call puts both back first.

    Co2L on Seq-CIFAR-10 is ``ExperienceSchedule("cosine", epochs=(500, 100), warmup_epochs=10)`` with a rate of 0.5,
    SS-IL ``("steps", epochs=100, milestones=(40, 80), by_experience=True)`` with 0.1, CSD ``("steps", epochs=800,
    milestones=(200, 400, 600), later=0.01, reset_optimizer=True)`` with Adam at 0.001.

    Args:
        shape: "constant"; "cosine", by epochs counted from 1 as in Co2L's code, floor * base + (1 - floor) * base *
            (1 + cos(pi * epoch / epochs)) / 2; or "steps", times ``gamma`` after each of the ``milestones``.
        epochs: of every experience, or (of the first, of the later ones); None leaves the strategy's alone.
        warmup_epochs: epochs in which the rate rises by equal amounts per iteration, from ``warmup_from`` to what the
            shape gives at the end of them.
        warmup_from: the rate before the warm-up, absolute (Co2L's code has 0.01). In later experiences whose rate is
            lower than that the warm-up is flat.
        warmup_peak: "own" ends the first experience's warm-up at what the shape gives by its own epochs; "later" at
            what it gives by the epochs of the later experiences, as Co2L's code does (0.4878 in place of 0.4995 on
            CIFAR-10, for a rate of 0.5). The first epoch after the warm-up then has a small jump.
        floor: of the cosine, as a share of the base rate.
        milestones: of "steps", epochs after which the rate is multiplied by ``gamma``.
        gamma: of "steps".
        later: factor on the base rate from the second experience on.
        by_experience: divide the base rate by the number of the experience, counted from 1 (SS-IL).
        reset_optimizer: empty the optimiser's state (momentum, Adam's moments) when an experience begins.
    """

    def __init__(
        self,
        shape: Literal["constant", "cosine", "steps"] = "constant",
        *,
        epochs: int | Sequence[int] | None = None,
        warmup_epochs: int = 0,
        warmup_from: float = 0.01,
        warmup_peak: Literal["own", "later"] = "own",
        floor: float = 1e-3,
        milestones: Sequence[int] = (),
        gamma: float = 0.1,
        later: float = 1.0,
        by_experience: bool = False,
        reset_optimizer: bool = False,
    ) -> None:
        super().__init__()
        check_choice(NAME, "shape", shape, ("constant", "cosine", "steps"))
        check_choice(NAME, "warmup_peak", warmup_peak, ("own", "later"))
        check_count(NAME, 0, warmup_epochs=warmup_epochs)
        check_weight(NAME, warmup_from=warmup_from, floor=floor)
        check_positive(NAME, gamma=gamma, later=later)
        check_flag(NAME, by_experience=by_experience, reset_optimizer=reset_optimizer)
        if floor > 1:
            raise ValueError(f"{NAME}: floor is a share of the base rate in [0, 1], got {floor!r}. Is it a rate?")
        self.supports_distributed = True
        self.shape = shape
        self.epochs = _pair(epochs)
        if warmup_peak == "later" and (self.epochs is None or warmup_epochs == 0):
            raise ValueError(
                f"{NAME}: warmup_peak='later' needs the epochs of the first and of the later experiences, "
                f"epochs=(first, later), and warmup_epochs, got epochs={epochs!r} and warmup_epochs={warmup_epochs!r}."
            )
        self.warmup_epochs, self.warmup_from, self.floor = warmup_epochs, warmup_from, floor
        self.warmup_peak = warmup_peak
        self.milestones, self.gamma = _milestones(shape, milestones), gamma
        self.later, self.by_experience, self.reset_optimizer = later, by_experience, reset_optimizer
        self._replaced: tuple[int, int] | None = None  # (the user's train_epochs, ours), within an experience
        for count in self.epochs or ():
            self._check_epochs(count)

    def rate(self, base: float, experience: int, epoch: int, epochs: int, share: float = 0.0) -> float:
        """The learning rate of a step.

        Args:
            base: the base rate.
            experience: its number, counted from 0.
            epoch: counted from 1.
            epochs: of the experience.
            share: of the epoch that is done, in [0, 1); matters in the warm-up only.
        """
        peak = base * (self.later if experience > 0 else 1.0) / (experience + 1 if self.by_experience else 1)
        if epoch > self.warmup_epochs:
            return self._shape_at(peak, epoch, epochs)
        if self.warmup_peak == "later" and self.epochs is not None:
            epochs = self.epochs[1]
        end = self._shape_at(peak, self.warmup_epochs, epochs)
        start = min(self.warmup_from, end)
        return start + (end - start) * (epoch - 1 + share) / self.warmup_epochs

    def _shape_at(self, peak: float, epoch: int, epochs: int) -> float:
        if self.shape == "cosine":
            low = self.floor * peak
            return low + (peak - low) / 2 * (1 + math.cos(math.pi * epoch / epochs))
        return peak * self.gamma ** sum(epoch > milestone for milestone in self.milestones)

    # ---- in the training loop

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a second schedule; undo what a call that failed has left."""
        for other in strategy.plugins:
            if other is not self and isinstance(other, (ExperienceSchedule, LRSchedulerPlugin)):
                raise ValueError(
                    f"{NAME}: {type(other).__name__} sets the learning rate of the same optimiser, and the two would "
                    "overwrite each other. Use one of them."
                )
        self._put_back(strategy)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Set the number of epochs, before any plugin's ``before_training_exp`` may read it."""
        if self.epochs is not None:
            epochs = self.epochs[min(strategy.clock.train_exp_counter, 1)]
            self._replaced = (strategy.train_epochs, epochs)
            strategy.train_epochs = epochs
        self._check_epochs(strategy.train_epochs)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note the base rates; empty the optimiser's state where ``reset_optimizer`` asks for it."""
        for number, group in enumerate(strategy.optimizer.param_groups):
            base = group.setdefault(BASE, group["lr"])
            self._check_warmup(strategy, number, base)
        if self.reset_optimizer:
            strategy.optimizer.state.clear()

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the rate of the step."""
        clock, share = strategy.clock, 0.0
        epoch = clock.train_exp_epochs + 1
        if epoch <= self.warmup_epochs:
            share = clock.train_epoch_iterations / self._iterations(strategy)
        for group in strategy.optimizer.param_groups:
            base = group.setdefault(BASE, group["lr"])  # a group may have come within the experience
            group["lr"] = self.rate(base, clock.train_exp_counter, epoch, strategy.train_epochs, share)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Put the base rates and the user's number of epochs back."""
        self._put_back(strategy)

    def _put_back(self, strategy: Any) -> None:
        for group in strategy.optimizer.param_groups:
            if BASE in group:
                group["lr"] = group.pop(BASE)
        if self._replaced is not None:
            users, ours = self._replaced
            if strategy.train_epochs == ours:  # else the user has set another number after an error
                strategy.train_epochs = users
            self._replaced = None

    # ---- checks

    def _check_epochs(self, epochs: int) -> None:
        if self.warmup_epochs > 0 and self.warmup_epochs >= epochs:
            raise ValueError(
                f"{NAME}: warmup_epochs must be fewer than the epochs of each experience, got {self.warmup_epochs} of "
                f"{epochs}. Were the epochs cut and the warm-up not?"
            )
        if self.milestones and self.milestones[-1] >= epochs:
            raise ValueError(
                f"{NAME}: milestones must lie before the last epoch of each experience, got {self.milestones[-1]} with "
                f"{epochs} epochs. Were the epochs cut and the milestones not?"
            )

    def _check_warmup(self, strategy: Any, number: int, base: float) -> None:
        if self.warmup_epochs == 0 or strategy.clock.train_exp_counter > 0:
            return
        end = self.rate(base, 0, self.warmup_epochs, strategy.train_epochs, 1.0)
        if self.warmup_from > end:
            raise ValueError(
                f"{NAME}: the warm-up would lead down, from warmup_from = {self.warmup_from} to {end:.6g} (parameter "
                f"group {number}, base rate {base}). Give a warmup_from below the optimiser's rate."
            )

    @staticmethod
    def _iterations(strategy: Any) -> int:
        try:
            return len(strategy.dataloader)
        except TypeError as error:
            raise ValueError(
                f"{NAME}: the warm-up needs the number of iterations of an epoch, but the training loader, "
                f"{type(strategy.dataloader).__name__}, has no length. Leave warmup_epochs out."
            ) from error


def _pair(epochs: int | Sequence[int] | None) -> tuple[int, int] | None:
    if epochs is None:
        return None
    counts = tuple(epochs) if isinstance(epochs, (list, tuple)) else (epochs, epochs)
    if len(counts) != 2:
        raise ValueError(
            f"{NAME}: epochs must be a number or a pair, (of the first experience, of the later ones), got {epochs!r}."
        )
    for count in counts:
        check_count(NAME, 1, epochs=count)
    return counts


def _milestones(shape: str, milestones: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(milestones, (list, tuple)):
        raise ValueError(f"{NAME}: milestones must be a list of epochs, got {milestones!r}.")
    if (shape == "steps") != bool(milestones):
        raise ValueError(
            f"{NAME}: milestones are the epochs of shape 'steps' and of no other, got shape {shape!r} with milestones "
            f"{list(milestones)}."
        )
    for milestone in milestones:
        check_count(NAME, 1, milestones=milestone)
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"{NAME}: milestones must ascend, got {list(milestones)}.")
    return tuple(milestones)
