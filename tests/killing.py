"""Kill a training process at random moments, and compare how each run ends: `python killing.py METHOD KILLS`.

One process imports everything and then only forks and kills; each training process builds everything anew, restores
what is there and goes on. Prints one line of JSON: the moments, the experiences that were done at them, and in what
each run ended otherwise than the undisturbed one.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from avalanche.training.determinism.rng_manager import RNGManager
from conftest import make_benchmark
from resuming import build, differing, ending, go_on

from avalanche_contrastive import checkpoint


def train(name, folder):
    """The whole run of a process, from whatever an earlier one has left; its ending goes to a file."""
    torch.set_num_threads(1)
    RNGManager.set_random_seeds(3)
    benchmark, strategy = make_benchmark(per_class=8), build(name, train_epochs=3)
    path = folder / "a.pt"
    done = checkpoint.restore(strategy, path) if path.exists() else 0
    go_on(strategy, benchmark, done, path=path)
    torch.save(ending(strategy), folder / "ending")


def start(name, folder):
    """Train in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(name, folder)
            code = 0
        finally:
            os._exit(code)
    return child


def end_of(name, folder):
    """Let a process train to the end."""
    assert os.waitpid(start(name, folder), 0)[1] == 0
    return torch.load(folder / "ending", weights_only=False)


def killed(name, folder, seconds):
    """Kill a process after so long; whether it was still at work."""
    child = start(name, folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


def main(name, kills):
    """Each run is killed once and then ends; what the last kill left is not used again."""
    draw, moments, done, ends = random.Random(name), [], [], []
    with tempfile.TemporaryDirectory() as root:
        began = time.monotonic()
        undisturbed = end_of(name, folder_in(root))
        whole = time.monotonic() - began
        while len(ends) < kills:
            folder, seconds = folder_in(root), draw.uniform(0, whole)
            if not killed(name, folder, seconds):
                continue  # it was faster this time
            moments.append(round(seconds / whole, 2))
            path = folder / "a.pt"
            done.append(torch.load(path, weights_only=True)["done"] if path.exists() else 0)
            ends.append(differing(undisturbed, end_of(name, folder)))
    print(json.dumps({"moments": moments, "done": done, "differing": ends}))


def folder_in(root):
    """A new folder."""
    return Path(tempfile.mkdtemp(dir=root))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
