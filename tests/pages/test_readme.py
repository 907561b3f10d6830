"""The code in README runs as it stands, on digits in MNIST's place (tests never download)."""

import re

import torch
from helpers.readme import PROCESSES, README, split_digits

OWN_METHOD = re.search(r"<!-- own method -->\n```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]
OWN_CONFIG = re.search(r"```toml\n(.*?)```", README.read_text(), flags=re.DOTALL)[1]


def test_the_code_in_the_readme_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avalanche.benchmarks.SplitMNIST", split_digits)
    text = README.read_text().replace(OWN_METHOD, "").replace(PROCESSES, "")  # that one is in test_distributed
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    scope = {}
    for block in blocks:
        exec(block, scope)
        strategy, benchmark = scope["strategy"], scope["benchmark"]
        strategy.train(benchmark.train_stream[0])
        results = strategy.eval(benchmark.test_stream)
        assert any(name.startswith("Top1_Acc_Stream") for name in results)
        if strategy.__class__.__name__ == "CSD":
            assert {name.split("/")[0] for name in results} >= {"Recall@1_Stream", "Recall@5_Exp"}
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["done"] == 1 + len(benchmark.train_stream)  # the block before had trained on one


def test_the_method_of_ones_own_runs(tmp_path, monkeypatch):
    from avalanche_contrastive.bench import cli, files

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` has it
    (tmp_path / "mine.py").write_text(OWN_METHOD.split("```python\n")[1].removesuffix("```"))
    (tmp_path / "mine.toml").write_text(OWN_CONFIG)
    words = ["run", "mine.toml", "--seeds", "0", "--jobs", "1", "--set", "epochs=1", "--set", "train_images=200"]
    assert cli.main(words) == 0
    assert files.read_json(tmp_path / "out" / "split_digits" / "mine-seed0.json")["config"]["options"] == {
        "strength": 10.0
    }


def test_every_command_of_the_readme_is_one(capsys):
    from avalanche_contrastive.bench.cli import make_parser

    commands = re.findall(r"^python -m benchmarks ([a-z].*?)(?:  +#.*)?$", README.read_text(), flags=re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        make_parser().parse_args(command.split())
