"""Broken input to training, one row a kind: found at the first batch, named with its place, and nothing is lost.

``test_bad_input.py`` has the options of constructors and the wrong models; ``test_hostile_files.py`` has the files.
"""

import itertools

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from helpers.streams import Images, digits, make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import CSD, SSIL, BatchAugmentation, Co2L, ContrastiveModel, ExperienceSchedule
from avalanche_contrastive.plugins import CSDPlugin, SSILPlugin

METHODS = {"co2l": Co2L, "ssil": SSIL, "csd": CSD}
CLASSES = ((3, 8), (1, 6), (0, 9))
NAN, INF = float("nan"), float("inf")


class Odd(Images):
    """Images whose samples a function changes: (x, y, index) to (x, y)."""

    def __init__(self, x, y, change):
        super().__init__(x, y)
        self.change = change

    def __getitem__(self, i):
        return self.change(self.tensors[0][i], self.targets[i], i)


def stream(change=None, *, empty=False):
    """Three experiences of two classes, 12 images each; the second is changed."""
    (x, y), _ = digits()
    parts = []
    for number, classes in enumerate(CLASSES):
        rows = torch.isin(y, torch.tensor(classes))
        rows = rows & False if empty and number == 1 else rows
        changed = change if number == 1 and change is not None else lambda x, y, i: (x, y)
        parts.append(as_classification_dataset(Odd(x[rows], y[rows], changed)))
    return with_classes_timeline(benchmark_from_datasets(train=parts, test=parts)).train_stream


def make_model(method):
    return (
        ContrastiveModel(make_encoder(), 16, 8)
        if method == "co2l"
        else nn.Sequential(make_encoder(), nn.Linear(16, 10))
    )


def make(method, model=None, optimizer=None, **options):
    model = make_model(method) if model is None else model
    if method == "co2l":
        options = {"augmentation": BatchAugmentation(flip=0.0), "readout_epochs": 2, **options}
    if method != "csd":
        options = {"mem_size": 8, **options}
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"train_mb_size": 10, "eval_mb_size": 64, "evaluator": None, **options}
    return METHODS[method](model=model, optimizer=optimizer, **options)


def state_of(strategy):
    """Everything that training moves, and what a failing step could leave behind."""
    model, method = strategy.model, strategy.method
    storage = getattr(method, "storage_policy", None)
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "momentum": [s["momentum_buffer"].clone() for s in strategy.optimizer.state.values()],
        "ledger": list(method.ledger),
        "stored": 0 if storage is None else len(storage.buffer),
        "criterion": strategy._criterion,
        "plugins": list(strategy.plugins),
        "parameters": [len(group["params"]) for group in strategy.optimizer.param_groups],
    }


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


# ---- samples


def one_row(value):
    def change(x, y, i):
        return (torch.where(torch.arange(64).view(1, 8, 8) < 5, value, x) if i == 3 else x), y

    return change


def text(x, y, i):
    return x, "three"


def failing(x, y, i):
    raise ZeroDivisionError("a transform of the user's")


SAMPLES = {
    "a NaN in one image": (
        one_row(NAN),
        ValueError,
        r"images of experience 1, epoch 0, batch 0 .*row 3 of the 1\d|4\d in the batch; row 3 \(label [16]\) has 5 NaN",
    ),
    "an infinity in one image": (one_row(-INF), ValueError, r"experience 1.*row 3 \(label [16]\) has 0 NaN and 5 inf"),
    "NaN everywhere": (lambda x, y, i: (x / 0 * 0, y), ValueError, "rows 0, 1, 2, 3, 4, ... of the.*divide by zero"),
    "a negative label": (lambda x, y, i: (x, -1 if i == 3 else y), ValueError, r"\(1, 6\).*row 3 of the batch has -1"),
    "a label beyond all classes": (
        lambda x, y, i: (x, 999 if i == 3 else y),
        ValueError,
        "row 3 of the batch has 999, and 1 of",
    ),
    "a label of a later experience": (
        lambda x, y, i: (x, 9 if i == 3 else y),
        ValueError,
        r"neither the current \(1, 6\) nor the earlier \(3, 8\) .*has 9.*`targets`",
    ),
    "labels as floats": (
        lambda x, y, i: (x, float(y)),
        ValueError,
        r"integer class ids.*got torch.float64.*as floats|labels .* torch.float64 of .*torch.int64",
    ),
    "labels as bools": (
        lambda x, y, i: (x, y > 3),
        ValueError,
        r"name classes that are in neither the current|labels .* torch.bool of .*torch.int64",
    ),
    "labels one-hot": (
        lambda x, y, i: (x, torch.eye(10, dtype=torch.long)[y]),
        ValueError,
        r"one per image, got torch.int64 of shape \(\d+, 10\).*one-hot|labels .* of shape \(10,\).*of shape \(\)",
    ),
    "labels as text": (text, (AttributeError, TypeError, ValueError), "(tuple|str).*"),
    "no label": (lambda x, y, i: (x, None), TypeError, "found <class 'NoneType'>"),
    "bytes for images": (
        lambda x, y, i: ((x * 255).byte(), y),
        (RuntimeError, ValueError),
        "(Byte|unsigned char|uint8).*",
    ),
    "double precision for images": (
        lambda x, y, i: (x.double(), y),
        (RuntimeError, ValueError),
        r"input was torch.float64.*parameters are torch.float32|images .* torch.float64 of .*torch.float32",
    ),
    "complex images": (lambda x, y, i: (x.to(torch.complex64), y), (RuntimeError, ValueError), "(?i)complex.*float32"),
    "three channels for one": (
        lambda x, y, i: (x.expand(3, 8, 8), y),
        (RuntimeError, ValueError),
        r"got 3 channels.*this was in experience 1, epoch 0, batch 0|\(3, 8, 8\), those in .*\(1, 8, 8\)",
    ),
    "no channels": (lambda x, y, i: (x[0], y), (RuntimeError, ValueError), r"\(?1?\d, 8, 8\)?.*"),
    "images of several sizes": (
        lambda x, y, i: (x[:, : 8 - i % 2], y),
        RuntimeError,
        r"equal size, but got \[1, [87], 8\] at entry 0",
    ),
    "a transform that fails": (failing, ZeroDivisionError, "a transform of the user's"),
}
# CSD has no memory, and a network with pooling takes images of any size.
SIZES = {
    "images of another size than before": (lambda x, y, i: (x[:, :7, :7], y), ValueError, r"\(1, 7, 7\).*\(1, 8, 8\)")
}
ROWS = [(kind, method) for kind, method in itertools.product(SAMPLES, METHODS)]
ROWS += [(kind, method) for kind, method in itertools.product(SIZES, ("co2l", "ssil"))]


@pytest.mark.parametrize(("kind", "method"), ROWS, ids=[f"{kind}-{method}" for kind, method in ROWS])
def test_refused_at_the_first_batch_and_training_goes_on_as_if_it_had_never_come(kind, method):
    change, error, message = {**SAMPLES, **SIZES}[kind]
    spoiled, undisturbed = (make(method, plugins=[ExperienceSchedule(later=0.5)]) for _ in range(2))
    undisturbed.model.load_state_dict(spoiled.model.state_dict())
    good, bad = stream(), stream(change)
    for strategy in (spoiled, undisturbed):
        RNGManager.set_random_seeds(1)
        strategy.train(good[0], shuffle=False)
    before = state_of(spoiled)
    with pytest.raises(error, match=f"(?s){message}"):
        spoiled.train(bad[1], shuffle=False)
    assert_same(state_of(spoiled), before)

    for strategy in (spoiled, undisturbed):
        RNGManager.set_random_seeds(2)
        strategy.train(good[1])
        strategy.eval(good[:2])
    assert_same(state_of(spoiled), state_of(undisturbed), but=("plugins", "criterion"))
    assert spoiled._criterion is before["criterion"]
    assert [group["lr"] for group in spoiled.optimizer.param_groups] == [0.05]
    assert hooks_of(spoiled.model) == []


def assert_same(one, other, but=()):
    for key in one.keys() - set(but):
        if key == "weights":
            assert one[key].keys() == other[key].keys()
            assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())
        elif key == "momentum":
            assert all(map(torch.equal, one[key], other[key]))
        else:
            assert one[key] == other[key], key


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_experience_is_named(method):
    strategy = make(method)
    first, empty, last = stream(empty=True)
    strategy.train(first)
    before = state_of(strategy)
    with pytest.raises(ValueError, match=r"experience 1 has no sample\. Leave it out"):
        strategy.train(empty)
    assert_same(state_of(strategy), before)
    strategy.train(last)
    assert len(strategy.method.ledger) == 2
    assert strategy.eval([]) == {}


def test_co2l_says_that_batches_of_one_teach_nothing():
    strategy = make("co2l", train_mb_size=1)
    before = [parameter.clone() for parameter in strategy.model.parameters()]
    with pytest.warns(UserWarning, match="train_mb_size is 1 .*the encoder learns nothing"):
        strategy.train(stream()[0])
    moved = [(a - b).abs().max().item() for a, b in zip(before, strategy.model.parameters(), strict=True)]
    assert max(moved) < 1e-4, "rounding errors, and no more"


@pytest.mark.filterwarnings("ignore:Co2LPlugin. train_mb_size is 1")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 7, 12, 1000])
def test_batches_of_one_and_experiences_smaller_than_a_batch_train(method, size):
    strategy = make(method, train_mb_size=size)
    for experience in stream():
        strategy.train(experience)
    assert all(value.isfinite().all() for value in strategy.model.state_dict().values())


@pytest.mark.parametrize("method", METHODS)
def test_broken_images_are_refused_in_evaluation_too(method):
    strategy = make(method)
    strategy.train(stream()[0])
    before = state_of(strategy)
    with pytest.raises(ValueError, match=r"images of evaluation of experience 1 are not finite: row 3 of the 24"):
        strategy.eval(stream(one_row(NAN)))
    assert_same(state_of(strategy), before)
    strategy.eval(stream())


def test_an_evaluation_transform_that_breaks_images_does_not_reach_the_read_out():
    strategy = make("co2l")
    x, y = digits()[0]
    data = as_classification_dataset(
        Images(x, y), transform_groups={"train": (None, None), "eval": (lambda x: x * NAN, None)}
    )
    (experience,) = with_classes_timeline(benchmark_from_datasets(train=[data])).train_stream
    with pytest.raises(ValueError, match=r"120 of the 120 features to fit the read-out to are not finite.*evaluation"):
        strategy.train(experience)
    assert not strategy.model.readout.fitted.any()


AUGMENTATIONS = {
    "gives NaN": (lambda x: x / 0, ValueError, "views that the augmentation made of the images of experience 1.*NaN"),
    "gives an array": (lambda x: x.numpy(), ValueError, "one of the same shape, got ndarray"),
    "gives another shape": (lambda x: x[:, :, ::2], ValueError, r"\(10, 1, 8, 8\).*got \(10, 1, 4, 8\)"),
    "gives fewer images": (lambda x: x[1:], ValueError, r"\(10, 1, 8, 8\).*got \(9, 1, 8, 8\)"),
    "gives nothing": (lambda x: None, ValueError, "same shape, got NoneType"),
    "fails": (lambda x: 1 / 0, ZeroDivisionError, "this was in experience 1, epoch 0, batch 0"),
}


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_a_broken_augmentation_is_refused_and_training_goes_on(kind):
    augmentation, error, message = AUGMENTATIONS[kind]
    strategy = make("co2l")
    strategy.train(stream()[0])
    before, whole = state_of(strategy), strategy.method.augmentation
    strategy.method.augmentation = augmentation
    with pytest.raises(error, match=f"(?s){message}"):
        strategy.train(stream()[1])
    assert_same(state_of(strategy), before)
    strategy.method.augmentation = whole
    strategy.train(stream()[1])
    strategy.eval(stream()[:2])
    assert hooks_of(strategy.model) == []


# ---- models, optimisers, templates


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, **options})


def late(method, **how):
    """A strategy whose learning rate is spoiled after it has been made."""
    strategy = make(method)
    strategy.optimizer.param_groups[0].update(how)
    return strategy


MADE = {
    "no model": (
        lambda m: METHODS[m](model=None, optimizer=sgd(make_model(m))),
        TypeError,
        "model must be a torch module, got NoneType",
    ),
    "a model's class": (
        lambda m: make(m, model=nn.Linear, optimizer=sgd(make_model(m))),
        TypeError,
        "must be a torch module, got Linear",
    ),
    "a list of layers": (
        lambda m: make(m, model=[nn.Linear(2, 2)], optimizer=sgd(make_model(m))),
        TypeError,
        "must be a torch module, got list",
    ),
    "no optimiser": (
        lambda m: METHODS[m](model=make_model(m), optimizer=None),
        TypeError,
        "optimizer must be a torch optimiser.*got NoneType",
    ),
    "an optimiser's class": (lambda m: make(m, optimizer=torch.optim.SGD), TypeError, "torch optimiser.*got SGD"),
    "a rate for an optimiser": (lambda m: make(m, optimizer=0.1), TypeError, "torch optimiser.*got float"),
    "batches of none": (lambda m: make(m, train_mb_size=0), ValueError, "train_mb_size.*>= 1, got 0"),
    "batches of less than none": (lambda m: make(m, train_mb_size=-8), ValueError, "train_mb_size.*got -8"),
    "half an image per batch": (lambda m: make(m, train_mb_size=0.5), ValueError, "train_mb_size.*got 0.5"),
    "evaluation in batches of none": (lambda m: make(m, eval_mb_size=0), ValueError, "eval_mb_size.*>= 1, got 0"),
    "no epochs": (lambda m: make(m, train_epochs=0), ValueError, "train_epochs.*>= 1, got 0"),
    "epochs in words": (lambda m: make(m, train_epochs="20"), ValueError, "train_epochs.*got '20'"),
    "a criterion in words": (lambda m: make(m, criterion="ce"), TypeError, "criterion must be callable, got str"),
    "None among the plugins": (
        lambda m: make(m, plugins=[None]),
        TypeError,
        r"plugins\[0\] must be a plugin, got None",
    ),
    "a plugin's class among the plugins": (
        lambda m: make(m, plugins=[ExperienceSchedule(), ExperienceSchedule]),
        TypeError,
        r"plugins\[1\].*the class ExperienceSchedule itself",
    ),
    "a method twice": (
        lambda m: make(m, plugins=[CSDPlugin() if m != "csd" else SSILPlugin()]),
        ValueError,
        "is a whole method and cannot share a strategy",
    ),
    "an optimiser of another model": (
        lambda m: make(m, optimizer=sgd(make_model(m))),
        ValueError,
        r"holds none of the \d parameters of this .*another model, or for a copy",
    ),
    "a frozen model": (
        lambda m: (lambda model: make(m, model=model.requires_grad_(False), optimizer=sgd(model)))(make_model(m)),
        ValueError,
        r"none of the \d parameters of .* wants a gradient.*frozen",
    ),
    "a rate that is no number": (lambda m: late(m, lr=NAN), ValueError, "learning rate must be a finite.*got nan"),
    "an infinite rate": (lambda m: late(m, lr=INF), ValueError, "learning rate must be a finite number.*got inf"),
    "a rate below zero": (lambda m: late(m, lr=-0.1), ValueError, "learning rate must be.*got -0.1"),
    "a model without memory of its own": (
        lambda m: make(m, model=make_model(m).to("meta")),
        NotImplementedError,
        "meta tensor; no data",
    ),
    "an unknown device": (lambda m: make(m, device="gpu"), RuntimeError, "(?i)device.*gpu"),
    "a model in half precision": (
        lambda m: make(m, model=make_model(m).bfloat16()),
        RuntimeError,
        "(?i)bfloat16.*input was torch.float32.*parameters are torch.bfloat16",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MADE)
def test_a_strategy_that_cannot_train_says_why(kind, method):
    made, error, message = MADE[kind]
    with pytest.raises(error, match=f"(?s){message}"):
        made(method).train(stream()[0])


def test_an_optimiser_made_before_the_head_grew_or_the_encoder_was_wrapped_is_taken():
    from avalanche.models import IncrementalClassifier

    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(64))
    strategy = make("ssil", model=model)
    strategy.eval(make_benchmark().test_stream)  # the head grows, and its parameters are others than the optimiser's
    strategy.train(make_benchmark().train_stream[0])
    encoder = make_encoder()
    wrapped = make("co2l", model=ContrastiveModel(encoder, 16, 8), optimizer=sgd(encoder))
    wrapped.train(stream()[0])
    held = [id(parameter) for parameter in wrapped.optimizer.param_groups[0]["params"]]
    assert {id(parameter) for parameter in wrapped.model.parameters()} == set(held)


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_model_is_said_before_its_weights_are_lost(method):
    strategy = make(method, train_epochs=30)
    strategy.train(stream()[0])
    weights = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    for layer in strategy.model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.fill_(3e38)  # finite, as weights of a diverging model are until they are not
    with pytest.raises(FloatingPointError, match=r"the loss of experience 1, epoch 0, .*diverged.*rate \(0.05\)"):
        strategy.train(stream()[1])
    assert all(value.isfinite().all() for value in strategy.model.parameters())
    strategy.model.load_state_dict(weights)
    strategy.train(stream()[1])
    assert isinstance(strategy._criterion, nn.CrossEntropyLoss)


def test_huge_but_finite_images_are_no_broken_images():
    strategy = make("ssil")
    strategy.train(stream(lambda x, y, i: (x * 3e37, y))[1])  # their sum is infinite, and batch norm takes them
    assert all(value.isfinite().all() for value in strategy.model.parameters())


@pytest.mark.parametrize("plugin", [SSILPlugin(mem_size=8), CSDPlugin()], ids=["ssil", "csd"])
def test_the_plugins_under_naive_look_as_closely(plugin):
    model = make_model("ssil")
    strategy = Naive(model=model, optimizer=sgd(model), train_mb_size=10, evaluator=None, plugins=[plugin])
    with pytest.raises(ValueError, match=r"images of experience 1, epoch 0.*row 3"):
        strategy.train(stream(one_row(NAN))[1], shuffle=False)
    with pytest.raises(ValueError, match="holds none of the"):
        Naive(model=model, optimizer=sgd(make_model("ssil")), evaluator=None, plugins=[plugin]).train(stream()[0])
