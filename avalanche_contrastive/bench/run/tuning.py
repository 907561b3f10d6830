"""The command `tune`: choose every row's setting on validation images, with as many candidates and seeds for each."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.config import Config, Row, default_config, folder, same_config, updated
from avalanche_contrastive.bench.files import check_writable, read_checked, toml, write_json, write_text
from avalanche_contrastive.bench.report.cells import listed
from avalanche_contrastive.bench.report.stats import is_finite
from avalanche_contrastive.bench.run.build import check_rows
from avalanche_contrastive.bench.run.execute import run_job, versions
from avalanche_contrastive.bench.run.job import Job, last_line
from avalanche_contrastive.bench.run.plan import Plan, candidates, grid_table, plan_of
from avalanche_contrastive.bench.run.where import check_cluster, devices, do_jobs
from avalanche_contrastive.bench.selection import assignments, chosen_rows
from avalanche_contrastive.bench.shapes import is_config, is_number, is_table, is_text, is_whole, list_of, record_of
from avalanche_contrastive.registry import SCORES

SCORES_FOLDER = ".scores"  # of runs on a cluster, in the folder of the candidates
TUNING = Path(__file__).parents[3] / "benchmarks" / "tuning"  # in a checkout


def _is_run(value: Any) -> bool:
    """Whether something is what is kept of a candidate's run: its figures, or why it failed."""
    has_figures = record_of(final_accuracy=is_number, final_recall_at_1=is_number)(value)
    is_whole_run = has_figures or record_of(failed=is_text)(value)
    return record_of(seed=is_whole)(value) and is_whole_run and is_table(value.get("versions", {}))


IS_SEARCH = record_of(candidates=list_of(record_of(config=is_config, runs=list_of(_is_run))))
IS_SCORE = record_of(row=is_text, config=is_config, run=_is_run)


class Search:
    """The candidates of one row, on disk as they are scored.

    Args:
        row: to be tuned.
        plan: of its suite.
        folder: of the candidates, ROW.json.
        fixed: keys that are not searched.
        reuse: take stored scores even if they are of another version of torch.

    Attributes:
        other_versions: versions of torch whose stored scores are not used.
    """

    def __init__(self, row: Row, plan: Plan, folder: Path, *, fixed: Iterable[str] = (), reuse: bool = False):
        if row.base:
            raise ValueError(f"{row.name} inherits the setting of {row.base}; tune {row.base}")
        self.row, self.plan, self.path = row, plan, folder / f"{row.name}.json"
        stored = read_checked(self.path, IS_SEARCH, "tune")["candidates"] if self.path.is_file() else []
        self.grid, found = candidates(row, plan, fixed)
        self.configs = [updated(row.config, settings, where=row.name) for settings in found]
        self.scored = [updated(config, plan.settings, where="[tune.settings]") for config in self.configs]
        runs = [_stored_runs(stored, config, plan) for config in self.scored]
        here = versions()["torch"]
        self.other_versions = {version for kept in runs for run in kept if (version := _torch_of(run)) != here}
        self.entries: list[dict[str, Any]] = [
            {
                "settings": settings,
                "config": config.as_dict(),
                "runs": [run for run in kept if reuse or _torch_of(run) == here],
            }
            for settings, config, kept in zip(found, self.scored, runs, strict=True)
        ]

    def jobs(self, root: str, device: str) -> list[Job]:
        """What is still to run; a candidate of which a run has failed is not run again."""
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
        self._keep(index, scored(result))
        self.save()

    def take(self, config: Mapping[str, Any], run: dict[str, Any]) -> bool:
        """Keep a run of a cluster, if it is of a candidate of this search."""
        for index, candidate in enumerate(self.scored):
            if same_config(config, candidate):
                others = [other for other in self.entries[index]["runs"] if other["seed"] != run["seed"]]
                self.entries[index]["runs"] = others
                self._keep(index, run)
                self.save()
                return True
        return False

    def add_failures(self, failed: Sequence[tuple[Job, str]]) -> None:
        """Keep why runs failed, so that they are not done again.

        Not where nothing could be scored at all: then the settings are hardly the reason.
        """
        if self.scores():
            for job, text in failed:
                failure = {"seed": job.seed, "failed": last_line(text), "versions": versions()}
                self._keep(job.key[1], failure)

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
            "chosen_by": f"mean {SCORES[self.row.select_by]} on them over seeds {listed(self.plan.seeds)}",
            "grid": {key: list(values) for key, values in self.grid.items()},
            "chosen": None if best is None else self.entries[best]["settings"],
            "candidates": [{**entry, "score": self.score(entry)} for entry in self.entries],
        }
        write_json(self.path, content)

    def write_winner(self, path: Path) -> bool:
        """Write the row's TOML file with the best candidate; False if no candidate could be scored."""
        best = self.best()
        if best is None:
            return False
        scores = self.scores()
        some = f" ({len(scores)} of them could be scored)" if len(scores) < self.plan.candidates else ""
        reference = path.is_relative_to(configs.CONFIGS)
        place = f"benchmarks/tuning/{self.path.parent.name}/{self.path.name}" if reference else str(self.path)
        comment = (
            f"Chosen by `avalanche-contrastive tune --suite {self.row.config.suite} {self.row.name}`\n"
            f"from {self.plan.candidates} candidates{some} on validation images: {SCORES[self.row.select_by]} "
            f"{scores[best]:.3f},\nmean over seeds {listed(self.plan.seeds)}. All candidates: {place}"
        )
        write_row(replace(self.row, config=self.configs[best]), comment, path)
        return True


def tune(parsed: argparse.Namespace) -> int:
    """The command: score what is not scored yet, then write the winners; 1 if a row has no scored candidate.

    A run that fails leaves its candidate without a score and is not repeated by later calls, unless its entry is taken
    out of the file; one whose process was killed is repeated.
    """
    check_cluster(parsed)
    fixed = assignments(parsed)
    rows = [row for row in chosen_rows(parsed) if parsed.rows or not row.base]
    check_rows(rows, [0], parsed.root, devices(parsed)[1])
    places = {row.name: _places(row, parsed) for row in rows}
    searches = {
        row.name: Search(
            row,
            plan_of(row.config.suite, number=parsed.candidates, seeds=parsed.seeds),
            places[row.name][0],
            fixed=fixed,
            reuse=parsed.reuse,
        )
        for row in rows
    }
    for name, search in searches.items():
        check_writable(places[name][0])
        if search.other_versions and not parsed.reuse:
            print(
                f"{name}: stored scores of torch {listed(sorted(search.other_versions))} are not used, as this is "
                f"torch {versions()['torch']}; --reuse takes them"
            )
    folder = next(iter(places.values()))[0]  # all rows are of one suite
    _gather(searches, folder)
    _score(searches, parsed, folder)
    if parsed.on == "slurm" and parsed.detach:
        return 0
    for name, search in searches.items():
        search.save()
        path = places[name][1] / f"{name}.toml"
        missing = search.plan.candidates - len(search.scores())
        some = f" ({missing} of {search.plan.candidates} could not be scored)" if missing else ""
        written = search.write_winner(path)
        print(f"{name}: {f'wrote {path}' if written else 'no candidate could be scored'}{some}, see {search.path}")
    return 1 if any(not search.scores() for search in searches.values()) else 0


def scored(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a candidate's result that is kept."""
    keys = ("seed", "final_accuracy", "average_accuracy", "forgetting", "seconds_total", "versions")
    return {key: result[key] for key in keys} | {"final_recall_at_1": result["recall_at_1"][-1]}


def write_score(folder: Path, job: Job, result: Mapping[str, Any]) -> None:
    """Write what is kept of a run on a cluster, on its node; the next `tune` in this folder gathers it."""
    name, index = job.key
    content = {"row": name, "config": job.config.as_dict(), "run": scored(result)}
    write_json(folder / SCORES_FOLDER / f"{name}-{index}-seed{job.seed}.json", content)


def _gather(searches: Mapping[str, Search], folder: Path) -> None:
    """Read the scores that runs on a cluster have written."""
    for path in sorted((folder / SCORES_FOLDER).glob("*.json")):
        stored = read_checked(path, IS_SCORE, "tune")
        search = searches.get(stored["row"])
        if search is not None and search.take(stored["config"], stored["run"]):
            path.unlink()


def _score(searches: Mapping[str, Search], parsed: argparse.Namespace, folder: Path) -> None:
    """Run what is missing."""
    jobs = [job for search in searches.values() for job in search.jobs(parsed.root, devices(parsed)[0])]
    if not jobs:
        return

    def keep(job: Job, result: Mapping[str, Any]) -> None:
        name, index = job.key
        searches[name].add(index, result)

    place = folder.resolve()
    if parsed.on == "slurm":
        (place / SCORES_FOLDER).mkdir(exist_ok=True)
    failed = do_jobs(parsed, jobs, run_job, parsed.jobs, place, keep, partial(write_score, place))
    _gather(searches, folder)
    for job, text in failed:
        print(f"\n{job.name} seed {job.seed} failed:\n{text}")
    raised = [(job, text) for job, text in failed if text.startswith("Traceback")]  # else its process was killed
    for name, search in searches.items():
        search.add_failures([(job, text) for job, text in raised if job.key[0] == name])


def _places(row: Row, parsed: argparse.Namespace) -> tuple[Path, Path]:
    """The folders of a row's candidates and of its winner.

    Raises:
        ValueError: --write-reference outside a checkout, or for a row that is not of a suite as it stands.
    """
    suite = row.config.suite
    if not parsed.write_reference:
        out: Path = parsed.out or Path("out") / "tuning" / suite
        return out, out
    if not TUNING.is_dir():
        raise ValueError("--write-reference: the reference configs are in a checkout of the repository, not here")
    if row.path or parsed.data is not None or parsed.set:
        raise ValueError(f"--write-reference: {row.name} is not a row of a suite as it stands; leave the flag out")
    return TUNING / suite, folder(suite)


def write_row(row: Row, comment: str, path: Path) -> None:
    """Write the row's TOML file, its config reduced to what differs from the defaults."""
    outside = not path.is_relative_to(configs.CONFIGS)
    shown = {"suite": row.config.suite} if outside else {}
    shown |= {"modules": str(Path(row.modules).resolve())} if outside and row.modules else {}
    shown |= {"method": row.config.method, "label": row.label}
    shown |= {"table": row.table} if row.table != "main" else {}
    shown |= {"note": row.note} if row.note else {}
    shown |= {"chosen_by": row.chosen_by} if row.chosen_by else {}
    changed = changes_from_default(row.config)
    options = changed.pop("options", {})
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"{key} = {toml(value)}" for key, value in {**shown, **changed}.items()]
    if options:
        lines += ["", "[options]"] + [f"{key} = {toml(value)}" for key, value in options.items()]
    if grid := grid_table(row.tune.get("grid", {}), row.name):
        lines += ["", "[tune.grid]"] + [f"{toml(key)} = {toml(list(values))}" for key, values in grid.items()]
    write_text(path, "\n".join(lines) + "\n")


def changes_from_default(config: Config) -> dict[str, Any]:
    """What the config says beyond the defaults of its method in its suite, options nested."""
    default = default_config(config.method, config.suite).as_dict()
    own = config.as_dict()
    changed = {key: value for key, value in own.items() if key != "options" and value != default[key]}
    options = {key: value for key, value in own["options"].items() if value != default["options"][key]}
    return {**changed, **({"options": options} if options else {})}


def _stored_runs(stored: Sequence[Mapping[str, Any]], config: Config, plan: Plan) -> list[dict[str, Any]]:
    """What an earlier call left for exactly this config."""
    known = (candidate for candidate in stored if same_config(candidate["config"], config))
    return [run for candidate in known for run in candidate["runs"] if run["seed"] in plan.seeds]


def _torch_of(run: Mapping[str, Any]) -> str:
    return str(run.get("versions", {}).get("torch", "unknown"))
