"""Do many jobs in a few processes that import torch and Avalanche once; one bad run stops no other.

What a job does is the caller's: a function of this package, which the worker processes import by its name.
"""

import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from avalanche_contrastive._launch import launched
from avalanche_contrastive.bench.run import together
from avalanche_contrastive.bench.run.job import Job, Key, Outcome, Work, Write
from avalanche_contrastive.bench.run.measure import is_out_of_memory, no_memory
from avalanche_contrastive.bench.run.progress import Progress

REPORT_SECONDS = 0.2  # between two messages of one run
# Workers on Linux are forks of one process that imports, and no more. A fork of this process would copy torch's threads
# half alive; and a fork cannot use a GPU that its parent has looked at.
START = "forkserver" if sys.platform == "linux" else "spawn"


def run_jobs(
    jobs: Sequence[Job], processes: int, work: Work, on_result: Write, *, progress: Progress
) -> list[tuple[Job, str]]:
    """Do the jobs, hand over each result as it comes, and return what went wrong; one bad run stops no other.

    Args:
        jobs: in the order they shall start.
        processes: worker processes; with 1 the runs happen in this process.
        work: what to do with a job.
        on_result: called here, in the parent.
        progress: shows each start and end, and what the runs report in between.
    """
    failed: list[tuple[Job, str]] = []
    outcomes = (
        _in_this_process(jobs, work, progress) if processes == 1 else _in_workers(jobs, processes, work, progress)
    )
    with closing(progress), closing(outcomes):  # if on_result fails, the workers end here and not some time later
        for job, outcome in outcomes:
            if not isinstance(outcome, str):
                on_result(job, outcome)
            failed += progress.ended(job, outcome)
    return failed


def _in_this_process(jobs: Sequence[Job], work: Work, progress: Progress) -> Generator[tuple[Job, Outcome]]:
    with _one_thread(), _quiet(), _reports_to(progress.moved):
        for job in jobs:
            progress.started(job)
            yield job, _attempt(work, job)


def _in_workers(jobs: Sequence[Job], processes: int, work: Work, progress: Progress) -> Generator[tuple[Job, Outcome]]:
    """As many pools of one process as may run at a time, so that a process that dies takes no other run with it."""
    waiting = deque(jobs)
    messages, writer = _pipe()
    pools: dict[int, ProcessPoolExecutor] = {}
    running: dict[Future[Outcome], tuple[int, Job]] = {}
    try:
        while waiting or running:
            idle = [slot for slot in range(processes) if slot not in [slot for slot, _ in running.values()]]
            for slot in idle[: len(waiting)]:
                job = waiting.popleft()
                running[_submit(pools, slot, job, work, writer)] = slot, job
                progress.started(job)
            done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
            while messages is not None and messages.poll():
                progress.moved(*pickle.loads(messages.recv_bytes()))
            for future in done:
                slot, job = running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    pools.pop(slot).shutdown(wait=False)
                    yield job, "its worker process died (killed, or out of memory?)"
            progress.draw()
    except BaseException:
        _stop(pools.values())
        raise
    finally:
        for pool in pools.values():
            pool.shutdown()
        for end in (messages, writer):
            if end is not None:
                end.close()


def _pipe() -> tuple[Connection, Connection] | tuple[None, None]:
    """A pipe for the workers' reports, where processes can share one without a lock; elsewhere there are no reports.

    A killed worker would keep a lock, but a POSIX pipe takes writes of up to PIPE_BUF bytes whole or not at all.
    """
    if os.name != "posix":
        return None, None
    reader, writer = multiprocessing.Pipe(duplex=False)
    os.set_blocking(writer.fileno(), False)  # a run does not wait for a parent that does not read
    return reader, writer


def _submit(
    pools: dict[int, ProcessPoolExecutor], slot: int, job: Job, work: Work, writer: Connection | None
) -> Future[Outcome]:
    """Give the job to the slot's process, a new one if it has none or if that died since its last run."""
    if slot in pools:
        try:
            return pools[slot].submit(_attempt, work, job)
        except BrokenProcessPool:
            pools[slot].shutdown(wait=False)
    context = multiprocessing.get_context(START if job.device == "cpu" else "spawn")
    pools[slot] = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(writer,))
    return pools[slot].submit(_attempt, work, job)


def _stop(pools: Iterable[ProcessPoolExecutor]) -> None:
    """End the workers at once: after Ctrl-C nobody wants to wait for the runs under way."""
    for pool in pools:
        for worker in list((pool._processes or {}).values()):
            worker.terminate()


def _start_worker(writer: Connection | None) -> None:
    """Import once, one thread per process, leave Ctrl-C to the parent, and end when the parent is killed."""
    global _tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.showwarning = _ignore
    torch.set_num_threads(1)
    if writer is not None:
        _tell = _Sender(writer)


def _end_with_parent() -> None:
    """End this worker with its parent: without one it would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Sender:
    """Sends a run's reports to the parent, a few a second at most."""

    def __init__(self, writer: Connection):
        self.writer = writer
        self.sent = 0.0

    def __call__(self, key: Key, share: float, what: str, milestone: str = "") -> None:
        if 0 < share < 1 and not milestone and time.monotonic() - self.sent < REPORT_SECONDS:
            return
        self.sent = time.monotonic()
        message = pickle.dumps((key, share, what, milestone))
        if len(message) + 8 <= select.PIPE_BUF:
            try:
                self.writer.send_bytes(message)
            except OSError:  # the pipe is full or the parent is gone: the run matters more
                return


def _ignore(*words: Any, **named: Any) -> None:
    """Do nothing."""


_tell: Callable[..., None] = _ignore  # where this process's runs report


@contextmanager
def _reports_to(listener: Callable[..., None]) -> Iterator[None]:
    global _tell
    before, _tell = _tell, listener
    try:
        yield
    finally:
        _tell = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no warnings: Avalanche's would tear the progress display apart, and it resets any filter against them."""
    before, warnings.showwarning = warnings.showwarning, _ignore
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _attempt(work: Work, job: Job) -> Outcome:
    """The result, or the traceback as text, since not every exception can be sent between processes."""
    try:
        if launched() > 1:
            together.announce(job)
        return work(job, partial(_tell, job.id))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a builder that calls sys.exit(), too: one bad run stops no other
        if launched() > 1:
            raise together.end_all(job.label) from error
        trace = traceback.format_exc()
        return (
            f"{job.label}:\n{trace}{no_memory(job.name, job.config.batch_size)}" if is_out_of_memory(error) else trace
        )


def train_along(work: Work, job: Job) -> None:
    """Do a run that another process leads, and print nothing."""
    with _quiet():
        _attempt(work, job)
