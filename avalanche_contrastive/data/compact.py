"""Stored samples as one flat set of what is in use, however many sets they were drawn from over the time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups

from avalanche_contrastive._datasets import indices_of, part_of

__all__ = ["compacted"]


def compacted(datasets: Sequence[AvalancheDataset[Any]]) -> Any:
    """The samples of Avalanche datasets one after the other, without the parts of them that hold none of the samples.

    Avalanche's ``concat`` and ``subset`` keep every dataset that was ever put in: a memory that is updated with each
    experience grows by a dataset each time, though its samples do not become more. The samples, their order, transforms
    and attributes are as ``concat_datasets`` gives them, and none is fetched or copied.

    Args:
        datasets: such as the groups of a buffer; those without samples are left out.

    Returns:
        An Avalanche dataset of the type of the first one.
    """
    filled = [data for data in datasets if len(data) > 0]
    if not filled:
        return datasets[0] if datasets else AvalancheDataset([])
    first: Any = filled[0]
    names = [name for name in first._data_attributes if all(name in data._data_attributes for data in filled)]
    attributes = []
    for name in names:
        parts = [data._data_attributes[name] for data in filled]
        attributes.append(DataAttribute(_column(parts), name, use_in_getitem=parts[0].use_in_getitem))
    leaves, rows = _in_use([data._flat_data for data in filled])
    none = {"transform_groups": EmptyTransformGroups(), "frozen_transform_groups": EmptyTransformGroups()}
    flat = _as_flat(_FlatDataWithTransform(leaves, indices=rows, **none))
    whole = type(first)([flat], data_attributes=attributes, collate_fn=first.collate_fn)
    return whole.with_transforms(first._flat_data._transform_groups.current_group)


def _column(parts: Sequence[DataAttribute[Any]]) -> Any:
    data: list[Any] = [part.data for part in parts]
    constants = [values._constant_value for values in data if isinstance(values, ConstantSequence)]
    if len(constants) == len(data) and all(value == constants[0] for value in constants):
        return ConstantSequence(constants[0], sum(map(len, data)))
    return _as_flat(FlatData(*_in_use(data), can_flatten=False))


def _as_flat(data: Any) -> Any:
    """Data made of `_in_use`, which Avalanche has not flattened: it is flat, and to look takes longer than the rest."""
    data._can_flatten = True
    return data


def _in_use(nodes: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The datasets that samples of some nodes lie in, and the samples' places in these one after the other."""
    numbers: dict[int, int] = {}  # by identity
    leaves: list[Any] = []
    which, rows = [], []
    for node in nodes:
        flat = isinstance(node, FlatData) and node._can_flatten
        children: Sequence[Any] = node._datasets if flat else [node]
        places, ends = (indices_of(node), node._cumulative_sizes) if flat else (np.arange(len(node)), [len(node)])
        child, inside = part_of(places, ends)
        number_of = np.full(len(children), -1)
        for used in np.unique(child).tolist():
            key = id(children[used])
            if key not in numbers:
                numbers[key] = len(leaves)
                leaves.append(children[used])
            number_of[used] = numbers[key]
        which.append(number_of[child])
        rows.append(inside)
    starts = np.concatenate([[0], np.cumsum([len(leaf) for leaf in leaves])])
    return leaves, (np.concatenate(rows) + starts[np.concatenate(which)]).tolist()
