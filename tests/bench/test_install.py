"""What a user installs: a wheel built from the source distribution, in an environment that has no checkout."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
HOOK = "import os, sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
SKIPPED = shutil.ignore_patterns(".git", ".venv", "out", "build", "*.egg-info", "__pycache__", ".*_cache")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs setuptools to build"),
]


def call(*command, cwd, **environment):
    plain = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**plain, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked."""
    place = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT, place / "tree", ignore=SKIPPED)
    call(sys.executable, "-c", HOOK, "build_sdist", place / "dist", cwd=place / "tree")
    (archive,) = (place / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-c", HOOK, "build_wheel", folder, cwd=source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of an environment with the wheel, and with this environment's other packages."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    call(sys.executable, "-m", "pip", "--python", place, "install", "--no-deps", "--no-index", wheel, cwd=place)
    # A path in a .pth file is searched, but its own .pth files, such as that of an editable install, are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def test_the_metadata_name_the_project_and_its_pages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(next(name for name in names if name.endswith("METADATA"))))
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL")} >= {"Source", "Documentation"}
    assert "bench" in metadata.get_all("Provides-Extra")
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "avalanche_contrastive").rglob("*.toml")}
    assert configs <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_runner_runs_in_an_empty_folder(installed, tmp_path):
    program = installed / "avalanche-contrastive"
    small = ["--set", "epochs=1", "--set", "train_images=200", "--set", "test_images=100", "--jobs", "1"]
    out = call(program, "run", "co2l", "ssil", "naive", "--seeds", "0", *small, cwd=tmp_path)
    assert "| Co2L (ours) |" in out
    folder = tmp_path / "out" / "split_digits"
    assert {f"{row}-seed0.json" for row in ("co2l", "ssil", "naive")} <= {path.name for path in folder.iterdir()}
    assert '"git_commit": "avalanche-contrastive ' in (folder / "naive-seed0.json").read_text()
    assert "usage: avalanche-contrastive run" in call(program, "run", "--help", cwd=tmp_path)
    module = [installed / "python", "-m", "avalanche_contrastive.bench"]
    assert "usage: python -m avalanche_contrastive.bench" in call(*module, "--help", cwd=tmp_path)
    call(*module, "report", "--results", folder, "--out", tmp_path / "report.html", cwd=tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    where = call(installed / "python", "-c", "import avalanche_contrastive as a; print(a.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_a_method_of_ones_own_is_found_by_the_installed_program(installed, tmp_path):
    (tmp_path / "mine.py").write_text("def mine(s):\n    'Mine.'\n    return s.naive()\n")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.toml").write_text('method = "mine:mine"\nlabel = "Mine"\n')
    small = ["--set", "epochs=1", "--set", "train_images=200", "--set", "test_images=100"]
    program = installed / "avalanche-contrastive"
    out = call(program, "run", "rows/mine.toml", "--seeds", "0-1", "--jobs", "2", *small, cwd=tmp_path)
    assert "| Mine |" in out


def test_a_newcomer_with_photos_a_network_and_a_method(installed, tmp_path):
    """Everything that the guides show, from the wheel: own photos, network and method, tuned, run, compared, shown."""
    for c, name in enumerate(("cat", "dog", "owl", "newt")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            shade = np.random.default_rng(12 * c + i).integers(60 * c, 60 * c + 70, (24, 20 + i % 3, 3), dtype=np.uint8)
            Image.fromarray(shade).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "mine.py").write_text(
        "from avalanche.training.plugins import EWCPlugin\n"
        "from torch import nn\n"
        "def ewc(s, *, strength=1.0):\n    'EWC, mine.'\n    return s.naive(EWCPlugin(ewc_lambda=strength))\n"
        "def small(image_shape):\n    c, h, w = image_shape\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, 16), nn.ReLU())\n"
    )
    (tmp_path / "mine.toml").write_text(
        'method = "mine:ewc"\nlabel = "EWC, mine"\nnetwork = "mine:small"\n'
        '[options]\nstrength = 10.0\n[tune.grid]\n"options.strength" = [1.0, 10.0]\n'
    )

    def program(*words):
        return call(installed / "avalanche-contrastive", *words, cwd=tmp_path)

    short = ["--data", "photos", "--set", "epochs=1", "--jobs", "1"]
    program("tune", "mine.toml", *short, "--candidates", "2", "--seeds", "1000", "--out", "tuned")
    assert (tmp_path / "tuned" / "mine.toml").is_file()
    out = program("run", "mine.toml", "ssil", "csd", "co2l", "naive", *short, "--seeds", "0-1", "--out", "runs")
    assert all(f"| {label}" in out for label in ("EWC, mine", "SS-IL (ours)", "CSD (ours)", "Co2L (ours)", "Naive"))
    assert "2 in runs already" in call_with_errors(installed, "run", "naive", *short, "--out", "runs", cwd=tmp_path)
    program("run", "naive", *short, "--seeds", "0-1", "--out", "again")
    assert "| naive |" in program("compare", "runs", "again")
    for form in ("md", "csv", "latex"):
        assert "EWC, mine" in program("table", "--results", "runs", "--format", form)
    program("export", "--results", "runs", "--out", "runs.csv")
    assert (tmp_path / "runs.csv").read_text().startswith("suite,row,seed,experience,metric,value")
    program("plot", "--results", "runs", "--out", "figures")
    program("report", "--results", "runs", "--out", "report.html")
    assert "EWC, mine" in (tmp_path / "report.html").read_text()
    for words in (["list"], ["list", "--suites"], ["list", "--streams"], ["list", "co2l"], ["--version"]):
        assert program(*words)
    program("speed", "torchmetrics", "--rounds", "1")


def call_with_errors(installed, *words, cwd):
    """What a command says, the lines for the eye alone included."""
    command = [installed / "avalanche-contrastive", *words]
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_source_distribution_has_what_its_tests_need(source):
    tests = [
        "tests/test_package.py",
        "tests/test_registry.py",
        "tests/bench/test_shape.py",
        "tests/bench/test_configs.py",
    ]
    call(sys.executable, "-m", "pytest", "-q", *tests, cwd=source)
    missing = [p for p in (ROOT / "tests").rglob("*.py") if not (source / p.relative_to(ROOT)).is_file()]
    assert not missing
