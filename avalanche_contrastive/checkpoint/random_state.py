"""The random generators that Avalanche looks after, of this process."""

import random
from typing import Any

import numpy as np
import torch
from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive.checkpoint.kinds import MismatchError

__all__ = ["apply_random_state", "checked_random_state"]


def checked_random_state(state: Any) -> dict[str, Any]:
    """A state for `apply_random_state`, of generators that are here.

    Raises:
        MismatchError: it is of other generators.
        Exception: it is none of theirs.
    """
    if {*state} != {*RNGManager.random_generators}:
        raise MismatchError(
            f"random generators: {sorted(map(str, state))} in the file, {[*RNGManager.random_generators]} here"
        )
    states = {name: kept["current_state"] for name, kept in state.items()}
    torch.Generator().set_state(states["torch"])
    np.random.RandomState().set_state(states["numpy"])
    random.Random().setstate(states["random"])
    gpus = states["torch.cuda"][: torch.cuda.device_count()]  # the other machine may have had more
    for number, gpu in enumerate(gpus):
        torch.Generator(f"cuda:{number}").set_state(gpu)
    return {name: {"current_state": gpus if name == "torch.cuda" else kept} for name, kept in states.items()}


def apply_random_state(state: dict[str, Any]) -> None:
    """Set all generators, or none.

    Raises:
        Exception: what a generator of the user's says of its state.
    """
    before = RNGManager.__getstate__()
    try:
        RNGManager.__setstate__(state)
    except Exception:
        RNGManager.__setstate__(before)
        raise
