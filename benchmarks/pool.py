"""Run many jobs in a few processes that import torch and Avalanche once, and say all the while where things stand."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from benchmarks.configs import Config


@dataclass(frozen=True)
class Job:
    """One run to be done; `key` is for whoever asked for it."""

    name: str
    config: Config
    seed: int
    validation: bool = False
    key: Any = None


class Progress:
    """A line per finished run, and on a terminal a last line that moves.

    Args:
        total: runs to do.
        out: where to write; standard error by default, so that a table on standard output can be piped.
    """

    def __init__(self, total: int, out: TextIO | None = None):
        self.total = total
        self.out = sys.stderr if out is None else out
        self.done = 0
        self.began = time.monotonic()
        self.moving = self.out.isatty()

    def finished(self, text: str) -> None:
        """One more run is over."""
        self.done += 1
        width = len(str(self.total))
        self._line(f"[{self.done:{width}}/{self.total}] {text}")

    def status(self, running: Sequence[str]) -> None:
        """What runs now; on a terminal only, a log gets the finished lines."""
        if self.moving and running:
            text = f"{self.done}/{self.total} done · {', '.join(running)} · {self.times()}"
            self.out.write("\r\033[K" + text)
            self.out.flush()

    def times(self) -> str:
        """Elapsed, and an estimate of the rest from the runs so far."""
        elapsed = time.monotonic() - self.began
        left = "?" if not self.done else _clock(elapsed / self.done * (self.total - self.done))
        return f"{_clock(elapsed)} elapsed, about {left} left"

    def _line(self, text: str) -> None:
        self.out.write(("\r\033[K" if self.moving else "") + f"{text} · {self.times()}\n")
        self.out.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_jobs(
    jobs: Sequence[Job],
    processes: int,
    on_result: Callable[[Job, dict[str, Any]], None],
    *,
    progress: Progress,
) -> list[tuple[Job, str]]:
    """Do the jobs, hand over each result as it comes, and return what went wrong; one bad run stops no other.

    Args:
        jobs: in the order they shall start.
        processes: worker processes; with 1 the runs happen in this process.
        on_result: called here, in the parent.
        progress: told of each end.
    """
    failed = []
    for job, outcome in _in_this_process(jobs, progress) if processes == 1 else _in_workers(jobs, processes, progress):
        if isinstance(outcome, str):
            failed.append((job, outcome))
            progress.finished(f"{job.name} seed {job.seed} · FAILED: {outcome.strip().splitlines()[-1]}")
        else:
            on_result(job, outcome)
            progress.finished(f"{job.name} seed {job.seed} · {_figures(outcome)} · {outcome['seconds_total']:.1f} s")
    return failed


def _figures(result: dict[str, Any]) -> str:
    return f"accuracy {100 * result['final_accuracy']:.1f} · Recall@1 {100 * result['recall_at_1'][-1]:.1f}"


def _in_this_process(jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    with _one_thread():
        for job in jobs:
            progress.status([f"{job.name}/{job.seed}"])
            yield job, _attempt(job)


def _in_workers(jobs: Sequence[Job], processes: int, progress: Progress) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """Only as many jobs are handed out as there are workers, so that it is known what runs."""
    waiting = deque(jobs)
    pool = _pool(processes)
    running: dict[Future[dict[str, Any] | str], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                try:
                    running[pool.submit(_attempt, waiting[0])] = waiting[0]
                    waiting.popleft()
                except BrokenProcessPool:
                    pool = _pool(processes)
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:  # a dead worker fails its neighbours' runs too: which run it was cannot be told
                job = running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    broken = True
                    yield job, "its worker process died (killed, or out of memory?)"
            if broken:  # the pool takes no more jobs, and what ran beside the dead worker is lost with it
                waiting.extendleft(running.values())
                running.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool(processes)
            progress.status([f"{job.name}/{job.seed}" for job in running.values()])
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown()


def _pool(processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half alive
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers at once: after Ctrl-C nobody wants to wait for the runs under way."""
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()


def _start_worker() -> None:
    """Import once, one thread per process, leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Avalanche's own deprecations would tear the progress apart, and it resets any filter against them.
    warnings.showwarning = lambda *words, **named: None
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A killed parent leaves its workers waiting for ever otherwise."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _attempt(job: Job) -> dict[str, Any] | str:
    """The result, or the traceback as text, since not every exception can be sent between processes."""
    try:
        from benchmarks.runs import execute

        return execute(job.config, job.seed, validation=job.validation)
    except Exception:
        return traceback.format_exc()
