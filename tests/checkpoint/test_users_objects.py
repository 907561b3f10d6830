"""What is the user's stays the user's: saving changes nothing, and what the user builds is in no file."""

import os
import random
import stat
import time

import numpy as np
import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from helpers.hostile import differing as changed
from helpers.hostile import snapshot
from helpers.resuming import METHODS, build, classifier, common, differing, go_on, interrupt, sgd
from helpers.streams import make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import ContrastiveModel, checkpoint


def small():
    return make_benchmark("A", per_class=6, experiences=5)


class Kept(SupervisedPlugin):
    """Keeps whatever it is given."""

    def __init__(self, **kept):
        super().__init__()
        vars(self).update(kept)


def naive(**kept):
    model = classifier(nn.Linear(8, 10))
    return Naive(model=model, optimizer=sgd(model), plugins=[Kept(**kept)], **common())


# ---- saving


@pytest.mark.parametrize("name", METHODS)
def test_saving_changes_nothing(name, tmp_path):
    strategy = build(name)
    go_on(strategy, small(), 0, 2)
    before = snapshot(strategy)
    checkpoint.save(strategy, tmp_path / "a.pt", stream=small().train_stream, extra={"a": [1, torch.zeros(2)]})
    assert changed(before, snapshot(strategy)) == []


def test_sets_keep_their_order_and_large_ones_cost_nothing(tmp_path):
    draw = random.Random(0)
    numbers = [draw.randrange(10**9) for _ in range(10_000)]
    strategy = naive(numbers=set(numbers), few={3, 1, 10**6}, words={"b", "a"}, frozen=frozenset(numbers))
    before, began = (
        {name: list(vars(strategy.plugins[0])[name]) for name in ("numbers", "few", "words")},
        time.process_time(),
    )
    checkpoint.save(strategy, tmp_path / "a.pt")
    assert time.process_time() - began < 1
    assert before == {name: list(vars(strategy.plugins[0])[name]) for name in before}
    restored = naive(numbers=set(), few=set(), words=set(), frozen=frozenset())
    mine, began = restored.plugins[0].numbers, time.process_time()
    checkpoint.restore(restored, tmp_path / "a.pt")
    assert time.process_time() - began < 1
    assert restored.plugins[0].numbers is mine
    assert mine == set(numbers) == restored.plugins[0].frozen
    assert restored.plugins[0].words == {"a", "b"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_a_file_that_is_replaced_keeps_its_mode(mode, tmp_path):
    path, strategy = tmp_path / "a.pt", naive()
    checkpoint.save(strategy, path)
    path.chmod(mode)
    checkpoint.save(strategy, path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert checkpoint.restore(naive(), path) == 0


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        checkpoint.save(naive(), tmp_path / "a.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


# ---- what the user builds

SECRET = "kept by the user alone"


class Stateful(nn.Module):
    """An augmentation as kornia has them: buffers that change shape, the last batch, objects that come and go."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("scale", None)
        self.flags, self.last, self.calls, self.secret = {"p": 0.5}, None, 0, SECRET
        self._params = {}

    def forward(self, x):
        self.calls += 1
        self.seen = torch.cat([self.seen, torch.rand(1)])
        self.scale, self.last = torch.rand(len(x)), x
        self._params = {"batch_prob": torch.rand(len(x)), "order": torch.randperm(len(x)), "of": type(self)}
        if self.calls == 3:
            del self.flags
        return x * (0.5 + self.scale.reshape(-1, *[1] * (x.ndim - 1)))


class Callable:
    """The same without torch."""

    def __init__(self):
        self.secret, self.calls, self.generator, self.file = SECRET, 0, np.random.default_rng(0), None

    def __call__(self, x):
        self.calls, self.file = self.calls + 1, lambda: None
        return x * torch.rand(())


AUGMENTATIONS = {
    "a module": Stateful,
    "a callable": Callable,
    "modules in a row": lambda: nn.Sequential(Stateful(), nn.Identity(), Stateful()),
    "a function": lambda: lambda x: x * torch.rand(()),
}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_stateful_augmentation(augmentation, tmp_path):
    """It stays the user's own; all that it draws is drawn from the random generators that are restored."""
    run = lambda: build("Co2L", augmentation=AUGMENTATIONS[augmentation]())  # noqa: E731
    undisturbed, resumed, _ = interrupt(run, small, tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []
    assert SECRET.encode() not in (tmp_path / "a.pt").read_bytes()


def test_an_augmentation_of_kornia(tmp_path):
    augmentation = pytest.importorskip("kornia.augmentation")

    def run():
        several = nn.Sequential(
            augmentation.RandomAffine(10.0), augmentation.RandomErasing(p=0.5), augmentation.RandomGaussianNoise(p=0.5)
        )
        return build("Co2L", augmentation=several)

    undisturbed, resumed, _ = interrupt(run, small, tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []


class Counting(nn.Module):
    """A layer without parameters, whose buffer and number are a part of the model."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.calls, self.last = 0, None

    def forward(self, x):
        if self.training:
            self.mean, self.calls, self.last = self.mean * 0.9 + x.mean().detach() * 0.1, self.calls + 1, x.detach()
        return x - self.mean / (1 + self.calls)


@pytest.mark.parametrize("name", ["CSD", "Co2L"])
def test_a_layer_without_parameters_is_a_part_of_the_model(name, tmp_path):
    def run():
        encoder = nn.Sequential(Counting(), make_encoder(8), Counting())
        model = ContrastiveModel(encoder, 8, 8) if name == "Co2L" else nn.Sequential(encoder, nn.Linear(8, 10))
        return build(name, model=model)

    undisturbed, resumed, _ = interrupt(run, small, tmp_path / "a.pt", after=4)
    assert differing(undisturbed, resumed) == []
    assert float(resumed["model"][next(key for key in resumed["model"] if key.endswith("mean"))]) != 0


def test_what_the_user_builds_is_in_no_file(tmp_path):
    secret = SECRET

    class Schedule:
        def __init__(self):
            self.secret = SECRET

        def __call__(self, epoch):
            return secret

    kept = {"function": lambda: secret, "schedule": Schedule(), "type": Schedule, "module": os, "path": tmp_path}
    strategy = naive(**kept)
    checkpoint.save(strategy, tmp_path / "a.pt")
    assert SECRET.encode() not in (tmp_path / "a.pt").read_bytes()
    fresh = naive(**kept)
    checkpoint.restore(fresh, tmp_path / "a.pt")
    assert all(vars(fresh.plugins[0])[name] is thing for name, thing in kept.items())


# ---- filled in place


@pytest.mark.parametrize("name", METHODS)
def test_what_the_user_holds_is_what_is_restored(name, tmp_path):
    go_on(build(name), small(), 0, 2, tmp_path / "a.pt")
    strategy = build(name)
    tensors = {**dict(strategy.model.named_parameters()), **dict(strategy.model.named_buffers())}
    groups, held = strategy.optimizer.param_groups, [*strategy.plugins, *strategy.evaluator.metrics]
    checkpoint.restore(strategy, tmp_path / "a.pt")
    restored = {**dict(strategy.model.named_parameters()), **dict(strategy.model.named_buffers())}
    assert all(restored[key] is tensor for key, tensor in tensors.items())
    assert strategy.optimizer.param_groups is groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in strategy.model.parameters()}
    assert {id(thing) for thing in held} <= {id(thing) for thing in (*strategy.plugins, *strategy.evaluator.metrics)}


def test_containers_are_filled_in_place(tmp_path):
    full = {"a": [1, [2, 3]], "b": {"c": {4: 5}}, "d": {6}}
    strategy = naive(**full)
    checkpoint.save(strategy, tmp_path / "a.pt")
    restored = naive(a=[], b={"c": {}}, d=set())
    mine = [restored.plugins[0].a, restored.plugins[0].b, restored.plugins[0].b["c"], restored.plugins[0].d]
    checkpoint.restore(restored, tmp_path / "a.pt")
    plugin = restored.plugins[0]
    assert {name: vars(plugin)[name] for name in full} == full
    assert all(one is other for one, other in zip(mine, [plugin.a, plugin.b, plugin.b["c"], plugin.d], strict=True))
