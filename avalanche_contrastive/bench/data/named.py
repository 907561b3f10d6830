"""Data sets of torchvision and of HuggingFace: "torchvision:FashionMNIST", "hf:cifar10", "hf:folder/on/disk".

Options follow a question mark, as in "torchvision:EMNIST?split=letters" or "hf:cifar100?label=fine_label".
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torchvision.datasets  # type: ignore[import-untyped, unused-ignore]
from avalanche.benchmarks.datasets import default_dataset_location
from PIL import Image

from avalanche_contrastive.bench.config import nearest
from avalanche_contrastive.bench.data.arrays import PARTS
from avalanche_contrastive.bench.data.kinds import HUGGINGFACE, TORCHVISION

NO_TEST = "there are no test images, so the validation images are the test images"


@dataclass(frozen=True)
class Items(Sequence[Any]):
    """The images of one part, decoded when they are asked for; ``labels`` reads only those of a set that has them.

    Args:
        where: begins a message.
        size: number of images.
        pair: gives image and label of an index.
        known: all labels, where they are known without decoding an image.
    """

    where: str
    size: int
    pair: Callable[[int], tuple[Any, Any]]
    known: Sequence[Any] | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        image = self.pair(index)[0]
        if not isinstance(image, Image.Image):
            raise ValueError(f"{self.where}: expected images, got {type(image).__name__}")
        return image

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(self.size))

    def labels(self) -> list[Any]:
        """One class per image, as the source has it."""
        found = self.known if self.known is not None else [self.pair(index)[1] for index in range(self.size)]
        return [label.item() if hasattr(label, "item") and np.ndim(label) == 0 else label for label in found]


@dataclass(frozen=True)
class Named:
    """A data set by its parts: train, test and perhaps val, or "all"."""

    images: Mapping[str, Items]
    labels: Mapping[str, np.ndarray[Any, Any]]
    class_names: tuple[str, ...]
    note: str


def read_named(data: str, root: str = "") -> Named:
    """Find a data set; its images are decoded when they are asked for.

    Args:
        data: "torchvision:NAME", "hf:NAME" or "hf:PATH", with options after a question mark.
        root: folder of the downloads of torchvision; "": Avalanche's.

    Raises:
        ValueError: no such data set, or one that cannot be classified or read.
    """
    prefix, find = (TORCHVISION, _torchvision) if data.startswith(TORCHVISION) else (HUGGINGFACE, _huggingface)
    path, _, words = data.removeprefix(prefix).partition("?")
    parts, names = find(data, path, dict(parse_qsl(words)), root)
    note = NO_TEST if "test" not in parts and "val" in parts else ""
    if note:
        parts["test"] = parts.pop("val")
    labels, shown = _numbered(data, {part: items.labels() for part, items in parts.items()}, names)
    return Named(parts, labels, shown, note)


def _numbered(
    where: str, labels: Mapping[str, list[Any]], names: Sequence[Any]
) -> tuple[dict[str, np.ndarray[Any, Any]], tuple[str, ...]]:
    """Classes from 0, and their names.

    Raises:
        ValueError: labels that are neither numbers nor words.
    """
    kinds = {type(label) for values in labels.values() for label in values}
    if kinds == {str}:
        names = sorted(set(labels[next(iter(labels))]))
        wrong = sorted({label for values in labels.values() for label in values} - set(names))
        if wrong:
            raise ValueError(f"{where}: class {wrong[0]!r} is in the test images only")
        labels = {part: [names.index(label) for label in values] for part, values in labels.items()}
    elif kinds - {int}:
        given = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{where}: expected one class per image, a number or a word, got {given}")
    count = max(max(values, default=0) for values in labels.values()) + 1
    if len(names) != count:  # torchvision does not name the classes of every set
        names = range(count)
    shown = tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)
    return {part: np.asarray(values, dtype=np.int64) for part, values in labels.items()}, shown


# ---- torchvision


def _torchvision(where: str, name: str, options: dict[str, str], root: str) -> tuple[dict[str, Items], Sequence[Any]]:
    known = [key for key in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, key))]
    if name not in known:
        raise ValueError(f"{where}: torchvision has no data set {name!r}{nearest(name, known)}")
    make = getattr(torchvision.datasets, name)
    takes = _keywords(make)
    given: dict[str, Any] = {key: _value(text) for key, text in options.items()}
    if "root" in takes:
        given["root"] = str(Path(root).expanduser() if root else default_dataset_location(name.lower()))
    if "download" in takes:
        given["download"] = True
    choices: dict[str, dict[str, Any]] = {"all": {}}
    if "train" in takes and "train" not in options:
        choices = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in takes and "split" not in options:
        choices = {part: {"split": part} for part in PARTS}
    found = {}
    for part, choice in choices.items():
        try:
            found[part] = make(**given, **choice)
        except Exception as error:  # whatever goes wrong in downloading and reading
            if "split" in choice and part != "train" and isinstance(error, ValueError):
                continue  # a set without this part
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            place = f" from {given['root']}" if "root" in given else ""
            raise ValueError(f"{where}: could not be loaded{place}: {reason}") from error
    names = getattr(next(iter(found.values())), "classes", ())
    return {part: Items(where, len(data), data.__getitem__) for part, data in found.items()}, names


def _keywords(kind: type) -> set[str]:
    """What its constructor takes, and those of its bases where it passes keywords on to them."""
    parameters = inspect.signature(kind).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return set(parameters).union(*(_keywords(base) for base in kind.__bases__ if passes_on))


def _value(text: str) -> Any:
    """A number, numbers with commas, or a word."""
    numbers = tuple(int(number) for number in text.split(",") if number.isdigit())
    return text if len(numbers) != text.count(",") + 1 else numbers if "," in text else numbers[0]


# ---- HuggingFace


def _huggingface(where: str, path: str, options: dict[str, str], root: str) -> tuple[dict[str, Items], Sequence[Any]]:
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError(f"{where} needs datasets: pip install 'avalanche-contrastive[hf]'") from error
    columns = {key: options.pop(key, "") for key in ("image", "label")}
    place = Path(path).expanduser()
    try:
        saved = any((place / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
        loaded = datasets.load_from_disk(str(place)) if saved else datasets.load_dataset(path, **options)
    except Exception as error:  # whatever goes wrong in downloading and reading
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise ValueError(f"{where}: could not be loaded: {reason}") from error
    parts = dict(loaded) if isinstance(loaded, dict) else {"all": loaded}
    parts = {"val" if part == "validation" else part: found for part, found in parts.items()}
    if "train" not in parts and len(parts) > 1:
        raise ValueError(f"{where}: expected a part train, or one part alone; there are {', '.join(parts)}")
    parts = {part: parts[part] for part in PARTS if part in parts} if "train" in parts else {"all": parts.popitem()[1]}
    if list(parts) == ["train"]:
        parts = {"all": parts["train"]}
    features = next(iter(parts.values())).features
    is_image = {key: isinstance(feature, datasets.Image) for key, feature in features.items()}
    is_label = {key: isinstance(feature, datasets.ClassLabel) for key, feature in features.items()}
    if not any(is_label.values()) and "label" in features:
        is_label["label"] = True
    image = columns["image"] or _only(where, "image", is_image, features)
    label = columns["label"] or _only(where, "label", is_label, features)
    for key in (image, label):
        if key not in features:
            raise ValueError(f"{where}: there is no column {key!r}{nearest(key, features)}")
    items = {
        part: Items(where, len(rows), lambda i, rows=rows: (rows[i][image], rows[i][label]), rows[label])  # type: ignore[misc]
        for part, rows in parts.items()
    }
    return items, getattr(features[label], "names", ())


def _only(where: str, what: str, wanted: Mapping[str, bool], features: Mapping[str, Any]) -> str:
    found = [key for key, is_it in wanted.items() if is_it]
    if len(found) != 1:
        listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        name = found[0] if found else next(iter(features))
        how_many, example = "several columns" if found else "no column", f"{where.partition('?')[0]}?{what}={name}"
        raise ValueError(f"{where}: {how_many} of {what}s; name it, as in {example}. There are {listed}")
    return found[0]
