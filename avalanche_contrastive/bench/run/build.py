"""From a config to its stream and its strategy, with the same evaluator and helpers for all methods."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive import ExperienceSchedule
from avalanche_contrastive._launch import launched
from avalanche_contrastive.bench.config import STREAM_KEYS, Config, Row, method_of, nearest
from avalanche_contrastive.bench.data.augment import make_augmentation
from avalanche_contrastive.bench.data.kinds import STREAMS, Stream
from avalanche_contrastive.bench.data.own_stream import own_stream
from avalanche_contrastive.bench.data.streams import make_stream
from avalanche_contrastive.bench.methods.networks import NETWORKS, Built, Setting
from avalanche_contrastive.bench.run.compatible import unseen_metrics
from avalanche_contrastive.bench.run.job import Report
from avalanche_contrastive.bench.run.measure import autocast, device_of, is_out_of_memory, no_memory
from avalanche_contrastive.bench.run.plugins import BatchAugment, OwnMetric, PlainBackward, ReportProgress, TaskAccuracy
from avalanche_contrastive.metrics import retrieval_metrics
from avalanche_contrastive.parallel.joining import processes
from avalanche_contrastive.parallel.plugin import DataParallel

EVAL_BATCH = 256


def check_rows(rows: Sequence[Row], seeds: Sequence[int], root: str, device: str) -> None:
    """Refuse what cannot run before the first run starts; data sets that are not there are downloaded.

    Raises:
        ValueError: rows of several suites or of one name, a seed that is too large, or what cannot be built.
    """
    found = {row.config.suite for row in rows}
    if len(found) != 1:
        raise ValueError(f"one call runs rows of one suite, got rows of {', '.join(sorted(found)) or 'none'}")
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of the rows are called {twice[0]!r}; their results would be the same files. Rename one")
    if max(seeds) >= 2**32:
        raise ValueError(f"--seeds: must be below 2**32, got {max(seeds)}")
    place = device_of(device)
    for row in rows:
        check(row.config)
        autocast(row.config.precision, place)
    streams: dict[Any, Stream] = {}
    for row in rows:
        try:
            kind = (*(getattr(row.config, key) for key in STREAM_KEYS), row.on_validation)
            if kind not in streams:
                streams[kind] = stream_of(row.config, seeds[0], validation=row.on_validation, root=root)
            build(row.config, streams[kind], place)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise ValueError(no_memory(row.name, row.config.batch_size)) from error
            raise
    for note in dict.fromkeys(stream.note for stream in streams.values() if stream.note):
        print(f"note: {note}", file=sys.stderr)


def check(config: Config) -> None:
    """Refuse what cannot run before anything is loaded.

    Raises:
        ValueError: an unknown stream or network, or a method that does not exist in this scenario.
    """
    for key, known in (("stream", STREAMS), ("network", NETWORKS)):
        value = getattr(config, key)
        if value not in known and ":" not in value and not (key == "network" and value == ""):
            raise ValueError(f"unknown {key} {value!r}{nearest(value, known)}, or module:function of your own")
    method = method_of(config.method)
    if config.scenario not in method.scenarios:
        raise ValueError(f"{config.method} does not run on {config.scenario}-incremental streams: {method.why_not}")
    if launched() > 1 and method.alone:
        raise ValueError(f"{config.method} cannot be trained by several processes together: {method.alone}")
    if config.precision != "fp32" and method.fp32_only:
        raise ValueError(f"{config.method} cannot be trained in {config.precision}: {method.fp32_only}")
    for key in ("epochs", "batch_size"):
        if getattr(config, key) < 1:
            raise ValueError(f"{config.method}: {key} must be at least 1, got {getattr(config, key)}")
    fewest = min(config.epochs, config.epochs_later or config.epochs)
    without_data = bool(config.data) != (config.stream == "own")
    without_steps = bool(config.milestones) != (config.schedule == "steps")
    for wrong, words in (
        (config.warmup_epochs >= fewest, f"warmup_epochs must be fewer than the epochs, {fewest}"),
        (max(config.milestones, default=0) >= fewest, f"milestones must lie before the last epoch, {fewest}"),
        (without_data, "stream 'own' and `data` go together, one is set without the other. Use `--data PATH`"),
        (without_steps, "milestones belong to schedule 'steps', and it to them"),
        (config.augmentation and not config.augment, f"augmentation {config.augmentation!r} needs augment = true"),
        (config.lr_later == 0, "lr_later must be above 0"),
    ):
        if wrong:
            raise ValueError(f"{config.method}: {words}")


def stream_of(config: Config, seed: int, *, validation: bool = False, root: str = "") -> Stream:
    """The stream of a run."""
    wanted = {key: getattr(config, key) for key in STREAM_KEYS if key not in ("stream", "data")}
    root = os.path.expanduser(root)
    if ":" in config.stream:
        return own_stream(config.stream, seed, validation=validation, root=root, wanted=wanted)
    data = config.data if config.stream == "own" else root
    return make_stream(config.stream, seed, data=data, root=root, validation=validation, **wanted)


def build(
    config: Config, stream: Stream, device: torch.device, report: Report | None = None, further: Sequence[Any] = ()
) -> Built:
    """The strategy of a config, with the same evaluator and the same fairness plugins for every method.

    Args:
        config: of the run.
        stream: its data.
        device: where to train.
        report: is called as the run goes on.
        further: metrics beside those of every run.
    """
    kind, method = stream.kind, method_of(config.method)
    augmentation = make_augmentation(
        config.augmentation, stream.image_shape, kind.augmentation, normalise=kind.normalise, features=kind.features
    )
    plugins: list[Any] = schedule_of(config)
    if config.augment and not method.own_augmentation:
        plugins.append(BatchAugment(augmentation))
    if processes() > 1:
        plugins.append(DataParallel())
    if report is not None:
        plugins.append(ReportProgress(report, len(steps_of(config, stream.benchmark))))
    evaluator = _evaluator(config, stream, further)
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
        features=kind.features,
        common=common,
    )
    module, _, function = method.build.partition(":")
    built = getattr(importlib.import_module(module), function)(setting, **config.options)
    built = built if isinstance(built, Built) else Built(built, "the model's own output")
    if config.precision != "fp32":
        built.strategy.plugins.append(PlainBackward())
    if processes() > 1:
        built.strategy._distributed_check = True  # Avalanche's, which warns of plugins that DataParallel serves
    if not (hasattr(built.strategy, "train") and hasattr(built.strategy, "eval")):
        raise ValueError(f"{config.method} must return an Avalanche strategy, got {type(built.strategy).__name__}")
    if getattr(built.strategy, "evaluator", None) is not evaluator:
        raise ValueError(
            f"{config.method}: the strategy does not have the benchmark's evaluator, so nothing would be measured. "
            "Make it by s.strategy(Kind, ...), or pass it **s.keywords()."
        )
    if config.channels_last:
        built.strategy.model.to(memory_format=torch.channels_last)  # a convolution passes its filters' layout on
    return built


def _evaluator(config: Config, stream: Stream, further: Sequence[Any]) -> EvaluationPlugin:
    """The metrics of every run, and further ones."""
    same_classes = config.scenario == "domain"
    # By the usual rule for ties a network that has collapsed to a point would find everything.
    retrieval = retrieval_metrics(ks=(1,), experience=True, stream=not same_classes, ties="mean")
    metrics = [accuracy_metrics(experience=True), retrieval, *map(OwnMetric, config.metrics), *unseen_metrics(stream)]
    metrics += further
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")  # the runner reads the figures itself
        return EvaluationPlugin(*metrics, *([] if same_classes else [TaskAccuracy()]), loggers=[])


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
            warmup_peak=c.warmup_peak,
            later=c.lr_later,
            by_experience=c.lr_by_experience,
            reset_optimizer=c.reset_optimizer,
        )
    ]


def steps_of(config: Config, benchmark: Any) -> list[Any]:
    """What each call of `train` is given: an experience, or for joint training the whole stream."""
    return [benchmark.train_stream] if config.method == "joint" else list(benchmark.train_stream)
