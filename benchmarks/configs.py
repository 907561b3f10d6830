"""A table row is one TOML file that says only what differs from the defaults; unknown keys are refused."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.catalog import METHODS, SCORES, Method, Option
from benchmarks.files import write_text

CONFIGS = Path(__file__).parent / "configs"
TABLES = ("main", "ablation", "trial")  # a trial looks into something on validation images


@dataclass(frozen=True)
class Config:
    """Everything but the seed that decides a run's numbers; stored whole in each result.

    Args:
        method: key of METHODS.
        suite: the stream.
        memory: stored images, 0 for methods without a memory.
        epochs: passes over each experience.
        batch_size: images of the current experience per step.
        lr: learning rate of SGD.
        lr_later: factor on lr from the second experience on.
        momentum: of SGD.
        weight_decay: of SGD.
        augment: random crop and rotation of each training batch; contrastive methods always do it.
        options: what only this method has, complete with its defaults.
    """

    method: str
    suite: str = "split_digits"
    memory: int = 100
    epochs: int = 20
    batch_size: int = 32
    lr: float = 0.03
    lr_later: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The config as it stands in a result."""
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """A named config and how tables show it; the showing is no part of a result, so a better label needs no new run."""

    name: str
    config: Config
    label: str
    table: str = "main"
    note: str = ""
    base: str = ""
    chosen_by: str = ""

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
        return METHODS[self.config.method]


def default_config(method: str) -> Config:
    """The method with no option set."""
    known = METHODS[method]
    memory = Config.memory if known.has_memory else 0
    return Config(method, memory=memory, augment=known.own_augmentation, options=dict(known.options))


def row_names(suite: str) -> list[str]:
    """Names of the suite's rows: main rows first, in the order of METHODS, then ablations, then trials."""
    names = [path.stem for path in folder(suite).glob("*.toml")]
    order = list(METHODS)

    def key(name: str) -> tuple[int, int, str]:
        row = load_row(name, suite)
        return TABLES.index(row.table), order.index(row.config.method), name

    return sorted(names, key=key)


def folder(suite: str) -> Path:
    """Where the suite's configs are."""
    path = CONFIGS / suite
    if not path.is_dir():
        raise ValueError(f"no suite named {suite!r}{nearest(suite, (p.name for p in CONFIGS.iterdir()))}")
    return path


def read_raw(name: str, suite: str) -> dict[str, Any]:
    """The TOML file of a row as it stands, without its base."""
    path = folder(suite) / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"no row named {name!r} in {suite}{nearest(name, (p.stem for p in path.parent.glob('*.toml')))}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def load_row(name: str, suite: str) -> Row:
    """Read a row; with `base` it starts from that row's config.

    Raises:
        ValueError: the row, its base, its method or a key in it is unknown, or a value has the wrong type.
    """
    raw = read_raw(name, suite)
    base = raw.pop("base", "")
    shown = {key: raw.pop(key) for key in ("label", "table", "note", "chosen_by") if key in raw}
    if shown.get("table", "main") not in TABLES:
        raise ValueError(f"{name}: table must be one of {TABLES}, got {shown['table']!r}")
    if shown.get("chosen_by", "") not in ("", *SCORES):
        raise ValueError(f"{name}: chosen_by must be one of {tuple(SCORES)}, got {shown['chosen_by']!r}")
    if base:
        config = load_row(base, suite).config
    elif raw.get("method") in METHODS:
        config = replace(default_config(raw["method"]), suite=suite)
    else:
        came = str(raw.get("method"))
        raise ValueError(f"{name}: needs `base` or a known `method`, got method {came!r}{nearest(came, METHODS)}")
    raw.pop("method", None)
    return Row(name, updated(config, raw, where=name), shown.pop("label", name), base=base, **shown)


def updated(config: Config, changes: Mapping[str, Any], *, where: str) -> Config:
    """The config with some fields set; `options` may be a table, or come as "options.x" keys.

    Raises:
        ValueError: an unknown key (the nearest known one is named), or a value of the wrong type.
    """
    plain = {key: value for key, value in changes.items() if key != "options" and not key.startswith("options.")}
    options = dict(changes.get("options", {}))
    options |= {key.removeprefix("options."): value for key, value in changes.items() if key.startswith("options.")}
    defaults = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("method", "suite", "options")}
    method = METHODS[config.method]
    if method.own_augmentation:
        del defaults["augment"]
    if not method.has_memory:
        del defaults["memory"]
    plain = _checked(plain, defaults, where=where)
    options = _checked(options, method.options, where=f"{where}, options of {config.method}")
    return replace(config, **plain, options={**config.options, **options})


def _checked(values: Mapping[str, Any], defaults: Mapping[str, Option], *, where: str) -> dict[str, Any]:
    """The values with whole numbers made floats where the default is one; refuses what the defaults do not know."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in defaults:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, defaults)}")
        want = type(defaults[key])
        if want is float and type(value) is int:
            value = float(value)
        if type(value) is not want:
            raise ValueError(f"{where}: {key} must be a {want.__name__}, got {value!r} ({type(value).__name__})")
        if isinstance(value, (int, float)) and value < 0:
            raise ValueError(f"{where}: {key} must not be negative, got {value!r}")
        checked[key] = value
    return checked


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...? Known: ...' for an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known) or 'none'}"


def changes_from_default(config: Config) -> dict[str, Any]:
    """What the config says beyond the defaults of its method, options nested."""
    default = default_config(config.method).as_dict()
    ours = config.as_dict()
    changed = {key: value for key, value in ours.items() if key != "options" and value != default[key]}
    options = {key: value for key, value in ours["options"].items() if value != default["options"][key]}
    return {**changed, **({"options": options} if options else {})}


def write_row(row: Row, comment: str) -> Path:
    """Write the row's TOML file, its config reduced to what differs from the defaults."""
    shown = {"method": row.config.method, "label": row.label}
    shown |= {"table": row.table} if row.table != "main" else {}
    shown |= {"note": row.note} if row.note else {}
    shown |= {"chosen_by": row.chosen_by} if row.chosen_by else {}
    changed = changes_from_default(row.config)
    changed.pop("suite", None)
    options = changed.pop("options", {})
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"{key} = {_toml(value)}" for key, value in {**shown, **changed}.items()]
    if options:
        lines += ["", "[options]"] + [f"{key} = {_toml(value)}" for key, value in options.items()]
    path = folder(row.config.suite) / f"{row.name}.toml"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _toml(value: Option) -> str:
    """One TOML value; a JSON string is a TOML string."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else repr(value)
