"""What one training step costs beside its mathematics: functions of ours, and waits of the host for the device."""

import sys
from collections import Counter
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from helpers.operations import Operations
from helpers.streams import head_benchmark, make_benchmark, make_encoder
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import avalanche_contrastive
from avalanche_contrastive import CSD, SSIL, BatchAugmentation, Co2L, ContrastiveModel, MTContrastiveModel
from avalanche_contrastive.plugins import co2l

OURS = str(Path(avalanche_contrastive.__file__).parent)
METHODS = ("ssil", "csd", "co2l")
every_method = pytest.mark.parametrize("method", METHODS)


def make(method, *, heads=False, evaluator=None):
    if method == "co2l":
        model = (MTContrastiveModel if heads else ContrastiveModel)(make_encoder(), 16, 8)
        kind, options = Co2L, {"mem_size": 20, "augmentation": BatchAugmentation(flip=0.0), "readout_epochs": 2}
    else:
        plain = nn.Sequential(make_encoder(), nn.Linear(16, 10))
        model = MTSimpleMLP(input_size=64, hidden_size=8) if heads else plain
        kind, options = (SSIL, {"mem_size": 20, "batch_size_mem": 8}) if method == "ssil" else (CSD, {})
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=10,
        evaluator=evaluator,
        **options,
    )


def third_step(strategy, stream, begin, end):
    """Train two experiences; call ``begin`` and ``end`` around the third step of the second, from its first hook on."""
    strategy.train(stream[0])
    before, after, steps = strategy._before_training_iteration, strategy._after_training_iteration, []

    def first(**kwargs):
        steps.append(0)
        if len(steps) == 3:
            begin()
        before(**kwargs)

    def last(**kwargs):
        after(**kwargs)
        if len(steps) == 3:
            end()

    strategy._before_training_iteration, strategy._after_training_iteration = first, last
    strategy.train(stream[1])
    assert len(steps) >= 3


@pytest.mark.parametrize(("method", "most"), [("ssil", 27), ("co2l", 39), ("csd", 46)])
def test_one_step_passes_few_functions_of_ours(method, most):
    calls = Counter()

    def note(frame, event, argument):
        name = frame.f_code.co_qualname
        if event == "call" and frame.f_code.co_filename.startswith(OURS) and not name.endswith("comp>"):
            calls[frame.f_code.co_filename, name] += 1  # newer Pythons call no function for a comprehension

    third_step(make(method), make_benchmark().train_stream, lambda: sys.setprofile(note), lambda: sys.setprofile(None))
    assert 10 < len(calls) <= most, sorted(calls)


@every_method
def test_a_step_does_not_ask_the_experience_for_its_task_labels(method):
    asked = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "task_labels":
            asked.append(frame.f_back.f_code.co_qualname)

    benchmark, strategy = make_benchmark("C"), make(method)
    third_step(strategy, benchmark.train_stream, lambda: sys.setprofile(note), lambda: sys.setprofile(None))
    assert not asked
    sys.setprofile(note)
    strategy.eval(benchmark.test_stream[:1])  # Avalanche's own forward pass does, in every batch
    sys.setprofile(None)
    assert asked


# ---- waits

WAITS = {"aten::item", "aten::nonzero", "aten::_local_scalar_dense", "aten::is_nonzero"}


def marked(function, name):
    def call(*args, **kwargs):
        with record_function(name):
            return function(*args, **kwargs)

    return call


def waits(strategy, stream, but=()):
    """Readings of a device's value in one step: one each, however many calls it makes.

    Args:
        strategy: trains two experiences.
        stream: the stream.
        but: names of operations within which they do not count.
    """
    profiler = profile(activities=[ProfilerActivity.CPU])
    third_step(strategy, stream, profiler.start, profiler.stop)
    found = []
    for event in profiler.events():
        above, parent = [], event.cpu_parent
        while parent is not None:
            above.append(parent.name)
            parent = parent.cpu_parent
        if event.name in WAITS and not any(name in WAITS or name.startswith(tuple(but)) for name in above):
            found.append((event.name, above[:1]))
    return found


@every_method
def test_the_host_waits_once_in_a_step(method):
    found = waits(make(method), make_benchmark().train_stream)
    assert len(found) == 1, found


@every_method
def test_the_host_waits_no_oftener_for_a_model_with_a_head_per_task(method, monkeypatch):
    """Avalanche's own way through the heads, and back, waits for the task labels of the batch; ours does not."""
    monkeypatch.setattr(MTSimpleMLP, "forward", marked(MTSimpleMLP.forward, "Avalanche's"))
    stream = head_benchmark(per_class=12).train_stream
    found = waits(make(method, heads=True), stream, but=("Avalanche's", "autograd::engine"))
    assert len(found) == 1, found


def test_scores_for_metrics_cost_no_wait_either(monkeypatch):
    evaluators = [EvaluationPlugin(accuracy_metrics(epoch=True)), EvaluationPlugin(loss_metrics(epoch=True))]
    made, calls = co2l._neighbour_scores, []
    monkeypatch.setattr(co2l, "_neighbour_scores", lambda *a: calls.append(1) or made(*a))
    both = [len(waits(make("co2l", evaluator=evaluator), make_benchmark().train_stream)) for evaluator in evaluators]
    assert calls, "accuracy looks at outputs"
    assert max(both) <= 4  # the metrics' own, and ours


@every_method
def test_each_step_runs_the_same_operations_on_the_same_shapes(method):
    """What a CUDA graph may hold: nothing of a step follows from the labels that happen to be in its batch."""
    steps, labels = [], []

    class Record(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            steps.append(Operations())
            steps[-1].__enter__()

        def after_training_iteration(self, strategy, **kwargs):
            steps[-1].__exit__(None, None, None)
            labels.append(strategy.mb_y.bincount(minlength=10).tolist())

    strategy, stream = make(method), make_benchmark().train_stream
    strategy.train(stream[0])
    strategy.plugins.append(Record())
    strategy.train_epochs = 3
    strategy.train(stream[1])
    full = [step.made for step, counts in zip(steps, labels, strict=True) if sum(counts) == sum(labels[0])]
    assert len(full) >= 6
    assert len(full[1]) > 50
    assert len({str(counts) for counts in labels}) > 1, "the batches differ"
    for made in full[2:]:  # in the first step of an experience the classes are laid out
        assert made == full[1]


@every_method
def test_class_tensors_are_made_once_per_experience(method, monkeypatch):
    strategy, made = make(method), []
    tensor = torch.tensor
    third_step(
        strategy,
        make_benchmark().train_stream,
        lambda: monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(a) or tensor(*a, **k)),
        lambda: monkeypatch.setattr(torch, "tensor", tensor),
    )
    assert made == []


@every_method
def test_no_hook_is_on_the_model_in_a_step_but_the_one_that_takes_features(method, monkeypatch):
    strategy, registered = make(method), []
    for kind in ("register_forward_hook", "register_forward_pre_hook"):
        own = getattr(nn.Module, kind)
        noting = partialmethod(lambda layer, own, *a, **k: registered.append(layer) or own(layer, *a, **k), own)
        monkeypatch.setattr(nn.Module, kind, noting)
    third_step(strategy, make_benchmark().train_stream, registered.clear, lambda: registered.append(None))
    step = registered[: registered.index(None)]
    layers = [layer for layer in step if layer in {*strategy.model.modules()}]
    assert layers == ([strategy.model[-1]] if method == "csd" else [])
