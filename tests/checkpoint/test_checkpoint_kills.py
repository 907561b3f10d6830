"""SIGKILL at random moments: every run ends bit for bit where an undisturbed one ends."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.resuming import METHODS, build

from avalanche_contrastive import checkpoint
from avalanche_contrastive.parallel.plugin import DataParallel

ROOT = Path(__file__).parents[2]


def kill(name, times):
    """The report of `killing.py`."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "helpers" / "killing.py"), name, str(times)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
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


TWO = """
    import os, sys, torch, torch.distributed as dist
    from helpers.resuming import build, checkpoint, go_on
    from helpers.streams import make_benchmark
    from avalanche_contrastive.parallel import DataParallel
    folder = sys.argv[1]
    rank = 0 if os.fork() else 1
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    strategy = build("CSD", plugins=[DataParallel()])
    go_on(strategy, make_benchmark(per_class=3), 0, 1)
    torch.manual_seed(rank)
    checkpoint.save(strategy, f"{folder}/a.pt")
    assert os.path.exists(f"{folder}/a.pt")
    expected = torch.initial_seed(), torch.rand(3).tolist()
    torch.manual_seed(7)
    assert checkpoint.restore(build("CSD", plugins=[DataParallel()]), f"{folder}/a.pt") == 1
    assert (torch.initial_seed(), torch.rand(3).tolist()) == expected
    print(f"equal {rank}\\n", end="", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        os.wait()
"""


@pytest.mark.slow
def test_of_two_processes_the_first_writes_and_each_has_its_random_state(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(TWO), str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split("\n")) == ["", "equal 0", "equal 1"]
    assert len(torch.load(tmp_path / "a.pt", weights_only=True)["random"]) == 2
    with pytest.raises(checkpoint.MismatchError, match="is of 2 processes and cannot go on in 1"):
        checkpoint.restore(build("CSD", plugins=[DataParallel()]), tmp_path / "a.pt")


# As the README has it: built anew, restored and trained on, without a word of processes in between.
RESTART = """
    import sys, torch
    from pathlib import Path
    from helpers.resuming import build, differing, ending, go_on
    from helpers.streams import make_benchmark
    from avalanche.training.determinism.rng_manager import RNGManager
    from avalanche_contrastive import checkpoint
    from avalanche_contrastive.parallel import DataParallel, is_main_process
    torch.set_num_threads(1)
    RNGManager.set_random_seeds(3)
    strategy, path = build("SSIL", plugins=[DataParallel()]), Path(sys.argv[1]) / "a.pt"
    benchmark = make_benchmark(per_class=3)
    if sys.argv[2] == "broken" and not is_main_process():
        path = path.with_name("b.pt")
    try:
        done = checkpoint.restore(strategy, path) if sys.argv[2] != "begin" else 0
    except (checkpoint.CheckpointError, FileNotFoundError) as error:
        print(f"{strategy.clock.train_exp_counter} {type(error).__name__}: {error}")
        sys.exit()
    go_on(strategy, benchmark, done, done + 2, path)
    if is_main_process():
        torch.save(ending(strategy), path.with_name(sys.argv[2]))
"""


@pytest.mark.slow
def test_restore_joins_the_processes_that_torchrun_has_started(tmp_path):
    def run(what):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        (tmp_path / "run.py").write_text(textwrap.dedent(RESTART))
        torchrun = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
        ]
        command = [*torchrun, str(tmp_path / "run.py"), str(tmp_path), what]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run("begin")
    run("end")
    assert torch.load(tmp_path / "end", weights_only=False)["clock"]["train_exp_counter"] == 4
    words = run("broken")
    assert "0 FileNotFoundError" in words
    assert "0 CheckpointError: failed in another process" in words
