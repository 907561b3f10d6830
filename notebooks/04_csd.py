# %% [markdown]
# # CSD: visual search under continual learning
#
# **A search engine compares features, not class scores. Are features forgotten less than a classifier, and what is a fair
# comparison?**
#
# CSD ([Barletti et al., ICIAP 2021](https://arxiv.org/abs/2205.05476)) is made for this use. It stores no image. It keeps
# the features of the previous model by a contrastive distillation, and it is judged by Recall@1: is the nearest image of
# the gallery of the same class?
#
# We put two metrics into the evaluator. Both use a gallery of all training images of the classes *seen so far*, embedded
# by the model as it is. The first searches it; the second classifies by the nearest class mean.

# %%
import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin
from notebook_data import images, load_benchmark, small_encoder, table
from torch import nn

from avalanche_contrastive import CSDPlugin
from avalanche_contrastive.metrics import readout_metrics, retrieval_metrics, with_forgetting

LEARNERS = {
    "Naive": lambda: [],
    "LwF": lambda: [LwFPlugin(alpha=1.0, temperature=2.0)],
    "CSD": lambda: [CSDPlugin(weight=3.0, triplet_weight=0.3)],
    "Replay": lambda: [ReplayPlugin(mem_size=100)],  # the only one that stores images
}
MEASURES = {"accuracy": "Top1_Acc", "nearest mean": "NearestMean_on_seen_Acc", "Recall@1": "Recall@1_in_seen"}


# %%
def run(name, seed):
    """Learn a stream; give the model, and a matrix R[after experience, on experience] for each measure."""
    benchmark, encoder = load_benchmark(seed), small_encoder(seed)
    model = nn.Sequential(encoder, nn.Linear(encoder.features, 10))
    metrics = with_forgetting(
        [
            *accuracy_metrics(experience=True),
            *readout_metrics("seen", kinds=("nearest_mean",), stream=False),
            *retrieval_metrics(ks=(1,), gallery="seen", stream=False, ties="mean"),
        ]
    )
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_mb_size=32,
        train_epochs=8,
        plugins=LEARNERS[name](),
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    matrices = [metric.matrix(key) for metric, key in zip(metrics, MEASURES.values(), strict=True)]
    return {"model": model.eval(), "benchmark": benchmark, **dict(zip(MEASURES, matrices, strict=True))}


runs = {name: [run(name, seed) for seed in range(3)] for name in LEARNERS}

# %% [markdown]
# ## What a search finds
#
# The last model of CSD, and queries of the *first* two classes. Often only the images of one experience are searched, as
# on the left: a choice between two classes. A user of the engine searches everything, as on the right.

# %% alt="Two panels with strips: four query digits and the five nearest images found by CSD. In the gallery of two classes nearly all are right. In the gallery of all ten classes most are wrong and have dashed frames with crosses."
from avalanche_contrastive.metrics import nearest_neighbours
from avalanche_contrastive.plots import plot_retrieval

model, benchmark = runs["CSD"][0]["model"], runs["CSD"][0]["benchmark"]
x, y = images(benchmark.test_stream[:1])
with torch.no_grad():
    queries = model[0](x)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
share_right, picked = {}, None
for ax, name, among in zip(axes[::-1], ("all ten", "these two"), (slice(None), slice(1)), strict=True):
    gallery, gallery_y = images(benchmark.train_stream[among])
    with torch.no_grad():
        found = nearest_neighbours(queries, 5, gallery=model[0](gallery))
    right = gallery_y[found] == y[:, None]
    share_right[name] = float(right.double().mean())
    picked = right.sum(dim=1).argsort(stable=True)[:4] if picked is None else picked  # the hardest four
    plot_retrieval(ax, x[picked], gallery[found[picked]], right[picked], labels=[str(int(c)) for c in y[picked]])
    ax.set_title(f"gallery of {name} classes")

# %% [markdown]
# *The four queries with most errors among all ten classes.*
#
# ## Like with like
#
# Among all classes seen so far: the classifier's accuracy above, Recall@1 below, mean over three seeds. Recall@1 has no
# number where the class is not in the gallery yet.

# %% alt="Two rows of four heat maps for Naive, LwF, CSD and Replay: accuracy above, Recall@1 among the classes seen below. The accuracy of Naive, LwF and CSD falls to near zero below the diagonal; that of Replay stays high. Recall@1 stays above 90 per cent for all four."
from avalanche_contrastive.plots import plot_matrix

figure, axes = plt.subplots(2, 4, figsize=(13, 7), sharex=True, sharey=True, layout="constrained")
mean = {(name, m): torch.stack([r[m] for r in of]).mean(dim=0) for name, of in runs.items() for m in MEASURES}
for (above, below), name in zip(axes.T, runs, strict=True):
    plot_matrix(above, mean[name, "accuracy"], value=f"{name}: accuracy").label_outer()
    plot_matrix(below, mean[name, "Recall@1"], value=f"{name}: Recall@1").label_outer()

# %%
from avalanche_contrastive.metrics import forgetting

lost = {
    name: {f"forgetting of {m}": [100 * forgetting(r[m]) for r in of] for m in MEASURES}
    | {"final Recall@1": [100 * float(r["Recall@1"][-1].mean()) for r in of]}
    for name, of in runs.items()
}
table(lost, "points, three seeds")

# %% [markdown]
# ## The gallery is a memory
#
# Recall@1 in a labelled gallery is a nearest-neighbour classifier that keeps *all* old images. What if the gallery is
# small? And what would raw pixels find, without any learning?

# %% alt="Recall@1 against the number of images of each class in the gallery, from 1 to 100, for the four learners and raw pixels. All curves rise. Replay is the highest with small galleries, CSD is above LwF and Naive, and raw pixels are the highest with a full gallery."
from avalanche_contrastive.metrics import recall_at_k
from avalanche_contrastive.plots import plot_curves

SIZES = (1, 2, 5, 10, 20, 50, 100)


@torch.no_grad()
def recall_by_size(r, embed):
    """Recall@1 of all test images, with galleries of so many images of each class."""
    (g, g_y), (q, q_y) = images(r["benchmark"].train_stream), images(r["benchmark"].test_stream)
    rank = (nn.functional.one_hot(g_y).cumsum(dim=0) - 1).gather(1, g_y[:, None])[:, 0]
    g, q = embed(g), embed(q)
    kept = [rank < size for size in SIZES]
    return [100 * recall_at_k(q, q_y, gallery=g[k], gallery_y=g_y[k], ties="mean") for k in kept]


curves = {name: [recall_by_size(r, r["model"][0]) for r in of] for name, of in runs.items()}
curves["raw pixels"] = [recall_by_size(r, nn.Flatten()) for r in runs["CSD"]]
figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
plot_curves(ax, curves, x=SIZES, xlabel="images of each class in the gallery", ylabel="Recall@1 at the end (%)")
ax.set_xscale("log")
ax.set_xticks(SIZES, SIZES)
plt.show()

# %% [markdown]
# ## What we saw
#
# - **Features are forgotten less than the classifier**, by every learner, also among all classes seen.
# - **Compare like with like.** A search among two classes is easier than a choice among ten.
# - **The gallery is a memory.** With a few images of each class in the gallery, Recall@1 falls for every learner. A full
#   gallery hides what the features have lost.
# - **CSD keeps its features better than fine-tuning does**, above all with a small gallery, and stores no image for
#   training. Replay, which stores 100, keeps them best.
# - **Raw pixels are strong on these digits.** They show how the methods differ, not that a method is needed.
#
# **On your own data**: add `CSDPlugin()` to your strategy and `retrieval_metrics(gallery="seen")` to your evaluator. Name
# another layer with `feature_layer=...`. [RESULTS.md](../benchmarks/RESULTS.md) has the tuned comparison over ten seeds.
# What an *old* gallery is worth under a new model is the question of [notebook 6](06_compatible_features.ipynb).
