"""SIGKILL at random moments: every run ends bit for bit where an undisturbed one ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from resuming import METHODS


def kill(name, times):
    """The report of `killing.py`."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killing.py")), name, str(times)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_some_kills_at_random_moments():
    report = kill("Co2L", 3)
    assert report["differing"] == [[]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_twenty_kills_at_random_moments_and_twenty_equal_endings(name):
    report = kill(name, 20)
    assert report["differing"] == [[]] * 20
    assert len(set(report["done"])) >= 3, f"the kills were all early or all late: {report}"
