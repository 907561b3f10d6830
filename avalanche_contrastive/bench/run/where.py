"""Where the runs of a call happen: in processes of this machine, or on a Slurm cluster."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from avalanche_contrastive.bench.run.job import Job, Work, Write
from avalanche_contrastive.bench.run.pool import run_jobs
from avalanche_contrastive.bench.run.progress import Progress
from avalanche_contrastive.bench.selection import pairs


def check_cluster(parsed: argparse.Namespace) -> None:
    """Refuse options of a cluster where none is used.

    Raises:
        ValueError: naming it.
    """
    given = [key for key in ("partition", "mem", "gpus", "sbatch", "setup", "detach") if getattr(parsed, key)]
    if parsed.on == "local" and given:
        raise ValueError(f"--{given[0]} is for --on slurm" + (": use --device cuda here" if given[0] == "gpus" else ""))


def devices(parsed: argparse.Namespace) -> tuple[str, str]:
    """The device of the runs, and the device on which this machine checks them."""
    device = "cuda" if parsed.gpus else str(parsed.device)
    return device, device if parsed.on == "local" else "cpu"


def do_jobs(
    parsed: argparse.Namespace, jobs: Sequence[Job], work: Work, at_once: int, out: Path, here: Write, there: Write
) -> list[tuple[Job, str]]:
    """Do the runs; returns those that failed, and why.

    Args:
        parsed: the command line.
        jobs: the runs.
        work: does one; must be picklable.
        at_once: processes on this machine.
        out: folder of the results.
        here: what this process does with a result.
        there: what a run on a cluster does with its result, on its node; must be picklable.
    """
    progress = Progress(len(jobs))
    if parsed.on == "local":
        return run_jobs(jobs, at_once, work, here, progress=progress)
    from avalanche_contrastive.bench.run.cluster import SlurmOptions, submit_jobs  # submitit is an extra

    options = SlurmOptions(
        partition=parsed.partition,
        time_min=parsed.time,
        mem_gb=parsed.mem,
        cpus=parsed.cpus,
        gpus=parsed.gpus,
        setup=parsed.setup,
        extra=pairs(parsed.sbatch, "--sbatch"),
        wait=not parsed.detach,
    )
    return submit_jobs(jobs, out, work, there, progress=progress, options=options)
