"""Files that are there whole or not at all, and where those of a run belong."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from avalanche_contrastive._files import FULL, no_space, remove_left_over, replacing

PROBE_BYTES = 8192  # more than a result of a few experiences
LEFT_OVER_SECONDS = 3600.0  # a file is being written for milliseconds: an hour also covers a stopped process
Result = Mapping[str, Any]  # of a run
Grouped = Mapping[str, Sequence[Result]]  # by row name, seeds in order
Everything = Mapping[str, Grouped]  # by suite
CHECKPOINTS = ".checkpoints"  # folder beside the results


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run's JSON belongs."""
    return folder / f"{row}-seed{seed}.json"


def checkpoint_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run that is not finished keeps its state."""
    return folder / CHECKPOINTS / f"{row}-seed{seed}.pt"


def remove_checkpoint(path: Path | None) -> None:
    """Remove a run's state, and the folder if it was the last there."""
    if path is not None:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # others are in it, or there is none
            path.parent.rmdir()


def toml(value: Any) -> str:
    """One TOML value; a JSON string is a TOML string, a JSON list of numbers a TOML list."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the target and move it there, so that a kill or a full disk leaves the old file as it was.

    Raises:
        OSError: it could not be written; where space is lacking, the message says how much is left.
    """
    with replacing(path) as file:
        file.write(data)


def check_writable(folder: Path) -> None:
    """Make the folder, and see that a result can be written there, before an hour goes into making it.

    Temporary files that a killed process left there more than an hour ago are removed.

    Raises:
        ValueError: something else than a folder has that name, or nothing can be written there.
    """
    for place in (folder, *folder.parents):
        if place.exists() or place.is_symlink():
            if not place.is_dir():
                raise ValueError(f"{folder}: expected a folder for the results, but {place} is a file")
            break
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.", suffix=".part") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
            # The file server's clock may not be ours, so its own time stamp is what the others are compared with.
            remove_left_over(folder, ".*.part", before=os.fstat(probe.fileno()).st_mtime - LEFT_OVER_SECONDS)
    except OSError as error:
        why = no_space(folder, error) if error.errno in FULL else error.strerror
        raise ValueError(f"{folder}: cannot write results there: {why}") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; lists of numbers stay on one line so that a matrix can be read."""
    write_text(path, _pretty(content) + "\n")


def _pretty(value: Any, indent: int = 0) -> str:
    inner = " " * (indent + 2)
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(key)}: {_pretty(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value):
        return "[\n" + ",\n".join(inner + _pretty(item, indent + 2) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON as `run` and `tune` write it, could not read it: {error}") from error


def read_checked(path: Path, is_right: Callable[[Any], bool], command: str) -> Any:
    """Read JSON that a command of the runner has written.

    Raises:
        ValueError: it is not as the command writes it; the message names the file.
    """
    content = read_json(path)
    if not is_right(content):
        raise ValueError(f"{path}: not as `{command}` writes it. Was it edited? Mend it, or remove it to begin anew")
    return content


def clock_time(seconds: float) -> str:
    """Such as 0:07 or 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
