"""Many runs in a few processes: what is shown meanwhile, runs that fail or die, and what a run costs."""

import contextlib
import fcntl
import gc
import io
import multiprocessing
import os
import pickle
import pty
import re
import struct
import sys
import termios
import textwrap
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from avalanche_contrastive import _outside as outside
from avalanche_contrastive.bench.config import Config, load_row, updated
from avalanche_contrastive.bench.run import pool, progress
from avalanche_contrastive.bench.run.execute import run_job
from avalanche_contrastive.bench.run.job import Job, last_line
from avalanche_contrastive.bench.run.measure import PeakMemory, clock, describe_device, is_out_of_memory
from avalanche_contrastive.bench.run.pool import run_jobs
from avalanche_contrastive.bench.run.progress import Progress

RESULT = {"final_accuracy": 0.5, "recall_at_1": [0.25], "seconds_total": 1.0}


def quick(name="naive", **changes):
    return updated(load_row(name, "split_digits").config, {"epochs": 1, "batch_size": 128, **changes}, where="test")


class Recorded(Progress):
    """Keeps what the runs report."""

    def __init__(self, total):
        super().__init__(total, io.StringIO())
        self.reports = []

    def moved(self, key, share, what, milestone=""):
        self.reports.append((key, share, what))
        super().moved(key, share, what, milestone)


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))


# ---- what is shown


def test_a_log_gets_a_line_per_finished_experience_and_run_and_nothing_else():
    out = io.StringIO()
    shown = Progress(2, out)
    first, second = Job("naive", Config("naive"), 0), Job("naive", Config("naive"), 1)
    shown.started(first)
    shown.moved(first.id, 0.4, "experience 2/5", "experience 2/5 · accuracy 80.0 so far · 3.0 s")
    shown.moved(first.id, 0.5, "experience 3/5, epoch 2/4")
    shown.moved(
        first.id, 0.5, "experience 3/5, epoch 2/4", "experience 2/5 · accuracy 80.0 so far · 3.0 s"
    )  # as a note is read again
    shown.finished(first, "accuracy 50.0")
    shown.started(second)
    shown.finished(second, "FAILED: out of luck", ok=False)
    shown.close()
    lines = out.getvalue().splitlines()
    assert lines.pop(0).startswith("naive seed 0 · experience 2/5 · accuracy 80.0 so far · 3.0 s · 0:00 elapsed, about")
    assert [line.split(" · ")[:2] for line in lines] == [
        ["[1/2] naive seed 0", "accuracy 50.0"],
        ["[2/2] naive seed 1", "FAILED: out of luck"],
    ]
    assert "\r" not in out.getvalue()
    assert "\033" not in out.getvalue()


def test_the_time_left_follows_from_finished_runs_and_from_those_under_way(monkeypatch):
    clock = Clock(monkeypatch)
    shown = Progress(4, io.StringIO())
    jobs = [Job("naive", Config("naive"), seed) for seed in range(4)]
    shown.started(jobs[0])
    shown.started(jobs[1])
    assert shown.left() is None
    clock.now += 7  # imports: no part of the pace
    shown.moved(jobs[0].id, 0.0, "experience 1/5")
    shown.moved(jobs[1].id, 0.0, "experience 1/5")
    clock.now += 10
    shown.moved(jobs[0].id, 0.5, "experience 3/5")
    # Each takes 20 s: 10 s left of both that run, then two more at a time.
    assert shown.left() == pytest.approx((10 + 10 + 20 + 20) / 2)
    clock.now += 10
    shown.moved(jobs[1].id, 0.25, "experience 2/5")  # the slower one: 80 s in all, 60 left
    shown.finished(jobs[0], "")
    assert shown.left() == pytest.approx(max((60 + 2 * 50) / 2, 60))
    assert "1:20 left" in shown.times()
    for job in jobs[1:]:
        shown.started(job)
        shown.finished(job, "")
    assert shown.left() == 0


def test_a_run_that_failed_at_once_says_nothing_of_how_long_the_others_take():
    shown = Progress(2, io.StringIO())
    job = Job("naive", Config("naive"), 0)
    shown.started(job)
    shown.finished(job, "FAILED", ok=False)
    assert shown.left() is None


class Terminal:
    """A pseudo-terminal of 80 columns, and what stands on it: enough of one for what a progress bar sends."""

    def __init__(self):
        self.master, slave = pty.openpty()
        self.resize(24)
        os.set_blocking(self.master, False)
        self.out = os.fdopen(slave, "w")
        self.rows, self.row, self.column = [""], 0, 0

    def resize(self, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))

    def screen(self):
        sent = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += os.read(self.master, 1 << 16)
        for token in re.findall(r"\033\[\d*[A-Za-z]|[\r\n]|[^\033\r\n]+", sent.decode()):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self.row += 1
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif token == "\033[A":
                self.row -= 1
            else:
                assert not token.startswith("\033"), token
                before = self.rows[self.row].ljust(self.column)
                self.column += len(token)
                self.rows[self.row] = before[: self.column - len(token)] + token + before[self.column :]
        assert max(map(len, self.rows)) <= 80, "a line that wraps cannot be taken back"
        return [row.rstrip() for row in self.rows if row.strip()]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    yield made
    with contextlib.suppress(OSError):
        made.out.close()


def test_a_terminal_shows_a_bar_per_run_below_the_finished_lines(terminal, monkeypatch):
    clock = Clock(monkeypatch)
    shown = Progress(3, terminal.out)
    jobs = [Job(name, Config("naive"), 0) for name in ("naive", "replay", "a_name_{with}_braces")]
    shown.started(jobs[0])
    shown.started(jobs[1])
    shown.moved(jobs[0].id, 0.0, "experience 1/5, epoch 1/20")
    clock.now += 30
    shown.moved(jobs[0].id, 0.25, "experience 2/5, epoch 6/20, and many more words than a narrow terminal has columns")
    head, first, second = terminal.screen()
    assert head == "0/3 done · 2 running · 0:30 elapsed, about 2:30 left"
    assert re.match(r"naive seed 0 +25%\|█{5} {15}\| experience 2/5, epoch 6/20", first)
    assert re.match(r"replay seed 0 +0%\| {20}\| starts", second)
    shown.finished(jobs[0], "accuracy 50.0")
    shown.started(jobs[2])
    line, head, second, third = terminal.screen()
    assert line.startswith("[1/3] naive seed 0 · accuracy 50.0")
    assert head.startswith("1/3 done · 2 running")
    assert {second.split()[0], third.split()[0]} == {"replay", "a_name_{with}_braces"}
    shown.say("a word in between")
    assert terminal.screen()[:2] == [line, "a word in between"]
    shown.close()
    assert terminal.screen() == [line, "a word in between"]


def test_more_runs_than_lines_have_no_bars_rather_than_a_scrolling_screen(terminal):
    terminal.resize(6)
    shown = Progress(30, terminal.out)
    for seed in range(30):
        shown.started(Job("naive", Config("naive"), seed))
    lines = terminal.screen()
    assert lines[0].startswith("0/30 done · 30 running")
    assert len(lines) == 1 + 3
    shown.close()
    assert terminal.screen() == []


def test_a_dumb_terminal_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown = Progress(1, terminal.out)
    job = Job("naive", Config("naive"), 0)
    shown.started(job)
    assert terminal.screen() == []
    shown.finished(job, "accuracy 50.0")
    assert terminal.screen()[0].startswith("[1/1] naive seed 0")


def test_the_runs_go_on_when_the_terminal_is_gone(terminal):
    shown = Progress(2, terminal.out)
    job = Job("naive", Config("naive"), 0)
    shown.started(job)
    os.close(terminal.master)
    for share in (0.1, 0.9):
        shown._drawn = 0.0
        shown.moved(job.id, share, "experience 1/5")
    shown.finished(job, "accuracy 50.0")
    shown.close()
    assert shown.done == 1


# ---- runs


def test_in_this_process_runs_report_and_a_broken_one_stops_no_other(tmp_path, monkeypatch):
    (tmp_path / "mine_broken.py").write_text("def build(setting):\n    raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    jobs = [Job("broken", replace(quick(), method="mine_broken:build"), 0), Job("naive", quick(), 1)]
    results, shown = [], Recorded(2)
    failed = run_jobs(jobs, 1, run_job, lambda job, result: results.append((job, result)), progress=shown)
    assert [job.name for job, _ in failed] == ["broken"]
    assert failed[0][1].strip().endswith("RuntimeError: not today")
    assert [(job.name, result["seed"]) for job, result in results] == [("naive", 1)]
    shares = [share for key, share, _ in shown.reports if key == jobs[1].id]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert "FAILED: RuntimeError: not today" in shown.out.getvalue()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_builder_that_exits_stops_no_other_run(tmp_path, monkeypatch, processes):
    (tmp_path / "mine_exiting.py").write_text("import sys\n\ndef build(setting):\n    sys.exit(3)\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(outside, "_own_folders", [])
    outside.importable(tmp_path)  # which the workers hear of
    jobs = [Job("exiting", replace(quick(), method="mine_exiting:build"), 0), Job("naive", quick(), 1)]
    results, shown = [], Recorded(2)
    failed = run_jobs(jobs, processes, run_job, lambda job, result: results.append(job.name), progress=shown)
    assert [(job.name, text.strip().splitlines()[-1]) for job, text in failed] == [("exiting", "SystemExit: 3")]
    assert results == ["naive"]


def test_ctrl_c_ends_the_runs_of_this_process():
    def interrupted(job, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("naive", quick(), 0)], 1, interrupted, print, progress=Recorded(1))


def test_a_worker_that_dies_takes_no_other_run_with_it(tmp_path, monkeypatch):
    (tmp_path / "mine_deadly.py").write_text(
        textwrap.dedent("""
            import os, signal

            def build(setting):
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    deadly = replace(quick(), method="mine_deadly:build")
    jobs = [Job("naive", quick(), 0), Job("deadly", deadly, 0), Job("naive", quick(), 1)]
    results, shown = {}, Recorded(3)
    failed = run_jobs(jobs, 2, run_job, lambda job, result: results.update({job.id: result}), progress=shown)
    assert [(job.name, text) for job, text in failed] == [
        ("deadly", "its worker process died (killed, or out of memory?)")
    ]
    assert set(results) == {jobs[0].id, jobs[2].id}
    for job in (jobs[0], jobs[2]):
        assert [share for key, share, _ in shown.reports if key == job.id][-1] == 1
    assert multiprocessing.active_children() == []


def test_a_run_without_enough_memory_is_named_and_the_next_goes_on(tmp_path, monkeypatch):
    (tmp_path / "mine_large.py").write_text("import torch\n\ndef build(setting):\n    return torch.empty(2**56)\n")
    monkeypatch.syspath_prepend(tmp_path)
    jobs = [Job("large", replace(quick(), method="mine_large:build"), 0), Job("naive", quick(), 1)]
    results, shown = [], Recorded(2)
    failed = run_jobs(jobs, 1, run_job, lambda job, result: results.append(job.name), progress=shown)
    assert [job.name for job, _ in failed] == ["large"]
    assert "FAILED: large is out of memory with batch_size 128. Give a smaller batch_size" in shown.out.getvalue()
    assert "mine_large.py" in failed[0][1]  # the whole story is there too
    assert results == ["naive"]


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    wrapped = ValueError("the model could not be built")
    wrapped.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    assert is_out_of_memory(wrapped)


def test_reports_never_block_a_run_and_arrive_whole():
    reader, writer = pool._pipe()
    send = pool._Sender(writer)
    for _ in range(10_000):  # far more than a pipe holds, and nobody reads
        send(("naive", 0, False), 0.0, "experience 1/5, epoch 1/20")
    send(("naive", 0, False), 0.0, "x" * 100_000)
    count = 0
    while reader.poll():
        assert pickle.loads(reader.recv_bytes()) == (("naive", 0, False), 0.0, "experience 1/5, epoch 1/20", "")
        count += 1
    assert 100 < count < 10_000


# ---- what a run costs


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_memory_is_of_what_happens_between_start_and_stop():
    peak = PeakMemory("cpu")
    assert peak.kind == "resident memory of the process, peak within the experience"
    peak.start()
    before = peak.stop()
    peak.start()
    big = torch.ones(64, 1024, 1024 // 4)  # 64 MiB
    del big
    assert 60 <= peak.stop() - before <= 80
    peak.start()
    assert abs(peak.stop() - before) < 20


def test_where_the_peak_cannot_be_reset_the_result_says_so(monkeypatch, tmp_path):
    from avalanche_contrastive.bench.run import measure

    monkeypatch.setattr(measure, "CLEAR", tmp_path / "no" / "such" / "file")
    peak = PeakMemory("cpu")
    assert "cannot reset it" in peak.kind
    peak.start()
    assert peak.stop() > 50


def test_what_an_earlier_run_left_is_not_counted_again():
    left = SimpleNamespace(tensor=torch.ones(1))
    left.itself, gone = left, weakref.ref(left.tensor)
    gc.disable()
    try:
        del left
        assert gone() is not None
        PeakMemory("cuda")
        assert gone() is None
    finally:
        gc.enable()


def test_the_clock_waits_for_a_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    assert clock("cpu") <= clock(torch.device("cuda"))
    assert waited == [torch.device("cuda")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu():
    peak = PeakMemory("cuda")
    peak.start()
    big = torch.ones(64, 1024, 1024 // 4, device="cuda")
    del big
    assert peak.stop() >= 64
    assert "GPU" in peak.kind
    assert describe_device("cuda").startswith("cuda (")


def test_the_device_in_words():
    assert re.fullmatch(r"cpu \(.+\), 1 thread", describe_device("cpu"))
    torch.set_num_threads(2)
    assert describe_device(torch.device("cpu")).endswith(", 2 threads")


def test_a_failed_run_is_told_by_the_first_line_of_its_error():
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    f()\n    ^^^\n'
    cuda = "RuntimeError: CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA`.\n"
    assert last_line(trace + cuda) == "RuntimeError: CUDA error: unspecified launch failure"
    assert last_line(f"{trace}ValueError: why\n  a note\n") == "ValueError: why"
    chained = f"{trace}ValueError: why\n\nDuring handling of the above exception, another occurred:\n\n"
    assert last_line(f"{chained}{trace}{cuda}") == "RuntimeError: CUDA error: unspecified launch failure"
    assert last_line("its worker process died") == "its worker process died"
    assert last_line("end of log:\n(nothing)\nSlurm job 1 ended") == "Slurm job 1 ended"
