"""The self-checks of chapter 17 accept right answers, and answer wrong ones with a hint."""

from itertools import combinations
from statistics import mean, pstdev, stdev

import numpy as np

from mlore_edu.exercises import ch17
from mlore_edu.metrics import multitask_gain
from mlore_edu.seeds import kendall
from mlore_edu.tasks import NYUD_V2


def paired(a, b, t, spread=stdev):
    d = [a[seed] - b[seed] for seed in a if seed in b]
    return mean(d), t(len(d) - 1) * spread(d) / len(d) ** 0.5


def unpaired(a, b, t):
    a, b = list(a.values()), list(b.values())
    return mean(a) - mean(b), t(len(b) - 1) * (stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)) ** 0.5


def no_effect(low, high, margin):
    if -margin <= low and high <= margin:
        return "supported"
    return "contradicted" if low > margin or high < -margin else "open"


def solve(row, baselines, unknown, delta_m, lower):
    signs = [-1 if low else 1 for low in lower]
    known = sum(s * (m / b - 1) for i, (m, b, s) in enumerate(zip(row, baselines, signs)) if i != unknown)
    return row[unknown] / (1 + signs[unknown] * (len(row) * delta_m / 100 - known))


ANSWERS = {
    ch17.check_paired: (
        paired,
        unpaired,
        lambda a, b, t: paired(a, b, t, pstdev),
        lambda a, b, t: paired(dict(enumerate(a.values())), dict(enumerate(b.values())), t),  # by position
    ),
    ch17.check_no_effect: (
        no_effect,
        lambda low, high, margin: "supported" if low <= 0 <= high else "contradicted",  # noise taken for none
        lambda low, high, margin: "supported" if -margin <= (low + high) / 2 <= margin else "contradicted",
    ),
    ch17.check_tau: (
        kendall,
        lambda a, b: float(np.corrcoef(a, b)[0, 1]),
        lambda a, b: mean((a[i] < a[j]) == (b[i] < b[j]) for i, j in combinations(range(len(a)), 2)),  # only agreement
    ),
    ch17.check_solve: (
        solve,
        lambda row, base, place, gain, lower: solve(row, base, place, gain, [False] * 4),  # all higher is better
        lambda row, base, place, gain, lower: solve(row, base, place, gain / 4, lower),  # the mean forgotten
    ),
}


def test_the_example_is_that_of_tifs_table_7():
    row = {"semseg": 46.93, "depth": 0.5741, "normals": 20.2, "edge": 77.81}
    base = {"semseg": 42.98, "depth": 0.6012, "normals": 21.39, "edge": 75.15}
    assert round(multitask_gain(row, base, NYUD_V2), 2) == 5.70
