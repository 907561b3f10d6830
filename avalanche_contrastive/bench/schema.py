"""What a result on disk must look like before figures are made of it: it may be damaged, edited, or a stranger's."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avalanche_contrastive.bench.config import TABLES, plain_defaults
from avalanche_contrastive.bench.methods.catalog import Option

Check = Callable[[Any], bool]

NEEDED = ("row", "config", "seed", "evaluated_on", "accuracy_matrix", "test_images", "versions", "device", "readout")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_whole(count) and count > 0 for count in value)


def _matrix(value: Any) -> bool:
    """Rows of equal length; NaN where a metric has no value."""
    return isinstance(value, list) and len(value) > 0 and all(map(_numbers, value)) and len(set(map(len, value))) == 1


def _accuracies(value: Any) -> bool:
    return _matrix(value) and all(math.isfinite(x) and 0 <= x <= 1 for row in value for x in row)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _shown(value: Any) -> bool:
    return _texts(value) and value.get("table", "main") in TABLES


def _classes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and all(map(_whole, row)) for row in value)


def _seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_numbers, value.values()))


NUMBER = (_number, "a number")
TEXT = (_text, "a string")
MATRIX = (_matrix, "a list of rows of numbers, all of one length")
FIELDS: Mapping[str, tuple[Check, str]] = {
    "row": TEXT,
    "seed": (_whole, "a whole number"),
    "evaluated_on": (lambda value: value in ("test", "validation"), "'test' or 'validation'"),
    "test_images": (_counts, "a list of whole numbers above 0"),
    "accuracy_matrix": (_accuracies, "a list of rows of accuracies in [0, 1], all of one length"),
    "versions": (_texts, "a table of strings"),
    "device": TEXT,
    "readout": TEXT,
}
OPTIONAL: Mapping[str, tuple[Check, str]] = {
    "shown": (_shown, f"a table of strings, its table one of {TABLES}"),
    "task_accuracy_matrix": MATRIX,
    "recall_matrix": MATRIX,
    "seen_accuracy": (_numbers, "a list of numbers"),
    "recall_at_1": (_numbers, "a list of numbers"),
    "final_accuracy": NUMBER,
    "average_accuracy": NUMBER,
    "final_task_accuracy": NUMBER,
    "learning_accuracy": NUMBER,
    "forgetting": NUMBER,
    "backward_transfer": NUMBER,
    "recall_forgetting": NUMBER,
    "seconds_training": NUMBER,
    "seconds_total": NUMBER,
    "seconds_per_experience": (_seconds, "a table of lists of numbers"),
    "peak_memory_mib": (_numbers, "a list of numbers"),
    "peak_memory_of": TEXT,
    "stream": TEXT,
    "class_names": (lambda value: isinstance(value, list) and all(map(_text, value)), "a list of strings"),
    "experience_classes": (_classes, "a list of lists of whole numbers"),
    "angles": (_numbers, "a list of numbers"),
    "git_commit": TEXT,
    "fingerprint": (_texts, "a table of strings"),
}


def check_result(path: Path, result: Any) -> None:
    """Refuse what is no whole result of a run, in the form in which runs write it.

    Raises:
        ValueError: naming the file, the key, what was expected and what came.
    """
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise ValueError(f"{path}: expected the result of a run, a JSON object with a config")
    if missing := [key for key in NEEDED if key not in result]:
        raise ValueError(f"{path}: not a whole result of a run, it lacks {', '.join(missing)}")
    _check_config(path, result["config"])
    # "Nothing to say" is null, but for how a row is shown.
    given = {key: OPTIONAL[key] for key in OPTIONAL if key in result and (result[key] is not None or key == "shown")}
    for key, (good, words) in {**FIELDS, **given}.items():
        if not good(result[key]):
            raise ValueError(f"{path}: {key} must be {words}, got {_short(result[key])}")
    width = len(result["test_images"])
    for key in ("accuracy_matrix", "task_accuracy_matrix", "recall_matrix"):
        if result.get(key) and len(result[key][0]) != width:
            raise ValueError(
                f"{path}: {key} has rows of {len(result[key][0])}, but test_images names {width} experiences"
            )


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    defaults = plain_defaults()
    unknown = [key for key in config if key not in defaults]
    if unknown:
        raise ValueError(
            f"{path}: its config has {', '.join(unknown)}, unknown here. Was it written by a newer version?"
        )
    for key, value in config.items():
        want = type(defaults[key])
        if not (type(value) is want or (want is float and _whole(value))):
            raise ValueError(f"{path}: config: {key} must be a {want.__name__}, got {_short(value)}")
    if not all(map(_whole, config.get("milestones", []))):
        raise ValueError(f"{path}: config: milestones must be whole numbers, got {_short(config['milestones'])}")
    if not all(isinstance(value, Option) for value in config.get("options", {}).values()):
        raise ValueError(f"{path}: config: options must be bools, numbers or strings, got {_short(config['options'])}")
    suite = config.get("suite", "")
    if any(sign in suite for sign in "/\\\0") or suite in (".", ".."):  # figures go to a folder of that name
        raise ValueError(f"{path}: config: suite must be a name, no path, got {_short(suite)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
