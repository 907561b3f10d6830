# %% [markdown]
# # SS-IL: where a classifier's bias comes from
#
# **Question.** Why does a classifier that learns class after class favour the newest ones, and what do a separated
# softmax and task-wise distillation (Ahn et al., ICCV 2021, [arXiv:2003.13947](https://arxiv.org/abs/2003.13947))
# change about it?
#
# We look at one step, at one batch, and then at whole runs over five seeds. The data are scikit-learn's digits in five
# experiences of two classes, or part of MNIST, if `DATA` names a folder that has it; everything below is measured in
# this notebook unless it says that it was read from the benchmark's results.

# %%
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from torch import nn

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks").is_dir())
# tqdm misses its widgets; Avalanche misses a logger, but we read what `eval` returns.
warnings.filterwarnings("ignore", message="IProgress not found|No loggers specified")
# A folder with MNIST as torchvision keeps it, in FOLDER/MNIST/raw; empty: scikit-learn's digits.
DATA = os.environ.get("NOTEBOOK_DATA", "")

# %% [markdown]
# ## The learners
#
# Settings are those that were tuned for SS-IL in the benchmark, but for the number of epochs: five seeds of four
# learners have to fit into a minute or two here. The full schedule comes back at the end, from the committed results.
#
# All but the first learner are one class with other switches, so that nothing else differs between them. *Plain* is
# cross-entropy over all classes seen; its distillation is task-wise as well, which is the paper's own comparison.

# %%
from notebook_data import check_words, choose, paired

from avalanche_contrastive.bench.config import load_row

SUITE, SIZES = choose(DATA)
CONFIG = load_row("ssil", SUITE).config
EPOCHS, SEEDS = min(6, CONFIG.epochs), range(5)
VARIANTS = {
    "Naive": None,
    "plain softmax": {"separated": False},
    "separated (SS-IL)": {},
    "separated, global": {"distillation": "global"},
}
NAIVE, PLAIN, SEPARATED, GLOBAL = VARIANTS
Markdown(
    f"{EPOCHS} of {CONFIG.epochs} epochs; memory of {CONFIG.memory} images, {CONFIG.batch_size} current and "
    f"{CONFIG.options['batch_size_mem']} replayed rows a step, SGD at {CONFIG.lr}."
)


# %%
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive import SSIL
from avalanche_contrastive.bench.data.streams import STREAMS, make_stream
from avalanche_contrastive.bench.methods.networks import Classifier, make_encoder
from avalanche_contrastive.bench.run.build import schedule_of
from avalanche_contrastive.metrics import bias_metrics


def learner(variant, stream, seed):
    torch.manual_seed(seed)
    encoder = make_encoder(STREAMS[SUITE].network, stream.image_shape)
    model = Classifier(encoder, nn.Linear(encoder.features, stream.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=CONFIG.lr, momentum=CONFIG.momentum)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), bias_metrics(), loggers=[])
    common = {"model": model, "optimizer": optimizer, "evaluator": evaluator, "train_epochs": EPOCHS}
    common |= {"train_mb_size": CONFIG.batch_size, "eval_mb_size": 256, "plugins": schedule_of(CONFIG)}
    if variant == NAIVE:
        return Naive(criterion=nn.CrossEntropyLoss(), **common)
    options = {key: CONFIG.options[key] for key in ("batch_size_mem", "weight")}
    return SSIL(mem_size=CONFIG.memory, **options, **VARIANTS[variant], **common)


# %%
def images(*experiences, rows=None):
    """Images and labels of these experiences, or a random draw of some."""
    pairs = [(x, y) for experience in experiences for x, y, *_ in experience.dataset]
    drawn = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:rows]
    return torch.stack([pairs[i][0] for i in drawn]), torch.tensor([pairs[i][1] for i in drawn])


# %% [markdown]
# ## One step
#
# A classifier has learned two classes. Now comes a batch with two new ones, and a few replayed images of the old. What
# does the loss do to each class's logit? We sum minus the gradient over the new and over the replayed images: a bar to
# the right pushes the logit up.

# %%
stream = make_stream(SUITE, 0, **SIZES)
old, new = stream.experience_classes[:2]
train = list(stream.benchmark.train_stream)
strategy = learner(NAIVE, stream, 0)
strategy.train(train[0])

rows = CONFIG.batch_size, CONFIG.options["batch_size_mem"]
drawn = [images(experience, rows=count) for experience, count in zip(train[1::-1], rows, strict=True)]
x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
groups = torch.full((stream.classes,), -1)
groups[old], groups[new] = 0, 1
plain_groups = groups.clamp(max=0)  # old and new in one group: the ordinary softmax over all classes seen


# %%
from avalanche_contrastive.losses import separated_softmax


def push(class_groups):
    logits = strategy.model.eval()(x).detach().requires_grad_()
    (len(x) * separated_softmax(logits, y, class_groups)).backward()
    by_images = [-logits.grad[: rows[0]].sum(dim=0), -logits.grad[rows[0] :].sum(dim=0)]
    return torch.stack(by_images)[:, [*old, *new]]


# %%
pushes = {"plain softmax": push(plain_groups), "separated softmax": push(groups)}
figure, panels = plt.subplots(1, 2, figsize=(10, 3), sharex=True, sharey=True, layout="constrained")
for axes, (name, of) in zip(panels, pushes.items(), strict=True):
    for source, height, hatch, label in ((0, -0.2, "", "by new images"), (1, 0.2, "//", "by replayed images")):
        places = torch.arange(4) + height
        axes.barh(places, of[source], 0.4, color=("#0072B2", "#E69F00")[source], hatch=hatch, ec="white", label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(title=name, xlabel="push on the logit, summed over the batch")
panels[0].set_yticks(range(4), [f"{kind} {c}" for kind, cs in (("old", old), ("new", new)) for c in cs])
panels[0].invert_yaxis()
panels[0].legend()
plt.show()
# %% [markdown]
# *Push on the logits of two old and two new classes. Left, plain softmax: new images push the old logits down and their
# own up. Right, separated softmax: new images move new logits only, replayed images old ones only.*

# %%
by_new = {name: float(of[0, :2].sum()) for name, of in pushes.items()}
by_replayed = {name: float(of[1, 2:].sum()) for name, of in pushes.items()}
assert by_new["plain softmax"] < 0
assert by_new["separated softmax"] == 0 == by_replayed["separated softmax"]
Markdown(
    f"At this first step the classifier is sure that all {rows[0]} new images are of old classes. Plain softmax lets "
    f"them push the old logits by **{by_new['plain softmax']:.1f}** in all; the {rows[1]} replayed images move the new "
    f"logits by {abs(by_replayed['plain softmax']):.1f}. As new images outnumber replayed ones at every step, old "
    "logits sink: that is the paper's account of bias. Under the separated softmax both are exactly zero."
)

# %% [markdown]
# Mind what else is exactly zero: *anything* that compares an old logit with a new one. Nothing in the loss tells a new
# image that it is not of an old class. We come back to this.
#
# ## Global and task-wise distillation
#
# The teacher may be biased already: say its newest classes stand too high by some amount. Let student and teacher agree
# but for that amount on the classes of the last old experience. Global distillation, one softmax over all old classes,
# charges the student for leaving the teacher's bias; task-wise distillation, a softmax per experience, does not notice.

# %%
from avalanche_contrastive.losses import taskwise_distillation
from avalanche_contrastive.plots import plot_curves

tasks = torch.full((stream.classes,), -1)
for number, classes in enumerate(stream.experience_classes[:4]):
    tasks[classes] = number
logits = strategy.model(x).detach()
shifts = torch.linspace(-4, 4, 17)
last = F.one_hot(torch.tensor(stream.experience_classes[3]), stream.classes).sum(dim=0)
losses = {
    name: [float(taskwise_distillation(logits + shift * last, logits, of)) for shift in shifts]
    for name, of in (("task-wise", tasks), ("global", tasks.clamp(max=0)))
}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
plot_curves(axes, losses, x=shifts.tolist(), xlabel="shift of the last old task's logits", ylabel="distillation loss")
plt.show()
assert max(losses["task-wise"]) < 1e-4 < max(losses["global"])

# %% [markdown]
# *Distillation loss of a student that differs from its teacher by one constant on one task. Task-wise: none at all.*
#
# So neither half of SS-IL fixes how high one experience's logits stand against another's: not the separated softmax
# between old and new, not task-wise distillation among the old. Among the old, replay does, whose softmax runs over all
# old classes; between old and new, nothing does.
#
# ## Five seeds
#
# `bias_metrics()` in the evaluator measures, after each experience, the share of predictions that fall on the newest
# classes, the gap between mean new and mean old logits, and two confusion matrices, on test images of all classes seen.


# %%
def value(step, name):
    return next(v for key, v in step.items() if key.startswith(f"{name}/"))


def run(variant, seed):
    stream = make_stream(SUITE, seed, **SIZES)
    strategy, steps = learner(variant, stream, seed), []
    for experience in stream.benchmark.train_stream:
        strategy.train(experience)
        steps.append(strategy.eval(stream.benchmark.test_stream))
    x, y = images(*stream.benchmark.test_stream)
    with torch.no_grad():
        return {"stream": stream, "steps": steps, "y": y, "logits": strategy.model.eval()(x)}


runs = {variant: [run(variant, seed) for seed in SEEDS] for variant in VARIANTS}


# %%
from avalanche_contrastive.plots import plot_bias


def over_time(variant, name):
    return torch.tensor([[value(step, name) for step in r["steps"][1:]] for r in runs[variant]])


predicted = {variant: over_time(variant, "NewestShare_Predicted_Seen") for variant in VARIANTS}
true = over_time(PLAIN, "NewestShare_True_Seen")
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 3.8), layout="constrained")
plot_bias(left, {variant: shares[:, -1] for variant, shares in predicted.items()}, float(true[:, -1].mean()))
left.set_title("after the last experience", pad=18)
plot_curves(right, {n: 100 * v for n, v in predicted.items()}, x=range(2, 6), ylabel="predicted newest (%)")
right.plot(range(2, 6), 100 * true.mean(dim=0), "k--", linewidth=1.5)
right.set_title("after each experience")
plt.show()
# %% [markdown]
# *Share of predictions on the newest classes. Left: after the last experience, a dot for each seed, the dashed line is
# the true share. Right: after each experience, mean and one standard deviation over seeds; the black line is the true
# share.*
#
# Naive knows nothing but the newest classes. On the digits, plain softmax with replay predicts them too often,
# separated softmax too **rarely**. In numbers, after the last experience, mean and 95 % interval over seeds:

# %%
from avalanche_contrastive.bench.report.cells import Table
from avalanche_contrastive.bench.report.stats import mean_interval

FIGURES = {
    "predicted newest": ("NewestShare_Predicted_Seen", 100),
    "old taken for new": ("OldAsNew_Seen", 100),
    "new taken for old": ("NewAsOld_Seen", 100),
    "logit gap": ("LogitGap_Seen", 1),
}


def shown_mean(values, digits=1):
    low, high = mean_interval(values)
    return f"{sum(values) / len(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# %%
final = {
    (variant, name): (scale * over_time(variant, key)[:, -1]).tolist()
    for variant in VARIANTS
    for name, (key, scale) in FIGURES.items()
}
rows_shown = tuple((variant, *(shown_mean(final[variant, name]) for name in FIGURES)) for variant in VARIANTS)
Markdown(str(Table(("learner", *FIGURES), rows_shown, "lrrrr", "Per cent of images; the gap in logits.")))

# %% [markdown]
# Seed by seed, on the same streams: differences of the bias figures, their interval, and the exact sign-flip test.


# %%
from avalanche_contrastive.bench.report.stats import compare


def compared(first, second, name):
    pair = compare(final[first, name], final[second, name])
    low, high = pair.interval
    digits = 2 if name == "logit gap" else 1
    spread = f"{pair.difference:+.{digits}f}", f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    return (f"{first} − {second}", name, *spread, f"{pair.wins} of {pair.n}", f"{pair.p:.4g}")


pairs = [(SEPARATED, PLAIN), (SEPARATED, GLOBAL)]
table = tuple(compared(*pair, name) for pair in pairs for name in FIGURES)
columns = ("difference", "of", "mean", "95 % interval", "higher on", "p")
smallest = compare([1.0] * len(SEEDS), [0.0] * len(SEEDS)).smallest_p
Markdown(str(Table(columns, table, "llrrrr", f"The smallest p that {len(SEEDS)} seeds can give is {smallest:g}.")))

# %%
FIRST = "predicted newest"
over = [p - float(true[seed, -1]) * 100 for seed, p in enumerate(final[PLAIN, FIRST])]
under = [p - float(true[seed, -1]) * 100 for seed, p in enumerate(final[SEPARATED, FIRST])]
gap = shown_mean(final[SEPARATED, "logit gap"], 2)
note = check_words(
    SUITE,
    {
        "the shares separate the softmaxes": min(final[PLAIN, FIRST]) > max(final[SEPARATED, FIRST]),
        "plain softmax predicts the newest too often": min(over) > 0,
        "separated softmax predicts them too rarely": max(under) < 0,
        "the logit gap separates them": min(final[PLAIN, "logit gap"]) > max(final[SEPARATED, "logit gap"]),
    },
)
Markdown(
    f"{note}The bias numbers **separate the two softmaxes on every seed**: against the true share, plain softmax "
    f"predicts the newest classes too often by {shown_mean(over)} points, separated too rarely by "
    f"{shown_mean([-u for u in under])} points. The logit gap separates them, too, and teaches caution: it is near "
    f"zero ({gap}) where the classifier is *not* fair. One old class of eight need only be the highest; the mean of "
    "the eight does not see it."
)

# %% [markdown]
# ## Which experiences are confused?

# %%
from avalanche_contrastive.plots import plot_task_confusion

figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
for axes, variant in zip(panels, (NAIVE, PLAIN, SEPARATED), strict=True):
    counts = sum(value(r["steps"][-1], "TaskConfusion_Seen").matrix for r in runs[variant])
    plot_task_confusion(axes, counts)
    axes.set_title(f"{variant}: images (% of row)")
plt.show()

# %% [markdown]
# *Experience of the true class (rows) against that of the predicted class (columns), all seeds together. Naive: one
# column. On the digits, plain: errors lean towards the last column. Separated: the last **row** leaks into all old
# columns, and the rest is clean.*
#
# ## Bias or features?
#
# How much accuracy is lost to the level of the new logits alone? A diagnosis that uses the test labels, so it is no
# method: add a constant to the two newest logits of the finished classifier and watch the accuracy.


# %%
def accuracy_at(run, offset):
    newest = run["stream"].experience_classes[-1]
    level = F.one_hot(torch.tensor(newest), run["logits"].shape[1]).sum(dim=0)
    return float(((run["logits"] + offset * level).argmax(dim=1) == run["y"]).double().mean())


offsets = torch.arange(-4, 8.1, 0.5).tolist()
curves = {v: [[100 * accuracy_at(r, o) for o in offsets] for r in runs[v]] for v in (PLAIN, SEPARATED, GLOBAL)}
figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
plot_curves(axes, curves, x=offsets, xlabel="constant added to the newest logits", ylabel="final accuracy (%)")
axes.axvline(0, color="black", linewidth=0.8)
plt.show()
# %% [markdown]
# *Final accuracy against a constant on the newest logits; at zero, the classifiers as they are.*


# %%
def accuracy_told(run):
    """Accuracy where it is known whether an image is old or new, so that only logits of its group compete."""
    newest = torch.tensor(run["stream"].experience_classes[-1])
    is_new = torch.isin(torch.arange(run["logits"].shape[1]), newest)
    others = is_new != torch.isin(run["y"], newest)[:, None]
    right = run["logits"].masked_fill(others, -torch.inf).argmax(dim=1) == run["y"]
    return 100 * float(right.double().mean())


LOSSES = {
    "as it is": lambda v: [100 * accuracy_at(r, 0.0) for r in runs[v]],
    "at each seed's best constant": lambda v: [max(curve) for curve in curves[v]],
    "old or new told": lambda v: [accuracy_told(r) for r in runs[v]],
}
reached = {(v, name): of(v) for v in curves for name, of in LOSSES.items()}
below_told = {v: sum(reached[v, "old or new told"]) - sum(reached[v, "at each seed's best constant"]) for v in curves}
rows_shown = tuple((v, *(shown_mean(reached[v, name]) for name in LOSSES)) for v in curves)
Markdown(str(Table(("learner", *LOSSES), rows_shown, "lrrr", "Final accuracy in per cent.")))

# %% [markdown]
# If bias were a matter of levels, one constant would bring a classifier to the last column. On the digits it brings
# plain softmax near it, and leaves the separated one far below. There the scores of new and of old classes are fine
# among themselves, but no constant makes them comparable, image by image: nothing in the loss has ever compared them.
#
# ## The full schedule
#
# The benchmark's results with all images and the tuned number of epochs (`benchmarks/results`), the parts of SS-IL
# exchanged one by one. *When just learned* is the mean over experiences 2 to 5 of the accuracy on the classes just
# learned; Recall@1 is that of the features, which no bias of the last layer touches.

# %%
from avalanche_contrastive.bench.report.stats import learning_accuracy
from avalanche_contrastive.bench.results import load_results

results = load_results(ROOT / "benchmarks" / "results" / SUITE)
PARTS = ("global", "no_distillation", "plain", "plain_global", "plain_no_distillation")
kept = paired(results, ["ssil", *(f"ssil_{part}" for part in PARTS)])
ROWS, seeds = list(kept), len(kept["ssil"])
FULL = {
    "final accuracy": lambda r: r["final_accuracy"],
    "of it, newest classes": lambda r: r["accuracy_matrix"][-1][-1],
    "older classes": lambda r: sum(r["accuracy_matrix"][-1][:-1]) / (len(r["accuracy_matrix"]) - 1),
    "when just learned": lambda r: learning_accuracy(r["accuracy_matrix"]),
    "Recall@1": lambda r: r["recall_at_1"][-1],
}
full = {(row, name): [100 * of(r) for r in kept[row]] for row in ROWS for name, of in FULL.items()}

# %%
label = {row: load_row(row, SUITE).label for row in ROWS}
rows_shown = tuple((label[row], *(shown_mean(full[row, name]) for name in FULL)) for row in ROWS)
caption = f"Per cent, mean and 95 % interval over {seeds} seeds."
caption += "" if len(ROWS) > 1 else f" On {STREAMS[SUITE].title} the other parts have not been run."
Markdown(str(Table(("row", *FULL), rows_shown, "lrrrrr", caption)))

# %% [markdown]
# ## What we saw


# %%
def against(first, second, name):
    pair = compare(full[first, name], full[second, name])
    return f"{pair.difference:+.1f} points [{pair.interval[0]:+.1f}, {pair.interval[1]:+.1f}], p = {pair.p:.3g}"


def mean(variant, name):
    return f"{torch.tensor(reached[variant, name]).mean():.1f} %"


# %%
best = {v: sum(reached[v, "at each seed's best constant"]) for v in curves}
claims = {
    "separated softmax predicts the newest too rarely": max(under) < 0,
    "a constant brings plain softmax nearer to what it reaches when told": below_told[PLAIN] < below_told[SEPARATED],
    "and higher than the separated one": best[PLAIN] > best[SEPARATED],
}
against_paper = task_wise = ""
if {"ssil_plain", "ssil_global"} <= set(ROWS):
    worst = compare(full["ssil", "final accuracy"], full["ssil_plain", "final accuracy"])
    claims["separated softmax is worse than plain"] = worst.difference < 0
    all_images = make_stream(SUITE, 0, **{**SIZES, "train_images": 0}).benchmark.train_stream
    per_class = sum(len(experience.dataset) for experience in all_images) / stream.classes
    against_paper = f"""
- **Against the paper**: with the full schedule, separated minus plain softmax is
  {against("ssil", "ssil_plain", "final accuracy")}, in final accuracy, above zero on {worst.wins} of {worst.n} seeds.
  It is {against("ssil", "ssil_plain", "of it, newest classes")}, on the newest classes, and
  {against("ssil", "ssil_plain", "older classes")}, on the older ones. The features suffer less: Recall@1 differs by
  {against("ssil", "ssil_plain", "Recall@1")}. With two classes to an experience the new softmax is a choice between
  two, while an old logit has competed with up to seven others; and the few exemplars keep the bias of plain softmax
  small to begin with. The paper's ImageNet brings a hundred classes at a time, and keeps 5 to 20 of some 1,300 images
  a class; here it is {CONFIG.memory // stream.classes} of some {round(per_class, -1):,.0f}."""
    task_wise = f""" With the full
  schedule, task-wise minus global is {against("ssil", "ssil_global", "final accuracy")}, in final accuracy, and
  {against("ssil", "ssil_global", "when just learned")}, on classes when just learned."""

# %%
Markdown(f"""{check_words(SUITE, claims)}
- **Where bias comes from**: the paper's account holds. Under plain softmax new images push old logits down; without
  replay all predictions end on the newest classes.
- **What the separated softmax changes**: it takes that push away, all of it, and with it every comparison of old with
  new. Here the bias does not vanish, it **turns over**: {shown_mean(final[SEPARATED, "new taken for old"])}
  % of the newest classes' images are taken for older ones ({shown_mean(final[PLAIN, "new taken for old"])} % under
  plain softmax).{against_paper}
- **Not only a matter of levels**: told whether an image is old or new, the separated classifier is right on
  {mean(SEPARATED, "old or new told")} of the images and the plain one on {mean(PLAIN, "old or new told")}. The best
  constant on the newest logits brings the plain one to {mean(PLAIN, "at each seed's best constant")}, the separated one
  only to {mean(SEPARATED, "at each seed's best constant")}. A correction of the last layer would cure most of the
  former's bias; what the latter lacks is a comparison.
- **Task-wise against global distillation**: task-wise is blind to a shift between tasks, as intended.{task_wise}
""")
