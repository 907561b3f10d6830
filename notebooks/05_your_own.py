# %% [markdown]
# # Your own
#
# Your images, your backbone, another plugin beside ours, your own method: how do they come in, and what does an honest
# comparison of them take?
#
# The comparison at the end asks something that the CSD paper does not: does its contrastive distillation add anything
# to plain replay?

# %%
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown
from torch import nn

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks").is_dir())
# tqdm misses its widgets; Avalanche misses a logger, but we read what `eval` returns.
warnings.filterwarnings("ignore", message="IProgress not found|No loggers specified")

# %% [markdown]
# ## Your data: one file
#
# A `.npz` with `train_images` (N, H, W) or (N, H, W, C), `train_labels` (N,), `test_images`, `test_labels`: MedMNIST's
# keys. (Or a folder with a folder of images per class.) In place of your photographs: scikit-learn's digits, in a
# folder that goes when this notebook does.

# %%
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

digits = load_digits()
images = (digits.images * 255 / 16).astype(np.uint8)
parts = train_test_split(images, digits.target, test_size=0.25, stratify=digits.target, random_state=0)
names = ("train_images", "test_images", "train_labels", "test_labels")
np.savez(folder / "photos.npz", **dict(zip(names, parts, strict=True)))

# %% [markdown]
# That file is a stream now. What cannot be one – labels with a gap, a key that is missing, pickled objects – is refused
# with a reason.

# %%
from avalanche_contrastive.bench.data.streams import make_stream

stream = make_stream("own", seed=0, data=str(folder / "photos.npz"))
Markdown(f"Stream: {stream.description}.")

# %% [markdown]
# ## Your backbone: any module
#
# SS-IL needs logits, CSD what enters the last linear layer, Co2L an encoder in a `ContrastiveModel`. Nothing asks for a
# convolution: this one reads an image row by row, as a sentence of eight words. (A head that grows, Avalanche's
# `IncrementalClassifier`, would do as well.)


# %%
class Reader(nn.Module):
    def __init__(self, side, classes, features=64):
        super().__init__()
        self.gru = nn.GRU(side, features, batch_first=True)
        self.head = nn.Linear(features, classes)

    def forward(self, x):  # (B, 1, side, side)
        _, state = self.gru(x[:, 0])
        return self.head(state[-1])


# %% [markdown]
# ## Another plugin beside ours
#
# A method replaces the criterion while it trains; what other plugins add to the loss stays. So SS-IL with Avalanche's
# EWC is a list of two, and the order of the list should not matter. The memory is any of Avalanche's storage policies:
# here a reservoir instead of the usual class-balanced buffer.

# %%
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer

from avalanche_contrastive import SSILPlugin

COMMON = {"train_mb_size": 32, "train_epochs": 5, "eval_mb_size": 256}


def final_accuracy(*plugins):
    """Of a fresh reader that has gone through the stream with these plugins."""
    RNGManager.set_random_seeds(0)
    model = Reader(stream.image_shape[-1], stream.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = Naive(model=model, optimizer=optimizer, plugins=list(plugins), evaluator=evaluator, **COMMON)
    strategy.train(stream.benchmark.train_stream)
    return strategy.eval(stream.benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


# %%
def ssil():
    return SSILPlugin(mem_size=100, storage_policy=ReservoirSamplingBuffer(100))


alone = final_accuracy(ssil())
ewc_first = final_accuracy(EWCPlugin(ewc_lambda=10.0), ssil())
ewc_last = final_accuracy(ssil(), EWCPlugin(ewc_lambda=10.0))
assert ewc_first == ewc_last
Markdown(
    f"Final accuracy of SS-IL alone {alone:.1%}, with EWC before it in the list {ewc_first:.1%}, with EWC after it "
    f"{ewc_last:.1%}. Two methods in one list run; that they help each other is another matter."
)

# %% [markdown]
# ## Your method: one line and one file
#
# For the runner, a method is a function from a *setting* (which knows the config, the model, the optimiser) to any
# strategy. Ours puts CSD's contrastive distillation, without CSD's other terms, beside Avalanche's replay: one
# expression. Its keyword-only parameter is what a config may set. `ce="all"` lets replayed images count in the
# cross-entropy; CSD's own leaves old classes out.

# %%
MINE = """\
from avalanche.training.plugins import ReplayPlugin
from avalanche_contrastive import CSDPlugin

def distilled_replay(s, *, weight=1.0):
    return s.naive(
        CSDPlugin(weight=weight, kd_weight=0.0, triplet_weight=0.0, ce="all"),
        ReplayPlugin(mem_size=s.config.memory),
    )
"""
_ = (folder / "mine.py").write_text(MINE)

# %% [markdown]
# A config says what differs from the defaults, so a sweep is a file per value. The suite `own_data`, to which `--data`
# leads, says the rest: five epochs, batches of 32, and so on.

# %%
ROW = """\
method = "mine:distilled_replay"
label = "Replay + distillation × WEIGHT"

[options]
weight = WEIGHT
"""
WEIGHTS = (0.3, 1.0, 3.0)
for weight in WEIGHTS:
    (folder / f"weight_{weight}.toml").write_text(ROW.replace("WEIGHT", str(weight)))

# %% [markdown]
# What follows is what you would type in a terminal, in the folder of `mine.py`: `python -m benchmarks ...`. First, what
# a slip gives.


# %%
def benchmarks(*words):
    """`python -m benchmarks WORDS` in our folder; what it prints."""
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(command, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True)


(folder / "slip.toml").write_text('method = "replay"\nepocs = 3\n')
refused = benchmarks("run", "slip.toml", "--data", "photos.npz")
assert refused.returncode == 2, refused.stderr
print(refused.stderr.strip())

# %% [markdown]
# Now the sweep: three weights and the built-in Replay, each with five seeds, every seed with its own class order, the
# same for all rows. 20 runs of a second or two, in one process here. (A killed call goes on where it was when it is
# given again; `--on slurm` makes a job array of it.)

# %%
rows = [f"weight_{weight}.toml" for weight in WEIGHTS] + ["replay"]
size = ["--set", "network=small_cnn", "--memory", 50]
done = benchmarks("run", *rows, "--data", "photos.npz", "--seeds", "0-4", "--jobs", 1, "--out", "results", *size)
assert done.returncode == 0, done.stderr
print(done.stderr.splitlines()[-1].split(" · ")[0])

# %% [markdown]
# ## Its report
#
# Every run is one JSON file with its config, seed, versions, matrices and costs. A page of HTML is made from these
# files alone, to be sent to someone or opened in a browser.

# %%
import re

done = benchmarks("report", "--results", "results", "--out", "report.html")
assert done.returncode == 0, done.stderr
page = (folder / "report.html").read_text()
print("report.html, one file, has the parts")
print(*(f"  {title}" for title in re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page)), sep="\n")

# %% [markdown]
# The same files can be read here. Lines are means over the five seeds, bands their range.

# %%
import matplotlib.pyplot as plt

from avalanche_contrastive.bench.results import load_results
from avalanche_contrastive.plots import plot_curves

results = load_results(folder / "results")
labels = {runs[0]["shown"]["label"]: runs for runs in results.values()}
figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
drawn = {"seen_accuracy": "accuracy on the classes so far", "recall_at_1": "Recall@1 on all classes"}
for ax, (key, ylabel) in zip(axes, drawn.items(), strict=True):
    curves = {label: [run[key] for run in runs] for label, runs in labels.items()}
    plot_curves(ax, curves, band="range", ylabel=ylabel)

# %% [markdown]
# Left: accuracy on the classes so far falls with each experience, whatever the weight. Right: Recall@1 over the images
# of all ten classes, those to come included, rises. To say more than that, rows are compared seed by seed, for the
# class order moves a result more than the method does. Each difference to Replay comes with its interval and
# the seeds that are above Replay.

# %%
from avalanche_contrastive.bench.report.stats import compare

FIGURES = {"final accuracy": "final_accuracy", "average accuracy": "average_accuracy", "final Recall@1": "recall_at_1"}


def values(row, figure):
    found = [run[FIGURES[figure]] for run in results[row]]
    return [100 * (value[-1] if isinstance(value, list) else value) for value in found]


def against_replay(weight, figure):
    return compare(values(f"weight_{weight}", figure), values("replay", figure))


versus = {(weight, figure): against_replay(weight, figure) for weight in WEIGHTS for figure in FIGURES}


# %%
def shown(c):
    return f"{c.difference:+.1f} [{c.interval[0]:+.1f}, {c.interval[1]:+.1f}], {c.wins} of {c.n}"


table = [["", *FIGURES], ["---", *["---:"] * 3]]
table += [["Replay", *(f"{np.mean(values('replay', figure)):.1f}" for figure in FIGURES)]]
table += [[f"+ distillation × {w}", *(shown(versus[w, figure]) for figure in FIGURES)] for w in WEIGHTS]
Markdown("\n".join(f"| {' | '.join(row)} |" for row in table))

# %% [markdown]
# ## What we saw


# %%
def verdict(figure):
    """How many of the weights are clear of zero."""
    return sum(versus[w, figure].interval[0] > 0 for w in WEIGHTS)


assert min(verdict("final Recall@1"), verdict("average accuracy")) > verdict("final accuracy")
helped = "helped" if ewc_last > alone else "did not help"
Markdown(f"""
- **Data, backbone, plugins** came in as a file, a module and a list. The order of the list did not matter; EWC beside
  SS-IL, at the one strength and seed that was tried, {helped}: {alone:.0%} alone, {ewc_last:.0%} with it.
- **Distillation does for replay what CSD's paper has it do alone: the features get better.** The interval of the
  difference in final Recall@1 lies above zero for {verdict("final Recall@1")} of {len(WEIGHTS)} weights.
- **The classifier gains on the way, not clearly at the end**: above zero are {verdict("average accuracy")} of
  {len(WEIGHTS)} intervals in average accuracy, {verdict("final accuracy")} in final accuracy. Better features do not by
  themselves make the last layer fair to old classes.
- **Five seeds are few.** The smallest p that they can give in a two-sided sign-flip test is
  {versus[1.0, "final accuracy"].smallest_p:.2f}, and intervals from five values are too narrow.
- **A weight picked from this table would be picked on test images.** A row with `table = "trial"` in its file is
  evaluated on validation images instead: choose there, then run the chosen one here.
""")

# %%
temporary.cleanup()
