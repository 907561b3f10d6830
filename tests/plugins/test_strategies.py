"""The ready strategies: Avalanche's constructor, and bit for bit what the plugin does under Naive."""

import inspect

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from helpers.streams import make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import (
    CSD,
    SSIL,
    BatchAugmentation,
    Co2L,
    Co2LPlugin,
    ContrastiveModel,
    CSDPlugin,
    SSILPlugin,
)

CASES = {
    "co2l": (Co2L, Co2LPlugin, {"mem_size": 20, "augmentation": BatchAugmentation(flip=0.0), "readout_lr": 0.1}),
    "ssil": (SSIL, SSILPlugin, {"mem_size": 20, "batch_size_mem": 8}),
    "csd": (CSD, CSDPlugin, {"weight": 0.5}),
}


def model_for(name):
    if name == "co2l":
        return ContrastiveModel(make_encoder(), 16, 8)
    return nn.Sequential(make_encoder(), nn.Linear(16, 10))


@pytest.mark.parametrize("name", CASES)
def test_the_strategy_is_the_plugin_under_naive_bit_for_bit(name):
    strategy_class, plugin_class, options = CASES[name]
    finals = []
    for ready in (True, False):
        RNGManager.set_random_seeds(3)
        benchmark, model = make_benchmark(), model_for(name)
        common = {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            "train_mb_size": 10,
            "train_epochs": 2,
            "eval_mb_size": 50,
            "evaluator": None,
            "eval_every": 1,
        }
        own = options if ready else {"plugins": [plugin_class(**options)]}
        strategy = (strategy_class if ready else Naive)(**common, **own)
        for experience in benchmark.train_stream[:3]:
            strategy.train(experience)
        finals.append(model.state_dict())
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[1])


@pytest.mark.parametrize("name", CASES)
def test_avalanches_constructor(name):
    ours = inspect.signature(CASES[name][0].__init__).parameters
    theirs = inspect.signature(Naive.__init__).parameters
    options = inspect.signature(CASES[name][1]).parameters
    wanted = (set(theirs) - {"self", "base_kwargs"}) | {"peval_mode"} | set(options)
    assert set(ours) == wanted | {"self"}
    assert all(ours[argument].kind is inspect.Parameter.KEYWORD_ONLY for argument in wanted)
    assert all(ours[argument].default == options[argument].default for argument in options)


@pytest.mark.parametrize("name", CASES)
def test_unknown_arguments_are_refused(name):
    model = model_for(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="temprature"):
        CASES[name][0](model=model, optimizer=optimizer, temprature=1.0)
    with pytest.raises(TypeError, match="temprature"):
        CASES[name][1](temprature=1.0)


@pytest.mark.parametrize("name", CASES)
def test_other_plugins_metrics_and_loggers_as_in_any_strategy(name):
    strategy_class, plugin_class, options = CASES[name]
    model, given = model_for(name), [EWCPlugin(ewc_lambda=1.0)]
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, epoch_running=True, experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
    )
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=10,
        eval_mb_size=None,
        plugins=given,
        evaluator=evaluator,
        **options,
    )
    assert len(given) == 1
    assert isinstance(strategy.plugins[0], plugin_class)
    assert strategy.method is strategy.plugins[0]
    benchmark = make_benchmark()
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
    assert 0 <= results["Top1_Acc_Stream/eval_phase/test_stream"] <= 1
    assert any(key.startswith("ExperienceForgetting") for key in results)


def test_a_users_subclass_keeps_its_own_constructor():
    class Mine(SSIL):
        def __init__(self, *, model, optimizer, **others):
            super().__init__(model=model, optimizer=optimizer, mem_size=7, **others)
            self.mine = True

    model = model_for("ssil")
    strategy = Mine(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_epochs=2)
    assert strategy.mine
    assert strategy.method.mem_size == 7
    assert strategy.train_epochs == 2
