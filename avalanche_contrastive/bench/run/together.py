"""`run` under torchrun: the first process does what `run` always does, the others train along with it.

The first alone reads and writes files and shows progress. It tells the others of each run before it begins; an error in
any process ends them all, since the others are in the midst of the same run. What is written already stays.
"""

import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_contrastive._launch import launched as launched
from avalanche_contrastive.bench.methods.builders import importable, own_folders

if TYPE_CHECKING:
    from avalanche_contrastive.bench.run.pool import Job

_channel: Any = None  # between the first process and the others


def check(parsed: Namespace) -> None:
    """Refuse what several processes cannot do.

    Raises:
        ValueError: another command than `run`, several jobs, or a cluster.
    """
    if parsed.command != "run":
        raise ValueError(f"torchrun has started {launched()} processes, but of all commands only `run` knows them")
    if parsed.on != "local":
        raise ValueError("--on slurm submits one process per run: give it without torchrun")
    if (parsed.jobs or 1) > 1:
        raise ValueError(
            f"--jobs {parsed.jobs} under torchrun: its {launched()} processes train one run together, one run after "
            "the other. Leave --jobs out"
        )


def run(parsed: Namespace, lead: Callable[[Namespace], int]) -> int:
    """The command in all processes; `lead` is what the first does."""
    import torch.distributed as dist  # torch and Avalanche take seconds

    from avalanche_contrastive.bench.run.execute import device_of
    from avalanche_contrastive.parallel.plugin import is_main_process, join_processes

    global _channel
    join_processes(device_of(parsed.device))
    # The others wait here while the first downloads data and draws figures.
    _channel = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    if is_main_process():
        code = lead(parsed)
        announce(None)
    else:
        code = _follow()
    dist.destroy_process_group()
    return code


def announce(job: "Job | None") -> None:
    """Tell the other processes what is to be run, None: nothing more; only the first process has something to tell."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        dist.broadcast_object_list([(job, own_folders())], 0, group=_channel)


def _follow() -> int:
    import torch
    import torch.distributed as dist

    from avalanche_contrastive.bench.run.pool import train_along

    torch.set_num_threads(1)
    while True:
        told: list[Any] = [None]
        dist.broadcast_object_list(told, 0, group=_channel)
        job, folders = told[0]
        if job is None:
            return 0
        for folder in folders:
            importable(Path(folder))
        train_along(job)


def end_all(label: str) -> SystemExit:
    """Say what went wrong in this process; to be raised, by which torchrun ends the others."""
    from avalanche_contrastive.parallel.plugin import rank

    print(f"\n{label} failed in process {rank()}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    return SystemExit(1)
