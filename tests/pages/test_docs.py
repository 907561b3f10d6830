"""The code and the commands on the pages of docs/ run as they stand, on digits in MNIST's place."""

import re
import shlex

import pytest
import torch
from helpers.pages import ROOT, blocks, split_digits

from avalanche_contrastive.bench.cli import make_parser

DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
CARDS = sorted((ROOT / "benchmarks" / "methods").glob("*.md"))  # which pages of docs/methods/ include


@pytest.mark.parametrize("page", [p for p in (*PAGES, *CARDS) if blocks(p, "python")], ids=lambda p: p.stem)
def test_the_code_runs(page, monkeypatch, tmp_path):
    """Blocks of a page follow each other; a marked one has a test of its own (test_readme, test_distributed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avalanche.benchmarks.SplitMNIST", split_digits)
    torch.manual_seed(0)
    scope = {"__name__": "page"}
    for marker, code in blocks(page, "python"):
        if not marker:
            exec(code, scope)
    if strategy := scope.get("strategy"):
        strategy.train(split_digits(5).train_stream[1])


COMMANDS = [
    (page, line)
    for page in PAGES
    for _, code in blocks(page, "bash")
    for line in code.splitlines()
    if re.match(r"(avalanche-contrastive|torchrun .*-m avalanche_contrastive\.bench) ", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line.split("#")[0].strip() for _, line in COMMANDS])
def test_every_command_is_one(page, line):
    words = shlex.split(line, comments=True)
    start = words.index("avalanche_contrastive.bench") if "avalanche_contrastive.bench" in words else 0
    make_parser().parse_args(words[start + 1 :])


def test_no_page_is_left_out():
    """Every page is named by a table of contents, so that a reader finds it."""
    named = set()
    for page in PAGES:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            named |= {(page.parent / line).resolve() for line in tree.splitlines() if line and line[0] != ":"}
    assert {page.with_suffix("").resolve() for page in PAGES} - {(DOCS / "index").resolve()} <= named
