"""`run` under torchrun: the first process does what `run` always does, the others train along with it.

The first alone reads and writes files and shows progress. It tells the others of each run before it begins. An error in
any process ends them all, since the others are in the middle of the same run. What is written already stays.
"""

import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from avalanche_contrastive._launch import launched
from avalanche_contrastive._outside import importable, own_folders
from avalanche_contrastive.bench.run.measure import device_of
from avalanche_contrastive.parallel.joining import is_main_process, join_processes, rank

_channel: Any = None  # between the first process and the others


def check(parsed: Namespace) -> None:
    """Refuse what several processes cannot do.

    Raises:
        ValueError: several jobs, or a cluster.
    """
    if parsed.on != "local":
        raise ValueError("--on slurm submits one process per run: give it without torchrun")
    if (parsed.jobs or 1) > 1:
        raise ValueError(
            f"--jobs {parsed.jobs} under torchrun: its {launched()} processes train one run together, one run after "
            "the other. Leave --jobs out"
        )


def run_together(device: str, lead: Callable[[], int], follow: Callable[[Any], None]) -> int:
    """Do something in all processes, and return the exit code.

    Args:
        device: "cpu", "cuda" or "auto".
        lead: what the first process does; it calls `announce` before each run.
        follow: what the others do with what was announced.
    """
    global _channel
    join_processes(device_of(device))
    # The others wait here while the first downloads data and draws figures.
    _channel = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    code = 0
    if is_main_process():
        code = lead()
        announce(None)
    else:
        _follow(follow)
    dist.destroy_process_group()
    return code


def announce(job: Any) -> None:
    """Send the next job to the other processes, None after the last one; only the first process sends."""
    if dist.get_rank() == 0:
        dist.broadcast_object_list([(job, own_folders())], 0, group=_channel)


def _follow(train: Callable[[Any], None]) -> None:
    torch.set_num_threads(1)
    while True:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, 0, group=_channel)
        job, folders = received[0]
        if job is None:
            return
        for folder in folders:
            importable(Path(folder))
        train(job)


def end_all(label: str) -> SystemExit:
    """Print what went wrong in this process; raise what is returned, so that torchrun ends the others."""
    print(f"\n{label} failed in process {rank()}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    return SystemExit(1)
