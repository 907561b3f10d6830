"""Results on disk: one JSON per row and seed in a folder, one folder per suite; what they hold is checked when read."""

import hashlib
import inspect
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_contrastive._outside import find
from avalanche_contrastive._version import __version__
from avalanche_contrastive.bench.config import (
    CONFIGS,
    METHODS,
    STORED_DEFAULTS,
    TABLES,
    WORD_OR_LIST,
    Config,
    Row,
    completed,
    load_row,
    own_code,
    row_files,
    row_order,
    same_config,
)
from avalanche_contrastive.bench.data.kinds import local_path
from avalanche_contrastive.bench.files import Grouped as Grouped
from avalanche_contrastive.bench.files import Result as Result
from avalanche_contrastive.bench.files import read_json, result_path, write_json
from avalanche_contrastive.bench.shapes import (
    Check,
    is_config,
    is_number,
    is_table,
    is_text,
    is_whole,
    list_of,
    record_of,
    table_of,
)
from avalanche_contrastive.registry import Option


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of a run as it stands; None if there is none, or an unreadable one."""
    try:
        stored = read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return stored if record_of(config=is_config)(stored) and is_table(stored.get("fingerprint", {})) else None


def is_done(folder: Path, row: Row, seed: int) -> bool:
    """Whether the run's JSON is there, of exactly this config, with the same code and data of your own."""
    stored = read_result(result_path(folder, row.name, seed))
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
    """Digests of what decides a run beside the config: the sources of code of your own, data of your own."""
    found = {key: _digest([Path(inspect.getfile(find(name)))]) for key, name in own_code(config).items()}
    path = local_path(config.data) if config.data else None
    if path is not None:
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
    stored: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in result["config"].items()
    }
    if stored["method"] not in METHODS and ":" not in stored["method"]:
        raise ValueError(f"results of {name!r} are of a method {stored['method']!r} that is not known here")
    return Row(name, Config(**stored), **{"label": name, **shown})


def git_commit() -> str:
    """The commit of this checkout, with '+changes' if the code is another; without a checkout the package's version."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "_version.py")  # an installed package may lie in another project's checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"avalanche-contrastive {__version__}"


# ---- what a result must look like: the file may be damaged, edited, or from somebody else


def _is_matrix(value: Any) -> bool:
    """Rows of equal length; NaN where a metric has no value."""
    return list_of(list_of(is_number))(value) and len(set(map(len, value))) == 1


def _are_accuracies(value: Any) -> bool:
    return _is_matrix(value) and all(math.isfinite(x) and 0 <= x <= 1 for row in value for x in row)


def _are_counts(value: Any) -> bool:
    return list_of(lambda count: is_whole(count) and count > 0)(value) and len(value) > 0


def _are_scores(value: Any) -> bool:
    """A square matrix and its summaries; null where there is no value."""
    rows: Any = value.get("matrix") if isinstance(value, dict) else None
    numbers_or_null = list_of(lambda x: x is None or is_number(x))
    if not list_of(numbers_or_null)(rows) or any(len(row) != len(rows) for row in rows):
        return False
    return numbers_or_null([x for key, x in value.items() if key != "matrix"])


NUMBER = (is_number, "a number")
NUMBERS = (list_of(is_number), "a list of numbers")
TEXT = (is_text, "a string")
TEXTS = (table_of(is_text), "a table of strings")
MATRIX = (_is_matrix, "a list of rows of numbers, all of one length")
NEEDED: Mapping[str, tuple[Check, str]] = {  # beside the config
    "row": TEXT,
    "seed": (is_whole, "a whole number"),
    "evaluated_on": (lambda value: value in ("test", "validation"), "'test' or 'validation'"),
    "accuracy_matrix": (_are_accuracies, "a list of rows of accuracies in [0, 1], all of one length"),
    "test_images": (_are_counts, "a list of whole numbers above 0"),
    "versions": TEXTS,
    "device": TEXT,
    "readout": TEXT,
}
OPTIONAL: Mapping[str, tuple[Check, str]] = {
    "shown": (
        lambda value: table_of(is_text)(value) and value.get("table", "main") in TABLES,
        f"a table of strings, its table one of {TABLES}",
    ),
    "task_accuracy_matrix": MATRIX,
    "recall_matrix": MATRIX,
    "seen_accuracy": NUMBERS,
    "recall_at_1": NUMBERS,
    **dict.fromkeys(("final_accuracy", "average_accuracy", "final_task_accuracy", "learning_accuracy"), NUMBER),
    **dict.fromkeys(("forgetting", "backward_transfer", "recall_forgetting"), NUMBER),
    **dict.fromkeys(("seconds_training", "seconds_total"), NUMBER),
    "seconds_per_experience": (table_of(list_of(is_number)), "a table of lists of numbers"),
    "peak_memory_mib": NUMBERS,
    "peak_memory_of": TEXT,
    "stream": TEXT,
    "class_names": (list_of(is_text), "a list of strings"),
    "experience_classes": (list_of(list_of(is_whole)), "a list of lists of whole numbers"),
    "angles": NUMBERS,
    "metrics": (table_of(record_of(all=list_of(is_number))), "a table of figures, each with a list of numbers `all`"),
    "compatibility": (table_of(_are_scores), "a table of scores, each with a square `matrix` and numbers"),
    "evaluations": (table_of(is_number), "a table of numbers"),
    "git_commit": TEXT,
    "fingerprint": TEXTS,
}


def check_result(path: Path, result: Any) -> None:
    """Refuse anything but a whole result of a run, in the form in which runs write it.

    Raises:
        ValueError: naming the file, the key, what was expected and what is there.
    """
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise ValueError(f"{path}: expected the result of a run, a JSON object with a config")
    if missing := [key for key in NEEDED if key not in result]:
        raise ValueError(f"{path}: not a whole result of a run, it lacks {', '.join(missing)}")
    _check_config(path, result["config"])
    # null stands for "none", except for how a row is shown.
    given = {key: OPTIONAL[key] for key in OPTIONAL if key in result and (result[key] is not None or key == "shown")}
    for key, (good, words) in {**NEEDED, **given}.items():
        if not good(result[key]):
            raise ValueError(f"{path}: {key} must be {words}, got {_short(result[key])}")
    width = len(result["test_images"])
    for key in ("accuracy_matrix", "task_accuracy_matrix", "recall_matrix"):
        if result.get(key) and len(result[key][0]) != width:
            raise ValueError(
                f"{path}: {key} has rows of {len(result[key][0])}, but test_images names {width} experiences"
            )


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    defaults = STORED_DEFAULTS
    unknown = [key for key in config if key not in defaults]
    if unknown:
        raise ValueError(
            f"{path}: its config has {', '.join(unknown)}, unknown here. Was it written by a newer version?"
        )
    for key, value in config.items():
        want = list if key in WORD_OR_LIST and isinstance(value, list) else type(defaults[key])
        if not (type(value) is want or (want is float and is_whole(value))):
            raise ValueError(f"{path}: config: {key} must be a {want.__name__}, got {_short(value)}")
    for key in ("milestones", *WORD_OR_LIST):
        if isinstance(config.get(key), list) and not all(map(is_whole, config[key])):
            raise ValueError(f"{path}: config: {key} must be whole numbers, got {_short(config[key])}")
    if not all(isinstance(value, Option) for value in config.get("options", {}).values()):
        raise ValueError(f"{path}: config: options must be bools, numbers or strings, got {_short(config['options'])}")
    if not all(map(is_text, config.get("metrics", []))):
        raise ValueError(f"{path}: config: metrics must be strings, got {_short(config['metrics'])}")
    suite = config.get("suite", "")
    if any(sign in suite for sign in "/\\\0") or suite in (".", ".."):  # figures go to a folder of that name
        raise ValueError(f"{path}: config: suite must be a name, no path, got {_short(suite)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
