"""Checkpoints of runs: one that is killed goes on after its last whole experience, to the same figures."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_contrastive import checkpoint
from avalanche_contrastive.bench.files import remove_checkpoint

CODE = ("avalanche_contrastive",)
COSTS = ("training", "evaluation", "memory")

Figures = list[Mapping[str, Any]]
Cost = dict[str, list[float]]


@functools.cache
def code_digest() -> str:
    """A digest of the code: results depend on it, and a commit does not show changes that are not committed."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[3]
    for path in sorted(path for folder in CODE for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}:".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Keeper:
    """Saves a run after each experience, and restores what an earlier process has saved of the same run.

    Methods whose state cannot be saved run without: that is said once.

    Args:
        path: of the checkpoint; None keeps nothing.
        run: all that decides the figures. A checkpoint of another run is not gone on with.
        say: is called with the number of experiences done, and with the reason why there is no checkpoint.
        began: when the run did, by ``time.perf_counter``.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any], say: Callable[..., None], *, began: float) -> None:
        self.path, self.say, self.began = path, say, began
        self.run = json.dumps({**run, "code": code_digest()}, sort_keys=True, default=str)

    def resume(self, strategy: Any, stream: Any) -> tuple[Figures, Cost]:
        """Restore a new strategy if there is a checkpoint; the figures and costs of the experiences done."""
        if self.path is None or not self.path.exists():
            return [], {}
        try:
            kept = checkpoint.extra_of(self.path)
            if not isinstance(kept, dict) or kept.get("run") != self.run:
                return [], {}
            figures, cost, seconds = _checked(kept, self.path)
            done = checkpoint.restore(strategy, self.path, stream=stream)
        except (checkpoint.CheckpointError, OSError) as error:  # the strategy is as it was
            self.say(0, *2 * (f"starts anew: {error}",))
            return [], {}
        if done != len(figures):
            raise ValueError(
                f"{self.path}: it has figures of {len(figures)} experiences, and a state of {done}. Remove it."
            )
        self.began -= seconds
        return figures, cost

    def save(self, strategy: Any, stream: Any, figures: Sequence[Mapping[str, Any]], cost: Mapping[str, Any]) -> None:
        """Save what is done; if that fails, the rest of the run has no checkpoints."""
        if self.path is None:
            return
        extra = {
            "run": self.run,
            "figures": [{name: float(value) for name, value in step.items()} for step in figures],
            "cost": {name: list(values) for name, values in cost.items()},
            "seconds": self.seconds(),
        }
        loggers, strategy.evaluator.loggers = strategy.evaluator.loggers, []  # which are of this process alone
        try:
            checkpoint.save(strategy, self.path, stream=stream, extra=extra)
        except (checkpoint.CheckpointError, OSError) as error:
            self.say(len(figures), *2 * (f"goes on without checkpoints: {error}",))
            remove_checkpoint(self.path)
            self.path = None
        finally:
            strategy.evaluator.loggers = loggers

    def seconds(self) -> float:
        """Seconds since the run began, without the time between its processes."""
        return time.perf_counter() - self.began


def _checked(kept: Mapping[str, Any], path: Path) -> tuple[Figures, Cost, float]:
    """Figures, costs and seconds that a checkpoint holds beside the state.

    Raises:
        CheckpointError: they are not of the types that `Keeper.save` writes.
    """
    figures: Any = kept.get("figures")
    cost: Any = kept.get("cost")
    seconds: Any = kept.get("seconds")
    is_right = type(figures) is list and type(cost) is dict and type(seconds) is float and {*cost} == {*COSTS}
    if is_right and all(type(step) is dict for step in figures) and all(type(each) is list for each in cost.values()):
        numbers = [
            *(value for step in figures for value in step.values()),
            *(n for each in cost.values() for n in each),
        ]
        if all(type(number) is float for number in numbers) and {len(each) for each in cost.values()} == {len(figures)}:
            return figures, cost, seconds
    raise checkpoint.CheckpointError(f"{path}: its figures, costs or seconds are damaged or forged.")
