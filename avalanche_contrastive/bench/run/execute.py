"""One run: a config and a seed in, a dictionary of figures out. Knows nothing of files, tables or processes."""

import importlib
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive._version import __version__
from avalanche_contrastive.bench.config import Config
from avalanche_contrastive.bench.data.kinds import Stream
from avalanche_contrastive.bench.report.stats import (
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    learning_accuracy,
    seen_accuracy,
)
from avalanche_contrastive.bench.results import fingerprint
from avalanche_contrastive.bench.run.build import build, check, steps_of, stream_of
from avalanche_contrastive.bench.run.compatible import compatibility_figures
from avalanche_contrastive.bench.run.job import Job, Report
from avalanche_contrastive.bench.run.logs import Logs, log_metrics, logging
from avalanche_contrastive.bench.run.measure import PeakMemory, autocast, clock, describe_device, device_of
from avalanche_contrastive.bench.run.resume import COSTS, Keeper
from avalanche_contrastive.metrics.base import MatrixValue
from avalanche_contrastive.parallel.joining import processes


def execute(
    config: Config,
    seed: int,
    *,
    validation: bool = False,
    device: str = "cpu",
    root: str = "",
    report: Report | None = None,
    checkpoint: Path | None = None,
    logs: Logs | None = None,
) -> dict[str, Any]:
    """Train through the stream, evaluate on all of it after each experience.

    Args:
        config: what to run.
        seed: of the weights, the batches and the class order.
        validation: evaluate on held-out training images, not on the test images.
        device: "cpu", "cuda", or "auto" for the one that is there.
        root: folder of downloaded data sets; "": Avalanche's.
        report: is called as the run goes on.
        checkpoint: saved after each experience but the last, and gone on with if it is of the same run; the caller
            removes it when the result is safe.
        logs: where the metrics go during the run.

    Returns:
        Figures and provenance, ready for JSON.

    Raises:
        ValueError: something in the config that is not possible; see `check`.
    """
    began = time.perf_counter()
    check(config)
    place = device_of(device)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    RNGManager.set_random_seeds(seed)
    stream = stream_of(config, seed, validation=validation, root=root)
    built = build(config, stream, place, report, log_metrics() if logs else ())
    steps = steps_of(config, stream.benchmark)

    def say(done: int, *words: str) -> None:
        if report is not None:
            report(done / len(steps), *words)

    keeper = Keeper(checkpoint, _decisive(config, seed, validation, place), say, began=began)
    with autocast(config.precision, place):
        figures, cost = _train_and_evaluate(config, built.strategy, stream, steps, PeakMemory(place), keeper, logs)
    found = matrices(figures, len(stream.counts))
    return {
        "config": config.as_dict(),
        "seed": seed,
        "evaluated_on": "validation" if validation else "test",
        **_facts(stream),
        "readout": built.readout,
        **summary(found, stream.counts),
        **_of_some(config, stream, figures, built.strategy, found),
        **_together(cost),
        "seconds_total": round(keeper.seconds(), 3),
        "device": describe_device(place),
        "versions": versions(),
    }


def _of_some(
    config: Config,
    stream: Stream,
    figures: Sequence[Mapping[str, Any]],
    strategy: Any,
    found: Mapping[str, list[list[float]] | None],
) -> dict[str, Any]:
    """The figures that only some runs have."""
    return {
        **({"evaluations": by_rotation(found, stream.counts)} if stream.angles else {}),
        **({"metrics": own_figures(config, figures, len(stream.counts))} if config.metrics else {}),
        **({"compatibility": compatibility_figures(strategy)} if stream.unseen else {}),
    }


def _facts(stream: Stream) -> dict[str, Any]:
    """What a result says of its stream."""
    return {
        "stream": stream.description,
        "class_order": stream.class_order,
        "experience_classes": stream.experience_classes,
        "class_names": list(stream.class_names),
        **({"angles": stream.angles} if stream.angles else {}),
    }


def run_job(job: Job, report: Report) -> dict[str, Any]:
    """`execute` of a job."""
    return execute(
        job.config,
        job.seed,
        validation=job.validation,
        device=job.device,
        root=job.root,
        report=report,
        checkpoint=job.checkpoint,
        logs=job.logs,
    )


def _together(cost: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run cost; of a run by several processes also their number and backend."""
    if processes() == 1:
        return cost
    return {
        **cost,
        "processes": processes(),
        "backend": torch.distributed.get_backend(),
        "peak_memory_of": f"{cost['peak_memory_of']}, of the first process",
    }


def _train_and_evaluate(
    config: Config,
    strategy: Any,
    stream: Stream,
    steps: Sequence[Any],
    peak: PeakMemory,
    keeper: Keeper,
    logs: Logs | None,
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The metrics after each step, and what the steps cost."""
    # All data that a checkpoint may name: a metric holds the unseen ones.
    data = [*stream.benchmark.train_stream, *(SimpleNamespace(dataset=half) for half in stream.unseen or ())]
    figures, cost = keeper.resume(strategy, data)
    cost = cost or {name: [] for name in COSTS}
    loading = {"drop_last": True} if config.drop_last else {}
    with logging(logs, strategy, len(figures), config.as_dict()):
        for step in steps[len(figures) :]:
            peak.start()
            start = clock(peak.device)
            strategy.train(step, **loading)
            trained = clock(peak.device)
            values = strategy.eval(stream.benchmark.test_stream)
            figures.append({name: value for name, value in values.items() if not isinstance(value, MatrixValue)})
            cost["training"].append(round(trained - start, 3))
            cost["evaluation"].append(round(clock(peak.device) - trained, 3))
            cost["memory"].append(round(peak.stop(), 1))
            if len(figures) < len(steps):
                done = f"experience {len(figures)}/{len(steps)}"
                keeper.say(len(figures), done, f"{done} · {_so_far(figures, stream.counts, start)}")
                keeper.save(strategy, data, figures, cost)
    return figures, {
        "seconds_per_experience": {"training": cost["training"], "evaluation": cost["evaluation"]},
        "seconds_training": round(sum(cost["training"]), 3),
        "peak_memory_mib": cost["memory"],
        "peak_memory_of": peak.kind,
    }


def _so_far(figures: Sequence[Mapping[str, Any]], counts: list[int], start: float) -> str:
    """Accuracy on all classes seen so far, and the seconds of the last experience."""
    done = len(figures)
    seen = seen_accuracy([[_figure(figures[-1], "Top1_Acc_Exp/", f"/Exp{j:03d}") for j in range(done)]], counts[:done])
    return f"accuracy {100 * seen[-1]:.1f} so far · {time.perf_counter() - start:.1f} s"


def _decisive(config: Config, seed: int, validation: bool, device: torch.device) -> dict[str, Any]:
    """Everything that decides the figures of a run, except the code."""
    return {
        "config": config.as_dict(),
        "seed": seed,
        "validation": validation,
        "device": describe_device(device),
        "versions": versions(),
        "files": fingerprint(config),
    }


def matrices(figures: Sequence[Mapping[str, Any]], experiences: int) -> dict[str, list[list[float]] | None]:
    """R[i][j] of each metric that has one: its value on experience j after training step i."""

    def matrix(start: str) -> list[list[float]] | None:
        is_there = any(name.startswith(start) for name in figures[0])
        return _matrix(figures, start, experiences) if is_there else None

    return {
        "accuracy_matrix": matrix("Top1_Acc_Exp/"),
        "task_accuracy_matrix": matrix("TaskAcc_Exp/"),
        "recall_matrix": matrix("Recall@1_Exp/"),
        "recall_at_1": [[_figure(step, "Recall@1_Stream/")] for step in figures]
        if any(name.startswith("Recall@1_Stream/") for name in figures[0])
        else None,
    }


def summary(found: Mapping[str, list[list[float]] | None], counts: list[int]) -> dict[str, Any]:
    """The matrices and every figure that follows from them."""
    accuracy, recall, task = found["accuracy_matrix"], found["recall_matrix"], found.get("task_accuracy_matrix")
    assert accuracy is not None
    assert recall is not None
    seen = seen_accuracy(accuracy, counts)
    # Domains hold the same classes: Recall@1 over all of them at once would mean little and cost much.
    whole = found.get("recall_at_1")
    return {
        "test_images": counts,
        "accuracy_matrix": accuracy,
        "task_accuracy_matrix": task,
        "recall_matrix": recall,
        "recall_at_1": [row[0] for row in whole] if whole else [sum(row) / len(row) for row in recall],
        "seen_accuracy": seen,
        "final_accuracy": seen[-1],
        "average_accuracy": average_incremental_accuracy(accuracy, counts),
        "final_task_accuracy": seen_accuracy(task, counts)[-1] if task else None,
        "learning_accuracy": learning_accuracy(accuracy),
        "forgetting": forgetting(accuracy),
        "backward_transfer": backward_transfer(accuracy),
        "recall_forgetting": forgetting(recall),
    }


def own_figures(config: Config, figures: Sequence[Mapping[str, Any]], experiences: int) -> dict[str, Any]:
    """The user's own metrics by the name of the function: of each experience and of all, after each step."""
    return {
        name: {
            "matrix": _matrix(figures, f"Own {name}_Exp/", experiences),
            "all": [_figure(step, f"Own {name}_Stream/") for step in figures],
        }
        for name in (metric.partition(":")[2] for metric in config.metrics)
    }


def by_rotation(found: Mapping[str, list[list[float]] | None], counts: list[int]) -> dict[str, float]:
    """The final accuracy on rotated domains in the two ways in which it is published.

    Co2L's paper tests each domain under its own rotation; its authors' script tests as many copies of the last one,
    which is the accuracy on the last domain.
    """
    accuracy = found["accuracy_matrix"]
    assert accuracy is not None
    return {"each domain's own rotation": seen_accuracy(accuracy, counts)[-1], "the last rotation": accuracy[-1][-1]}


def versions() -> dict[str, str]:
    """The versions of everything that the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("avalanche-lib", "torchvision", "numpy", "scikit-learn"):
        found[name] = importlib.metadata.version(name)
    return {**found, "avalanche-contrastive": __version__}


def _matrix(figures: Sequence[Mapping[str, Any]], start: str, experiences: int) -> list[list[float]]:
    return [[_figure(step, start, f"/Exp{j:03d}") for j in range(experiences)] for step in figures]


def _figure(figures: Mapping[str, Any], start: str, end: str = "") -> float:
    """The only figure whose name starts and ends so; some streams have a task name in between."""
    found = [value for name, value in figures.items() if name.startswith(start) and name.endswith(end)]
    if len(found) != 1:
        raise RuntimeError(f"expected one metric {start}...{end}, found {len(found)} among {sorted(figures)}")
    return float(found[0])
