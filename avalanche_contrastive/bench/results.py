"""Results on disk: one JSON per row and seed in a folder, one folder per suite."""

import hashlib
import inspect
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import (
    CONFIGS,
    Config,
    Row,
    completed,
    load_row,
    row_files,
    row_order,
    same_config,
)
from avalanche_contrastive.bench.files import read_json, write_json
from avalanche_contrastive.bench.methods.builders import find_builder
from avalanche_contrastive.bench.methods.catalog import METHODS
from avalanche_contrastive.bench.schema import check_result

CHECKPOINTS = ".checkpoints"  # folder beside the results

Result = Mapping[str, Any]
Grouped = Mapping[str, Sequence[Result]]  # by row name, seeds in order


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run's JSON belongs."""
    return folder / f"{row}-seed{seed}.json"


def checkpoint_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run that is under way leaves its state."""
    return folder / CHECKPOINTS / f"{row}-seed{seed}.pt"


def remove_checkpoint(path: Path | None) -> None:
    """Remove a run's state, and the folder if it was the last there."""
    if path is not None:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # others are in it, or it was never made
            path.parent.rmdir()


def stored_result(folder: Path, row: Row, seed: int) -> dict[str, Any] | None:
    """The result in the place of that run; None if there is none, or an unreadable one."""
    try:
        stored = read_json(result_path(folder, row.name, seed))
    except (FileNotFoundError, ValueError):
        return None
    config = stored.get("config") if isinstance(stored, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("options", {}), dict):
        return None
    return stored if isinstance(config.get("method", ""), str) else None


def is_done(folder: Path, row: Row, seed: int) -> bool:
    """Whether the run's JSON is there, of exactly this config, method of one's own and data of one's own."""
    stored = stored_result(folder, row, seed)
    return stored is not None and not difference(stored, row, seed)


def difference(stored: Result, row: Row, seed: int) -> str:
    """What a stored result was run with otherwise, in words; empty if nothing."""
    ours, theirs = row.config.as_dict(), completed(stored["config"])
    keys = [key for key in {**ours, **theirs} if key != "options" and ours.get(key) != theirs.get(key)]
    words = [f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys]
    if ours["options"] != theirs["options"]:
        words.append(f"options {theirs['options']} there, {ours['options']} here")
    if stored.get("seed") != seed:
        words.append(f"seed {stored.get('seed')} there")
    if stored.get("evaluated_on") != ("validation" if row.on_validation else "test"):
        words.append(f"evaluated on {stored.get('evaluated_on')} images there")
    for key, value in fingerprint(row.config).items():
        if stored.get("fingerprint", {}).get(key) != value:
            words.append(f"another {key} file or content")
    return "; ".join(words)


def fingerprint(config: Config) -> dict[str, str]:
    """Digests of what decides a run beside the config: the source of a method of one's own, data of one's own."""
    found = {}
    if ":" in config.method:
        found["method"] = _digest([Path(inspect.getfile(find_builder(config.method)))])
    if config.data:
        path = Path(config.data)
        found["data"] = _digest(sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    return found


def _digest(paths: Sequence[Path]) -> str:
    """Of one file its content; of many their names, sizes and times: to read them all would take too long."""
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) == 1:
            digest.update(path.read_bytes() if path.is_file() else b"")
        else:
            digest.update(f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def save(folder: Path, row: str, shown: Mapping[str, str], commit: str, result: Result) -> None:
    """Write one run's JSON, whole or not at all."""
    content = {"row": row, "shown": dict(shown), **result, "git_commit": commit}
    write_json(result_path(folder, row, int(result["seed"])), content)


def load_results(folder: Path) -> dict[str, list[Result]]:
    """All results of a folder by row, seeds in order.

    Raises:
        ValueError: no result there, something that is none, results of several suites, or one row under several
            configs.
    """
    grouped: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        result = _checked(path, read_json(path))
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


def _checked(path: Path, result: Any) -> dict[str, Any]:
    """A result with its config complete, or an error that names the file."""
    check_result(path, result)
    if path.name != result_path(path.parent, result["row"], result["seed"]).name:
        raise ValueError(f"{path}: holds row {result['row']!r}, seed {result['seed']}. Was the file renamed or copied?")
    return {**result, "config": completed(result["config"])}


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
        found[f"{suite} ({folder.name})" if suite in found else suite] = grouped
    return found


def suite_of(grouped: Grouped) -> str:
    """The one suite of loaded results."""
    return str(next(iter(grouped.values()))[0]["config"]["suite"])


def rows_of(grouped: Grouped, table: str) -> list[Row]:
    """The rows of one table that have results, in table order.

    How a row is shown comes from its TOML file if the suite has one of this very config, else from the results.
    """
    suite = suite_of(grouped)
    known = row_files(suite) if (CONFIGS / suite).is_dir() else {}
    rows = []
    for name, results in grouped.items():
        row = load_row(name, suite) if name in known else None
        same = row is not None and same_config(results[0]["config"], row.config)
        rows.append(row if row is not None and same else _stored_row(name, results[0]))
    return sorted((row for row in rows if row.table == table), key=row_order)


def _stored_row(name: str, result: Result) -> Row:
    shown = result.get("shown", {})
    stored = {**result["config"], "milestones": tuple(result["config"]["milestones"])}
    if stored["method"] not in METHODS and ":" not in stored["method"]:
        raise ValueError(f"results of {name!r} are of a method {stored['method']!r} that is not known here")
    return Row(name, Config(**stored), **{"label": name, **shown})


def git_commit() -> str:
    """The commit of this checkout, with '+changes' if the code that runs is not what was committed."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = ("avalanche_contrastive",)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
