"""What a few seeds can say: intervals of paired differences, of the worst of several tasks, of an order (chapter 17).

>>> paired_interval([0.4, 0.9, 0.5, 0.8, 0.6]).round(2)
Interval(value=0.64, low=0.38, high=0.9, seen=0.35)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from mlore_edu.arrays import Array
from mlore_edu.errors import UserError


class Interval(NamedTuple):
    """An estimate and how far it can be trusted.

    Attributes
    ----------
    value
        The mean over seeds.
    low, high
        Ends of the interval.
    seen
        The true effect that as many seeds, with this spread, would tell from zero in four of five attempts.
    """

    value: float
    low: float
    high: float
    seen: float

    def round(self, digits: int) -> Interval:
        """All four numbers, rounded."""
        return Interval(*(round(number, digits) for number in self))


def paired_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Return the t-interval of a mean difference.

    Two networks trained with the same seed see the same images in the same order, so their difference is taken seed by
    seed, and what the seed does to both drops out. Of the n differences the mean has the interval
    d ± t · s / √n, with Student's t for n − 1 degrees of freedom (4.3 for three seeds, 2.8 for five, 2 for many).

    Parameters
    ----------
    differences
        One number a seed.
    level
        Share of such intervals that hold the true mean, if differences are normally distributed.

    Raises
    ------
    UserError
        If there are fewer than two. Chapter 17.
    """
    return kth_interval(np.asarray(differences, dtype=float)[:, None], 1, level)


def kth_interval(differences: Array, k: int, level: float = 0.95) -> Interval:
    """Return an interval of the k-th largest of several mean differences, e.g. the smallest over all tasks.

    "Better in every one of T tasks" says that the T-th largest mean is above zero, "in most" that the (T // 2 + 1)-th
    is. The k-th largest of the tasks' lower ends is above the k-th largest true mean only if one of the T − k + 1
    lowest tasks is misjudged, so each task may err by that much less often (Bonferroni); likewise one of the k highest
    for the upper end. For T = 1 it is the t-interval, and for "every" the lower end is the lowest of the plain ones.

    Parameters
    ----------
    differences
        (S, T): a row for each seed, a column for each task.
    k
        1 for the largest, T for the smallest.
    level
        At least this share of such intervals hold the truth.

    Raises
    ------
    UserError
        If there are fewer than two seeds, or not k tasks. Chapter 17.
    """
    seeds, tasks = differences.shape
    if seeds < 2:
        raise UserError(f"{seeds} seed has no spread; give the runs of at least two seeds.")
    if not 1 <= k <= tasks:
        raise UserError(f"There is no {k}-th of {tasks} tasks; give a k from 1 to {tasks}.")
    means, errors = differences.mean(axis=0), differences.std(axis=0, ddof=1) / np.sqrt(seeds)  # (T,)
    tail = (1 - level) / 2
    lows = means + student.ppf(tail / (tasks - k + 1), seeds - 1) * errors
    highs = means - student.ppf(tail / k, seeds - 1) * errors
    place = np.argsort(means)[-k]
    low, high = (float(np.sort(ends)[-k]) for ends in (lows, highs))
    return Interval(float(means[place]), low, high, float(errors[place]) * _shift(seeds, level))


@lru_cache
def _shift(seeds: int, level: float, power: float = 0.8) -> float:
    """How many standard errors off zero a true mean must be to be told from it with this probability."""
    limit = student.ppf((1 + level) / 2, seeds - 1)
    # being significant on the wrong side is next to impossible and left out
    found: float = brentq(lambda shift: nct.sf(limit, seeds - 1, shift) - power, 0, 5 * limit)
    return found


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's τ: pairs that two lists order alike less those they order oppositely, as a share of all pairs.

    1 for the same order, −1 for the reverse. A pair that is tied in one of them counts for neither. Chapter 17.
    """
    pairs = list(combinations(range(len(first)), 2))
    signs = [np.sign(first[i] - first[j]) * np.sign(second[i] - second[j]) for i, j in pairs]
    return float(np.mean(signs))


def chance_of_order(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the probability that a random order agrees with ``first`` as well as ``second`` does, or better.

    All n! orders are tried, so n should not exceed eight. With three rows the smallest is 1/6. Chapter 17.
    """
    found = kendall(first, second)
    taus = [kendall(first, order) for order in permutations(second)]
    return float(np.mean([tau >= found - 1e-12 for tau in taus]))
