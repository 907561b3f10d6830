"""Bad input, one row a kind: the error names what was expected, what came, and the likely cause where there is one.

Losses, metrics and views have tables of their own beside their tests; this one is about plugins, models and streams.
"""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from helpers.streams import Images, digits, make_benchmark, make_encoder
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
    TwoViews,
)
from avalanche_contrastive.metrics import RetrievalMetric, retrieval_metrics

AUGMENT = BatchAugmentation(flip=0.0)


def contrastive(width=16, encoder=None):
    return ContrastiveModel(encoder or make_encoder(), width, 8)


def classifier(classes=10):
    return nn.Sequential(make_encoder(), nn.Linear(16, classes))


def train(model, plugin, benchmark=None, steps=1):
    benchmark = benchmark or make_benchmark()
    parameters = list(model.parameters()) or [nn.Parameter(torch.zeros(1))]
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(parameters, lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[plugin],
        evaluator=None,
    )
    for experience in benchmark.train_stream[:steps]:
        strategy.train(experience)


def no_class_ids():
    (x, y), _ = digits()
    return benchmark_from_datasets(train=[as_classification_dataset(Images(x, y))])


def strategy(cls, model, **options):
    return cls(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=None, **options)


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


class Changes(nn.Module):
    """Makes something of a model's output."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model(x))


class ThreeAxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(x[:, 0])


class NoClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = make_encoder(10)

    def forward(self, x):
        return self.encoder(x)


BAD = {
    # constructors
    "negative memory": (lambda: SSILPlugin(mem_size=-1), ValueError, "mem_size.*>= 0, got -1"),
    "fractional memory": (lambda: Co2LPlugin(mem_size=2.5), ValueError, "mem_size.*whole number.*got 2.5"),
    "memory and policy disagree": (
        lambda: SSILPlugin(mem_size=10, storage_policy=ReservoirSamplingBuffer(20)),
        ValueError,
        "mem_size is 10.*holds 20",
    ),
    "a list for a storage policy": (lambda: Co2LPlugin(storage_policy=[]), TypeError, "Avalanche's buffers.*got list"),
    "no replay rows": (lambda: SSILPlugin(batch_size_mem=0), ValueError, "batch_size_mem.*>= 1, got 0"),
    "zero temperature": (lambda: SSILPlugin(temperature=0), ValueError, "temperature must be.*> 0, got 0"),
    "zero teacher temperature": (lambda: Co2LPlugin(teacher_temperature=0.0), ValueError, "teacher_temperature.*got 0"),
    "infinite temperature": (lambda: CSDPlugin(temperature=float("inf")), ValueError, "temperature.*finite.*got inf"),
    "negative weight": (lambda: CSDPlugin(kd_weight=-1), ValueError, "kd_weight must be.*>= 0, got -1"),
    "negative margin": (lambda: CSDPlugin(margin=-0.1), ValueError, "margin must be.*>= 0, got -0.1"),
    "unknown distillation": (
        lambda: SSILPlugin(distillation="taskwise"),
        ValueError,
        "'task', 'global'.*got 'taskwise'",
    ),
    "unknown read-out": (
        lambda: Co2LPlugin(readout="knn"),
        ValueError,
        "readout must be one of 'linear', 'ncm'.*'knn'",
    ),
    "unknown reduction": (lambda: Co2LPlugin(reduction="mean"), ValueError, "reduction must be one of.*got 'mean'"),
    "unknown cross-entropy": (lambda: CSDPlugin(ce="old"), ValueError, "ce must be one of.*got 'old'"),
    "unknown form": (lambda: CSDPlugin(form="official"), ValueError, "form must be one of.*got 'official'"),
    "unknown teacher mode": (lambda: SSILPlugin(teacher_mode="ema"), ValueError, "teacher_mode.*got 'ema'"),
    "one view": (lambda: Co2LPlugin(augmentation=AUGMENT, views=1), ValueError, "views must be.*>= 2, got 1"),
    "an augmentation that cannot be called": (lambda: Co2LPlugin(augmentation=3), TypeError, "callable, got int"),
    "zero epochs for the read-out": (lambda: Co2LPlugin(readout_epochs=0), ValueError, "readout_epochs.*>= 1, got 0"),
    "no temperature": (lambda: Co2LPlugin(temperature=None), ValueError, "temperature must be.*> 0, got None"),
    "a temperature in words": (lambda: SSILPlugin(temperature="2"), ValueError, "temperature must be.*got '2'"),
    "no weight": (lambda: CSDPlugin(weight=None), ValueError, "weight must be.*>= 0, got None"),
    "a fraction of a view": (lambda: Co2LPlugin(views=2.5), ValueError, "views must be a whole number.*got 2.5"),
    "a flag in words": (lambda: SSILPlugin(separated="no"), ValueError, "separated must be True or False, got 'no'"),
    "no rows per step": (lambda: SSILPlugin(batch_size_mem=None), ValueError, "batch_size_mem.*>= 1, got None"),
    "no plasticity": (
        lambda: CSDPlugin(ce_weight=0, triplet_weight=0),
        ValueError,
        "ce_weight and triplet_weight are both 0",
    ),
    "rows of no replay": (
        lambda: Co2LPlugin(rehearse=False, batch_size_mem=8),
        ValueError,
        "batch_size_mem is 8, but rehearse=False replays nothing",
    ),
    "an augmentation's class": (
        lambda: Co2LPlugin(augmentation=BatchAugmentation),
        TypeError,
        "got BatchAugmentation itself",
    ),
    "a layer for a layer's name": (lambda: CSDPlugin(feature_layer=nn.Linear(2, 2)), TypeError, "name.*got Linear"),
    "a name for an encoder": (lambda: ContrastiveModel("resnet18", 512), TypeError, "torch module, got str"),
    "a plugin for a list of plugins": (
        lambda: strategy(SSIL, classifier(), plugins=CSDPlugin()),
        TypeError,
        "list of plugins, got CSDPlugin",
    ),
    "unknown plugin argument": (lambda: SSILPlugin(memory=3), TypeError, "unexpected keyword argument 'memory'"),
    "unknown strategy argument": (lambda: strategy(SSIL, classifier(), memory=3), TypeError, "unexpected.*memory"),
    "a memory for CSD": (lambda: strategy(CSD, classifier(), mem_size=3), TypeError, "unexpected.*mem_size"),
    "bad option through a strategy": (
        lambda: strategy(Co2L, contrastive(), weight=-2.0),
        ValueError,
        "weight must be.*>= 0, got -2",
    ),
    "TwoViews of one view": (lambda: TwoViews(torch.clone, views=1), ValueError, "views must be >= 2, got 1"),
    "TwoViews of nothing": (lambda: TwoViews(None), TypeError, "callable, got NoneType"),
    "feature size zero": (
        lambda: ContrastiveModel(make_encoder(), 0),
        ValueError,
        "feature_size must be a whole number >= 1, got 0",
    ),
    # models
    "a plain classifier for Co2L": (
        lambda: train(classifier(), Co2LPlugin(augmentation=AUGMENT)),
        TypeError,
        r"ContrastiveModel, got Sequential.*Wrap the encoder",
    ),
    "an encoder of another width": (
        lambda: train(contrastive(width=32), Co2LPlugin(augmentation=AUGMENT)),
        ValueError,
        r"\(20, 32\), got \(20, 16\).*feature_size",
    ),
    "an encoder that is not flat": (
        lambda: train(contrastive(encoder=nn.Conv2d(1, 16, 3)), Co2LPlugin(augmentation=AUGMENT)),
        ValueError,
        r"got \(20, 16, 6, 6\).*flat",
    ),
    "a head narrower than the classes (SS-IL)": (
        lambda: train(classifier(3), SSILPlugin()),
        ValueError,
        "class 8 has no logit, the model gives 3",
    ),
    "a head narrower than the classes (CSD)": (
        lambda: train(classifier(3), CSDPlugin()),
        ValueError,
        "class 8 has no logit.*growing head",
    ),
    "logits with three axes": (
        lambda: train(ThreeAxes(), SSILPlugin()),
        ValueError,
        r"logits \(B, K\).*got shape \(10, 8, 10\)",
    ),
    "a tuple for logits": (lambda: train(Tuple(), SSILPlugin()), ValueError, r"logits \(B, K\).*got tuple"),
    "a model that detaches its output": (
        lambda: train(Changes(classifier(), torch.detach), SSILPlugin()),
        ValueError,
        r"does not depend on the weights.*detach what it gives",
    ),
    "a model that has diverged, behind the layer that makes the logits": (
        lambda: train(Changes(classifier(), lambda z: z * float("nan")), CSDPlugin()),
        FloatingPointError,
        r"CSDPlugin: the loss of .* is nan",
    ),
    "a model without a classifier": (
        lambda: train(NoClassifier(), CSDPlugin()),
        ValueError,
        "NoClassifier has no classifier layer.*Name the layer",
    ),
    "an unknown feature layer": (
        lambda: train(classifier(), CSDPlugin(feature_layer="0.44")),
        ValueError,
        "'0.44' is not in Sequential; did you mean '0.4'",
    ),
    "logits of an untrained read-out": (
        lambda: contrastive().eval()(torch.rand(1, 1, 8, 8)),
        RuntimeError,
        "no class is known yet.*Train",
    ),
    "a batch of another rank": (
        lambda: ContrastiveModel(make_encoder(), 16, sample_ndim=3).project(torch.rand(8, 8)),
        ValueError,
        r"4 axes, or one more with views, got shape \(8, 8\)",
    ),
    # streams
    "a stream without class ids (SS-IL)": (
        lambda: train(classifier(), SSILPlugin(), no_class_ids()),
        ValueError,
        "no classes_in_this_experience.*with_classes_timeline",
    ),
    "a stream without class ids (Co2L)": (
        lambda: train(contrastive(), Co2LPlugin(augmentation=AUGMENT), no_class_ids()),
        ValueError,
        "class ids of each experience.*with_classes_timeline",
    ),
    "a batch without views": (
        lambda: train(contrastive(), Co2LPlugin()),
        ValueError,
        r"\(B, V, C, H, W\) with V >= 2, got \(10, 1, 8, 8\).*TwoViews",
    ),
    "an augmentation that changes the shape": (
        lambda: train(contrastive(), Co2LPlugin(augmentation=lambda x: x[:, :, :4])),
        ValueError,
        r"shape \(10, 1, 8, 8\).*got \(10, 1, 4, 8\)",
    ),
    "an augmentation that gives a list": (
        lambda: train(contrastive(), Co2LPlugin(augmentation=lambda x: [x, x])),
        ValueError,
        "same shape, got list",
    ),
    "two methods": (
        lambda: strategy(SSIL, classifier(), plugins=[CSDPlugin()]).train(make_benchmark().train_stream[0]),
        ValueError,
        "SSILPlugin is a whole method.*CSDPlugin",
    ),
    "a plugin used a second time": (
        lambda: _twice(SSILPlugin(mem_size=5)),
        ValueError,
        "already been trained through 1 experiences.*new plugin for each run",
    ),
    "a memory that is not empty": (
        lambda: train(classifier(), SSILPlugin(mem_size=5, storage_policy=_filled(5))),
        ValueError,
        "holds 5 samples before the first experience",
    ),
    "views made twice": (
        lambda: train(contrastive(), Co2LPlugin(augmentation=AUGMENT), make_benchmark(transform=TwoViews(torch.clone))),
        ValueError,
        r"without views.*got \(10, 2, 1, 8, 8\).*Leave one out",
    ),
    "samples of two axes without a word": (
        lambda: train(contrastive(), Co2LPlugin(), make_benchmark(transform=lambda x: x[0])),
        ValueError,
        r"\(B, V, C, H, W\).*got \(10, 8, 8\).*sample_ndim",
    ),
    "a head per task without task labels": (
        lambda: train(MTSimpleMLP(input_size=64), SSILPlugin(), make_benchmark("A")),
        ValueError,
        r"a head per task \(MTSimpleMLP\) needs the task label.*with_task_labels.*one head",
    ),
    "Co2L's model for SS-IL": (
        lambda: train(contrastive(), SSILPlugin()),
        ValueError,
        "ContrastiveModel gives projections.*Use a classifier",
    ),
    "a last layer that is no classifier (CSD)": (
        lambda: train(_conv_head(), CSDPlugin()),
        ValueError,
        r"\(64 outputs\), has made the 10 outputs.*feature_layer",
    ),
    # metrics
    "recall at no K": (lambda: retrieval_metrics(ks=()), ValueError, r"ks must be.*>= 1, got \(\)"),
    "a number for ks": (lambda: retrieval_metrics(ks=1), ValueError, "ks must be a sequence.*got 1"),
    "no level": (lambda: retrieval_metrics(experience=False, stream=False), ValueError, "both False"),
    "recall at K zero": (lambda: RetrievalMetric((0,), "stream"), ValueError, "ks must be.*>= 1, got 0"),
}


def _twice(plugin):
    train(classifier(), plugin)
    train(classifier(), plugin)


def _filled(size):
    buffer = ReservoirSamplingBuffer(size)
    buffer.update_from_dataset(make_benchmark().train_stream[0].dataset)
    return buffer


def _conv_head():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Unflatten(1, (64, 1, 1)), nn.Conv2d(64, 10, 1), nn.Flatten()
    )


@pytest.mark.filterwarnings("ignore:SSILPlugin")
@pytest.mark.parametrize("kind", BAD)
def test_a_clear_error(kind):
    act, error, message = BAD[kind]
    with pytest.raises(error, match=f"(?s){message}"):
        act()


def test_the_table_is_long_enough():
    assert len(BAD) >= 40
