"""A builder of the user's own: found by "module:function", its options read from its signature."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

Option = bool | int | float | str


def find_builder(name: str) -> Callable[..., Any]:
    """Import the function of "module:function".

    Raises:
        ValueError: no such module or function, or something that cannot be called.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"a method of your own is named module:function, got {name!r}")
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{name}: {module} imports {error.name}, which is not installed") from error
        raise ValueError(
            f"{name}: there is no module {error.name!r}. Modules are looked for in the folder that "
            f"`python -m benchmarks` is run in and among installed packages: is {module.replace('.', '/')}.py there?"
        ) from None
    builder = getattr(home, function, None)
    if builder is None:
        own = [key for key, value in vars(home).items() if inspect.isfunction(value) and value.__module__ == module]
        raise ValueError(f"{name}: {module} has no {function!r}. Its functions: {', '.join(own) or 'none'}")
    if not callable(builder):
        raise ValueError(f"{name} must be a function that takes a Setting, but it is a {type(builder).__name__}")
    found: Callable[..., Any] = builder
    return found


def first_line(builder: Callable[..., Any]) -> str:
    """What the builder says of itself, for `list`."""
    return (inspect.getdoc(builder) or "a method of your own").splitlines()[0].removesuffix(".")


def options_of(builder: Callable[..., Any], name: str) -> dict[str, Option]:
    """The keyword-only parameters with their defaults.

    Raises:
        ValueError: no parameter for the Setting, or one that no config could set.
    """
    call = f"def {name.partition(':')[2]}"
    first, *others = inspect.signature(builder).parameters.values() or (None,)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise ValueError(f"{name} must take a Setting as its first parameter: {call}(s, *, ...)")
    options: dict[str, Option] = {}
    for parameter in others:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise ValueError(
                f"{name}: parameter {parameter} is no option; options stand after a *: "
                f"{call}({first.name}, *, {parameter.name}=...)"
            )
        if not isinstance(parameter.default, Option):
            came = "none" if parameter.default is parameter.empty else repr(parameter.default)
            raise ValueError(
                f"{name}: option {parameter.name!r} must have a default that is a bool, int, float or str, so that a "
                f'config can set it, but its default is {came}. (Let 0 or "" stand for none.)'
            )
        options[parameter.name] = parameter.default
    return options
