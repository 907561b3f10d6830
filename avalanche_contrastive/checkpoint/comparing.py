"""Is a file of this strategy? Options and shapes, compared."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from avalanche_contrastive.checkpoint.kinds import SCALARS, MismatchError, options_of, state_of

__all__ = ["check_layer", "differing", "differing_options"]

Node = Any


def differing_options(there: Any, nodes: dict[str, Node], path: str) -> Iterator[str]:
    """The arguments of an object's constructor that the file has otherwise, in words."""
    ours = state_of(there) or {}
    for name in sorted(options_of(there) & nodes.keys() & ours.keys()):
        where = f"{path}.{name}"
        yield from differing(where, nodes[name], ours[name])
        if type(there).__module__.startswith("avalanche_contrastive") and (ours[name] is None) != (nodes[name] is None):
            yield f"{where} is {'None' if ours[name] is not None else 'given'} in the file"


def differing(where: str, node: Node, ours: Any) -> Iterator[str]:
    """The option in words if it differs; what is no number, string, None or tuple of these is no option."""
    if _is_option(ours) and (node is None or type(node) in SCALARS or node[0] == "tuple"):
        theirs = _tuple_of(node)
        if ours != theirs:
            yield f"{where} is {theirs!r} in the file, {ours!r} here"


def _is_option(value: Any) -> bool:
    return value is None or type(value) in SCALARS or (type(value) is tuple and all(map(_is_option, value)))


def _tuple_of(node: Node) -> Any:
    if not isinstance(node, tuple):
        return node
    return tuple(node[1].tolist() if isinstance(node[1], Tensor) else map(_tuple_of, node[1]))


def check_layer(there: nn.Module, nodes: dict[str, Node], path: str) -> None:
    """A part of the model that does not grow has the same layers and shapes."""
    for kind in ("_parameters", "_buffers", "_modules"):
        ours = getattr(there, kind)
        theirs = dict(nodes[kind][3])
        if ours.keys() != theirs.keys():
            odd = sorted(ours.keys() ^ theirs.keys())[0]
            where = "the file" if odd in theirs else "this model"
            raise MismatchError(f"the models differ: strategy.{path}.{odd} is only in {where}")
        for key, item in theirs.items():
            mine = ours[key]
            if mine is None or item is None or item[0] not in ("parameter", "tensor"):
                continue
            if (item[2].shape, item[2].dtype) != (mine.shape, mine.dtype):
                raise MismatchError(
                    f"the models differ: strategy.{path}.{key} is {_shape(item[2])} in the file, {_shape(mine)} here"
                )


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
