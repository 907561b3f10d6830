"""A table row is one TOML file that says only what differs from the defaults; unknown keys are refused."""

import difflib
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from avalanche_contrastive.bench.files import write_text
from avalanche_contrastive.bench.methods.catalog import METHODS, SCORES, Method, Option, method_of

CONFIGS = Path(__file__).parent / "configs"
SHARED = "_suite.toml"  # in each suite's folder: what all its rows have in common
DEFAULT_SUITE = "split_digits"
# other: Avalanche's further strategies, not tuned; a trial looks into something on validation images.
TABLES = ("main", "other", "ablation", "trial")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "scenario": ("class", "task", "domain"),
    "optimizer": ("sgd", "adam"),
    "schedule": ("constant", "cosine", "steps"),
    "augmentation": ("", "simclr", "pad_crop"),
}
SHOWING = ("label", "table", "note", "chosen_by")  # how tables show a row; no part of what decides its numbers


@dataclass(frozen=True)
class Config:
    """Everything but the seed that decides a run's numbers; stored whole in each result.

    Args:
        method: key of METHODS, or "module:function" of a builder of your own.
        suite: folder of configs that the row belongs to; its table.
        stream: key of STREAMS.
        data: for the stream "own": a .npz file or a folder of images.
        scenario: "class", "task" (task labels; the task is known in evaluation) or "domain".
        experiences: 0: as many as the stream usually has.
        base_classes: classes of the first experience; 0: all experiences have equally many.
        train_images: stratified random subset of the training images (of each domain), 0: all.
        test_images: the same for the test images.
        network: key of NETWORKS; "": the stream's own.
        memory: stored images, 0 for methods without a memory.
        epochs: passes over each experience.
        epochs_later: passes over each experience after the first; 0: as over the first.
        batch_size: images of the current experience per step.
        optimizer: "sgd" or "adam".
        lr: learning rate.
        lr_later: factor on lr from the second experience on.
        lr_by_experience: divide lr by the number of the experience (SS-IL).
        schedule: "constant", "cosine" or "steps", started anew in each experience.
        milestones: epochs after which "steps" multiplies the rate by 0.1.
        warmup_epochs: linear warm-up at the start of each experience.
        momentum: of SGD.
        weight_decay: of the optimiser.
        reset_optimizer: empty the optimiser's state at each experience.
        augment: augment each training batch; contrastive methods always do it.
        augmentation: "": the stream's own; "simclr" or "pad_crop" (both need the extra "paper").
        options: what only this method has, complete with its defaults.
    """

    method: str
    suite: str = DEFAULT_SUITE
    stream: str = "split_digits"
    data: str = ""
    scenario: str = "class"
    experiences: int = 0
    base_classes: int = 0
    train_images: int = 0
    test_images: int = 0
    network: str = ""
    memory: int = 100
    epochs: int = 20
    epochs_later: int = 0
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float = 0.03
    lr_later: float = 1.0
    lr_by_experience: bool = False
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    reset_optimizer: bool = False
    augment: bool = False
    augmentation: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The config as it stands in a result."""
        return {**asdict(self), "milestones": list(self.milestones)}


KEYS = {f.name: f.default for f in fields(Config) if f.default is not MISSING}  # what a TOML may set, with defaults


@dataclass(frozen=True)
class Row:
    """A named config and how tables show it; the showing decides no number, so a better label needs no new run."""

    name: str
    config: Config
    label: str
    table: str = "main"
    note: str = ""
    base: str = ""
    chosen_by: str = ""
    path: str = ""  # of a TOML file outside the suites

    @property
    def select_by(self) -> str:
        """The validation figure by which `tune` chooses the row's setting, a key of SCORES."""
        return self.chosen_by or self.method.select_by

    @property
    def on_validation(self) -> bool:
        """Whether the row is evaluated on held-out training images instead of the test images."""
        return self.table == "trial"

    @property
    def method(self) -> Method:
        """The method behind the row."""
        return method_of(self.config.method)

    def shown(self) -> dict[str, str]:
        """How tables show the row, as it stands in a result."""
        return {"label": self.label, "table": self.table, "note": self.note, "base": self.base}


def suites() -> list[str]:
    """Names of the folders of configs."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def folder(suite: str) -> Path:
    """Where the suite's configs are."""
    path = CONFIGS / suite
    if suite not in suites():  # a name, no path
        raise ValueError(f"no suite named {suite!r}{nearest(suite, suites())}")
    return path


def row_files(suite: str) -> dict[str, Path]:
    """The suite's TOML files by row name."""
    return {path.stem: path for path in sorted(folder(suite).glob("[!_]*.toml"))}


def load_rows(suite: str) -> list[Row]:
    """All rows of a suite: main rows first, in the order of METHODS and of memory, then ablations, then trials."""
    return sorted((load_row(name, suite) for name in row_files(suite)), key=row_order)


def row_order(row: Row) -> tuple[int, int, int, str]:
    """Sorting key of rows in tables."""
    order = list(METHODS)
    place = order.index(row.config.method) if row.config.method in METHODS else len(order)
    return TABLES.index(row.table), place, row.config.memory, row.name


def find_row(given: str, suite: str) -> Row:
    """A row by its name in the suite, or by the path of a TOML file anywhere (which may name its suite).

    Raises:
        ValueError: no such row or file, or something in it is unknown or of the wrong type.
    """
    return load_row(given, suite) if not given.endswith(".toml") else _read_row(Path(given), suite)


def load_row(name: str, suite: str) -> Row:
    """The row of that name; with `base` it starts from that row's config."""
    files = row_files(suite)
    if name not in files:
        raise ValueError(f"no row named {name!r} in {suite}{nearest(name, files)}")
    return _read_row(files[name], suite)


def _read_row(path: Path, suite: str) -> Row:
    raw = read_toml(path)
    where = str(path) if path.parent.parent != CONFIGS else path.stem
    suite = path.parent.name if path.parent.parent == CONFIGS else _text(raw.pop("suite", suite), "suite", where)
    base = _text(raw.pop("base", ""), "base", where)
    shown = {key: _text(raw.pop(key), key, where) for key in SHOWING if key in raw}
    _check_choice(shown.get("table", "main"), TABLES, "table", where)
    _check_choice(shown.get("chosen_by", ""), ("", *SCORES), "chosen_by", where)
    if base:
        if "method" in raw:
            raise ValueError(f"{where}: has both `base` and `method`; a row with a base has its base's method")
        config = load_row(base, suite).config
    else:
        method = raw.pop("method", None)
        if method is None:
            raise ValueError(f"{where}: needs a `method` (see `list`), or the `base` row that it follows")
        if not isinstance(method, str) or (method not in METHODS and ":" not in method):
            came = str(method)
            raise ValueError(
                f"{where}: needs `base`, or a `method` that is known or module:function, got method "
                f"{came!r}{nearest(came, METHODS)}"
            )
        method_of(method, path.parent)  # a module beside the file is found from then on
        config = default_config(method, suite)
    config = updated(config, raw, where=where)
    outside = "" if path.parent.parent == CONFIGS else str(path)
    return Row(path.stem, config, shown.pop("label", path.stem), base=base, path=outside, **shown)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as it stands.

    Raises:
        ValueError: the file is missing or not valid TOML; the message names it.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark of order
    except FileNotFoundError:
        raise ValueError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a TOML file, this is a folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def default_config(method: str, suite: str) -> Config:
    """The method with nothing set but what the suite says for all its rows."""
    known = method_of(method)
    path = folder(suite) / SHARED
    shared = read_toml(path) if path.is_file() else {}
    memory = Config.memory if known.has_memory and known.stores_by_default else 0
    plain = Config(method, suite, memory=memory, augment=known.own_augmentation, options=dict(known.options))
    shared.pop("tune", None)  # how `tune` searches the suite's rows
    fixed = {
        "memory": not (known.has_memory and known.stores_by_default),
        "augment": known.own_augmentation,
    }  # what is not this method's to choose
    usable = {key: value for key, value in shared.items() if not fixed.get(key)}
    return updated(plain, usable, where=f"{suite}/{SHARED}")


def updated(config: Config, changes: Mapping[str, Any], *, where: str) -> Config:
    """The config with some fields set; `options` may be a table, or come as "options.x" keys.

    Raises:
        ValueError: an unknown key (the nearest known one is named), or a value of the wrong type.
    """
    plain = {key: value for key, value in changes.items() if key != "options" and not key.startswith("options.")}
    options = changes.get("options", {})
    if not isinstance(options, Mapping):
        raise ValueError(f"{where}: options must be a table, [options], got {options!r}")
    options = {**options}
    options |= {key.removeprefix("options."): value for key, value in changes.items() if key.startswith("options.")}
    defaults = {key: value for key, value in KEYS.items() if key != "suite"}
    method = method_of(config.method)
    if method.own_augmentation:
        del defaults["augment"]
    if not method.has_memory:
        del defaults["memory"]
    plain = _checked(plain, defaults, where=where)
    for key, known in CHOICES.items():
        if key in plain:
            _check_choice(plain[key], known, key, where)
    options = _checked(options, method.options, where=f"{where}, options of {config.method}")
    return replace(config, **plain, options={**config.options, **options})


def _checked(values: Mapping[str, Any], defaults: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The values with whole numbers made floats where the default is one; refuses what the defaults do not know."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in defaults:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, defaults)}")
        want = type(defaults[key])
        if want is float and type(value) is int:
            value = float(value) if abs(value) < sys.float_info.max else float("inf")
        if want is tuple and isinstance(value, list) and all(type(item) is int for item in value):
            value = tuple(value)
        if type(value) is not want:
            kind = "list of whole numbers" if want is tuple else want.__name__
            raise ValueError(f"{where}: {key} must be a {kind}, got {value!r} ({type(value).__name__})")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, (int, float)) and not 0 <= number < float("inf") for number in numbers):  # nan too
            raise ValueError(f"{where}: {key} must be finite and not negative, got {value!r}")
        checked[key] = value
    return checked


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a str, got {value!r} ({type(value).__name__})")
    return value


def _check_choice(value: str, known: tuple[str, ...], key: str, where: str) -> None:
    if value not in known:
        raise ValueError(f"{where}: {key} must be one of {known}, got {value!r}{nearest(value, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...? Known: ...' for an error message."""
    known = sorted(filter(None, known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known) or 'none'}"


def same_config(stored: Any, config: Config) -> bool:
    """Whether a result's config is this one."""
    return isinstance(stored, dict) and completed(stored) == config.as_dict()


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with what it does not have yet, fields and options, at the defaults."""
    whole = {**plain_defaults(), **stored}
    method = METHODS.get(whole["method"])
    return {**whole, "options": {**(method.options if method else {}), **whole["options"]}}


def plain_defaults() -> dict[str, Any]:
    """The defaults of Config as they stand in a result."""
    return Config(method="").as_dict()


def changes_from_default(config: Config) -> dict[str, Any]:
    """What the config says beyond the defaults of its method in its suite, options nested."""
    default = default_config(config.method, config.suite).as_dict()
    ours = config.as_dict()
    changed = {key: value for key, value in ours.items() if key != "options" and value != default[key]}
    options = {key: value for key, value in ours["options"].items() if value != default["options"][key]}
    return {**changed, **({"options": options} if options else {})}


def write_row(row: Row, comment: str, *, path: Path | None = None) -> Path:
    """Write the row's TOML file, its config reduced to what differs from the defaults; into its suite by default."""
    shown = {"suite": row.config.suite} if path else {}
    shown |= {"method": row.config.method, "label": row.label}
    shown |= {"table": row.table} if row.table != "main" else {}
    shown |= {"note": row.note} if row.note else {}
    shown |= {"chosen_by": row.chosen_by} if row.chosen_by else {}
    changed = changes_from_default(row.config)
    options = changed.pop("options", {})
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"{key} = {toml(value)}" for key, value in {**shown, **changed}.items()]
    if options:
        lines += ["", "[options]"] + [f"{key} = {toml(value)}" for key, value in options.items()]
    path = path or folder(row.config.suite) / f"{row.name}.toml"
    write_text(path, "\n".join(lines) + "\n")
    return path


def toml(value: Any) -> str:
    """One TOML value; a JSON string is a TOML string, a JSON list of numbers a TOML list."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
