"""Tables and pages from made-up results: the right figures, and words that no label can break."""

import re

import numpy as np
import pytest
from helpers.pages import ROOT
from helpers.results import Reader, made, saved

from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.report import cells, comparisons, figures, headline, html, pages, plots, stats, tables


def test_the_main_table_says_what_the_results_say(everything):
    grouped = everything["mine"]
    table = tables.main_table(grouped)
    assert table.columns == ("method", *figures.ACCURACY)
    by_label = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    final = [100 * result["final_accuracy"] for result in grouped["ours"]]
    ours, joint = by_label["Ours"], by_label["All"]
    assert ours["memory"] == "50"
    assert ours["final accuracy"] == f"{np.mean(final):.1f} ± {np.std(final, ddof=1):.1f}"
    half = 4.302653 * np.std(final, ddof=1) / 3**0.5  # t(0.975, 2)
    assert ours["95 % interval"] == f"[{np.mean(final) - half:.1f}, {min(100, np.mean(final) + half):.1f}]"
    transfer = [100 * stats.backward_transfer(result["accuracy_matrix"]) for result in grouped["ours"]]
    assert ours["backward transfer"] == f"{np.mean(transfer):.1f} ± {np.std(transfer, ddof=1):.1f}"
    assert ours["task known"] == "100.0 ± 0.0"
    assert (joint["memory"], joint["forgetting"], joint["backward transfer"]) == ("–", "–", "–")
    assert table.ours == {index for index, row in enumerate(table.rows) if row[0] in ("Ours", "Finder")}
    assert "over 3 seeds (0, 1, 2), each with its own class order" in table.caption
    assert [name for name, _ in table.definitions] == list(figures.ACCURACY)


def test_a_label_cannot_break_a_markdown_table(everything):
    lines = str(tables.main_table(everything["mine"])).splitlines()
    cut = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert {len(line) for line in cut} == {len(figures.ACCURACY) + 3}
    assert "¹ A note with `code`." in lines


def test_no_interval_leaves_what_an_accuracy_can_be(tmp_path):
    saved(tmp_path, made("a", 0, shift=0.3), made("a", 1, shift=-0.5))
    table = tables.main_table(results.load_all(tmp_path)["mine"])
    assert dict(zip(table.columns, table.rows[0], strict=True))["95 % interval"] == "[0.0, 100.0]"


@pytest.mark.parametrize(
    ("words", "markdown"),
    [
        ("a | b", r"a \| b"),
        ("*a* `b` <i>", r"\*a\* \`b\` \<i>"),
        ("[a](http://b)", r"[a\](http://b)"),
        ("[93.1, 94.0]", "[93.1, 94.0]"),
        ("a\nb\\", "a b\\\\"),
        (cells.Code("a_b"), "`a_b`"),
        (cells.Code("a|`b"), r"a\|\`b"),
    ],
)
def test_a_cell_of_markdown_is_the_words_it_was_made_of(words, markdown):
    assert str(cells.Table(("x",), ((words,),), "l")).splitlines()[2] == f"| {markdown} |"


def test_only_words_between_backticks_are_code_in_a_caption():
    assert cells.parts("run `a b` and `c`.") == [
        ("run ", False),
        ("a b", True),
        (" and ", False),
        ("c", True),
        (".", False),
    ]
    assert cells.parts("one ` alone") == [("one ` alone", False)]
    assert cells.markdown("run `a*b` *c* ` <d>") == r"run `a*b` \*c\* \` \<d>"


def test_the_best_and_what_lies_within_its_interval_are_marked(tmp_path):
    """Final accuracies by hand: the best 0.90 ± 0.01, so its interval of three seeds is 0.9 ± 0.0248."""

    def row(name, values, **more):
        return [made(name, seed, **more) | {"final_accuracy": value} for seed, value in enumerate(values)]

    saved(
        tmp_path,
        *row("best", [0.89, 0.90, 0.91], memory=50),
        *row("near", [0.86, 0.88, 0.90], memory=50),  # 0.880
        *row("far", [0.87, 0.87, 0.88], memory=50),  # 0.873
        *row("naive", [0.88, 0.88, 0.88], method="naive"),
        *row("joint", [0.99, 0.99, 0.99], method="joint"),
        *row("large", [0.95, 0.95, 0.95], memory=500),
        *row("larger", [0.94, 0.94, 0.94], memory=500),
    )
    table = tables.main_table(results.load_all(tmp_path)["mine"])
    marked = {table.rows[i][0] for i, j in table.best if table.columns[j] == "final accuracy"}
    assert marked == {"Best", "Near", "Naive", "Large"}
    assert "| **90.0 ± 1.0** |" in str(table)
    assert "| 99.0 ± 0.0 |" in str(table)
    assert not {j for _, j in tables.cost_table(results.load_all(tmp_path)["mine"]).best}


def test_least_forgetting_is_the_best(tmp_path):
    values = {"a": 0.1, "b": 0.3}
    saved(tmp_path, *(made(name, 0) | {"forgetting": value} for name, value in values.items()))
    table = tables.main_table(results.load_all(tmp_path)["mine"])
    assert {table.rows[i][0] for i, j in table.best if table.columns[j] == "forgetting"} == {"A"}


def test_a_row_alone_is_not_the_best(tmp_path):
    saved(tmp_path, made("a", 0), made("joint", 0, method="joint"), made("b", 0, config={"train_images": 9}))
    assert not tables.main_table(results.load_all(tmp_path)["mine"]).best


def test_the_cost_table_has_time_and_the_memory_of_a_gpu(everything, tmp_path):
    table = tables.cost_table(everything["mine"])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row == {
        "method": "Ours",
        "memory": "50",
        "seconds": "8.0",
        "of it training": "6.0",
        "training per experience": "1.00",
    }
    assert "± " not in str(table)
    assert "seeds (0, 1, 2), each with its own class order. Each time is that of the fastest" in table.caption
    kind = "memory that torch had allocated on the GPU"
    saved(tmp_path, made("a", 0, peak_memory_of=kind))
    table = tables.cost_table(results.load_all(tmp_path)["mine"])
    assert dict(zip(table.columns, table.rows[0], strict=True))["peak memory"] == "502"
    assert "on the GPU" in dict(table.definitions)["peak memory"]


def test_results_of_before_have_a_dash_where_they_have_nothing(tmp_path):
    new = {"task_accuracy_matrix", "recall_matrix", "final_task_accuracy", "backward_transfer", "recall_forgetting"}
    new |= {"seconds_per_experience", "peak_memory_mib", "peak_memory_of", "stream", "shown"}
    for method, row in (("replay", "replay"), ("joint", "joint")):
        saved(tmp_path, *({k: v for k, v in made(row, s, method=method).items() if k not in new} for s in (0, 1)))
    everything = results.load_all(tmp_path)
    assert "task known" not in tables.main_table(everything["mine"]).columns
    assert tables.cost_table(everything["mine"]).columns == ("method", "memory", "seconds", "of it training")
    assert "backward transfer" in tables.main_table(everything["mine"]).columns  # the matrix has it
    assert "| replay |" in pages.results_page(everything)
    assert not Reader(html.report_page(everything)).problems


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
    assert following.rows == (("less", "ours", "lr 0.5"),)


def test_settings_of_a_trial_say_where_it_was_evaluated(tmp_path):
    trial = made("trial", 0, table="trial", evaluated_on="validation", shown={"base": "a"})
    saved(tmp_path, made("a", 0), trial)
    assert tables.settings_tables(results.load_all(tmp_path)["mine"])[1].rows == (
        ("trial", "a", "on validation images"),
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
    half = 4.302653 * np.std(differences, ddof=1) / 3**0.5  # t(0.975, 2)
    assert row[5] == f"[{100 * (np.mean(differences) - half):+.1f}, {100 * (np.mean(differences) + half):+.1f}]"
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
    assert "ours and other cannot be paired: with seed 0 the class orders are" in table.caption


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
    assert "ours and other cannot be paired: with seed 1 the rotations are" in table.caption
    assert "over 2 seeds (0, 1), each with its own rotations." in tables.main_table(grouped).caption


def test_streams_that_no_seed_changes_are_not_said_to_differ(tmp_path):
    fixed = {"class_order": [*range(6)]}
    saved(tmp_path, made("a", 0) | fixed, made("a", 1) | fixed, made("b", 0) | {"class_order": [*range(4)]})
    assert "each with its own" not in tables.main_table(results.load_all(tmp_path)["mine"]).caption


def test_a_figure_that_is_no_number_leaves_no_comparison(tmp_path):
    ours = [made("ours", seed, method="co2l") | {"final_accuracy": float("nan")} for seed in (0, 1)]
    saved(tmp_path, *ours, made("other", 0), made("other", 1))
    grouped = results.load_all(tmp_path)["mine"]
    assert comparisons.comparison_table(grouped).rows[0][4:] == ("–", "–", "–", "–")
    row = dict(zip(tables.main_table(grouped).columns, tables.main_table(grouped).rows[0], strict=True))
    assert (row["final accuracy"], row["95 % interval"]) == ("–", "–")


def test_rows_on_other_data_are_not_compared(tmp_path):
    other = made("other", 0, config={"train_images": 100})
    saved(tmp_path, made("ours", 0, method="co2l"), other, made("held", 0, evaluated_on="validation"))
    assert not comparisons.comparison_table(results.load_all(tmp_path)["mine"])


# ---- pages


def test_results_page_has_each_suite_with_its_figures(everything):
    page = pages.results_page(everything, figures="there")
    for suite in everything:
        assert f"\n## {suite}\n" in page
        for name in tables.figure_titles(everything[suite]):
            assert f"](there/{suite}/{name}.png)" in page
    assert page.count("*Forgetting*: ") == 1
    assert tables.FIGURE_TITLES.keys() == plots.FIGURES.keys()


def test_a_page_is_filled_from_several_suites(everything, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        "a\n<!-- table:mine -->\nold\n<!-- /table -->\nb\n<!-- table:twenty naive ours_80 -->\n<!-- /table -->\nc\n"
    )
    pages.fill_page(path, everything)
    text = path.read_text(encoding="utf-8")
    first, second = text.split("\nb\n")
    assert str(tables.main_table(everything["mine"])).strip() in first
    assert [line.split()[1] for line in second.splitlines() if line.startswith("| ")][1:] == ["Naive", "Ours"]
    assert "\nold\n" not in text
    assert text.endswith("<!-- /table -->\nc\n")
    assert text.count("*Forgetting*: ") == 1
    pages.fill_page(path, everything)
    assert path.read_text(encoding="utf-8") == text


def test_a_page_may_hold_the_overview_of_all_suites(everything):
    text = pages.filled("<!-- table:all -->\nold\n<!-- /table -->", everything, where="")
    assert text == f"<!-- table:all -->\n{str(comparisons.overview_table(everything)).strip()}\n<!-- /table -->"
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
        pages.fill_page(path, everything)
    assert path.read_text() == text


def test_rows_that_all_follow_each_other_have_their_settings(tmp_path):
    saved(tmp_path, made("a", 0, shown={"base": "b"}), made("b", 0, shown={"base": "a"}))
    assert [row[0] for row in tables.settings_tables(results.load_all(tmp_path)["mine"])[0].rows] == ["a", "b"]


def test_the_headline_has_a_line_per_question_and_the_rows_of_its_memory():
    committed = results.load_all(ROOT / "benchmarks" / "results")
    table = headline.headline_table(committed)
    assert len(table.rows) == 6
    for line, (title, memory, seeds, *figures_of_line) in zip(headline.LINES, table.rows, strict=True):
        assert title == line.title
        assert memory == str(line.memory)
        for cell, name in zip(figures_of_line, headline.METHODS.values(), strict=True):
            rows = [row for row in (name, f"{name}_{memory}") if row in committed[line.suite]]
            at_size = [row for row in rows if committed[line.suite][row][0]["config"]["memory"] in (0, line.memory)]
            if not at_size:
                assert cell == cells.NONE
                continue
            (row,) = at_size
            assert cell == line.column.cell(committed[line.suite][row])
            assert len(committed[line.suite][row]) <= int(seeds)


def test_a_headline_leaves_out_suites_without_results(everything):
    assert headline.headline_table(everything).rows == ()
