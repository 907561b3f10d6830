"""Choose every row's setting on validation images: as many candidates and the same seeds for each, no test image."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.config import (
    SHARED,
    Config,
    Row,
    folder,
    nearest,
    read_toml,
    same_config,
    updated,
    write_row,
)
from avalanche_contrastive.bench.files import read_json, write_json
from avalanche_contrastive.bench.methods.catalog import METHODS, SCORES, Method, Option
from avalanche_contrastive.bench.report.stats import is_finite
from avalanche_contrastive.bench.run.pool import Job, Progress, last_line, run_jobs

TUNING = Path(__file__).parents[3] / "benchmarks" / "tuning"
DRAW_SEED = 0
FIRST_SEED = 1000  # lower seeds are for results


@dataclass(frozen=True)
class Plan:
    """How the rows of a suite are searched: the same for every row, so that no method is tuned harder than another.

    Args:
        candidates: settings drawn from each method's grid.
        seeds: each candidate is scored as the mean over these; other class orders than those of the results.
        grid: values that replace a method's own, such as fewer epochs where images are many; of each method, for the
            keys that its grid has.
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
        ValueError: an unknown key there or in its grid, a value of the wrong kind, or a seed that results may have.
    """
    path = folder(suite) / SHARED
    where = f"{suite}/{SHARED}, [tune]"
    raw = _table(read_toml(path).get("tune", {}) if path.is_file() else {}, where)
    for key in raw:
        if key not in PLAN:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, PLAN)}")
    number = raw.get("candidates", Plan.candidates)
    if type(number) is not int or number < 1:
        raise ValueError(f"{where}: candidates must be a whole number of at least 1, got {number!r}")
    grid = _table(raw.get("grid", {}), f"{where[:-1]}.grid]")
    return Plan(
        candidates=number,
        seeds=_seeds(raw.get("seeds", list(Plan.seeds)), where),
        grid={key: _values(key, values, f"{where[:-1]}.grid]") for key, values in grid.items()},
        settings=_table(raw.get("settings", {}), f"{where[:-1]}.settings]"),
    )


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a table, got {value!r}")
    return value


def _seeds(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not values or any(type(value) is not int for value in values):
        raise ValueError(f"{where}: seeds must be a list of at least one whole number, got {values!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"{where}: seeds must differ, got {values!r}")
    if min(values) < FIRST_SEED:
        raise ValueError(
            f"{where}: seeds must be {FIRST_SEED} or more, got {min(values)}: lower ones are for results, and a "
            "setting must not be chosen on the class orders that it is then reported on"
        )
    return tuple(values)


def _values(key: str, values: Any, where: str) -> tuple[Option, ...]:
    """The values of one key of [tune.grid], each of which every method that has the key in its grid can take."""
    having = [name for name, method in METHODS.items() if key in method.grid]
    if not having:
        known = {known for method in METHODS.values() for known in method.grid}
        raise ValueError(f"{where}: no method's grid has a key {key!r}{nearest(key, known)}")
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {key} must be a list of at least one value, got {values!r}")
    for name in having:
        for value in values:
            updated(Config(name, options=METHODS[name].options), {key: value}, where=where)
    return tuple(values)


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
    """The candidates of one row, on disk as they are scored.

    A row of a suite has its candidates in TUNING, any other beside its TOML file.
    """

    def __init__(self, row: Row, plan: Plan):
        if row.base:
            raise ValueError(f"{row.name} inherits the setting of {row.base}; tune {row.base}")
        self.row, self.plan = row, plan
        self.file = _outside(row)
        self.path = (
            TUNING / row.config.suite / f"{row.name}.json"
            if self.file is None
            else self.file.with_name(f"{self.file.stem}.tuning.json")
        )
        stored = read_json(self.path)["candidates"] if self.path.is_file() else []
        found = candidates(row.method, plan)
        self.configs = [updated(row.config, settings, where=row.name) for settings in found]
        self.scored = [updated(config, plan.settings, where="[tune.settings]") for config in self.configs]
        self.entries: list[dict[str, Any]] = [
            {"settings": settings, "config": config.as_dict(), "runs": _stored_runs(stored, config, plan)}
            for settings, config in zip(found, self.scored, strict=True)
        ]

    def jobs(self, root: str, device: str) -> list[Job]:
        """What is still to run; a candidate of which a run has failed is done with."""
        return [
            Job(
                f"{self.row.name} #{index + 1}",
                self.scored[index],
                seed,
                validation=True,
                device=device,
                root=root,
                key=(self.row.name, index),
            )
            for index, entry in enumerate(self.entries)
            for seed in self.plan.seeds
            if not any(run["seed"] == seed or "failed" in run for run in entry["runs"])
        ]

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Keep one run's figures and write the file."""
        keys = ("seed", "final_accuracy", "average_accuracy", "forgetting", "seconds_total", "versions")
        self._keep(index, {key: result[key] for key in keys} | {"final_recall_at_1": result["recall_at_1"][-1]})
        self.save()

    def add_failures(self, failed: Sequence[tuple[Job, str]]) -> None:
        """Keep why runs failed, so that they are not done again.

        Not where nothing could be scored at all: then the reason is hardly that of the settings.
        """
        if self.scores():
            for job, text in failed:
                self._keep(job.key[1], {"seed": job.seed, "failed": last_line(text)})

    def _keep(self, index: int, run: dict[str, Any]) -> None:
        self.entries[index]["runs"] = sorted([*self.entries[index]["runs"], run], key=lambda r: int(r["seed"]))

    def scores(self) -> dict[int, float]:
        """The scores of the candidates that have one, by index."""
        found = ((index, self.score(entry)) for index, entry in enumerate(self.entries))
        return {index: score for index, score in found if score is not None}

    def score(self, entry: Mapping[str, Any]) -> float | None:
        """Mean over the tuning seeds of what this row is chosen by; None until all are there, or where one failed."""
        key = "final_recall_at_1" if self.row.select_by == "recall" else "final_accuracy"
        values = [run[key] for run in entry["runs"] if "failed" not in run]
        score = sum(values) / len(values) if len(values) == len(self.plan.seeds) else None
        return score if is_finite(score) else None

    def best(self) -> int | None:
        """Index of the best scored candidate, of equals the one with fewer epochs; None if none is scored."""
        ranked = [(-score, self.configs[index].epochs, index) for index, score in self.scores().items()]
        return min(ranked)[2] if ranked else None

    def save(self) -> None:
        """Write all candidates with their scores."""
        best = self.best()
        content = {
            "row": self.row.name,
            "suite": self.row.config.suite,
            "evaluated_on": "the data's own validation images, or where there are none a stratified fifth of the "
            "training images; test images are not loaded into the stream",
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
        suite, name, scores = self.row.config.suite, self.row.name, self.scores()
        command = f"--suite {suite} {name}" if self.file is None else self.file.name
        place = f"benchmarks/tuning/{suite}/{name}.json" if self.file is None else f"{self.path.name}, beside this file"
        some = f" ({len(scores)} of them could be scored)" if len(scores) < self.plan.candidates else ""
        comment = (
            f"Chosen by `python -m benchmarks tune {command}` from {self.plan.candidates} candidates{some} on "
            f"validation images:\n{SCORES[self.row.select_by]} {scores[best]:.3f}, "
            f"mean over seeds {_listed(self.plan.seeds)}. All candidates: {place}"
        )
        return write_row(replace(self.row, config=self.configs[best]), comment, path=self.file)


def _outside(row: Row) -> Path | None:
    """The row's TOML file, if that is not in the folder of a suite."""
    path = Path(row.path).resolve() if row.path else None
    return None if path is None or path.is_relative_to(configs.CONFIGS.resolve()) else path


def tune(rows: Sequence[Row], processes: int, *, root: str = "", device: str = "cpu") -> int:
    """Score what is unscored, then write the winners.

    Returns:
        How many rows have no scored candidate. A run that fails costs its candidate its score and is not repeated by
        later calls, unless its entry is taken out of the file; one whose process was killed is repeated.
    """
    searches = {row.name: Search(row, plan_of(row.config.suite)) for row in rows}
    jobs = [job for search in searches.values() for job in search.jobs(root, device)]

    def keep(job: Job, result: Mapping[str, Any]) -> None:
        name, index = job.key
        searches[name].add(index, result)

    failed = run_jobs(jobs, processes, keep, progress=Progress(len(jobs)))
    for job, text in failed:
        print(f"\n{job.name} seed {job.seed} failed:\n{text}")
    raised = [(job, text) for job, text in failed if text.startswith("Traceback")]  # else its process was killed
    for name, search in searches.items():
        search.add_failures([(job, text) for job, text in raised if job.key[0] == name])
        search.save()
        path = search.write_winner()
        missing = search.plan.candidates - len(search.scores())
        some = (
            f" ({missing} of {search.plan.candidates} candidates could not be scored: {search.path})" if missing else ""
        )
        print(f"{name}: {'no candidate could be scored' if path is None else f'wrote {path}{some}'}")
    return sum(not search.scores() for search in searches.values())


def _stored_runs(stored: Sequence[Mapping[str, Any]], config: Config, plan: Plan) -> list[dict[str, Any]]:
    """What an earlier call left for exactly this config."""
    known = (candidate for candidate in stored if same_config(candidate["config"], config))
    return [run for candidate in known for run in candidate["runs"] if run["seed"] in plan.seeds]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
