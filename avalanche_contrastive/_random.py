"""States of random generators, tried before they are set."""

import copy
import random
from typing import Any

import numpy as np
import torch
from avalanche.training.determinism.rng_manager import RNGManager

__all__ = [
    *("GENERATORS", "checked", "checked_random_state", "generator_of", "package_of", "set_state", "state_of_generator"),
]

GENERATORS = (torch.Generator, random.Random, np.random.Generator)
BITS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox)}


def package_of(generator: Any) -> str | None:
    """The package that a generator is of; None if it is none."""
    return type(generator).__module__.split(".")[0] if isinstance(generator, GENERATORS) else None


def generator_of(package: str, state: Any) -> Any:
    """A new generator of a package, which can be given that state."""
    if package == "numpy":
        return np.random.Generator(BITS[state["bit_generator"]]())
    return {"torch": torch.Generator, "random": random.Random}[package]()


def state_of_generator(generator: Any) -> Any:
    """The state of a generator."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.getstate()


def set_state(generator: Any, state: Any) -> None:
    """Give a generator its state.

    Raises:
        Exception: it is none.
    """
    if isinstance(generator, np.random.Generator):
        _check_positions(state["state"].get("pos", 0), state.get("buffer_pos", 0))
        generator.bit_generator.state = state
    else:
        (generator.setstate if isinstance(generator, random.Random) else generator.set_state)(state)


def checked(generator: Any, state: Any) -> Any:
    """A state that has been tried on another generator of the same kind.

    Raises:
        Exception: it is none.
    """
    set_state(copy.deepcopy(generator), state)
    return state


def checked_random_state(state: dict[str, Any]) -> dict[str, Any]:
    """A state of all generators that Avalanche looks after, which has been tried; they are as they were.

    Raises:
        Exception: it is none.
    """
    if {*state} != {*RNGManager.random_generators}:
        raise ValueError(f"the random generators are {[*state]} there, {[*RNGManager.random_generators]} here")
    gpus = state["torch.cuda"]["current_state"]
    gpus = gpus[: torch.cuda.device_count()] if gpus else []  # the other machine may have had more
    state = {**state, "torch.cuda": {"current_state": gpus}}
    _check_positions(state["numpy"]["current_state"][2])
    before = RNGManager.__getstate__()
    try:
        RNGManager.__setstate__(state)
    finally:
        RNGManager.__setstate__(before)
    return state


def _check_positions(position: int, in_buffer: int = 0) -> None:
    """Refuse places from which numpy would read beyond its numbers: it does not look."""
    if not 0 <= position <= 624 or not 0 <= in_buffer <= 4:
        raise ValueError("a random state that is at none of its numbers")
