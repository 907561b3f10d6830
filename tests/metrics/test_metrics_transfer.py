"""Forgetting and backward transfer: matrices by hand, and the metrics that wrap others inside Avalanche."""

import math

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from helpers.streams import make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive.metrics import (
    ForgettingMetric,
    RetrievalMetric,
    backward_transfer,
    forgetting,
    retrieval_forgetting_metrics,
    retrieval_metrics,
    with_forgetting,
)

R = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 0.6]]

# --- the pure functions ---


def test_by_hand():
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert forgetting(R, reduction="none").tolist() == pytest.approx([0.2, 0.3])
    assert backward_transfer(R, reduction="none").tolist() == pytest.approx([-0.2, -0.3])


def test_the_best_need_not_be_when_it_was_learned():
    # Experience 0 is best after experience 1, experience 1 before it was learned (its features were good already).
    matrix = [[0.5, 0.9], [0.7, 0.8], [0.4, 0.6]]
    matrix = [[*row, 0.0] for row in matrix]
    assert forgetting(matrix, reduction="none").tolist() == pytest.approx([0.3, 0.3])
    assert backward_transfer(matrix, reduction="none").tolist() == pytest.approx([-0.1, -0.2])


def test_what_is_gained_is_below_zero():
    assert forgetting([[0.5, 0.0], [0.8, 0.9]]) == pytest.approx(-0.3)


@pytest.mark.parametrize("function", [forgetting, backward_transfer])
def test_kinds_of_matrix(function):
    expected = function(R)
    for matrix in (torch.tensor(R), np.array(R), [tuple(row) for row in R], torch.tensor(R).half()):
        assert function(matrix) == pytest.approx(expected, abs=1e-3)
    # Experiences to come, and their columns, do not matter.
    assert function([[*row, 0.4, 0.3] for row in R]) == pytest.approx(expected)


@pytest.mark.parametrize("function", [forgetting, backward_transfer])
def test_first_experience_has_nothing_to_forget(function):
    assert math.isnan(function([[0.3, 0.5]]))
    assert function([[0.3]], reduction="none").shape == (0,)


def test_missing_values():
    nan = math.nan
    assert forgetting([[nan, 0, 0], [0.6, 0.8, 0], [0.7, nan, 0.6]], reduction="none").tolist() == pytest.approx(
        [-0.1, nan], nan_ok=True
    )
    assert forgetting([[nan, 0, 0], [0.6, 0.8, 0], [0.7, nan, 0.6]]) == pytest.approx(-0.1)
    assert math.isnan(backward_transfer([[nan, 0], [0.6, 0.8]]))
    assert math.isnan(forgetting([[nan, 0], [0.6, 0.8]]))


def test_a_naive_loop_agrees():
    matrix = torch.rand(6, 6, dtype=torch.float64)
    last = [max(matrix[i][j].item() for i in range(5)) - matrix[5][j].item() for j in range(5)]
    assert forgetting(matrix, reduction="none").tolist() == pytest.approx(last)
    assert backward_transfer(matrix) == pytest.approx(sum((matrix[5][j] - matrix[j][j]).item() for j in range(5)) / 5)


@pytest.mark.parametrize("function", [forgetting, backward_transfer])
def test_shift_and_scale(function):
    matrix = torch.rand(5, 5, dtype=torch.float64)
    assert function(matrix + 3) == pytest.approx(function(matrix))
    assert function(100 * matrix) == pytest.approx(100 * function(matrix))


BAD = {
    "a vector": (lambda: forgetting([0.1, 0.2]), r"forgetting: matrix must be \(T, J\).*got shape \(2,\)"),
    "ragged rows": (lambda: backward_transfer([[1.0], [0.5, 0.5]]), r"backward_transfer: matrix.*rows.*one length"),
    "words": (lambda: forgetting([["a"]]), "rows of numbers"),
    "more rows than columns": (lambda: forgetting(torch.ones(3, 2)), r"column for each of J >= T.*\(3, 2\)"),
    "nothing": (lambda: forgetting(torch.ones(0, 0)), r"got shape \(0, 0\)"),
    "a reduction": (lambda: forgetting(R, reduction="sum"), "reduction must be one of 'mean', 'none', got 'sum'"),
    "no metric": (lambda: with_forgetting([3]), "metric must be a plugin metric, got int"),
    "no level": (lambda: retrieval_forgetting_metrics(experience=False, stream=False), "both False"),
    "no K": (lambda: retrieval_forgetting_metrics(ks=()), "ks must be"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- inside Avalanche ---


def make_strategy(metrics, **options):
    model = nn.Sequential(make_encoder(), nn.Linear(16, 10))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_mb_size=8,
        train_epochs=4,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **options,
    )


def run(strategy, benchmark, count=3):
    """Train on some experiences, evaluating all after each; what each evaluation gave."""
    results = []
    for experience in benchmark.train_stream[:count]:
        strategy.train(experience, eval_streams=[])
        strategy.evaluator.reset_last_metrics()
        results.append(strategy.eval(benchmark.test_stream))
    return results


def matrix_of(results, name, count=5):
    return [[result[f"{name}_Exp/eval_phase/test_stream/Exp{j:03d}"] for j in range(count)] for result in results]


@pytest.fixture
def benchmark():
    return make_benchmark("A", per_class=12)


def test_values_are_those_of_the_functions_on_the_matrix(benchmark):
    metrics = with_forgetting(retrieval_metrics(ks=(1, 2), map_at_r=True))
    results = run(make_strategy(metrics), benchmark)
    for name in ("Recall@1", "Recall@2", "MAP@R"):
        matrix = matrix_of(results, name)
        assert torch.equal(metrics[0].matrix(name), torch.tensor(matrix, dtype=torch.float64))
        for t in (1, 2):
            for what, function in (("Forgetting", forgetting), ("BWT", backward_transfer)):
                each = function(matrix[: t + 1], reduction="none").tolist()
                start = f"{name}_{what}"
                given = [results[t][f"{start}_Exp/eval_phase/test_stream/Exp{j:03d}"] for j in range(t)]
                assert given == pytest.approx(each)
                assert results[t][f"{start}_Stream/eval_phase/test_stream"] == pytest.approx(sum(each) / t)
                assert f"{start}_Exp/eval_phase/test_stream/Exp{t:03d}" not in results[t]
        assert not [key for key in results[0] if "Forgetting" in key or "BWT" in key]


def test_backward_transfer_of_accuracy_is_that_of_avalanche(benchmark):
    wrapped = with_forgetting(accuracy_metrics(experience=True))
    results = run(make_strategy([*wrapped, *bwt_metrics(experience=True, stream=True)]), benchmark)
    assert results[2]["Top1_Acc_BWT_Stream/eval_phase/test_stream"] == pytest.approx(
        results[2]["StreamBWT/eval_phase/test_stream"]
    )
    for j in (0, 1):
        place = f"/eval_phase/test_stream/Exp{j:03d}"
        assert results[2]["Top1_Acc_BWT_Exp" + place] == pytest.approx(results[2]["ExperienceBWT" + place])
    assert results[2]["Top1_Acc_BWT_Stream/eval_phase/test_stream"] < -0.3  # it does forget


def test_wrapped_metrics_give_what_they_gave(benchmark):
    def metrics():
        return [
            *retrieval_metrics(),
            *accuracy_metrics(epoch=True, experience=True, stream=True),
            *loss_metrics(epoch=True),
        ]

    torch.manual_seed(1)
    plain = run(make_strategy(metrics()), benchmark, 2)
    torch.manual_seed(1)
    wrapped = run(make_strategy(with_forgetting(metrics())), benchmark, 2)
    for before, after in zip(plain, wrapped, strict=True):
        assert {key: after[key] for key in before} == before


def test_retrieval_forgetting_stands_beside_retrieval(benchmark):
    beside = [*retrieval_metrics(), *retrieval_forgetting_metrics(map_at_r=True)]
    results = run(make_strategy(beside), benchmark)
    matrix = matrix_of(results, "Recall@1")
    assert results[2]["Recall@1_Forgetting_Stream/eval_phase/test_stream"] == pytest.approx(forgetting(matrix))
    names = {key.split("/")[0] for key in results[2]}
    kinds = {f"{name}_{what}_{level}" for name in ("Recall@1", "MAP@R") for what in ("Forgetting", "BWT")
             for level in ("Exp", "Stream")}  # fmt: skip
    assert names == {"Recall@1_Exp", "Recall@1_Stream"} | kinds


@pytest.mark.parametrize(("experience", "stream"), [(True, False), (False, True)])
def test_levels_can_be_left_out(benchmark, experience, stream):
    metrics = retrieval_forgetting_metrics(experience=experience, stream=stream)
    names = {key.split("/")[0] for key in run(make_strategy(metrics), benchmark, 2)[1]}
    assert names == {f"Recall@1_{what}_{'Exp' if experience else 'Stream'}" for what in ("Forgetting", "BWT")}


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_a_row_is_what_was_evaluated_last(benchmark, eval_every):
    metrics = with_forgetting(retrieval_metrics(stream=False))
    strategy = make_strategy(metrics, eval_every=eval_every)
    rows = []
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        results = strategy.eval(benchmark.test_stream)
        rows.append([results[f"Recall@1_Exp/eval_phase/test_stream/Exp{j:03d}"] for j in range(5)])
    assert metrics[0].matrix("Recall@1").tolist() == rows
    assert results["Recall@1_BWT_Stream/eval_phase/test_stream"] == pytest.approx(backward_transfer(rows))


def test_streams_are_kept_apart_and_parts_will_do(benchmark):
    metric = ForgettingMetric(RetrievalMetric((1,), "experience"))
    strategy = make_strategy([metric])
    for i, experience in enumerate(benchmark.train_stream[:3]):
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream[: i + 1])
        strategy.eval(benchmark.train_stream[0])
    test, train = metric.matrix("Recall@1"), metric.matrix("Recall@1", "train")
    assert test.shape == train.shape == (3, 3)
    assert test.isnan().tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert train.isnan().tolist() == [[False, True, True]] * 3
    assert set(metric.result()) == {"Recall@1/test", "Recall@1/train"}


def test_experiences_in_any_order(benchmark):
    metrics = with_forgetting(retrieval_metrics(stream=False))
    strategy = make_strategy(metrics)
    results = []
    for i in (3, 1):
        strategy.train(benchmark.train_stream[i], eval_streams=[])
        results.append(strategy.eval(benchmark.test_stream))
    rows = matrix_of(results, "Recall@1")
    assert metrics[0].matrix("Recall@1").tolist() == [[row[j] for j in (3, 1, 0, 2, 4)] for row in rows]
    expected = rows[1][3] - rows[0][3]
    assert results[1]["Recall@1_BWT_Exp/eval_phase/test_stream/Exp003"] == pytest.approx(expected)


def test_a_new_strategy_starts_anew(benchmark):
    metrics = with_forgetting(retrieval_metrics())
    first = run(make_strategy(metrics), benchmark)
    assert "Recall@1_BWT_Stream/eval_phase/test_stream" in first[2]
    strategy = make_strategy(metrics)
    strategy.train(benchmark.train_stream[4], eval_streams=[])
    assert not [key for key in strategy.eval(benchmark.test_stream) if "BWT" in key]
    assert metrics[0].trained == [4]
    metrics[0].reset()
    assert metrics[0].result() == {}


def test_before_any_training_nothing_is_recorded(benchmark):
    metrics = with_forgetting(retrieval_metrics())
    assert set(make_strategy(metrics).eval(benchmark.test_stream)) >= {"Recall@1_Stream/eval_phase/test_stream"}
    assert metrics[0].matrices == {}
