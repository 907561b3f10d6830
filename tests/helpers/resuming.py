"""For the tests of checkpoints: small strategies to build again, and runs to interrupt."""

import copy
import random

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_contrastive import CSD, SSIL, BatchAugmentation, Co2L, ContrastiveModel, checkpoint
from helpers.streams import make_benchmark, make_encoder

METHODS = ("Co2L", "SSIL", "CSD")


def evaluator(*metrics):
    several = (
        accuracy_metrics(epoch=True, experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
    )
    return EvaluationPlugin(*several, *metrics, loggers=[])


def common(**others):
    return {"train_mb_size": 8, "train_epochs": 1, "eval_mb_size": 64, "evaluator": evaluator(), **others}


def classifier(head=None, width=8):
    return nn.Sequential(make_encoder(width), IncrementalClassifier(width) if head is None else head)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def build(name, *, optimizer=sgd, model=None, **options):
    """One of the three strategies, small."""
    if name == "Co2L":
        model = model or ContrastiveModel(make_encoder(8), 8, 8)
        options = {"mem_size": 12, "augmentation": BatchAugmentation(), "readout_epochs": 3, **options}
        return Co2L(model=model, optimizer=optimizer(model), **common(**options))
    model = model or classifier()
    if name == "CSD":
        return CSD(model=model, optimizer=optimizer(model), **common(**options))
    return SSIL(model=model, optimizer=optimizer(model), **common(**{"mem_size": 12, "batch_size_mem": 4, **options}))


def go_on(strategy, benchmark, begin=0, end=None, path=None):
    """Train and evaluate; save after each experience."""
    for experience in list(benchmark.train_stream)[begin:end]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        if path is not None:
            checkpoint.save(strategy, path)


def samples(policy):
    """What a buffer holds, in its order."""
    return [[part if isinstance(part, int) else part.tolist() for part in sample] for sample in policy.buffer]


def ending(strategy):
    """Everything by which two runs are compared, and the next random numbers."""
    model = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    state = {
        name: {key: copy.deepcopy(value) for key, value in strategy.optimizer.state.get(parameter, {}).items()}
        for name, parameter in strategy.model.named_parameters()
    }
    policies = [p.storage_policy for p in (strategy, *strategy.plugins) if hasattr(p, "storage_policy")]
    draws = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), torch.initial_seed()
    return {
        "model": model,
        "optimizer": state,
        "rates": [{k: v for k, v in group.items() if k != "params"} for group in strategy.optimizer.param_groups],
        "memory": [samples(policy) for policy in policies],
        "metrics": strategy.evaluator.get_all_metrics(),
        "clock": vars(strategy.clock),
        "draws": draws,
    }


def same(one, other):
    """Equality to the last bit, tensors included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def differing(one, other):
    """Where two endings differ."""
    return [key for key in one if not same(one[key], other[key])]


def interrupt(make_strategy, make_stream, path, *, at=2, seed=3, after=None):
    """The endings of a run and of the same run interrupted after ``at`` experiences, and the resumed strategy."""
    RNGManager.set_random_seeds(seed)
    benchmark, strategy = make_stream(), make_strategy()
    go_on(strategy, benchmark, 0, at)
    checkpoint.save(strategy, path)
    go_on(strategy, benchmark, at, after)
    undisturbed = ending(strategy)
    RNGManager.set_random_seeds(seed + 1)  # a new process starts somewhere
    benchmark, strategy = make_stream(), make_strategy()
    assert checkpoint.restore(strategy, path) == at
    go_on(strategy, benchmark, at, after)
    return undisturbed, ending(strategy), strategy


def saved_files(folder):
    """A checkpoint of each method after two experiences, read once: whatever is imported late, is then."""
    torch.manual_seed(0)
    for name in METHODS:
        go_on(build(name), make_benchmark("A", per_class=6), 0, 2, folder / f"{name}.pt")
        checkpoint.restore(build(name), folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in METHODS}
