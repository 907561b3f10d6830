"""What the package needs of torch beside its layers: modes, random state, wrappers, compiled models."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.determinism.rng_manager import RNGManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "compiled",
    "compiled_in_place",
    "digest",
    "leaves_of",
    "map_tensors",
    "own_random_state",
    "own_seed",
    "preserved_modes",
    "still_statistics",
    "tensors_in",
    "unwrapped",
]


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Leave every module in the training or evaluation mode that it is in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def own_random_state(*counters: int) -> Iterator[None]:
    """Run a block on random numbers of its own, and leave torch's, numpy's and Python's states as they were.

    The block's seed follows the user's (``torch.manual_seed``) and the counters, not how much others have drawn since:
    what a plugin draws in it is the same beside any other plugin, in either order.
    """
    state = RNGManager.__getstate__()
    try:
        RNGManager.set_random_seeds(own_seed(*counters))
        yield
    finally:
        RNGManager.__setstate__(state)


def own_seed(*counters: int) -> int:
    """A seed in [0, 2^32) from the user's torch seed and some counters."""
    seed = torch.initial_seed()
    for counter in counters:
        seed = seed * 1_000_003 + counter
    return seed % 2**32


def digest(tensors: Iterable[Tensor]) -> str:
    """A short text that differs where any bit of the tensors does."""
    found = hashlib.blake2b(digest_size=16)
    for x in tensors:
        found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def leaves_of(output: Tensor) -> set[int]:
    """Ids of the tensors that gradients of an output flow to in the end, parameters for example."""
    waiting, seen, found = [output.grad_fn], set(), set()
    while waiting:
        node: Any = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            waiting.extend(following for following, _ in node.next_functions)
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of data-parallel training or ``torch.compile``."""
    if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
        return unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def compiled_in_place(model: nn.Module) -> bool:
    """Whether the module compiles its own call (``model.compile()``), hooks included: one added later may not run."""
    return getattr(model, "_compiled_call_impl", None) is not None


def compiled(model: nn.Module) -> bool:
    """Whether a call of the model runs compiled code, by ``torch.compile(model)`` or ``model.compile()``."""
    return any(hasattr(module, "_orig_mod") or compiled_in_place(module) for module in model.modules())


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Batch-norm layers in training normalise by the batch, but do not note it: it has been through once."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    norms = [m for m in norms if m.training]
    try:
        for module in norms:
            module.track_running_stats = False
        yield
    finally:
        for module in norms:
            module.track_running_stats = True


def map_tensors(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """A tensor, or a dictionary, list or tuple of tensors, with each tensor replaced; anything else stays."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {key: map_tensors(function, value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        parts = [map_tensors(function, value) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)  # a named tuple, or a plain one
    return x


def tensors_in(x: Any) -> list[Tensor]:
    """The tensors of a tensor, or of a dictionary, list or tuple of tensors, in order."""
    if isinstance(x, Tensor):
        return [x]
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]
