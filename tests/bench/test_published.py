"""Published numbers beside ours: when something counts as reproduced."""

import copy

import numpy as np
import pytest

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.report import comparisons, pages, published

TOML = """
[papers]
"A paper" = "Where it is."
[[experiment]]
paper = "A paper"
source = "Table 1"
data = "Some data"
setting = "memory 50"
figure = "final accuracy"
published = { "near" = [VALUE, 1.0], "far" = [3.0, 1.0], "single" = [VALUE], "elsewhere" = [1.0] }
[[experiment.ours]]
suite = "mine"
same = "SAME"
rows = { "near" = "ours", "far" = "ours", "single" = "ours" }
"""


def verdicts(everything, tmp_path, monkeypatch, *, off=0.0, same="yes"):
    """Of a paper that published our own mean, `off` by so many points."""
    mean = 100 * np.mean([result["final_accuracy"] for result in everything["mine"]["ours"]])
    path = tmp_path / "published.toml"
    path.write_text(TOML.replace("VALUE", f"{mean + off:.6f}").replace("SAME", same))
    monkeypatch.setattr(published, "PUBLISHED", path)
    table = comparisons.published_tables(everything)["A paper"]
    return {row[1]: row for row in table.rows}


def test_reproduced_is_within_two_published_deviations_or_one_point(everything, tmp_path, monkeypatch):
    near = verdicts(everything, tmp_path, monkeypatch, off=0.9)
    assert {method: row[-1] for method, row in near.items()} == {
        "near": "reproduced",
        "far": "not reproduced",
        "single": "reproduced",
        "elsewhere": "not reproduced",
    }
    assert near["elsewhere"][3:] == ("not run", "–", "not reproduced")
    final = [100 * result["final_accuracy"] for result in everything["mine"]["ours"]]
    assert near["near"][3] == f"{np.mean(final):.2f} ± {np.std(final, ddof=1):.2f} (3 seeds, mine/ours)"
    further = verdicts(everything, tmp_path, monkeypatch, off=-1.9)
    assert (further["near"][-1], further["single"][-1]) == ("reproduced", "not reproduced")
    assert verdicts(everything, tmp_path, monkeypatch, off=2.1)["near"][-1] == "not reproduced"


def test_another_setting_reproduces_nothing(everything, tmp_path, monkeypatch):
    row = verdicts(everything, tmp_path, monkeypatch, same="no: two epochs")["near"]
    assert row[-2:] == ("no: two epochs", "not reproduced")


def test_a_published_setting_with_deviations_is_never_simply_reproduced(everything, tmp_path, monkeypatch):
    same = "as published, but: teacher in eval mode"
    found = verdicts(everything, tmp_path, monkeypatch, same=same)
    assert found["near"][-2:] == (same, "reproduced with deviations")
    assert found["far"][-1] == "not reproduced"
    note = comparisons.published_notes([comparisons.published_tables(everything)["A paper"]])
    assert note.endswith("Of 4: 0 reproduced, 2 reproduced with deviations.")


def test_a_row_run_with_other_values_is_of_another_setting(everything, tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs" / "mine").mkdir(parents=True)
    row = tmp_path / "configs" / "mine" / "ours.toml"
    row.write_text('method = "co2l"\nmemory = 50\n')
    stored = copy.deepcopy({"mine": dict(everything["mine"])})
    for result in stored["mine"]["ours"]:
        result["config"] = configs.load_row("ours", "mine").config.as_dict()
    assert verdicts(stored, tmp_path, monkeypatch)["near"][-2:] == ("yes", "reproduced")
    row.write_text('method = "co2l"\nmemory = 50\nepochs = 500\n')
    changed = ("no: run with other values than those of its config file", "not reproduced")
    assert verdicts(stored, tmp_path, monkeypatch)["near"][-2:] == changed


def test_runs_on_validation_images_reproduce_nothing(everything, tmp_path, monkeypatch):
    changed = copy.deepcopy({"mine": dict(everything["mine"])})
    for result in changed["mine"]["ours"]:
        result["evaluated_on"] = "validation"
    assert verdicts(changed, tmp_path, monkeypatch)["near"][3] == "not run"


def test_a_page_of_other_streams_has_no_published_numbers(everything):
    assert comparisons.published_tables(everything) == {}
    assert "Published numbers" not in pages.results_page(everything)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "Table 1"', "", "experiment 1: missing source"),
        ('source = "Table 1"', 'source = ""\nsauce = ""', "unknown key 'sauce'; did you mean 'source'"),
        ('paper = "A paper"', 'paper = "A papper"', "unknown paper 'A papper'; did you mean 'A paper'"),
        ("[3.0, 1.0]", "[3.0, 1.0, 2.0]", r"far must be \[value\] or \[value, std\] in percent"),
        ("SAME", "nearly", 'same must be "yes", or "as published, but: " or "no: " and what differs'),
        ("SAME", "as published", "and what differs, got 'as published'"),
        ('"final accuracy"', '"accuracy"', "no result has a figure 'accuracy'"),
        ('"far" = "ours"', '"fur" = "ours"', "nothing is published of 'fur'; did you mean 'far'"),
        ("[papers]", "[papers", "not valid TOML"),
    ],
)
def test_a_wrong_file_of_published_numbers_is_refused_by_name(old, new, message, tmp_path):
    path = tmp_path / "published.toml"
    path.write_text(TOML.replace(old, new).replace("VALUE", "1.0").replace("SAME", "yes"))
    with pytest.raises(ValueError, match=message):
        published.load_published(path)


def test_the_published_numbers_name_rows_that_exist():
    found = published.load_published()
    assert set(found) == {"Co2L", "SS-IL", "CSD"}
    for _, numbers in found.values():
        for number in numbers:
            assert 0 < number.value < 100
            assert "MEM" not in number.source
            for ours in number.ours:
                assert ours.row in configs.row_files(ours.suite), ours
