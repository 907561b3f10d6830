"""The methods of this package, in one place: plugin, strategy, card, and what the runner has to know of each.

Classes are named as "module:name", and their options are read from the source of their signatures, so that a list or a
table of methods costs no import of torch and Avalanche. To add a method, add an entry to `METHODS`.
"""

import ast
import importlib
import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

__all__ = ["METHODS", "Method", "Option", "Parameter", "docstring", "load", "parameters_of", "read_methods"]

Option = bool | int | float | str
Grid = Mapping[str, tuple[Option, ...]]

SCENARIOS = ("class", "task", "domain")
SCORES = {"accuracy": "final accuracy", "recall": "final Recall@1"}  # what `tune` can choose by
NOT_OPTIONS = ("mem_size",)  # a config calls it `memory`, as for every method with a memory
PLAIN = {"bool": bool, "int": int, "float": float, "str": str}

# What `tune` draws candidates from. The epochs are the same for all methods.
RATES = (0.01, 0.03, 0.1)
LATER = (0.3, 1.0)
EPOCHS = (10, 20, 30)
CONTRASTIVE: Grid = {"lr": RATES, "epochs": EPOCHS, "lr_later": LATER}
COMMON: Grid = {"lr": RATES, "epochs": EPOCHS, "augment": (False, True), "lr_later": LATER}


@dataclass(frozen=True)
class Parameter:
    """A keyword with a plain value.

    Args:
        kind: bool, int, float or str.
        default: as a config says it; TOML has no "none", so None becomes 0, 0.0 or "".
        optional: whether None is allowed; then 0, 0.0 and "" stand for it.
    """

    kind: type
    default: Option
    optional: bool


@dataclass(frozen=True)
class Method:
    """One method as the runner knows it.

    Args:
        build: "module:function"; the function takes a `Setting` and the options as keywords, and returns a `Built` or
            an Avalanche strategy (both classes are in avalanche_contrastive.bench.methods.networks).
        strategy: "module:class" of this package, or the name of the class in avalanche.training.supervised or
            avalanche.training.plugins.
        plugin: "module:class"; the options of its constructor are options of the method.
        card: path of the method's card in a checkout.
        summary: one line for `list`; "" takes the first line of the builder's docstring.
        grid: what `tune` tries. Plain names are fields of Config, "options.x" is option x.
        has_memory: False for methods that store no image.
        stores_by_default: False where the config decides whether images are stored: by its `memory`, else 0.
        own_augmentation: True for contrastive methods, which always augment; `augment` is then not an option.
        select_by: the validation figure by which `tune` chooses, a key of SCORES.
        scenarios: the kinds of streams that it runs on.
        why_not: why it does not run on the others, to follow "does not run on ...-incremental streams: ".
        alone: why several processes cannot train it together; "" where they can.
        fp32_only: why it cannot be trained in bfloat16; "" where it can.
        read_options: the options, where they cannot be read from the source.
    """

    build: str
    strategy: str = ""
    plugin: str = ""
    card: str = ""
    summary: str = ""
    grid: Grid = field(default_factory=lambda: COMMON)
    has_memory: bool = True
    stores_by_default: bool = True
    own_augmentation: bool = False
    select_by: str = "accuracy"
    scenarios: tuple[str, ...] = SCENARIOS
    why_not: str = ""
    alone: str = ""
    fp32_only: str = ""
    read_options: Mapping[str, Option] | None = None

    @cached_property
    def about(self) -> str:
        """One line."""
        return self.summary or docstring(self.build).partition("\n")[0].removesuffix(".")

    @cached_property
    def options(self) -> dict[str, Option]:
        """Every option that a config may set, with its default: the plugin's and the builder's."""
        if self.read_options is not None:
            return dict(self.read_options)
        found = {**(parameters_of(self.plugin) if self.plugin else {}), **parameters_of(self.build)}
        return {name: parameter.default for name, parameter in found.items() if name not in NOT_OPTIONS}

    def keywords(self, options: Mapping[str, Option]) -> dict[str, Any]:
        """The options that are the plugin's own, as its constructor takes them: None where a config says 0 or ""."""
        own = parameters_of(self.plugin)
        if unknown := [name for name in options if name not in own]:
            raise TypeError(f"{self.plugin} has no option {unknown[0]!r}. Its options: {', '.join(own)}")
        return {name: None if own[name].optional and not value else value for name, value in options.items()}


_PLUGINS = "avalanche_contrastive.plugins"
_STRATEGIES = "avalanche_contrastive.strategies"
_BUILDERS = "avalanche_contrastive.bench.methods.ours"

METHODS: dict[str, Method] = {
    "co2l": Method(
        f"{_BUILDERS}:co2l",
        f"{_STRATEGIES}:Co2L",
        f"{_PLUGINS}.co2l:Co2LPlugin",
        "benchmarks/methods/co2l.md",
        "contrastive continual learning: asymmetric SupCon, relation distillation, refitted read-out",
        grid={
            **CONTRASTIVE,
            "batch_size": (32, 64),
            "options.temperature": (0.1, 0.2, 0.5),
            "options.weight": (0.3, 1.0, 3.0),
            "options.readout_lr": (0.1, 0.3, 1.0),
        },
        own_augmentation=True,
    ),
    "ssil": Method(
        f"{_BUILDERS}:ssil",
        f"{_STRATEGIES}:SSIL",
        f"{_PLUGINS}.ssil:SSILPlugin",
        "benchmarks/methods/ssil.md",
        "separated softmax, task-wise distillation, fixed number of replay rows per step",
        grid={**COMMON, "options.batch_size_mem": (8, 16, 32), "options.weight": (0.1, 0.3, 1.0)},
    ),
    "csd": Method(
        f"{_BUILDERS}:csd",
        f"{_STRATEGIES}:CSD",
        f"{_PLUGINS}.csd:CSDPlugin",
        "benchmarks/methods/csd.md",
        "contrastive supervised distillation for retrieval, without a memory",
        grid={**COMMON, "options.weight": (1.0, 3.0), "options.triplet_weight": (0.3, 1.0)},
        has_memory=False,
        select_by="recall",
    ),
}


def read_methods(path: Path, package: str) -> dict[str, Method]:
    """Methods from a TOML file, by name.

    Args:
        path: the file; its head says what is in it.
        package: of the modules that build them.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    reasons, found = content["reasons"], {}
    for name, facts in content["methods"].items():
        grid = {key: tuple(values) for key, values in facts.pop("grid", {}).items()}
        facts["grid"] = grid if facts.pop("grid_alone", False) else {**COMMON, **grid}
        facts |= {key: reasons.get(facts[key], facts[key]) for key in ("alone", "why_not", "fp32_only") if key in facts}
        facts["scenarios"] = tuple(facts.get("scenarios", SCENARIOS))
        found[name] = Method(f"{package}.{facts.pop('module', 'baselines')}:{name}", **facts)
    return found


def load(name: str) -> Any:
    """What "module:name" names, imported."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@cache
def parameters_of(name: str) -> dict[str, Parameter]:
    """The keywords with plain values of a class's constructor or a function, read from its source.

    A keyword has a plain value where its annotation says bool, int, float, str or Literal, alone or with None.

    Args:
        name: "module:name".
    """
    definition = _definition(name)
    if isinstance(definition, ast.ClassDef):
        definition = next(node for node in definition.body if getattr(node, "name", "") == "__init__")  # type: ignore[assignment]
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    pairs = [*zip(positional, arguments.defaults, strict=True)]
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    found = {argument.arg: _parameter(argument, default) for argument, default in pairs}
    return {name: parameter for name, parameter in found.items() if parameter is not None}


def _parameter(argument: ast.arg, default: ast.expr) -> Parameter | None:
    parts = ast.unparse(argument.annotation).split(" | ") if argument.annotation else []
    kinds = ["str" if part.startswith("Literal[") else part for part in parts if part != "None"]
    if len(kinds) != 1 or kinds[0] not in PLAIN:
        return None
    kind, value = PLAIN[kinds[0]], ast.literal_eval(default)
    return Parameter(kind, kind() if value is None else kind(value), "None" in parts)


def docstring(name: str) -> str:
    """Of a class or function, read from its source; "" where it has none.

    Args:
        name: "module:name".
    """
    return ast.get_docstring(_definition(name)) or ""


def _definition(name: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function in its source.

    Raises:
        ValueError: it is not there.
    """
    module, _, wanted = name.partition(":")
    for node in _tree(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == wanted:
            return node
    raise ValueError(f"{name}: {module} defines no class or function {wanted!r}")


@cache
def _tree(module: str) -> ast.Module:
    # Only the outermost package is imported: the ones inside may need torch.
    outermost, *inner = module.split(".")
    spec = importlib.util.find_spec(outermost)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no package {outermost!r}")
    path = Path(spec.origin).parent.joinpath(*inner).with_suffix(".py") if inner else Path(spec.origin)
    return ast.parse(path.read_text(encoding="utf-8"))
