"""Every plugin, strategy and logger of Avalanche beside Co2L, SS-IL and CSD: the tables of docs/compatibility.md."""

import copy
import importlib
import inspect
import pkgutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from avalanche import models, training
from avalanche.core import BasePlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger, WandBLogger
from avalanche.models import SCRModel
from avalanche.models.expert_gate import ExpertGate
from avalanche.models.pnn import PNN
from avalanche.training import Naive
from avalanche.training import supervised as shipped
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised.lamaml_v2 import LaMAML
from avalanche.training.supervised.naive_object_detection import ObjectDetectionTemplate
from avalanche.training.templates.base import BaseTemplate
from helpers.partners import (
    BATCH,
    COLUMNS,
    MODELS,
    PARTNERS,
    RATE,
    WIDTH,
    Gradients,
    Partner,
    Run,
    Watch,
    body_and_head,
    leaves_the_loss,
    make_generator,
    make_method,
    make_model,
    weights,
)
from helpers.streams import make_benchmark, make_encoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric .* used by the EarlyStopping"),
    pytest.mark.filterwarnings("ignore:.*implements incompatible callbacks"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:Avalanche is transitioning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def says(record_property):
    """Tell the page what a cell says."""

    def record(table, row, method, cell):
        record_property("matrix", {"table": table, "row": row, "column": COLUMNS[method], "cell": cell})

    return record


def counted(plugin):
    """Count the calls of each of a plugin's callbacks."""

    def counting(name, callback):
        def call(*args, **kwargs):
            plugin.calls[name] += 1
            return callback(*args, **kwargs)

        return call

    if not hasattr(plugin, "calls"):
        plugin.calls = Counter()
        for name in dir(plugin):
            if name.startswith(("before_", "after_")):
                setattr(plugin, name, counting(name, getattr(plugin, name)))
    return plugin


def evaluator():
    return EvaluationPlugin(accuracy_metrics(stream=True), loss_metrics(stream=True))


def train(strategy, benchmark, experiences=3):
    """A call for each of the first experiences; the metrics of an evaluation after them."""
    for experience in benchmark.train_stream[:experiences]:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:experiences]])
    strategy.eval(benchmark.test_stream[:experiences])
    return strategy.evaluator.get_last_metrics()


def with_partner(method, partner, *, ours, ours_first=True):
    """A strategy with a partner, with or without our plugin, and all that looks on."""
    RNGManager.set_random_seeds(0)
    model = make_model(method, partner.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    others = [counted(p) for p in partner.make(model, optimizer)]
    plugin, last = counted(make_method(method)), Gradients()
    watch = counted(Watch(method, plugin))
    listed = [] if partner.criterion else others
    pair = [plugin, *listed] if ours_first else [*listed, plugin]
    strategy = Naive(
        model=model,
        optimizer=optimizer,
        criterion=others[-1] if partner.criterion else nn.CrossEntropyLoss(),
        **{"train_mb_size": BATCH, "eval_mb_size": 50, **partner.options},
        plugins=[watch, *pair, last] if ours else listed,
        evaluator=evaluator(),
    )
    return strategy, watch, others[-1] if others else None, last


def finished(method, partner, *, ours_first):
    benchmark = make_benchmark(**{"flavour": "A", **partner.stream})
    strategy, watch, other, last = with_partner(method, partner, ours=True, ours_first=ours_first)
    metrics = train(strategy, benchmark)
    run = Run(method, strategy, watch, other, last.last, metrics, benchmark.test_stream[:3])
    check(run)
    return run


def check(run):
    """All callbacks of all plugins ran equally often, the ledger is right, nothing is NaN."""
    for plugin in run.strategy.plugins:
        calls = getattr(plugin, "calls", {})
        assert all(run.watch.calls[name] == count for name, count in calls.items())
    assert run.watch.plugin.ledger == run.watch.seen
    assert run.watch.plugin.calls["before_backward"] == sum(len(labels) for labels in run.watch.labels)
    assert weights(run.strategy.model).isfinite().all()


# ---- plugins


@pytest.mark.parametrize("method", COLUMNS)
@pytest.mark.parametrize("name", PARTNERS)
def test_beside_a_plugin_of_avalanche_in_either_order(name, method, says):
    partner = PARTNERS[name]
    says("partners", name, method, partner.cell(method))
    if partner.expected_error(method):
        return fails(method, partner)
    if method in partner.behind:
        fails(method, partner, orders=(True,), error=(ValueError, partner.behind[method]))
        return partner.works(finished(method, partner, ours_first=False))
    first, last = (finished(method, partner, ours_first=order) for order in (True, False))
    partner.works(first)
    partner.works(last)
    assert torch.equal(weights(first.strategy.model), weights(last.strategy.model))


def fails(method, partner, orders=(True, False), error=None):
    kind, words = error or partner.expected_error(method)
    for order in orders:
        strategy, *_ = with_partner(method, partner, ours=True, ours_first=order)
        with pytest.raises(kind, match=words):
            train(strategy, make_benchmark(**{"flavour": "A", **partner.stream}))
        if not partner.cell(method).startswith("fails by itself"):
            assert strategy.clock.train_iterations == 0
    if partner.cell(method).startswith("fails by itself"):
        strategy, *_ = with_partner(method, partner, ours=False)
        with pytest.raises(kind, match=words):
            train(strategy, make_benchmark(**{"flavour": "A", **partner.stream}))


def defined_in(kind, *packages):
    """Names of the public classes of a kind that modules under some packages define."""
    names = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules of Avalanche that miss an optional dependency
        for package in packages:
            for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                try:
                    module = importlib.import_module(found.name)
                except ModuleNotFoundError:
                    continue  # of an optional dependency, in avalanche.models.timm_vit
                names |= {
                    name
                    for name, value in vars(module).items()
                    if inspect.isclass(value) and issubclass(value, kind) and value.__module__ == module.__name__
                }
    return {name for name in names if not name.startswith("_")}


def test_no_plugin_of_avalanche_is_missing():
    assert defined_in(BasePlugin, training, models) == PARTNERS.keys() - {"EvaluationPlugin", "ExperienceSchedule"}


def test_synaptic_intelligence_is_void_by_itself():
    strategy, _, partner, _ = with_partner("ssil", PARTNERS["SynapticIntelligencePlugin"], ours=False)
    train(strategy, make_benchmark())
    assert partner.ewc_data[1].keys() >= {"head.weight", "head.bias"}
    assert all(importance.data.eq(0).all() for importance in partner.ewc_data[1].values())


class Busy(SupervisedPlugin):
    """Copies the model, and calls it and the criterion, between the forward pass and the loss."""

    def after_forward(self, strategy, **kwargs):
        x = strategy.mb_x[:3]
        with torch.no_grad():
            output = copy.deepcopy(strategy.model)(x)
            strategy.model(x)
        self.loss = strategy._criterion(output[:, 0, :] if output.ndim == 3 else output, torch.zeros(3).long())
        assert isinstance(self.loss, torch.Tensor)


@pytest.mark.parametrize("model", ["plain", "growing"])
@pytest.mark.parametrize("method", COLUMNS)
def test_beside_a_plugin_that_uses_model_and_criterion_before_the_loss(method, model):
    for first in (True, False):
        run = finished(method, Partner(lambda *_: [Busy()], model=model), ours_first=first)
        leaves_the_loss(run)
        assert run.partner.loss > 0


# ---- strategies


@dataclass(frozen=True)
class Strategy:
    """A strategy of Avalanche that is given one of our plugins.

    Args:
        make: the class.
        options: of it, or a function that makes them for a method.
        wraps: the partner that it adds to the plugins, if it is nothing but that.
        model: which of partners.MODELS it needs, or a function that makes one.
        stream: options of the stream.
        whole: whether our objective is its whole loss.
        dropped: whether it never calls the plugins.
        works: checks what else it does.
        says: by method, or "all": what the cell says where it is not "yes".
        error: by method, or "all": type and words of the error that goes with it.
    """

    make: Callable[..., Any]
    options: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] = field(default_factory=dict)
    wraps: str = ""
    model: str | Callable[[], nn.Module] = "plain"
    stream: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True
    dropped: bool = False
    works: Callable[[Run], None] = leaves_the_loss
    says: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, tuple[type[Exception], str]] = field(default_factory=dict)

    def cell(self, method):
        wrapped = PARTNERS[self.wraps].cell(method) if self.wraps else "yes"
        return self.says.get(method, self.says.get("all", wrapped))

    def expected_error(self, method):
        wrapped = PARTNERS[self.wraps].expected_error(method) if self.wraps else None
        return self.error.get(method, self.error.get("all", wrapped))


def cumulates(run):
    """Every later experience has all images so far, once each, beside what the method replays."""
    leaves_the_loss(run)
    for number in (1, 2):
        counts = Counter(c for labels in run.watch.labels[number] for c in labels)
        assert all(counts[c] == 12 for c in run.watch.seen[number])
        assert all(counts[c] >= 12 for classes in run.watch.seen[:number] for c in classes)


def ignoring(make, **options):
    words = "it trains without calling strategy.criterion()"
    return Strategy(make, says={"all": f"refused: {words}"}, error={"all": (RuntimeError, words[3:])}, **options)


GSS = {"mem_size": 48, "mem_strength": 1, "input_size": [1, 8, 8], "train_mb_size": 6}
STRATEGIES = {
    "AETraining": ignoring(shipped.AETraining, options={"device": "cpu"}),
    "AGEM": Strategy(shipped.AGEM, {"patterns_per_exp": 10, "sample_size": 10}, "AGEMPlugin"),
    "BiC": Strategy(shipped.BiC, {"mem_size": 20}, "BiCPlugin", stream={"flavour": "C"}),
    "CoPE": Strategy(shipped.CoPE, {"mem_size": 20, "n_classes": 10, "p_size": 10}, "CoPEPlugin"),
    "Cumulative": Strategy(shipped.Cumulative, works=cumulates),
    "CWRStar": Strategy(shipped.CWRStar, {"cwr_layer_name": None}, "CWRStarPlugin"),
    "DER": ignoring(shipped.DER, options={"mem_size": 20, "batch_size_mem": 8}),
    "ER_ACE": ignoring(shipped.ER_ACE, options={"mem_size": 20, "batch_size_mem": 8}),
    "ER_AML": ignoring(
        shipped.ER_AML, options=lambda _: {"feature_extractor": make_encoder(WIDTH), "batch_size_mem": 8}
    ),
    "EWC": Strategy(shipped.EWC, {"ewc_lambda": 1e4}, "EWCPlugin"),
    "FeatureReplay": Strategy(
        shipped.FeatureReplay,
        lambda method: {"batch_size_mem": 8, "last_layer_name": "projector" if method == "co2l" else "head"},
        whole=False,
        says={"all": "yes: as half of its loss", "co2l": "refused: its model is no ContrastiveModel"},
        error={"co2l": (TypeError, "trains a ContrastiveModel, got FeatureExtractorModel")},
    ),
    "FromScratchTraining": Strategy(shipped.FromScratchTraining, wraps="FromScratchTrainingPlugin"),
    "GDumb": Strategy(
        shipped.GDumb,
        {"mem_size": 20},
        "GDumbPlugin",
        says={"co2l": "refused: it puts its plugin behind Co2LPlugin; take Naive with both"},
        error={"co2l": (ValueError, "GDumbPlugin puts its memory in the place of the dataset")},
    ),
    "GEM": Strategy(shipped.GEM, {"patterns_per_exp": 10}, "GEMPlugin"),
    "GenerativeReplay": Strategy(
        shipped.GenerativeReplay,
        lambda _: {"generator_strategy": make_generator()},
        "GenerativeReplayPlugin",
        model="growing",
    ),
    "GSS_greedy": Strategy(shipped.GSS_greedy, GSS, "GSS_greedyPlugin", stream={"per_class": 24}),
    "ICaRL": Strategy(
        lambda model, criterion, **common: shipped.ICaRL(
            feature_extractor=body_and_head(model)[0],
            classifier=body_and_head(model)[1],
            memory_size=20,
            buffer_transform=None,
            fixed_memory=True,
            **common,
        ),
        stream={"flavour": "C"},
        says=PARTNERS["ICaRLLossPlugin"].says,
        error=PARTNERS["ICaRLLossPlugin"].error,
    ),
    "JointTraining": Strategy(
        shipped.JointTraining,
        says={"all": "refused: it trains on classes that no experience has brought yet"},
        error={"all": (ValueError, r"the training data holds the classes \[0, 1, 6, 9\]")},
    ),
    "LaMAML": ignoring(LaMAML),
    "LFL": Strategy(shipped.LFL, {"lambda_e": 1.0}, "LFLPlugin"),
    "LwF": Strategy(shipped.LwF, {"alpha": 1.0, "temperature": 2.0}, "LwFPlugin"),
    "MAS": Strategy(shipped.MAS, wraps="MASPlugin"),
    "MER": ignoring(shipped.MER),
    "MIR": Strategy(shipped.MIR, {"mem_size": 20, "subsample": 20, "batch_size_mem": 8}, "MIRPlugin"),
    "Naive": Strategy(shipped.Naive),
    "PackNet": Strategy(
        shipped.PackNet,
        {"post_prune_epochs": 1, "prune_proportion": 0.5, "train_epochs": 2},
        model=MODELS["packed"],
        stream={"flavour": "C"},
        dropped=True,
        says={"all": "fails by itself: it drops the plugins that it is given"},
    ),
    "Replay": Strategy(shipped.Replay, {"mem_size": 20}, "ReplayPlugin"),
    "SCR": ignoring(
        lambda criterion, **common: shipped.SCR(**common),
        model=lambda: SCRModel(make_encoder(WIDTH), nn.Linear(WIDTH, 10)),
        options={"mem_size": 20, "batch_size_mem": 8},
    ),
    "StreamingLDA": ignoring(
        lambda model, optimizer, **common: shipped.StreamingLDA(slda_model=model, **common),
        options={"input_size": 10, "num_classes": 10},
    ),
    "SynapticIntelligence": Strategy(shipped.SynapticIntelligence, {"si_lambda": 1e4}, "SynapticIntelligencePlugin"),
    "VAETraining": ignoring(shipped.VAETraining),
}
# Not tried: the reason, and that it is so.
NOT_TRIED = {
    "AR1": ("brings a MobileNet of its own, with weights to download", shipped.AR1),
    "LearningToPrompt": ("brings a vision transformer of its own, with weights to download", shipped.LearningToPrompt),
    "ExpertGateStrategy": ("wants an AlexNet for each task, with weights to download", shipped.ExpertGateStrategy),
    "ObjectDetectionTemplate": ("detects objects, which have no class per image", ObjectDetectionTemplate),
    "PNNStrategy": ("freezes what earlier tasks have learned, so that there is nothing to distil", shipped.PNNStrategy),
}


def with_strategy(method, entry):
    """A strategy of Avalanche with one of our plugins."""
    RNGManager.set_random_seeds(0)
    model = make_model(method, entry.model) if isinstance(entry.model, str) else entry.model()
    watch, last = Watch(method, make_method(method), whole=entry.whole), Gradients()
    common = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": BATCH,
        "eval_mb_size": 50,
        "plugins": [counted(watch), counted(watch.plugin), last],
        "evaluator": evaluator(),
    }
    options = entry.options(method) if callable(entry.options) else entry.options
    return entry.make(**{**common, **options}), watch, last


@pytest.mark.parametrize("method", COLUMNS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_of_avalanche_with_our_plugin(name, method, says):
    entry = STRATEGIES[name]
    says("templates", name, method, entry.cell(method))
    benchmark = make_benchmark(**{"flavour": "A", **entry.stream})
    strategy, watch, last = with_strategy(method, entry)
    if expected := entry.expected_error(method):
        with pytest.raises(expected[0], match=expected[1]):
            strategy.train(benchmark.train_stream[:3])
        assert strategy.clock.train_iterations == 0 or entry.cell(method).startswith("fails by itself")
        return
    if entry.dropped:
        strategy.train(benchmark.train_stream[0])
        assert not watch.calls
        return
    metrics = train(strategy, benchmark)
    partner = next((p for p in strategy.plugins if type(p).__name__ == entry.wraps), None)
    run = Run(method, strategy, watch, partner, last.last, metrics, benchmark.test_stream[:3])
    check(run)
    (PARTNERS[entry.wraps].works if entry.wraps else entry.works)(run)


@pytest.mark.parametrize("method", COLUMNS)
@pytest.mark.parametrize("name", NOT_TRIED)
def test_a_strategy_that_is_not_tried(name, method, says):
    reason, strategy = NOT_TRIED[name]
    says("templates", name, method, f"not tried: it {reason}")
    parameters = inspect.signature(strategy).parameters
    if name in ("AR1", "LearningToPrompt"):
        assert "model" not in parameters
    elif name == "ExpertGateStrategy":
        with pytest.raises(KeyError, match="NONE"):
            ExpertGate(shape=(1, 8, 8), pretrained_flag=False, device="cpu")
    elif name == "PNNStrategy":
        layer = PNN(1, 64, 16).layers[0]
        layer._add_column()
        first, second = layer.columns[:2]
        assert not any(parameter.requires_grad for parameter in first.parameters())
        assert all(parameter.requires_grad for parameter in second.parameters())
    else:
        assert "scaler" in parameters


def test_no_strategy_of_avalanche_is_missing():
    assert defined_in(BaseTemplate, training.supervised) == STRATEGIES.keys() | NOT_TRIED.keys()


# ---- loggers


def as_text(tmp_path):
    target = (tmp_path / "log.txt").open("w", encoding="utf-8")
    return TextLogger(target), lambda: (target.close(), (tmp_path / "log.txt").read_text(encoding="utf-8"))[1]


def as_csv(tmp_path):
    logger = CSVLogger(tmp_path)

    def read():
        logger.close()
        return "".join(
            (tmp_path / name).read_text(encoding="utf-8") for name in ("training_results.csv", "eval_results.csv")
        )

    return logger, read


def as_events(tmp_path):
    logger = TensorboardLogger(tmp_path)

    def read():
        logger.writer.close()
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        return "".join(f"{tag} = {events.Scalars(tag)[-1].value:.4f}\n" for tag in events.Tags()["scalars"])

    return logger, read


LOGGERS = {
    "InteractiveLogger": lambda tmp_path: (InteractiveLogger(), None),
    "TextLogger": as_text,
    "CSVLogger": as_csv,
    "TensorboardLogger": as_events,
}


def logged(method, *loggers):
    """Two experiences, with metrics and loggers as given."""
    RNGManager.set_random_seeds(0)
    benchmark, model = make_benchmark(), make_model(method)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        eval_mb_size=50,
        plugins=[make_method(method)],
        evaluator=EvaluationPlugin(
            accuracy_metrics(epoch=True, experience=True, stream=True),
            loss_metrics(epoch=True, experience=True),
            loggers=list(loggers),
        ),
    )
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[:2])
    return strategy


@pytest.mark.parametrize("method", COLUMNS)
@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_writes_what_was_measured_and_changes_nothing(name, method, says, tmp_path, capsys):
    says("loggers", name, method, "yes")
    logger, read = LOGGERS[name](tmp_path)
    strategy = logged(method, logger)
    text = capsys.readouterr().out if read is None else read()
    metrics = strategy.evaluator.get_last_metrics()
    kinds = {"Loss_Epoch/train_phase", "Top1_Acc_Epoch/train_phase", "Top1_Acc_Exp/eval_phase", "Loss_Exp/eval_phase"}
    values = {key: value for key, value in metrics.items() if any(key.startswith(kind) for kind in kinds)}
    assert len(values) == 6  # two of them of two experiences
    for key, value in values.items():
        assert (f"{value:.4f}" if name == "CSVLogger" else f"{key} = {value:.4f}") in text
    assert torch.equal(weights(strategy.model), weights(logged(method).model))


@pytest.mark.parametrize("method", COLUMNS)
def test_the_logger_for_wandb_fails_by_itself(method, says, tmp_path):
    wandb = pytest.importorskip("wandb")
    if hasattr(wandb.util, "generate_id"):
        pytest.skip(f"wandb {wandb.__version__} still has what Avalanche's logger calls")
    says(
        "loggers", "WandBLogger", method, "fails by itself: wandb has dropped a function that it calls when it is made"
    )
    with pytest.raises(AttributeError, match="generate_id"):
        WandBLogger(dir=tmp_path, params={"mode": "disabled"})
