"""Thousands of broken and forged files: each is refused and changes nothing, or is data that fits; none runs code."""

import random
import time
from collections import Counter

import pytest
import torch
from helpers.hostile import attempt, content_of, differing, in_bytes, mutated, snapshot, values_in
from helpers.resuming import METHODS, build, saved_files

from avalanche_contrastive import checkpoint

SECONDS = 5.0  # of a busy machine; a bomb would take minutes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of each method after two experiences, and its content."""
    files = saved_files(tmp_path_factory.mktemp("saved"))
    return {name: (path.read_bytes(), content_of(path)) for name, path in files.items()}


def restored_state(strategy):
    """What a strategy was given by a file; the plugin that looks samples up notes by id where it has been."""
    strategy.plugins = [plugin for plugin in strategy.plugins if type(plugin).__name__ != "LookUp"]
    return values_in(snapshot(strategy))


def fuzz(saved, name, path, cases, seed):
    """How many files were refused, restored as if they had not been changed, and restored with what was changed."""
    draw, (data, content), counts = random.Random(f"{name} {seed}"), saved[name], Counter()
    path.write_bytes(data)
    right = build(name)
    checkpoint.restore(right, path)
    right = restored_state(right)
    for _ in range(cases):
        if draw.random() < 0.25:
            path.write_bytes(in_bytes(data, draw))
        else:
            torch.save(mutated(content, draw), path)
        strategy, began = build(name), time.perf_counter()
        error = attempt(strategy, path)
        assert time.perf_counter() - began < SECONDS
        is_right = error is None and differing(right, restored_state(strategy)) == []
        counts["refused" if error is not None else "equal" if is_right else "other"] += 1
    return counts


@pytest.mark.parametrize("name", METHODS)
def test_some_broken_and_forged_files(saved, name, tmp_path):
    counts = fuzz(saved, name, tmp_path / "a.pt", 67, seed=0)
    assert counts["refused"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_many_broken_and_forged_files(saved, name, tmp_path):
    counts = fuzz(saved, name, tmp_path / "a.pt", 667, seed=1)
    assert counts["refused"] > 500
    print(f"{name}: {dict(counts)}; other: what was changed fits")
