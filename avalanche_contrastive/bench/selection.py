"""The rows of a call: those named or of a table, with --data, --memory and --set applied."""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from avalanche_contrastive.bench.config import DEFAULT_SUITE, Row, find_row, load_row, load_rows, nearest, updated
from avalanche_contrastive.bench.data.kinds import absolute

OWN_SUITE = "own_data"


def suite_of(parsed: argparse.Namespace) -> str:
    """The suite of the call: named, that of your own data, or what a given config file says."""
    if parsed.suite:
        return str(parsed.suite)
    default = OWN_SUITE if parsed.data is not None else DEFAULT_SUITE
    files = [given for given in parsed.rows if given.endswith(".toml")]
    return find_row(files[0], default).config.suite if files else default


def chosen_rows(parsed: argparse.Namespace) -> list[Row]:
    """The named rows, or the main ones; with the ablations, the trials and the others if asked for; all as changed."""
    suite = suite_of(parsed)
    named = [find_row(given, suite) for given in dict.fromkeys(parsed.rows)]
    wanted = [] if named else ["main"]
    wanted += [table for table in ("other", "ablation", "trial") if getattr(parsed, f"{table}s", False)]
    rows = named + [row for row in load_rows(suite) if row.table in wanted and row not in named]
    return changed(rows, assignments(parsed), memory=getattr(parsed, "memory", None))


def assignments(parsed: argparse.Namespace) -> dict[str, Any]:
    """--data, --precision and --set as changes of a config."""
    changes: dict[str, Any] = {}
    if parsed.data is not None:
        changes = {"stream": "own", "data": absolute(parsed.data)}
    if parsed.precision:
        changes["precision"] = parsed.precision
    return changes | {key: _value(text) for key, text in pairs(parsed.set, "--set").items()}


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """KEY=VALUE as text."""
    found = {}
    for assignment in given:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{flag}: expected KEY=VALUE, got {assignment!r}")
        found[key.strip()] = text.strip()
    return found


def changed(rows: Sequence[Row], changes: Mapping[str, Any], *, memory: int | None = None) -> list[Row]:
    """The rows with some keys set; an option is set where a row's method has it.

    Args:
        rows: any.
        changes: keys of a config, and "options.x".
        memory: of every row that has one, except rows whose memory differs from that of the row they follow: to show
            another size is what they are for.

    Raises:
        ValueError: no row has the option, or what `updated` refuses.
    """
    for key in changes:
        if key.startswith("options.") and not any(key.removeprefix("options.") in row.method.options for row in rows):
            known = {f"options.{name}" for row in rows for name in row.method.options}
            raise ValueError(f"--set: no row here has {key!r}{nearest(key, known)}")
    found = []
    for row in rows:
        own = {k: v for k, v in changes.items() if "." not in k or k.removeprefix("options.") in row.method.options}
        sized = row.base and row.config.memory != load_row(row.base, row.config.suite).config.memory
        if memory is not None and row.method.has_memory and not sized:
            own = {"memory": memory, **own}
        found.append(replace(row, config=updated(row.config, own, where=f"{row.name} with --set")))
    return found


def _value(text: str) -> Any:
    """A TOML value, or a number such as .1, which TOML does not have; any other word is a string."""
    for read in (lambda word: tomllib.loads(f"x = {word}")["x"], float):
        with suppress(ValueError):
            return read(text)
    return text
