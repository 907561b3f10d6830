"""Choose every row's setting on validation images: as many candidates and the same seeds for each, no test image."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.catalog import SCORES, Method, Option
from benchmarks.configs import SHARED, Config, Row, folder, nearest, read_toml, same_config, updated, write_row
from benchmarks.files import read_json, write_json
from benchmarks.pool import Job, Progress, run_jobs
from benchmarks.stats import is_finite

TUNING = Path(__file__).parent / "tuning"
DRAW_SEED = 0


@dataclass(frozen=True)
class Plan:
    """How the rows of a suite are searched: the same for every row, so that no method is tuned harder than another.

    Args:
        candidates: settings drawn from each method's grid.
        seeds: each candidate is scored as the mean over these; other class orders than those of the results.
        grid: values that replace a method's own, such as fewer epochs where images are many.
        settings: of the candidates only, such as fewer training images to score them on.
    """

    candidates: int = 16
    seeds: tuple[int, ...] = (1000, 1001)
    grid: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    settings: Mapping[str, Option] = field(default_factory=dict)


PLAN = tuple(f.name for f in fields(Plan))


def plan_of(suite: str) -> Plan:
    """The plan in the suite's _suite.toml, table [tune].

    Raises:
        ValueError: an unknown key there, or a value of the wrong kind.
    """
    path = folder(suite) / SHARED
    raw = dict(read_toml(path).get("tune", {})) if path.is_file() else {}
    plan = Plan(
        candidates=raw.pop("candidates", Plan.candidates),
        seeds=tuple(raw.pop("seeds", Plan.seeds)),
        grid={key: tuple(values) for key, values in raw.pop("grid", {}).items()},
        settings=raw.pop("settings", {}),
    )
    if raw:
        raise ValueError(f"{suite}/{SHARED}, [tune]: unknown key {next(iter(raw))!r}{nearest(next(iter(raw)), PLAN)}")
    if not isinstance(plan.candidates, int) or plan.candidates < 1 or not plan.seeds:
        raise ValueError(f"{suite}/{SHARED}, [tune]: expected candidates >= 1 and at least one seed")
    return plan


def grid_of(method: Method, plan: Plan) -> dict[str, tuple[Option, ...]]:
    """The method's grid with the plan's values in place of its own."""
    return {key: plan.grid.get(key, values) for key, values in method.grid.items()}


def candidates(method: Method, plan: Plan) -> list[dict[str, Option]]:
    """A fixed draw from the method's grid in which the values of each key are used about equally often.

    Raises:
        ValueError: the grid is smaller than the number of candidates.
    """
    grid = grid_of(method, plan)
    if len(list(itertools.product(*grid.values()))) < plan.candidates:
        raise ValueError(
            f"{method.build}: the grid must have at least {plan.candidates} points, as all rows get as many"
        )
    draw = random.Random(DRAW_SEED)
    for _ in range(10_000):
        columns = [_shuffled(values, plan.candidates, draw) for values in grid.values()]
        points = list(dict.fromkeys(zip(*columns, strict=True)))
        if len(points) == plan.candidates:
            return [dict(zip(grid, point, strict=True)) for point in points]
    raise ValueError(f"{method.build}: found no {plan.candidates} different points that use each value equally often")


def _shuffled(values: Sequence[Option], number: int, draw: random.Random) -> list[Option]:
    column = [values[i % len(values)] for i in range(number)]
    draw.shuffle(column)
    return column


class Search:
    """The candidates of one row, on disk as they are scored."""

    def __init__(self, row: Row, plan: Plan):
        if row.base:
            raise ValueError(f"{row.name} inherits the setting of {row.base}; tune {row.base}")
        self.row, self.plan = row, plan
        self.path = TUNING / row.config.suite / f"{row.name}.json"
        stored = read_json(self.path)["candidates"] if self.path.is_file() else []
        found = candidates(row.method, plan)
        self.configs = [updated(row.config, settings, where=row.name) for settings in found]
        self.scored = [updated(config, plan.settings, where="[tune.settings]") for config in self.configs]
        self.entries: list[dict[str, Any]] = [
            {"settings": settings, "config": config.as_dict(), "runs": _stored_runs(stored, config, plan)}
            for settings, config in zip(found, self.scored, strict=True)
        ]

    def jobs(self, root: str) -> list[Job]:
        """What is still to run."""
        return [
            Job(
                f"{self.row.name} #{index + 1}",
                self.scored[index],
                seed,
                validation=True,
                root=root,
                key=(self.row.name, index),
            )
            for index, entry in enumerate(self.entries)
            for seed in self.plan.seeds
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
        score = sum(values) / len(values) if len(values) == len(self.plan.seeds) else None
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
            "chosen_by": f"mean {SCORES[self.row.select_by]} on them over seeds {_listed(self.plan.seeds)}",
            "grid": {key: list(values) for key, values in grid_of(self.row.method, self.plan).items()},
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
            f"Chosen by `python -m benchmarks tune --suite {suite} {name}` from {self.plan.candidates} candidates on "
            f"validation images:\n{SCORES[self.row.select_by]} {self.score(self.entries[best]):.3f}, "
            f"mean over seeds {_listed(self.plan.seeds)}. All candidates: benchmarks/tuning/{suite}/{name}.json"
        )
        return write_row(replace(self.row, config=self.configs[best]), comment)


def tune(rows: Sequence[Row], processes: int, *, root: str = "") -> int:
    """Score what is unscored, then write the winners; returns the number of failed runs."""
    searches = {row.name: Search(row, plan_of(row.config.suite)) for row in rows}
    jobs = [job for search in searches.values() for job in search.jobs(root)]

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


def _stored_runs(stored: Sequence[Mapping[str, Any]], config: Config, plan: Plan) -> list[dict[str, Any]]:
    """What an earlier call left for exactly this config."""
    known = (candidate for candidate in stored if same_config(candidate["config"], config))
    return [run for candidate in known for run in candidate["runs"] if run["seed"] in plan.seeds]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
