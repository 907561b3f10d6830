"""A method that is not one of the three passes through plugin, strategy, runner and checkpoint by one entry."""

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from helpers.fourth import Steady, SteadyPlugin
from helpers.streams import make_benchmark
from torch import nn

from avalanche_contrastive import checkpoint
from avalanche_contrastive.bench import cli, files
from avalanche_contrastive.registry import METHODS, Method

ENTRY = Method(
    "avalanche_contrastive.bench.methods.ours:plain",
    "helpers.fourth:Steady",
    "helpers.fourth:SteadyPlugin",
    summary="a fourth method",
    has_memory=False,
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(METHODS, "steady", ENTRY)


def made(kind):
    RNGManager.set_random_seeds(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    wired = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "train_mb_size": 32}
    wired |= {"evaluator": None, "train_epochs": 2}
    return Steady(weight=0.5, **wired) if kind == "strategy" else Naive(plugins=[SteadyPlugin(weight=0.5)], **wired)


def trained(kind, experiences, strategy=None):
    strategy = strategy or made(kind)
    for experience in experiences:
        strategy.train(experience)
    return torch.cat([parameter.detach().flatten() for parameter in strategy.model.parameters()])


def test_plugin_and_strategy_are_the_same_training():
    stream = make_benchmark().train_stream
    assert torch.equal(trained("plugin", stream[:3]), trained("strategy", stream[:3]))


@pytest.mark.parametrize("kind", ["plugin", "strategy"])
def test_a_checkpoint_goes_on_where_it_was_saved(kind, tmp_path):
    stream = make_benchmark().train_stream
    whole = trained(kind, stream[:3])
    strategy = made(kind)
    trained(kind, stream[:2], strategy)
    checkpoint.save(strategy, tmp_path / "run.pt")
    again = made(kind)
    assert checkpoint.restore(again, tmp_path / "run.pt") == 2
    assert torch.equal(trained(kind, stream[2:3], again), whole)


def test_the_runner_lists_it_reads_its_options_and_runs_it(tmp_path, capsys):
    row = tmp_path / "steady.toml"
    row.write_text('method = "steady"\nlabel = "Steady"\nepochs = 1\n[options]\nweight = 2.0\n')
    assert ENTRY.options == {"weight": 1.0, "smoothing": 0.0}
    assert cli.main(["list", str(row)]) == 0
    assert {"weight = 2.0", "smoothing = 0.0"} <= {*capsys.readouterr().out.splitlines()}
    words = [
        "run",
        str(row),
        "--seeds",
        "0",
        "--jobs",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--set",
        "train_images=200",
    ]
    assert cli.main(words) == 0
    assert "| Steady |" in capsys.readouterr().out
    result = files.read_json(tmp_path / "out" / "steady-seed0.json")
    assert (result["config"]["method"], result["config"]["options"]["weight"]) == ("steady", 2.0)
    row.write_text(row.read_text() + "temperature = 1.0\n")
    assert cli.main(words) == 2
    assert "unknown key 'temperature'" in capsys.readouterr().err
