"""One run: a config and a seed in, a dictionary of figures out. Knows nothing of files, tables or processes."""

import importlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive import ExperienceSchedule
from avalanche_contrastive._launch import launched
from avalanche_contrastive._version import __version__
from avalanche_contrastive.bench.config import Config, nearest
from avalanche_contrastive.bench.data.augment import make_augmentation
from avalanche_contrastive.bench.data.streams import STREAMS, Stream, make_stream
from avalanche_contrastive.bench.methods.catalog import method_of
from avalanche_contrastive.bench.methods.networks import NETWORKS, Built, Setting
from avalanche_contrastive.bench.report.stats import (
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    learning_accuracy,
    seen_accuracy,
)
from avalanche_contrastive.bench.results import fingerprint
from avalanche_contrastive.bench.run.measure import PeakMemory, clock, describe_device
from avalanche_contrastive.bench.run.plugins import BatchAugment, ReportProgress, TaskAccuracy
from avalanche_contrastive.bench.run.resume import Keeper
from avalanche_contrastive.metrics import retrieval_metrics
from avalanche_contrastive.parallel.plugin import DataParallel, local_device, processes

EVAL_BATCH = 256

Report = Callable[[float, str], None]  # share done in [0, 1], and where the run stands in words


def execute(
    config: Config,
    seed: int,
    *,
    validation: bool = False,
    device: str = "cpu",
    root: str = "",
    report: Report | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Train through the stream, evaluate on all of it after each experience.

    Args:
        config: what to run.
        seed: of the weights, the batches and the class order.
        validation: evaluate on held-out training images, not on the test images.
        device: "cpu", "cuda", or "auto" for the one that is there.
        root: folder of downloaded data sets; "": Avalanche's.
        report: told of progress.
        checkpoint: saved after each experience but the last, and gone on with if it is of the same run; the caller
            removes it when the result is safe.

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
    built = build(config, stream, place, report)
    steps = _steps(config, stream.benchmark)

    def say(done: int, words: str) -> None:
        if report is not None:
            report(done / len(steps), words)

    keeper = Keeper(checkpoint, _decisive(config, seed, validation, place), say, began=began)
    figures, cost = _train_and_evaluate(built.strategy, stream, steps, PeakMemory(place), keeper)
    return {
        "config": config.as_dict(),
        "seed": seed,
        "evaluated_on": "validation" if validation else "test",
        "stream": stream.description,
        "class_order": stream.class_order,
        "experience_classes": stream.experience_classes,
        **({"angles": stream.angles} if stream.angles else {}),
        "readout": built.readout,
        **summary(matrices(figures, len(stream.counts)), stream.counts),
        **cost,
        "seconds_total": round(keeper.seconds(), 3),
        "device": describe_device(place),
        **_together(cost),
        "versions": versions(),
    }


def _together(cost: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says beside the rest where several processes have trained."""
    if processes() == 1:
        return {}
    return {
        "processes": processes(),
        "backend": torch.distributed.get_backend(),
        "peak_memory_of": f"{cost['peak_memory_of']}, of the first process",
    }


def _train_and_evaluate(
    strategy: Any, stream: Stream, steps: Sequence[Any], peak: PeakMemory, keeper: Keeper
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The metrics after each step, and what the steps cost."""
    train_stream = stream.benchmark.train_stream
    figures, cost = keeper.resume(strategy, train_stream)
    cost = cost or {"training": [], "evaluation": [], "memory": []}
    for step in steps[len(figures) :]:
        peak.start()
        start = clock(peak.device)
        strategy.train(step)
        trained = clock(peak.device)
        figures.append(strategy.eval(stream.benchmark.test_stream))
        cost["training"].append(round(trained - start, 3))
        cost["evaluation"].append(round(clock(peak.device) - trained, 3))
        cost["memory"].append(round(peak.stop(), 1))
        if len(figures) < len(steps):
            keeper.save(strategy, train_stream, figures, cost)
    return figures, {
        "seconds_per_experience": {"training": cost["training"], "evaluation": cost["evaluation"]},
        "seconds_training": round(sum(cost["training"]), 3),
        "peak_memory_mib": cost["memory"],
        "peak_memory_of": peak.kind,
    }


def _decisive(config: Config, seed: int, validation: bool, device: torch.device) -> dict[str, Any]:
    """All that the figures of a run follow from, but the code."""
    return {
        "config": config.as_dict(),
        "seed": seed,
        "validation": validation,
        "device": describe_device(device),
        "versions": versions(),
        "files": fingerprint(config),
    }


def check(config: Config) -> None:
    """Refuse what cannot run before anything is loaded.

    Raises:
        ValueError: an unknown stream or network, or a method that does not exist in this scenario.
    """
    for key, known in (("stream", STREAMS), ("network", NETWORKS)):
        value = getattr(config, key)
        if value not in known and not (key == "network" and value == ""):
            raise ValueError(f"unknown {key} {value!r}{nearest(value, known)}")
    method = method_of(config.method)
    if config.scenario not in method.scenarios:
        raise ValueError(f"{config.method} does not run on {config.scenario}-incremental streams: {method.why_not}")
    if launched() > 1 and method.alone:
        raise ValueError(f"{config.method} cannot be trained by several processes together: {method.alone}")
    for key in ("epochs", "batch_size"):
        if getattr(config, key) < 1:
            raise ValueError(f"{config.method}: {key} must be at least 1, got {getattr(config, key)}")
    fewest = min(config.epochs, config.epochs_later or config.epochs)
    for wrong, words in {
        config.warmup_epochs >= fewest: f"warmup_epochs must be fewer than the epochs, {fewest}",
        max(config.milestones, default=0) >= fewest: f"milestones must lie before the last epoch, {fewest}",
        bool(config.data) != (config.stream == "own"): "stream 'own' and `data` go together, one is set without the "
        "other. Use `--data PATH`",
        bool(config.milestones)
        != (config.schedule == "steps"): "milestones belong to schedule 'steps', and it to them",
        bool(config.augmentation) and not config.augment: f"augmentation {config.augmentation!r} needs augment = true",
        config.lr_later == 0: "lr_later must be above 0",
    }.items():
        if wrong:
            raise ValueError(f"{config.method}: {words}")


def device_of(name: str) -> torch.device:
    """ "cpu", "cuda", or "auto" for what is there; under torchrun a GPU for each process.

    Raises:
        ValueError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here. Is the driver there, and torch built for it?")
    if launched() > 1 and name != "cpu":
        return local_device()
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def stream_of(config: Config, seed: int, *, validation: bool = False, root: str = "") -> Stream:
    """The stream of a run."""
    return make_stream(
        config.stream,
        seed,
        data=config.data if config.stream == "own" else os.path.expanduser(root),
        scenario=config.scenario,
        experiences=config.experiences,
        base_classes=config.base_classes,
        train_images=config.train_images,
        test_images=config.test_images,
        validation=validation,
    )


def matrices(figures: Sequence[Mapping[str, Any]], experiences: int) -> dict[str, list[list[float]] | None]:
    """R[i][j] of each metric that has one: its value on experience j after training step i."""

    def matrix(start: str) -> list[list[float]] | None:
        if not any(name.startswith(start) for name in figures[0]):
            return None
        return [[_figure(step, start, f"/Exp{j:03d}") for j in range(experiences)] for step in figures]

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


def build(config: Config, stream: Stream, device: torch.device, report: Report | None = None) -> Built:
    """The strategy of a config, with the same evaluator and the same fairness plugins for every method."""
    kind, method = STREAMS[config.stream], method_of(config.method)
    augmentation = make_augmentation(
        config.augmentation, stream.image_shape, kind.augmentation, normalise=kind.normalise
    )
    plugins: list[Any] = schedule_of(config)
    if config.augment and not method.own_augmentation:
        plugins.append(BatchAugment(augmentation))
    if processes() > 1:
        plugins.append(DataParallel())
    if report is not None:
        plugins.append(ReportProgress(report, len(_steps(config, stream.benchmark))))
    same_classes = config.scenario == "domain"
    # By the usual rule for ties a network that has collapsed to a point would find everything.
    retrieval = retrieval_metrics(ks=(1,), experience=True, stream=not same_classes, ties="mean")
    metrics = [accuracy_metrics(experience=True), retrieval]
    evaluator = EvaluationPlugin(*metrics, *([] if same_classes else [TaskAccuracy()]), loggers=[])
    common = {
        "train_mb_size": config.batch_size,
        "train_epochs": config.epochs,
        "eval_mb_size": EVAL_BATCH,
        "device": device,
        "plugins": plugins,
        "evaluator": evaluator,
        "eval_every": -1,
    }
    setting = Setting(
        config=config,
        image_shape=stream.image_shape,
        classes=stream.classes,
        network=config.network or kind.network,
        augmentation=augmentation,
        common=common,
    )
    module, _, function = method.build.partition(":")
    built = getattr(importlib.import_module(module), function)(setting, **config.options)
    built = built if isinstance(built, Built) else Built(built, "the model's own output")
    if processes() > 1:
        built.strategy._distributed_check = True  # Avalanche's, which warns of plugins that DataParallel serves
    if not (hasattr(built.strategy, "train") and hasattr(built.strategy, "eval")):
        raise ValueError(f"{config.method} must return an Avalanche strategy, got {type(built.strategy).__name__}")
    if getattr(built.strategy, "evaluator", None) is not evaluator:
        raise ValueError(
            f"{config.method}: the strategy does not have the benchmark's evaluator, so nothing would be measured. "
            "Pass it the setting's keywords: Strategy(model=..., optimizer=..., **s.keywords())"
        )
    return built


def schedule_of(config: Config) -> list[Any]:
    """The plugin for epochs and learning rates by experience; none where nothing changes."""
    c = config
    if (c.schedule, c.lr_later, c.epochs_later) == ("constant", 1.0, 0) and not (
        c.lr_by_experience or c.reset_optimizer or c.warmup_epochs
    ):
        return []
    return [
        ExperienceSchedule(
            c.schedule,
            epochs=(c.epochs, c.epochs_later) if c.epochs_later else None,
            milestones=c.milestones,
            warmup_epochs=c.warmup_epochs,
            later=c.lr_later,
            by_experience=c.lr_by_experience,
            reset_optimizer=c.reset_optimizer,
        )
    ]


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("avalanche-lib", "torchvision", "numpy", "scikit-learn", "kornia"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # kornia is an extra
            continue
    return {**found, "avalanche-contrastive": __version__}


def _steps(config: Config, benchmark: Any) -> list[Any]:
    """What is trained on in one go: an experience, or for joint training the whole stream."""
    return [benchmark.train_stream] if config.method == "joint" else list(benchmark.train_stream)


def _figure(figures: Mapping[str, Any], start: str, end: str = "") -> float:
    """The one figure so named; Avalanche puts a task name in between on some streams."""
    found = [value for name, value in figures.items() if name.startswith(start) and name.endswith(end)]
    if len(found) != 1:
        raise RuntimeError(f"expected one metric {start}...{end}, found {len(found)} among {sorted(figures)}")
    return float(found[0])
