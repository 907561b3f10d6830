"""Co2L's read-out: how often each image is drawn, and the fit from the same draws."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from checkouts import Checkout, no_gpu_needed
from replay import Part, Playback, difference, seeded
from scripts import STUBS, parsed, targets_only
from torch import Tensor, nn

from avalanche_contrastive.readout import fit_linear

METHOD = "Co2L"
OLD, NEW = 12, 60  # images in the memory, and of the experience


def parts(checkout: Checkout) -> Iterator[Part]:
    """The weights of the draws by class and by domain, and the training of the classifier."""
    names = ("main_ce_buffer", "main_ce_buffer_domain", "main_linear_buffer", "util")
    with checkout.modules(*names, stubs=STUBS) as (by_class, by_domain, linear, util):
        yield _class_weights(by_class, linear)
        yield _domain_weights(by_domain)
        yield _fit(linear, util)


def _class_weights(by_class: Any, linear: Any) -> Part:
    """The memory has 3 or 2 images of each of 5 old classes, the experience 30 of each of 2."""
    targets = [c for c in range(8) for _ in range(30)]
    memory = [row for c, count in enumerate((2, 2, 2, 3, 3, 0)) for row in range(30 * c, 30 * c + count)]
    opt = parsed(linear, ["--target_task", "3", "--batch_size", "16"])
    opt.num_workers = 0
    with targets_only(by_class, targets), no_gpu_needed():
        loader, _, _ = by_class.set_loader(opt, np.array(memory))
    y = torch.tensor(targets)[loader.dataset.indices]
    ours, _ = _draws_of(y, epochs=1)
    return Part(
        METHOD,
        "read-out, draws balanced over classes",
        "main_ce_buffer.set_loader",
        "readout.fit_linear",
        f"chances of {len(y)} images",
        *difference([ours], [_share(loader.sampler.weights)]),
        note="ours are float32 numbers",
        bound=1e-8,
    )


def _domain_weights(by_domain: Any) -> Part:
    """The memory has 4, 1 and 7 images of earlier rotations."""
    degrees = [10.0] * 4 + [20.0] + [30.0] * 7
    opt = SimpleNamespace(data_folder="", batch_size=16, num_workers=0)
    with targets_only(by_domain, [0] * NEW), no_gpu_needed():
        loader, _ = by_domain.set_loader(opt, list(range(OLD)), degrees, [10.0, 20.0, 30.0, 40.0])
    domain = torch.tensor([*degrees, *[40.0] * NEW]).long()
    ours, _ = _draws_of(torch.arange(len(domain)) % 10, epochs=1, balance=domain)
    return Part(
        METHOD,
        "read-out, draws balanced over domains",
        "main_ce_buffer_domain.set_loader",
        "readout.fit_linear(balance=)",
        f"chances of {len(domain)} images",
        *difference([ours], [_share(loader.sampler.weights)]),
        note="ours are float32 numbers",
        bound=1e-8,
    )


def _fit(linear: Any, util: Any) -> Part:
    """All 100 epochs of R-MNIST's rate, the classifier at zero in both, from the same draws."""
    seeded(5)
    features, y = torch.randn(NEW, 24), torch.arange(NEW) % 7
    orders, (_, weight, bias) = _fitted(features, y, epochs=100, batch_size=16)
    opt = parsed(linear, ["--learning_rate", "1.0", "--batch_size", "16"])
    classifier, encoder = linear.LinearClassifier(name="resnet18", num_classes=7), nn.Module()
    classifier.fc = nn.Linear(24, 7)
    nn.init.zeros_(classifier.fc.weight)
    nn.init.zeros_(classifier.fc.bias)
    encoder.encoder = nn.Identity()
    optimizer = util.set_optimizer(opt, classifier)
    with no_gpu_needed():
        for epoch, order in enumerate(orders, start=1):
            util.adjust_learning_rate(opt, optimizer, epoch)
            loader = Playback([[(features[rows], y[rows]) for rows in order.split(16)]])
            linear.train(loader, encoder, classifier, nn.CrossEntropyLoss(), optimizer, epoch, opt)
    return Part(
        METHOD,
        "read-out, fit",
        "main_linear_buffer.train, util.adjust_learning_rate, util.set_optimizer",
        "readout.fit_linear",
        f"weights after 100 epochs, {100 * len(orders[0].split(16))} steps",
        *difference([weight, bias], [classifier.fc.weight.detach(), classifier.fc.bias.detach()]),
        note="both start at zero; theirs starts at PyTorch's random values",
    )


def _draws_of(y: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The chance of each image in our read-out, summing to one, and the images drawn in each epoch."""
    chances: list[Tensor] = []
    orders: list[Tensor] = []
    multinomial = torch.multinomial

    def noted(weights: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chances.append(_share(weights))
        orders.append(multinomial(weights, *args, **kwargs))
        return orders[-1]

    with mock.patch("torch.multinomial", noted):
        fit_linear(torch.zeros(len(y), 1), y, **options)
    return chances[0], orders


def _fitted(features: Tensor, y: Tensor, **options: Any) -> tuple[Sequence[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The images that our read-out draws in each epoch (its draws follow from a seed of its own), and its values."""
    _, orders = _draws_of(y, **options)
    return orders, fit_linear(features, y, **options)


def _share(weights: Tensor) -> Tensor:
    return weights.double() / weights.double().sum()
