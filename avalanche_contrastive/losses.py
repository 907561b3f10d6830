"""The losses of Co2L, SS-IL and CSD as pure functions of tensors; they need torch and nothing else.

All of them end in one operation: a row-wise cross-entropy (or log-likelihood) between a target and a softmax. What
differs is which columns the softmax runs over, which rows count, and who gives the target. This page has the equations;
what computes them fast is in ``_kernels.py``.

Letters: B images in a batch, V views of an image, D width of an embedding, K classes. Temperatures divide similarities
or logits and have no unit. Similarities and softmaxes are computed in float32 at least, whatever the input's precision
and also under autocast (but ``torch.set_float32_matmul_precision`` holds here, too); the result has that precision. The
gradient of a half-precision input is finite: where it is too large for that precision, the largest number stands.

Wrong shapes, types and options raise ``ValueError``, an empty batch among them. So do labels that have no logit or no
group, on the CPU. On a GPU no loss reads a value, because the host would have to wait for it in each step: such labels
end there in the device-side assertion of torch's own cross-entropy, and the same call on the CPU gives the sentence.
All shapes follow from the shapes of the arguments, and ``torch.compile(fullgraph=True)`` takes every loss.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_contrastive._checks import (
    check_choice,
    check_classes,
    check_embeddings,
    check_labels,
    check_positive,
    check_shape,
    check_targets,
    check_weight,
    form_of,
)
from avalanche_contrastive._kernels import (
    Term,
    cross_entropy_of_others,
    finite_gradient,
    float32,
    full_precision,
    positives,
    task_log_softmax,
    unit_rows,
    without_self,
)

__all__ = [
    "asymmetric_supcon",
    "batch_hard_triplet",
    "contrast_and_relations",
    "contrastive_distillation",
    "relation_distillation",
    "separated_softmax",
    "taskwise_distillation",
]


def asymmetric_supcon(
    z: Tensor,
    y: Tensor,
    is_anchor: Tensor | None = None,
    *,
    temperature: float = 0.5,
    base_temperature: float | None = None,
    reduction: Literal["anchors", "all", "sum"] = "anchors",
) -> Tensor:
    r"""Supervised contrastive loss whose anchors are the current classes only.

    Co2L (Cha et al. 2021, arXiv:2106.14413), Eq. 10; with every image an anchor it is SupCon, Eq. 7. Past images
    repel the anchors but are pulled towards nobody::

        loss_i = -1/|P(i)| * sum_{p in P(i)} log( exp(z_i.z_p / t) / sum_{k != i} exp(z_i.z_k / t) )

    for each anchor view i; P(i) are the other views with the label of i.

    Args:
        z: unit embeddings, (B, V, D) with V >= 2.
        y: class ids, (B,) integers in any order.
        is_anchor: True where an image is of a current class, (B,) bool; None makes every image an anchor.
        temperature: t, > 0.
        base_temperature: b multiplies the loss by t / b (SupCon's code uses 0.07); None leaves it as in the paper.
        reduction: "anchors" is the mean over anchor views, "sum" their sum (the paper), "all" their sum divided by
            B * V, which is what the authors' code does.

    Returns:
        Scalar; zero, with a gradient path, for a batch without an anchor.

    Raises:
        ValueError: z is not (B, V, D) with V >= 2, y not (B,) integers, is_anchor not (B,) bool, a temperature not
            > 0, or an unknown reduction.
    """
    term = _contrast("asymmetric_supcon", z, y, is_anchor, temperature, base_temperature, reduction)
    return cross_entropy_of_others(z.flatten(0, 1), term)[0]


def _contrast(
    name: str,
    z: Tensor,
    y: Tensor,
    is_anchor: Tensor | None,
    temperature: float,
    base_temperature: float | None,
    reduction: str,
) -> Term:
    """The target and the weight of every view in `asymmetric_supcon`."""
    z = check_embeddings(name, "z", z, views=2)
    b, v, _ = z.shape
    y = check_labels(name, y, b)
    check_positive(name, temperature=temperature)
    if base_temperature is not None:
        check_positive(name, base_temperature=base_temperature)
    check_choice(name, "reduction", reduction, ("anchors", "all", "sum"))
    if is_anchor is not None and (
        not isinstance(is_anchor, Tensor) or is_anchor.dtype != torch.bool or is_anchor.shape != (b,)
    ):
        raise ValueError(
            f"{name}: is_anchor must be bool of shape ({b},), a tensor, one entry per image, got {form_of(is_anchor)}. "
            "Entries per view (B * V) are not needed."
        )
    labels = y.repeat_interleave(v)
    target = positives(labels, labels, torch.promote_types(z.dtype, torch.float32), itself=False)
    # Views of past images have a loss, too, which weighs nothing. To leave their rows out, the host would have to
    # wait for a GPU's count of them.
    weight = torch.ones_like(target[0]) if is_anchor is None else is_anchor.repeat_interleave(v).to(target.dtype)
    factor = 1.0 if base_temperature is None else temperature / base_temperature
    if reduction == "anchors":
        weight = weight / weight.sum().clamp(min=1)
    elif reduction == "all":
        factor /= b * v
    return Term(target, temperature, weight if factor == 1 else weight * factor)


def relation_distillation(
    z: Tensor, z_teacher: Tensor, *, temperature: float = 0.2, teacher_temperature: float = 0.01
) -> Tensor:
    r"""Instance-wise relation distillation: keep every view's similarities to the other views of the batch.

    Co2L (Cha et al. 2021, arXiv:2106.14413), Eq. 12 and 13. Each view's relation vector is the softmax of its
    similarities to all other views; the loss is the cross-entropy of the student's to the teacher's::

        loss = mean over views i of  -sum_{j != i} p_teacher(i)_j * log p_student(i)_j

    Args:
        z: unit embeddings of the student, (B, V, D).
        z_teacher: unit embeddings of the teacher for the same views, (B, V, D'); D' may differ from D. No gradient
            flows into it.
        temperature: of the student's relations (kappa in the paper), > 0.
        teacher_temperature: of the teacher's relations (kappa*), > 0.

    Returns:
        Scalar, the mean over the B * V views; zero, with a gradient path, where there is a single view in all.

    Raises:
        ValueError: z or z_teacher is not (B, V, D), they differ in B or V, or a temperature is not > 0.
    """
    term = _relations("relation_distillation", z, z_teacher, temperature, teacher_temperature, 1.0)
    if len(term.target) == 1:
        return float32(z).sum() * 0.0
    return cross_entropy_of_others(z.flatten(0, 1), term)[0]


def _relations(
    name: str, z: Tensor, z_teacher: Tensor, temperature: float, teacher_temperature: float, factor: float
) -> Term:
    """What `relation_distillation` keeps of the teacher."""
    z = check_embeddings(name, "z", z)
    z_teacher = check_embeddings(name, "z_teacher", z_teacher)
    if z.shape[:2] != z_teacher.shape[:2]:
        raise ValueError(
            f"{name}: student and teacher must embed the same views, got z {tuple(z.shape)} and z_teacher "
            f"{tuple(z_teacher.shape)}: (B, V) must agree. Did both see the same batch?"
        )
    check_positive(name, temperature=temperature, teacher_temperature=teacher_temperature)
    with full_precision(z):
        teacher = float32(z_teacher.detach()).flatten(0, 1)
        target = without_self(teacher / teacher_temperature @ teacher.T).softmax(dim=1)
        return Term(target.to(torch.promote_types(z.dtype, torch.float32)), temperature, None, factor)


def contrast_and_relations(
    z: Tensor,
    y: Tensor,
    is_anchor: Tensor | None,
    z_teacher: Tensor,
    *,
    temperature: float = 0.5,
    base_temperature: float | None = None,
    reduction: Literal["anchors", "all", "sum"] = "anchors",
    weight: float = 1.0,
    distill_temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """Co2L's loss: `asymmetric_supcon` plus ``weight`` times `relation_distillation`, from one matrix of similarities.

    Args:
        z, y, is_anchor, temperature, base_temperature, reduction: of the contrast.
        z_teacher, teacher_temperature: of the relation distillation.
        weight: lambda in the paper, >= 0.
        distill_temperature: the student's temperature in the relation distillation.

    Returns:
        The loss, then the contrast and the distillation that it is made of, without weight or gradient; all scalars.

    Raises:
        ValueError: as the two functions, or a weight below 0.
    """
    name = "contrast_and_relations"
    check_weight(name, weight=weight)
    contrast = _contrast(name, z, y, is_anchor, temperature, base_temperature, reduction)
    relations = _relations(name, z, z_teacher, distill_temperature, teacher_temperature, weight)
    loss, *values = cross_entropy_of_others(z.flatten(0, 1), contrast, relations)
    return loss, values[0], values[1]


def separated_softmax(logits: Tensor, y: Tensor, groups: Tensor) -> Tensor:
    r"""Cross-entropy in which a sample's softmax runs over the classes of its own group only.

    SS-IL (Ahn et al. 2021, arXiv:2003.13947), the equation of L_CE-SS: with the groups "old" and "new", a new sample
    never pushes an old class's logit down, nor a replayed one a new class's::

        loss = mean over b of  log sum_{c: group(c) = group(y_b)} exp(logits_bc)  -  logits_b,y_b

    Args:
        logits: (B, K).
        y: class ids, (B,) integers in [0, K), each in a group.
        groups: the group of each class, (K,) integers; a class with -1 takes no part.

    Returns:
        Scalar, the mean over all B samples, whatever their group (as the authors' code).

    Raises:
        ValueError: a wrong shape or type; on the CPU also a label outside [0, K), or one whose class has no group.
    """
    name = "separated_softmax"
    check_shape(name, "logits", logits, 2, "(B, K)")
    b, k = logits.shape
    y = check_labels(name, y, b)
    groups = check_classes(name, "groups", groups, k)
    with full_precision(logits):
        wide = float32(logits)
        try:
            own = groups.index_select(0, y)
            # A huge finite value instead of an infinity: its softmax and its gradient are exactly zero all the same.
            rivals = wide.masked_fill(groups != own[:, None], torch.finfo(wide.dtype).min)
            # Torch's kernels look at labels anyway. K is one that they refuse.
            loss = F.cross_entropy(rivals, y.masked_fill(own < 0, k))
        except IndexError:
            check_targets(name, y, groups)
            raise
        return finite_gradient(loss, logits, wide)


def taskwise_distillation(logits: Tensor, teacher_logits: Tensor, tasks: Tensor, *, temperature: float = 2.0) -> Tensor:
    r"""Knowledge distillation with a softmax of its own for the classes of each past task.

    SS-IL (Ahn et al. 2021, arXiv:2003.13947), the equation of L_TKD, times T^2 as in the authors' code::

        loss = T^2 * sum over tasks s of  mean over b of  KL( p_s(teacher_b) || p_s(student_b) )

    where p_s is the softmax of logits / T over the classes of task s. One task for all old classes is the usual
    (global) distillation.

    Args:
        logits: of the student, (B, K) with K >= K_teacher; columns beyond the teacher's take no part.
        teacher_logits: (B, K_teacher); no gradient flows into them.
        tasks: the task of each of the teacher's classes, (K_teacher,) integers in any order; -1 takes no part. Best on
            the CPU, whatever the device of the logits: tasks of equal size are then computed as one array.
        temperature: T, > 0.

    Returns:
        Scalar; zero, with a gradient path, where no class takes part.

    Raises:
        ValueError: a wrong shape or type, a teacher wider than the student, or a temperature not > 0.
    """
    name = "taskwise_distillation"
    check_shape(name, "logits", logits, 2, "(B, K)")
    check_shape(name, "teacher_logits", teacher_logits, 2, "(B, K_teacher)")
    b, k = logits.shape
    width = teacher_logits.shape[1]
    if teacher_logits.shape[0] != b or width > k:
        raise ValueError(
            f"{name}: teacher_logits must be (B, K_teacher) with B = {b} and K_teacher <= {k}, the shape of logits, "
            f"got {tuple(teacher_logits.shape)}. Did both models see the same batch?"
        )
    tasks = check_classes(name, "tasks", tasks, width)
    check_positive(name, temperature=temperature)

    with full_precision(logits):
        wide = float32(logits)
        teacher, student = task_log_softmax(tasks, temperature, float32(teacher_logits.detach()), wide)
        divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
        return finite_gradient(divergence / (b / temperature**2), logits, wide)


def contrastive_distillation(
    features: Tensor,
    teacher_features: Tensor,
    y: Tensor,
    *,
    temperature: float = 0.07,
    form: Literal["authors", "paper"] = "authors",
    normalize: bool = True,
) -> Tensor:
    r"""Contrastive supervised distillation: draw features to the teacher's features of the same class.

    CSD (Barletti, Biondi et al. 2022, arXiv:2205.05476). The authors' code contrasts each student feature with all
    other student features and all teacher features::

        loss = mean over i of  -1/|P(i)| * sum_{u in P(i)} log( exp(f_i.u / t) / sum_{a in C(i)} exp(f_i.a / t) )

    C(i) are the students but i, and all teachers; P(i) those of them with the label of i (i's own teacher feature is
    one, so there is always a positive). The paper's Eq. 8 (``form="paper"``) has the *teacher's* feature of i as the
    anchor and student features only around it: P(i) are all students of the label, i too, and the sum in the
    denominator runs over the students but i. It writes neither temperature (t = 1) nor normalisation.

    Args:
        features: of the student, (B, D).
        teacher_features: of the teacher for the same images, (B, D); no gradient flows into them.
        y: class ids, (B,) integers.
        temperature: t, > 0.
        form: "authors" or "paper".
        normalize: divide each feature by its length first (a feature of length zero stays as it is).

    Returns:
        Scalar; zero, with a gradient path, for the paper's form of a single image, which has nothing to contrast.

    Raises:
        ValueError: a wrong shape or type, features of unequal shapes, a temperature not > 0, or an unknown form.
    """
    name = "contrastive_distillation"
    check_shape(name, "features", features, 2, "(B, D)")
    y = check_labels(name, y, len(features))
    if not isinstance(teacher_features, Tensor) or teacher_features.shape != features.shape:
        given = tuple(teacher_features.shape) if isinstance(teacher_features, Tensor) else type(teacher_features)
        raise ValueError(
            f"{name}: teacher_features must have the shape of features, {tuple(features.shape)}, got {given}. Are both "
            "taken from the same layer and the same batch?"
        )
    check_positive(name, temperature=temperature)
    check_choice(name, "form", form, ("authors", "paper"))

    with full_precision(features):
        wide = float32(features)
        student, teacher = wide, teacher_features.detach().to(wide.dtype)
        if normalize:
            student, teacher = unit_rows(student), unit_rows(teacher)
        if form == "authors":
            target = positives(y, torch.cat([y, y]), wide.dtype, itself=False)
            loss = cross_entropy_of_others(student, Term(target, temperature), others=teacher)[0]
        elif len(y) > 1:
            similarity = teacher @ student.T / temperature
            attracted = (positives(y, y, wide.dtype, itself=True) * similarity).sum(dim=1)
            loss = (without_self(similarity).logsumexp(dim=1) - attracted).mean()
        else:
            loss = student.sum() * 0.0
        return finite_gradient(loss, features, wide)


def batch_hard_triplet(features: Tensor, y: Tensor, *, margin: float = 1.0, normalize: bool = True) -> Tensor:
    r"""Triplet loss of each sample with its farthest positive and its nearest negative in the batch.

    The second plasticity term of CSD (arXiv:2205.05476, L_triplet among Eq. 2 to 8), as in the authors' code:
    distances of unit features choose the triplet, cosine similarities s enter the loss::

        loss = mean over the non-zero terms of  max(0, s(i, nearest negative) - s(i, farthest positive) + margin)

    Args:
        features: (B, D).
        y: class ids, (B,) integers.
        margin: >= 0, in units of cosine similarity.
        normalize: divide each feature by its length first; False where that has been done.

    Returns:
        Scalar; zero, with a gradient path, where no sample has both a positive and a negative.

    Raises:
        ValueError: a wrong shape or type, or a margin below 0.
    """
    name = "batch_hard_triplet"
    check_shape(name, "features", features, 2, "(B, D)")
    y = check_labels(name, y, len(features))
    check_weight(name, margin=margin)

    with full_precision(features):
        wide = float32(features)
        unit = unit_rows(wide) if normalize else wide
        with torch.no_grad():
            # Cosines lie in [-1, 1]: those of a sample's own class are moved below all others, its own in between.
            similarity = without_self((unit @ unit.T).add_(y[:, None] == y, alpha=-4), -2)
            lowest, farthest = similarity.min(dim=1)
            highest, nearest = similarity.max(dim=1)
            both = (lowest < -2) & (highest > -2)
        difference = torch.linalg.vecdot(unit, unit.index_select(0, nearest) - unit.index_select(0, farthest))
        violation = F.relu(difference + margin) * both
        return finite_gradient(violation.sum() / (violation > 0).sum().clamp(min=1), features, wide)
