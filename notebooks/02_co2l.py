# %% [markdown]
# # Co2L: views, anchors, relations
#
# **Question.** Co2L (Cha et al., ICCV 2021, [arXiv:2106.14413](https://arxiv.org/abs/2106.14413)) trains an encoder by
# contrast. What do its three parts – two views of every image, anchors among current images only, distillation of
# relations – each do to the features? And why, on the digits, is the *symmetric* contrast the better one?
#
# We look at images, then at a single step, then at features over five experiences with one part changed at a time. The
# data are scikit-learn's digits, two classes at a time, or part of MNIST, if `DATA` names a folder that has it.

# %%
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Markdown

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks").is_dir())
# tqdm misses its widgets; Avalanche misses a logger, but we read what `eval` returns.
warnings.filterwarnings("ignore", message="IProgress not found|No loggers specified")
# A folder with MNIST as torchvision keeps it, in FOLDER/MNIST/raw; empty: scikit-learn's digits.
DATA = os.environ.get("NOTEBOOK_DATA", "")

# %% [markdown]
# ## Two views
#
# Every image comes twice, cropped and turned anew each time. The two are each other's positives, as are all views of
# images of the same class.

# %%
from notebook_data import check_words, choose, paired

from avalanche_contrastive import BatchAugmentation
from avalanche_contrastive.bench.data.streams import STREAMS, make_stream
from avalanche_contrastive.data import stack_views

SUITE, SIZES = choose(DATA)


def images(experiences):
    """Images (N, C, H, W) and labels (N,)."""
    pairs = [(x, int(y)) for experience in experiences for x, y, *_ in experience.dataset]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


augmentation = BatchAugmentation(**STREAMS[SUITE].augmentation)
streams = {seed: make_stream(SUITE, seed, **SIZES) for seed in range(3)}
test, test_y = images(streams[0].benchmark.test_stream)
Markdown(f"`{augmentation}`. Experiences of seed 0: {', '.join(map(str, streams[0].experience_classes))}.")

# %%
torch.manual_seed(0)
shown = test[:: len(test) // 10]
rows = torch.cat([shown[:, None], stack_views(shown, augmentation)], dim=1)[:, :, 0]  # (images, 3, H, W)
figure, panels = plt.subplots(3, len(shown), figsize=(10, 3.2), layout="constrained")
for column, strip in enumerate(rows):
    for axes, image, name in zip(panels[:, column], strip, ("image", "view 1", "view 2"), strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name if column == 0 else "")
plt.show()

# %% [markdown]
# *Ten test images and two views of each. Digits are turned a little, never mirrored.*
#
# ## Five learners
#
# The method as it was tuned in the benchmark, and four others with one part or two exchanged; a few epochs, so that all
# runs take a minute or a few. The first two are run on three seeds, the others on one.

# %%
from avalanche_contrastive.bench.config import load_row

CONFIG = load_row("co2l", SUITE).config
EPOCHS = min(8, CONFIG.epochs)
VARIANTS = {
    "Co2L": {},
    "symmetric": {"asymmetric": False},
    "no distillation": {"weight": 0.0},
    "symmetric, no distillation": {"asymmetric": False, "weight": 0.0},
    "no augmentation": {"augmentation": lambda batch: batch},
}
SEEDS = {"Co2L": range(3), "symmetric": range(3)}
Markdown(
    f"{EPOCHS} of {CONFIG.epochs} epochs, memory of {CONFIG.memory} images, batches of {CONFIG.batch_size}, "
    f"temperature {CONFIG.options['temperature']}."
)

# %%
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive import Co2L, ContrastiveModel
from avalanche_contrastive.bench.methods.networks import make_encoder
from avalanche_contrastive.bench.run.build import schedule_of
from avalanche_contrastive.teacher import frozen_copy


def fresh_model(seed):
    """An untrained encoder with its projection head and read-out."""
    torch.manual_seed(seed)
    encoder = make_encoder(STREAMS[SUITE].network, streams[seed].image_shape)
    return ContrastiveModel(encoder, encoder.features, CONFIG.options["projection_size"])


# %%
def learner(model, **changed):
    """The strategy Co2L with the benchmark's options, but for those changed."""
    options = {key: CONFIG.options[key] for key in ("temperature", "weight", "readout_lr")}
    options |= {"mem_size": CONFIG.memory, "augmentation": augmentation, **changed}
    optimizer = torch.optim.SGD(model.parameters(), lr=CONFIG.lr, momentum=CONFIG.momentum)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    common = {"train_mb_size": CONFIG.batch_size, "eval_mb_size": 256, "train_epochs": EPOCHS, "evaluator": evaluator}
    # The benchmark's learning rates by experience; none where they are all the same.
    return Co2L(model=model, optimizer=optimizer, plugins=schedule_of(CONFIG), **options, **common)


# %%
def run(variant, seed):
    """Train through the stream; the model after each experience, final accuracy, and the memory."""
    strategy, models = learner(fresh_model(seed), **VARIANTS[variant]), []
    for experience in streams[seed].benchmark.train_stream:
        strategy.train(experience)
        models.append(frozen_copy(strategy.model))
    (accuracy,) = strategy.eval(streams[seed].benchmark.test_stream).values()
    memory = [(x, int(y)) for x, y, *_ in strategy.method.storage_policy.buffer]
    memory = torch.stack([x for x, _ in memory]), torch.tensor([y for _, y in memory])
    return {"models": models, "accuracy": accuracy, "memory": memory}


runs = {(variant, seed): run(variant, seed) for variant in VARIANTS for seed in SEEDS.get(variant, range(1))}

# %% [markdown]
# ## What the views teach
#
# Cosines between projections of a view and: the image's other view, images of the same class, images of other classes.
# Test images of seed 0, before training and after the first experience, on its two classes.


# %%
def cosines(model, x, y):
    """Mean cosine of a view with the other view, with other images of its class, and with other classes."""
    torch.manual_seed(0)
    with torch.no_grad():
        z = model.eval().project(stack_views(x, augmentation))
    across = z[:, 0] @ z[:, 1].T
    same = y[:, None] == y
    alone = ~torch.eye(len(y), dtype=torch.bool)
    return [across.diagonal().mean(), across[same & alone].mean(), across[~same].mean()]


# %%
first_x, first_y = images(streams[0].benchmark.test_stream[:1])
stages = {"untrained": fresh_model(0), **{v: runs[v, 0]["models"][0] for v in ("Co2L", "no augmentation")}}
found = {name: cosines(model, first_x, first_y) for name, model in stages.items()}
figure, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
looks = (("other view", "#0072B2", ""), ("same class", "#E69F00", "//"), ("other class", "#009E73", ".."))
for place, (name, colour, hatch) in enumerate(looks):
    height, values = torch.arange(3) + 0.26 * (place - 1), [of[place] for of in found.values()]
    bars = axes.barh(height, values, 0.24, color=colour, hatch=hatch, ec="white", label=name)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
axes.set_yticks(range(3), ["untrained", "Co2L, experience 1", "without augmentation"])
axes.invert_yaxis()
axes.set(xlabel="mean cosine of projections", xlim=(min(0, *map(min, found.values())) - 0.02, 1.15))
axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
plt.show()

# %% [markdown]
# *Mean cosines between projections of views of test images. Untrained, everything is alike; contrast pulls views and
# classes together and the classes apart. Without augmentation it does so, too, but for the pixels it was trained on;
# the two views of an image, which that encoder has never seen, are less alike.*
#
# ## One step: who is pulled, who is pushed
#
# Take Co2L after experience 2, and a batch of its two old and its two new classes. We let each term of the loss move
# the *projections* one small step, of the same length for all terms, and look at what happens to the mean cosine
# between classes. The teacher is, as in training, the model after experience 1.

# %%
from avalanche_contrastive.losses import asymmetric_supcon, relation_distillation

old, new = streams[0].experience_classes[:2]
x, y = images(streams[0].benchmark.test_stream[:2])
picked = torch.cat([(y == c).nonzero()[:8, 0] for c in (*old, *new)])
x, y = x[picked], y[picked]
is_current = torch.isin(y, torch.tensor(new))
torch.manual_seed(0)
views = stack_views(x, augmentation)
teacher, student = runs["Co2L", 0]["models"][:2]
with torch.no_grad():
    z, z_teacher = student.project(views), teacher.project(views)


# %%
temperature = CONFIG.options["temperature"]
TERMS = {
    "asymmetric contrast": lambda z: asymmetric_supcon(z, y, is_current, temperature=temperature),
    "symmetric contrast": lambda z: asymmetric_supcon(z, y, temperature=temperature),
    "relation distillation": lambda z: relation_distillation(z, z_teacher),
}


# %%
def class_cosines(z):
    """Mean cosine between the views of each two classes, (4, 4)."""
    member = (y[:, None] == torch.tensor([*old, *new])).float().repeat_interleave(z.shape[1], dim=0)
    means = (member / member.sum(dim=0)).T @ z.flatten(0, 1)
    return means @ means.T


def change(term, length=0.5):
    """What a step of that length, over all views, does to the cosines; × 100."""
    moved = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term(moved), moved)
    return 100 * (class_cosines(F.normalize(z - length * gradient / gradient.norm(), dim=2)) - class_cosines(z))


changes = {name: change(term) for name, term in TERMS.items()}

# %%
names = [f"{kind} {c}" for kind, classes in (("old", old), ("new", new)) for c in classes]


def blocks(axes, matrix, title, form="{:+.1f}"):
    """A matrix between classes, with its numbers."""
    limit = float(matrix.abs().max())
    axes.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
    for (i, j), value in zip(torch.cartesian_prod(*[torch.arange(4)] * 2).tolist(), matrix.flatten(), strict=True):
        colour = "white" if abs(value) > 0.7 * limit else "black"
        axes.text(j, i, form.format(value), ha="center", va="center", color=colour)
    axes.set_xticks(range(4), names, fontsize=9)
    axes.set_yticks(range(4), names, fontsize=9)
    axes.set_title(title, fontsize=11)


figure, panels = plt.subplots(1, 5, figsize=(17, 3.7), layout="constrained")
blocks(panels[0], class_cosines(z_teacher), "teacher: cosines", "{:.2f}")
blocks(panels[1], class_cosines(z), "student: cosines", "{:.2f}")
for axes, (name, matrix) in zip(panels[2:], changes.items(), strict=True):
    blocks(axes, matrix, f"{name}: × 100")
plt.show()

# %% [markdown]
# *Mean cosine between classes of the batch (diagonal: within a class), in the teacher and in the student; then the
# change of the student's, times 100, by one step of each term. Plus is attraction.*

# %%
within_old = {name: float(matrix.diagonal()[:2].mean()) for name, matrix in changes.items()}
between_old = {name: float(matrix[0, 1]) for name, matrix in changes.items()}
generator = torch.Generator().manual_seed(0)
relabelled = y.clone()
relabelled[~is_current] = y[~is_current][torch.randperm(int((~is_current).sum()), generator=generator)]
asymmetric = [asymmetric_supcon(z, labels, is_current, temperature=temperature) for labels in (y, relabelled)]
symmetric = [asymmetric_supcon(z, labels, temperature=temperature) for labels in (y, relabelled)]
torch.testing.assert_close(*asymmetric)
asym, sym, distil = TERMS
Markdown(
    f"*Within* the old classes the asymmetric contrast changes the cosine by {within_old[asym]:+.1f}, the symmetric by "
    f"{within_old[sym]:+.1f}; *between* the two by {between_old[asym]:+.1f} and {between_old[sym]:+.1f}. The "
    "asymmetric contrast does not even know which old image is of which class: with the old labels shuffled it is "
    f"**{asymmetric[1]:.3f}** as before, the symmetric one {symmetric[1]:.3f} instead of {symmetric[0]:.3f}. The "
    "distillation leads back to the teacher, in what it knew and in what it did not: between the old classes by "
    f"{between_old[distil]:+.1f}."
)

# %% [markdown]
# So in Co2L old images repel the new classes, and what becomes of two old ones is a by-product – but for the
# distillation, which keeps an old class together and old classes as far apart as they were. Nothing aims at more.
#
# ## Relations, kept and lost
#
# Cosines between test images of the first four classes, sorted by class: right after they were learned, and at the end.

# %%
early = torch.tensor([*old, *new])
chosen = torch.cat([(test_y == c).nonzero()[:12, 0] for c in early])
panels_of = {
    "after experience 2": runs["Co2L", 0]["models"][1],
    "at the end: Co2L": runs["Co2L", 0]["models"][-1],
    "at the end: symmetric": runs["symmetric", 0]["models"][-1],
    "at the end: no distillation": runs["no distillation", 0]["models"][-1],
}

# %%
figure, panels = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
for axes, (name, model) in zip(panels, panels_of.items(), strict=True):
    with torch.no_grad():
        shown_z = model.project(test[chosen])
    picture = axes.imshow(shown_z @ shown_z.T, cmap="cividis", vmin=-1, vmax=1)
    axes.set_xticks(range(6, 48, 12), early.tolist())
    axes.set_yticks(range(6, 48, 12), early.tolist())
    axes.set_title(name)
figure.colorbar(picture, ax=panels, label="cosine")
plt.show()

# %% [markdown]
# *Cosines between 48 test images, twelve of each class; bright is alike. Four bright blocks on the diagonal are four
# classes that are told apart; a panel that is bright all over is a collapse, all projections in one point.*
#
# ## Features over the experiences

# %%
from avalanche_contrastive.plots import plot_embedding, project

arrival = torch.argsort(torch.tensor(streams[0].class_order))  # place of each class in the order of coming
class_names = {place: str(c) for place, c in enumerate(streams[0].class_order)}
figure, panels = plt.subplots(2, 5, figsize=(16, 6.6), layout="constrained")
for t, (model, (top, bottom)) in enumerate(zip(runs["Co2L", 0]["models"], panels.T, strict=True)):
    x, y = images(streams[0].benchmark.test_stream[: t + 1])
    with torch.no_grad():
        points = project(model.embed(x))
    plot_embedding(top, points, arrival[y], by="class", names=class_names)
    plot_embedding(bottom, points, arrival[y] // 2 + 1, by="experience")
    top.set_title(f"after experience {t + 1}")
    for axes in (top, bottom):
        axes.get_legend().remove()
plt.show()

# %% [markdown]
# *Encoder features of the test images of all classes seen so far, by their first two principal components, Co2L, seed
# 0. Top: by class. Bottom: the same points by the experience that brought them.*

# %%
figure, panels = plt.subplots(2, 2, figsize=(11, 10), layout="constrained")
for axes, variant in zip(panels.flat, [v for v in VARIANTS if v != "no augmentation"], strict=True):
    with torch.no_grad():
        h = runs[variant, 0]["models"][-1].embed(test)
    plot_embedding(axes, h, arrival[test_y], names=class_names, method="tsne")
    axes.get_legend().remove()
    axes.set_title(f"{variant}: accuracy {100 * runs[variant, 0]['accuracy']:.0f} %")
plt.show()

# %% [markdown]
# *Encoder features of all test images at the end, by t-SNE (which draws clusters, not distances), seed 0; numbers are
# classes.*
#
# ## Symmetric or asymmetric
#
# At the end, for the eight older classes: how *tight* they are (mean cosine between images of one class), how much they
# *overlap* (cosine of a class mean with that of the nearest other old class), and how well the features can be read
# out: by Co2L's own read-out, fitted to the last experience and the memory, and by a linear probe fitted to all
# training images. If symmetric contrast overfitted the memory, which is the paper's case against it, then exemplars
# would be much tighter than test images.


# %%
def tightness(z, y, classes):
    """Mean cosine between different images of one class, mean over these classes."""
    unit, values = F.normalize(z, dim=1), []
    for c in classes:
        inside = unit[y == c] @ unit[y == c].T
        values.append((inside.sum() - inside.trace()) / (inside.numel() - len(inside)))
    return torch.stack(values).mean().item()


def overlap(z, y, classes):
    """Cosine of a class mean with the nearest other, mean over these classes."""
    means = F.normalize(torch.stack([F.normalize(z, dim=1)[y == c].mean(dim=0) for c in classes]), dim=1)
    return (means @ means.T).fill_diagonal_(-1).amax(dim=1).mean().item()


# %%
from avalanche_contrastive.metrics import class_displacement, fit_readout, linear_cka, recall_at_k


@torch.no_grad()
def anatomy(variant, seed):
    """What became of the old classes."""
    of, stream = runs[variant, seed], streams[seed]
    classes = [c for group in stream.experience_classes[:-1] for c in group]
    (x, y), (known, known_y) = (images(part) for part in (stream.benchmark.test_stream, stream.benchmark.train_stream))
    model, before = of["models"][-1], of["models"][-2]
    memory, memory_y = of["memory"]
    z, h, old_rows = model.project(x), model.embed(x), torch.isin(y, torch.tensor(classes))
    probe = fit_readout(model.embed(known), known_y)
    return {
        "accuracy": of["accuracy"],
        "linear probe": (probe(h) == y).double().mean().item(),
        "Recall@1": recall_at_k(h, y, ties="mean"),
        "tightness, test": tightness(z, y, classes),
        "tightness, memory": tightness(model.project(memory), memory_y, classes),
        "overlap": overlap(z, y, classes),
        "CKA": linear_cka(h[old_rows], before.embed(x)[old_rows]),
        "displacement": class_displacement(h[old_rows], before.embed(x)[old_rows], y[old_rows]),
    }


measured = {key: anatomy(*key) for key in runs}

# %%
from avalanche_contrastive.bench.report.cells import Table
from avalanche_contrastive.bench.report.stats import compare, mean_interval


def with_range(variant, name):
    """Mean, and the range over seeds where there are several, in per cent."""
    values = [100 * measured[variant, seed][name] for seed in SEEDS.get(variant, range(1))]
    mean = f"{sum(values) / len(values):.0f}"
    return f"{mean} [{min(values):.0f}, {max(values):.0f}]" if len(values) > 1 else mean


figures = list(measured["Co2L", 0])
lines = tuple((variant, *(with_range(variant, name) for name in figures)) for variant in VARIANTS)
caption = (
    "× 100. Mean [range] over three seeds, or seed 0. CKA and displacement: old classes, over the last experience."
)
Markdown(str(Table(("learner", *figures), lines, "l" + "r" * len(figures), caption)))

# %% [markdown]
# ## The benchmark's ablations
#
# The same question with all images, the full number of epochs and whatever seeds there are, from `benchmarks/results`.

# %%
from avalanche_contrastive.bench.results import load_results

results = load_results(ROOT / "benchmarks" / "results" / SUITE)
ABLATIONS = ("symmetric", "no_distillation", "ncm", "no_buffer", "no_buffer_no_distillation")
kept = paired(results, ["co2l", *(f"co2l_{part}" for part in ABLATIONS)])
ROWS, seeds = list(kept), len(kept["co2l"])
FULL = {
    "final accuracy": lambda r: 100 * r["final_accuracy"],
    "forgetting": lambda r: 100 * r["forgetting"],
    "Recall@1": lambda r: 100 * r["recall_at_1"][-1],
}
full = {(row, name): [of(r) for r in kept[row]] for row in ROWS for name, of in FULL.items()}


# %%
def minus_co2l(row, name):
    """Difference to the whole method, seed by seed, with its interval."""
    pair = compare(full[row, name], full["co2l", name])
    low, high = pair.interval
    return f"{pair.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def mean(row, name):
    """Mean with its interval."""
    low, high = mean_interval(full[row, name])
    return f"{sum(full[row, name]) / len(full[row, name]):.1f} [{low:.1f}, {high:.1f}]"


# %%
label = {row: load_row(row, SUITE).label for row in ROWS}
lines = [(label[row], *(mean(row, name) for name in FULL)) for row in ROWS]
differences = ["–", *(minus_co2l(row, "final accuracy") for row in ROWS[1:])]
lines = tuple((*line, difference) for line, difference in zip(lines, differences, strict=True))
caption = f"Per cent, mean and 95 % interval over {seeds} seeds; the difference is to Co2L, seed by seed."
caption += "" if len(ROWS) > 1 else f" On {STREAMS[SUITE].title} the ablations have not been run."
Markdown(str(Table(("row", *FULL, "accuracy, difference"), lines, "lrrrr", caption)))

# %% [markdown]
# ## What we saw


# %%
def level(variant, name):
    """Mean over the seeds, in per cent."""
    values = [measured[variant, seed][name] for seed in SEEDS.get(variant, range(1))]
    return 100 * sum(values) / len(values)


def at_end(variant, name):
    """The same, to be read."""
    return f"{level(variant, name):.0f}"


# %%
bare, unaided = "no distillation", "symmetric, no distillation"
per_experience = len(streams[0].benchmark.train_stream[0].dataset)
first_seed = 100 * runs["Co2L", 0]["accuracy"]
claims = {
    "two views raise accuracy": level("no augmentation", "accuracy") < first_seed,
    "without distillation, symmetric anchors overlap less": level(unaided, "overlap") < level(bare, "overlap"),
    "with distillation, they overlap less": level("symmetric", "overlap") < level("Co2L", "overlap"),
    "their linear probe is better": level("symmetric", "linear probe") > level("Co2L", "linear probe"),
    "exemplars are tighter": level("symmetric", "tightness, memory") > level("symmetric", "tightness, test"),
}

# %%
without = ""
if (row := "co2l_no_distillation") in ROWS:
    pair = compare(full[row, "final accuracy"], full["co2l", "final accuracy"])
    claims["distillation raises accuracy"] = pair.interval[1] < 0
    without = f""" In the benchmark, leaving it out changes final
  accuracy by {minus_co2l(row, "final accuracy")} points and Recall@1 by
  {minus_co2l(row, "Recall@1")}: the paper's claim {"holds" if pair.interval[1] < 0 else "is not shown"}."""
if (row := "co2l_symmetric") in ROWS:
    pair = compare(full[row, "final accuracy"], full["co2l", "final accuracy"])
    by = f"""{minus_co2l(row, "final accuracy")} points
  of final accuracy, on {pair.wins} of {pair.n} seeds, p = {pair.p:.3g}; and by
  {minus_co2l(row, "Recall@1")} of Recall@1"""
else:
    pair = compare(*([runs[variant, seed]["accuracy"] for seed in range(3)] for variant in ("symmetric", "Co2L")))
    by = f"{100 * pair.difference:+.1f} points of final accuracy in our short runs, on {pair.wins} of {pair.n} seeds"
claims["symmetric anchors are better"] = pair.difference > 0

# %%
Markdown(f"""{check_words(SUITE, claims)}
- **Two views** make the contrast one of digits and not of pixels: with the same plain image as both views, accuracy at
  the end is {at_end("no augmentation", "accuracy")} % on seed 0, against {first_seed:.0f} %.
- **Asymmetric anchors** leave the old classes alone: old images repel new ones, and no term is about two old images.
  Without distillation the old classes end up *on* each other: their overlap (× 100; at 100 the projections are one
  point) is {at_end(bare, "overlap")}, where symmetric anchors without distillation keep it at
  {at_end(unaided, "overlap")}, and reach an accuracy of {at_end(unaided, "accuracy")} % instead of
  {at_end(bare, "accuracy")} % (seed 0).
- **Relation distillation** is what keeps old classes in asymmetric Co2L.{without}
- **Against the paper**, symmetric anchors are better here: by {by}. It is
  not the read-out alone: in our short runs a linear probe on all training
  images reaches {at_end("symmetric", "linear probe")} % against {at_end("Co2L", "linear probe")} %.
- **Why.** Distillation aims at keeping old classes as far apart as they were; symmetric contrast drives them further
  apart at every step. At the end they overlap by {at_end("symmetric", "overlap")} instead of
  {at_end("Co2L", "overlap")}. The paper's case against it, overfitting of the memory, is real: exemplars of a class are
  tighter than its test images, {at_end("symmetric", "tightness, memory")} to {at_end("symmetric", "tightness, test")}
  (Co2L: {at_end("Co2L", "tightness, memory")} to {at_end("Co2L", "tightness, test")}). On easy images, with
  {CONFIG.memory} exemplars beside the {per_experience:,} images of an experience, that is a small price. On CIFAR-10,
  where the paper keeps 200 images beside 10,000, it need not be.
""")
