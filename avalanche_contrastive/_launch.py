"""Whether torchrun has started several processes; costs no import of torch."""

import os

__all__ = ["is_first", "launched"]

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in ENVIRONMENT) else 1


def is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    return launched() == 1 or os.environ["RANK"] == "0"
