"""Co2L's memory: how many exemplars each class, or each domain, has."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.training.storage_policy import ExemplarsBuffer, ReservoirSamplingBuffer
from checkouts import Checkout, no_gpu_needed
from replay import Images, Part, difference, seeded, stream_of
from scripts import STUBS, parsed, targets_only
from torch import Tensor, nn

from avalanche_contrastive.plugins.exemplars import RandomRemainderBuffer

METHOD = "Co2L"


def parts(checkout: Checkout) -> Iterator[Part]:
    """The remainders of the class-balanced memory, and the reservoir of the domains."""
    with checkout.modules("main", "main_domain", stubs=STUBS) as (main, domain):
        yield _remainders(main)
        yield _reservoir(domain)


def _remainders(main: Any) -> Part:
    """How many exemplars each class has: 20 for 6, 9 and 12 classes leave remainders."""
    opt = parsed(main, ["--mem_size", "20"])
    opt.cls_per_task, per_class, draws = 3, 12, 400
    classes = [c for c in range(12) for _ in range(per_class)]
    ours, theirs = torch.zeros(draws, 3, 12), torch.zeros(draws, 3, 12)
    seeded(3)
    with targets_only(main, classes), no_gpu_needed():
        for draw in range(draws):
            kept: list[int] = []
            for task in range(1, 5):
                opt.target_task = task
                kept = main.set_replay_samples(opt, nn.Identity(), prev_indices=kept)
                _count(theirs, draw, task, [classes[i] for i in kept])
    stream = stream_of(Images((1,), classes=12, per_class=per_class, seed=0), 4)
    _fill(ours, lambda: RandomRemainderBuffer(20), stream)
    return Part(
        METHOD,
        "memory, remainders by chance",
        "main.set_replay_samples",
        "plugins.exemplars.RandomRemainderBuffer",
        f"mean exemplars of each class, {draws} draws each, 20 for 6, 9 and 12 classes",
        *difference([ours.mean(dim=0)], [theirs.mean(dim=0)]),
        note=f"{_chance(ours)}. Theirs rounds each old class by itself, and the new ones take what is left",
        bound=_explained(ours, theirs),
    )


def _reservoir(domain: Any) -> Part:
    """The share of each domain in the memory: a reservoir in both."""
    opt = parsed(domain, ["--mem_size", "10"])
    draws, size, domains = 400, 30, 4
    ours, theirs = torch.zeros(draws, 3, domains), torch.zeros(draws, 3, domains)
    seeded(4)
    with targets_only(domain, [0] * size), no_gpu_needed():
        for draw in range(draws):
            indices: list[int] = []
            degrees: list[int] = []
            for task in range(1, domains + 1):
                opt.target_task = task
                indices, degrees = domain.set_replay_samples(opt, None, indices, degrees, [task - 1])
                _count(theirs, draw, task, degrees)
    stream = stream_of(Images((1,), classes=domains, per_class=size, seed=0), domains)  # a class for each domain
    _fill(ours, lambda: ReservoirSamplingBuffer(10), stream)
    return Part(
        METHOD,
        "memory, reservoir over domains",
        "main_domain.set_replay_samples",
        "Avalanche's ReservoirSamplingBuffer",
        f"mean exemplars of each domain, {draws} draws each, 10 for 2 to 4 domains",
        *difference([ours.mean(dim=0)], [theirs.mean(dim=0)]),
        note=_chance(ours),
        bound=_explained(ours, theirs),
    )


def _count(into: Tensor, draw: int, task: int, kept: Sequence[int]) -> None:
    if task > 1:  # the first memory has no remainder, or one domain
        for group, number in Counter(kept).items():
            into[draw, task - 2, group] = number


def _fill(counts: Tensor, make: Callable[[], ExemplarsBuffer], stream: Any) -> None:
    """Count the exemplars of each class after each experience, in a new buffer for each draw."""
    for draw in range(len(counts)):
        buffer = make()
        for task, experience in enumerate(stream.train_stream, start=1):
            buffer.post_adapt(None, experience)
            _count(counts, draw, task, [int(y) for y in buffer.buffer.targets])


def _error(counts: Tensor) -> float:
    """The largest standard error of the means over draws, (draws, ...)."""
    return float(counts.std(dim=0).max() / len(counts) ** 0.5)


def _chance(counts: Tensor) -> str:
    return f"by chance: the standard error of our mean is {_error(counts):.2f}"


def _explained(ours: Tensor, theirs: Tensor) -> float:
    """Five standard errors of the difference of two means: largest of dozens."""
    return 5 * float(np.hypot(_error(ours), _error(theirs)))
