# %% [markdown]
# # CSD: visual search under continual learning
#
# **Question.** A search engine compares features, not class scores. Are features forgotten less than a classifier, as
# CSD's paper (Barletti et al., ICIAP 2021, [arXiv:2205.05476](https://arxiv.org/abs/2205.05476)) says – and what would
# a fair comparison be?
#
# We look at search results before and after, then set forgetting in retrieval beside forgetting in classification,
# for CSD, fine-tuning (Naive), LwF and Replay, over seeds. The data are scikit-learn's digits, two classes at a time,
# or part of MNIST, if `DATA` names a folder that has it.

# %%
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks").is_dir())
# tqdm misses its widgets; Avalanche misses a logger, but we read what `eval` returns.
warnings.filterwarnings("ignore", message="IProgress not found|No loggers specified")
# A folder with MNIST as torchvision keeps it, in FOLDER/MNIST/raw; empty: scikit-learn's digits.
DATA = os.environ.get("NOTEBOOK_DATA", "")

# %% [markdown]
# ## Four learners, five seeds
#
# The rows are those of the benchmark whose settings were chosen by Recall@1, as far as there are such (Replay's was
# chosen by accuracy), with few epochs, so that all runs take a minute or a few: which *learner* is best is a question
# for the benchmark's results, not for these runs. To each evaluator we add two metrics. For the first, every test image
# searches a *gallery* of all training images of the classes **seen so far**, embedded anew by the model as it is; the
# second classifies by the nearest class mean of just that gallery.

# %%
from notebook_data import check_words, choose

from avalanche_contrastive.bench.config import load_row, row_files

SUITE, SIZES = choose(DATA)
SEEDS = range(5)
ROWS = {"CSD": "csd", "Naive": "naive_by_recall", "LwF": "lwf_by_recall", "Replay": "replay"}
ROWS = {name: row if row in row_files(SUITE) else row.removesuffix("_by_recall") for name, row in ROWS.items()}
CONFIGS = {name: load_row(row, SUITE).config for name, row in ROWS.items()}
MOST = {"CSD": 10, "Naive": 7, "LwF": 7, "Replay": 8}
EPOCHS = {name: min(MOST[name], config.epochs) for name, config in CONFIGS.items()}
epochs = ", ".join(f"{name} {EPOCHS[name]} of {config.epochs}" for name, config in CONFIGS.items())
Markdown(f"Epochs here, of those in the benchmark: {epochs}. Only Replay stores images for training.")

# %%
from dataclasses import replace

from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive.bench.data.streams import STREAMS, make_stream
from avalanche_contrastive.bench.run.execute import build, matrices
from avalanche_contrastive.metrics import Source, readout_metrics, retrieval_metrics, with_forgetting
from avalanche_contrastive.teacher import frozen_copy


def learner(name, stream, seed):
    """A strategy of the benchmark, and the two metrics that were added to its evaluator."""
    RNGManager.set_random_seeds(seed)
    strategy = build(replace(CONFIGS[name], epochs=EPOCHS[name]), stream, torch.device("cpu")).strategy
    gallery = Source("seen")
    search = with_forgetting(retrieval_metrics(ks=(1,), stream=False, gallery=gallery, ties="mean"))
    means = with_forgetting(readout_metrics(gallery, kinds=("nearest_mean",), stream=False))
    strategy.evaluator.metrics.extend([*search, *means])
    return strategy, search[0], means[0]


# %%
def run(name, seed):
    """Train through the stream; accuracy and recall matrices, and the model after each experience."""
    stream = make_stream(SUITE, seed, **SIZES)
    strategy, search, means = learner(name, stream, seed)
    found, models = [], []
    for experience in stream.benchmark.train_stream:
        strategy.train(experience)
        found.append(strategy.eval(stream.benchmark.test_stream))
        models.append(frozen_copy(strategy.model))
    accuracy = torch.tensor(matrices(found, len(models))["accuracy_matrix"])
    (recall,), (mean,) = ([m.matrix(*key) for key in m.matrices] for m in (search, means))
    return {"stream": stream, "models": models, "accuracy": accuracy, "recall": recall, "mean": mean}


with warnings.catch_warnings(record=True) as caught:  # Avalanche's replay calls what Avalanche deprecates
    runs = {name: [run(name, seed) for seed in SEEDS] for name in ROWS}
assert all("avalanche/training/plugins" in warning.filename.replace("\\", "/") for warning in caught)

# %% [markdown]
# ## What a search finds
#
# Queries are test images of the *first* two classes. The pictures are of seed 0, and of the four queries for which the
# four learners together find most wrong images at the end: hard cases, not typical ones.


# %%
def images(stream_part):
    """Images (N, C, H, W) and labels (N,) of some experiences."""
    pairs = [(x, y) for experience in stream_part for x, y, *_ in experience.dataset]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def features(model, x):
    """What enters the last layer, (N, features)."""
    with torch.no_grad():
        return model.encoder(x)


# %%
from avalanche_contrastive.metrics import nearest_neighbours

parts = runs["CSD"][0]["stream"].benchmark
(gallery, gallery_y), (queries, queries_y) = images(parts.train_stream), images(parts.test_stream[:1])
small = torch.isin(gallery_y, queries_y)  # the gallery as it was after the first experience


def found(model, among):
    """The five nearest images of the gallery for each query."""
    kept = among.nonzero()[:, 0]
    return kept[nearest_neighbours(features(model, queries), 5, gallery=features(model, gallery[kept]))]


every = torch.ones_like(small)
wrong = sum((gallery_y[found(of[0]["models"][-1], every)] != queries_y[:, None]).sum(dim=1) for of in runs.values())
hard = wrong.argsort(descending=True, stable=True)[:4]

# %%
from avalanche_contrastive.plots import plot_retrieval


def strip(axes, model, among, title, *, named=False):
    """Search with the hard queries, and draw what is found."""
    hits = found(model, among)[hard]
    right = gallery_y[hits] == queries_y[hard, None]
    names = [f"class {c}" for c in queries_y[hard]] if named else None
    plot_retrieval(axes, queries[hard], gallery[hits], right, labels=names)
    axes.set_title(title, fontsize=11)


first, *_, last = runs["CSD"][0]["models"]
figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
strip(panels[0], first, small, "CSD after experience 1, gallery of its 2 classes", named=True)
strip(panels[1], last, small, "after experience 5, the same gallery")
strip(panels[2], last, every, "after experience 5, gallery of all 10 classes")
plt.show()

# %% [markdown]
# *Query at the left of each strip, then its five nearest images; a solid frame and a tick for the query's class, a
# dashed frame and a cross for another. From the first panel to the second the **model** changes, from the second to the
# third the **gallery**.*

# %%
figure, panels = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
for axes, (name, of) in zip(panels, runs.items(), strict=True):
    strip(axes, of[0]["models"][-1], every, f"{name}, after experience 5", named=name == "CSD")
plt.show()

# %% [markdown]
# *The same queries, gallery of all ten classes, under the four learners.*
#
# The middle panel is what is usually reported as retrieval after continual learning on an experience: its own images
# are queries *and* gallery, so the search is among two classes. The right panel is what a user of the engine sees.
# Before we compare anything, a look at the scale.
#
# ## What would one get without learning?

# %%
from avalanche_contrastive.bench.methods.networks import make_encoder
from avalanche_contrastive.bench.results import load_results
from avalanche_contrastive.metrics import recall_at_k

results = load_results(ROOT / "benchmarks" / "results" / SUITE)
stream = make_stream(SUITE, 0, **{**SIZES, "test_images": 0})  # the results are of all test images
test, test_y = images(stream.benchmark.test_stream)


def untrained(seed):
    """Recall@1 of a network as it is initialised."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return recall_at_k(make_encoder(STREAMS[SUITE].network, stream.image_shape).eval()(test), test_y, ties="mean")


final = {name: [r["recall_at_1"][-1] for r in results[row]] for name, row in (*ROWS.items(), ("Joint", "joint"))}
final |= {
    "raw pixels": [recall_at_k(test.flatten(1), test_y, ties="mean")],
    "untrained network": [untrained(s) for s in SEEDS],
}

# %%
from avalanche_contrastive.bench.report.cells import Table
from avalanche_contrastive.bench.report.stats import mean_interval


def shown(values):
    """Mean in per cent, and its 95 % interval where there are several values."""
    mean = f"{100 * sum(values) / len(values):.1f}"
    if len(values) == 1:
        return mean
    low, high = mean_interval(values)
    return f"{mean} [{100 * low:.1f}, {100 * high:.1f}]"


lines = sorted(final.items(), key=lambda item: sum(item[1]) / len(item[1]))
rows = tuple((name, shown(values), str(len(values)) if len(values) > 1 else "–") for name, values in lines)
caption = "Leave one out among all test images after the last experience; learners: the benchmark's results."
Markdown(str(Table(("features", "Recall@1 (%)", "seeds"), rows, "lrr", caption)))

# %%
raw = final["raw pixels"][0]
below = [name for name, values in final.items() if name in ROWS and sum(values) / len(values) < raw]
Markdown(
    f"Raw pixels reach {100 * raw:.1f} %, an untrained network {shown(final['untrained network'])} %. "
    f"{', '.join(below) or 'None of the learners'} end below raw pixels: on images as easy as these, Recall@1 starts "
    "so high that there is little to learn and little to forget. Read all that follows with that in mind."
)

# %% [markdown]
# ## The comparison as it is usually made
#
# From the benchmark's results: forgetting of class-incremental accuracy beside forgetting of Recall@1 within each
# experience. And, between them, what is comparable to the latter: accuracy **with the task known**, when the
# classifier, too, has only to tell two classes apart.

# %%
from avalanche_contrastive.metrics import forgetting

MEASURES = {
    "accuracy": "accuracy_matrix",
    "accuracy, task known": "task_accuracy_matrix",
    "Recall@1 within experience": "recall_matrix",
}
stored = {**ROWS, "Naive, by accuracy": "naive", "LwF, by accuracy": "lwf"}
# Where both choices gave one setting, once.
same = [name for name in stored if name not in ROWS and load_row(stored[name], SUITE).config in CONFIGS.values()]
stored = {name: row for name, row in stored.items() if name not in same}
forgotten = {
    (name, measure): [forgetting(r[key]) for r in results[row]]
    for name, row in stored.items()
    for measure, key in MEASURES.items()
}


# %%
def plot_intervals(axes, values, names, measures):
    """Means with 95 % intervals, in per cent: a line of points for each measure."""
    marks = zip(measures, "osD", ("#0072B2", "#D55E00", "#009E73"), strict=False)
    for place, (measure, marker, colour) in enumerate(marks):
        for row, name in enumerate(names):
            at, of = row + 0.22 * (place - 1), values[name, measure]
            low, high = mean_interval(of)
            axes.plot([100 * low, 100 * high], [at, at], color=colour, linewidth=2)
            label = measure if row == 0 else None
            axes.plot(100 * sum(of) / len(of), at, marker, color=colour, markersize=7, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")


# %%
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
plot_intervals(axes, forgotten, list(stored), MEASURES)
axes.set(xlabel="forgetting (points)", title=f"benchmark's results, {len(results['csd'])} seeds")
plt.show()

# %% [markdown]
# *Forgetting: best earlier value minus the last, mean over earlier experiences (points), with 95 % intervals over
# seeds. Circles: accuracy. Squares: accuracy with the task known. Diamonds: Recall@1 within the experience.*


# %%
def stages(matrix):
    """Mean of experiences 2 to 4 before they are trained, just after, and at the end."""
    r = torch.tensor(matrix)
    middle = range(1, len(r) - 1)  # those that have a before and an after
    before, learned, end = zip(*((r[:j, j].mean(), r[j, j], r[-1, j]) for j in middle), strict=True)
    return torch.stack([torch.stack(values).mean() for values in (before, learned, end)])


# %%
lines, kept = [], {}
for name, row in ROWS.items():
    for measure, key in MEASURES.items():
        before, learned, end = torch.stack([stages(r[key]) for r in results[row]]).mean(dim=0).tolist()
        kept[name, measure] = (end - before) / (learned - before)
        values = [f"{100 * value:.1f}" for value in (before, learned, end, kept[name, measure])]
        lines.append((name, measure, *values))
columns = ("learner", "figure", "before training", "just learned", "at the end", "of the gain, kept")
Markdown(str(Table(columns, tuple(lines), "llrrrr", "Experiences 2 to 4; per cent, mean over seeds.")))

# %% [markdown]
# Look at *before training*: within an experience, Recall@1 stands high before a single image of it has been seen. What
# can be forgotten is what training has added to that, and the last column says how much of it is still there.
#
# ## Like with like
#
# Among two classes, the pair to compare is Recall@1 within an experience and accuracy with the task known. Among all
# classes seen so far, it is Recall@1 in the gallery of all of them and class-incremental accuracy: our own runs have
# both, for each experience after each experience.

# %%
from avalanche_contrastive.plots import plot_matrix

figure, panels = plt.subplots(2, 4, figsize=(15, 7.4), layout="constrained")
for (top, bottom), (name, of) in zip(panels.T, runs.items(), strict=True):
    plot_matrix(top, torch.stack([r["accuracy"] for r in of]).mean(dim=0), value=f"{name}: accuracy")
    plot_matrix(bottom, torch.stack([r["recall"] for r in of]).mean(dim=0), value=f"{name}: Recall@1, seen")
plt.show()

# %% [markdown]
# *After training on experience i (row), on experience j (column), mean over seeds. Top: accuracy of the classifier.
# Bottom: Recall@1 in the gallery of all training images of the classes seen so far; no number where a class is not in
# it yet.*

# %%
SEEN = {"accuracy": "accuracy", "nearest mean of the gallery": "mean", "Recall@1 in the gallery": "recall"}
among_seen = {
    (name, measure): [forgetting(r[key]) for r in of] for name, of in runs.items() for measure, key in SEEN.items()
}
figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
plot_intervals(axes, among_seen, list(ROWS), SEEN)
axes.set(xlabel="forgetting (points)", title=f"among all classes seen, {len(SEEDS)} seeds")
plt.show()

# %% [markdown]
# *Forgetting among all classes seen. Circles: the classifier's accuracy. Squares: accuracy of the nearest class mean of
# the gallery. Diamonds: Recall@1 in the gallery.*
#
# The paired differences, seed by seed, with the exact sign-flip test:

# %%
from avalanche_contrastive.bench.report.stats import compare

pairs = [
    ("two classes", forgotten, "accuracy, task known", "Recall@1 within experience"),
    ("all seen", among_seen, "accuracy", "Recall@1 in the gallery"),
    ("all seen", among_seen, "nearest mean of the gallery", "Recall@1 in the gallery"),
]
compared = {
    (name, scope, first): compare(values[name, first], values[name, second])
    for scope, values, first, second in pairs
    for name in ROWS
}


# %%
def cells(pair):
    """Difference in points, its interval, on how many seeds it is above zero, and p."""
    low, high = (100 * end for end in pair.interval)
    return f"{100 * pair.difference:+.1f}", f"[{low:+.1f}, {high:+.1f}]", f"{pair.wins} of {pair.n}", f"{pair.p:.4g}"


lines = [(name, scope, f"{first} − Recall@1", *cells(pair)) for (name, scope, first), pair in compared.items()]
columns = ("learner", "among", "forgetting of", "difference", "95 % interval", "higher on", "p")
least = " or ".join(sorted({f"{pair.smallest_p:.4g}" for pair in compared.values()}))  # by number of seeds
Markdown(str(Table(columns, tuple(lines), "lllrrrr", f"Points. The smallest p that there can be: {least}.")))

# %% [markdown]
# ## The gallery is a memory
#
# Recall@1 in a labelled gallery *is* the accuracy of a 1-nearest-neighbour classifier that keeps all training images:

# %%
from avalanche_contrastive.metrics import fit_readout

known = features(last, gallery), gallery_y
one_nearest = fit_readout(*known, "knn", k=1)(features(last, test)) == test_y
recall = recall_at_k(features(last, test), test_y, gallery=known[0], gallery_y=gallery_y, ties="mean")
assert abs(one_nearest.double().mean().item() - recall) < 0.005  # but for ties
Markdown(f"1-NN accuracy {100 * one_nearest.double().mean():.1f} %, Recall@1 {100 * recall:.1f} % (CSD, seed 0).")

# %% [markdown]
# So what is forgotten less is not retrieval as such, but a read-out that may look at the old images again. How much of
# it is the gallery? We shrink it, to a few images a class, drawn at random by seed.

# %%
PER_CLASS = (1, 2, 5, 10, 20, 50, 100)


def recall_by_size(of, seed, embed):
    """Recall@1 of all test images, in galleries of so many images per class."""
    (x, y), (q, q_y) = (
        images(part) for part in (of["stream"].benchmark.train_stream, of["stream"].benchmark.test_stream)
    )
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    rank = (torch.nn.functional.one_hot(y).cumsum(dim=0) - 1).gather(1, y[:, None])[:, 0]
    kept = [rank < size for size in PER_CLASS]
    g, f = embed(x), embed(q)
    return [100 * recall_at_k(f, q_y, gallery=g[k], gallery_y=y[k], ties="mean") for k in kept]


# %%
from functools import partial

from avalanche_contrastive.plots import plot_curves

shrunk = {
    name: [recall_by_size(r, seed, partial(features, r["models"][-1])) for seed, r in zip(SEEDS, of, strict=True)]
    for name, of in runs.items()
}
shrunk["raw pixels"] = [
    recall_by_size(r, seed, partial(torch.flatten, start_dim=1)) for seed, r in zip(SEEDS, runs["CSD"], strict=True)
]
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
plot_curves(axes, shrunk, x=PER_CLASS, xlabel="images per class in the gallery", ylabel="Recall@1 at the end (%)")
axes.set_xscale("log")
axes.set_xticks(PER_CLASS, PER_CLASS)
plt.show()

# %% [markdown]
# *Recall@1 of all test images after the last experience against the size of the gallery; mean and one standard
# deviation over seeds.*
#
# ## What we saw


# %%
def difference(name, scope, first):
    """Mean and interval of a paired difference in points."""
    pair = compared[name, scope, first]
    return f"{100 * pair.difference:.1f} [{100 * pair.interval[0]:.1f}, {100 * pair.interval[1]:.1f}]"


def clear(scope, first):
    """The learners for which the interval of the difference lies above zero."""
    above = [name for name in ROWS if compared[name, scope, first].interval[0] > 0]
    return f"{len(above)} of {len(ROWS)} learners ({', '.join(above)})"


ten = {name: torch.tensor(of)[:, PER_CLASS.index(10)].mean().item() for name, of in shrunk.items()}
full = {name: torch.tensor(of)[:, -1].mean().item() for name, of in shrunk.items()}
task, within, mean = "accuracy, task known", "Recall@1 within experience", "nearest mean of the gallery"
best = compare(*([r["recall_at_1"][-1] for r in results[row]] for row in ("csd", "naive_by_recall")))
span = f"[{100 * best.interval[0]:+.1f}, {100 * best.interval[1]:+.1f}]"

# %%
note = check_words(
    SUITE,
    {
        "every mean difference is above zero": all(pair.difference > 0 for pair in compared.values()),
        "Naive keeps no more of its gain in Recall@1 than in accuracy": kept["Naive", within]
        < kept["Naive", task] + 0.05,
        "with ten images a class Recall@1 is lower": all(ten[name] < full[name] for name in ("CSD", "Replay")),
        "CSD ends above Naive": best.difference > 0,
        "learners end below raw pixels": bool(below),
    },
)
Markdown(f"""{note}
- **Is retrieval forgotten less than classification?** Yes, for every learner, whichever way we compare: the mean
  difference is above zero each time. Told the task, accuracy is forgotten by {difference("CSD", "two classes", task)}
  points more than Recall@1 within the experience for CSD and by {difference("Replay", "two classes", task)} for Replay;
  the interval lies above zero for {clear("two classes", task)}. Among all classes seen, the classifier's accuracy is
  forgotten by {difference("CSD", "all seen", "accuracy")} points more than Recall@1 in the gallery for CSD and by
  {difference("Replay", "all seen", "accuracy")} for Replay; above zero for {clear("all seen", "accuracy")}.
- **The usual figure flatters.** Forgetting of {shown(forgotten["CSD", "accuracy"])} points beside
  {shown(forgotten["CSD", within])} sets a search among two classes against a choice among ten. With the task known,
  the former is {shown(forgotten["CSD", task])}. And Recall@1 has less to lose: of what training had added on an
  experience, CSD keeps {kept["CSD", within]:.0%} in Recall@1 and {kept["CSD", task]:.0%} in accuracy with the task
  known, Naive {kept["Naive", within]:.0%} and {kept["Naive", task]:.0%}: counted so, retrieval is not always ahead.
- **The gallery is a memory.** Recall@1 is 1-NN classification with all old images at hand. Read by class means, the
  same features are forgotten by {difference("CSD", "all seen", mean)} points more than read by neighbours (CSD; for
  Replay, with as many classes to tell apart, by {difference("Replay", "all seen", mean)}). With ten images a class in
  the gallery, not {PER_CLASS[-1]}, CSD's Recall@1 is {ten["CSD"]:.0f} % instead of {full["CSD"]:.0f} %,
  Replay's {ten["Replay"]:.0f} % instead of {full["Replay"]:.0f} %. Features *are* forgotten; a full gallery hides it.
- **CSD itself.** In the benchmark's full runs its Recall@1 after the last experience is {100 * best.difference:+.1f}
  points {span} above that of Naive, also chosen by Recall@1: higher on {best.wins} of {best.n} seeds, p = {best.p:.3g}.
  {", ".join(below) or "None"} all stay below raw pixels ({100 * raw:.1f} %): these data show how the methods differ
  in kind, they cannot show that one is needed.
""")
