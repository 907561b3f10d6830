"""What must not matter to the losses: order, names, length, rotation; and what must."""

import pytest
import torch
import torch.nn.functional as F
from helpers.losses_by_hand import (
    HALF,
    PAIRS,
    assert_same_value,
    units,
)

from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)


def test_order_of_images_does_not_matter():
    order = torch.randperm(7)
    z, z_teacher, x, teacher = units(7, 3, 4), units(7, 3, 4), units(7, 5), units(7, 5)
    y, anchor = torch.tensor([0, 3, 3, 1, 0, 4, 1]), torch.tensor([True, False, False, True, True, False, True])
    classes = torch.tensor([0, 2, -1, 2, 0])
    targets = torch.tensor([0, 3, 3, 1, 0, 4, 1])
    for function in (
        lambda o: asymmetric_supcon(z[o], y[o], anchor[o]),
        lambda o: relation_distillation(z[o], z_teacher[o], teacher_temperature=0.2),
        lambda o: separated_softmax(x[o], targets[o], classes),
        lambda o: taskwise_distillation(x[o], teacher[o], classes),
        lambda o: contrastive_distillation(x[o], teacher[o], y[o]),
        lambda o: contrastive_distillation(x[o], teacher[o], y[o], form="paper"),
        lambda o: batch_hard_triplet(x[o], y[o]),
    ):
        assert_same_value(function(order), function(torch.arange(7)).item(), rel=1e-12)


def test_order_of_views_does_not_matter():
    # Each image's views in an order of its own; both models see the same views.
    z, z_teacher = units(5, 4, 3), units(5, 4, 2)
    order = torch.stack([torch.randperm(4) for _ in range(5)])[..., None]
    mixed, mixed_teacher = z.gather(1, order.expand(-1, -1, 3)), z_teacher.gather(1, order.expand(-1, -1, 2))
    y, anchor = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([True, False, True, True, False])
    assert_same_value(asymmetric_supcon(mixed, y, anchor), asymmetric_supcon(z, y, anchor).item(), rel=1e-12)
    assert_same_value(
        relation_distillation(mixed, mixed_teacher), relation_distillation(z, z_teacher).item(), rel=1e-12
    )


def test_views_of_the_teacher_must_be_those_of_the_student():
    z, z_teacher = units(5, 4, 3), units(5, 4, 2)
    assert relation_distillation(z, z_teacher) != relation_distillation(z, z_teacher.flip(1))


def test_names_of_classes_do_not_matter():
    y = torch.tensor([0, 1, 0, 2, 1, 2])
    renamed = torch.tensor([70, 5, 900_000])[y]
    z, x, teacher = units(6, 2, 3), units(6, 4), units(6, 4)
    for function in (
        lambda y: asymmetric_supcon(z, y, y != y[0]),
        lambda y: contrastive_distillation(x, teacher, y),
        lambda y: contrastive_distillation(x, teacher, y, form="paper"),
        lambda y: batch_hard_triplet(x, y),
    ):
        assert torch.equal(function(renamed), function(y))


def test_order_of_classes_does_not_matter():
    logits, teacher = torch.randn(2, 6, 8, dtype=torch.float64)
    groups = torch.tensor([0, 3, 3, 0, -1, 5, 5, 0])
    y = torch.tensor([0, 1, 2, 5, 6, 7])
    order = torch.randperm(8)
    place = torch.argsort(order)  # class c now stands in column place[c]
    assert_same_value(
        separated_softmax(logits[:, order], place[y], groups[order]), separated_softmax(logits, y, groups).item()
    )
    assert_same_value(
        taskwise_distillation(logits[:, order], teacher[:, order], groups[order]),
        taskwise_distillation(logits, teacher, groups).item(),
    )


def test_names_of_groups_do_not_matter():
    logits, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    groups, y = torch.tensor([0, 1, 1, -1, 0]), torch.tensor([0, 1, 2, 4, 1, 0])
    renamed = torch.where(groups < 0, groups, torch.tensor([40, 3])[groups])
    assert torch.equal(separated_softmax(logits, y, renamed), separated_softmax(logits, y, groups))
    assert_same_value(
        taskwise_distillation(logits, teacher, renamed), taskwise_distillation(logits, teacher, groups).item(), 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_class_ids_of_any_integer_type(dtype):
    y, groups, x = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1]), units(4, 3)
    z = units(4, 2, 3)
    assert torch.equal(asymmetric_supcon(z, y.to(dtype)), asymmetric_supcon(z, y))
    assert torch.equal(separated_softmax(x, y.to(dtype), groups.to(dtype)), separated_softmax(x, y, groups))
    assert torch.equal(taskwise_distillation(x, -x, groups.to(dtype)), taskwise_distillation(x, -x, groups))
    assert torch.equal(contrastive_distillation(x, -x, y.to(dtype)), contrastive_distillation(x, -x, y))
    assert torch.equal(batch_hard_triplet(x, y.to(dtype)), batch_hard_triplet(x, y))


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_length_of_features_does_not_matter(scale):
    features, teacher, y = torch.randn(6, 4).double(), torch.randn(6, 4).double(), torch.tensor([0, 1, 0, 2, 1, 2])
    scales = scale * torch.rand(6, 1, dtype=torch.float64).add(0.1)
    for form in ("authors", "paper"):
        expected = contrastive_distillation(features, teacher, y, form=form).item()
        assert_same_value(contrastive_distillation(features * scales, teacher / scales, y, form=form), expected)
    assert_same_value(batch_hard_triplet(features * scales, y), batch_hard_triplet(features, y).item())


def test_length_of_features_matters_without_normalisation():
    features, teacher = torch.randn(2, 4, 3)
    value = contrastive_distillation(features, teacher, PAIRS, normalize=False)
    assert value != contrastive_distillation(2 * features, teacher, PAIRS, normalize=False)


def test_similarity_and_temperature_scale_together():
    # z.z / t: lengths times a and temperatures times a^2 leave every term as it was.
    z, z_teacher, y = units(4, 2, 3), units(4, 2, 3), torch.tensor([0, 1, 0, 2])
    assert_same_value(asymmetric_supcon(3 * z, y, temperature=4.5), asymmetric_supcon(z, y, temperature=0.5).item())
    assert_same_value(
        relation_distillation(3 * z, 2 * z_teacher, temperature=1.8, teacher_temperature=0.4),
        relation_distillation(z, z_teacher, temperature=0.2, teacher_temperature=0.1).item(),
    )


def test_rotation_of_embeddings_does_not_matter():
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    other = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    z, z_teacher, y = units(4, 2, 4), units(4, 2, 4), torch.tensor([0, 1, 0, 2])
    assert_same_value(asymmetric_supcon(z @ turn, y), asymmetric_supcon(z, y).item())
    # Relations are compared, not embeddings: student and teacher may turn apart.
    assert_same_value(relation_distillation(z @ turn, z_teacher @ other), relation_distillation(z, z_teacher).item())


def test_a_shift_of_all_logits_of_a_group_does_not_matter():
    logits, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    groups, y = torch.tensor([0, 1, 1, -1, 0]), torch.tensor([0, 1, 2, 4, 1, 0])
    shift = torch.tensor([5.0, -40.0, 3.0])[groups]  # one number per group, -1 included
    assert_same_value(separated_softmax(logits + shift, y, groups), separated_softmax(logits, y, groups).item())
    expected = taskwise_distillation(logits, teacher, groups).item()
    assert_same_value(taskwise_distillation(logits + shift, teacher - 2 * shift, groups), expected)


def test_logits_and_temperature_scale_together_up_to_t_squared():
    logits, teacher, tasks = torch.randn(4, 5).double(), torch.randn(4, 5).double(), torch.tensor([0, 1, 1, 0, 1])
    value = taskwise_distillation(3 * logits, 3 * teacher, tasks, temperature=6.0)
    assert_same_value(value, 9 * taskwise_distillation(logits, teacher, tasks, temperature=2.0).item())


def test_tasks_add_up():
    logits, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    both = taskwise_distillation(logits, teacher, torch.tensor([0, 1, 1, 0, 1])).item()
    first = taskwise_distillation(logits, teacher, torch.tensor([0, -1, -1, 0, -1])).item()
    second = taskwise_distillation(logits, teacher, torch.tensor([-1, 1, 1, -1, 1])).item()
    assert both == pytest.approx(first + second, rel=1e-12)


def test_one_group_is_plain_cross_entropy():
    logits, y = torch.randn(6, 5), torch.tensor([0, 4, 1, 2, 3, 3])
    value = separated_softmax(logits, y, torch.full((5,), 7))
    assert_same_value(value, F.cross_entropy(logits, y).item(), rel=1e-6)


def test_one_task_is_global_distillation():
    logits, teacher = torch.randn(6, 5), torch.randn(6, 4)
    expected = 9 * F.kl_div(
        (logits[:, :4] / 3).log_softmax(1), (teacher / 3).log_softmax(1), reduction="batchmean", log_target=True
    )
    value = taskwise_distillation(logits, teacher, torch.zeros(4, dtype=torch.long), temperature=3.0)
    assert_same_value(value, expected.item(), rel=1e-5)


def test_inputs_are_left_alone():
    z, x, teacher, y = units(4, 2, 3), units(4, 5), units(4, 5), torch.tensor([3, 0, 1, 0])
    groups, anchor = torch.tensor([0, 1, 1, 0, -1]), HALF.clone()
    inputs = (z, x, teacher, y, groups, anchor)
    before = [t.clone() for t in inputs]
    asymmetric_supcon(z, y, anchor)
    relation_distillation(z, z)
    separated_softmax(x, y, groups)
    taskwise_distillation(x, teacher, groups)
    contrastive_distillation(x, teacher, y)
    contrastive_distillation(x, teacher, y, form="paper")
    batch_hard_triplet(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
