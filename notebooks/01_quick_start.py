# %% [markdown]
# # Quick start
#
# **You have an Avalanche pipeline. How do Co2L, SS-IL and CSD go into it, and what do the numbers say?**
#
# A *stream* brings ten digits in five *experiences* of two classes each. A model learns them one after another. Then we
# ask what it still knows. Everything runs on scikit-learn's digits in about half a minute.

# %%
from notebook_data import classes_of, images, load_benchmark, small_encoder, table

benchmark = load_benchmark()  # or Avalanche's SplitMNIST(n_experiences=5), or your own
[classes_of(experience) for experience in benchmark.train_stream]

# %% [markdown]
# ## The pipeline that you have
#
# A model, an optimiser, an evaluator, a loop. The evaluator has Avalanche's accuracy and this package's **Recall@1**:
# is the nearest image, by the model's features, of the same class? The *gallery* is what is searched, here all training
# images. `with_forgetting` adds the forgetting of each metric.

# %%
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive.metrics import retrieval_metrics, with_forgetting

models, metrics, results = {}, {}, {}


def run(name, model, plugins=()):
    recall = retrieval_metrics(ks=(1,), gallery=benchmark.train_stream)
    metrics[name] = with_forgetting([*accuracy_metrics(experience=True), *recall])
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_mb_size=32,
        train_epochs=15,
        eval_mb_size=256,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics[name], accuracy_metrics(stream=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        results[name] = strategy.eval(benchmark.test_stream)
    models[name] = model.eval()


# %% [markdown]
# ## One plugin more
#
# **A plugin is the whole method**: memory, loss and teacher. Without a plugin, `Naive` is plain fine-tuning. SS-IL keeps
# 100 images. CSD keeps none; it takes its features from what enters the last linear layer.

# %%
from torch import nn

from avalanche_contrastive import CSDPlugin, SSILPlugin


def classifier():
    encoder = small_encoder()  # any torch module; the same weights at every call
    return nn.Sequential(encoder, nn.Linear(encoder.features, 10))


run("Naive", classifier())
run("SS-IL", classifier(), [SSILPlugin(mem_size=100, batch_size_mem=16)])
run("CSD", classifier(), [CSDPlugin(weight=3.0, triplet_weight=0.3)])

# %% [markdown]
# Co2L trains an encoder without a classifier. Wrap the encoder in a `ContrastiveModel`, and give an augmentation: Co2L
# compares two views of each image. In evaluation `model(x)` gives class logits as always.
#
# `SSIL(...)`, `CSD(...)` and `Co2L(...)` are the same methods as ready strategies, with Avalanche's constructor.

# %%
from avalanche_contrastive import BatchAugmentation, Co2LPlugin, ContrastiveModel

encoder = small_encoder()
model = ContrastiveModel(encoder, feature_size=encoder.features, projection_size=64)
augmentation = BatchAugmentation(scale=(0.6, 1.0), flip=0.0, rotation=10.0)
run("Co2L", model, [Co2LPlugin(mem_size=100, augmentation=augmentation, temperature=0.1, readout_lr=0.3)])

# %% [markdown]
# ## Read the numbers
#
# The names are Avalanche's: metric, phase, stream. All in per cent, of one seed.

# %%
RECALL = "Recall@1_in_train_exp0-4"  # the name says what is searched
FIGURES = {
    "final accuracy": "Top1_Acc_Stream/eval_phase/test_stream/Task000",
    "final Recall@1": f"{RECALL}_Stream/eval_phase/test_stream",
    "forgetting of accuracy": "Top1_Acc_Forgetting_Stream/eval_phase/test_stream",
    "forgetting of Recall@1": f"{RECALL}_Forgetting_Stream/eval_phase/test_stream",
}
shown = {name: {label: 100 * found[key] for label, key in FIGURES.items()} for name, found in results.items()}
table(shown, "method")

# %% alt="Two rows of four heat maps, accuracy above and Recall@1 below, for Naive, SS-IL, CSD and Co2L. The accuracy of Naive and CSD is high on the diagonal and near zero elsewhere. SS-IL and Co2L keep high numbers below the diagonal. Recall@1 is high nearly everywhere."
import matplotlib.pyplot as plt

from avalanche_contrastive.plots import plot_matrix

accuracy = {name: of[0].matrix("Top1_Acc") for name, of in metrics.items()}
recall = {name: of[1].matrix(RECALL) for name, of in metrics.items()}
figure, axes = plt.subplots(2, 4, figsize=(13, 7), sharex=True, sharey=True, layout="constrained")
for (above, below), name in zip(axes.T, metrics, strict=True):
    plot_matrix(above, accuracy[name], value=f"{name}: accuracy").label_outer()
    plot_matrix(below, recall[name], value=f"{name}: Recall@1").label_outer()

# %% [markdown]
# *Rows: after training on an experience. Columns: tested on an experience. The diagonal is what was just learned; what
# fades below it is forgotten.*
#
# ## Look at what is found
#
# Queries are test images of the first two classes, after all five experiences. A tick is right, a cross is wrong.

# %% alt="Two panels with strips of images. Each strip is a query digit and the five nearest test images. Naive: some of the images found are of other digits. Co2L: nearly all images found are of the query's digit."
from avalanche_contrastive.metrics import nearest_neighbours
from avalanche_contrastive.plots import plot_retrieval

x, y = images(benchmark.test_stream)
queries = torch.cat([(y == c).nonzero()[:3, 0] for c in classes_of(benchmark.train_stream[0])])
with torch.no_grad():
    features = {"Naive": models["Naive"][0](x), "Co2L": models["Co2L"].embed(x)}
figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
for ax, (name, vectors) in zip(axes, features.items(), strict=True):
    found = nearest_neighbours(vectors, 5)[queries]
    right = y[found] == y[queries, None]
    plot_retrieval(ax, x[queries], x[found], right, labels=[str(int(c)) for c in y[queries]])
    ax.set_title(f"{name}: {int(right.sum())} of {right.numel()} are right")

# %% [markdown]
# ## What we saw
#
# - **Co2L and SS-IL keep the old classes**, with 100 stored images each. Fine-tuning knows only the last two.
# - **SS-IL leans to the old classes.** Its forgetting is below zero: classes are learned in part and get better later.
#   [Notebook 3](03_ssil.ipynb) looks into it.
# - **CSD does not protect the classifier**: it stores no image, and its accuracy is that of fine-tuning. Judge it by its
#   features ([notebook 4](04_csd.ipynb)).
# - **Fine-tuning loses much accuracy and little Recall@1.** Much of what a search needs was there from the start.
#
# One seed shows how things go in, not which method is best. [RESULTS.md](../benchmarks/RESULTS.md) has settings tuned for
# each method, several seeds and intervals. Save a model as any torch model; to resume a run, see
# `avalanche_contrastive.checkpoint`.
