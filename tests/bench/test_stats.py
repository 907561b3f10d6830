"""Statistics: by hand, against SciPy, and what must hold of any numbers."""

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


def test_the_interval_of_three_values_is_their_range():
    # Of the 27 resamples one is three times the least: 3.7 %, more than the 2.5 % of a tail.
    assert stats.bootstrap_interval([0.5, 0.2, 0.9]) == pytest.approx((0.2, 0.9))


def test_the_interval_of_five_values_by_hand():
    # 1 x five times: 1 of 3125 resamples; with a single 2: 5 more; the 2.5 % tail ends at the 79th.
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    sums = sorted(a + b + c + d + e for a in values for b in values for c in values for d in values for e in values)
    assert stats.bootstrap_interval(values) == pytest.approx((sums[78] / 5, sums[-79] / 5))


@pytest.mark.parametrize("values", [s for s in SAMPLES if len(s) > 3])
def test_the_interval_agrees_with_scipy(values):
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(0)
    ).confidence_interval
    width = max(values) - min(values)
    assert stats.bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


@pytest.mark.parametrize("values", [s for s in SAMPLES if len(s) > 1])
def test_the_interval_moves_with_the_values_and_not_with_their_order(values):
    low, high = stats.bootstrap_interval(values)
    slack = 1e-12  # the mean of three equal numbers may differ from them in its last bit
    assert min(values) - slack <= low <= np.mean(values) <= high <= max(values) + slack
    assert stats.bootstrap_interval(values[::-1]) == (low, high)
    assert stats.bootstrap_interval([2 * v + 1 for v in values]) == pytest.approx((2 * low + 1, 2 * high + 1))
    if len(values) <= stats.ENUMERATED:  # drawn resamples are not the mirror image of themselves
        assert stats.bootstrap_interval([-v for v in values]) == pytest.approx((-high, -low))


def test_the_interval_is_the_same_each_time_and_leaves_other_generators_alone():
    values = RANDOM.normal(size=9).tolist()
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    assert stats.bootstrap_interval(values) == stats.bootstrap_interval(values)
    assert np.random.get_state()[1].tolist() == before


def test_equal_values_have_an_interval_without_width():
    assert stats.bootstrap_interval([0.25] * 4) == (0.25, 0.25)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        stats.bootstrap_interval([0.5])


@pytest.mark.parametrize("n", [3, 5])
def test_the_coverage_that_captions_state_is_what_intervals_have(n):
    """1,000 samples tell it to within 3 %."""
    samples = np.random.default_rng(n).normal(size=(1000, n))
    ends = [stats.bootstrap_interval(sample.tolist()) for sample in samples]
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(stats.COVERAGE[n], abs=0.04)


# ---- sign flips


def test_sign_flips_by_hand():
    # Sums of +-1 +-2 +-3: 6, 4, 2, 0, 0, -2, -4, -6. Two of the eight are as far out as 6, four as 4.
    assert stats.sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert stats.sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8
    assert stats.sign_flip_p([1.0, 2.0, -3.0]) == 1.0


@pytest.mark.parametrize("differences", [s for s in SAMPLES if len(s) > 1])
def test_sign_flips_agree_with_scipy(differences):
    theirs = scipy_stats.permutation_test(
        (differences, [0.0] * len(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert stats.sign_flip_p(differences) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("differences", SAMPLES)
def test_p_is_symmetric_and_has_its_bounds(differences):
    p = stats.sign_flip_p(differences)
    assert stats.smallest_p(len(differences)) <= p <= 1
    assert stats.sign_flip_p([-d for d in differences]) == p
    assert stats.sign_flip_p(differences[::-1]) == p
    assert stats.sign_flip_p([1000 * d for d in differences]) == p
    assert stats.sign_flip_p([abs(d) for d in differences]) == stats.smallest_p(len(differences))


def test_identical_rows_do_not_differ():
    pair = stats.compare([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (pair.difference, pair.interval, pair.wins, pair.n, pair.p) == (0.0, (0.0, 0.0), 0, 3, 1.0)


def test_sums_that_differ_in_their_last_bits_only_count_as_equal():
    assert 0.4 - 0.3 + 0.1 + 0.2 > 0.4 + 0.3 - 0.1 - 0.2  # both 0.4: the second would else be missed
    # In tenths, with the 4 plus: 10, 6, 8, 4, 4, 0, 2, -2. Five of the eight are as far out as 4.
    assert stats.sign_flip_p([0.4, -0.3, 0.1, 0.2]) == 5 / 8


@pytest.mark.parametrize("n", [0, 21])
def test_too_few_or_too_many_differences_are_refused(n):
    with pytest.raises(ValueError, match=f"1 to 20 differences, got {n}"):
        stats.sign_flip_p([1.0] * n)


def test_a_comparison_by_hand():
    pair = stats.compare([0.9, 0.8, 0.7, 0.9, 0.9], [0.5, 0.7, 0.8, 0.7, 0.6])
    assert pair.difference == pytest.approx((0.4 + 0.1 - 0.1 + 0.2 + 0.3) / 5)
    assert (pair.wins, pair.n, pair.smallest_p) == (4, 5, 0.0625)
    # |sum| >= 0.9 of +-0.4 +-0.1 +-0.1 +-0.2 +-0.3: none flipped (1.1) or one 0.1 (0.9), and the opposites.
    assert pair.p == 6 / 32
    swapped = stats.compare([0.5, 0.7, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.9, 0.9])
    assert (swapped.difference, swapped.p) == (pytest.approx(-pair.difference), pair.p)


def test_a_single_seed_has_a_difference_but_no_interval():
    pair = stats.compare([0.5], [0.4])
    assert (pair.interval, pair.p, pair.smallest_p) == (None, 1.0, 1.0)


def test_many_seeds_have_all_but_p():
    values = RANDOM.normal(size=(2, stats.MOST_SIGNS + 1)).tolist()
    pair = stats.compare(*values)
    assert pair.difference == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert pair.interval[0] < pair.difference < pair.interval[1]
    assert (pair.n, pair.p) == (21, None)
    assert stats.compare(values[0][1:], values[1][1:]).p == pytest.approx(
        scipy_stats.permutation_test(
            (values[0][1:], values[1][1:]),
            lambda x, y: np.mean(x) - np.mean(y),
            permutation_type="samples",
            rng=np.random.default_rng(0),
        ).pvalue,
        abs=0.02,
    )


def test_rows_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="as many values on both sides, got 2 and 1"):
        stats.compare([1.0, 2.0], [1.0])


# ---- pairing


def orders(**by_seed):
    return {int(seed[1:]): {"class orders": order} for seed, order in by_seed.items()}


def test_rows_of_the_same_seeds_and_class_orders_can_be_paired():
    stats.check_pairing(orders(s0=[1, 2], s1=[2, 1]), orders(s1=(2, 1), s0=(1, 2)), names=("a", "b"))


def test_rows_of_other_seeds_cannot_be_paired():
    with pytest.raises(
        ValueError, match=r"a and b cannot be paired: seeds 0, 1 and 0, 2; run both with the same --seeds"
    ):
        stats.check_pairing(orders(s0=[1], s1=[1]), orders(s0=[1], s2=[1]), names=("a", "b"))


def test_rows_of_other_class_orders_cannot_be_paired():
    with pytest.raises(ValueError, match=r"with seed 1 the class orders are \[2, 1\] and \[1, 2\]"):
        stats.check_pairing(orders(s0=[1, 2], s1=[2, 1]), orders(s0=[1, 2], s1=[1, 2]), names=("a", "b"))


def test_rows_of_other_rotations_cannot_be_paired():
    with pytest.raises(ValueError, match=r"with seed 3 the rotations are \[12.5, 90\] and \[12.5, 91\]"):
        stats.check_pairing({3: {"rotations": [12.5, 90.0]}}, {3: {"rotations": [12.5, 91.0]}}, names=("a", "b"))
    with pytest.raises(ValueError, match=r"with seed 3 the rotations are \[12.5\] and \[\]"):
        stats.check_pairing({3: {"rotations": [12.5]}}, {3: {}}, names=("a", "b"))
