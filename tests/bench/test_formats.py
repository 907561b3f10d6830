"""Tables as CSV and LaTeX, every figure as a tidy CSV, and two folders of results beside each other."""

import csv
import io
import re
import shutil
import subprocess
from statistics import fmean

import numpy as np
import pytest
from helpers.results import HOSTILE, made, saved

from avalanche_contrastive.bench import cli, results
from avalanche_contrastive.bench.report import folders, formats, tables


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


# ---- tables


def test_csv_has_every_cell_of_every_table_and_a_star_behind_the_best(everything):
    lines = read(formats.csv_tables(everything))
    assert {line["suite"] for line in lines} == {"mine", "twenty"}
    table = tables.main_table(everything["mine"])
    shown = [line for line in lines if (line["suite"], line["table"]) == ("mine", "accuracy")]
    assert len(shown) == len(table.rows)
    for i, (line, row) in enumerate(zip(shown, table.rows, strict=True)):
        for j, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            assert line[column] == cell + (" *" if (i, j) in table.best else "")
    assert sum(cell.endswith(" *") for line in shown for cell in line.values() if cell) == len(table.best) > 3
    assert any(line["method"].startswith(HOSTILE) for line in shown)


def test_latex_has_every_row_and_the_best_in_bold(everything):
    text = formats.latex_tables(everything)
    assert text.count("\\begin{table}") == text.count("\\end{table}") == text.count("\\toprule") == 5
    table = tables.main_table(everything["mine"])
    assert text.split("\\end{table}")[0].count("\\textbf{") == len(table.best)
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(table.columns), 5}
    assert "A note with \\texttt{code}." in text


@pytest.mark.parametrize(
    ("words", "latex"),
    [
        ("50 % & #1_a$", r"50 \% \& \#1\_a\$"),
        ("{a}\\b~^", r"\{a\}\textbackslash{}b\textasciitilde{}\textasciicircum{}"),
        ("[1, 2] <b>", r"{[}1, 2] \textless{}b\textgreater{}"),
        ("1.0 ± 0.5 –²", r"1.0 $\pm$ 0.5 --\textsuperscript{2}"),
    ],
)
def test_no_words_are_commands_of_latex(words, latex):
    assert formats.latex(tables.Table(("x",), ((words,),), "l"), "s", "t").splitlines()[7] == f"{latex} \\\\"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(everything, tmp_path):
    text = formats.latex_tables(everything)
    page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{text}\\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-2000:]


def test_the_command_prints_the_format_that_is_asked_for(root, everything, capsys):
    for name, write in formats.FORMATS.items():
        assert cli.main(["table", "--results", str(root), "--format", name]) == 0
        assert capsys.readouterr().out == write(everything)
    assert cli.main(["table", "--results", str(root)]) == 0
    assert capsys.readouterr().out == formats.markdown_tables(everything)


@pytest.mark.parametrize("words", [["--write", "page.md"], ["--into", "page.md"]])
def test_pages_are_markdown_only(root, words, capsys):
    assert cli.main(["table", "--results", str(root), "--format", "csv", *words]) == 2
    assert "pages written by --write and --into are Markdown" in capsys.readouterr().err


# ---- one tidy CSV


def test_the_tidy_csv_has_every_figure_of_every_run(root, everything, tmp_path, capsys):
    assert cli.main(["export", "--results", str(root), "--out", str(tmp_path / "all.csv")]) == 0
    text = (tmp_path / "all.csv").read_text()
    assert cli.main(["export", "--results", str(root)]) == 0
    assert capsys.readouterr().out.endswith(text)
    lines = read(text)
    assert tuple(lines[0]) == ("suite", "row", "seed", "experience", "metric", "value")
    found = {(x["suite"], x["row"], x["seed"], x["experience"], x["metric"]): float(x["value"]) for x in lines}
    assert len(found) == len(lines)
    for row, of_row in everything["mine"].items():
        for result in of_row:
            key = "mine", row, str(result["seed"])
            assert found[*key, "3", "final_accuracy"] == result["final_accuracy"]
            first = 4 - len(result["seen_accuracy"])  # joint training has seen all at its first step
            for step, matrix_row in enumerate(result["accuracy_matrix"]):
                assert found[*key, str(first + step), "seen_accuracy"] == result["seen_accuracy"][step]
                for j, value in enumerate(matrix_row, 1):
                    assert found[*key, str(first + step), f"accuracy_on_{j}"] == value
            assert found[*key, "3", "seconds_training"] == result["seconds_training"]
            assert found[*key, str(first), "seconds_per_experience_training"] == 1.0 + result["seed"]
    assert not {x["metric"] for x in lines} & {"seed", "test_images", "class_order", "memory", "lr"}


def test_what_a_run_does_not_have_is_left_out_and_validation_is_named(tmp_path):
    saved(tmp_path, made("a", 0, evaluated_on="validation", table="trial") | {"forgetting": None})
    lines = read(formats.tidy(results.load_all(tmp_path)))
    metrics = {line["metric"] for line in lines}
    assert "final_accuracy_on_validation" in metrics
    assert not metrics & {"final_accuracy", "forgetting", "forgetting_on_validation"}
    assert all(line["value"] for line in lines)


def test_pandas_reads_it(root, everything):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(formats.tidy(everything)))
    assert frame.dtypes[["seed", "experience"]].eq("int64").all()
    assert frame["value"].dtype == "float64"
    final = frame[frame.metric.eq("final_accuracy")].pivot(index="seed", columns=["suite", "row"], values="value")
    assert final["mine", "ours"].mean() == pytest.approx(fmean(r["final_accuracy"] for r in everything["mine"]["ours"]))


# ---- two folders


@pytest.fixture
def places(tmp_path):
    """The same rows in two folders, 0.1, 0.2 and 0.3 better in the first; a row of its own in each."""
    for seed in (0, 1, 2):
        better = made("a", seed)
        worse = better | {"final_accuracy": better["final_accuracy"] - 0.1 * (seed + 1)}
        saved(tmp_path / "new", better, made("b", seed))
        saved(tmp_path / "old", worse, made("c", seed))
    return tmp_path / "new" / "mine", tmp_path / "old" / "mine"


def test_rows_of_the_same_name_are_compared_seed_by_seed(places, capsys):
    table = folders.compare_places(*places)
    first = next(row for row in table.rows if row[1] == "final accuracy")
    half = 4.302653 * 10 / 3**0.5  # t(0.975, 2), standard deviation of 10, 20 and 30
    assert first[0] == "a"
    assert first[4:] == ("+20.0", f"[{20 - half:+.1f}, {20 + half:+.1f}]", "3 of 3", "0.25")
    assert {row[0] for row in table.rows} == {"a"}
    assert {row[1] for row in table.rows} == set(folders.FIGURES)
    assert cli.main(["compare", *map(str, places)]) == 0
    assert capsys.readouterr().out.strip() == str(table).strip()


def test_a_row_is_compared_with_the_rows_of_a_folder(places):
    new, old = places
    assert {row[0] for row in folders.compare_places(new / "b", old).rows} == {"b - a", "b - c"}
    assert {row[0] for row in folders.compare_places(new / "a", old).rows} == {"a"}
    assert {row[0] for row in folders.compare_places(new / "b", old / "c").rows} == {"b - c"}


def test_folders_of_suites_are_compared_suite_by_suite(root, everything):
    table = folders.compare_places(root, root)
    assert {row[0] for row in table.rows} == {f"{s}: {row}" for s, grouped in everything.items() for row in grouped}
    assert {row[4] for row in table.rows} == {"+0.0"}


def test_only_shared_seeds_count(places):
    new, old = places
    (old / "a-seed1.json").unlink()
    first = next(row for row in folders.compare_places(new, old).rows if row[1] == "final accuracy")
    assert first[6] == "2 of 2"


def test_other_settings_are_named(places, tmp_path):
    saved(tmp_path / "third", *(made("a", seed, config={"lr": 0.5}) for seed in (0, 1)))
    table = folders.compare_places(places[0], tmp_path / "third" / "mine")
    assert "a: the first was run with lr 0.03." in table.caption


def test_what_was_run_on_other_streams_is_not_compared(places, tmp_path, capsys):
    other = [made(name, 0, config={"train_images": 9}) for name in "ab"]
    turned = made("b", 1)
    turned["class_order"] = turned["class_order"][::-1]
    saved(tmp_path / "third", *other, turned)
    third = tmp_path / "third" / "mine"
    (third / "b-seed0.json").unlink()
    assert cli.main(["compare", str(places[0]), str(third)]) == 2
    told = capsys.readouterr().err
    assert "mine: a cannot be paired: other data, experiences or numbers of images" in told.replace("new/", "")
    assert "with seed 1 the class orders are" in told


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("nowhere/at/all", "old/mine", "expected <row>-seed<n>.json files"),
        ("new/mine/bb", "old/mine", "no folder, and .*mine has no such row; did you mean 'b'"),
        ("new/mine", "other", "new/mine has of mine: a, b; .*other has of twenty: a"),
    ],
)
def test_places_that_cannot_be_compared_are_named(places, tmp_path, first, second, message):
    saved(tmp_path, made("a", 0, suite="twenty"))
    (tmp_path / "twenty").rename(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        folders.compare_places(tmp_path / first, tmp_path / second)


def test_folders_without_a_row_in_common_say_what_they_have(places, tmp_path):
    saved(tmp_path / "third", made("x", 0), made("y", 0))
    with pytest.raises(ValueError, match=r"new/mine has of mine: a, b; .*third/mine has of mine: x, y"):
        folders.compare_places(places[0], tmp_path / "third" / "mine")


def test_figures_beyond_numbers_do_not_count(places):
    assert np.isfinite([float(row[4]) for row in folders.compare_places(*places).rows]).all()
