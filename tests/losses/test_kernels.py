"""What the losses compute with equals plain formulas: values, gradients and second derivatives."""

import pytest
import torch
from helpers.losses_by_hand import leaf, units
from torch.autograd import gradcheck, gradgradcheck

from avalanche_contrastive._kernels import (
    Term,
    _fixed_shape_log_softmax,
    cross_entropy_of_others,
    positives,
    task_log_softmax,
    unit_rows,
)


def plain_cross_entropy(z, target, *, temperature, others=None, weight=None):
    """`one_cross_entropy` by autograd, with a mask of infinities."""
    columns = z if others is None else torch.cat([z, others])
    similarity = z @ columns.T / temperature
    own = torch.eye(*similarity.shape, dtype=torch.bool)
    loss = similarity.masked_fill(own, -torch.inf).logsumexp(dim=1) - (target * similarity).sum(dim=1)
    return (loss * (1 / len(z) if weight is None else weight)).sum()


def one_cross_entropy(z, target, *, temperature, others=None, weight=None):
    return cross_entropy_of_others(z, Term(target, temperature, weight), others=others)[0]


def draws(n=7, m=0, d=4, seed=0):
    torch.manual_seed(seed)
    target = torch.rand(n, n + m, dtype=torch.float64).fill_diagonal_(0)
    others = torch.randn(m, d, dtype=torch.float64) if m else None
    return torch.randn(n, d, dtype=torch.float64), target / target.sum(dim=1, keepdim=True), others


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 0), (7, 0), (1, 1), (5, 3), (4, 9), (70, 70)])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_cross_entropy_is_that_of_autograd(n, m, temperature, weighted):
    z, target, others = draws(n, m)
    weight = torch.rand(n, dtype=torch.float64) if weighted else None
    results = []
    for function in (one_cross_entropy, plain_cross_entropy):
        x = leaf(z)
        value = function(x, target, temperature=temperature, others=others, weight=weight)
        (3 * value).backward()
        results.append((value, x.grad))
    torch.testing.assert_close(*(value for value, _ in results), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [0, 3])
def test_cross_entropy_has_two_derivatives(m):
    z, target, others = draws(5, m, 3)
    weight = torch.rand(5, dtype=torch.float64)

    def loss(x):
        return one_cross_entropy(x, target, temperature=0.7, others=others, weight=weight)

    assert gradcheck(loss, (leaf(z),))
    assert gradgradcheck(loss, (leaf(z),))


def test_a_gradient_penalty_is_that_of_autograd():
    z, target, _ = draws(6)
    found = []
    for function in (one_cross_entropy, plain_cross_entropy):
        x = leaf(z)
        (slope,) = torch.autograd.grad(function(x, target, temperature=0.3), x, create_graph=True)
        slope.pow(2).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_the_graph_may_be_gone_through_twice():
    z, target, _ = draws()
    x = leaf(z)
    loss = one_cross_entropy(x, target, temperature=0.3)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_cross_entropy_under_torch_func():
    z, target, _ = draws()
    x = leaf(z)
    one_cross_entropy(x, target, temperature=0.3).backward()
    found = torch.func.grad(lambda s: one_cross_entropy(s, target, temperature=0.3))(z)
    torch.testing.assert_close(found, x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factors", [(0.7, 3.0), (1.0, 0.0)])
def test_the_sum_of_cross_entropies_is_that_of_one_by_one(factors):
    """Values, gradients and second derivatives; one of them may be left out."""
    z, first, others = draws(5, 3, 3)
    weight = torch.rand(5, dtype=torch.float64)
    terms = [Term(first, 0.5, weight), Term(draws(5, 3, 3, seed=1)[1], 0.2)]

    def at_once(x):
        weighted = [term._replace(factor=factor) for term, factor in zip(terms, factors, strict=True)]
        return cross_entropy_of_others(x, *weighted, others=others)

    def each(x):
        return [cross_entropy_of_others(x, term, others=others)[0] for term in terms]

    def one_by_one(x):
        return sum(factor * value for factor, value in zip(factors, each(x), strict=True))

    found = [leaf(z), leaf(z)]
    total, *values = at_once(found[0])
    total.backward()
    one_by_one(found[1]).backward()
    torch.testing.assert_close(total, one_by_one(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values, each(z), rtol=1e-12, atol=1e-12)
    assert not any(value.requires_grad for value in values)
    torch.testing.assert_close(found[0].grad, found[1].grad, rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda x: at_once(x)[0], (leaf(z),))
    assert gradgradcheck(lambda x: at_once(x)[0], (leaf(z),))
    found = torch.func.grad(lambda x: at_once(x)[0])(z)
    torch.testing.assert_close(found, torch.func.grad(one_by_one)(z))


@pytest.mark.parametrize("itself", [False, True])
def test_positives_share_one(itself):
    y, others = torch.tensor([4, 2, 4]), torch.tensor([4, 2, 4, 2, 9, 4])
    weights = positives(y, others, torch.float32, itself=itself)
    same = [[j for j in range(6) if others[j] == y[i] and (itself or i != j)] for i in range(3)]
    for i, row in enumerate(same):
        assert weights[i].nonzero()[:, 0].tolist() == row
        assert weights[i, row].tolist() == pytest.approx([1 / len(row)] * len(row))


TABLES = {
    "consecutive": [0, 0, 1, 1, 2, 2],
    "consecutive, not from the first": [-1, -1, 4, 4, 1, 1],
    "equal": [2, 0, 1, 1, 2, 0],
    "unequal": [0, 0, 0, 1, -1, 9],
    "one task": [3, 3, 3, 3, 3, 3],
    "one class each": [0, 5, 2, 1, 8, 4],
    "one class": [-1, -1, 7, -1, -1, -1],
}


def plain_divergence(teacher, student, tasks):
    """Kullback-Leibler divergence summed over rows and tasks, task by task."""
    total = torch.zeros((), dtype=teacher.dtype)
    for task in sorted(set(tasks.tolist())):
        if task >= 0:
            p, q = (x[:, tasks == task].log_softmax(dim=1) for x in (teacher, student))
            total = total + (p.exp() * (p - q)).sum()
    return total


@pytest.mark.parametrize("tasks", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("fixed", [False, True], ids=["", "fixed shapes"])
def test_every_layout_of_tasks_is_that_task_by_task(tasks, fixed):
    tasks = torch.tensor(tasks)
    teacher, results = 3 * torch.randn(4, 6, dtype=torch.float64), []
    logits = 3 * torch.randn(4, 6, dtype=torch.float64)
    for plain in (False, True):
        x = leaf(logits)
        if plain:
            value = plain_divergence(teacher, x, tasks)
        else:
            pair = (teacher, x)
            both = [_fixed_shape_log_softmax(s, tasks) for s in pair] if fixed else task_log_softmax(tasks, 1.0, *pair)
            p, q = both
            value = (p.exp() * (p - q)).sum()
        value.backward()
        results.append((value, x.grad))
    torch.testing.assert_close(*(value for value, _ in results), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-12, atol=1e-12)


def test_unit_rows_are_normalised_ones():
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(unit_rows(x), torch.nn.functional.normalize(x, dim=1))
    assert gradcheck(unit_rows, (leaf(units(4, 3) * 7),))
    assert gradgradcheck(unit_rows, (leaf(units(4, 3) * 7),))


def test_a_row_of_zeros_stays_and_has_a_plain_gradient():
    x = leaf(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    unit_rows(x).sum().backward()
    assert unit_rows(x).tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert x.grad[0].tolist() == [1.0, 1.0]
