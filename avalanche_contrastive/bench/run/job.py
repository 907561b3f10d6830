"""One run to be done, and what is called with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import Config

Key = tuple[str, int, bool]  # what tells the runs of one call apart: name, seed, validation
Report = Callable[..., None]  # share done in [0, 1], where the run stands in words, and the milestone it has reached
Outcome = dict[str, Any] | str  # a result, or what went wrong


@dataclass(frozen=True)
class Job:
    """One run to be done; `key` is for whoever asked for it, `checkpoint` is where a killed run goes on from."""

    name: str
    config: Config
    seed: int
    validation: bool = False
    device: str = "cpu"
    root: str = ""
    key: Any = None
    checkpoint: Path | None = None
    logs: Any = None  # a `Logs`

    @property
    def id(self) -> Key:
        """What tells the runs of one call apart."""
        return self.name, self.seed, self.validation

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.name} seed {self.seed}"


Work = Callable[[Job, Report], dict[str, Any]]
Write = Callable[[Job, dict[str, Any]], None]


def last_line(text: str) -> str:
    """Of a traceback: the first line of the exception, without its notes; of any other text its last line."""
    lines = text.strip().splitlines()
    if not lines[0].startswith("Traceback"):
        return [line for line in lines if not line.startswith(" ")][-1]
    last_frame = max(number for number, line in enumerate(lines) if line.startswith(("Traceback", "  File ")))
    return next((line for line in lines[last_frame + 1 :] if not line.startswith(" ")), lines[-1])
