# %% [markdown]
# # Co2L: views, anchors, relations
#
# **What do the three parts of Co2L each do to the features?**
#
# Co2L ([Cha et al., ICCV 2021](https://arxiv.org/abs/2106.14413)) trains an encoder by contrast: images of one class are
# pulled together, others are pushed apart. Its parts are *two views* of every image, *asymmetric anchors* (only images
# of the current classes are pulled), and *relation distillation* (similarities stay as the previous model had them).
#
# First the views. Both are cropped and turned at random, and each is a positive for the other.

# %% alt="Three rows of ten small digits: the image, view 1 and view 2. The views are the same digits, enlarged, moved and turned a little, never mirrored."
import matplotlib.pyplot as plt
import torch
from notebook_data import blocks, classes_of, images, load_benchmark, small_encoder, table

from avalanche_contrastive import BatchAugmentation
from avalanche_contrastive.data import stack_views

benchmark = load_benchmark()
test, test_y = images(benchmark.test_stream)
augmentation = BatchAugmentation(scale=(0.6, 1.0), flip=0.0, rotation=10.0)

torch.manual_seed(0)
shown = test[:: len(test) // 10][:10]
rows = torch.cat([shown[:, None], stack_views(shown, augmentation)], dim=1)[:, :, 0]  # (images, 3, H, W)
figure, axes = plt.subplots(3, 1, figsize=(9, 3.2), layout="constrained")
for ax, row, name in zip(axes, rows.transpose(0, 1), ("image", "view 1", "view 2"), strict=True):
    ax.imshow(torch.cat([torch.nn.functional.pad(image, (0, 1), value=1.0) for image in row], dim=1), cmap="gray")
    ax.set(xticks=[], yticks=[], ylabel=name)

# %% [markdown]
# ## Take a part away
#
# The strategy `Co2L` is the method with Avalanche's constructor. Each run below changes one argument or two.

# %%
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_contrastive import Co2L, ContrastiveModel
from avalanche_contrastive.teacher import frozen_copy


def run(**changed):
    """Learn the stream; give the model after each experience, and the final accuracy in per cent."""
    encoder = small_encoder()
    model = ContrastiveModel(encoder, feature_size=encoder.features, projection_size=64)
    strategy = Co2L(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        train_mb_size=64,
        train_epochs=10,
        **{"mem_size": 100, "augmentation": augmentation, "temperature": 0.1, "readout_lr": 0.3, **changed},
    )
    kept = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        kept.append(frozen_copy(strategy.model))
    (accuracy,) = strategy.eval(benchmark.test_stream).values()
    return kept, 100 * accuracy


# %%
VARIANTS = {
    "Co2L": {},
    "one view twice": {"augmentation": lambda batch: batch},
    "no distillation": {"weight": 0.0},
    "symmetric anchors": {"asymmetric": False},
    "symmetric, no distillation": {"asymmetric": False, "weight": 0.0},
}
runs = {name: run(**changed) for name, changed in VARIANTS.items()}
accuracy = {name: value for name, (_, value) in runs.items()}
table({name: {"final accuracy (%)": value} for name, value in accuracy.items()}, "learner")

# %% [markdown]
# ## What became of the features
#
# Features of all test images after the last experience. A class that is one island can be told from the others. Old
# classes that lie on each other are forgotten.

# %% alt="Four t-SNE maps of the test images, one colour, marker and number for each digit, for Co2L, one view twice, no distillation and symmetric anchors. With Co2L and with symmetric anchors most digits are islands of their own. Without distillation several old digits run into each other."
from avalanche_contrastive.plots import plot_embedding

figure, axes = plt.subplots(2, 2, figsize=(11, 9.5), layout="constrained")
for ax, name in zip(axes.flat, VARIANTS, strict=False):
    with torch.no_grad():
        features = runs[name][0][-1].embed(test)
    plot_embedding(ax, features, test_y, method="tsne").set_title(f"{name}: accuracy {accuracy[name]:.0f} %")
    ax.get_legend().remove()

# %% [markdown]
# ## One step of each term
#
# Who pulls whom? Take a batch with two old and two new classes. Each term of the loss moves the *projections* one small
# step of the same length. We look at the change of the mean cosine between classes. The teacher is the model after
# experience 1, the student the one after experience 2.

# %%
from avalanche_contrastive.losses import asymmetric_supcon, relation_distillation

old, new = (classes_of(experience) for experience in benchmark.train_stream[:2])
batch = torch.cat([(test_y == c).nonzero()[:8, 0] for c in (*old, *new)])
y = test_y[batch]
is_current = torch.isin(y, torch.tensor(new))
torch.manual_seed(0)
views = stack_views(test[batch], augmentation)  # (B, 2, C, H, W)
teacher, student = runs["Co2L"][0][:2]
with torch.no_grad():
    z, z_teacher = student.project(views), teacher.project(views)

TERMS = {
    "asymmetric contrast": lambda z: asymmetric_supcon(z, y, is_current, temperature=0.1),
    "symmetric contrast": lambda z: asymmetric_supcon(z, y, temperature=0.1),
    "relation distillation": lambda z: relation_distillation(z, z_teacher),
}


def class_cosines(z):
    """Mean cosine between the views of each two classes."""
    means = torch.stack([z[y == c].mean(dim=(0, 1)) for c in (*old, *new)])
    return means @ means.T


# %% alt="Three 4 by 4 matrices of changes of cosines between two old and two new classes, one for each term. Both contrasts raise the new classes' own cosines. The symmetric contrast also raises the old classes' own cosines and lowers the one between them further."
changes = {}
for name, term in TERMS.items():
    moved = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term(moved), moved)
    step = torch.nn.functional.normalize(z - 0.5 * gradient / gradient.norm(), dim=2)
    changes[name] = 100 * (class_cosines(step) - class_cosines(z))

figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
names = [f"old {c}" for c in old] + [f"new {c}" for c in new]
for ax, (name, matrix) in zip(axes, changes.items(), strict=True):
    blocks(ax, matrix, names, f"{name}: change × 100")

# %% [markdown]
# *Plus is attraction, minus is repulsion. The diagonal is within a class.*
#
# ## What we saw
#
# - **Two views** make the contrast one of digits and not of pixels. Without them accuracy falls.
# - **Asymmetric anchors** pull only the new classes together. They hardly tighten an old class; what happens between old
#   classes is a by-product.
# - **Relation distillation** keeps the old classes as they were. Without it asymmetric Co2L loses accuracy;
#   symmetric anchors do not need it.
# - **Symmetric anchors are the better ones here**, against the paper: they tighten old classes and drive them apart at
#   every step. The paper's reason against them is that they fit the few stored images too closely. On easy images that
#   costs little.
#
# This is one seed; [RESULTS.md](../benchmarks/RESULTS.md) compares over several.
#
# **On your own images**: give `Co2L` an augmentation that keeps the class (no mirror for digits), wrap your encoder in
# `ContrastiveModel(encoder, feature_size=...)`, and choose `temperature` and `mem_size` first. With a torchvision
# transform on single images, wrap it in `TwoViews` in place of `augmentation`.
