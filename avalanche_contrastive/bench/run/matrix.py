"""What a call of `run` is to do: its rows and seeds, what is there already, how long the rest may take. No torch."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from multiprocessing import forkserver
from pathlib import Path
from statistics import fmean
from typing import Any

from avalanche_contrastive._launch import is_first, launched
from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.config import Config, Row, completed, same_config
from avalanche_contrastive.bench.data.kinds import local_path
from avalanche_contrastive.bench.files import clock_time, result_path
from avalanche_contrastive.bench.report.cells import count
from avalanche_contrastive.bench.selection import OWN_SUITE, chosen_rows
from avalanche_contrastive.bench.shapes import is_number, is_whole
from avalanche_contrastive.registry import load

COMMITTED = Path(__file__).parents[3] / "benchmarks" / "results"  # in a checkout
# Parts of a config that change what a run costs in a way that cannot be foreseen.
COSTLY = ("stream", "data", "scenario", "network", "train_images", "image_size")


def command(parsed: argparse.Namespace) -> int:
    """The command `run`: print what there is to do, and do it unless --dry-run is given."""
    matrix = matrix_of(parsed)
    if parsed.dry_run:
        print(matrix.table())
        matrix.check_replaced()
        return 0
    if is_first():
        print(matrix.summary(), file=sys.stderr, flush=True)
    workers = parsed.on == "local" and matrix.at_once > 1 and parsed.device == "cpu" and launched() == 1
    if workers and matrix.missing:
        _import_for_workers()
    code: int = load("avalanche_contrastive.bench.run.command:run")(parsed, matrix)
    return code


def _import_for_workers() -> None:
    """Let the process that worker processes are forked from import torch and Avalanche while this one does."""
    if sys.platform == "linux":
        forkserver.set_forkserver_preload(["avalanche_contrastive.bench.run.execute"])
        forkserver.ensure_running()


@dataclass(frozen=True)
class Matrix:
    """Every row with every seed.

    Args:
        rows: in the order they shall start, seed by seed.
        seeds: of each row.
        out: folder of the results.
        at_once: processes, a run in each.
        again: do everything anew.
    """

    rows: Sequence[Row]
    seeds: Sequence[int]
    out: Path
    at_once: int
    again: bool = False

    @cached_property
    def missing(self) -> list[tuple[Row, int]]:
        """Runs that are to be done."""
        return [run for run in self.wanted if self.again or not results.is_done(self.out, *run)]

    @property
    def wanted(self) -> list[tuple[Row, int]]:
        """All runs."""
        return [(row, seed) for seed in self.seeds for row in self.rows]

    def check_replaced(self) -> None:
        """Refuse to write over results of another setting.

        Raises:
            ValueError: naming the file and the difference.
        """
        for row, seed in self.missing:
            path = result_path(self.out, row.name, seed)
            stored = None if self.again else results.read_result(path)
            other = results.difference(stored, row, seed) if stored is not None else ""
            if other:  # without one, another call has finished the run since it was found missing
                raise ValueError(
                    f"{path} is there, of another setting: {other}. Give another --out, or --again to replace it"
                )

    def summary(self) -> str:
        """One line: how many runs there are, how many are done, how long the others may take and how that is known."""
        done = len(self.wanted) - len(self.missing)
        words = f"{count(len(self.wanted), 'run')} of {self.rows[0].config.suite}, {done} in {self.out} already"
        return f"{words}; {self._left()}" if self.missing else words

    def table(self) -> str:
        """The rows with what is done and what is to do, for --dry-run."""
        lines = [("row", "done", "to do", "seconds each", "as measured in")]
        for row in self.rows:
            to_do = [seed for other, seed in self.missing if other is row]
            seconds, source = self._estimates[row.name]
            done = [seed for seed in self.seeds if seed not in to_do]
            each = "?" if seconds is None else f"{seconds:.0f}"
            lines.append((row.name, _ranges(done), _ranges(to_do), each, source))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in text), "", self.summary()])

    def _left(self) -> str:
        """The time that the missing runs may take, and how that is known."""
        known = [seconds for row, _ in self.missing if (seconds := self._estimates[row.name][0]) is not None]
        at_once = "" if self.at_once == 1 else f" in {self.at_once} processes"
        if not known:
            return f"{len(self.missing)} to do{at_once}, and nothing was measured that would tell how long they take"
        total = max(max(known), sum(known) / min(self.at_once, len(known)))
        unknown = len(self.missing) - len(known)
        rest = f", and {count(unknown, 'run')} of which no time is known" if unknown else ""
        places = dict.fromkeys(self._estimates[row.name][1].partition(",")[0] for row, _ in self.missing)
        return (
            f"{len(self.missing)} to do{at_once}: about {clock_time(max(total, 1.0))}{rest}, by the seconds in "
            f"{' and '.join(filter(None, places))} (another machine takes another time)"
        )

    @cached_property
    def _estimates(self) -> dict[str, tuple[float | None, str]]:
        """By row: seconds of one run, and where they are from."""
        return {row.name: self._estimate(row) for row in self.rows}

    def _estimate(self, row: Row) -> tuple[float | None, str]:
        for folder in (self.out, COMMITTED / row.config.suite):
            found = _measured(folder, row.name)
            same = [seconds for config, seconds in found if same_config(config, row.config)]
            if same:
                return fmean(same), _shown(folder)
            like = [seconds * share for config, seconds in found if (share := _share(row.config, config)) is not None]
            if like:
                return fmean(like), f"{_shown(folder)}, by epochs"
        return None, ""


def matrix_of(parsed: argparse.Namespace) -> Matrix:
    """The matrix of a command line.

    Raises:
        ValueError: an unknown row, or something in one that is unknown or of the wrong type.
    """
    rows = chosen_rows(parsed)
    suite = rows[0].config.suite
    out = parsed.out or Path("out") / (suite if parsed.data is None else _stem(parsed.data))
    at_once = parsed.jobs or (2 if launched() == 1 else 1)
    return Matrix(rows, parsed.seeds, out, at_once if parsed.on == "local" else 1, parsed.again)


def _stem(data: str) -> str:
    path = local_path(data)
    name = path.resolve().name if path else data.partition(":")[2].partition("?")[0]
    return Path(name).stem or OWN_SUITE


def _measured(folder: Path, name: str) -> list[tuple[dict[str, Any], float]]:
    """Config and seconds of each result of a row; of a file that was edited none, if they cannot be."""
    found = [results.read_result(path) for path in sorted(folder.glob(f"{escape(name)}-seed*.json"))]
    timed: list[tuple[dict[str, Any], Any]] = [(r["config"], r.get("seconds_total")) for r in found if r]
    return [(config, seconds) for config, seconds in timed if is_number(seconds) and 0 < seconds < float("inf")]


def _share(config: Config, stored: dict[str, Any]) -> float | None:
    """Passes of a run divided by those of a stored run of the same row; None if they differ in more than that."""
    there = completed(stored)
    if any(there.get(key) != getattr(config, key) for key in COSTLY) or there["method"] != config.method:
        return None
    ours, theirs = (c["epochs_later"] or c["epochs"] for c in (config.as_dict(), there))
    return ours / theirs if is_whole(theirs) and theirs > 0 else None


def _shown(folder: Path) -> str:
    return str(folder.relative_to(COMMITTED.parents[1])) if folder.is_relative_to(COMMITTED) else str(folder)


def _ranges(seeds: Sequence[int]) -> str:
    """Such as 0-2,5; "-" for none."""
    words: list[str] = []
    for seed in sorted(seeds):
        first, _, last = words[-1].partition("-") if words else ("", "", "")
        if words and int(last or first) == seed - 1:
            words[-1] = f"{first}-{seed}"
        else:
            words.append(str(seed))
    return ",".join(words) or "-"
