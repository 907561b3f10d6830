"""Every command of README and of the guides, run in their order in one folder, on small data and for one epoch."""

import contextlib
import importlib.util
import io
import re
import shlex

import numpy as np
import pytest
from helpers.pages import ROOT, blocks, marked
from PIL import Image

from avalanche_contrastive.bench import cli

PAGES = [ROOT / "README.md", *(ROOT / "docs" / "guides" / f"{name}.md" for name in ("data", "method", "network"))]
PAGES += [ROOT / "docs" / "guides" / f"{name}.md" for name in ("runner", "tables")]
LINES = list(
    dict.fromkeys(
        line.split("  #")[0].strip()
        for page in PAGES
        for language in ("", "bash")
        for _, code in blocks(page, language)
        for line in code.splitlines()
        if line.startswith("avalanche-contrastive ")
    )
)
ELSEWHERE = ("--on slurm", "cuda:1")  # tests/bench/test_cluster.py; no GPU here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="needs the extra `frozen`"
    ),
]


def images(classes, of_each, size, channels=3):
    """Images of one shade for each class, and their labels."""
    y = np.arange(classes * of_each) % classes
    shade = (y * 200 // classes).astype(np.uint8)
    x = np.broadcast_to(shade[:, None, None, None], (len(y), size, size, channels)).copy()
    return (x if channels > 1 else x[..., 0]), y


def save_npz(path, classes, of_each, size, channels=3):
    x, y = images(classes, of_each, size, channels)
    np.savez(path, train_images=x, train_labels=y, test_images=x[: 2 * classes], test_labels=y[: 2 * classes])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages take for granted: photos, own modules, data sets that are there already, committed results."""
    place = tmp_path_factory.mktemp("newcomer")
    save_npz(place / "cells.npz", 4, 10, 24)
    (place / "data").mkdir()
    save_npz(place / "data" / "cifar100.npz", 100, 6, 32)
    save_npz(place / "data" / "mnist.npz", 10, 30, 28, channels=1)
    for x, label in zip(*images(4, 10, 24), strict=True):
        shelf = place / "photos" / "abcd"[label]
        shelf.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(shelf / f"{len(list(shelf.iterdir()))}.png")
    (place / "mine.py").write_text(marked("docs/guides/method.md", "own method"))
    (place / "nets.py").write_text(marked("docs/guides/network.md", "own network"))
    ((_, config),) = blocks(ROOT / "docs" / "guides" / "method.md", "toml")
    (place / "mine.toml").write_text(config)
    (place / "benchmarks").symlink_to(ROOT / "benchmarks")
    return place


def shortened(words):
    """The same command for two rows, one seed and one epoch, on data that are there."""
    if words[0] not in ("run", "tune"):
        return words
    words = [re.sub(r"^(\d+)-\d+$", r"\1", word) for word in words]
    if words[1].startswith("--"):
        words[1:1] = ["naive", "ssil"]
    if any(name in word for word in words for name in ("cifar100", "mnist")):
        words += ["--root", "data"]
    words += ["--candidates", "2"] if words[0] == "tune" else ["--seeds", "0"]
    return [*words, "--set", "epochs=1", "--jobs", "1"]


@pytest.mark.parametrize("line", LINES)
def test_the_command_does_what_the_page_says(line, folder, monkeypatch):
    if any(part in line for part in ELSEWHERE):
        pytest.skip("needs a cluster or a GPU")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(shortened(shlex.split(line)[1:]))
    assert code == 0, said.getvalue()[-3000:]
