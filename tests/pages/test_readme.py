"""README: its code and commands run as they stand, its links lead somewhere, and it stays short."""

import re

import pytest
from helpers.pages import ROOT, blocks, marked, split_digits

from avalanche_contrastive.bench import cli, files
from avalanche_contrastive.bench.cli import make_parser

README = ROOT / "README.md"


def test_the_code_in_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avalanche.benchmarks.SplitMNIST", split_digits)
    ((_, code),) = blocks(README, "python")
    scope = {}
    exec(code, scope)
    results = scope["strategy"].eval(scope["benchmark"].test_stream)
    assert any(name.startswith("Top1_Acc_Stream") for name in results)


def test_the_method_of_ones_own_runs(tmp_path, monkeypatch):
    page = "docs/guides/method.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` has it
    (tmp_path / "mine.py").write_text(marked(page, "own method"))
    ((_, config),) = blocks(ROOT / page, "toml")
    (tmp_path / "mine.toml").write_text(config)
    words = ["run", "mine.toml", "--seeds", "0", "--jobs", "1", "--set", "epochs=1", "--set", "train_images=200"]
    assert cli.main(words) == 0
    assert files.read_json(tmp_path / "out" / "split_digits" / "mine-seed0.json")["config"]["options"] == {
        "strength": 10.0
    }


COMMANDS = re.findall(r"^avalanche-contrastive ([a-z].*?)(?:  +#.*)?$", README.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_one(command):
    make_parser().parse_args(command.split())


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    here = [target for target in targets if not target.startswith("https://")]
    assert len(here) >= 15
    assert [target for target in here if not (ROOT / target.split("#")[0]).exists()] == []


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 8 * 1024
