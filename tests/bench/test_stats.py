"""Statistics: by hand, against SciPy, and what must hold of any numbers."""

from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from avalanche_contrastive import metrics
from avalanche_contrastive.bench.report import stats

R = [[1.0, 0.0, 0.0], [0.5, 0.9, 0.0], [0.6, 0.3, 0.8]]
RANDOM = np.random.default_rng(7)
SAMPLES = [RANDOM.normal(0.3, 1, size=n).tolist() for n in (1, 2, 3, 4, 5, 6, 9) for _ in range(3)]


# ---- figures of a matrix


def test_backward_transfer_is_the_change_since_each_experience_was_learned():
    assert stats.backward_transfer(R) == pytest.approx(((0.6 - 1.0) + (0.3 - 0.9)) / 2)


def test_backward_transfer_counts_from_the_diagonal_and_forgetting_from_the_best():
    better_later = [[0.5, 0.0, 0.0], [0.7, 0.9, 0.0], [0.6, 0.9, 0.8]]
    assert stats.backward_transfer(better_later) == pytest.approx(0.1 / 2)
    assert stats.forgetting(better_later) == pytest.approx(0.1 / 2)
    assert stats.forgetting(R) == pytest.approx(-stats.backward_transfer(R))


@pytest.mark.parametrize("figure", ["forgetting", "backward_transfer"])
def test_figures_without_torch_are_those_of_the_metrics(figure):
    for steps in (2, 3, 7):
        matrix = RANDOM.random((steps, steps)).tolist()
        assert getattr(stats, figure)(matrix) == pytest.approx(getattr(metrics, figure)(matrix))


def test_average_incremental_accuracy_is_over_the_images_seen_so_far():
    seen = [1.0, (0.5 * 10 + 0.9 * 30) / 40, (0.6 * 10 + 0.3 * 30 + 0.8 * 60) / 100]
    assert stats.average_incremental_accuracy(R, [10, 30, 60]) == pytest.approx(sum(seen) / 3)


def test_joint_training_forgets_and_transfers_nothing():
    for figure in (stats.backward_transfer, stats.forgetting, stats.learning_accuracy):
        assert figure([[1.0, 0.5]]) is None
    assert stats.average_incremental_accuracy([[1.0, 0.5]], [10, 30]) is None


# ---- interval


def test_the_interval_by_hand():
    # Mean 2, standard deviation 1, of three: t(0.975, 2) = 4.302653.
    assert stats.mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    # Two values: t(0.975, 1) = tan(0.475 pi), which is 12.706.
    half = 0.1 * np.tan(0.475 * np.pi)
    assert stats.mean_interval([0.4, 0.6]) == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize("values", [s for s in SAMPLES if len(s) > 1])
def test_the_interval_is_that_of_the_t_test(values):
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert stats.mean_interval(values) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("values", [s for s in SAMPLES if len(s) > 1])
def test_the_interval_moves_with_the_values_and_not_with_their_order(values):
    low, high = stats.mean_interval(values)
    assert stats.mean_interval(values[::-1]) == (low, high)
    assert stats.mean_interval([2 * v + 1 for v in values]) == pytest.approx((2 * low + 1, 2 * high + 1))
    assert stats.mean_interval([-v for v in values]) == pytest.approx((-high, -low))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_holds_the_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(3, 2, size=(2000, n))
    ends = np.array([stats.mean_interval(sample.tolist()) for sample in samples])
    assert np.mean((ends[:, 0] <= 3) & (ends[:, 1] >= 3)) == pytest.approx(0.95, abs=0.015)


def test_equal_values_have_an_interval_without_width():
    assert stats.mean_interval([0.25] * 4) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values_have_no_interval(values):
    with pytest.raises(ValueError, match=f"at least 2 values, got {len(values)}"):
        stats.mean_interval(values)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_missing_value_leaves_no_mean(missing):
    assert stats.mean_std([0.5, missing]) is None
    assert stats.mean_std([]) is None
    assert stats.mean_std([0.5]) == (0.5, 0.0)


# ---- sign flips


def flipped(differences):
    """The share of all patterns of signs whose sum is as far from zero, one by one."""
    sums = [np.dot(signs, differences) for signs in product((1, -1), repeat=len(differences))]
    return np.mean([abs(total) >= abs(sum(differences)) - 1e-9 for total in sums])


def test_sign_flips_by_hand():
    # Sums of +-1 +-2 +-3: 6, 4, 2, 0, 0, -2, -4, -6. Two of the eight are as far out as 6, four as 4.
    assert stats.sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert stats.sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8
    assert stats.sign_flip_p([1.0, 2.0, -3.0]) == 1.0
    assert stats.sign_flip_p([0.3]) == 1.0


@pytest.mark.parametrize("differences", SAMPLES)
def test_p_is_counted_over_all_patterns_of_signs(differences):
    p = stats.sign_flip_p(differences)
    assert p == pytest.approx(flipped(differences))
    assert stats.smallest_p(len(differences)) <= p <= 1
    assert stats.sign_flip_p([-d for d in differences]) == p
    assert stats.sign_flip_p(differences[::-1]) == p
    assert stats.sign_flip_p([1e-9 * d for d in differences]) == p
    assert stats.sign_flip_p([abs(d) for d in differences]) == stats.smallest_p(len(differences))


def test_identical_rows_do_not_differ():
    pair = stats.compare([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (pair.difference, pair.interval, pair.wins, pair.n, pair.p) == (0.0, (0.0, 0.0), 0, 3, 1.0)


def test_sums_that_differ_in_their_last_bits_only_count_as_equal():
    assert 0.4 - 0.3 + 0.1 + 0.2 > 0.4 + 0.3 - 0.1 - 0.2  # both 0.4: the second would else be missed
    # In tenths, with the 4 plus: 10, 6, 8, 4, 4, 0, 2, -2. Five of the eight are as far out as 4.
    assert stats.sign_flip_p([0.4, -0.3, 0.1, 0.2]) == 5 / 8


def test_no_difference_has_no_p():
    with pytest.raises(ValueError, match="at least 1 difference, got 0"):
        stats.sign_flip_p([])


@pytest.mark.parametrize("n", [16, 17, 40])
def test_many_differences_have_a_p_that_is_the_same_each_time(n):
    differences = np.random.default_rng(n).normal(0.3, 1, size=n)
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    p = stats.sign_flip_p(differences.tolist())
    assert np.random.get_state()[1].tolist() == before
    assert stats.sign_flip_p(differences.tolist()) == p
    assert p == pytest.approx(scipy_stats.ttest_1samp(differences, 0).pvalue, abs=0.02)  # close for normal values
    assert stats.sign_flip_p([1.0] * n) <= 4 * stats.smallest_p(n)


def test_a_comparison_by_hand():
    pair = stats.compare([0.9, 0.8, 0.7, 0.9, 0.9], [0.5, 0.7, 0.8, 0.7, 0.6])
    differences = [0.4, 0.1, -0.1, 0.2, 0.3]
    assert pair.difference == pytest.approx(0.18)
    half = 2.776445 * np.std(differences, ddof=1) / 5**0.5
    assert pair.interval == pytest.approx((0.18 - half, 0.18 + half))
    assert (pair.wins, pair.n, stats.smallest_p(pair.n)) == (4, 5, 0.0625)
    # |sum| >= 0.9 of +-0.4 +-0.1 +-0.1 +-0.2 +-0.3: none flipped (1.1) or one 0.1 (0.9), and the opposites.
    assert pair.p == 6 / 32
    swapped = stats.compare([0.5, 0.7, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.9, 0.9])
    assert (swapped.difference, swapped.p) == (pytest.approx(-pair.difference), pair.p)


def test_a_single_seed_has_a_difference_but_no_interval():
    pair = stats.compare([0.5], [0.4])
    assert (pair.interval, pair.p, stats.smallest_p(pair.n)) == (None, 1.0, 1.0)


def test_rows_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="as many values on both sides, got 2 and 1"):
        stats.compare([1.0, 2.0], [1.0])


# ---- pairing


def orders(**by_seed):
    return {int(seed[1:]): {"class orders": order} for seed, order in by_seed.items()}


def test_rows_of_the_same_seeds_and_class_orders_can_be_paired():
    stats.check_pairing(orders(s0=[1, 2], s1=[2, 1]), orders(s1=(2, 1), s0=(1, 2)), names=("a", "b"))


def test_rows_of_other_class_orders_cannot_be_paired():
    with pytest.raises(ValueError, match=r"with seed 1 the class orders are \[2, 1\] and \[1, 2\]"):
        stats.check_pairing(orders(s0=[1, 2], s1=[2, 1]), orders(s0=[1, 2], s1=[1, 2]), names=("a", "b"))


def test_rows_of_other_rotations_cannot_be_paired():
    with pytest.raises(ValueError, match=r"with seed 3 the rotations are \[12.5, 90\] and \[12.5, 91\]"):
        stats.check_pairing({3: {"rotations": [12.5, 90.0]}}, {3: {"rotations": [12.5, 91.0]}}, names=("a", "b"))
    with pytest.raises(ValueError, match=r"with seed 3 the rotations are \[12.5\] and \[\]"):
        stats.check_pairing({3: {"rotations": [12.5]}}, {3: {}}, names=("a", "b"))
