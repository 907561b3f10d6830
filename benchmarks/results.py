"""Results on disk: one JSON per row and seed in a folder."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.configs import Row, load_row, nearest, row_names
from benchmarks.files import read_json

Result = Mapping[str, Any]


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run's JSON belongs."""
    return folder / f"{row}-seed{seed}.json"


def is_done(folder: Path, row: Row, seed: int) -> bool:
    """Whether the run's JSON is there with exactly this config; an unreadable file counts as not done."""
    path = result_path(folder, row.name, seed)
    try:
        stored = read_json(path)
    except (FileNotFoundError, ValueError):
        return False
    return bool(stored.get("config") == row.config.as_dict() and stored.get("seed") == seed)


def load_results(folder: Path) -> dict[str, list[Result]]:
    """All results of a folder by row, seeds in order.

    Raises:
        ValueError: no result there, or results of several suites, or one row under several configs.
    """
    grouped: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = read_json(path)
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


def suite_of(grouped: Mapping[str, Sequence[Result]]) -> str:
    """The one suite of loaded results."""
    return str(next(iter(grouped.values()))[0]["config"]["suite"])


def rows_of(grouped: Mapping[str, Sequence[Result]], table: str) -> list[Row]:
    """The rows of one table that have results, in table order."""
    suite = suite_of(grouped)
    known = row_names(suite)
    for name in grouped:
        if name not in known:
            raise ValueError(f"results of {name!r}, which has no config in {suite}{nearest(name, known)}")
    rows = [load_row(name, suite) for name in known if name in grouped]
    return [row for row in rows if row.table == table]


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
