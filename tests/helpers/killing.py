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
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive import checkpoint
from helpers.resuming import build, differing, ending, go_on
from helpers.streams import make_benchmark


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
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def end_of(name, folder):
    """Let a process train to the end."""
    assert os.waitpid(start(name, folder), 0)[1] == 0
    return torch.load(folder / "ending", weights_only=False)


def killed(name, folder, saved, seconds):
    """Kill a process so many seconds after it has saved so often; whether it was still at work."""
    child, times, last = start(name, folder), 0, None
    while times < saved:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        found = written(folder / "a.pt")
        times, last = times + (found != last), found
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


def written(path):
    """What changes with each file that is put in the path's place; None while there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def main(name, kills):
    """Each run is killed once and then ends; what the last kill left is not used again.

    Moments are drawn as experiences done and a share of the next one: seconds of the whole run would all be early on a
    machine that has become busy, and all late on one that is no longer.
    """
    draw, moments, done, ends = random.Random(name), [], [], []
    with tempfile.TemporaryDirectory() as root:
        began = time.monotonic()
        undisturbed = end_of(name, folder_in(root))
        experiences = len(make_benchmark(per_class=8).train_stream)
        each = (time.monotonic() - began) / experiences
        while len(ends) < kills:
            folder, saved, share = folder_in(root), draw.randrange(experiences), draw.random()
            if not killed(name, folder, saved, share * each):
                continue  # it was faster this time
            path = folder / "a.pt"
            finished = torch.load(path, weights_only=True)["done"] if path.exists() else 0
            if finished == experiences:
                continue  # it was about to end: nothing is left to train, for which stored samples are looked up
            moments.append(round(saved + share, 2))
            done.append(finished)
            ends.append(differing(undisturbed, end_of(name, folder)))
    print(json.dumps({"moments": moments, "done": done, "differing": ends}))


def folder_in(root):
    """A new folder."""
    return Path(tempfile.mkdtemp(dir=root))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
