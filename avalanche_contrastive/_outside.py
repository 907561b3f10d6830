"""Code of your own that a config names as "module:function": it is found, imported, and its options are read."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from avalanche_contrastive.registry import Option

_own_folders: list[str] = []


def importable(folder: Path) -> None:
    """Look for modules in this folder too, after those named earlier and before all others.

    Worker processes that are spawned get this process's `sys.path`; a task on a cluster is given `own_folders`.
    """
    place = str(folder.expanduser().resolve())
    if place not in _own_folders:
        _own_folders.append(place)
    sys.path[:] = [*_own_folders, *(path for path in sys.path if path not in _own_folders)]
    importlib.invalidate_caches()


def own_folders() -> list[str]:
    """What `importable` was called with in this process."""
    return list(_own_folders)


def find(name: str, folder: Path | None = None) -> Callable[..., Any]:
    """Import the function or class of "module:function".

    Args:
        name: "module:function".
        folder: where the module is looked for first; if it is there, other processes find it too.

    Raises:
        ValueError: no such module or function, one that cannot be imported, or something that cannot be called.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"code of your own is named module:function, got {name!r}")
    beside = _files_of(module, folder) if folder is not None else []
    if folder is not None and beside:
        importable(folder)
    elif module not in sys.modules and _files_of(module, Path()):
        importable(Path())  # which the console script does not have in its path
    home = _imported(name, module, folder)
    file = getattr(home, "__file__", None) or "built in"
    if beside and Path(file).resolve() not in beside:
        raise ValueError(
            f"{name}: {module} is {beside[0]} here, but Python already has {file} by that name. Rename one of them"
        )
    found = getattr(home, function, None)
    if found is None:
        own = [key for key, value in vars(home).items() if inspect.isfunction(value) and value.__module__ == module]
        raise ValueError(f"{name}: {module} has no {function!r}. Its functions: {', '.join(own) or 'none'}")
    if not callable(found):
        raise ValueError(f"{name} must be a function, but it is a {type(found).__name__}")
    called: Callable[..., Any] = found
    return called


def _files_of(module: str, folder: Path) -> list[Path]:
    """Where the module may be in the folder."""
    leaf = folder.joinpath(*module.split("."))
    return [path.resolve() for path in (leaf.with_name(f"{leaf.name}.py"), leaf / "__init__.py") if path.is_file()]


def _imported(name: str, module: str, folder: Path | None) -> ModuleType:
    """The module.

    Raises:
        ValueError: it is not there, or fails as it is imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{name}: {module} imports {error.name}, which is not installed") from error
        beside = "" if folder is None else f"in {folder.resolve()}, "
        raise ValueError(
            f"{name}: there is no module {error.name!r}. Modules are looked for {beside}in the folder that the "
            f"command is run in and among installed packages: is {module.replace('.', '/')}.py there?"
        ) from None
    except (Exception, SystemExit) as error:  # SystemExit: a script without `if __name__ == "__main__":`
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"{name}: {module} cannot be imported: {_place(error)}{type(error).__name__}: {what}"
        ) from error


def _place(error: BaseException) -> str:
    """File and line of the user's code that an import failed at."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    lines = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in frame.filename]
    return f"{lines[0].filename}, line {lines[0].lineno}: " if lines else ""


def first_line(function: Callable[..., Any]) -> str:
    """The first line of the docstring, for `list`."""
    return (inspect.getdoc(function) or "a method of your own").splitlines()[0].removesuffix(".")


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
                f"{name}: parameter {parameter} is not an option; options stand after a *: "
                f"{call}({first.name}, *, {parameter.name}=...)"
            )
        if not isinstance(parameter.default, Option):
            default = "none" if parameter.default is parameter.empty else repr(parameter.default)
            raise ValueError(
                f"{name}: option {parameter.name!r} must have a default that is a bool, int, float or str, so that a "
                f'config can set it, but its default is {default}. (Let 0 or "" stand for none.)'
            )
        options[parameter.name] = parameter.default
    return options
