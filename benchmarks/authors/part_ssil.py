"""SS-IL: the authors' trainer over the experiences, and their choice of exemplars."""

import copy
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from avalanche.training import Naive
from avalanche.training.storage_policy import ParametricBuffer
from checkouts import Checkout, no_gpu_needed
from replay import Images, Part, Recorder, difference, largest, seeded, stream_of, values_of
from sklearn.utils import shuffle
from torch import Tensor, nn

from avalanche_contrastive import ExperienceSchedule, SSILPlugin
from avalanche_contrastive.bench.methods.networks import Classifier, make_encoder
from avalanche_contrastive.plugins.exemplars import FirstExemplarsSelection

METHOD = "SS-IL"
EXPERIENCES, CLASSES_EACH, EPOCHS = 3, 3, 4
OPTIONS = SimpleNamespace(
    trainer="ssil",
    batch_size=12,
    replay_batch_size=6,
    lr=0.1,
    momentum=0.9,
    decay=1e-4,
    schedule=[2],
    gammas=[0.1],
    base_classes=CLASSES_EACH,
    step_size=CLASSES_EACH,
    memory_budget=14,
    memory_growing=False,
    workers=0,
)


def parts(checkout: Checkout) -> Iterator[Part]:
    """Training with its learning rates, and exemplars."""
    shown = {"trainer": "trainer.trainer_factory"}
    names = ("trainer.ssil", "data_handler.incremental_loader", "data_handler.dataset")
    with checkout.modules(*names, stubs=("networks",), shown=shown) as (trainer, loader, dataset):
        yield from _training(trainer, loader)
        yield from _exemplars(loader)
        yield _class_order(dataset)


def _training(trainer: Any, loader: Any) -> Iterator[Part]:
    seeded(0)
    encoder = make_encoder("small_cnn", (3, 8, 8))
    model = Classifier(encoder, nn.Linear(encoder.features, EXPERIENCES * CLASSES_EACH))
    theirs = copy.deepcopy(model)
    recorder, options = Recorder(model), OPTIONS
    plugin = SSILPlugin(mem_size=options.memory_budget, batch_size_mem=options.replay_batch_size)
    sgd = {"momentum": options.momentum, "weight_decay": options.decay}
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), options.lr, **sgd),
        plugins=[plugin, ExperienceSchedule("steps", milestones=options.schedule, by_experience=True), recorder],
        train_mb_size=options.batch_size,
        train_epochs=EPOCHS,
        evaluator=None,
    )
    images = Images((3, 8, 8), classes=EXPERIENCES * CLASSES_EACH, per_class=11, seed=1)
    for experience in stream_of(images, EXPERIENCES).train_stream:
        strategy.train(experience, drop_last=True)
    rates, weights = _replayed(trainer, loader, theirs, recorder)
    size = f"{EXPERIENCES} experiences, {recorder.steps} steps"
    yield Part(
        METHOD,
        "training",
        "trainer.ssil.Trainer.train, trainer_factory.GenericTrainer",
        "SSILPlugin under Naive, ExperienceSchedule(by_experience=True)",
        f"weights after each of {size}",
        *largest(recorder.weights, weights),
        note="main.py cannot be imported; in its place: rate / (t + 1), and the calls of the trainer in turn",
    )
    yield Part(
        METHOD,
        "schedule",
        "trainer_factory.GenericTrainer.setup_training, update_lr",
        'ExperienceSchedule("steps", by_experience=True)',
        f"the learning rates of {size}",
        *difference([torch.tensor(recorder.rates)], [torch.tensor(rates)]),
    )


def _replayed(
    trainer: Any, loader: Any, model: nn.Module, recorder: Recorder
) -> tuple[list[float], list[list[Tensor]]]:
    """Their learning rates, and the values of their model after each experience."""
    rates: list[float] = []
    weights: list[list[Tensor]] = []
    with no_gpu_needed():
        runner = trainer.Trainer(_loader(loader), model, OPTIONS)
        for t, experience in enumerate(recorder.batches):
            runner.update_frozen_model()
            runner.setup_training(OPTIONS.lr / (t + 1))
            for epoch, batches in enumerate(experience):
                runner.update_lr(epoch, OPTIONS.schedule)
                current = [(x[: OPTIONS.batch_size], y[: OPTIONS.batch_size]) for x, y, _ in batches]
                replayed = [(x[OPTIONS.batch_size :], y[OPTIONS.batch_size :]) for x, y, _ in batches]
                runner.train_iterator = current
                with mock.patch("torch.utils.data.DataLoader", return_value=replayed):
                    runner.train(epoch)
                rates += [runner.optimizer.param_groups[0]["lr"]] * len(batches)
            weights.append(values_of(model))
            runner.increment_classes()
    return rates, weights


def _loader(loader: Any, classes: int = EXPERIENCES * CLASSES_EACH, per_class: int = 11, **options: Any) -> Any:
    """Their loader, which keeps classes and exemplars, over labels without images."""
    labels = np.repeat(np.arange(classes + 1), per_class)  # one class more: the last task ends at the next one
    data = SimpleNamespace(
        classes=classes + 1, train_labels=labels, test_labels=labels, train_data=labels, train_transform=None
    )
    return loader.IncrementalLoader(data, SimpleNamespace(**{**vars(OPTIONS), **options}))


def _exemplars(loader: Any) -> Iterator[Part]:
    """The first images of each class: where the memory divides evenly, and where images are left over."""
    even, uneven = [0], [0]
    for memory, classes_each, experiences in ((20, 2, 4), (47, 5, 4), (500, 10, 10)):
        for ours, theirs in _kept(loader, memory, classes_each, experiences):
            (uneven if memory % len(ours) else even).extend(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    for name, apart, note in (
        ("exemplars, evenly divided", even, ""),
        (
            "exemplars, with remainders",
            uneven,
            "which classes have one image more: the first ones in ours, in theirs left to NumPy's unstable sort",
        ),
    ):
        yield Part(
            METHOD,
            name,
            "data_handler.incremental_loader.IncrementalLoader.update_exemplar",
            "ParametricBuffer with plugins.exemplars.FirstExemplarsSelection",
            f"images of each class after each experience, {len(apart) - 1} numbers; in both they are the first ones",
            float(max(apart)),
            max(apart) / 10,
            note=note,
            bound=1.0 if note else 0.0,
        )


def _class_order(dataset: Any) -> Part:
    """The classes of CIFAR-100 as their seed 0 orders them, and as our paper row does."""
    theirs = dataset.Dataset(100, "")
    theirs.train_data = theirs.test_data = theirs.train_labels = theirs.test_labels = np.arange(100)
    theirs.shuffle_data(shuffle(np.arange(100), random_state=0))
    row = tomllib.loads(files("avalanche_contrastive.bench").joinpath("configs/paper/ssil_cifar100.toml").read_text())
    return Part(
        METHOD,
        "class order",
        "data_handler.dataset.Dataset.shuffle_data",
        "bench/configs/paper/ssil_cifar100.toml",
        "the order of 100 classes",
        *difference([torch.tensor(row["class_order"])], [torch.tensor(theirs.train_data)]),
        note="from main.py: scikit-learn's shuffle with random_state=0",
        bound=0.0,
    )


def _kept(loader: Any, memory: int, classes_each: int, experiences: int) -> Iterator[tuple[list[int], list[int]]]:
    """The number of images of each class after each experience, of ours and theirs."""
    classes, per_class = classes_each * experiences, memory
    sizes = {"memory_budget": memory, "base_classes": classes_each, "step_size": classes_each}
    with no_gpu_needed():
        theirs = _loader(loader, classes, per_class, **sizes)
    images = Images((1,), classes=classes, per_class=per_class, seed=0)
    images.tensors[0][:, 0] = torch.arange(len(images))  # an image is its number
    ours = ParametricBuffer(memory, groupby="class", selection_strategy=FirstExemplarsSelection())
    for experience in stream_of(images, experiences).train_stream:
        ours.post_adapt(None, experience)
        with no_gpu_needed():
            theirs.update_exemplar()
            theirs.task_change()
        yield (
            _of_each_class([int(sample[0]) for sample in ours.buffer], per_class),
            _of_each_class([int(index) for index in theirs.exemplar], per_class),
        )


def _of_each_class(kept: list[int], per_class: int) -> list[int]:
    """How many images each class has, which must be its first ones."""
    numbers = Counter(index // per_class for index in kept)
    first = {c * per_class + i for c, number in numbers.items() for i in range(number)}
    if set(kept) != first:
        raise ValueError(f"exemplars {sorted(set(kept) - first)} are not the first of their class")
    return [numbers[c] for c in range(len(numbers))]
