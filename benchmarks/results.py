"""Results on disk: one JSON per row and seed in a folder, one folder per suite."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalog import METHODS
from benchmarks.configs import CONFIGS, Config, Row, load_row, plain_defaults, row_files, row_order, same_config
from benchmarks.files import read_json, write_json

Result = Mapping[str, Any]
Grouped = Mapping[str, Sequence[Result]]  # by row name, seeds in order


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run's JSON belongs."""
    return folder / f"{row}-seed{seed}.json"


def is_done(folder: Path, row: Row, seed: int) -> bool:
    """Whether the run's JSON is there with exactly this config; an unreadable file counts as not done."""
    try:
        stored = read_json(result_path(folder, row.name, seed))
    except (FileNotFoundError, ValueError):
        return False
    return (
        isinstance(stored, dict) and same_config(stored.get("config"), row.config) and stored.get("seed") == seed
    ) and stored.get("evaluated_on") == ("validation" if row.on_validation else "test")


def save(folder: Path, row: str, shown: Mapping[str, str], commit: str, result: Result) -> None:
    """Write one run's JSON, whole or not at all."""
    content = {"row": row, "shown": dict(shown), **result, "git_commit": commit}
    write_json(result_path(folder, row, int(result["seed"])), content)


def load_results(folder: Path) -> dict[str, list[Result]]:
    """All results of a folder by row, seeds in order.

    Raises:
        ValueError: no result there, or results of several suites, or one row under several configs.
    """
    grouped: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = read_json(path)
        if not isinstance(result, dict) or not {"row", "config", "seed"} <= result.keys():
            raise ValueError(f"{path}: expected the result of a run, with row, config and seed; what wrote it?")
        result["config"] = {**plain_defaults(), **result["config"]}
        grouped.setdefault(result["row"], []).append(result)
    if not grouped:
        raise ValueError(f"{folder}: expected <row>-seed<n>.json files, found none. Is it the --out folder of a run?")
    suites = {result["config"]["suite"] for results in grouped.values() for result in results}
    if len(suites) > 1:
        raise ValueError(f"{folder}: results of several suites ({', '.join(sorted(suites))}); keep a folder for each")
    for row, results in grouped.items():
        results.sort(key=lambda result: int(result["seed"]))
        if any(result["config"] != results[0]["config"] for result in results):
            raise ValueError(f"{folder}: the seeds of {row} were run with different configs; run that row again")
    return grouped


def load_all(root: Path) -> dict[str, Grouped]:
    """Results by suite: of a folder of results, or of a folder of such folders.

    Raises:
        ValueError: nothing there, or what `load_results` refuses.
    """
    folders = [root] if any(root.glob("*-seed*.json")) else sorted({p.parent for p in root.glob("*/*-seed*.json")})
    if not folders:
        raise ValueError(f"{root}: expected <row>-seed<n>.json files there or one folder down, found none")
    found: dict[str, Grouped] = {}
    for folder in folders:
        grouped = load_results(folder)
        suite = suite_of(grouped)
        if suite in found:
            raise ValueError(f"{root}: two folders hold results of {suite}; the second is {folder}")
        found[suite] = grouped
    return found


def suite_of(grouped: Grouped) -> str:
    """The one suite of loaded results."""
    return str(next(iter(grouped.values()))[0]["config"]["suite"])


def rows_of(grouped: Grouped, table: str) -> list[Row]:
    """The rows of one table that have results, in table order.

    How a row is shown comes from its TOML file if the suite still has one, else from the results themselves.
    """
    suite = suite_of(grouped)
    known = row_files(suite) if (CONFIGS / suite).is_dir() else {}
    rows = [load_row(name, suite) if name in known else _stored_row(name, grouped[name][0]) for name in grouped]
    return sorted((row for row in rows if row.table == table), key=row_order)


def _stored_row(name: str, result: Result) -> Row:
    shown = result.get("shown", {})
    stored = {**result["config"], "milestones": tuple(result["config"]["milestones"])}
    if stored["method"] not in METHODS and ":" not in stored["method"]:
        raise ValueError(f"results of {name!r} are of a method {stored['method']!r} that is not known here")
    return Row(name, Config(**stored), **{"label": name, **shown})


def git_commit() -> str:
    """The commit of this checkout, with '+changes' if the code that runs is not what was committed."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = ("avalanche_contrastive", "benchmarks/*.py", "benchmarks/configs")
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
