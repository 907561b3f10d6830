"""Avalanche's own way of testing a strategy: its toy benchmarks, for all three methods, as strategy and as plugin."""

import io

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    forgetting_metrics,
    loss_metrics,
    timing_metrics,
)
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.models import MTSimpleMLP, SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from helpers.streams import noise
from sklearn.datasets import make_classification
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_contrastive import (
    CSD,
    SSIL,
    Co2L,
    Co2LPlugin,
    ContrastiveModel,
    CSDPlugin,
    MTContrastiveModel,
    SSILPlugin,
)


def toy_benchmark(*, task_labels):
    """Ten classes of six features in five experiences, as the toy benchmark of Avalanche's tests has them."""
    x, y = make_classification(400, 6, n_informative=6, n_redundant=0, n_classes=10, random_state=0)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    train, test = (_labelled(x[rows], y[rows]) for rows in (slice(0, 240), slice(240, None)))
    return nc_benchmark(train, test, 5, task_labels=task_labels, seed=1234)


def _labelled(x, y):
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


TOY = {
    "co2l": (Co2L, Co2LPlugin, {"mem_size": 20, "augmentation": noise, "readout_epochs": 10}),
    "ssil": (SSIL, SSILPlugin, {"mem_size": 20, "batch_size_mem": 8}),
    "csd": (CSD, CSDPlugin, {}),
}


def toy_strategy(name, *, heads, ready, **options):
    """A method as a strategy that is ready, or as a plugin of Naive."""
    if name == "co2l":
        kind = MTContrastiveModel if heads else ContrastiveModel
        model = kind(nn.Sequential(nn.Linear(6, 10), nn.ReLU()), 10, 8)
    else:
        model = (MTSimpleMLP if heads else SimpleMLP)(input_size=6, hidden_size=10)
    strategy, plugin, own = TOY[name]
    common = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
        "train_mb_size": 64,
        "eval_mb_size": 50,
        "train_epochs": 2,
        **options,
    }
    if ready:
        return strategy(**common, **own)
    return Naive(criterion=nn.CrossEntropyLoss(), plugins=[plugin(**own)], **common)


def every_toy(test):
    for argument, values, ids in (
        ("heads", [False, True], ["class-incremental", "task-incremental"]),
        ("ready", [True, False], ["strategy", "plugin"]),
        ("name", list(TOY), None),
    ):
        test = pytest.mark.parametrize(argument, values, ids=ids)(test)
    return test


@every_toy
def test_avalanches_toy_benchmarks_with_metrics_and_loggers(name, heads, ready, capsys):
    text, everything = io.StringIO(), {"minibatch": True, "epoch": True, "experience": True, "stream": True}
    evaluator = EvaluationPlugin(
        accuracy_metrics(**everything, epoch_running=True),
        loss_metrics(**everything, epoch_running=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        timing_metrics(epoch=True, experience=True),
        loggers=[TextLogger(text), InteractiveLogger()],
    )
    benchmark = toy_benchmark(task_labels=heads)
    strategy = toy_strategy(name, heads=heads, ready=ready, evaluator=evaluator, eval_every=1)
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.test_stream], num_workers=0)
        figures = strategy.eval(benchmark.test_stream[:])
        task = f"Task{number if heads else 0:03d}"
        accuracy = figures[f"Top1_Acc_Exp/eval_phase/test_stream/{task}/Exp{number:03d}"]
        assert 0 <= accuracy <= 1
        assert torch.isfinite(torch.tensor(figures[f"Loss_Exp/eval_phase/test_stream/{task}/Exp{number:03d}"]))
    assert "StreamBWT/eval_phase/test_stream" in figures
    assert "Top1_Acc_MB" in text.getvalue()
    assert "End of training phase" in text.getvalue()
    assert "Top1_Acc_Epoch" in capsys.readouterr().out


@every_toy
def test_avalanches_toy_benchmarks_without_metrics(name, heads, ready):
    benchmark = toy_benchmark(task_labels=heads)
    strategy = toy_strategy(name, heads=heads, ready=ready, evaluator=None)
    before = [p.detach().clone() for p in strategy.model.parameters()]
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert strategy.clock.train_exp_counter == 5
    assert any(not torch.equal(a, b) for a, b in zip(before, strategy.model.parameters(), strict=False))


@every_toy
def test_avalanches_toy_benchmarks_one_epoch_at_a_time_and_stopped_early(name, heads, ready):
    """What else Avalanche asks of a strategy: periodic evaluation in both units, early stopping, several streams."""
    benchmark, evaluations = toy_benchmark(task_labels=heads), []

    class Watch(SupervisedPlugin):
        def before_eval(self, strategy, **kwargs):
            evaluations.append(strategy.clock.train_iterations)

        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 2:
                strategy.stop_training()

    strategy = toy_strategy(name, heads=heads, ready=ready, evaluator=None, eval_every=2, peval_mode="iteration")
    strategy.plugins.insert(1, Watch())
    for experience in benchmark.train_stream[:4]:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:1], benchmark.train_stream[:1]])
    assert len(evaluations) >= 8
    assert strategy.clock.train_exp_counter == 4
    assert isinstance(strategy._criterion, nn.CrossEntropyLoss)
