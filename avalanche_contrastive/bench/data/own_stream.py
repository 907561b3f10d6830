"""A stream of your own, "module:function": any Avalanche benchmark, with what the runner has to know of it."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avalanche_contrastive._checks import form_of
from avalanche_contrastive._outside import find
from avalanche_contrastive.bench.data.kinds import PHOTO, Stream, StreamKind


def own_stream(name: str, seed: int, *, validation: bool, root: str, wanted: Mapping[str, Any]) -> Stream:
    """Call the function for a benchmark.

    It is given what its signature names of `seed`, `validation`, `root` and the keys in `wanted`. With `validation` the
    test stream must have validation images in place of the test images.

    Args:
        name: "module:function".
        seed: of the run.
        validation: as `tune` and trials need it.
        root: folder of data sets.
        wanted: what else a config may say of a stream; what is set must be in the function's signature.

    Raises:
        ValueError: the function cannot be given what was set, or gives something that cannot be trained on.
    """
    function = find(name)
    names = inspect.signature(function).parameters
    _check_keywords(name, names, validation, wanted)
    given = {"seed": seed, "validation": validation, "root": root, **wanted}
    benchmark = function(**{key: value for key, value in given.items() if key in names})
    if not (hasattr(benchmark, "train_stream") and hasattr(benchmark, "test_stream")):
        raise ValueError(f"{name} must return an Avalanche benchmark, got {type(benchmark).__name__}")
    train, test = list(benchmark.train_stream), list(benchmark.test_stream)
    if not train or len(train) != len(test):
        raise ValueError(f"{name}: {len(train)} training and {len(test)} test experiences; as many of each are needed")
    if isinstance(train[0].dataset[0], Mapping):
        keys = ", ".join(map(repr, train[0].dataset[0]))
        raise ValueError(
            f"{name}: a sample must be a tuple (image, class, task label), got a dictionary with {keys}. Let the data "
            'set give tuples, or take Hugging Face data as they are by data = "hf:NAME"'
        )
    x = train[0].dataset[0][0]
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        raise ValueError(
            f"{name}: a sample must be a float tensor (C, H, W), got {form_of(x)}. Is a transform missing?"
        )
    groups = [sorted(set(map(int, experience.dataset.targets))) for experience in train]
    tested = {int(y) for experience in test for y in experience.dataset.targets}
    classes = max(*tested, *(c for group in groups for c in group)) + 1
    counts = [[len(experience.dataset) for experience in stream] for stream in (train, test)]
    kind = StreamKind(name, name, len(train), "small_cnn" if min(x.shape[1:]) < 8 else "medium_cnn", augmentation=PHOTO)
    return Stream(
        kind,
        benchmark,
        list(dict.fromkeys(c for group in groups for c in group)),
        counts[1],
        classes,
        (x.shape[0], x.shape[1], x.shape[2]),
        tuple(map(str, range(classes))),
        groups,
        f"{name}: {len(train)} experiences, {classes} classes; {sum(counts[0]):,} training and {sum(counts[1]):,} "
        f"{'validation' if validation else 'test'} images of {' x '.join(map(str, x.shape))}",
    )


def _check_keywords(name: str, names: Mapping[str, Any], validation: bool, wanted: Mapping[str, Any]) -> None:
    if validation and "validation" not in names:
        raise ValueError(
            f"{name} has no parameter `validation`: `tune` and trials need validation images in the test stream, "
            "where they pass validation=True"
        )
    if lost := [key for key, value in wanted.items() if value and key not in names and key != "scenario"]:
        raise ValueError(f"{name} has no parameter {lost[0]!r}, which the config sets")
