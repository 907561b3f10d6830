"""Choose every row's setting on validation images: as many candidates and the same seeds for each, no test image."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.catalog import SCORES, Method, Option
from benchmarks.configs import Config, Row, updated, write_row
from benchmarks.files import read_json, write_json
from benchmarks.pool import Job, Progress, run_jobs
from benchmarks.stats import is_finite

TUNING = Path(__file__).parent / "tuning"
CANDIDATES = 16  # for every row, so that no method is tuned harder than another
SEEDS = (1000, 1001)  # other class orders than those of the results
DRAW_SEED = 0


def candidates(method: Method) -> list[dict[str, Option]]:
    """A fixed draw from the method's grid in which the values of each key are used about equally often.

    Raises:
        ValueError: the grid is smaller than the number of candidates.
    """
    if len(list(itertools.product(*method.grid.values()))) < CANDIDATES:
        raise ValueError(f"{method.build}: the grid must have at least {CANDIDATES} points, as all rows get as many")
    draw = random.Random(DRAW_SEED)
    for _ in range(10_000):
        columns = [_shuffled(values, draw) for values in method.grid.values()]
        points = list(dict.fromkeys(zip(*columns, strict=True)))
        if len(points) == CANDIDATES:
            return [dict(zip(method.grid, point, strict=True)) for point in points]
    raise ValueError(f"{method.build}: found no {CANDIDATES} different points that use each value about equally often")


def _shuffled(values: Sequence[Option], draw: random.Random) -> list[Option]:
    column = [values[i % len(values)] for i in range(CANDIDATES)]
    draw.shuffle(column)
    return column


class Search:
    """The candidates of one row, on disk as they are scored."""

    def __init__(self, row: Row):
        if row.base:
            raise ValueError(f"{row.name} inherits the setting of {row.base}; tune {row.base}")
        self.row = row
        self.path = TUNING / row.config.suite / f"{row.name}.json"
        stored = read_json(self.path)["candidates"] if self.path.is_file() else []
        self.configs = [updated(row.config, settings, where=row.name) for settings in candidates(row.method)]
        self.entries: list[dict[str, Any]] = [
            {"settings": settings, "config": config.as_dict(), "runs": _stored_runs(stored, config)}
            for settings, config in zip(candidates(row.method), self.configs, strict=True)
        ]

    def jobs(self) -> list[Job]:
        """What is still to run."""
        return [
            Job(f"{self.row.name} #{index + 1}", self.configs[index], seed, validation=True, key=(self.row.name, index))
            for index, entry in enumerate(self.entries)
            for seed in SEEDS
            if seed not in [run["seed"] for run in entry["runs"]]
        ]

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Keep one run's figures and write the file."""
        keys = ("seed", "final_accuracy", "average_accuracy", "forgetting", "seconds_total", "versions")
        run = {key: result[key] for key in keys} | {"final_recall_at_1": result["recall_at_1"][-1]}
        self.entries[index]["runs"] = sorted([*self.entries[index]["runs"], run], key=lambda r: int(r["seed"]))
        self.save()

    def score(self, entry: Mapping[str, Any]) -> float | None:
        """Mean over the tuning seeds of what this row is chosen by; None until all are there."""
        key = "final_recall_at_1" if self.row.select_by == "recall" else "final_accuracy"
        values = [run[key] for run in entry["runs"]]
        score = sum(values) / len(values) if len(values) == len(SEEDS) else None
        return score if is_finite(score) else None

    def best(self) -> int | None:
        """Index of the best scored candidate, of equals the one with fewer epochs; None if none is scored."""
        scores = [self.score(entry) for entry in self.entries]
        ranked = [(-s, self.configs[i].epochs, i) for i, s in enumerate(scores) if s is not None]
        return min(ranked)[2] if ranked else None

    def save(self) -> None:
        """Write all candidates with their scores."""
        best = self.best()
        content = {
            "row": self.row.name,
            "suite": self.row.config.suite,
            "evaluated_on": "a stratified fifth of the training images; test images are not loaded into the stream",
            "chosen_by": f"mean {SCORES[self.row.select_by]} on them over seeds {_listed(SEEDS)}",
            "grid": {key: list(values) for key, values in self.row.method.grid.items()},
            "chosen": None if best is None else self.entries[best]["settings"],
            "candidates": [{**entry, "score": self.score(entry)} for entry in self.entries],
        }
        write_json(self.path, content)

    def write_winner(self) -> Path | None:
        """Put the best candidate into the row's TOML file; None if no candidate could be scored."""
        best = self.best()
        if best is None:
            return None
        suite, name = self.row.config.suite, self.row.name
        comment = (
            f"Chosen by `python -m benchmarks tune {name}` from {CANDIDATES} candidates on validation images:\n"
            f"{SCORES[self.row.select_by]} {self.score(self.entries[best]):.3f}, "
            f"mean over seeds {_listed(SEEDS)}. All candidates: benchmarks/tuning/{suite}/{name}.json"
        )
        return write_row(replace(self.row, config=self.configs[best]), comment)


def tune(rows: Sequence[Row], processes: int) -> int:
    """Score what is unscored, then write the winners; returns the number of failed runs."""
    searches = {row.name: Search(row) for row in rows}
    jobs = [job for search in searches.values() for job in search.jobs()]

    def keep(job: Job, result: Mapping[str, Any]) -> None:
        name, index = job.key
        searches[name].add(index, result)

    failed = run_jobs(jobs, processes, keep, progress=Progress(len(jobs)))
    for search in searches.values():
        search.save()
        path = search.write_winner()
        print(f"{search.row.name}: {'no candidate could be scored' if path is None else f'wrote {path}'}")
    for job, text in failed:
        print(f"\n{job.name} seed {job.seed} failed:\n{text}")
    return len(failed)


def _stored_runs(stored: Sequence[Mapping[str, Any]], config: Config) -> list[dict[str, Any]]:
    """What an earlier call left for exactly this config."""
    known = (candidate for candidate in stored if candidate["config"] == config.as_dict())
    return [run for candidate in known for run in candidate["runs"] if run["seed"] in SEEDS]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
