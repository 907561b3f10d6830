"""The script of README for several processes, and digits in MNIST's place."""

import re
from pathlib import Path

import torch.nn.functional as F
from avalanche.benchmarks import class_incremental_benchmark

from helpers.streams import Images, digits

README = Path(__file__).parents[2] / "README.md"
PROCESSES = re.search(r"<!-- several processes -->\n```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]


def split_digits(n_experiences):
    (train_x, train_y), (test_x, test_y) = digits(20)
    train, test = (Images(F.interpolate(x, 28), y) for x, y in ((train_x, train_y), (test_x, test_y)))
    return class_incremental_benchmark({"train": train, "test": test}, num_experiences=n_experiences)
