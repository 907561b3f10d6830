"""The shape of the runner: how deep its imports go, how large its files are, and how far a config travels."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from avalanche_contrastive import bench

ROOM = Path(bench.__file__).parent
MODULES = {
    ".".join(("avalanche_contrastive.bench", *path.relative_to(ROOM).with_suffix("").parts)): path
    for path in sorted(ROOM.rglob("*.py"))
    if path.name != "__init__.py"
}
MOST_LEVELS = 6
MOST_LINES = 11_831


def imports_of(path):
    """The runner's modules that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & set(MODULES)
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & set(MODULES)


def test_imports_are_at_most_six_levels_deep_and_have_no_circle():
    graph = {module: set(imports_of(path)) for module, path in MODULES.items()}
    levels = {}
    for module in TopologicalSorter(graph).static_order():  # raises for a circle
        levels[module] = 1 + max((levels[imported] for imported in graph[module]), default=0)
    deepest = sorted(levels, key=levels.get)[-3:]
    assert max(levels.values()) <= MOST_LEVELS, deepest


def test_the_runner_stays_small():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert max(lines.values()) <= 400, max(lines, key=lines.get)
    assert sum(lines.values()) <= MOST_LINES


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_long(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


WALK = """
import json, sys
from pathlib import Path
from avalanche_contrastive import bench
from avalanche_contrastive.bench import cli
from avalanche_contrastive.bench.config import Config, Row
from avalanche_contrastive.bench.methods.networks import Setting
from avalanche_contrastive.bench.run.job import Job

ROOM, visited = str(Path(bench.__file__).parent), []

def note(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(ROOM):
        return
    given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
    if any(isinstance(value, (Config, Row, Setting, Job)) for value in given):
        visited.append(str(Path(code.co_filename).relative_to(ROOM)))

sys.setprofile(note)
words = ["run", "ssil", "--seeds", "0", "--jobs", "1", "--out", sys.argv[1]]
code = cli.main([*words, *"--set epochs=1 --set train_images=100 --set test_images=100".split()])
sys.setprofile(None)
Path(sys.argv[1], "visited.json").write_text(json.dumps(visited))
sys.exit(code)
"""


def test_a_config_walks_through_few_modules(tmp_path):
    """From the row's TOML file to the result's JSON, counted in one run by the functions that are given it."""
    subprocess.run([sys.executable, "-c", WALK, str(tmp_path)], check=True, capture_output=True)
    visited = json.loads((tmp_path / "visited.json").read_text())
    walked = [module for module in visited if not module.startswith("report/")]  # the tables come after the JSON
    assert len(set(walked)) <= 12, sorted(set(walked))
    assert (tmp_path / "ssil-seed0.json").is_file()
