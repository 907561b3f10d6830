"""What content of a JSON file must look like: checks, and checks of lists and tables whose items pass another."""

from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether something is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether something is a whole number."""
    return is_number(value) and isinstance(value, int)


def is_text(value: Any) -> bool:
    """Whether something is a string."""
    return isinstance(value, str)


def is_table(value: Any) -> bool:
    """Whether something is a table, whatever is in it."""
    return isinstance(value, dict)


def list_of(is_right: Check) -> Check:
    """A list whose items all pass."""
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def table_of(is_right: Check) -> Check:
    """A table whose values all pass."""
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def record_of(**checks: Check) -> Check:
    """A table with these keys, whose values pass; it may have others."""
    return lambda value: isinstance(value, dict) and all(k in value and check(value[k]) for k, check in checks.items())


def is_config(value: Any) -> bool:
    """Whether something may be a stored config: its keys may be of another version."""
    return is_table(value) and is_text(value.get("method", "")) and is_table(value.get("options", {}))
