"""What each picture shows, read back from the axes; that it draws; and bad input."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers.streams import digits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from avalanche_contrastive.plots import (
    plot_bias,
    plot_compatibility,
    plot_curves,
    plot_embedding,
    plot_matrix,
    plot_retrieval,
    plot_task_confusion,
    project,
)
from avalanche_contrastive.plots.drawing import COLOURS

R = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.8, float("nan")], [0.25, 0.5, 1.0]])

X = digits(1)[0][0]


@pytest.fixture
def axes():
    return Figure(layout="constrained").subplots()


def picture(axes):
    """The drawn pixels, (H, W, 3)."""
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def images(n=40):
    (x, y), _ = digits(n // 10)
    return x, y


DRAWN = {
    "matrix": lambda axes: plot_matrix(axes, R),
    "compatibility": lambda axes: plot_compatibility(axes, [[0.5, 0.0], [0.6, 0.7]]),
    "task confusion": lambda axes: plot_task_confusion(axes, [[3, 1], [0, 0]]),
    "curves": lambda axes: plot_curves(axes, {"a": [0.1, 0.5], "b": torch.rand(3, 2)}),
    "bias": lambda axes: plot_bias(axes, {"a": 0.4, "b": [0.1, 0.2]}, 0.2),
    "embedding": lambda axes: plot_embedding(axes, images()[0].flatten(1), images()[1]),
    "retrieval": lambda axes: plot_retrieval(
        axes, images()[0][:2], images()[0][:6].view(2, 3, 1, 8, 8), torch.eye(2, 3)
    ),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
def test_gives_back_its_axes_drawn_and_touches_nothing_else(axes, draw):
    before = dict(mpl.rcParams)
    blank = picture(axes)
    assert draw(axes) is axes
    assert (picture(axes) != blank).any()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
def test_two_side_by_side(draw):
    left, right = Figure().subplots(1, 2)
    draw(left)
    assert not right.has_data()


def test_no_figure_of_pyplot_is_made():
    code = (
        "import sys, avalanche_contrastive.plots; "
        "sys.exit('matplotlib.pyplot' in sys.modules or 'avalanche' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- matrices ---


def test_matrix_writes_per_cents(axes):
    plot_matrix(axes, R, value="Recall@1", columns=["a", "b", "c"])
    assert texts(axes) == ["90", "10", "0", "50", "80", "–", "25", "50", "100"]
    assert axes.get_title() == "Recall@1 (%)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
    assert axes.get_ylim() == (2.5, -0.5)  # the first row on top


def test_the_step_runs_between_trained_and_to_come(axes):
    plot_matrix(axes, torch.rand(2, 4))
    assert axes.lines[0].get_xydata().tolist() == [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [1.5, 0.5], [1.5, 1.5]]


def test_numbers_can_be_read_on_their_cells(axes):
    plot_matrix(axes, torch.linspace(0, 1, 36).view(6, 6))
    shade = mpl.colormaps["cividis"]

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for value, text in zip(torch.linspace(0, 1, 36).tolist(), axes.texts, strict=True):
        pair = sorted([luminance(shade(value)), luminance(mpl.colors.to_rgb(text.get_color()))])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4  # contrast ratio


def test_shades_rise_in_grey():
    shades = mpl.colormaps["cividis"](np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(shades) > 0).all()


def test_task_confusion_is_in_shares_of_rows(axes):
    plot_task_confusion(axes, np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]]), names=["A", "B", "C"])
    assert texts(axes) == ["75", "25", "0", "–", "–", "–", "25", "25", "50"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A", "B", "C"]


C = torch.tensor([[0.5, 9.0, 9.0], [0.5, 0.8, 9.0], [0.25, 0.9, float("nan")]])


@pytest.mark.parametrize(("ties", "framed"), [("compatible", [(0, 1), (1, 2)]), ("incompatible", [(1, 2)])])
def test_compatible_cells_are_framed_and_bold(axes, ties, framed):
    plot_compatibility(axes, C, value="mAP@R", ties=ties, names=["a", "b", "c"])
    assert [(round(p.get_x() + 0.42), round(p.get_y() + 0.42)) for p in axes.patches] == framed
    assert texts(axes) == ["50", "", "", "50", "80", "", "25", "90", "–"]
    bold = [i for i, text in enumerate(axes.texts) if text.get_weight() == "bold"]
    assert bold == [3 * y + x for x, y in framed]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[-0.2, 0.2], [0.8, 1.2], [1.8, 2.2]]
    assert axes.get_title().startswith("mAP@R (%)")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_frames_are_seen_in_grey_on_any_shade(axes):
    grey = picture_in_grey(plot_compatibility(axes, torch.tensor([[0.0, 0.0], [0.0, 1.0]])))
    plain = picture_in_grey(plot_compatibility(Figure(layout="constrained").subplots(), [[0.1, 0.0], [0.0, 1.0]]))
    assert np.abs(grey - plain).max() > 200  # a white halo on the darkest cell


def picture_in_grey(axes):
    return picture(axes) @ [0.299, 0.587, 0.114]


# --- curves and bars ---


def test_curves_are_means_with_bands_of_one_deviation(axes):
    runs = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    plot_curves(axes, {"one": [0.5, 0.6, 0.7], "two": runs}, ylabel="accuracy")
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.6], [3, 0.7]]
    assert axes.lines[1].get_ydata().tolist() == [2.0, 2.0, 5.0]
    assert len(axes.collections) == 1
    edge = axes.collections[0].get_paths()[0].vertices
    spread = runs.std(axis=0, ddof=1)
    assert sorted({y for x, y in edge if x == 3}) == pytest.approx([5 - spread[2], 5 + spread[2]])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["one", "two"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("experience trained", "accuracy")


def test_curves_with_a_band_of_the_range_and_places(axes):
    plot_curves(axes, {"a": torch.tensor([[1.0, 2.0], [5.0, 2.5], [2.0, 0.0]])}, x=[10, 20], band="range")
    edge = axes.collections[0].get_paths()[0].vertices
    assert (edge[:, 1].min(), edge[:, 1].max()) == (0.0, 5.0)
    assert axes.get_xticks().tolist() == [10, 20]


def test_no_two_curves_look_alike(axes):
    plot_curves(axes, {str(i): [i, i] for i in range(12)})
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 12
    assert len({line.get_marker() for line in axes.lines}) == 12  # in grey as well


def test_bars_are_mean_shares_beside_the_true_one(axes):
    plot_bias(axes, {"plain": [0.5, 0.7], "separated": 0.25}, 0.2)
    assert [bar.get_width() for bar in axes.patches] == [pytest.approx(60), pytest.approx(25)]
    assert axes.lines[0].get_xdata() == [20, 20]
    assert texts(axes) == ["60", "25", "true share 20"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "separated"]
    assert sorted(axes.collections[0].get_offsets()[:, 0].tolist()) == pytest.approx([50, 70])
    assert len({bar.get_hatch() for bar in axes.patches}) == 2
    assert axes.yaxis_inverted()  # the first on top


# --- embeddings ---


def test_principal_components_are_those_of_scikit_learn():
    x = images()[0].flatten(1)
    expected = PCA(2).fit_transform(x.numpy())
    found = project(x)
    assert np.abs(found) == pytest.approx(np.abs(expected), abs=1e-4)
    assert found.shape == (40, 2)
    assert project(torch.cat([x, x])).shape == (80, 2)
    # The sign is fixed: a turned copy of the data does not turn the picture about.
    assert project(x.flip(0))[::-1] == pytest.approx(found, abs=1e-6)


def test_two_dimensions_stay_as_they_are(axes):
    points = torch.randn(6, 2)
    assert project(points) == pytest.approx(points.numpy())
    assert project(points[:, :1]).tolist() == [[x, 0.0] for x in points[:, 0].tolist()]
    assert project(torch.randn(2, 9)).shape == (2, 2)
    assert project(torch.ones(5, 3)).tolist() == [[0.0, 0.0]] * 5
    plot_embedding(axes, points, [0, 1, 0, 1, 0, 1])
    assert sorted(axes.collections[0].get_offsets()[:, 0].tolist()) == pytest.approx(sorted(points[::2, 0].tolist()))
    assert axes.get_xlabel() == ""


def test_tsne_is_repeatable():
    x = images()[0].flatten(1)
    assert project(x, "tsne", seed=1) == pytest.approx(project(x, "tsne", seed=1))
    assert project(x[:5], "tsne").shape == (5, 2)


def test_embedding_says_class_by_colour_marker_and_label(axes):
    x, y = images()
    plot_embedding(axes, x.flatten(1), y)
    assert len(axes.collections) == 10
    markers = [c.get_paths()[0].vertices.tobytes() for c in axes.collections]
    assert len(set(markers)) == 10
    assert len({to_hex(c.get_facecolor()[0]) for c in axes.collections}) == len(COLOURS)
    assert texts(axes) == [str(c) for c in range(10)]
    assert axes.get_legend().get_title().get_text() == "class"
    assert axes.get_xlabel() == "principal component 1"


def test_embedding_by_experience(axes):
    x, y = images()
    names = {i: f"experience {i + 1}" for i in range(5)}
    plot_embedding(axes, x.flatten(1), y // 2, by="experience", names=names, method="tsne")
    assert texts(axes) == list(names.values())
    assert axes.get_legend().get_title().get_text() == "experience"
    assert axes.get_xlabel() == "t-SNE axis 1"


def test_an_id_without_a_name_is_its_own(axes):
    plot_embedding(axes, torch.eye(3)[:, :2], [0, 1, 2], names={1: "b"})
    assert texts(axes) == ["0", "b", "2"]


def test_a_label_lies_where_its_images_are_densest(axes):
    # Two clusters of one class: the median would lie between them.
    cluster = 0.1 * torch.randn(30, 2)
    plot_embedding(axes, torch.cat([cluster, cluster[:15] * 3 + 10]), torch.zeros(45))
    assert max(map(abs, axes.texts[0].get_position())) < 1


# --- retrieval strips ---


def test_retrieval_marks_right_and_wrong(axes):
    x, _ = images()
    plot_retrieval(
        axes, x[:2], x[:6].view(2, 3, 1, 8, 8), [[True, False, True], [False, False, True]], labels=["a", "b"]
    )
    assert len(axes.images) == 8
    assert np.asarray(axes.images[1].get_array()) == pytest.approx(x[0, 0].numpy())
    frames = [p for p in axes.patches if p.get_width() == 1]
    kinds = [(to_hex(p.get_edgecolor()), p.get_linestyle()) for p in frames]
    right, wrong = ("#009e73", "-"), ("#d55e00", (0, (2, 1)))
    assert [kind[0] for kind in kinds[1:4]] == [right[0], wrong[0], right[0]]
    solid = [kind[1] in ("-", "solid") for kind in kinds]
    assert solid == [True, True, False, True, True, False, False, True]
    # A tick is one stroke, a cross two.
    assert len(axes.lines) == 3 * 1 + 3 * 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["query", "1", "2", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_grey_values_are_those_of_all_images_together(axes):
    dark, bright = torch.zeros(1, 1, 4, 4), torch.full((1, 2, 1, 4, 4), 5.0)
    plot_retrieval(axes, dark, bright, [[True, True]])
    assert {image.get_clim() for image in axes.images} == {(0.0, 5.0)}


def test_coloured_images(axes):
    queries, found = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 3, 4, 4)
    plot_retrieval(axes, queries, found, torch.tensor([[True], [False]]))
    assert np.asarray(axes.images[0].get_array()).transpose(2, 0, 1) == pytest.approx(queries[0].numpy())
    assert axes.images[3].get_array().shape == (4, 4, 3)


TYPES = {
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half(),
    "with a graph": lambda x: x.clone().requires_grad_(),
    "a list of tensors": lambda x: list(x.bfloat16()),
    "a list of numbers in tensors": lambda x: [[value.bfloat16().requires_grad_() for value in row] for row in x],
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_any_type(axes, kind):
    values = torch.tensor([[0.5, 0.25], [0.75, 1.0]])
    given = TYPES[kind](values)
    plot_matrix(axes, given)
    assert texts(axes) == ["50", "25", "75", "100"]
    plot_curves(axes, {"a": given})
    assert axes.lines[-1].get_ydata().tolist() == [0.625, 0.625]
    plot_task_confusion(axes, given)
    plot_bias(axes, {"a": given[0]}, 0.5)
    plot_embedding(axes, given, [0, 1])
    assert project(given) == pytest.approx(values.numpy())


def test_images_of_bfloat16(axes):
    x = images()[0].bfloat16()
    plot_retrieval(axes, x[:2], list(x[:6].view(2, 3, 1, 8, 8)), torch.eye(2, 3))
    plot_embedding(axes, x.flatten(1), list(torch.arange(40) % 3))


X4 = torch.rand(4, 1, 2, 2)
BAD = {
    "a vector": (lambda a: plot_matrix(a, [1, 2]), r"plot_matrix: matrix must be a matrix, got shape \(2,\)"),
    "names of rows": (lambda a: plot_matrix(a, R, rows=["a"]), r"there must be 3 names, got 1"),
    "an oblong compatibility": (lambda a: plot_compatibility(a, [[1, 2]]), r"must be square.*shape \(1, 2\)"),
    "ties": (lambda a: plot_compatibility(a, [[1]], ties="yes"), r"'compatible' or 'incompatible'.*'yes'"),
    "names of models": (lambda a: plot_compatibility(a, [[1]], names=[]), r"there must be 1 names, got 0"),
    "an oblong confusion": (lambda a: plot_task_confusion(a, [[1, 2]]), r"square matrix.*got shape \(1, 2\)"),
    "a count below zero": (lambda a: plot_task_confusion(a, [[-1]]), r"numbers >= 0"),
    "no curve": (lambda a: plot_curves(a, {}), r"one curve at least.*got 0"),
    "a band": (lambda a: plot_curves(a, {"a": [1]}, band="ci"), r"band 'std' or 'range'; got 1, 'ci'"),
    "other places": (
        lambda a: plot_curves(a, {"a": [1, 2]}, x=[1]),
        r"'a' must be \(T,\).*\(2,\) for x of shape \(1,\)",
    ),
    "a cube": (lambda a: plot_curves(a, {"a": torch.ones(2, 2, 2)}), r"'a' must be \(T,\) or \(S, T\)"),
    "no bar": (lambda a: plot_bias(a, {}, 0.2), r"one at least"),
    "no share": (lambda a: plot_bias(a, {"a": []}, 0.2), r"one share or a list"),
    "per cent": (lambda a: plot_bias(a, {"a": 40.0}, 0.2), r"shares must lie in \[0, 1\], got 0.2 to 40"),
    "one image": (lambda a: plot_embedding(a, torch.ones(1, 3), [0]), r"two images at least"),
    "nan": (lambda a: project(torch.full((3, 3), torch.nan)), r"finite"),
    "a method": (lambda a: project(torch.ones(3, 3), "umap"), r"'pca' or 'tsne', got 'umap'"),
    "other ids": (lambda a: plot_embedding(a, torch.ones(3, 3), [0, 1]), r"ids must be one for each of 3"),
    "flat images": (lambda a: plot_retrieval(a, X4[0], X4[None], [[1] * 4]), r"queries must be \(Q, C, H, W\)"),
    "other marks": (lambda a: plot_retrieval(a, X4[:1], X4[None], [[1, 1]]), r"correct \(Q, K\).*\(1, 2\)"),
    "runs of unequal length": (
        lambda a: plot_curves(a, {"a": [[0.1, 0.2, 0.3], [0.1, 0.2]]}),
        r"plot_curves: 'a' must have rows of one length, got 3, 2. Are some of the runs shorter.*nan",
    ),
    "tensors of unequal length": (
        lambda a: plot_curves(a, {"a": [torch.ones(2), torch.ones(3)]}),
        r"'a' must have rows of one length, got 2, 3",
    ),
    "curves of unequal length": (
        lambda a: plot_curves(a, {"a": [1, 2], "b": [1, 2, 3]}, x=[1, 2]),
        r"'b' must be.*\(3,\) for x of shape \(2,\). Are all curves of the same experiences",
    ),
    "bars of unequal runs": (lambda a: plot_bias(a, {"a": [[0.1], [0.2, 0.3]]}, 0.2), r"'a' must have rows.*1, 2"),
    "rows of unequal length": (
        lambda a: plot_matrix(a, [[1, 2], [3]]),
        r"matrix must have rows of one length, got 2, 1",
    ),
    "runs that are empty": (lambda a: plot_curves(a, {"a": [[], []]}), r"'a' must be.*T >= 1.*shape \(2, 0\)"),
    "a run that is empty": (
        lambda a: plot_curves(a, {"a": [[], [1.0]]}),
        r"'a' must have rows of one length, got 0, 1",
    ),
    "a run of nothing": (lambda a: plot_curves(a, {"a": [None, [1.0]]}), r"'a' must be numbers, got None.*nan stands"),
    "nothing in a run": (lambda a: plot_curves(a, {"a": [0.1, None]}), r"'a' must be numbers, got \[0.1, None\]"),
    "a run that is a text": (lambda a: plot_curves(a, {"a": "0.5"}), r"'a' must be numbers, got '0.5'"),
    "texts in a run": (
        lambda a: plot_bias(a, {"a": ["0.5", "nan"]}, 0.2),
        r"'a' must be numbers, got \['0.5', 'nan'\]",
    ),
    "complex numbers": (lambda a: plot_matrix(a, torch.eye(2) * 1j), r"matrix must be numbers, got"),
    "a tensor without values": (
        lambda a: plot_matrix(a, torch.ones(2, 2, device="meta")),
        r"numbers, got.*float32.*\(2, 2",
    ),
    "nothing in a matrix": (lambda a: plot_matrix(a, [[0.1, None]]), r"matrix must be numbers, got \[0.1, None\]"),
    "places that are texts": (lambda a: plot_curves(a, {"a": [1, 2]}, x=["1", "2"]), r"plot_curves: x must be numbers"),
    "one place": (lambda a: plot_curves(a, {"a": [1, 2]}, x=1), r"got shape \(2,\) for x of shape \(\)"),
    "curves without names": (lambda a: plot_curves(a, [[0.1]]), r"curves must be a dict of values by name, got list"),
    "bars without names": (lambda a: plot_bias(a, torch.ones(2), 0.1), r"predicted must be a dict.*got Tensor"),
    "bars of nothing": (lambda a: plot_bias(a, {"a": []}, 0.1), r"one share or a list of some, and one at least"),
    "no true share": (lambda a: plot_bias(a, {"a": 0.1}, None), r"plot_bias: true must be numbers, got None"),
    "two true shares": (lambda a: plot_bias(a, {"a": 0.1}, [0.1, 0.2]), r"true is one share"),
    "no queries": (lambda a: plot_retrieval(a, X4[:0], X4[None][:0], torch.ones(0, 4)), r"Q >= 1"),
    "no neighbours": (lambda a: plot_retrieval(a, X4[:1], X4[None][:, :0], torch.ones(1, 0)), r"K >= 1"),
    "other labels": (lambda a: plot_retrieval(a, X4[:1], X4[None], [[1] * 4], labels=[]), r"labels.*1 queries, got 0"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(axes, call, message):
    with pytest.raises(ValueError, match=message):
        call(axes)
