"""Self-checks of chapter 17: paired intervals, claims of no effect, Kendall's tau, a baseline solved from a gain."""

from __future__ import annotations

import math
from typing import Any

from mlore_edu.exercises import answered, exercise


def _quantile(freedom: int) -> float:
    """Student's 97.5 % quantile, for the few degrees of freedom that are asked for here."""
    return {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}[freedom]


@exercise(
    "17.1", hint="Subtract over the seeds that both have; only then take mean and spread, which divides by n - 1."
)
def check_paired(answer: Any) -> None:
    """``answer(a, b, t)``: mean difference over shared seeds, and half of its interval."""
    cases = (
        ({0: 3.0, 1: 5.0, 2: 4.0}, {0: 2.0, 1: 3.0, 2: 3.0}, 4 / 3, 4.303 * math.sqrt(1 / 3) / math.sqrt(3)),
        ({0: 1.0, 1: 9.0}, {1: 8.0, 0: 3.0}, -0.5, 12.706 * math.sqrt(4.5) / math.sqrt(2)),
        ({0: 3.0, 1: 5.0, 2: 4.0, 7: 99.0}, {2: 3.0, 1: 3.0, 0: 2.0}, 4 / 3, 4.303 / 3),
    )
    for a, b, middle, half in cases:
        found = answered(answer(dict(a), dict(b), _quantile))
        assert math.isclose(found[0], middle, abs_tol=1e-6), f"The mean difference of {a} and {b} is {middle:.3f}."
        assert math.isclose(found[1], half, abs_tol=1e-6), f"Half of the interval of {a} and {b} is {half:.3f}."


@exercise("17.2", hint="Compare both ends of the interval with both ends of the margin; zero itself plays no part.")
def check_no_effect(answer: Any) -> None:
    """``answer(low, high, margin)``: ``"supported"``, ``"contradicted"`` or ``"open"``."""
    for low, high, truth in (
        (-0.2, 0.3, "supported"),
        (0.1, 0.4, "supported"),
        (-3.0, 3.0, "open"),
        (0.2, 0.9, "open"),
        (-0.9, -0.2, "open"),
        (0.6, 2.0, "contradicted"),
        (-2.0, -0.6, "contradicted"),
        (-0.5, 0.5, "supported"),
    ):
        found = answered(answer(low, high, 0.5))
        assert found == truth, f"[{low:g}, {high:g}] with a margin of 0.5 is {truth!r}, not {found!r}."


@exercise("17.3", hint="Look at every pair once: is the sign of its difference the same in both lists?")
def check_tau(answer: Any) -> None:
    """``answer(first, second)``: Kendall's tau, where ties count for neither."""
    for first, second, truth in (
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3], [1, 3, 2], 1 / 3),
        ([1, 1, 2], [1, 2, 3], 2 / 3),
        ([5.0, -1.0, 2.0, 0.5], [0.1, 0.0, 0.3, 0.2], 1 / 3),
    ):
        found = float(answered(answer(list(first), list(second))))
        assert math.isclose(found, truth, abs_tol=1e-9), f"For {first} and {second} it is {truth:.3f}, not {found:.3f}."


@exercise("17.4", hint="Write the gain as a sum over tasks, move all that is known to one side, and solve for M / M_b.")
def check_solve(answer: Any) -> None:
    """``answer(row, baselines, unknown, delta_m, lower)``: the missing baseline."""
    row, baselines = [46.93, 0.5741, 20.2, 77.81], [42.98, 0.6012, 21.39, 75.15]
    lower = [False, True, True, False]
    for unknown in range(4):
        gain = 25 * sum((-1 if low else 1) * (m / b - 1) for m, b, low in zip(row, baselines, lower))
        known = [math.nan if place == unknown else value for place, value in enumerate(baselines)]
        found = float(answered(answer(list(row), known, unknown, gain, list(lower))))
        truth = baselines[unknown]
        assert math.isclose(found, truth, rel_tol=1e-6), f"At place {unknown} it is {truth:g}, not {found:.4g}."
