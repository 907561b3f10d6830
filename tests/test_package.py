"""The shape of the package: which module may import which, what is exported, hooks that Avalanche knows."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from avalanche.training.plugins import SupervisedPlugin

import avalanche_contrastive
from avalanche_contrastive import checkpoint, losses, metrics, plots
from avalanche_contrastive.plugins import Co2LPlugin, CSDPlugin, ExperienceSchedule, MethodPlugin, SSILPlugin

ROOT = Path(avalanche_contrastive.__file__).parent
ALLOWED = {
    "_version": set(),
    "files": set(),
    "losses": set(),
    "data": set(),
    "models": {"losses"},
    "features": {"models"},
    "heads": {"losses", "models"},
    "launch": set(),
    "collectives": set(),
    "metrics": {"features", "losses", "models", "metrics"},
    "plots": set(),
    "plugins": {"features", "losses", "models", "heads", "data", "plugins", "distributed"},
    "sharding": {"collectives", "models"},
    "distributed": {"collectives", "launch", "losses", "models", "sharding"},
    "strategies": {"plugins"},
    "__init__": {"_version", "data", "models", "heads", "plugins", "strategies"},
    "checkpoint": {"_version", "collectives", "files", "models", "checkpoint"},
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = {m.split(".")[1] for m in imports_of(path) if m.startswith("avalanche_contrastive.")}
    assert ours <= ALLOWED[room]


def test_losses_need_torch_only():
    roots = {module.split(".")[0] for module in imports_of(ROOT / "losses.py")}
    assert roots <= {"torch", "typing", "math"}


def test_a_loss_costs_no_import_of_avalanche():
    code = "import sys, avalanche_contrastive.losses; sys.exit('avalanche' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Co3L'"):
        _ = avalanche_contrastive.Co3L
    assert set(avalanche_contrastive.__all__) <= set(dir(avalanche_contrastive))


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
