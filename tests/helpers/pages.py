"""Code on the pages that several tests need, and digits in MNIST's place."""

import re
from pathlib import Path

import torch.nn.functional as F
from avalanche.benchmarks import class_incremental_benchmark

from helpers.streams import Images, digits

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- [a-z ]+ -->\n)?```([^\n`]*)\n(.*?)```", flags=re.DOTALL)


def blocks(page, language):
    """(marker, code) of a page's blocks in a language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(marker.strip("<!- >\n"), code) for marker, kind, code in found if kind == language]


def marked(page, marker, language="python"):
    """The code of a page's block under a marker, <!-- marker -->."""
    (code,) = [code for found, code in blocks(ROOT / page, language) if found == marker]
    return code


def split_digits(n_experiences):
    """Split-MNIST, but with scikit-learn's digits: tests never download."""
    (train_x, train_y), (test_x, test_y) = digits(20)
    train, test = (Images(F.interpolate(x, 28), y) for x, y in ((train_x, train_y), (test_x, test_y)))
    return class_incremental_benchmark({"train": train, "test": test}, num_experiences=n_experiences)
