"""The authors' choices of exemplars: the first images of each class, and places left over by chance."""

from collections import Counter

import pytest
import torch
from avalanche.training.storage_policy import ParametricBuffer
from helpers.streams import make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import SSIL, Co2L, ContrastiveModel
from avalanche_contrastive.plugins import FirstExemplarsSelection, RandomRemainderBuffer


def first_buffer(size):
    return ParametricBuffer(size, groupby="class", selection_strategy=FirstExemplarsSelection())


def trained(storage, size, method=SSIL, experiences=5, **options):
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10))
    if method is Co2L:
        model = ContrastiveModel(make_encoder(), 16)
        options = {"augmentation": lambda x: x + 0.1 * torch.randn_like(x), "readout": "ncm", **options}
    strategy = method(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=16,
        eval_mb_size=64,
        mem_size=size,
        storage_policy=storage,
        evaluator=None,
        **options,
    )
    stream = make_benchmark().train_stream
    for experience in list(stream)[:experiences]:
        strategy.train(experience)
    return strategy, stream


def by_class(data):
    found = {}
    for x, y, *_ in data:
        found.setdefault(int(y), []).append(x)
    return {c: torch.stack(images) for c, images in found.items()}


def test_the_first_images_of_each_class_are_kept():
    storage = first_buffer(23)
    _, stream = trained(storage, 23)
    kept = by_class(storage.buffer)
    assert sorted(len(images) for images in kept.values()) == [2] * 7 + [3] * 3
    for experience in stream:
        for c, images in by_class(experience.dataset).items():
            assert torch.equal(kept[c], images[: len(kept[c])])


@pytest.mark.parametrize("method", [SSIL, Co2L])
def test_places_left_over_go_to_classes_by_chance(method):
    extra = Counter()
    for seed in range(12):
        torch.manual_seed(seed)
        storage = RandomRemainderBuffer(11)
        trained(storage, 11, method, experiences=2)
        sizes = {c: len(images) for c, images in by_class(storage.buffer).items()}
        assert set(sizes.values()) <= {2, 3}
        assert sum(sizes.values()) <= 11
        extra.update(c for c, size in sizes.items() if size == 3)
    assert len(extra) == 4, f"every class of the first two experiences gets a place now and then: {extra}"


def test_the_lengths_are_even_and_fill_the_memory():
    torch.manual_seed(0)
    for groups in range(1, 13):
        lengths = RandomRemainderBuffer(12).get_group_lengths(groups)
        assert sum(lengths) == 12
        assert max(lengths) - min(lengths) <= 1
