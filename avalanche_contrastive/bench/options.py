"""What the options of a method and the keys of a config mean, read from the docstrings in the sources. No torch."""

import ast
import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from avalanche_contrastive._outside import find
from avalanche_contrastive.bench.config import Config
from avalanche_contrastive.registry import Method, docstring

ORIGINS = "in brackets: whether an option is of the paper, of the authors' code, of Avalanche, or ours"
NONE = "not described"


def keys_described() -> dict[str, str]:
    """One sentence for each key of a config."""
    return {key: _first(text) for key, text in arguments(Config.__doc__ or "").items()}


def options_described(method: Method) -> dict[str, str]:
    """One sentence for each option of a method, and in brackets where it is from."""
    found: dict[str, str] = {}
    if method.strategy and ":" not in method.strategy:
        texts = arguments(_docstring_in_avalanche(method.strategy))
        found = {name: f"{_first(text)} [Avalanche]" for name, text in texts.items()}
    own = "yours" if method.read_options is not None else ""
    for place in filter(None, (method.plugin, method.build)):
        texts = arguments(inspect.getdoc(find(place)) or "" if own else docstring(place))
        found |= {name: f"{_first(text)} [{own or _origin(text)}]" for name, text in texts.items()}
    return {name: found.get(name, NONE) for name in method.options}


def arguments(text: str) -> dict[str, str]:
    """What a docstring says of each argument, as Google's style has it or as Sphinx's (``:param name: ...``)."""
    text = inspect.cleandoc(text)
    _, _, section = text.partition("\nArgs:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section.split("\n\n")[0], re.MULTILINE)
    entries += re.findall(r"^ *:param (\w+): ((?:.|\n)*?)(?=^ *:|^ *$|\Z)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in entries}


def _first(text: str) -> str:
    """The first sentence, without its full stop."""
    return re.split(r"(?<!\bEq)(?<!\bi\.e)(?<!\be\.g)\.(?:\s+(?=[A-Z])|$)", text, maxsplit=1)[0]


def _origin(text: str) -> str:
    """Where an option of this package's methods is from, which its description says."""
    found = [origin for origin, word in (("paper", r"\bpaper\b"), ("code", r"\bauthors\b")) if re.search(word, text)]
    return ", ".join(found) or "ours"


@cache
def _docstring_in_avalanche(name: str) -> str:
    """Of a class of avalanche.training and of its constructor, from the source: the import takes seconds."""
    spec = find_spec("avalanche")
    places = spec.submodule_search_locations if spec else None
    for path in sorted(Path(places[0], "training").rglob("*.py")) if places else []:
        source = path.read_text(encoding="utf-8")
        if not re.search(rf"^class {name}\b", source, re.MULTILINE):
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                bodies = [node, *(part for part in node.body if getattr(part, "name", "") == "__init__")]
                return "\n\n".join(ast.get_docstring(part) or "" for part in bodies)  # type: ignore[arg-type]
    return ""


def commented(values: Mapping[str, str], meaning: Mapping[str, str]) -> str:
    """Lines `key = value`, each below a comment that says what it means."""
    return "\n".join(f"# {meaning.get(key, NONE)}\n{key} = {value}" for key, value in values.items())
