"""The option that writes docs/compatibility.md, and one random state for every test."""

import pytest
import torch
from avalanche.training.determinism.rng_manager import RNGManager
from helpers.compatibility import COMMAND, Compatibility


def pytest_addoption(parser):
    parser.addoption("--write-compatibility", action="store_true", help=f"write docs/compatibility.md; see {COMMAND}")


def pytest_configure(config):
    config.pluginmanager.register(Compatibility(write=config.getoption("--write-compatibility")))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, on one thread."""
    torch.set_num_threads(1)
    RNGManager.set_random_seeds(0)
