"""Where the metrics of a run go while it trains, for --log: CSV files, TensorBoard, Weights & Biases."""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import BaseLogger, CSVLogger, TensorboardLogger
from torch.utils.tensorboard import SummaryWriter

from avalanche_contrastive.parallel.joining import is_main_process

PROJECT = "avalanche-contrastive"
# File of CSVLogger, and the column that has the number of the training experience.
CSV_FILES = {"training_results.csv": 0, "eval_results.csv": 1}


@dataclass(frozen=True)
class Logs:
    """What a run logs to, and its folder for that: a run that goes on after a kill goes on with its logs, too."""

    kinds: tuple[str, ...]
    folder: Path


def check_logs(kinds: tuple[str, ...]) -> None:
    """Refuse what cannot be logged to.

    Raises:
        ValueError: something is not installed, or W&B has no key.
    """
    for kind in ("tensorboard", "wandb"):
        if kind in kinds and find_spec(kind) is None:
            raise ValueError(f"--log {kind}: {kind} is not installed: pip install {kind}")
    if "wandb" in kinds and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.login(prompt=False):
            raise ValueError("--log wandb: no API key. Give `wandb login` once, or set WANDB_MODE=offline")


def log_metrics() -> list[Any]:
    """What loggers show beside the metrics that every run has."""
    return [
        accuracy_metrics(epoch=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True),
    ]


@contextmanager
def logging(logs: Logs | None, strategy: Any, done: int, about: Mapping[str, Any]) -> Iterator[None]:
    """Log what the strategy's evaluator measures.

    Args:
        logs: where to; None: nowhere.
        strategy: of the run, at the point where it goes on.
        done: experiences; their logs are kept, anything else in the folder is of an earlier run and removed.
        about: the run's config.
    """
    if logs is None or not is_main_process():
        yield
        return
    if not done and logs.folder.exists():
        shutil.rmtree(logs.folder)
    logs.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        loggers: list[BaseLogger] = []
        if "csv" in logs.kinds:
            loggers.append(AppendedCSV(logs.folder, done))
        if "tensorboard" in logs.kinds:
            loggers.append(AppendedTensorboard(logs.folder, strategy.clock.train_iterations))
        if "wandb" in logs.kinds:
            loggers.append(WandbLogger(logs.folder, about))
        for logger in loggers:
            stack.callback(logger.close)
        strategy.evaluator.loggers = loggers
        yield


class AppendedCSV(CSVLogger):
    """Avalanche's CSV files, with the rows of the experiences that are done: it would begin new files."""

    def __init__(self, folder: Path, done: int):
        kept = {name: _rows(folder / name, column, done) for name, column in CSV_FILES.items()}
        super().__init__(str(folder))
        for file, rows in zip((self.training_file, self.eval_file), kept.values(), strict=True):
            file.writelines(rows)
            file.flush()


def _rows(path: Path, column: int, done: int) -> list[str]:
    lines = path.read_text().splitlines(keepends=True)[1:] if path.is_file() else []
    return [line for line in lines if line.endswith("\n") and int(line.split(",")[column]) < done]


class AppendedTensorboard(TensorboardLogger):
    """Avalanche's, which hides what a killed process has logged after the training iterations that are done."""

    def __init__(self, folder: Path, step: int):
        self.step = step
        super().__init__(folder)

    def _make_writer(self, tb_log_dir: str | Path, filename_suffix: str) -> Any:
        return SummaryWriter(
            tb_log_dir, filename_suffix=filename_suffix, purge_step=self.step + 1 if self.step else None
        )

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WandbLogger(BaseLogger):
    """Numbers to Weights & Biases; Avalanche 0.6's logger fails on its present versions.

    Args:
        folder: keeps the id of the run, so that one that goes on is one run there; W&B's own files are in it too.
        about: the run's config.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        super().__init__()
        import wandb

        note = folder / "wandb-id.txt"
        if not note.is_file():
            note.write_text(uuid.uuid4().hex[:12])
        self.run = wandb.init(
            project=PROJECT,
            group=about["suite"],
            name=folder.name,
            id=note.read_text(),
            resume="allow",
            dir=folder,
            config=dict(about),
            settings=wandb.Settings(silent=True),
        )
        self.run.define_metric("*", step_metric="iteration")

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """A number, at the training iteration ``x_plot``; W&B's own steps could not go back after a kill."""
        if isinstance(value, (int, float)):
            self.run.log({name: value, "iteration": x_plot})

    def close(self) -> None:
        """End the run."""
        self.run.finish()
