"""A table row is one TOML file that says only what differs from the defaults; unknown keys are refused."""

import difflib
import sys
import tomllib
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from avalanche_contrastive import registry
from avalanche_contrastive._outside import find, first_line, options_of
from avalanche_contrastive.registry import SCORES, Method, Option, read_methods

CONFIGS = Path(__file__).parent / "configs"
AVALANCHE = Path(__file__).parent / "methods" / "avalanche.toml"
# Every method that a row can name; those of the registry come first.
METHODS: Mapping[str, Method] = ChainMap(
    read_methods(AVALANCHE, "avalanche_contrastive.bench.methods"), registry.METHODS
)
SHARED = "_suite.toml"  # in each suite's folder: what all its rows have in common
DEFAULT_SUITE = "split_digits"
# other: Avalanche's further strategies, not tuned; a trial looks into something on validation images.
TABLES = ("main", "other", "ablation", "trial")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "scenario": ("class", "task", "domain"),
    "optimizer": ("sgd", "adam"),
    "schedule": ("constant", "cosine", "steps"),
    "warmup_peak": ("own", "later"),
    "augmentation": ("", "simclr", "pad_crop"),
    "precision": ("fp32", "bf16"),
}
# What decides which images a run sees, and in which order.
STREAM_KEYS = (
    *("stream", "data", "scenario", "experiences", "base_classes", "class_order", "unseen"),
    *("train_images", "test_images", "image_size"),
)
WORD_OR_LIST = ("class_order", "unseen")  # a word, or a list of classes
LIBRARIES = ("torchvision:", "timm:")  # whose networks are known by name
OWN_CODE = ("method", "stream", "network", "augmentation", "metrics")  # which may be "module:function"
SHOWING = ("label", "table", "note", "chosen_by")  # how tables show a row; no part of what decides its numbers


@dataclass(frozen=True)
class Config:
    """Everything but the seed that decides a run's numbers; stored whole in each result.

    Args:
        method: key of METHODS, or "module:function" of a builder of your own.
        suite: folder of configs that the row belongs to; its table.
        stream: key of STREAMS, or "module:function".
        data: for the stream "own": a .npz file, a folder of images, "torchvision:NAME" or "hf:NAME_OR_PATH".
        scenario: "class", "task" (task labels; the task is known in evaluation) or "domain".
        experiences: 0: as many as the stream usually has.
        base_classes: classes of the first experience; 0: all experiences have equally many.
        class_order: "": shuffled by the seed; "natural": 0, 1, 2, ...; or a list of all classes.
        unseen: classes or data that are never trained on, which compatibility is measured on, see ``make_stream``.
        train_images: stratified random subset of the training images (of each domain), 0: all.
        test_images: the same for the test images.
        image_size: of a folder of images: the side that all get; 0: their median, if they differ.
        network: key of NETWORKS, "torchvision:NAME", "timm:NAME", or "module:function"; "": the stream's own.
        memory: stored images, 0 for methods without a memory.
        epochs: passes over each experience.
        epochs_later: passes over each experience after the first; 0: as over the first.
        batch_size: images of the current experience per step.
        drop_last: leave the last batch of an epoch out if it is smaller.
        optimizer: "sgd" or "adam".
        lr: learning rate.
        lr_later: factor on lr from the second experience on.
        lr_by_experience: divide lr by the number of the experience (SS-IL).
        schedule: "constant", "cosine" or "steps", started anew in each experience.
        milestones: epochs after which "steps" multiplies the rate by 0.1.
        warmup_epochs: linear warm-up at the start of each experience.
        warmup_peak: where the first experience's warm-up ends, see ``ExperienceSchedule``: "own" or "later".
        momentum: of SGD.
        weight_decay: of the optimiser.
        reset_optimizer: empty the optimiser's state at each experience.
        augment: augment each training batch; contrastive methods always do it.
        augmentation: "": the stream's own; "simclr" or "pad_crop", or "module:function".
        precision: "fp32", or "bf16": training and evaluation under autocast to bfloat16; weights stay in float32.
        channels_last: filters with their channels last in memory: faster convolutions, the same up to rounding.
        metrics: "module:function" of each further figure, one number from the logits (N, K) and the classes (N,).
        options: what only this method has, complete with its defaults.
    """

    method: str
    suite: str = DEFAULT_SUITE
    stream: str = "split_digits"
    data: str = ""
    scenario: str = "class"
    experiences: int = 0
    base_classes: int = 0
    class_order: str | tuple[int, ...] = ""
    unseen: str | tuple[int, ...] = ""
    train_images: int = 0
    test_images: int = 0
    image_size: int = 0
    network: str = ""
    memory: int = 100
    epochs: int = 20
    epochs_later: int = 0
    batch_size: int = 32
    drop_last: bool = False
    optimizer: str = "sgd"
    lr: float = 0.03
    lr_later: float = 1.0
    lr_by_experience: bool = False
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 0
    warmup_peak: Literal["own", "later"] = "own"
    momentum: float = 0.9
    weight_decay: float = 0.0
    reset_optimizer: bool = False
    augment: bool = False
    augmentation: str = ""
    precision: str = "fp32"
    channels_last: bool = False
    metrics: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The config as it stands in a result."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


STORED_DEFAULTS = Config(method="").as_dict()  # as they stand in a result
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
    modules: str = ""  # the folder where "module:function" is looked for first; "" for rows of the suites
    tune: Any = field(default_factory=dict)  # its table [tune] as it stands: only `tune` reads it

    @property
    def select_by(self) -> str:
        """The validation figure by which `tune` chooses the row's setting, a key of SCORES."""
        return self.chosen_by or self.method.select_by

    @property
    def on_validation(self) -> bool:
        """Whether the row is evaluated on held-out training images instead of the test images."""
        return self.table == "trial"

    @cached_property
    def method(self) -> Method:
        """The method behind the row."""
        return method_of(self.config.method)

    def shown(self) -> dict[str, str]:
        """How tables show the row, as it stands in a result."""
        return {"label": self.label, "table": self.table, "note": self.note, "base": self.base}


def method_of(name: str, folder: Path | None = None) -> Method:
    """The method of that name.

    Args:
        name: a key of METHODS, or "module:function" of a builder of your own. That function takes a `Setting` (of
            `methods.networks`); its keyword-only parameters are the options, with their defaults, and the first line of
            its docstring is what `list` says. It returns an Avalanche strategy or a `Built`. It stores as many images
            as the config's `memory` says, none by default, or ignores that.
        folder: where a module of your own is looked for first: that of the TOML file.

    Raises:
        ValueError: there is no such method, module or function, or a parameter that no config could set.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(f"no method named {name!r}. Known: {', '.join(METHODS)}, or module:function of your own")
    builder = find(name, folder)
    options = options_of(builder, name)
    return Method(name, summary=first_line(builder), read_options=options, stores_by_default=False)


def suites() -> list[str]:
    """Names of the folders of configs."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def folder(suite: str) -> Path:
    """Where the suite's configs are."""
    path = CONFIGS / suite
    if suite not in suites():  # a name, no path
        raise ValueError(f"no suite named {suite!r}{nearest(suite, suites())}")
    return path


def shared_by(suite: str) -> dict[str, Any]:
    """What the rows of a suite have in common; with `rows_of` it has rows of another suite and what they share."""
    path = folder(suite) / SHARED
    own = read_toml(path) if path.is_file() else {}
    return {**shared_by(own["rows_of"]), "rows": None, **own} if "rows_of" in own else own


def row_files(suite: str) -> dict[str, Path]:
    """The suite's TOML files by row name; with `rows_of` those of the other suite, too, or of it only `rows`."""
    shared = shared_by(suite)
    own = {path.stem: path for path in sorted(folder(suite).glob("[!_]*.toml"))}
    others = row_files(shared["rows_of"]) if "rows_of" in shared else {}
    return {**{name: others[name] for name in shared.get("rows") or others}, **own}


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
    if not given.endswith(".toml"):
        return load_row(given, suite)
    path = Path(given)
    return _read_row(path, path.parent.name if path.parent.parent == CONFIGS else suite)


def load_row(name: str, suite: str) -> Row:
    """The row of that name; with `base` it starts from that row's config."""
    files = row_files(suite)
    if name not in files:
        raise ValueError(f"no row named {name!r} in {suite}{nearest(name, files)}")
    return _read_row(files[name], suite)


def _read_row(path: Path, suite: str) -> Row:
    raw = read_toml(path)
    in_suite = path.parent.parent == CONFIGS
    where = path.stem if in_suite else str(path)
    suite = suite if in_suite else _text(raw.pop("suite", suite), "suite", where)
    base = _text(raw.pop("base", ""), "base", where)
    modules = path.parent / _text(raw.pop("modules", ""), "modules", where)
    shown = {key: _text(raw.pop(key), key, where) for key in SHOWING if key in raw}
    _check_choice(shown.get("table", "main"), TABLES, "table", where)
    _check_choice(shown.get("chosen_by", ""), ("", *SCORES), "chosen_by", where)
    tune = raw.pop("tune", {})
    config = _start(raw, base, suite, modules, where)
    config = updated(config, raw, where=where)
    for name in own_code(config).values():
        find(name, modules)  # beside the file, from then on
    places = {} if in_suite else {"path": str(path), "modules": str(modules)}
    return Row(path.stem, config, shown.pop("label", path.stem), base=base, tune=tune, **places, **shown)


def _start(raw: dict[str, Any], base: str, suite: str, modules: Path, where: str) -> Config:
    """What a row begins with: the config of the row that it follows, or its method's defaults."""
    if base:
        if "method" in raw:
            raise ValueError(f"{where}: has both `base` and `method`; a row with a base has its base's method")
        return load_row(base, suite).config
    method = raw.pop("method", None)
    if method is None:
        raise ValueError(f"{where}: needs a `method` (see `list`), or the `base` row that it follows")
    if not isinstance(method, str) or (method not in METHODS and ":" not in method):
        given = str(method)
        raise ValueError(
            f"{where}: needs `base`, or a `method` that is known or module:function, got method "
            f"{given!r}{nearest(given, METHODS)}"
        )
    method_of(method, modules)  # a module beside the file is found from then on
    return default_config(method, suite)


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
    shared = shared_by(suite)
    memory = Config.memory if known.has_memory and known.stores_by_default else 0
    plain = Config(method, suite, memory=memory, augment=known.own_augmentation, options=dict(known.options))
    fixed = {"tune", "rows_of", "rows"}  # how `tune` searches, and where the rows are; below, what the method decides
    fixed |= {"augment"} if known.own_augmentation else set()
    fixed |= set() if known.has_memory and known.stores_by_default else {"memory"}
    usable = {key: value for key, value in shared.items() if key not in fixed}
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
        if key in plain and not (key in OWN_CODE and ":" in plain[key]):
            _check_choice(plain[key], known, key, where)
    options = _checked(options, method.options, where=f"{where}, options of {config.method}")
    return replace(config, **plain, options={**config.options, **options})


def _checked(values: Mapping[str, Any], defaults: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The values, whole numbers as floats where the default is a float; unknown keys are refused."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in defaults:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, defaults)}")
        want = type(defaults[key])
        if want is float and type(value) is int:
            value = float(value) if abs(value) < sys.float_info.max else float("inf")
        if isinstance(value, list) and (want is tuple or key in WORD_OR_LIST):
            value = tuple(value) if all(type(item) is (str if key == "metrics" else int) for item in value) else value
            want = tuple
        if type(value) is not want:
            kind = f"list of {'strings' if key == 'metrics' else 'whole numbers'}" if want is tuple else want.__name__
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
    whole = {**STORED_DEFAULTS, **stored}
    method = METHODS.get(whole["method"])
    return {**whole, "options": {**(method.options if method else {}), **whole["options"]}}


def own_code(config: Config) -> dict[str, str]:
    """Code from outside the package that a config names, "module:function" by key."""
    named = {key: getattr(config, key) for key in OWN_CODE if key != "metrics"}
    named |= {f"metric {name}": name for name in config.metrics}
    return {key: name for key, name in named.items() if ":" in name and not name.startswith(LIBRARIES)}
