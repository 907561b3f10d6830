"""The shape of the package: which module may import which, what is exported, hooks that Avalanche knows."""

import ast
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from avalanche.training.plugins import SupervisedPlugin

import avalanche_contrastive
from avalanche_contrastive import checkpoint, losses, metrics, plots
from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, ExperienceSchedule, MethodPlugin, SSILPlugin

ROOT = Path(avalanche_contrastive.__file__).parent
# Each floor imports from the floors before it, and within itself without a circle.
FLOORS = [
    {"registry", "_version", "_launch", "_files", "_archive", "_outside", "_loaders", "_rows"},
    {"_checks", "_kernels", "_datasets", "_random", "_torch", "losses"},
    {"data", "models", "readout", "_passes", "features", "teacher", "tasks"},
    {"plugins", "metrics"},
    {"strategies", "checkpoint", "parallel", "plots", "__init__"},
    {"bench"},
]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(module):
    """The first name below the package: a module or a folder."""
    return module.split(".")[1] if "." in module else "__init__"


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


SOURCES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_run_one_way(module):
    for imported in imports_of(SOURCES[module]):
        if imported.split(".")[0] == ROOT.name and imported != ROOT.name:
            assert floor_of(room_of(imported)) <= floor_of(room_of(module)), imported


def test_no_modules_import_each_other():
    before = {module: {name for name in imports_of(path) if name in SOURCES} for module, path in SOURCES.items()}
    assert list(TopologicalSorter(before).static_order())


@pytest.mark.parametrize("module", SOURCES)
def test_no_module_imports_what_is_private_to_another(module):
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT.name:
            assert not [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]


def test_losses_need_torch_only():
    roots = {module.split(".")[0] for module in imports_of(ROOT / "losses.py")}
    assert roots <= {"torch", "typing", "math", "avalanche_contrastive"}
    ours = {m for m in imports_of(ROOT / "losses.py") if "contrastive" in m}
    assert ours == {f"avalanche_contrastive.{name}" for name in ("_checks", "_kernels")}
    for module in ("_checks", "_kernels"):
        roots = {name.split(".")[0] for name in imports_of(ROOT / f"{module}.py")}
        assert roots <= {"torch", "typing", "math", "collections", "contextlib", "dataclasses", "functools"}


def test_a_loss_costs_no_import_of_avalanche():
    code = "import sys, avalanche_contrastive.losses; sys.exit('avalanche' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Co3L'"):
        _ = avalanche_contrastive.Co3L
    assert set(avalanche_contrastive.__all__) <= set(dir(avalanche_contrastive))


def test_modules_are_attributes_of_the_package():
    code = (
        "import sys, avalanche_contrastive as a; a.losses.asymmetric_supcon; assert 'avalanche' not in sys.modules; "
        "a.metrics.compatibility.compatibility_matrix; a.plots.plot_curves; a.checkpoint.save; a.models; a.readout; "
        "a.parallel; a.data; a.plugins; a.strategies; a.bench; a.features; a.teacher; a.tasks"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "module", [avalanche_contrastive, checkpoint, losses, metrics, plots], ids=lambda m: m.__name__
)
def test_everything_exported_exists_and_is_documented(module):
    for name in module.__all__:
        thing = getattr(module, name)
        assert name == "__version__" or inspect.getdoc(thing), name
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("plugin", [Co2LPlugin, SSILPlugin, CSDPlugin, ExperienceSchedule])
def test_every_hook_is_one_avalanche_knows(plugin):
    hooks = {name for name in dir(plugin) if name.startswith(("before_", "after_"))}
    assert hooks <= set(dir(SupervisedPlugin))
    assert issubclass(plugin, MethodPlugin) == (plugin is not ExperienceSchedule)


@pytest.mark.parametrize("plugin", [Co2LPlugin, SSILPlugin, CSDPlugin, ExperienceSchedule])
def test_every_option_is_described(plugin):
    documented = set(re.findall(r"^    (\w+): ", inspect.getdoc(plugin), flags=re.M))
    assert set(inspect.signature(plugin).parameters) <= documented


def test_version_is_that_of_the_metadata_and_the_changelog():
    changelog = (ROOT.parent / "CHANGELOG.md").read_text()
    assert f"## {avalanche_contrastive.__version__}" in changelog
    assert (ROOT / "py.typed").exists()
