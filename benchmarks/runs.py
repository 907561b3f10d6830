"""One run: a config and a seed in, a dictionary of figures out. Knows nothing of files, tables or processes."""

import importlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive._version import __version__
from avalanche_contrastive.data import BatchAugmentation
from avalanche_contrastive.metrics import retrieval_metrics
from benchmarks.catalog import METHODS
from benchmarks.configs import Config
from benchmarks.models import Built, Setting
from benchmarks.plugins import BatchAugment, LaterRate
from benchmarks.stats import forgetting, learning_accuracy, seen_accuracy
from benchmarks.streams import SUITES, Suite, make_stream

EVAL_BATCH = 256


def execute(config: Config, seed: int, *, validation: bool = False) -> dict[str, Any]:
    """Train through the stream, evaluate on all of it after each experience.

    Args:
        config: what to run.
        seed: of the weights, the batches and the class order.
        validation: evaluate on held-out training images, not on the test images.

    Returns:
        Figures and provenance, ready for JSON.
    """
    began = time.perf_counter()
    RNGManager.set_random_seeds(seed)
    suite = SUITES[config.suite]
    stream = make_stream(suite, seed, validation=validation)
    built = build(config, suite)
    matrix: list[list[float]] = []
    recall: list[float] = []
    training = 0.0
    for step in _steps(config, stream.benchmark):
        start = time.perf_counter()
        built.strategy.train(step)
        training += time.perf_counter() - start
        figures = built.strategy.eval(stream.benchmark.test_stream)
        matrix.append([_figure(figures, "Top1_Acc_Exp/", f"/Exp{j:03d}") for j in range(suite.experiences)])
        recall.append(_figure(figures, "Recall@1_Stream/"))
    return {
        "config": config.as_dict(),
        "seed": seed,
        "evaluated_on": "validation" if validation else "test",
        "class_order": stream.class_order,
        "readout": built.readout,
        **summary(matrix, stream.counts),
        "recall_at_1": recall,
        "seconds_training": round(training, 3),
        "seconds_total": round(time.perf_counter() - began, 3),
        "device": f"cpu ({platform.machine()}), {torch.get_num_threads()} thread",
        "versions": versions(),
    }


def summary(matrix: list[list[float]], counts: list[int]) -> dict[str, Any]:
    """The accuracy matrix and every figure that follows from it."""
    seen = seen_accuracy(matrix, counts)
    return {
        "test_images": counts,
        "accuracy_matrix": matrix,
        "seen_accuracy": seen,
        "final_accuracy": seen[-1],
        "average_accuracy": sum(seen) / len(seen) if len(seen) > 1 else None,
        "learning_accuracy": learning_accuracy(matrix),
        "forgetting": forgetting(matrix),
    }


def build(config: Config, suite: Suite) -> Built:
    """The strategy of a config, with the same evaluator and the same fairness plugins for every method."""
    augmentation = BatchAugmentation(**suite.augmentation)
    plugins: list[Any] = [LaterRate(config.lr_later)] if config.lr_later != 1 else []
    method = METHODS[config.method]
    if config.augment and not method.own_augmentation:
        plugins.append(BatchAugment(augmentation))
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        retrieval_metrics(ks=(1,), experience=False, stream=True),
        loggers=[],
    )
    common = {
        "train_mb_size": config.batch_size,
        "train_epochs": config.epochs,
        "eval_mb_size": EVAL_BATCH,
        "device": "cpu",
        "plugins": plugins,
        "evaluator": evaluator,
        "eval_every": -1,
    }
    module, _, function = method.build.partition(":")
    builder: Callable[[Setting], Built] = getattr(importlib.import_module(module), function)
    return builder(Setting(config, suite.channels, suite.classes, augmentation, common))


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "avalanche-lib": importlib.metadata.version("avalanche-lib"),
        "avalanche-contrastive": __version__,
    }


def _steps(config: Config, benchmark: Any) -> list[Any]:
    """What is trained on in one go: an experience, or for joint training the whole stream."""
    return [benchmark.train_stream] if config.method == "joint" else list(benchmark.train_stream)


def _figure(figures: Mapping[str, Any], start: str, end: str = "") -> float:
    """The one figure so named; Avalanche puts a task name in between on some streams."""
    found = [value for name, value in figures.items() if name.startswith(start) and name.endswith(end)]
    if len(found) != 1:
        raise RuntimeError(f"expected one metric {start}...{end}, found {len(found)} among {sorted(figures)}")
    return float(found[0])
