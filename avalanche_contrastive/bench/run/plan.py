"""How `tune` searches: how many candidates from which grid, on which seeds; the same for every row of a suite."""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from avalanche_contrastive.bench.config import METHODS, SHARED, Config, Row, nearest, shared_by, updated
from avalanche_contrastive.registry import Grid, Option

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
    grid: Grid = field(default_factory=dict)
    settings: Mapping[str, Option] = field(default_factory=dict)


PLAN = tuple(f.name for f in fields(Plan))


def plan_of(suite: str, *, number: int | None = None, seeds: Sequence[int] | None = None) -> Plan:
    """The plan in the suite's _suite.toml, table [tune].

    Args:
        suite: its name.
        number: of candidates, in place of the suite's.
        seeds: in place of the suite's.

    Raises:
        ValueError: an unknown key there or in its grid, a value of the wrong kind, or a seed that results may have.
    """
    where = f"{suite}/{SHARED}, [tune]"
    raw = _table(shared_by(suite).get("tune", {}), where)
    for key in raw:
        if key not in PLAN:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, PLAN)}")
    count = raw.get("candidates", Plan.candidates)
    if type(count) is not int or count < 1:
        raise ValueError(f"{where}: candidates must be a whole number of at least 1, got {count!r}")
    grid = grid_table(raw.get("grid", {}), f"{where[:-1]}.grid]")
    for key, values in grid.items():
        _check_values(key, values, f"{where[:-1]}.grid]")
    return Plan(
        candidates=number or count,
        seeds=_seeds(raw.get("seeds", list(Plan.seeds)), where) if seeds is None else _seeds(list(seeds), "--seeds"),
        grid=grid,
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


def _check_values(key: str, values: Sequence[Option], where: str) -> None:
    """Refuse a key of a suite's grid that no method has, or a value that a method with that key cannot take."""
    having = [name for name, method in METHODS.items() if key in method.grid]
    if not having:
        known = {known for method in METHODS.values() for known in method.grid}
        raise ValueError(f"{where}: no method's grid has a key {key!r}{nearest(key, known)}")
    for name in having:
        for value in values:
            updated(Config(name, options=METHODS[name].options), {key: value}, where=where)


def grid_of(row: Row, plan: Plan, fixed: Iterable[str] = ()) -> dict[str, tuple[Option, ...]]:
    """What the row's candidates are drawn from: its method's grid, the suite's values, those of its own TOML file.

    Args:
        row: to be tuned.
        plan: of its suite.
        fixed: keys that are not searched, because the command line has set them.

    Raises:
        ValueError: a method of your own has options, and none of them is in a grid; or the row's own grid is wrong.
    """
    grid = {**{key: plan.grid.get(key, values) for key, values in row.method.grid.items()}, **_row_grid(row)}
    options = row.method.options
    if ":" in row.config.method and options and not any(key.startswith("options.") for key in (*grid, *fixed)):
        example = next(iter(options))
        raise ValueError(
            f"{row.name}: its options ({', '.join(options)}) have no grid, so `tune` would leave them at their "
            "defaults while it searches those of the built-in methods. Say in its TOML file what to try:\n"
            f'[tune.grid]\n"options.{example}" = [{options[example]!r}, ...]'
        )
    return {key: values for key, values in grid.items() if key not in fixed}


def _row_grid(row: Row) -> dict[str, tuple[Option, ...]]:
    """The table [tune.grid] of a row's own file."""
    where = f"{row.path or row.name}, [tune"
    if not isinstance(row.tune, Mapping) or set(row.tune) - {"grid"}:
        raise ValueError(f"{where}]: a row may have the table [tune.grid] only, got {row.tune!r}")
    grid = grid_table(row.tune.get("grid", {}), f"{where}.grid]")
    for key, values in grid.items():
        for value in values:
            updated(row.config, {key: value}, where=f"{where}.grid]")
    return grid


def grid_table(raw: Any, where: str) -> dict[str, tuple[Option, ...]]:
    """Lists of values by key; options may be a table of their own or come as "options.x" keys.

    Raises:
        ValueError: not a table, or a value that is not a list of at least one.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("options", {}), Mapping):
        raise ValueError(f"{where} must be a table, got {raw!r}")
    flat = {key: values for key, values in raw.items() if key != "options"}
    flat |= {f"options.{key}": values for key, values in raw.get("options", {}).items()}
    for key, values in flat.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: {key} must be a list of at least one value, got {values!r}")
    return {key: tuple(values) for key, values in flat.items()}


def candidates(
    row: Row, plan: Plan, fixed: Iterable[str] = ()
) -> tuple[dict[str, tuple[Option, ...]], list[dict[str, Option]]]:
    """The row's grid, and a fixed draw from it in which the values of each key are used about equally often.

    Raises:
        ValueError: the grid is smaller than the number of candidates, or what `grid_of` refuses.
    """
    grid = grid_of(row, plan, fixed)
    points_in_all = len(list(itertools.product(*grid.values())))
    if points_in_all < plan.candidates:
        raise ValueError(
            f"{row.name}: its grid has {points_in_all} points, but {plan.candidates} candidates are wanted, as many as "
            f"for every other row. Give more values, or --candidates {points_in_all} to all rows"
        )
    draw = random.Random(DRAW_SEED)
    for _ in range(10_000):
        columns = [_shuffled(values, plan.candidates, draw) for values in grid.values()]
        points = list(dict.fromkeys(zip(*columns, strict=True)))
        if len(points) == plan.candidates:
            return grid, [dict(zip(grid, point, strict=True)) for point in points]
    raise ValueError(
        f"{row.name}: found no {plan.candidates} different points that use each value equally often. Give fewer "
        "--candidates"
    )


def _shuffled(values: Sequence[Option], number: int, draw: random.Random) -> list[Option]:
    column = [values[i % len(values)] for i in range(number)]
    draw.shuffle(column)
    return column
