"""Made-up results that the tests of tables, figures, pages and the report share."""

import pytest
from helpers.results import HOSTILE, made, saved

from avalanche_contrastive.bench import results


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Two suites: one with a single memory and a hostile label, one with two memories and twenty experiences."""
    folder = tmp_path_factory.mktemp("results")
    for seed in (0, 1, 2):
        mine = [
            made("ours", seed, method="co2l", memory=50, shift=0.1),
            made("finder", seed, method="csd"),
            made("replay", seed, memory=50, shown={"label": HOSTILE, "note": "A note with `code`."}),
            made("naive", seed, method="naive", shift=-0.3),
            made("all", seed, method="joint", shift=0.2),
            made("less", seed, method="co2l", memory=50, table="ablation", shown={"base": "ours"}, config={"lr": 0.5}),
        ]
        twenty = [
            made(name, seed, suite="twenty", size=20, method=method, memory=memory, shown={"label": label})
            for name, method, memory, label in (
                ("ours_20", "co2l", 20, "Ours"),
                ("ours_80", "co2l", 80, "Ours"),
                ("replay_20", "replay", 20, "Replay"),
                ("replay_80", "replay", 80, "Replay"),
                ("naive", "naive", 0, "Naive"),
            )
        ]
        saved(folder, *mine, *twenty)
    return folder


@pytest.fixture(scope="session")
def everything(root):
    """The results of both suites."""
    return results.load_all(root)
