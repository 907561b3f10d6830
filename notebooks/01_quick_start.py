# %% [markdown]
# # Quick start
#
# You have an Avalanche pipeline. How do Co2L, SS-IL and CSD come into it – and what do the numbers then say?
#
# All of it runs on Split-Digits: scikit-learn's 1,797 images of handwritten digits, two new classes per experience. If
# `DATA` names a folder that has MNIST, it runs on Split-MNIST.

# %%
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from torch import nn

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks").is_dir())
# tqdm misses its widgets; Avalanche misses a logger, but we read what `eval` returns.
warnings.filterwarnings("ignore", message="IProgress not found|No loggers specified")
# A folder with MNIST as torchvision keeps it, in FOLDER/MNIST/raw; empty: scikit-learn's digits.
DATA = os.environ.get("NOTEBOOK_DATA", "")

# %% [markdown]
# ## The pipeline that you have
#
# A stream, a model, an evaluator, a loop. First the stream.

# %%
from notebook_data import check_words, choose

from avalanche_contrastive.bench.data.streams import STREAMS, make_stream

SUITE, SIZES = choose(DATA)
stream = make_stream(SUITE, seed=0, **SIZES)
benchmark = stream.benchmark
Markdown(f"{stream.description}. The classes come as {', then '.join(map(str, stream.experience_classes))}.")

# %% [markdown]
# The evaluator holds Avalanche's accuracy and this package's Recall@1: is the nearest image, by the model's features,
# of the same class? With a *gallery*, here all training images, the test images of each experience search among all
# ten classes. `with_forgetting` keeps the matrix of every metric, a row per trained and a column per tested experience,
# and gives forgetting of both by one definition.

# %%
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive.metrics import retrieval_metrics, with_forgetting


def evaluator():
    """Accuracy and Recall@1 of each experience, with forgetting, and of all test images."""
    recall = retrieval_metrics(ks=(1,), gallery=benchmark.train_stream)
    accuracy = accuracy_metrics(experience=True, stream=True)
    return EvaluationPlugin(*with_forgetting([*accuracy, *recall]), loggers=[])


def pipeline(strategy):
    """The loop of every Avalanche script; gives what the last evaluation found."""
    for experience in benchmark.train_stream:
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
    return results


# %% [markdown]
# The model is a small encoder, which maps images to features, and a linear layer; every strategy below starts from the
# same weights.

# %%
from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive.bench.methods.networks import make_encoder


def encoder():
    """The benchmark's for these images, with the same weights at every call; also seeds what follows."""
    RNGManager.set_random_seeds(0)
    return make_encoder(STREAMS[SUITE].network, stream.image_shape)


FEATURES = encoder().features


def classifier():
    return nn.Sequential(encoder(), nn.Linear(FEATURES, stream.classes))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


EPOCHS = {"split_digits": 15, "split_mnist": 2}[SUITE]  # MNIST has many more images
COMMON = {"train_mb_size": 32, "train_epochs": EPOCHS, "eval_mb_size": 256}

# %%
from avalanche.training import Naive

strategies, results = {}, {}

model = classifier()
strategies["Naive"] = Naive(model=model, optimizer=sgd(model), evaluator=evaluator(), **COMMON)
results["Naive"] = pipeline(strategies["Naive"])

# %% [markdown]
# ## One plugin more
#
# A method is one plugin: replay, loss, teacher, everything. SS-IL has a memory of 100 images here.

# %%
from avalanche_contrastive import SSILPlugin

model = classifier()
plugin = SSILPlugin(mem_size=100, batch_size_mem=16)  # <- the method
strategies["SS-IL"] = Naive(model=model, optimizer=sgd(model), plugins=[plugin], evaluator=evaluator(), **COMMON)
results["SS-IL"] = pipeline(strategies["SS-IL"])

# %% [markdown]
# CSD needs no memory. It takes its features from what enters the last linear layer, whatever the model.

# %%
from avalanche_contrastive import CSDPlugin

model = classifier()
plugin = CSDPlugin(weight=3.0, triplet_weight=0.3)
strategies["CSD"] = Naive(model=model, optimizer=sgd(model), plugins=[plugin], evaluator=evaluator(), **COMMON)
results["CSD"] = pipeline(strategies["CSD"])

# %% [markdown]
# Co2L trains an encoder without a classifier, so the encoder is wrapped in a `ContrastiveModel`, which brings the
# projection head for training and the read-out for evaluation; and it contrasts two views of each image, so it is given
# an augmentation. `model(x)` in evaluation is class logits as ever: the evaluator need not know.

# %%
from avalanche_contrastive import BatchAugmentation, Co2LPlugin, ContrastiveModel

model = ContrastiveModel(encoder(), feature_size=FEATURES, projection_size=64)
plugin = Co2LPlugin(
    mem_size=100,
    augmentation=BatchAugmentation(scale=(0.6, 1.0), flip=0.0, rotation=10.0),
    temperature=0.1,
    readout_lr=0.3,
)
strategies["Co2L"] = Naive(model=model, optimizer=sgd(model), plugins=[plugin], evaluator=evaluator(), **COMMON)
results["Co2L"] = pipeline(strategies["Co2L"])

# %% [markdown]
# ## Or a ready strategy
#
# `SSIL`, `CSD` and `Co2L` are the same things wired up, with Avalanche's constructor. The same, to the last bit:

# %%
from avalanche_contrastive import SSIL

model = classifier()
ready = SSIL(model=model, optimizer=sgd(model), mem_size=100, batch_size_mem=16, evaluator=evaluator(), **COMMON)
assert pipeline(ready) == results["SS-IL"]
print(f"SSIL(...) and Naive(plugins=[SSILPlugin(...)]) agree in all {len(results['SS-IL'])} figures.")

# %% [markdown]
# ## Read the numbers
#
# The names are Avalanche's: metric, phase, stream. Four figures sum a run up.

# %%
RECALL = "Recall@1_in_train_exp0-4"  # the metric's name says what is searched
FIGURES = {
    "final accuracy": "Top1_Acc_Stream/eval_phase/test_stream/Task000",
    "final Recall@1": f"{RECALL}_Stream/eval_phase/test_stream",
    "forgetting of accuracy": "Top1_Acc_Forgetting_Stream/eval_phase/test_stream",
    "forgetting of Recall@1": f"{RECALL}_Forgetting_Stream/eval_phase/test_stream",
}
table = [["method", *FIGURES], ["---", *["---:"] * 4]]
table += [[name, *(f"{100 * found[key]:.1f}" for key in FIGURES.values())] for name, found in results.items()]
Markdown("\n".join(f"| {' | '.join(row)} |" for row in table))

# %% [markdown]
# All in per cent, of one seed. Behind them stand two matrices for each method.

# %%
from avalanche_contrastive.metrics import ForgettingMetric


def matrix(strategy, metric):
    """R[i][j]: the metric on experience j after training on experience i."""
    kept = [one for one in strategy.evaluator.metrics if isinstance(one, ForgettingMetric)]
    return next(one.matrix(metric) for one in kept if (metric, "test") in one.matrices)


accuracy = {name: matrix(strategy, "Top1_Acc") for name, strategy in strategies.items()}
recall = {name: matrix(strategy, RECALL) for name, strategy in strategies.items()}

# %% [markdown]
# Accuracy above, Recall@1 below. The staircase runs along the diagonal, the experience that was just trained; what
# fades below it is forgotten; right of it stand classes that were not trained yet.

# %%
from avalanche_contrastive.plots import plot_matrix

figure, axes = plt.subplots(2, 4, figsize=(13, 7), sharex=True, sharey=True, layout="constrained")
for column, name in zip(axes.T, strategies, strict=True):
    plot_matrix(column[0], accuracy[name], value=f"{name}: accuracy")
    plot_matrix(column[1], recall[name], value=f"{name}: Recall@1")
for ax in axes.flat:
    ax.label_outer()

# %% [markdown]
# ## Save it, load it, look
#
# A model is saved as any torch model is. Co2L's read-out is part of its state, so the file alone is enough: a fresh
# model that has loaded it answers as the trained one did.

# %%
from torch.utils.data import DataLoader

test_x = torch.cat([x for experience in benchmark.test_stream for x, *_ in DataLoader(experience.dataset, 256)])
test_y = torch.cat([torch.tensor(list(experience.dataset.targets)) for experience in benchmark.test_stream])

trained = strategies["Co2L"].model.eval()
fresh = ContrastiveModel(encoder(), feature_size=FEATURES, projection_size=64).eval()
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    torch.save(trained.state_dict(), Path(folder) / "co2l.pt")
    fresh.load_state_dict(torch.load(Path(folder) / "co2l.pt"))
    assert fresh(test_x).equal(trained(test_x))

# %% [markdown]
# Now look. Features of the test images after the last experience, in the plane of their two largest principal
# components; one digit, one colour and marker. On the left fine-tuning, on the right what was loaded.

# %%
from avalanche_contrastive.plots import plot_embedding

with torch.no_grad():
    features = {"Naive": strategies["Naive"].model[0].eval()(test_x), "Co2L": fresh.embed(test_x)}

figure, axes = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
for ax, (name, vectors) in zip(axes, features.items(), strict=True):
    plot_embedding(ax, nn.functional.normalize(vectors), test_y, by="digit").set_title(name)

# %% [markdown]
# And search. The queries are the first test images of the classes that were learned *first*; beside each are the five
# images that the features find nearest. A frame with a tick is right, a dashed one with a cross is wrong.

# %%
from avalanche_contrastive.metrics import nearest_neighbours
from avalanche_contrastive.plots import plot_retrieval

first = stream.experience_classes[0]
queries = torch.cat([(test_y == c).nonzero()[:3, 0] for c in first])
figure, axes = plt.subplots(1, 2, figsize=(13, 6.5), layout="constrained")
for ax, (name, vectors) in zip(axes, features.items(), strict=True):
    found = nearest_neighbours(vectors, 5)[queries]
    right = test_y[found] == test_y[queries, None]
    plot_retrieval(ax, test_x[queries], test_x[found], right, labels=[str(int(y)) for y in test_y[queries]])
    ax.set_title(f"{name}: {int(right.sum())} of {right.numel()} are right")

# %% [markdown]
# ## What we saw

# %%
shown = {name: {key: round(100 * found[figure]) for key, figure in FIGURES.items()} for name, found in results.items()}
newest = {name: 100 * float(r.diagonal()[1:].mean()) for name, r in accuracy.items()}
oldest = {name: 100 * float(r[-1, :-1].mean()) for name, r in accuracy.items()}
# What the words below say, and another seed, machine or data set might not.
final, lost, lost_recall = (
    {name: found[FIGURES[key]] for name, found in results.items()}
    for key in ("final accuracy", "forgetting of accuracy", "forgetting of Recall@1")
)
note = check_words(
    SUITE,
    {
        "Co2L and SS-IL keep the old classes": min(final["Co2L"], final["SS-IL"]) > 0.75,
        "SS-IL leans to the old, Co2L does not": newest["SS-IL"] < oldest["SS-IL"] - 10 < newest["Co2L"],
        "SS-IL's forgetting is below zero": lost["SS-IL"] < 0,
        "CSD's accuracy is fine-tuning's": final["CSD"] < 0.25 > final["Naive"],
        "fine-tuning loses far more accuracy than Recall@1": lost["Naive"] > lost_recall["Naive"] + 0.5,
        "much of what retrieval needs was there from the start": recall["Naive"][0].mean() > 0.8,
    },
)

# %%
naive, ssil, csd, co2l = (shown[name] for name in strategies)
Markdown(f"""{note}
- **A plugin is the whole method.** Four pipelines differ in one argument; the ready strategy agrees with its plugin
  in every figure.
- **Co2L and SS-IL keep the old classes**, with 100 images each: {co2l["final accuracy"]} % and
  {ssil["final accuracy"]} % at the end, against {naive["final accuracy"]} % for fine-tuning, which knows the last two
  classes only.
- **SS-IL leans to the old**: {newest["SS-IL"]:.0f} % on the classes just learned, {oldest["SS-IL"]:.0f} % on the others
  at the end. So its *forgetting* is below zero: classes are learned in part and rise when they are no longer the
  newest. The paper promises balance, not this; [notebook 3](03_ssil.ipynb) looks into it.
- **CSD's accuracy is fine-tuning's** ({csd["final accuracy"]} %), as it must be: nothing is replayed, and nothing
  guards the classifier. Judge it by its features: Recall@1 {csd["final Recall@1"]} % after five experiences.
- **Forgetting depends on what is asked.** Fine-tuning loses {naive["forgetting of accuracy"]} points of accuracy, but
  only {naive["forgetting of Recall@1"]} points of Recall@1; CSD loses {csd["forgetting of Recall@1"]}. Features are
  far from gone – and much of what retrieval needs here was there from the start: after the first two digits alone,
  fine-tuning's features find {100 * float(recall["Naive"][0].mean()):.0f} % of all ten. Whether the difference holds
  over seeds is the question of [notebook 4](04_csd.ipynb).

One seed, one setting for all and few epochs show how things go in, not who is best:
[RESULTS.md](../benchmarks/RESULTS.md) has settings tuned for each method, several seeds and intervals.
""")
