"""The stream of a run: which images in which experience, in which order, with or without a validation split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark, nc_benchmark
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from torch import Tensor
from torchvision.transforms.v2.functional import rotate  # type: ignore[import-untyped, unused-ignore]

from avalanche_contrastive.bench.data.arrays import SPLIT_SEED, Array, Arrays, Part, stratified
from avalanche_contrastive.bench.data.kinds import HUGGINGFACE, STREAMS, TORCHVISION, Stream, StreamKind, class_sizes
from avalanche_contrastive.bench.data.named import read_named
from avalanche_contrastive.bench.data.own import assembled, load_own
from avalanche_contrastive.bench.data.sources import load, other_data
from avalanche_contrastive.bench.data.unseen import numbers_without, with_unseen
from avalanche_contrastive.data import MemoryImages as Images
from avalanche_contrastive.data import fetch_whole_batches

VALIDATION_SHARE = 0.2
OWN_SHARES = 5  # experiences of own data without domains in the domain scenario
TURN = 180.0  # degrees; a domain of rotated_mnist is turned by less


@dataclass(frozen=True)
class _Loaded:
    """The data that a stream is cut from."""

    kind: StreamKind
    class_names: tuple[str, ...]
    note: str
    train: Part
    held: Part

    @property
    def parts(self) -> tuple[Part, Part]:
        return self.train, self.held


def make_stream(
    name: str,
    seed: int,
    *,
    data: str = "",
    scenario: str = "",
    experiences: int = 0,
    base_classes: int = 0,
    class_order: str | Sequence[int] = "",
    unseen: str | Sequence[int] = "",
    train_images: int = 0,
    test_images: int = 0,
    image_size: int = 0,
    validation: bool = False,
    root: str = "",
) -> Stream:
    """The stream of one run.

    In the class and the task scenario an experience brings new classes, in an order by the seed; the task scenario
    gives task labels besides. In the domain scenario every experience has a task label, its domain, and is tested on
    its own domain: a rotation by the seed (rotated_mnist), a domain of the data in their order (own data with
    domains), or an equal random share, by the seed, of every class.

    Args:
        name: key of STREAMS.
        seed: decides the class order, the angles or the shares; nothing else.
        data: folder of the downloads, "" for Avalanche's default; for "own" see `load_data`.
        scenario: "class", "task" or "domain"; "": the stream's first.
        experiences: how many, the first included; 0: the stream's default.
        base_classes: classes of the first experience, the others share the rest equally; 0: all equal.
        class_order: "": shuffled by the seed; "natural"; or all classes in a list.
        unseen: see ``with_unseen``: classes that are then not trained on (the others are numbered anew), or the name
            of other data, "cifar10_bank", of which it is the test images; not with validation. "": nothing.
        train_images: at most so many training images, the same for every seed, each class with its share; 0: all.
            Of rotated_mnist it is the number for each domain, each with a choice of its own.
        test_images: likewise of the evaluated images.
        image_size: of a folder of your own: the side that all images get; 0: their median, if they differ.
        validation: evaluate on validation images instead of the test images, which are then not even in the
            benchmark: those of the data, or a stratified fifth of the training images. For `tune`.
        root: folder of what `load_data` downloads.

    Raises:
        ValueError: an unknown stream or scenario, numbers that do not go with the data, or unreadable data.
    """
    if name not in STREAMS:
        raise ValueError(f"no stream named {name!r}. Known: {', '.join(STREAMS)}, or module:function of your own")
    kind = STREAMS[name]
    scenario = scenario or kind.scenarios[0]
    if scenario not in kind.scenarios:
        raise ValueError(f"{name}: scenario must be one of {', '.join(kind.scenarios)}; got {scenario!r}.")
    if min(experiences, base_classes, train_images, test_images) < 0:
        raise ValueError(f"{name}: experiences, base_classes, train_images and test_images must not be negative.")
    if scenario == "domain" and (base_classes or class_order):
        key = "base_classes" if base_classes else "class_order"
        raise ValueError(f"{name}: {key} means nothing in the domain scenario, where no experience adds classes.")
    fetch_whole_batches()
    loaded, apart = _set_apart(_load(kind, data, root, validation, image_size), unseen, data)
    stream = _cut(loaded, seed, scenario, experiences, (train_images, test_images), (class_order, base_classes))
    name = unseen if isinstance(unseen, str) else f"classes {', '.join(map(str, unseen))}"
    return stream if apart is None or validation else with_unseen(stream, *apart, name)


def _set_apart(loaded: _Loaded, unseen: str | Sequence[int], data: str) -> tuple[_Loaded, tuple[Tensor, Tensor] | None]:
    """What is trained on, and plain images and classes of what is not."""
    if not unseen:
        return loaded, None
    if isinstance(unseen, str):
        return loaded, other_data(unseen, loaded.kind, data)
    number = numbers_without(unseen, len(loaded.class_names))
    views = slice(0, 1 if loaded.kind.features else None)
    gone = [number[part.y] < 0 for part in loaded.parts]
    pairs = [*zip(loaded.parts, gone, strict=True)]
    x = torch.cat([part.x[rows][:, views] for part, rows in pairs])
    y = torch.cat([part.y[rows] for part, rows in pairs])
    train, held = (part.rows(np.flatnonzero(~rows)) for part, rows in pairs)
    train, held = (replace(part, y=number[part.y]) for part in (train, held))
    names = tuple(name for name, place in zip(loaded.class_names, number.tolist(), strict=True) if place >= 0)
    return replace(loaded, class_names=names, train=train, held=held), (x, y)


def _cut(
    loaded: _Loaded,
    seed: int,
    scenario: str,
    experiences: int,
    caps: tuple[int, int],
    order: tuple[str | Sequence[int], int],
) -> Stream:
    """The stream out of the data."""
    kind = loaded.kind
    if kind.rotated:
        return _rotated(loaded, seed, experiences or kind.experiences, caps)
    loaded = replace(loaded, train=_capped(loaded.train, caps[0]), held=_capped(loaded.held, caps[1]))
    if scenario == "domain":
        return _domains(loaded, seed, experiences)
    classes = len(loaded.class_names)
    sizes = class_sizes(classes, experiences or kind.experiences, order[1])
    found, words = _order(order[0], classes, seed)
    return _classes(loaded, found, sizes, words, task_labels=scenario == "task")


def subset(strata: Tensor, size: int, key: Sequence[int] = ()) -> Array:
    """A random choice of rows, from each stratum its share and at least one; ascending, part of any larger choice.

    Args:
        strata: (N,) small integers.
        size: how many.
        key: other numbers, another choice.

    Raises:
        ValueError: fewer rows than strata.
    """
    values = strata.numpy()
    kinds, sizes = np.unique(values, return_counts=True)
    if size < len(kinds):
        raise ValueError(f"{size} images are too few for one of each of {len(kinds)} classes.")
    draws = np.random.default_rng([SPLIT_SEED, *key])
    place = np.empty(len(values))
    for kind, count in zip(kinds, sizes, strict=True):
        place[values == kind] = draws.permutation(count) / count
    chosen: Array = np.sort(np.argsort(place, kind="stable")[:size])
    return chosen


def rotation(angle: float, height: int, width: int) -> Tensor:
    """For each pixel of an image turned counter-clockwise by degrees, the pixel that it shows, -1 for none: (H * W,).

    torchvision's rotation to the nearest pixel, as Avalanche's RotatedMNIST has it, of the pixels' own numbers: what it
    does to them it does to any image, and an image is then turned by one indexing when it is fetched.
    """
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(1, height, width)
    turned: Tensor = rotate(numbers, angle)
    return turned.flatten().round().long() - 1


def load_data(data: str, image_size: int = 0, root: str = "") -> Arrays:
    """Read what a config's `data` names.

    Args:
        data: what `read_named` or `load_own` reads.
        image_size: side that all images get; 0: if they differ in size, their median, see `load_folder`.
        root: folder of the downloads of torchvision; "": Avalanche's.

    Raises:
        ValueError: no such data set, or one that cannot be classified or read.
    """
    if not data.startswith((TORCHVISION, HUGGINGFACE)):
        return load_own(data, image_size)
    named = read_named(data, root)
    return assembled(data, named.images, named.labels, named.class_names, image_size, notes=[named.note])


_own = lru_cache(maxsize=1)(load_data)  # decoded once per process


def _order(wanted: str | Sequence[int], classes: int, seed: int) -> tuple[list[int], str]:
    """The order in which classes come, and how it was chosen in words."""
    if wanted == "":
        return np.random.default_rng(seed).permutation(classes).tolist(), "by seed"
    if wanted == "natural":
        return list(range(classes)), "natural"
    if isinstance(wanted, str) or sorted(wanted) != list(range(classes)):
        raise ValueError(
            f'class_order must be "", "natural", or a list of all classes, 0 to {classes - 1}, got {wanted!r}.'
        )
    return list(wanted), "given"


def _load(kind: StreamKind, data: str, root: str, validation: bool, image_size: int) -> _Loaded:
    if image_size and kind.source != "own":
        raise ValueError(f"{kind.title}: image_size is for folders of your own images.")
    arrays = (
        _own(data, image_size, root)
        if kind.source == "own"
        else load(kind.source, "" if kind.source == "digits" else data)
    )
    if arrays.features:
        kind = replace(kind, network="adapter", augmentation={}, normalise=None, features=True)
    train = replace(arrays.train, name="training")
    if not validation:
        held = replace(arrays.test, name="test")
    elif arrays.val is not None:
        held = replace(arrays.val, name="validation")
    else:
        kept, rest = stratified(train.y, VALIDATION_SHARE, f"{kind.title}, validation images out of training images")
        train, held = train.rows(kept), train.rows(rest, "validation")
    return _Loaded(kind, arrays.class_names, arrays.note, train, held)


def _capped(part: Part, size: int, key: Sequence[int] = ()) -> Part:
    if not size or size >= len(part.y):
        return part
    # Where the data have domains, a class of each domain is a stratum.
    strata = part.y if part.domains is None else part.y + (int(part.y.max()) + 1) * part.domains
    try:
        return part.rows(subset(strata, size, key))
    except ValueError as error:
        raise ValueError(f"number of {part.name} images: {error}") from error


def _classes(loaded: _Loaded, order: list[int], sizes: list[int], words: str, *, task_labels: bool) -> Stream:
    """New classes in each experience."""
    train, held = (Images(part.x, part.y, normalise=loaded.kind.normalise) for part in loaded.parts)
    benchmark = nc_benchmark(
        train,
        held,
        n_experiences=len(sizes),
        task_labels=task_labels,
        fixed_class_order=order,
        per_exp_classes=dict(enumerate(sizes)),
    )
    ends = np.cumsum(sizes).tolist()
    groups = [sorted(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    shown = str(sizes[0]) if len(set(sizes)) == 1 else f"{sizes[0]} and then {sizes[-1]}"
    scenario = "task" if task_labels else "class"
    what = f"{scenario}-incremental: {len(order)} classes in {len(sizes)} experiences of {shown}, order {words}"
    return _stream(loaded, benchmark, order, groups, what)


def _domains(loaded: _Loaded, seed: int, experiences: int) -> Stream:
    """The domains of the data, or random shares of them."""
    title = loaded.kind.title
    if loaded.train.domains is None or loaded.held.domains is None:
        count = experiences or loaded.kind.experiences or OWN_SHARES
        draws = np.random.default_rng(seed)
        what = f"{count} equal random shares of every class, by seed"
        rows = [_shares(part.y, count, draws) for part in loaded.parts]
    else:
        count = int(loaded.train.domains.max()) + 1
        if experiences not in (0, count):
            raise ValueError(f"{title}: {experiences} experiences asked for, but the data have {count} domains.")
        what = f"{count} domains, in the order of their numbers"
        rows = [[np.flatnonzero(ids == d) for d in range(count)] for ids in (loaded.train.domains, loaded.held.domains)]
    for part, choices in zip(loaded.parts, rows, strict=True):
        if any(len(chosen) == 0 for chosen in choices):
            raise ValueError(f"{title}: {count} experiences, but some of them would have no {part.name} image.")
    datasets = [
        [Images(part.x[chosen], part.y[chosen], normalise=loaded.kind.normalise) for chosen in choices]
        for part, choices in zip(loaded.parts, rows, strict=True)
    ]
    return _domain_stream(loaded, datasets, f"domain-incremental: {what}")


def _shares(y: Tensor, count: int, draws: np.random.Generator) -> list[Array]:
    """Rows of each share; shares, and each class in them, differ by one image at most."""
    shuffled = draws.permutation(len(y))
    dealt = shuffled[np.argsort(y.numpy()[shuffled], kind="stable")]
    return [np.sort(dealt[share::count]) for share in range(count)]


def _rotated(loaded: _Loaded, seed: int, experiences: int, caps: tuple[int, int]) -> Stream:
    """All classes in each experience, under a rotation of its own."""
    angles = np.random.default_rng(seed).uniform(0, TURN, experiences).tolist()
    height, width = loaded.train.x.shape[2:]
    datasets: list[list[Images]] = [[], []]
    for domain, angle in enumerate(angles):
        pixels = rotation(angle, height, width)
        for part, cap, domains in zip(loaded.parts, caps, datasets, strict=True):
            chosen = _capped(part, cap, [domain])
            domains.append(Images(chosen.x, chosen.y, normalise=loaded.kind.normalise, pixels=pixels))
    what = f"domain-incremental: {experiences} rotations by seed, in [0, {TURN:g}) degrees, each tested under its own"
    return _domain_stream(loaded, datasets, what, angles)


def _domain_stream(loaded: _Loaded, datasets: list[list[Images]], what: str, angles: Sequence[float] = ()) -> Stream:
    # Not nc_benchmark with one data set per experience, as in Avalanche's RotatedMNIST: that takes several times as
    # long and gives wrong classes where a domain lacks one. The samples are the same.
    labelled = [
        [_make_taskaware_classification_dataset(images, task_labels=domain) for domain, images in enumerate(some)]
        for some in datasets
    ]
    groups = [sorted(set(images.targets)) for images in datasets[0]]
    return _stream(loaded, dataset_benchmark(*labelled), list(range(len(loaded.class_names))), groups, what, angles)


def _stream(
    loaded: _Loaded, benchmark: Any, order: list[int], groups: list[list[int]], what: str, angles: Sequence[float] = ()
) -> Stream:
    counts = [len(experience.dataset) for experience in benchmark.test_stream]
    trained = sum(len(experience.dataset) for experience in benchmark.train_stream)
    channels, height, width = loaded.train.x.shape[1:]
    features = f"features of {width} numbers, plain and of {channels - 1} views"
    description = (
        f"{loaded.kind.title}, {what}; {trained:,} training and {sum(counts):,} {loaded.held.name} images of "
        f"{features if loaded.kind.features else f'{channels} x {height} x {width}'}"
    )
    return Stream(
        loaded.kind,
        benchmark,
        order,
        counts,
        len(loaded.class_names),
        (channels, height, width),
        loaded.class_names,
        groups,
        description + (f" ({loaded.note})" if loaded.note else ""),
        loaded.note,
        list(angles),
    )
