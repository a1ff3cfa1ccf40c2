"""Intervals over seeds hold what they promise, and orders are compared as pairs."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, ttest_1samp

from mlore_edu.errors import UserError
from mlore_edu.seeds import chance_of_order, kendall, kth_interval, paired_interval

DIFFERENCES = arrays(float, (5, 4), elements=st.floats(-9, 9).map(lambda x: round(x, 3)))


def draws(seeds, tasks, number, rng=0):
    return np.random.default_rng(rng).normal(size=(number, seeds, tasks))


def test_a_paired_interval_is_that_of_scipys_t_test():
    differences = [0.4, 0.9, 0.5, 0.8, -0.6]
    found = paired_interval(differences)
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(0.4)
    assert found.round(1)[:3] == (0.4, round(expected.low, 1), round(expected.high, 1))
    assert paired_interval(differences, 0.8).high < found.high


@pytest.mark.parametrize("seeds", [3, 5])
def test_ninety_five_of_a_hundred_intervals_hold_the_true_difference(seeds):
    found = [paired_interval(row[:, 0] + 0.7) for row in draws(seeds, 1, 2000)]
    held = np.mean([interval.low <= 0.7 <= interval.high for interval in found])
    assert 0.94 < held < 0.96


@pytest.mark.parametrize("true", [[0, 0, 0, 0], [0, 0.3, 0.6, 3], [-2, 0, 0, 0]])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_intervals_of_the_kth_largest_hold_it_at_least_as_often(true, k):
    truth = np.sort(true)[-k]
    found = [kth_interval(row + true, k) for row in draws(5, 4, 600)]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) > 0.935
    assert np.mean([interval.low > truth for interval in found]) < 0.04


def test_the_seen_effect_is_found_in_four_of_five_attempts():
    for seeds in (3, 5):
        rows = draws(seeds, 1, 4000, rng=1)[:, :, 0]
        seen = paired_interval(rows[0]).seen / (rows[0].std(ddof=1))  # in units of the spread
        found = np.mean([paired_interval(row + seen).low > 0 for row in rows[:2000]])
        assert 0.77 < found < 0.83


@settings(max_examples=40, deadline=None)
@given(DIFFERENCES, st.floats(-5, 5), st.floats(0.1, 5))
def test_an_interval_moves_and_stretches_with_its_numbers(differences, shift, stretch):
    before, after = kth_interval(differences, 3), kth_interval(stretch * differences + shift, 3)
    ends = stretch * np.array([before.value, before.low, before.high]) + shift
    np.testing.assert_allclose([after.value, after.low, after.high], ends, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(DIFFERENCES, st.integers(1, 4))
def test_the_kth_largest_is_the_kth_smallest_of_the_opposite(differences, k):
    found, mirrored = kth_interval(differences, k), kth_interval(-differences, 5 - k)
    np.testing.assert_allclose([found.low, found.high], [-mirrored.high, -mirrored.low], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(DIFFERENCES)
def test_better_in_every_task_means_every_plain_interval_is_above_zero(differences):
    plain = [paired_interval(column) for column in differences.T]
    assert kth_interval(differences, 4).low == pytest.approx(min(interval.low for interval in plain))
    assert kth_interval(differences, 4).high >= min(interval.high for interval in plain) - 1e-9


def test_one_seed_and_a_rank_that_is_not_there_are_refused():
    with pytest.raises(UserError, match="at least two seeds"):
        paired_interval([1.0])
    with pytest.raises(UserError, match="no 3-th of 2 tasks"):
        kth_interval(np.zeros((3, 2)), 3)


def test_tau_is_scipys_where_nothing_is_tied():
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b = rng.normal(size=(2, 5))
        assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic)
        assert kendall(a, -b) == pytest.approx(-kendall(a, b))
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 3)


def test_the_chance_of_an_order_counts_all_orders():
    assert chance_of_order([1, 2, 3], [4, 5, 6]) == pytest.approx(1 / 6)
    assert chance_of_order([1, 2, 3], [6, 5, 4]) == 1
    taus = [kendall(range(4), order) for order in permutations(range(4))]
    assert chance_of_order(range(4), [0, 1, 3, 2]) == pytest.approx(np.mean(np.array(taus) >= 2 / 3 - 1e-9))
