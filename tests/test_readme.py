"""The code in README runs as it stands, on digits in MNIST's place (tests never download)."""

import re
from pathlib import Path

import torch.nn.functional as F
from avalanche.benchmarks import class_incremental_benchmark
from conftest import Images, digits

README = Path(__file__).parent.parent / "README.md"


def split_digits(n_experiences):
    (train_x, train_y), (test_x, test_y) = digits(20)
    train, test = (Images(F.interpolate(x, 28), y) for x, y in ((train_x, train_y), (test_x, test_y)))
    return class_incremental_benchmark({"train": train, "test": test}, num_experiences=n_experiences)


def test_the_code_in_the_readme_runs(monkeypatch, capsys):
    monkeypatch.setattr("avalanche.benchmarks.SplitMNIST", split_digits)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    scope = {}
    for block in blocks:
        exec(block, scope)
        strategy, benchmark = scope["strategy"], scope["benchmark"]
        strategy.train(benchmark.train_stream[0])
        results = strategy.eval(benchmark.test_stream)
        assert any(name.startswith("Top1_Acc_Stream") for name in results)
        if strategy.__class__.__name__ == "CSD":
            assert {name.split("/")[0] for name in results} >= {"Recall@1_Stream", "Recall@5_Exp"}
