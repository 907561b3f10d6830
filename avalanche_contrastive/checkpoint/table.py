"""A state is a flat table of records, which refer to each other by number.

A *value* is None, a number, a string, or a reference ``(n,)`` to record n. A *record* is a list: its kind, and what
belongs to it. Record 0 is the root. No record contains another, so a table cannot nest: how deep what it describes is,
and how large, is checked before anything is made of it. What a record holds is checked where it is read.
"""

from collections.abc import Iterator
from typing import Any

from avalanche_contrastive.checkpoint.kinds import SCALARS, CheckpointError

__all__ = ["Record", "Step", "Table", "Value", "check_table", "number_of", "parts_of", "path_of"]

Value = Any  # None | bool | int | float | str | tuple[int]
Record = list[Any]
Table = list[Record]
Step = tuple[str, Any]  # from a record to a part of it: ("attribute", name), ("item", index or key) or ("key", index)

DEPTH = 100  # of containers within containers
SHARED = 10  # how many times larger a table may get if each shared container is counted wherever it is
PLAIN = ("tensor", "array", "list", "tuple", "dict")
FIELDS = ("", "state", "defaults", "param_groups", "state", "", "", "attributes")  # of generators, optimisers, samples
OBJECTS = ("object", "optimizer")  # may refer to each other in circles; nothing else may


def number_of(value: Value) -> int | None:
    """The number that a value refers to; an error if it is no value."""
    if value is None or type(value) in SCALARS:
        return None
    (number,) = value
    if type(value) is not tuple or type(number) is not int or number < 0:
        raise ValueError(f"{value!r:.40} is no value")
    return number


def parts_of(record: Record) -> Iterator[tuple[Step, Value]]:
    """The values in a record, each with the step that leads to it."""
    if record[0] == "dict":
        for number, (key, value) in enumerate(zip(record[1][::2], record[1][1::2], strict=True)):
            yield ("key", number), key
            yield ("item", key if type(key) in SCALARS else number), value
        return
    for index, field in enumerate(record[1:]):
        if type(field) is dict:
            yield from ((("attribute", name), value) for name, value in field.items())
        elif type(field) is list:
            yield from ((("item", number), value) for number, value in enumerate(field))
        elif type(field) is tuple:
            yield ("attribute", FIELDS[index]), field


def path_of(path: str, step: Step) -> str:
    """The path of a part, in words."""
    kind, name = step
    if kind == "attribute":
        return f"{path}.{name:.40}" if path else f"{name:.40}"
    return f"{path}[{name!r:.40}]" if kind == "item" else f"{path} (a key)"


def check_table(table: Table, *, plain: bool = False) -> None:
    """See that references lead somewhere, and that nothing but objects contains itself.

    Args:
        table: from a file.
        plain: it must be of data only, each in one place.

    Raises:
        CheckpointError: with what is wrong.
    """
    inner = [[number for _, value in parts_of(record) if (number := number_of(value)) is not None] for record in table]
    referred = [0, *(number for numbers in inner for number in numbers)]
    if len({*referred}) != len(table) or max(referred) >= len(table) or (plain and len(referred) != len(table)):
        raise CheckpointError("records are in several places, or in none")
    if plain and any(record[0] not in PLAIN for record in table):
        raise CheckpointError("there is something else than data")
    measured: dict[int, tuple[int, int]] = {}  # size and depth

    def measure(number: int, above: int) -> tuple[int, int]:
        if number not in measured:
            parts = [n for n in inner[number] if table[n][0] not in OBJECTS] if above < DEPTH else []
            below = [measure(n, above + 1) for n in parts]
            measured[number] = 1 + sum(size for size, _ in below), 1 + max((depth for _, depth in below), default=0)
        return measured[number]

    for number, record in enumerate(table):
        size, depth = measure(number, 0) if record[0] not in OBJECTS else (0, 0)
        if depth > DEPTH or size > SHARED * len(table):
            raise CheckpointError("lists are within themselves, or share so many parts that going through never ends")
