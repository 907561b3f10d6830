"""Where many runs stand: a line per finished run; on a terminal bars that move, elsewhere a line per experience."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from avalanche_contrastive.bench.files import clock_time
from avalanche_contrastive.bench.run.job import Job, Key, Outcome, last_line

DRAW_SECONDS = 0.1  # between two drawings
MOST_BARS = 20
TRUSTED_SHARE = 0.02  # from here on a run's own pace says how long it takes


@dataclass
class _Running:
    label: str
    began: float
    share: float = 0.0
    what: str = ""
    milestone: str = ""
    bar: Any = field(default=None, repr=False)

    def seconds(self, expected: float | None) -> float | None:
        """How long the whole run takes, estimated by its own pace; before it has one, the expected seconds."""
        elapsed = time.monotonic() - self.began
        return elapsed / self.share if self.share >= TRUSTED_SHARE else expected


class Progress:
    """A line per finished run; on a terminal, below these lines, one that sums up and a bar per run under way.

    Where there is no terminal (a log file, a cluster) each finished experience has a line instead of the bars.

    Only the process that waits for the runs draws, from one thread. A terminal that goes away stops the drawing, not
    the runs.

    Args:
        total: runs to do.
        out: where to write; standard error by default, so that a table on standard output can be piped.
    """

    def __init__(self, total: int, out: TextIO | None = None):
        self.total = total
        self.out: TextIO | None = sys.stderr if out is None else out
        self.done = 0
        self.note = ""
        self.began = time.monotonic()
        self.moving = self.out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.running: dict[Key, _Running] = {}
        self.most_running = 1
        self.durations: dict[str, list[float]] = {}
        self._sum: Any = None
        self._drawn = 0.0

    def started(self, job: Job) -> None:
        """A run begins; a second call for the same run does nothing."""
        if job.id not in self.running:
            self.running[job.id] = _Running(job.label, time.monotonic())
            self.most_running = max(self.most_running, len(self.running))
            self.draw(now=True)

    def moved(self, key: Key, share: float, what: str, milestone: str = "") -> None:
        """A run has done a share of its work, in [0, 1], and says in words where it is.

        Args:
            key: of the run.
            share: done.
            what: where it is.
            milestone: "experience k/K" that it has just finished, and figures of it; "" within an experience.
        """
        run = self.running.get(key)
        if run is None:  # a message that arrives after the end
            return
        if not run.what and share < TRUSTED_SHARE:  # imports and loading say nothing about the pace
            run.began = time.monotonic()
        run.share, run.what = min(max(share, 0.0), 1.0), what
        if milestone and milestone != run.milestone:
            run.milestone = milestone
            if not self.moving:
                self.say(f"{run.label} · {milestone} · {self.times()}")
        self.draw()

    def ended(self, job: Job, outcome: Outcome) -> list[tuple[Job, str]]:
        """A run is over: show its figures, or that it failed. Returns the failure, if it is one."""
        if isinstance(outcome, str):
            self.finished(job, f"FAILED: {last_line(outcome)}", ok=False)
            return [(job, outcome)]
        accuracy, recall = 100 * outcome["final_accuracy"], 100 * outcome["recall_at_1"][-1]
        self.finished(job, f"accuracy {accuracy:.1f} · Recall@1 {recall:.1f} · {outcome['seconds_total']:.1f} s")
        return []

    def finished(self, job: Job, text: str, *, ok: bool = True) -> None:
        """One more run is over."""
        self.done += 1
        run = self.running.pop(job.id, None)
        if run is not None and ok:
            self.durations.setdefault(job.name, []).append(time.monotonic() - run.began)
        width = len(str(self.total))
        if run is not None and run.bar is not None:
            self._safely(run.bar.close)
        self.say(f"[{self.done:{width}}/{self.total}] {job.label} · {text} · {self.times()}")
        self.draw(now=True)

    def say(self, text: str) -> None:
        """Write a line that stays, above the bars if there are any."""
        if self.moving and self._sum is not None:
            self._safely(self._sum.write, text, file=self.out)
        elif self.out is not None:
            self._safely(print, text, file=self.out, flush=True)

    def times(self) -> str:
        """Elapsed, and an estimate of the rest from the finished runs and those under way."""
        left = self.left()
        rest = "?" if left is None else clock_time(left)
        return f"{clock_time(time.monotonic() - self.began)} elapsed, about {rest} left"

    def left(self) -> float | None:
        """Seconds until the last run is over; None while nothing is known."""
        known = [seconds for durations in self.durations.values() for seconds in durations]
        paces = [run.seconds(None) for run in self.running.values()]
        known += [pace for pace in paces if pace is not None]
        if not known:
            return None if self.done < self.total else 0.0
        mean, now = sum(known) / len(known), time.monotonic()
        rests = []
        for (name, *_), run in self.running.items():
            same = self.durations.get(name)
            seconds = run.seconds(sum(same) / len(same) if same else mean) or mean
            rests.append(max(seconds - (now - run.began), 0.0))
        waiting = max(self.total - self.done - len(self.running), 0)
        return max([(sum(rests) + waiting * mean) / self.most_running, *rests])

    def draw(self, *, now: bool = False) -> None:
        """Bring the bars up to date, on a terminal, a few times a second at most."""
        if self.moving and (now or time.monotonic() - self._drawn >= DRAW_SECONDS):
            self._drawn = time.monotonic()
            self._safely(self._draw)

    def close(self) -> None:
        """Take the bars away; the finished lines stay."""
        for bar in [*(run.bar for run in self.running.values()), self._sum]:
            if bar is not None:
                self._safely(bar.close)
        self.running.clear()
        self._sum = None

    def _draw(self) -> None:
        if self._sum is None:
            self._sum = _bar(self.out, 0)
        note = self.note or f"{len(self.running)} running"
        _show(self._sum, f"{self.done}/{self.total} done · {note} · {self.times()}")
        width = max((len(run.label) for run in self.running.values()), default=0)
        for run in self.running.values():
            if run.bar is None:
                used = {-other.bar.pos for other in self.running.values() if other.bar is not None}
                free = [position for position in range(1, self._rows()) if position not in used]
                if not free:
                    continue
                run.bar = _bar(self.out, free[0])
            seconds = run.seconds(None)
            left = "" if seconds is None else f" · {clock_time(seconds * (1 - run.share))} left"
            run.bar.n = run.share
            _, dot, figures = run.milestone.partition(" · ")
            _show(run.bar, f"{run.label:{width}}", f"{run.what or 'starts'}{left}{dot}{figures}")

    def _rows(self) -> int:
        """How many lines of the terminal are for bars; more bars than fit would scroll it."""
        try:
            lines = os.get_terminal_size(self.out.fileno()).lines if self.out is not None else 0
        except (OSError, ValueError):
            lines = 0
        return min((lines or 24) - 2, MOST_BARS + 1)

    def _safely(self, action: Callable[..., Any], *words: Any, **named: Any) -> None:
        """Draw or write; if the terminal or pipe is gone, the runs go on without a display."""
        try:
            action(*words, **named)
        except (OSError, ValueError):  # ValueError: a closed file
            self.moving, self.out = False, None


def _bar(out: TextIO | None, position: int) -> Any:
    import tqdm  # Avalanche's own; only a terminal needs it

    tqdm.tqdm.monitor_interval = 0  # no thread that draws on its own
    return tqdm.tqdm(total=1.0, file=out, position=position, leave=False, dynamic_ncols=True, bar_format=" ")


def _show(bar: Any, before: str, after: str = "") -> None:
    before, after = (text.replace("{", "{{").replace("}", "}}") for text in (before, after))
    bar.bar_format = f"{before} {{percentage:3.0f}}%|{{bar:20}}| {after}" if after else f"{before}{{bar:0}}"
    bar.refresh()
