"""Co2L's scripts are called as from a command line, without images."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

__all__ = ["STUBS", "called_with", "parsed", "targets_only"]

STUBS = ("tensorboard_logger", "torch.utils.tensorboard")


@contextmanager
def called_with(options: Sequence[str]) -> Iterator[None]:
    """A command line, in an empty folder: the scripts make folders where they are started."""
    line = mock.patch.object(sys, "argv", ["main.py", *options])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), line:
        yield


def parsed(script: Any, options: Sequence[str]) -> Any:
    """What a script makes of a command line."""
    with called_with(options):
        return script.parse_option()


def targets_only(script: Any, targets: list[int]) -> Any:
    """CIFAR-10 and MNIST as a list of targets: the choice of exemplars and the draws look at nothing else."""

    class Targets(list[int]):
        def __init__(self, **options: Any) -> None:
            super().__init__(targets)
            self.targets = targets

    return mock.patch.multiple(script.datasets, CIFAR10=Targets, MNIST=Targets)
