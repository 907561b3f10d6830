"""Batches and outputs that are no plain tensors, labels of any kind, samples of unequal size: right, or refused."""

import copy
import queue
import tempfile
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import SupervisedPlugin
from helpers.streams import Images, digits, make_benchmark, make_encoder, noise
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from avalanche_contrastive import CSD, SSIL, Co2L, Co2LPlugin, ContrastiveModel, CSDPlugin, SSILPlugin
from avalanche_contrastive._torch import map_tensors
from avalanche_contrastive.plugins import refit
from avalanche_contrastive.readout import fit_linear

METHODS = ("co2l", "ssil", "csd")
every_method = pytest.mark.parametrize("method", METHODS)


def plugin_for(method, **options):
    if method == "co2l":
        return Co2LPlugin(**{"mem_size": 20, "augmentation": noise, "readout_epochs": 2, **options})
    return SSILPlugin(mem_size=20, batch_size_mem=8) if method == "ssil" else CSDPlugin()


def model_for(method):
    if method == "co2l":
        return ContrastiveModel(make_encoder(), 16, 8)
    return nn.Sequential(make_encoder(), nn.Linear(16, 10))


def trained(method, loop=Naive, wrap=lambda model: model, benchmark=None, **options):
    """The weights after two experiences and an evaluation."""
    RNGManager.set_random_seeds(0)
    benchmark = benchmark or make_benchmark("C")
    model = wrap(model_for(method))
    strategy = loop(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        plugins=[plugin_for(method, **options)],
        train_mb_size=12,
        eval_mb_size=50,
        evaluator=None,
    )
    strategy.train(benchmark.train_stream[:2])
    strategy.eval(benchmark.test_stream[:2])
    return strategy, torch.nn.utils.parameters_to_vector(model.parameters())


# ---- models and batches of several parts


class Wrapped(nn.Module):
    """A model that takes and gives something else than tensors."""

    def __init__(self, model, takes, gives):
        super().__init__()
        self.model, self.takes, self.gives = model, takes, gives

    def forward(self, x):
        return self.gives(self.model(self.takes(x)))


class DictionaryOutput(Naive):
    def forward(self):
        return super().forward()["logits"]


class TupleOutput(Naive):
    def forward(self):
        return super().forward()[1]


class DictionaryInput(Naive):
    """Batches {"image": ..., "number": ...}, of which the model gets the image."""

    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        x, *others = self.mbatch
        self.mbatch = [{"image": x, "number": torch.arange(len(x))}, *others]

    def forward(self):
        return self.model(self.mb_x["image"])


class WholeDictionary(DictionaryInput):
    """The model gets the dictionary."""

    def forward(self):
        return self.model(self.mb_x)


class TupleInput(Naive):
    """Batches (number, image), in a tuple that is not a list."""

    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        x, *others = self.mbatch
        self.mbatch = ((torch.arange(len(x)), x), *others)

    def forward(self):
        return self.model(self.mb_x[1])


class ListInput(Naive):
    """Batches as lists of samples, as detection has them."""

    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        x, *others = self.mbatch
        self.mbatch = [list(x), *others]


class Prepared(Naive):
    """A forward pass that makes something of the batch first."""

    def forward(self):
        return self.model(self.mb_x * 1.0)


def gives(function):
    return lambda model: Wrapped(model, lambda x: x, function)


CLASSIFIERS = {
    "a dictionary of outputs": (DictionaryOutput, gives(lambda z: {"aux": z.sum(), "logits": z})),
    "a tuple of outputs": (TupleOutput, gives(lambda z: (z.sum(), z))),
    "a dictionary for the model": (WholeDictionary, lambda m: Wrapped(m, lambda x: x["image"], lambda z: z)),
    "a list of samples for the model": (ListInput, lambda m: Wrapped(m, torch.stack, lambda z: z)),
}
LOOPS = {
    "an image out of a dictionary": (DictionaryInput, lambda model: model),
    "an image out of a tuple": (TupleInput, lambda model: model),
    "a batch that is prepared": (Prepared, lambda model: model),
}
CASES = [(kind, method) for kind in CLASSIFIERS for method in ("ssil", "csd")]
CASES += [(kind, method) for kind in LOOPS for method in METHODS]


@pytest.mark.parametrize(("kind", "method"), CASES, ids=[f"{kind}-{method}" for kind, method in CASES])
def test_a_forward_pass_of_the_users_own_trains_as_the_plain_one(kind, method):
    """Student and teacher are asked through it: the weights are those of the same model on plain tensors."""
    loop, wrap = {**CLASSIFIERS, **LOOPS}[kind]
    strategy, weights = trained(method, loop, wrap)
    plain, expected = trained(method)
    assert torch.equal(weights, expected)
    assert strategy.plugins[0].terms.keys() == plain.plugins[0].terms.keys() >= {"distillation"}


Parts = namedtuple("Parts", "image number")
BATCHES = {
    "a dictionary": (lambda x, n: {"image": x, "number": n}, lambda x: x["image"]),
    "a dictionary with a list of names": (lambda x, n: {"image": x, "names": ["a"] * len(x)}, lambda x: x["image"]),
    "a nested dictionary": (lambda x, n: {"more": [n, {"image": x}]}, lambda x: x["more"][1]["image"]),
    "a list": (lambda x, n: [x, n], lambda x: x[0]),
    "a tuple": (lambda x, n: (n, x), lambda x: x[1]),
    "a named tuple": (Parts, lambda x: x.image),
}


@pytest.mark.parametrize("kind", BATCHES)
@every_method
def test_an_encoder_that_takes_several_parts(method, kind):
    """Views, teacher and read-out are made of them as of plain tensors."""
    pack, image = BATCHES[kind]

    class Packs(Naive):
        def _unpack_minibatch(self):
            super()._unpack_minibatch()
            x, *others = self.mbatch
            self.mbatch = [pack(x, torch.full((len(x), 1, 8, 8), 7.0)), *others]

    def wrap(model):
        if method != "co2l":
            return Wrapped(model, image, lambda z: z)
        model.encoder = Wrapped(model.encoder, image, lambda z: z)
        return model

    def fade(x):
        return map_tensors(lambda part: part * 0.9, x)

    options = {"augmentation": fade} if method == "co2l" else {}
    strategy, weights = trained(method, Packs, wrap, **options)
    plain, expected = trained(method, **options)
    assert torch.equal(weights, expected)
    if method == "co2l":
        assert torch.equal(strategy.model.readout.weight, plain.model.readout.weight)
        assert strategy.model.readout.fitted.sum() == 4


class Standardized(Naive):
    def forward(self):
        return self.model(self.mb_x * 3 - 1)


class OnlyInTraining(Naive):
    def forward(self):
        return self.model(self.mb_x * 3 - 1 if self.is_training else self.mb_x)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("loop", "seen"), [(Standardized, lambda x: x * 3 - 1), (OnlyInTraining, lambda x: x)])
def test_the_read_out_sees_what_evaluation_sees(loop, seen, augment, monkeypatch):
    """Images go to the model as the strategy's own forward pass gives them in evaluation."""
    fitted = []
    monkeypatch.setattr(refit, "fit_linear", lambda f, y, **o: fitted.append(f) or fit_linear(f, y, **o))
    strategy, _ = trained("co2l", loop, augmentation=lambda x: x * 0.9, readout_augment=augment)
    data = make_benchmark("C").train_stream[1].dataset.eval()
    x = seen(torch.stack([data[i][0] for i in range(len(data))]))
    features = fitted[-1](0) if augment else fitted[-1]
    expected = strategy.model.eval().embed(x * 0.9 if augment else x)
    assert torch.equal(features[: len(data)], expected)


def test_outputs_of_several_parts_need_a_forward_pass_that_takes_the_logits():
    with pytest.raises(ValueError, match=r"class logits \(B, K\) in training, got dict"):
        trained("ssil", Naive, gives(lambda z: {"logits": z}))


# ---- labels


def labelled(change, parts=2):
    """Experiences of two digits whose samples have other labels, by a function of the label."""
    (x, y), _ = digits()
    datasets = []
    for classes in ((3, 8), (1, 6))[:parts]:
        rows = torch.isin(y, torch.tensor(classes))
        datasets.append(as_classification_dataset(Labelled(x[rows], y[rows], change)))
    return with_classes_timeline(benchmark_from_datasets(train=datasets, test=datasets))


class Labelled(Images):
    def __init__(self, x, y, change):
        super().__init__(x, y)
        self.change, self.targets = change, [change(int(c)) for c in y]
        self.targets = [t.item() if isinstance(t, torch.Tensor) else t for t in self.targets]

    def __getitem__(self, i):
        return self.tensors[0][i], self.change(int(self.tensors[1][i]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32])
@every_method
def test_labels_of_any_integer_type(method, dtype):
    _, weights = trained(method, benchmark=labelled(lambda y: torch.tensor(y, dtype=dtype)))
    _, expected = trained(method, benchmark=labelled(int))
    assert torch.equal(weights, expected)


@pytest.mark.parametrize("kind", [bool, np.bool_])
@every_method
def test_labels_that_are_true_or_false(method, kind):
    _, weights = trained(method, benchmark=labelled(lambda y: kind(y > 5), parts=1))
    _, expected = trained(method, benchmark=labelled(lambda y: int(y > 5), parts=1))
    assert torch.equal(weights, expected)


WRONG_LABELS = {
    "-1 and +1": (lambda y: 1 if y > 5 else -1, r"class id is a column.*has the id -1\. Number the classes 0, 1"),
    "dates": (lambda y: 20230115 + y, r"class id is a column.*has the id 202301\d\d\. Number the classes"),
    "floats": (
        float,
        r"class ids must be whole numbers, but this experience has \d\.0\. Are the `targets` floats",
    ),
    "names": (
        lambda y: "cat" if y > 5 else "dog",
        r"must be whole numbers, but this experience has '(cat|dog)'.*names",
    ),
    "an axis of their own": (lambda y: torch.tensor([y]), r"of shape \(12, 1\)\. Are they .* an axis of their own"),
    "one-hot": (lambda y: torch.eye(10, dtype=torch.long)[y], r"one per image, got torch.int64 of shape \(12, 10\)"),
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
@every_method
def test_labels_that_are_no_class_ids(method, kind):
    change, message = WRONG_LABELS[kind]
    benchmark = labelled_otherwise(change) if kind in ("one-hot", "an axis of their own") else labelled(change, parts=1)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        trained(method, benchmark=benchmark)


def labelled_otherwise(change):
    benchmark = labelled(int, parts=1)
    for experience in benchmark.train_stream:
        experience.dataset._flat_data._datasets[0].change = change
    return benchmark


# ---- samples of unequal size, in a data set with a collate_fn


class Ragged(torch.utils.data.Dataset):
    """Sequences of 3 to 7 numbers around a class's own."""

    def __init__(self, classes, seed):
        draws = torch.Generator().manual_seed(seed)
        self.targets = [c for c in classes for _ in range(12)]
        lengths = torch.randint(3, 8, (len(self.targets),), generator=draws).tolist()
        self.x = [torch.randn(n, generator=draws) * 0.3 + c for n, c in zip(lengths, self.targets, strict=True)]

    @property
    def collate_fn(self):
        return padded

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.targets[i]


def padded(samples):
    """To the longest of the batch, with the number of values behind."""
    x = nn.utils.rnn.pad_sequence([sample[0] for sample in samples], batch_first=True)
    lengths = torch.tensor([[len(sample[0])] for sample in samples])
    return [torch.cat([x, lengths], dim=1), *(torch.tensor(part) for part in list(zip(*samples, strict=True))[1:])]


class Mean(nn.Module):
    """The mean and the extremes of padded sequences (..., T + 1)."""

    def forward(self, x):
        lengths = x[..., -1:]
        return torch.cat([x[..., :-1].sum(-1, keepdim=True) / lengths, x[..., :-1].amax(-1, keepdim=True)], dim=-1)


def ragged_benchmark(*, task_labels):
    data = [[as_classification_dataset(Ragged(c, seed)) for c in ((0, 1), (2, 3))] for seed in (0, 1)]
    if task_labels:
        return nc_benchmark(*data, n_experiences=2, task_labels=False, shuffle=False, one_dataset_per_exp=True)
    return with_classes_timeline(benchmark_from_datasets(train=data[0], test=data[1]))


class Collated(Naive):
    """Avalanche's loader for streams without task labels forgets the data set's collation."""

    def make_train_dataloader(self, **kwargs):
        super().make_train_dataloader(**kwargs)
        if isinstance(self.dataloader, torch.utils.data.DataLoader):
            self.dataloader = torch.utils.data.DataLoader(
                self.adapted_dataset, self.train_mb_size, shuffle=True, collate_fn=self.adapted_dataset.collate_fn
            )


@pytest.mark.parametrize("task_labels", [True, False])
@pytest.mark.parametrize("method", ["ssil", "csd", "co2l", "co2l rows"])
def test_samples_of_unequal_size_are_collated_together_with_the_memory(method, task_labels):
    """Padded to the longest of the whole batch, which may be a replayed one."""
    RNGManager.set_random_seeds(0)
    body = nn.Sequential(Mean(), nn.Linear(2, 16), nn.ReLU())
    model = ContrastiveModel(body, 16, 8) if "co2l" in method else nn.Sequential(body, nn.Linear(16, 4))
    rows = 4 if "rows" in method else None
    plugin = Co2LPlugin(mem_size=8, augmentation=torch.clone, batch_size_mem=rows, readout_epochs=2)
    plugin = plugin if "co2l" in method else plugin_for(method)
    shapes = []

    class Shapes(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            x = strategy.mb_x
            shapes.append((len(x), x.shape[1] - 1 == x[:, -1].max()))

    strategy = Collated(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        train_epochs=5,
        plugins=[plugin, Shapes()],
        evaluator=None,
    )
    benchmark = ragged_benchmark(task_labels=task_labels)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    second = {"ssil": [12] * 30, "csd": [4] * 30, "co2l": [4] * 40, "co2l rows": [8] * 30}[method]
    assert [size for size, _ in shapes] == [4] * 30 + second
    assert all(fits for _, fits in shapes)


# ---- models that cannot be copied


HELD = {
    "a lock": threading.Lock,
    "a queue": queue.Queue,
    "a writer of TensorBoard": lambda: SummaryWriter(tempfile.mkdtemp()),
    "a generator": lambda: (i for i in range(3)),
}


@pytest.mark.parametrize("kind", HELD)
@every_method
def test_a_model_that_cannot_be_copied_is_named_before_the_first_experience(method, kind):
    def hold(model):
        model.held = HELD[kind]()
        return model

    with pytest.raises(
        ValueError, match=r"keeps a copy of the model.*cannot be copied \(TypeError: .*a writer, a lock"
    ):
        trained(method, Naive, hold)


class Keeps(nn.Module):
    """Keeps what it has made, in a list and a dictionary."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.kept, self.all = layer, {}, []

    def forward(self, x):
        self.kept["features"] = self.layer(x)
        self.all.append((x, self.kept["features"]))
        return self.kept["features"] * 1.0


@every_method
def test_a_model_that_keeps_tensors_of_a_graph_is_copied_all_the_same(method):
    def keep(model):
        if method == "co2l":
            model.encoder = Keeps(model.encoder)
        else:
            model[0] = Keeps(model[0])
        return model

    _, weights = trained(method, Naive, keep)
    _, expected = trained(method)
    assert torch.equal(weights, expected)


NO_TEACHER = {
    "co2l": (Co2L, {"augmentation": noise, "weight": 0.0}),
    "ssil": (SSIL, {"distillation": "none"}),
    "ssil, no weight": (SSIL, {"weight": 0.0}),
    "csd": (CSD, {"weight": 0.0, "kd_weight": 0.0}),
}


@pytest.mark.parametrize("kind", NO_TEACHER)
def test_a_method_without_distillation_copies_no_model(kind, monkeypatch):
    strategy_class, options = NO_TEACHER[kind]
    model = model_for(kind.split(",")[0])
    model.lock = threading.Lock()  # which no copy could take along
    strategy = strategy_class(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), train_mb_size=12, evaluator=None, **options
    )
    strategy.train(make_benchmark().train_stream[:2])
    assert strategy.method.teacher is None
    assert strategy.method.past
    assert not {"distillation", "contrast"} & strategy.method.terms.keys() - ({"contrast"} if kind == "co2l" else set())
    assert copy.deepcopy(strategy.method.ledger) == strategy.method.ledger


@pytest.mark.parametrize("method", ["co2l", "ssil", "csd"])
def test_a_teacher_is_kept_only_while_a_distillation_asks_it(method):
    """Options may be changed between experiences; a growing head shows a teacher that was left behind."""
    model = model_for(method) if method == "co2l" else nn.Sequential(make_encoder(), IncrementalClassifier(16))
    strategy = {"co2l": Co2L, "ssil": SSIL, "csd": CSD}[method](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=12,
        evaluator=None,
        **({"augmentation": noise} if method == "co2l" else {}),
    )
    plugin, has_teacher = strategy.method, []
    for weight, experience in zip((1.0, 0.0, 0.0, 1.0, 1.0), make_benchmark().train_stream, strict=True):
        plugin.weight = weight
        if method == "csd":
            plugin.kd_weight = weight
        strategy.train(experience)
        has_teacher.append((plugin.teacher is not None, plugin.terms.keys() >= {"distillation"}))
    assert has_teacher == [(True, False), (False, False), (False, False), (True, True), (True, True)]
