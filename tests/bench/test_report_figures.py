"""The figures of the benchmarks: the right values, the same bytes, and looks that can be told apart."""

import re
from itertools import combinations

import numpy as np
import pytest
from helpers.results import HOSTILE, made, saved
from matplotlib.colors import to_rgb

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench import results
from avalanche_contrastive.bench.config import Config
from avalanche_contrastive.bench.report import plots


def test_figures_are_png_and_the_same_each_time(everything, tmp_path):
    paths = plots.plot_all(everything["mine"], tmp_path / "a")
    again = plots.plot_all(everything["mine"], tmp_path / "b")
    assert [path.stem for path in paths] == [name for name in plots.FIGURES if name != "compatibility"]
    for path, other in zip(paths, again, strict=True):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in paths)


def test_drawings_are_the_same_each_time_and_share_no_ids(everything):
    first, again, other = (plots.drawing(plots.cost, everything["mine"], name, "Cost") for name in ("a", "a", "b"))
    assert first == again
    ids = [set(re.findall(r' id="([^"]+)"', drawing)) for drawing in (first, other)]
    assert len(ids[0]) > 20
    assert not ids[0] & ids[1]


def test_drawings_take_the_colours_of_the_page(everything):
    for draw in plots.FIGURES.values():
        drawing = plots.drawing(draw, everything["mine"], "a", "A figure")
        assert "currentColor" in drawing
        assert plots.TEXT not in drawing
        written = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawing))
        assert written <= {plots.GREY, "#000000", "#ffffff"}  # of numbers on matrices, whose shades are their own
        assert "<metadata" not in drawing


def luminance(colour):
    """Of WCAG 2."""
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("mode", "page"), [(0, "#ffffff"), (1, "#0d1117")])
def test_lines_stand_out_from_the_page(mode, page):
    assert min(contrast(pair[mode], page) for pair in plots.COLOURS) >= 3
    assert contrast(plots.GREY, page) >= 3


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, blindness):
    """CIE L*a*b* (D65) as somebody sees it."""
    linear = np.array([x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)])
    seen = np.clip(np.asarray(BLINDNESS[blindness]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(to_xyz @ seen / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_of_one_kind_differ_for_the_colour_blind(mode, blindness):
    """A difference of 2.3 can just be seen. Ours and baselines differ by width as well, so each kind by itself."""
    for kind in (plots.COLOURS[:3], plots.COLOURS[3:]):
        seen = [lab(pair[mode], blindness) for pair in kind]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


def test_lines_of_a_panel_differ_in_grey():
    """By their dashes and markers, whatever their colours are."""
    rows = [configs.Row(f"r{i}", Config("replay", "mine"), f"r{i}") for i in range(30)]
    looks = plots.looks(rows)
    for start in range(0, 30, plots.PER_PANEL):
        shown = [looks[row.label] for row in rows[start : start + plots.PER_PANEL]]
        assert (
            len({(str(look.dash), look.marker) for look in shown}) == len({look.marker for look in shown}) == len(shown)
        )


def lines_of(axes):
    """Lines with a label, by it."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_curves_are_the_means_over_seeds(everything):
    figure = plots.accuracy_curves(everything["mine"])
    panels = {axes.get_title(): lines_of(axes) for axes in figure.axes if axes.get_title()}
    shown = {title: {"".join(label.split()) for label in lines} for title, lines in panels.items()}
    assert shown == {"ours": {"Ours", "Finder"}, "replay": {"".join(HOSTILE.split())}, "bounds": {"Naive", "All"}}
    expected = 100 * np.mean([result["seen_accuracy"] for result in everything["mine"]["ours"]], axis=0)
    np.testing.assert_allclose(panels["ours"]["Ours"].get_ydata(), expected)
    beside = [line for line in figure.axes[1].get_lines() if line.get_label() == "_beside"]
    assert any(np.allclose(line.get_ydata(), expected) for line in beside)
    plots.plt.close(figure)


def test_each_memory_has_its_panels_and_a_method_one_look(everything):
    figure = plots.accuracy_curves(everything["twenty"])
    panels = {axes.get_title(): lines_of(axes) for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["ours, memory 20", "ours, memory 80", "replay, memory 20", "replay, memory 80", "bounds"]
    few, many = panels["ours, memory 20"]["Ours"], panels["ours, memory 80"]["Ours"]
    assert (few.get_color(), few.get_linestyle()) == (many.get_color(), many.get_linestyle())
    assert (few.get_ydata() != many.get_ydata()).any()
    assert few.get_linewidth() > panels["replay, memory 20"]["Replay"].get_linewidth()
    plots.plt.close(figure)


def test_a_large_group_has_several_panels_and_no_row_is_lost(tmp_path):
    saved(tmp_path, *(made(f"r{i:02}", 0, memory=50) for i in range(14)))
    figure = plots.accuracy_curves(results.load_all(tmp_path)["mine"])
    panels = {axes.get_title(): [*lines_of(axes)] for axes in figure.axes if axes.get_title()}
    assert [len(lines) for lines in panels.values()] == [4, 5, 5]
    assert [*panels] == [f"replay ({i} of 3)" for i in (1, 2, 3)]
    assert sorted(label for lines in panels.values() for label in lines) == [f"R{i:02}" for i in range(14)]
    plots.plt.close(figure)


def test_no_legend_lies_on_another_panel(tmp_path):
    long = "A label of many words that goes on and on, as long as nobody stops it"
    saved(tmp_path, *(made(f"r{i}", 0, memory=50, shown={"label": f"{long} {i}"}) for i in range(14)))
    with plots.plt.rc_context(plots.STYLE):
        figure = plots.accuracy_curves(results.load_all(tmp_path)["mine"])
        figure.canvas.draw()
    whole = figure.bbox
    boxes = [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
    frames = [axes.get_window_extent() for axes in figure.axes if axes.get_legend()]
    assert len(boxes) == 3
    for box in boxes:
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
        assert not any(box.overlaps(frame) for frame in frames)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    plots.plt.close(figure)


def test_a_suite_without_the_figure_has_an_empty_picture(tmp_path):
    saved(tmp_path, {key: value for key, value in made("a", 0).items() if key != "recall_at_1"})
    figure = plots.recall_curves(results.load_all(tmp_path)["mine"])
    assert not any(axes.get_lines() for axes in figure.axes)
    plots.plt.close(figure)


@pytest.mark.parametrize("figure", [plots.accuracy_curves, plots.recall_curves])
def test_the_title_has_the_name_of_a_suite_in_one_piece(figure, tmp_path):
    suite = "split_cifar100_frozen_natural"  # longer than a line of a legend
    saved(tmp_path, made("a", 0, suite=suite))
    drawn = figure(results.load_all(tmp_path)[suite])
    assert suite in drawn.get_suptitle()
    plots.plt.close(drawn)


# ---- matrices


@pytest.mark.parametrize(("suite", "numbers"), [("mine", 6), ("twenty", 0)])
def test_numbers_are_written_into_small_matrices_only(everything, suite, numbers):
    figure = plots.accuracy_matrices(everything[suite])
    assert len(figure.axes[0].texts) == numbers
    plots.plt.close(figure)


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_what_was_not_trained_yet_is_grey_unless_it_is_of_the_same_classes(tmp_path, scenario):
    saved(tmp_path, made("a", 0, config={"scenario": scenario}))
    figure = plots.accuracy_matrices(results.load_all(tmp_path)["mine"])
    shown = figure.axes[0].get_images()[0].get_array()
    upper = np.triu(np.ones((3, 3), dtype=bool), 1)
    assert (np.ma.getmaskarray(shown) == (upper if scenario == "class" else False)).all()
    plots.plt.close(figure)


def test_experiences_have_the_names_of_their_classes_where_all_seeds_have_the_same(tmp_path):
    known = {"class_names": ["cat", "dog", "eel", "fox", "gnu", "hen"], "experience_classes": [[1, 0], [2, 3], [5, 4]]}
    saved(tmp_path, made("a", 0) | known, made("a", 1) | known, made("b", 0) | known)
    saved(tmp_path, made("b", 1) | known | {"experience_classes": [[0, 1], [2, 3], [5, 4]]}, made("c", 0))
    grouped = results.load_all(tmp_path)["mine"]
    figure = plots.accuracy_matrices(grouped)
    ticks = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes[:3]]
    assert ticks == [["dog, cat", "eel, fox", "hen, gnu"], ["1", "2", "3"], ["1", "2", "3"]]
    plots.plt.close(figure)


# ---- cost


def test_cost_bars_are_the_shortest_times(everything, tmp_path):
    figure = plots.cost(everything["mine"])
    (seconds,) = figure.axes  # the memory of a whole process says little
    assert [bar.get_width() for bar in seconds.patches[:5]] == [6.0] * 5
    assert seconds.get_yticklabels()[0].get_text() == "Ours"
    plots.plt.close(figure)
    saved(tmp_path, made("a", 0, peak_memory_of="memory that torch had allocated on the GPU"))
    figure = plots.cost(results.load_all(tmp_path)["mine"])
    assert [bar.get_width() for bar in figure.axes[1].patches] == [502.0]
    plots.plt.close(figure)
