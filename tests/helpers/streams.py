"""Real images (scikit-learn's digits), the three flavours of streams, small encoders."""

import torch
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

ORDER = [3, 8, 1, 6, 0, 9, 2, 7, 5, 4]


class Images(TensorDataset):
    """Images with integer targets, as every Avalanche generator wants them."""

    def __init__(self, x, y, transform=None):
        super().__init__(x, y)
        self.targets = y.tolist()
        self.transform = transform

    def __getitem__(self, i):
        x = self.tensors[0][i]
        return (x if self.transform is None else self.transform(x)), self.targets[i]


def digits(per_class=12):
    """The first images of each digit, 1x8x8 in [0, 1]: (x, y) for training and as many others for testing."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(bunch.target)
    rows = [torch.nonzero(y == c)[: 2 * per_class, 0] for c in range(10)]
    train = torch.cat([r[:per_class] for r in rows])
    test = torch.cat([r[per_class:] for r in rows])
    return (x[train], y[train]), (x[test], y[test])


def make_benchmark(flavour="A", *, sizes=None, experiences=5, per_class=12, order=ORDER, transform=None):
    """A stream of the notes' flavour A (3-tuples), B (2-tuples) or C (3-tuples and task labels)."""
    train, test = (Images(*part) for part in digits(per_class))
    train.transform = transform
    if flavour == "C":
        per_exp = dict(enumerate(sizes)) if sizes else None
        return nc_benchmark(
            train,
            test,
            n_experiences=len(sizes) if sizes else experiences,
            task_labels=False,
            fixed_class_order=order,
            per_exp_classes=per_exp,
        )
    if flavour == "B":
        train, test = as_classification_dataset(train), as_classification_dataset(test)
    split = {"num_classes_per_exp": sizes} if sizes else {"num_experiences": experiences}
    return class_incremental_benchmark({"train": train, "test": test}, class_order=order, **split)


def head_benchmark(*, ids_from_zero=False, per_class=6):
    """Five experiences with a task label each."""
    train, test = (Images(*part) for part in digits(per_class))
    return nc_benchmark(
        train,
        test,
        n_experiences=5,
        task_labels=True,
        fixed_class_order=ORDER,
        class_ids_from_zero_in_each_exp=ids_from_zero,
    )


def make_encoder(width=16):
    """Convolution, batch norm, pooling: (B, 1, 8, 8) to (B, width)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def noise(x):
    """An augmentation of any samples."""
    return x + 0.1 * torch.randn_like(x)
