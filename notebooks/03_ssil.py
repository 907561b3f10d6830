# %% [markdown]
# # SS-IL: where a classifier's bias comes from
#
# **Why does a classifier that learns class after class favour the newest ones, and what does SS-IL change?**
#
# SS-IL ([Ahn et al., ICCV 2021](https://arxiv.org/abs/2003.13947)) is replay with a *separated softmax* (old classes
# compete with old ones, new ones with new ones) and *task-wise distillation* (a softmax for each experience). We look at
# one step first, then at whole runs.

# %%
import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from notebook_data import bars, classes_of, images, load_benchmark, small_encoder, table
from torch import nn

from avalanche_contrastive import SSILPlugin
from avalanche_contrastive.metrics import bias_metrics


def learner(seed, plugins=()):
    """A small network under Naive; `bias_metrics` measure what falls on the newest classes."""
    encoder = small_encoder(seed)
    model = nn.Sequential(encoder, nn.Linear(encoder.features, 10))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        train_mb_size=32,
        train_epochs=6,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), bias_metrics(), loggers=[]),
    )


# %% [markdown]
# ## One step
#
# A model has learned two classes. Now comes a batch with 32 images of two new classes and 16 replayed ones. What does the
# loss do to the *logits*? A bar to the right pushes a logit up, a bar to the left pushes it down.

# %% alt="Two panels of bars: the push on the logits of two old and two new classes. Left, plain softmax: new images push the old logits strongly down and the new ones up. Right, separated softmax: new images move new logits only, replayed images old logits only."
from avalanche_contrastive.losses import separated_softmax

benchmark = load_benchmark()
old, new = (classes_of(experience) for experience in benchmark.train_stream[:2])
strategy = learner(0)
strategy.train(benchmark.train_stream[0])
parts = {"by new images": images(benchmark.train_stream[1:2]), "by replayed images": images(benchmark.train_stream[:1])}
parts = {name: (x[:n], y[:n]) for (name, (x, y)), n in zip(parts.items(), (32, 16), strict=True)}
x, y = (torch.cat(tensors) for tensors in zip(*parts.values(), strict=True))

groups = torch.full((10,), -1)  # which softmax a class is in; -1: none yet
groups[old], groups[new] = 0, 1
losses = {"plain softmax": groups.clamp(max=0), "separated softmax": groups}
pushes = {}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharex=True, sharey=True, layout="constrained")
for ax, (name, of_class) in zip(axes, losses.items(), strict=True):
    logits = strategy.model.eval()(x).detach().requires_grad_()
    (len(x) * separated_softmax(logits, y, of_class)).backward()
    push = [-rows.sum(dim=0)[[*old, *new]] for rows in logits.grad.split([32, 16])]
    pushes[name] = dict(zip(parts, push, strict=True))
    bars(ax, pushes[name], [f"old {c}" for c in old] + [f"new {c}" for c in new], "push on the logit, summed")
    ax.set_title(name)
axes[0].legend(fontsize="small")
plt.show()
# %% [markdown]
# **Plain softmax**: the many new images push the old logits down at every step. That is the bias. **Separated softmax**:
# new images do not touch old logits at all. But then nothing in the loss compares an old logit with a new one.
#
# ## Five seeds
#
# The method is one plugin. `separated=False` gives plain softmax, all else the same.

# %%
LEARNERS = {
    "Naive": lambda: [],
    "plain softmax": lambda: [SSILPlugin(mem_size=100, batch_size_mem=16, separated=False)],
    "SS-IL": lambda: [SSILPlugin(mem_size=100, batch_size_mem=16)],
}


def run(name, seed):
    stream, strategy = load_benchmark(seed), learner(seed, LEARNERS[name]())
    for experience in stream.train_stream:
        strategy.train(experience)
    found = strategy.eval(stream.test_stream)
    x, y = images(stream.test_stream)
    with torch.no_grad():
        logits = strategy.model.eval()(x)
    return {
        "found": {key.split("/")[0]: value for key, value in found.items()},
        "logits": logits,
        "y": y,
        "newest": classes_of(experience),  # the last one
    }


runs = {name: [run(name, seed) for seed in range(5)] for name in LEARNERS}

# %%
FIGURES = {
    "final accuracy": "Top1_Acc_Stream",
    "predicted newest": "NewestShare_Predicted_Seen",
    "truly newest": "NewestShare_True_Seen",
    "old taken for new": "OldAsNew_Seen",
    "new taken for old": "NewAsOld_Seen",
}
shown = {
    name: {label: [100 * r["found"][key] for r in of] for label, key in FIGURES.items()} for name, of in runs.items()
}
table(shown, "per cent of the test images")

# %% alt="Three heat maps, the experience of the true class against that of the predicted class. Naive: all images go to the last column. Plain softmax: most are on the diagonal, errors lean to the last column. SS-IL: the last row leaks into the older columns, the rest is nearly clean."
from avalanche_contrastive.plots import plot_task_confusion

figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
for ax, (name, of) in zip(axes, runs.items(), strict=True):
    counts = sum(r["found"]["TaskConfusion_Seen"].matrix for r in of)
    plot_task_confusion(ax, counts).set_title(f"{name}: images (% of row)")

# %% [markdown]
# ## Is it only the level of the new logits?
#
# Add a constant to the two newest logits of the finished classifier, and see how the accuracy changes. (This looks at
# test labels, so it is a diagnosis and no method.)

# %% alt="Final accuracy against a constant added to the newest logits, for plain softmax and SS-IL, mean and band of five seeds. Plain softmax is best near a negative constant and falls off on both sides. SS-IL is best with a positive constant. Both have their best value away from zero."
from avalanche_contrastive.plots import plot_curves

offsets = torch.arange(-4, 8.1, 0.5).tolist()


def accuracy_at(r, offset):
    logits = r["logits"].clone()
    logits[:, r["newest"]] += offset
    return 100 * float((logits.argmax(dim=1) == r["y"]).double().mean())


curves = {name: [[accuracy_at(r, o) for o in offsets] for r in runs[name]] for name in ("plain softmax", "SS-IL")}
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
plot_curves(ax, curves, x=offsets, xlabel="constant added to the newest logits", ylabel="final accuracy (%)")
ax.axvline(0, color="black", linewidth=0.8)
plt.show()

# %% [markdown]
# ## What we saw
#
# - **Where the bias comes from**: new images push old logits down. Without replay all predictions end on the newest
#   classes.
# - **Plain softmax with replay predicts the newest classes too often.**
# - **SS-IL predicts the newest classes too rarely.** The push is gone, and with it every comparison of old with new. The
#   bias turns over: the last row of its matrix leaks into the older columns.
# - **One constant helps SS-IL, but not enough**: at its best it stays below plain softmax. What is missing is a
#   comparison, image by image.
#
# On these data plain softmax is the better one, against the paper. The paper's ImageNet brings a hundred classes at a
# time and stores a small share of the images, which makes the bias of plain softmax much larger. So **measure the bias on
# your own stream**: put `bias_metrics()` into your evaluator, run `SSILPlugin(mem_size=...)` with and without
# `separated=False`, and compare over seeds. [RESULTS.md](../benchmarks/RESULTS.md) has all parts exchanged one by one.
