"""Bad input to the losses, one row a kind."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.losses_by_hand import (
    LOSSES,
)

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrast_and_relations,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)

Z, X = torch.ones(4, 2, 3), torch.ones(4, 3)
GROUPS = torch.tensor([0, 1, 0])
Y = torch.tensor([0, 1, 2, 0])
nan = float("nan")

BAD = {
    "supcon-flat-z": (lambda: asymmetric_supcon(X, Y), r"z must be .*\(B, V, D\).*got \(4, 3\)"),
    "supcon-image-z": (lambda: asymmetric_supcon(torch.ones(4, 2, 3, 8), Y), r"\(B, V, D\).*got \(4, 2, 3, 8\)"),
    "supcon-one-view": (lambda: asymmetric_supcon(Z[:, :1], Y), r"V >= 2.*got \(4, 1, 3\).*TwoViews"),
    "supcon-integer-z": (lambda: asymmetric_supcon(Z.long(), Y), r"floating-point.*int64"),
    "supcon-y-length": (lambda: asymmetric_supcon(Z, Y[:3]), r"y must be integer.*\(4,\).*got.*\(3,\)"),
    "supcon-y-per-view": (lambda: asymmetric_supcon(Z, Y.repeat(2)), r"\(4,\).*got.*\(8,\).*per view"),
    "supcon-y-float": (lambda: asymmetric_supcon(Z, Y.float()), r"y must be integer.*got torch.float32"),
    "supcon-y-one-hot": (lambda: asymmetric_supcon(Z, F.one_hot(Y)), r"got.*\(4, 3\).*one-hot"),
    "supcon-y-bool": (lambda: asymmetric_supcon(Z, Y.bool()), r"y must be integer.*got torch.bool"),
    "supcon-anchor-integer": (lambda: asymmetric_supcon(Z, Y, Y), r"is_anchor must be bool.*\(4,\).*got torch.int64"),
    "supcon-anchor-shape": (
        lambda: asymmetric_supcon(Z, Y, torch.ones(8, dtype=torch.bool)),
        r"is_anchor must be bool.*\(4,\).*got.*\(8,\).*per view",
    ),
    "supcon-temperature-zero": (lambda: asymmetric_supcon(Z, Y, temperature=0), r"temperature.*> 0.*got 0"),
    "supcon-temperature-negative": (lambda: asymmetric_supcon(Z, Y, temperature=-1.0), r"temperature.*> 0.*got -1.0"),
    "supcon-temperature-nan": (lambda: asymmetric_supcon(Z, Y, temperature=nan), r"temperature.*> 0.*got nan"),
    "supcon-temperature-inf": (lambda: asymmetric_supcon(Z, Y, temperature=math.inf), r"temperature.*finite.*got inf"),
    "supcon-base-zero": (lambda: asymmetric_supcon(Z, Y, base_temperature=0.0), r"base_temperature.*> 0.*got 0.0"),
    "supcon-reduction": (
        lambda: asymmetric_supcon(Z, Y, reduction="mean"),
        r"reduction must be one of 'anchors', 'all', 'sum', got 'mean'",
    ),
    "both-flat-z": (
        lambda: contrast_and_relations(X, Y, None, Z),
        r"contrast_and_relations: z must be.*\(B, V, D\).*got \(4, 3\)",
    ),
    "both-batch": (
        lambda: contrast_and_relations(Z, Y, None, Z[:3]),
        r"z \(4, 2, 3\) and z_teacher \(3, 2, 3\)",
    ),
    "both-weight": (
        lambda: contrast_and_relations(Z, Y, None, Z, weight=-1.0),
        r"contrast_and_relations: weight must be a finite number >= 0, got -1.0",
    ),
    "relation-flat-z": (lambda: relation_distillation(X, X), r"z must be.*\(B, V, D\).*got \(4, 3\)"),
    "relation-flat-teacher": (lambda: relation_distillation(Z, X), r"z_teacher must be.*\(B, V, D\).*got \(4, 3\)"),
    "relation-batch": (lambda: relation_distillation(Z, Z[:3]), r"z \(4, 2, 3\) and z_teacher \(3, 2, 3\)"),
    "relation-views": (lambda: relation_distillation(Z, Z[:, :1]), r"z \(4, 2, 3\) and z_teacher \(4, 1, 3\)"),
    "relation-temperature": (lambda: relation_distillation(Z, Z, temperature=0.0), r": temperature.*> 0.*got 0.0"),
    "relation-teacher-temperature": (
        lambda: relation_distillation(Z, Z, teacher_temperature=-0.1),
        r"teacher_temperature.*> 0.*got -0.1",
    ),
    "separated-logits-ndim": (lambda: separated_softmax(X[0], Y, GROUPS), r"logits must be.*\(B, K\).*got.*\(3,\)"),
    "separated-logits-integer": (lambda: separated_softmax(X.long(), Y, GROUPS), r"floating-point.*int64"),
    "separated-y-length": (lambda: separated_softmax(X, Y[:2], GROUPS), r"y must be.*\(4,\).*got.*\(2,\)"),
    "separated-y-float": (lambda: separated_softmax(X, Y.double(), GROUPS), r"y must be integer.*float64"),
    "separated-groups-length": (lambda: separated_softmax(X, Y, GROUPS[:2]), r"groups must be.*\(3,\).*got.*\(2,\)"),
    "separated-groups-float": (lambda: separated_softmax(X, Y, GROUPS.float()), r"groups must be integers.*float32"),
    "separated-groups-bool": (lambda: separated_softmax(X, Y, GROUPS > 0), r"groups must be integers.*bool"),
    "separated-label-high": (lambda: separated_softmax(X, Y + 1, GROUPS), r"lie in \[0, 3\).*got 1 to 3"),
    "separated-label-negative": (lambda: separated_softmax(X, Y - 1, GROUPS), r"lie in \[0, 3\).*got -1 to 1"),
    "separated-label-without-group": (
        lambda: separated_softmax(X, Y, torch.tensor([0, 0, -1])),
        r"every label needs a group.*class 2 has -1",
    ),
    "taskwise-logits-ndim": (
        lambda: taskwise_distillation(Z, X, GROUPS),
        r"logits must be.*\(B, K\).*got.*\(4, 2, 3\)",
    ),
    "taskwise-teacher-ndim": (
        lambda: taskwise_distillation(X, Z, GROUPS),
        r"teacher_logits must be.*\(B, K_teacher\).*got.*\(4, 2, 3\)",
    ),
    "taskwise-wider-teacher": (
        lambda: taskwise_distillation(X[:, :2], X, GROUPS),
        r"teacher_logits must be.*B = 4 and K_teacher <= 2.*got \(4, 3\)",
    ),
    "taskwise-batch": (lambda: taskwise_distillation(X, X[:3], GROUPS), r"B = 4.*got \(3, 3\).*same batch"),
    "taskwise-tasks-length": (
        lambda: taskwise_distillation(X, X[:, :2], GROUPS),
        r"tasks must be integers of shape \(2,\).*got.*\(3,\)",
    ),
    "taskwise-tasks-float": (lambda: taskwise_distillation(X, X, GROUPS.float()), r"tasks must be integers.*float32"),
    "taskwise-temperature": (lambda: taskwise_distillation(X, X, GROUPS, temperature=0), r"temperature.*> 0.*got 0"),
    "contrastive-ndim": (lambda: contrastive_distillation(Z, Z, Y), r"features must be.*\(B, D\).*got.*\(4, 2, 3\)"),
    "contrastive-batch": (
        lambda: contrastive_distillation(X, X[:3], Y),
        r"teacher_features must have.*\(4, 3\), got \(3, 3\)",
    ),
    "contrastive-width": (
        lambda: contrastive_distillation(X, X[:, :2], Y),
        r"teacher_features must have.*\(4, 3\), got \(4, 2\).*same layer",
    ),
    "contrastive-y-length": (lambda: contrastive_distillation(X, X, Y[:3]), r"y must be.*\(4,\).*got.*\(3,\)"),
    "contrastive-y-float": (lambda: contrastive_distillation(X, X, Y.half()), r"y must be integer.*float16"),
    "contrastive-temperature": (
        lambda: contrastive_distillation(X, X, Y, temperature=nan),
        r"temperature.*> 0.*got nan",
    ),
    "contrastive-form": (
        lambda: contrastive_distillation(X, X, Y, form="official"),
        r"form must be one of 'authors', 'paper', got 'official'",
    ),
    "triplet-ndim": (lambda: batch_hard_triplet(Z, Y), r"features must be.*\(B, D\).*got.*\(4, 2, 3\)"),
    "triplet-integer": (lambda: batch_hard_triplet(X.int(), Y), r"floating-point.*int32"),
    "triplet-y-length": (lambda: batch_hard_triplet(X, Y[:1]), r"y must be.*\(4,\).*got.*\(1,\)"),
    "triplet-y-float": (lambda: batch_hard_triplet(X, Y.float()), r"y must be integer.*float32"),
    "triplet-margin-negative": (lambda: batch_hard_triplet(X, Y, margin=-0.1), r"margin.*>= 0.*got -0.1"),
    "triplet-margin-nan": (lambda: batch_hard_triplet(X, Y, margin=nan), r"margin.*>= 0.*got nan"),
    "triplet-margin-inf": (lambda: batch_hard_triplet(X, Y, margin=math.inf), r"margin.*finite.*got inf"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


EMPTY = {
    "supcon": lambda: asymmetric_supcon(Z[:0], Y[:0]),
    "relation": lambda: relation_distillation(Z[:0], Z[:0]),
    "separated": lambda: separated_softmax(X[:0], Y[:0], GROUPS),
    "contrastive": lambda: contrastive_distillation(X[:0], X[:0], Y[:0]),
    "triplet": lambda: batch_hard_triplet(X[:0], Y[:0]),
    "taskwise": lambda: taskwise_distillation(X[:0], X[:0], GROUPS),
}


@pytest.mark.parametrize("call", EMPTY.values(), ids=EMPTY.keys())
def test_empty_batch_is_named(call):
    with pytest.raises(ValueError, match=r"got .*\(0"):
        call()


@pytest.mark.parametrize("name", ["supcon", "relation", "separated", "taskwise", "contrastive", "triplet"])
def test_error_begins_with_the_function(name):
    function = next(f.__name__ for f in LOSSES if name in f.__name__)
    for case in (c for c in BAD if c.startswith(name)):
        with pytest.raises(ValueError, match=f"^{function}: "):
            BAD[case][0]()


ARGUMENTS = {
    asymmetric_supcon: (Z, Y, None),
    relation_distillation: (Z, Z),
    separated_softmax: (X, Y, GROUPS),
    taskwise_distillation: (X, X, GROUPS),
    contrastive_distillation: (X, X, Y),
    batch_hard_triplet: (X, Y),
}
functions = pytest.mark.parametrize("function", LOSSES, ids=[f.__name__ for f in LOSSES])


@functions
def test_unknown_keyword_is_refused(function):
    assert function(*ARGUMENTS[function]).isfinite()
    with pytest.raises(TypeError, match="temprature"):
        function(*ARGUMENTS[function], temprature=0.1)


@functions
def test_options_are_keyword_only(function):
    with pytest.raises(TypeError, match="positional"):
        function(*ARGUMENTS[function], 0.1)
