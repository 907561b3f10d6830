"""Tables, figures, pages and the HTML report: from made-up results on disk to what a reader gets."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.results import Reader, made

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench import files, results
from avalanche_contrastive.bench.config import Config
from avalanche_contrastive.bench.report import cells, comparisons, plots, published, stats, tables
from avalanche_contrastive.bench.report import html as report

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script> | $y$ & *z*'
VOID = {"meta", "img", "br", "link", "hr"}


def saved(folder, *found):
    """Write results where `run` writes them."""
    for result in found:
        path = folder / result["config"]["suite"] / f"{result['row']}-seed{result['seed']}.json"
        files.write_json(path, result)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def everything(root):
    return results.load_all(root)


@pytest.fixture(scope="module")
def page(everything):
    return report.report_page(everything)


def test_the_report_is_sound_html(page):
    reader = Reader(page)
    assert not reader.problems
    assert not reader.open
    ids = [attrs["id"] for _, attrs in reader.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in reader.seen if tag == "a"]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(attrs["alt"] for tag, attrs in reader.seen if tag == "img")


def test_the_report_needs_nothing_from_elsewhere(page):
    for tag, attrs in Reader(page).seen:
        assert tag not in ("script", "link", "iframe", "object")
        for key in ("src", "href", "srcset", "data"):
            assert attrs.get(key, "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
    assert "url(" not in page
    assert "@import" not in page


def test_the_report_holds_every_number_of_every_table(page, everything):
    words = set(Reader(page).words)
    for grouped in everything.values():
        shown = [tables.main_table(grouped), tables.cost_table(grouped), tables.ablation_table(grouped)]
        for table in [*shown, comparisons.comparison_table(grouped)]:
            for row in table.rows:
                assert set(row[1:]) - {report.html.unescape(cells.plain(HOSTILE))} <= words


def test_a_hostile_label_is_only_words(page):
    assert HOSTILE in "".join(Reader(page).words)
    assert "<script" not in page


def test_the_report_shows_configs_figures_and_provenance(page):
    reader = Reader(page)
    words = "".join(reader.words)
    assert sum(tag == "img" for tag, _ in reader.seen) == 2 * len(plots.FIGURES)
    assert sum(tag == "details" for tag, _ in reader.seen) == 6 + 5
    assert 'method = "co2l"\nsuite = "mine"' in words
    assert "lr = 0.5\n" in words
    assert "0123456789ab" in words
    assert "python 3.11.7, torch 2.15.0" in words


def test_the_same_results_give_the_same_bytes(root, page, tmp_path):
    """In another process too, whose sets come in another order."""
    code = (
        "import sys; from pathlib import Path; from avalanche_contrastive.bench import results\n"
        "from avalanche_contrastive.bench.report import html as report, tables\n"
        f"everything = results.load_all(Path({str(root)!r}))\n"
        f"report.write_report(everything, Path({str(tmp_path / 'report.html')!r}))\n"
        "sys.stdout.buffer.write(tables.results_page(everything).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert told.stdout.decode() == tables.results_page(results.load_all(root))


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("*a* and `b<c`", "<em>a</em> and <code>b&lt;c</code>"),
        (cells.plain("*a* | `b` <i> [c]"), "*a* | `b` &lt;i&gt; [c]"),
        ("a & b", "a &amp; b"),
        ("2 * 3", "2 * 3"),
    ],
)
def test_markdown_of_a_line_becomes_html(markdown, expected):
    assert report.inline(markdown) == expected


# ---- tables


def test_the_main_table_says_what_the_results_say(everything):
    grouped = everything["mine"]
    table = tables.main_table(grouped)
    assert table.columns == ("method", *cells.ACCURACY)
    by_label = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    final = [100 * result["final_accuracy"] for result in grouped["ours"]]
    ours, joint = by_label["Ours"], by_label["All"]
    assert ours["memory"] == "50"
    assert ours["final accuracy"] == f"{np.mean(final):.1f} ± {np.std(final, ddof=1):.1f}"
    assert ours["95 % interval"] == f"[{min(final):.1f}, {max(final):.1f}]"  # three seeds: their range
    transfer = [100 * stats.backward_transfer(result["accuracy_matrix"]) for result in grouped["ours"]]
    assert ours["backward transfer"] == f"{np.mean(transfer):.1f} ± {np.std(transfer, ddof=1):.1f}"
    assert ours["task known"] == "100.0 ± 0.0"
    assert (joint["memory"], joint["forgetting"], joint["backward transfer"]) == ("–", "–", "–")
    assert table.ours == {index for index, row in enumerate(table.rows) if row[0] in ("Ours", "Finder")}
    assert "over 3 seeds (0, 1, 2), each with its own class order" in table.caption
    assert "75 % with 3 seeds" in table.caption


def test_a_label_cannot_break_a_markdown_table(everything):
    lines = str(tables.main_table(everything["mine"])).splitlines()
    cut = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert {len(line) for line in cut} == {len(cells.ACCURACY) + 3}
    assert "¹ A note with `code`." in lines


def test_the_cost_table_has_time_and_memory(everything):
    table = tables.cost_table(everything["mine"])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["seconds"] == "9.0 ± 1.0"
    assert row["of it training"] == "7.0 ± 1.0"
    assert row["training per experience"] == "2.00 ± 1.00"
    assert row["peak memory"] == "502 ± 0"
    assert "resident memory of the process" in table.caption


def test_results_of_before_have_a_dash_where_they_have_nothing(tmp_path):
    new = {"task_accuracy_matrix", "recall_matrix", "final_task_accuracy", "backward_transfer", "recall_forgetting"}
    new |= {"seconds_per_experience", "peak_memory_mib", "peak_memory_of", "stream", "shown"}
    for method, row in (("replay", "replay"), ("joint", "joint")):
        saved(tmp_path, *({k: v for k, v in made(row, s, method=method).items() if k not in new} for s in (0, 1)))
    everything = results.load_all(tmp_path)
    assert "task known" not in tables.main_table(everything["mine"]).columns
    assert tables.cost_table(everything["mine"]).columns == ("method", "memory", "seconds", "of it training")
    assert "backward transfer" in tables.main_table(everything["mine"]).columns  # the matrix has it
    assert "| replay |" in tables.results_page(everything)
    assert not Reader(report.report_page(everything)).problems


def test_two_sizes_of_memory_stand_in_their_order(everything):
    table = tables.main_table(everything["twenty"])
    assert [row[:2] for row in table.rows] == [
        ("Naive", "–"),
        ("Ours", "20"),
        ("Replay", "20"),
        ("Ours", "80"),
        ("Replay", "80"),
    ]


def test_the_overview_has_a_column_for_each_memory(everything):
    table = comparisons.overview_table(everything)
    assert table.columns == ("method", "mine, 50", "twenty, 20", "twenty, 80")
    naive = next(row for row in table.rows if row[0] == "Naive")
    assert naive[2] == naive[3] != naive[1]
    assert not comparisons.overview_table({"mine": everything["mine"]})


def test_an_ablation_stands_under_its_base(everything):
    table = tables.ablation_table(everything["mine"])
    assert [row[0] for row in table.rows] == ["Ours", "Less"]
    assert table.ours == {0}


def test_a_missing_seed_is_said(tmp_path):
    saved(tmp_path, made("a", 0), made("a", 1), made("b", 0))
    assert "Fewer seeds: B (1)." in tables.main_table(results.load_all(tmp_path)["mine"]).caption


def test_settings_show_only_what_differs(everything):
    own, following = tables.settings_tables(everything["mine"])
    assert own.columns == ("row", "memory", "options", "read-out")
    assert "stream split_digits" in own.caption
    assert "epochs 20" in own.caption
    assert following.rows == (("`less`", "`ours`", "lr 0.5"),)


def test_settings_of_a_trial_say_where_it_was_evaluated(tmp_path):
    trial = made("trial", 0, table="trial", evaluated_on="validation", shown={"base": "a"})
    saved(tmp_path, made("a", 0), trial)
    assert tables.settings_tables(results.load_all(tmp_path)["mine"])[1].rows == (
        ("`trial`", "`a`", "on validation images"),
    )


# ---- comparisons


def test_comparisons_are_of_ours_with_the_same_memory_or_none(everything):
    table = comparisons.comparison_table(everything["twenty"])
    assert [row[:3] for row in table.rows] == [
        ("Ours", "20", "Naive"),
        ("Ours", "20", "Replay"),
        ("Ours", "80", "Naive"),
        ("Ours", "80", "Replay"),
    ]
    mine = comparisons.comparison_table(everything["mine"])
    assert [(row[0], row[2], row[3]) for row in mine.rows if row[0] == "Finder"] == [
        ("Finder", "Naive", "Recall@1"),
        ("Finder", "All", "Recall@1"),
    ]
    assert "0.25 with 3 seeds" in mine.caption
    assert "(5 here)" in mine.caption


def test_a_comparison_says_what_the_results_say(everything):
    grouped = everything["mine"]
    row = next(r for r in comparisons.comparison_table(grouped).rows if (r[0], r[2]) == ("Ours", "Naive"))
    differences = [
        a["final_accuracy"] - b["final_accuracy"] for a, b in zip(grouped["ours"], grouped["naive"], strict=True)
    ]
    assert row[4] == f"{100 * np.mean(differences):+.1f}"
    assert row[5] == f"[{100 * min(differences):+.1f}, {100 * max(differences):+.1f}]"
    assert row[6:] == ("3 of 3", "0.25")


def test_unfinished_runs_are_compared_over_the_seeds_that_both_have(tmp_path):
    ours = [made("ours", seed, method="co2l") for seed in (0, 1, 2)]
    saved(tmp_path, *ours, made("other", 0), made("other", 2), made("third", 7))
    rows = comparisons.comparison_table(results.load_all(tmp_path)["mine"]).rows
    assert {row[2]: row[6].split(" of ")[-1] for row in rows} == {"Other": "2", "Third": "–"}


def test_other_class_orders_are_not_compared_and_it_is_said(tmp_path):
    other = made("other", 0)
    other["class_order"] = other["class_order"][::-1]
    saved(tmp_path, made("ours", 0, method="co2l"), other)
    table = comparisons.comparison_table(results.load_all(tmp_path)["mine"])
    assert table.rows[0][4:] == ("–", "–", "–", "–")
    assert "Ours and other cannot be paired: with seed 0 the class orders are" in table.caption


def turned(row, seed, *, angles=None, **more):
    """A result of a stream of rotated domains, whose class order says nothing."""
    drawn = np.random.default_rng(seed).uniform(0, 180, 3).tolist()
    return made(row, seed, **more) | {"class_order": [*range(6)], "angles": angles or drawn}


def test_rotated_domains_are_paired_by_their_rotations(tmp_path):
    ours = [turned("ours", seed, method="co2l") for seed in (0, 1)]
    saved(tmp_path, *ours, turned("same", 0), turned("same", 1), turned("other", 0), turned("other", 1, angles=[1.0]))
    grouped = results.load_all(tmp_path)["mine"]
    table = comparisons.comparison_table(grouped)
    assert {row[2]: row[6].split(" of ")[-1] for row in table.rows} == {"Other": "–", "Same": "2"}
    assert "over the same seeds and rotations, in" in table.caption
    assert "Ours and other cannot be paired: with seed 1 the rotations are" in table.caption
    assert "over 2 seeds (0, 1), each with its own rotations." in tables.main_table(grouped).caption


def test_streams_that_no_seed_changes_are_not_said_to_differ(tmp_path):
    fixed = {"class_order": [*range(6)]}
    saved(tmp_path, made("a", 0) | fixed, made("a", 1) | fixed, made("b", 0) | {"class_order": [*range(4)]})
    assert "each with its own" not in tables.main_table(results.load_all(tmp_path)["mine"]).caption


def test_more_seeds_than_sign_patterns_can_be_counted_for_have_no_p(tmp_path):
    seeds = range(stats.MOST_SIGNS + 1)
    ours = [made("ours", seed, method="co2l", shift=0.1) for seed in seeds]
    saved(tmp_path, *ours, *(made("many", seed) for seed in seeds), *(made("few", seed) for seed in (0, 1)))
    everything = results.load_all(tmp_path)
    table = comparisons.comparison_table(everything["mine"])
    many = next(row for row in table.rows if row[2] == "Many")
    assert many[4].startswith("+")
    assert many[5].startswith("[")
    assert many[6:] == (f"{many[6].split()[0]} of 21", "–")
    assert "there can be is 0.5 with 2 seeds. With more than 20 seeds it has too many patterns" in table.caption
    assert table.caption.split(". ")[0] in " ".join(Reader(report.report_page(everything)).words)


def test_rows_on_other_data_are_not_compared(tmp_path):
    other = made("other", 0, config={"train_images": 100})
    saved(tmp_path, made("ours", 0, method="co2l"), other, made("held", 0, evaluated_on="validation"))
    assert not comparisons.comparison_table(results.load_all(tmp_path)["mine"])


# ---- published numbers

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
    assert near["near"][3] == f"{np.mean(final):.2f} ± {np.std(final, ddof=1):.2f} (3 seeds, `mine/ours`)"
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
    assert "Published numbers" not in tables.results_page(everything)


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


# ---- pages


def test_results_page_has_each_suite_with_its_figures(everything):
    page = tables.results_page(everything, figures="there")
    for suite in everything:
        assert f"\n## {suite}\n" in page
        for name in plots.FIGURES:
            assert f"](there/{suite}/{name}.png)" in page
    assert page.count("*Forgetting*: ") == 1
    assert tables.FIGURE_TITLES.keys() == plots.FIGURES.keys()


def test_a_page_is_filled_from_several_suites(everything, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        "a\n<!-- table:mine -->\nold\n<!-- /table -->\nb\n<!-- table:twenty naive ours_80 -->\n<!-- /table -->\nc\n"
    )
    tables.fill_page(path, everything)
    text = path.read_text(encoding="utf-8")
    first, second = text.split("\nb\n")
    assert str(tables.main_table(everything["mine"])).strip() in first
    assert [line.split()[1] for line in second.splitlines() if line.startswith("| ")][1:] == ["Naive", "Ours"]
    assert "\nold\n" not in text
    assert text.endswith("<!-- /table -->\nc\n")
    assert text.count("*Forgetting*: ") == 1
    tables.fill_page(path, everything)
    assert path.read_text(encoding="utf-8") == text


def test_a_page_may_hold_the_overview_of_all_suites(everything):
    text = tables.filled("<!-- table:all -->\nold\n<!-- /table -->", everything, where="")
    assert text == f"<!-- table:all -->\n{str(tables.overview_table(everything)).strip()}\n<!-- /table -->"
    assert "| Ours |" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none", "expected the marker lines"),
        ("<!-- table:min --><!-- /table -->", "suite 'min', which has no results; did you mean 'mine'"),
        ("<!-- table:mine nobody --><!-- /table -->", "asks for nobody, but the results hold"),
    ],
)
def test_a_page_that_cannot_be_filled_is_left_alone(everything, tmp_path, text, message):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        tables.fill_page(path, everything)
    assert path.read_text() == text


# ---- figures


def test_figures_are_png_and_the_same_each_time(everything, tmp_path):
    paths = plots.plot_all(everything["mine"], tmp_path / "a")
    again = plots.plot_all(everything["mine"], tmp_path / "b")
    assert [path.stem for path in paths] == [*plots.FIGURES]
    for path, other in zip(paths, again, strict=True):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in paths)


def test_curves_are_the_means_over_seeds(everything):
    figure = plots.accuracy_curves(everything["mine"])
    whole, upper = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in whole.get_lines()}
    assert set(drawn) == {"Ours", "Finder", HOSTILE, "Naive", "All"}
    expected = 100 * np.mean([result["seen_accuracy"] for result in everything["mine"]["ours"]], axis=0)
    np.testing.assert_allclose(drawn["Ours"], expected)
    assert upper.get_ylim()[0] > whole.get_ylim()[0] == 0
    plots.plt.close(figure)


def test_each_memory_has_its_panels_and_a_method_one_look(everything):
    figure = plots.accuracy_curves(everything["twenty"])
    assert len(figure.axes) == 4
    lines = [{line.get_label(): line for line in axes.get_lines()} for axes in figure.axes]
    assert all(set(found) == {"Ours", "Replay", "Naive"} for found in lines)
    assert len({(found["Ours"].get_color(), found["Ours"].get_linestyle()) for found in lines}) == 1
    assert lines[0]["Ours"].get_linewidth() > 2 * lines[0]["Replay"].get_linewidth()
    assert (lines[0]["Ours"].get_ydata() != lines[1]["Ours"].get_ydata()).any()
    plots.plt.close(figure)


def test_many_rows_look_unlike_each_other():
    rows = [configs.Row(f"r{i}", Config("naive", "mine"), f"r{i}") for i in range(40)]
    looks = plots.looks(rows)
    assert len({(look.colour, str(look.dash), look.marker) for look in looks.values()}) == 40


@pytest.mark.parametrize(("suite", "numbers"), [("mine", 9), ("twenty", 0)])
def test_numbers_are_written_into_small_matrices_only(everything, suite, numbers):
    figure = plots.accuracy_matrices(everything[suite])
    assert len(figure.axes[0].texts) == numbers
    plots.plt.close(figure)


def test_cost_bars_are_the_means(everything):
    figure = plots.cost(everything["mine"])
    seconds, memory = figure.axes
    assert [bar.get_width() for bar in seconds.patches[:5]] == [7.0] * 5
    assert sorted(bar.get_width() for bar in memory.patches) == [500.0, 502.0, 502.0, 502.0, 502.0]
    assert seconds.get_yticklabels()[0].get_text() == "Ours"
    plots.plt.close(figure)
