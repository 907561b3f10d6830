"""Results that look like those of runs, and a reader of the HTML report."""

from html.parser import HTMLParser

import numpy as np

from avalanche_contrastive.bench import files
from avalanche_contrastive.bench.config import Config
from avalanche_contrastive.bench.report import stats

VOID = {"meta", "img", "br", "link", "hr", "input"}
HOSTILE = '<script>alert("x")</script> | $y$ & *z* </svg></style>'


def made(row, seed, *, suite="mine", method="replay", memory=0, size=3, shift=0.0, table="main", **more):
    """A result as `run` writes it, its accuracies made from the seed and `shift`."""
    steps = 1 if method == "joint" else size
    drawn = np.random.default_rng([seed, *row.encode()]).uniform(0.5, 0.7, size=(steps, size)) + shift
    matrix = drawn.round(4).tolist()
    seen = stats.seen_accuracy(matrix, [10] * size)
    config = Config(method, suite, memory=memory, **more.pop("config", {}))
    return {
        "row": row,
        "shown": {"label": row.title(), "table": table, "note": "", "base": ""} | more.pop("shown", {}),
        "config": config.as_dict(),
        "seed": seed,
        "evaluated_on": "test",
        "stream": f"{suite}: a made-up stream",
        "class_order": np.random.default_rng(seed).permutation(2 * size).tolist(),
        "readout": "linear head",
        "test_images": [10] * size,
        "accuracy_matrix": matrix,
        "task_accuracy_matrix": [[1.0] * size] * steps,
        "recall_matrix": matrix,
        "recall_at_1": [sum(line) / size for line in matrix],
        "seen_accuracy": seen,
        "final_accuracy": seen[-1],
        "average_accuracy": stats.average_incremental_accuracy(matrix, [10] * size),
        "final_task_accuracy": 1.0,
        "learning_accuracy": stats.learning_accuracy(matrix),
        "forgetting": stats.forgetting(matrix),
        "backward_transfer": stats.backward_transfer(matrix),
        "recall_forgetting": stats.forgetting(matrix),
        "seconds_per_experience": {"training": [1.0 + seed] * steps, "evaluation": [0.5] * steps},
        "peak_memory_mib": [500.0 + step for step in range(steps)],
        "peak_memory_of": "resident memory of the process",
        "seconds_training": 6.0 + seed,
        "seconds_total": 8.0 + seed,
        "device": "cpu (x86_64), 1 thread",
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        **more,
    }


def saved(folder, *found):
    """Write results where `run` writes them."""
    for result in found:
        path = folder / result["config"]["suite"] / f"{result['row']}-seed{result['seed']}.json"
        files.write_json(path, result)


class Reader(HTMLParser):
    """What a browser would make of a page: open tags, attributes, the words outside of tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words, self.problems = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at line {self.getpos()[0]}")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
