"""Avalanche data sets as indices: which sample of which data set of the stream; never images."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import default_collate

from avalanche_contrastive.checkpoint.fingerprints import fingerprint, indices_of, is_plain
from avalanche_contrastive.checkpoint.kinds import CheckpointError, MismatchError, name_of

if TYPE_CHECKING:
    from avalanche_contrastive.checkpoint.encoding import Encoder

__all__ = ["Refill", "Shelf", "Unfilled", "encode_samples"]

Array = np.ndarray[Any, np.dtype[np.int64]]


# ---- writing


def encode_samples(encoder: "Encoder", data: Any, path: str) -> Any:
    """The node of an Avalanche data set.

    Its samples are positions in *atoms*: data sets that came from the stream as they are, with their transforms, told
    by their fingerprints. Attributes (labels, task labels, stored logits) are written as values, one for each sample.
    """
    number = encoder.number(data)
    if type(data) is Unfilled:
        return ("samples", number, _unfilled_spec(data, path))
    atoms: list[Any] = []
    which, position = _located(data._flat_data, np.arange(len(data), dtype=np.int64), atoms)
    keys = [encoder.fingerprint(atom) for atom in atoms]
    encoder.samples.append((path, keys))
    spec = {
        "class": name_of(type(data)),
        "atoms": keys,
        "which": _small(which),
        "position": _small(position),
        "attributes": {k: _attribute(encoder, v, f"{path}.{k}") for k, v in data._data_attributes.items()},
        "group": data._flat_data._transform_groups.current_group,
        "own_collate": data.collate_fn is not default_collate,
    }
    return ("samples", number, spec)


def _located(node: Any, positions: Array, atoms: list[Any]) -> tuple[Array, Array]:
    """The number of the atom, and the position in it, of each of the samples of a node."""
    if not is_plain(node):
        if not any(node is atom for atom in atoms):
            atoms.append(node)
        number = next(i for i, atom in enumerate(atoms) if atom is node)
        return np.full(len(positions), number, dtype=np.int64), positions
    flat = indices_of(node)[positions]
    ends = np.cumsum([len(part) for part in node._datasets], dtype=np.int64)
    parts = np.searchsorted(ends, flat, side="right")
    which, position = np.zeros_like(flat), np.zeros_like(flat)
    for number, part in enumerate(node._datasets):
        rows = np.nonzero(parts == number)[0]
        if len(rows):
            which[rows], position[rows] = _located(part, flat[rows] - (ends[number] - len(part)), atoms)
    return which, position


def _small(numbers: Any) -> Tensor:
    """Integers (N,) in the smallest type that holds them; one where all are the same."""
    numbers = np.asarray(numbers, dtype=np.int64)
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    fits = (kind for kind in (torch.uint8, torch.int16, torch.int32) if _holds(kind, low, high))
    return torch.from_numpy(numbers).to(next(fits, torch.int64))


def _holds(kind: torch.dtype, low: int, high: int) -> bool:
    return torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max


def _attribute(encoder: "Encoder", attribute: Any, path: str) -> dict[str, Any]:
    """The values of a data attribute for each sample, and how it is used."""
    data = attribute._data
    return {
        "values": _values(encoder, attribute, path),
        "in_sample": bool(attribute.use_in_getitem),
        "discards": bool(getattr(data, "_discard_elements_not_in_indices", False)),
        "is_joined": len(getattr(data, "_datasets", ())) > 1,
    }


def _values(encoder: "Encoder", attribute: Any, path: str) -> Any:
    if isinstance(attribute._data, ConstantSequence):
        return ("constant", encoder(attribute._data._constant_value, path), len(attribute))
    values = [attribute[i] for i in range(len(attribute))]
    kinds = {(type(v), v.dtype, v.shape, v.device) if isinstance(v, Tensor) else type(v) for v in values}
    if kinds == {int}:
        return ("integers", _small(values))
    if len(kinds) == 1 and type(values[0]) is Tensor and values[0].device.type == "cpu":
        return ("rows", torch.stack(values).detach())
    return ("others", encoder(values, path))


def _unfilled_spec(data: Any, path: str) -> dict[str, Any]:
    spec: dict[str, Any] = object.__getattribute__(data, "__dict__")["spec"]
    if any(attribute["values"][0] == "others" for attribute in spec["attributes"].values()):
        raise CheckpointError(
            f"cannot save strategy.{path}: it was restored and its samples have not been looked up since. Train first, "
            "or give restore the stream: restore(strategy, path, stream=benchmark.train_stream)."
        )
    return spec


# ---- reading


class Shelf:
    """Where the samples of a restored strategy come from: the data sets of its stream, by fingerprint.

    Args:
        strategy: which is being restored. Its current experience names the stream once it trains again.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.atoms: dict[str, list[Any]] = {}
        self.looked_at: dict[int, Any] = {}
        self.waiting: list[Unfilled] = []
        self.collate: Any = default_collate

    def add(self, data: Any) -> None:
        """Take in a data set and all that it is made of."""
        node = data._flat_data if isinstance(data, AvalancheDataset) else data
        if id(node) in self.looked_at:
            return
        self.looked_at[id(node)] = node
        if not is_plain(node):
            self.atoms.setdefault(fingerprint(node), []).append(node)
        for part in node._datasets if isinstance(node, FlatData) else ():
            self.add(part)

    def put(self, cls: type, spec: dict[str, Any], values: dict[str, Any]) -> "Unfilled":
        """A data set that fills itself when it is first looked at; at once if it is empty."""
        data = object.__new__(Unfilled)
        object.__getattribute__(data, "__dict__").update(kind=cls, spec=spec, values=values, shelf=self)
        self.waiting.append(data)
        return data

    def missing(self) -> list[str]:
        """Fingerprints that no data set taken in so far has."""
        return [key for data in self.waiting for key in _raw(data)["spec"]["atoms"] if key not in self.atoms]

    def look_at(self, streams: Iterable[Iterable[Any]], *, until_found: bool = False) -> None:
        """Take in the experiences of streams; all of them, or stop after the first that has the last one missing."""
        state = RNGManager.__getstate__()  # a stream that is made on the way may draw
        try:
            for stream in streams:
                if until_found and not self.missing():
                    break
                for experience in stream:
                    self.add(experience.dataset)
                    if experience.dataset.collate_fn is not default_collate:
                        self.collate = experience.dataset.collate_fn
        finally:
            RNGManager.__setstate__(state)

    def take(self, streams: Iterable[Iterable[Any]]) -> None:
        """Find what the data sets that wait are made of.

        Raises:
            MismatchError: something is not in any of the streams, or in several places that cannot be told apart.
        """
        self.look_at(streams, until_found=True)
        if self.missing():
            raise MismatchError(
                "the stored samples of the checkpoint are not of this stream: a data set with the same length, "
                "labels, images and transforms is not in it. Is it the same benchmark, with the same seed and "
                "transforms? If the loop runs over a part of the stream, give the whole: "
                "restore(strategy, path, stream=benchmark.train_stream)."
            )
        for data in self.waiting:
            for key in _raw(data)["spec"]["atoms"]:
                self.atom(key)

    def fill(self) -> None:
        """Make the data sets that wait real, from what has been taken in."""
        waiting, self.waiting = self.waiting, []
        made = [(data, self._made(**_raw(data))) for data in waiting]
        for data, real in made:
            _raw(data).clear()
            _raw(data).update(vars(real))
            object.__setattr__(data, "__class__", type(real))

    def fill_from_experience(self) -> None:
        """Look the samples up in the stream that the strategy trains on now."""
        experience = self.strategy.experience
        if experience is None or not self.strategy.is_training:
            raise RuntimeError(
                "the stored samples of a restored strategy are looked up in the stream when it trains again, but they "
                "are asked for before. Give the stream at once: restore(strategy, path, stream=benchmark.train_stream)."
            )
        self.take(_streams(experience))
        self.fill()

    def _made(self, kind: type, spec: dict[str, Any], values: dict[str, Any], shelf: "Shelf") -> Any:
        atoms = [self.atom(key) for key in spec["atoms"]]
        position = spec["position"].long().numpy()
        if len(atoms) == 1 and isinstance(atoms[0], _FlatDataWithTransform) and _is_whole(position, atoms[0]):
            flat = atoms[0]
        else:
            starts = np.cumsum([0, *(len(atom) for atom in atoms)])
            with warnings.catch_warnings():  # of parts that are in other transform groups: the group is set below
                warnings.simplefilter("ignore")
                flat = _FlatDataWithTransform(
                    atoms, indices=(position + starts[spec["which"].long().numpy()]).tolist() if atoms else None
                )
        data = kind([flat.with_transforms(spec["group"])], data_attributes=list(values.values()))
        data.collate_fn = self.collate if spec["own_collate"] else default_collate
        return data

    def atom(self, key: str) -> Any:
        """The data set of a fingerprint."""
        first, *others = self.atoms[key]
        if others:
            thorough = {fingerprint(atom, thorough=True) for atom in (first, *others)}
            if len(thorough) > 1 or "" in thorough:
                raise MismatchError(
                    f"the stream has {len(others) + 1} data sets that look alike (the same length, labels and "
                    "transforms), and the stored samples may be of any of them. Give what differs a public attribute."
                )
        return first


def _is_whole(position: Array, atom: Any) -> bool:
    return len(position) == len(atom) and bool((position == np.arange(len(atom))).all())


def _streams(experience: Any) -> Iterator[Iterable[Any]]:
    """Where the samples of earlier experiences may be: the stream, and what it was cut from."""
    experience = experience.logging()
    origin = getattr(experience, "origin_experience", None)
    if origin is not None:
        yield from _streams(origin)
    yield [experience]
    stream = getattr(experience, "_origin_stream", None)
    if stream is not None:
        if getattr(stream, "slice_ids", None) is not None:
            stream = copy.copy(stream)
            stream.slice_ids = None
        yield stream


def attribute_of(name: str, item: dict[str, Any], others: list[Any]) -> Any:
    """A data attribute with its values again; ``others`` are those that were encoded one by one."""
    kind, content, *length = item["values"]
    if kind == "constant":
        return DataAttribute(ConstantSequence(content, length[0]), name, use_in_getitem=item["in_sample"])
    values = {"integers": Tensor.tolist, "rows": _rows, "others": lambda content: others}[kind](content)
    if item["is_joined"] and values:  # Avalanche cannot join a constant to values of a single list
        data = FlatData([values, values[:1]], indices=list(range(len(values))))
    else:
        data = FlatData([values], discard_elements_not_in_indices=item["discards"])
    return DataAttribute(data, name, use_in_getitem=item["in_sample"])


def _rows(content: Tensor) -> list[Tensor]:
    return [row.clone() for row in content]


class Refill(SupervisedPlugin[Any]):
    """Stands first in the list of plugins until training goes on: then all stored samples are looked up, and it goes.

    Args:
        shelf: of the restored strategy.
    """

    supports_distributed = True

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf = shelf

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Before any plugin looks at its samples."""
        if self.shelf.waiting:
            self.shelf.fill_from_experience()
        # Another list: Avalanche is going through this one.
        strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not self]


def _raw(data: "Unfilled") -> dict[str, Any]:
    attributes: dict[str, Any] = object.__getattribute__(data, "__dict__")
    return attributes


class Unfilled(AvalancheDataset[Any]):
    """A restored data set whose samples have not been looked up yet. It turns into the real one when it is used."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            return object.__getattribute__(self, name)
        if name == "__class__":  # asked for by isinstance
            return _raw(self)["kind"]
        _raw(self)["shelf"].fill_from_experience()
        return getattr(self, name)

    def __len__(self) -> int:
        return int(self.__len__())

    def __getitem__(self, index: Any) -> Any:
        return self.__getitem__(index)

    def __add__(self, other: Any) -> Any:
        return self.__add__(other)

    def __radd__(self, other: Any) -> Any:
        return self.__radd__(other)

    def __eq__(self, other: object) -> bool:
        return bool(self.__eq__(other))

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return "Unfilled()"
