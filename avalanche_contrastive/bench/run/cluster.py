"""Run many jobs on a Slurm cluster, through submitit: each is one task of a job array and writes its own result.

Results do not depend on the process that submitted: it may be killed, and they still appear. What was submitted stands
in `.slurm/submitted.json` beside the results, so the same command given again waits for what Slurm still has and
submits what it has not: a job that was cancelled, ran out of time or lost its node is simply run again.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avalanche_contrastive._outside import importable, own_folders
from avalanche_contrastive.bench.files import read_checked, write_json
from avalanche_contrastive.bench.report.cells import count
from avalanche_contrastive.bench.run.job import Job, Outcome, Work, Write
from avalanche_contrastive.bench.run.progress import Progress
from avalanche_contrastive.bench.shapes import is_number, is_text, is_whole, list_of, record_of

ARRAY_SIZE = 1000  # Slurm's own limit is 1001 where nobody changed MaxArraySize
NOTE_SECONDS = 5.0  # between two notes of a run on where it is
GRACE_SECONDS = 15.0  # a result may reach this machine's view of a shared disk later than Slurm says the job is over
LONGEST_PAUSE = 15.0  # between two questions to Slurm
TAIL_LINES = 20
ROOT = Path(__file__).parents[3]
IS_SUBMITTED = record_of(runs=list_of(record_of(name=is_text, seed=is_whole, id=is_text)))
IS_NOTE = record_of(share=is_number, what=is_text, milestone=is_text)

# What Slurm says of a job that will not go on; every other word means that it waits, runs or ends.
OVER = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "by scancel, or by the cluster's operators",
    "COMPLETED": "",
    "DEADLINE": "",
    "FAILED": "",
    "GONE": "Slurm knows it no more",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it needs more memory: --mem",
    "PREEMPTED": "by a job of higher priority",
    "REVOKED": "",
    "TIMEOUT": "it needs more minutes: --time",
}


@dataclass(frozen=True)
class SlurmOptions:
    """What each run asks of the cluster; what is left out is the cluster's default.

    Args:
        partition: of the cluster.
        time_min: minutes until Slurm ends the run.
        mem_gb: memory.
        cpus: processors, and threads of torch; figures are sure to equal those of a local run only with one.
        gpus: graphics cards.
        setup: shell lines before a run, such as "module load cuda".
        extra: more options of sbatch, such as {"account": "physics"}.
        wait: until all runs are over; without, return as soon as they are submitted.
    """

    partition: str | None = None
    time_min: int = 60
    mem_gb: float | None = None
    cpus: int = 1
    gpus: int = 0
    setup: Sequence[str] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    wait: bool = True


def slurm_states() -> dict[str, str]:
    """What Slurm says of this user's jobs, by job id (arrays as `<job>_<task>`), those that ended lately included.

    `squeue` is asked and not `sacct`, which many small clusters have not set up.

    Raises:
        ValueError: Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except subprocess.CalledProcessError as error:
        raise ValueError(f"Slurm does not answer: {error.stderr.strip() or error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"Slurm does not answer: {error}") from error
    return dict(line.split()[:2] for line in answer.splitlines() if line.strip())


@dataclass(frozen=True)
class Scheduler:
    """Who runs the jobs: one of submitit's clusters, and how to ask what became of them."""

    cluster: str = "slurm"
    states: Callable[[], dict[str, str]] = slurm_states


def submit_jobs(
    jobs: Sequence[Job],
    out: Path,
    work: Work,
    write: Write,
    *,
    progress: Progress,
    options: SlurmOptions,
    scheduler: Scheduler | None = None,
) -> list[tuple[Job, str]]:
    """Submit the jobs that Slurm does not have yet, wait for all of them, and return what went wrong.

    Args:
        jobs: in the order they shall start.
        out: folder of the results; Slurm's logs go to `.slurm` in it. The compute nodes must see it, and the present
            folder, under the same path.
        work: what to do with a job; must be picklable.
        write: called by each run, on its node, with its job and its result, hours later perhaps; must be picklable.
        progress: shows each end, and what the runs report in between.
        options: what each run asks of the cluster.
        scheduler: Slurm by default.

    Raises:
        ValueError: submitit or Slurm is missing, Slurm refuses a job or does not answer, or it still has a job that
            will write the same file with another config, data folder or device.
    """
    scheduler = scheduler or Scheduler()
    _check_installed(scheduler)
    folder = out.resolve() / ".slurm"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        submitted = _still_there(folder, scheduler.states())
        tasks = _known(jobs, submitted)
        new = [job for job in jobs if job.id not in tasks]
        if tasks:
            progress.say(f"Slurm has {count(len(tasks), 'run')} already, from an earlier call")
        for begin in range(0, len(new), ARRAY_SIZE):
            part = new[begin : begin + ARRAY_SIZE]
            ids = _submit(part, folder, work, write, options, scheduler)
            tasks |= {job.id: id for job, id in zip(part, ids, strict=True)}
            submitted += [_entry(job, id) for job, id in zip(part, ids, strict=True)]
            write_json(folder / "submitted.json", {"runs": submitted})
            progress.say(f"submitted {count(len(part), 'run')} as job {ids[0].split('_')[0]}; logs are in {folder}")
    if not options.wait:
        progress.say("the runs write their results themselves; the same command shows what is there and waits again")
        return []
    return _wait({tasks[job.id]: job for job in jobs}, folder, progress, scheduler)


def _check_installed(scheduler: Scheduler) -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError("a cluster needs the package submitit: pip install 'avalanche-contrastive[slurm]'") from error
    if scheduler.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError("there is no Slurm here: no sbatch and srun in PATH. Is this a login node of the cluster?")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Of two commands at the same moment, the second sees what the first submitted."""
    with (folder / "lock").open("w") as file:
        with suppress(
            OSError
        ):  # not every shared disk has locks; without, a run may be done twice, to the same figures
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entry(job: Job, id: str) -> dict[str, Any]:
    root = os.path.abspath(os.path.expanduser(job.root)) if job.root else ""
    what = json.dumps([job.config.as_dict(), root, job.device], sort_keys=True, default=str)
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return {"name": job.name, "seed": job.seed, "validation": job.validation, "config": digest, "id": id}


def _still_there(folder: Path, states: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of what earlier calls submitted, what Slurm still has; a job that is COMPLETING has ended or was cancelled."""
    path = folder / "submitted.json"
    runs: list[dict[str, Any]] = read_checked(path, IS_SUBMITTED, "--on slurm")["runs"] if path.is_file() else []
    return [run for run in runs if states.get(run["id"], "GONE") not in (*OVER, "COMPLETING")]


def _known(jobs: Sequence[Job], submitted: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Slurm's id of each job that it has already."""
    have = {(run["name"], run["seed"]): run for run in submitted}
    known = {}
    for job in jobs:
        run = have.get((job.name, job.seed))
        if run is None:
            continue
        if run != _entry(job, run["id"]):
            raise ValueError(
                f"{job.label}: Slurm still has job {run['id']}, which will write the same file with another config, "
                f"--root or device. Wait for it or end it (scancel {run['id']}), or choose another --out"
            )
        known[job.id] = str(run["id"])
    return known


def _submit(
    jobs: Sequence[Job], folder: Path, work: Work, write: Write, options: SlurmOptions, scheduler: Scheduler
) -> list[str]:
    """One job array; the ids of its tasks."""
    import submitit

    for job in jobs:
        _note_path(folder, job).unlink(missing_ok=True)
    # With exec, what Slurm signals is the run and not a shell that dies and leaves the run behind.
    python = f"exec {shlex.quote(sys.executable)}"
    executor = submitit.AutoExecutor(folder=folder, cluster=scheduler.cluster, slurm_python=python)
    path = os.pathsep.join(dict.fromkeys([os.getcwd(), str(ROOT)]))
    executor.update_parameters(
        name="benchmarks",
        timeout_min=options.time_min,
        mem_gb=options.mem_gb,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus or None,
        slurm_partition=options.partition,
        slurm_setup=[
            *options.setup,
            f"cd {shlex.quote(os.getcwd())}",
            f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export OMP_NUM_THREADS={options.cpus}",
        ],
        slurm_additional_parameters=dict(options.extra) or None,
        # The batch script is the one task. As a step, it would not get its --cpus-per-task from Slurm 22.05 on.
        slurm_use_srun=False,
    )
    try:
        with executor.batch():
            tasks = [
                executor.submit(run_task, job, work, write, options.cpus, _note_path(folder, job), own_folders())
                for job in jobs
            ]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise ValueError(f"Slurm refused the jobs: {error}") from error
    return [task.job_id for task in tasks]


def run_task(job: Job, work: Work, write: Write, threads: int, note: Path, folders: Sequence[str]) -> dict[str, Any]:
    """The run, on its node: do it, write the result, say now and then where it is.

    Args:
        job: the run.
        work: what to do with it.
        write: see `submit_jobs`.
        threads: of torch.
        note: where to say how far it is.
        folders: where modules of the user's own are.
    """
    import torch

    for place in folders:
        importable(Path(place))
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, for jobs that save what they have so far
    noted, reached = 0.0, ""

    def report(share: float, what: str, milestone: str = "") -> None:
        nonlocal noted, reached
        reached = milestone or reached
        if milestone or time.monotonic() - noted >= NOTE_SECONDS:
            noted = time.monotonic()
            try:
                write_json(note, {"share": share, "what": what, "milestone": reached})
            except OSError as error:  # the run matters more than what is said of it
                print(f"could not write {note}: {error}", file=sys.stderr)

    result = work(job, report)
    write(job, result)
    return result


def _note_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}-seed{job.seed}.progress"


def _wait(tasks: Mapping[str, Job], folder: Path, progress: Progress, scheduler: Scheduler) -> list[tuple[Job, str]]:
    """Until every task has a result or cannot get one any more; what went wrong."""
    waiting = dict(tasks)
    seen_over: dict[str, float] = {}  # when a task without a result was first seen to be over
    failed: list[tuple[Job, str]] = []
    began = time.monotonic()
    with closing(progress):
        try:
            while waiting:
                states = _asked(scheduler, progress)
                there = set(os.listdir(folder))  # which also makes a shared disk look again
                for id, job in list(waiting.items()):
                    state = states.get(id, "GONE") if states is not None else "UNKNOWN"
                    outcome = _outcome(id, state, folder, there, seen_over, scheduler)
                    if outcome is not None:
                        del waiting[id]
                        failed += progress.ended(job, outcome)
                    elif state not in ("PENDING", "UNKNOWN"):
                        _show(job, folder, progress)
                progress.note = _counts(waiting, states, len(failed))
                progress.draw(now=True)
                if waiting:
                    time.sleep(min(LONGEST_PAUSE, 1 + (time.monotonic() - began) / 30))
        except KeyboardInterrupt:
            ids = " ".join(sorted({id.split("_")[0] for id in waiting}))
            progress.say(f"\nno longer waiting; the runs go on in Slurm (to end them: scancel {ids})")
            raise
    return failed


def _asked(scheduler: Scheduler, progress: Progress) -> dict[str, str] | None:
    """The states, or None while Slurm does not answer: a controller that is restarted comes back."""
    try:
        return scheduler.states()
    except ValueError as error:
        progress.say(f"{error}; asking again")
        return None


def _counts(waiting: Mapping[str, Job], states: Mapping[str, str] | None, failed: int) -> str:
    counts = Counter((states or {}).get(id, "unknown").lower() for id in waiting)
    return ", ".join([*(f"{number} {state}" for state, number in sorted(counts.items())), f"{failed} failed"])


def _outcome(
    id: str, state: str, folder: Path, there: set[str], seen_over: dict[str, float], scheduler: Scheduler
) -> Outcome | None:
    """A task's result, what went wrong with it, or None while it is not over."""
    import submitit

    task: Any = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[scheduler.cluster](folder, id)
    if task.paths.result_pickle.name in there:
        error = task.exception()
        if error is None:
            return dict(task.result())
        parts = str(error).split("\n----------------------\n")
        return parts[1] if len(parts) == 3 else str(error)  # submitit puts the traceback between two lines
    if state not in OVER:
        return None
    since = seen_over.setdefault(id, time.monotonic())
    if state in ("COMPLETED", "FAILED", "GONE") and time.monotonic() - since < GRACE_SECONDS:
        return None
    because = f" ({OVER[state]})" if OVER[state] else ""
    log = task.paths.stderr
    return f"end of {log}:\n{_tail(log)}\nSlurm job {id} ended without a result: {state}{because}"


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])
    except FileNotFoundError:
        return "(there is no such file: the job did not start)"


def _show(job: Job, folder: Path, progress: Progress) -> None:
    """That a run runs, and where it is if it said so."""
    progress.started(job)
    path = _note_path(folder, job)
    if path.is_file():
        note = read_checked(path, IS_NOTE, "--on slurm")
        progress.moved(job.id, note["share"], note["what"], note["milestone"])
