# %% [markdown]
# # Your own
#
# **Your images, your network, another plugin, your own method: how do they go in, and how do you compare them fairly?**
#
# ## Your images: one file
#
# A `.npz` file with `train_images` (N, H, W) or (N, H, W, 3), `train_labels` (N,), `test_images` and `test_labels`, or a
# folder with one folder of images for each class. Here scikit-learn's digits stand for your photographs.

# %%
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from avalanche_contrastive.bench.data.streams import make_stream

folder = Path(tempfile.mkdtemp())
digits = load_digits()
parts = train_test_split((digits.images * 15).astype(np.uint8), digits.target, test_size=0.25, random_state=0)
names = ("train_images", "test_images", "train_labels", "test_labels")
np.savez(folder / "photos.npz", **dict(zip(names, parts, strict=True)))

stream = make_stream("own", seed=0, data=str(folder / "photos.npz"))
benchmark = stream.benchmark  # an Avalanche benchmark
stream.description

# %% [markdown]
# ## Your network: any module
#
# SS-IL needs logits. CSD needs what enters the last linear layer, or a layer that you name. Co2L needs an encoder in a
# `ContrastiveModel`. This network reads an image row by row, with a GRU.

# %%
from torch import nn


class Reader(nn.Module):
    def __init__(self, side, classes, features=64):
        super().__init__()
        self.gru = nn.GRU(side, features, batch_first=True)
        self.head = nn.Linear(features, classes)

    def forward(self, x):  # (B, 1, side, side)
        _, state = self.gru(x[:, 0])
        return self.head(state[-1])


# %% [markdown]
# ## Another plugin, another memory
#
# A method replaces the criterion while it trains. What other plugins add to the loss stays, and the order of the list
# does not matter. The memory is any of Avalanche's storage policies.

# %%
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from notebook_data import table, terminal

from avalanche_contrastive import SSILPlugin


def final_accuracy(*plugins):
    torch.manual_seed(0)
    model = Reader(side=8, classes=10)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.003),
        train_mb_size=32,
        train_epochs=5,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    strategy.train(benchmark.train_stream)
    (accuracy,) = strategy.eval(benchmark.test_stream).values()
    return 100 * accuracy


def ssil():
    return SSILPlugin(mem_size=100, storage_policy=ReservoirSamplingBuffer(100))


final = {
    "SS-IL": final_accuracy(ssil()),
    "EWC, then SS-IL": final_accuracy(EWCPlugin(ewc_lambda=10.0), ssil()),
    "SS-IL, then EWC": final_accuracy(ssil(), EWCPlugin(ewc_lambda=10.0)),
}
table({name: {"final accuracy (%)": value} for name, value in final.items()}, "plugins")

# %% [markdown]
# ## Your method: one function and one file
#
# The runner compares methods over seeds. A method is a function from a *setting* to any Avalanche strategy. Ours puts
# CSD's contrastive distillation, without its other terms, beside Avalanche's replay. Its keyword-only parameter is what
# a config may set. A config says only what differs from the defaults.

# %%
METHOD = """
from avalanche.training.plugins import ReplayPlugin
from avalanche_contrastive import CSDPlugin

def distilled_replay(s, *, weight=1.0):
    distillation = CSDPlugin(weight=weight, kd_weight=0.0, triplet_weight=0.0, ce="all")
    return s.naive(distillation, ReplayPlugin(mem_size=s.config.memory))
"""
ROW = """
method = "mine:distilled_replay"
label = "Replay + distillation"

[options]
weight = 1.0
"""
(folder / "mine.py").write_text(METHOD)
(folder / "mine.toml").write_text(ROW)
(folder / "slip.toml").write_text(ROW.replace("weight = 1.0", "wieght = 1.0"))
print(terminal("avalanche-contrastive run slip.toml --data photos.npz", folder))

# %% [markdown]
# A slip is refused before anything runs. Now five seeds of our method and of plain replay, on the same streams. In a
# terminal you type what is in quotes. If it is stopped, give the command again: it goes on where it was.

# %%
terminal(
    "avalanche-contrastive run mine.toml replay --data photos.npz --seeds 0-4 --jobs 1 --out results "
    "--set network=small_cnn --memory 50",
    folder,
)
terminal("avalanche-contrastive report --results results --out report.html", folder)  # one page, to send or to open
sorted(path.name for path in folder.glob("*") if path.suffix in (".html", ".toml", ".npz"))

# %% [markdown]
# ## Compare seed by seed
#
# The order of the classes moves a result more than the method does. So compare runs of the same seed: each line is the
# difference to replay, its 95 % interval, and the number of seeds on which our method is better.

# %%
from avalanche_contrastive.bench.report.stats import compare
from avalanche_contrastive.bench.results import load_results

results = load_results(folder / "results")
FIGURES = {
    "final accuracy": lambda run: run["final_accuracy"],
    "average accuracy": lambda run: run["average_accuracy"],
    "final Recall@1": lambda run: run["recall_at_1"][-1],
}
versus = {
    name: compare(*([100 * of(run) for run in results[row]] for row in ("mine", "replay")))
    for name, of in FIGURES.items()
}
table(
    {
        name: {
            "difference": f"{c.difference:+.1f}",
            "95 % interval": f"[{c.interval[0]:+.1f}, {c.interval[1]:+.1f}]",
            "better on": f"{c.wins} of {c.n} seeds",
        }
        for name, c in versus.items()
    },
    "Replay + distillation − Replay",
)

# %% alt="Two panels of curves over five experiences for replay and replay with distillation. Left, accuracy on the classes so far: both fall. Right, Recall@1 on all classes: both rise, with distillation above."
import matplotlib.pyplot as plt

from avalanche_contrastive.plots import plot_curves

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
drawn = {"seen_accuracy": "accuracy on the classes so far", "recall_at_1": "Recall@1 on all classes"}
for ax, (key, ylabel) in zip(axes, drawn.items(), strict=True):
    curves = {runs[0]["shown"]["label"]: [run[key] for run in runs] for runs in results.values()}
    plot_curves(ax, curves, band="range", ylabel=ylabel)

# %% [markdown]
# *Lines are means over five seeds, bands their range.*
#
# ## What we saw
#
# - **Data, network and plugins** go in as a file, a module and a list. The order of the list does not matter.
# - **Distillation helps the features of replay** on nearly every seed. The interval of the final accuracy holds zero:
#   better features do not make the last layer fair.
# - **Five seeds are few.** Take more before you believe a small difference.
# - **Do not choose settings on test images.** `avalanche-contrastive tune` chooses them on held-out training images.
#
# More: [your own method](https://avalanche-contrastive.readthedocs.io/en/latest/guides/method.html),
# [reading the tables](https://avalanche-contrastive.readthedocs.io/en/latest/guides/tables.html).
