"""The one number that compares a multi-task model with single-task models, and the way back (chapter 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog

from mlore_edu.arrays import Array
from mlore_edu.errors import UserError
from mlore_edu.tasks import TaskSet


def multitask_gain(results: Mapping[str, float], baseline: Mapping[str, float], tasks: TaskSet) -> float:
    """Return Δm, the mean relative improvement over single-task baselines, in percent.

    Δm = mean over tasks of (−1)^l (M − M_b) / M_b, with l = 1 where lower is better: an error that falls counts as a
    gain. Being a mean of ratios, it weighs a point on a low score more than one on a high score (chapter 2).

    Parameters
    ----------
    results, baseline
        Metric of each task (in any unit, the same in both), of the multi-task model and of the single-task models.
        Entries of tasks outside the task set are not used.
    tasks
        The tasks to average over; each says whether lower is better.

    Raises
    ------
    UserError
        If a task is missing or not a finite number in either, or zero in the baseline.
    """
    gains = []
    for task in tasks:
        for title, values in (("results", results), ("baseline", baseline)):
            if task.name not in values:
                raise UserError(f"Δm: the {title} have no {task.name}; add it or leave it out with tasks.subset(...).")
            if not math.isfinite(values[task.name]):
                raise UserError(f"Δm: {task.name} in the {title} is {values[task.name]}; evaluate it again.")
        if baseline[task.name] == 0:
            raise UserError(f"Δm: the baseline of {task.name} is 0, so no ratio exists; evaluate a trained baseline.")
        gain = (results[task.name] - baseline[task.name]) / baseline[task.name]
        gains.append(-gain if task.lower_is_better else gain)
    if not gains:
        raise UserError(f"Δm: {tasks.name} has no tasks; give a task set with at least one.")
    return 100 * math.fsum(gains) / len(gains)


class ImpliedBaselines(NamedTuple):
    """Single-task baselines that a table of multi-task gains gives away.

    Attributes
    ----------
    ranges
        The lowest and the highest baseline of every task with which all gains but the slips come out as printed.
    values
        A middle of them, with which they do.
    gains
        Δm of every row, recomputed with ``values``, in percent.
    slips
        Rows whose printed gain no baselines can explain together with the other rows, the worst first.
    """

    ranges: dict[str, tuple[float, float]]
    values: dict[str, float]
    gains: list[float]
    slips: list[int]


def implied_baselines(
    rows: Sequence[Mapping[str, Any]], gains: Sequence[float], tasks: TaskSet, rounding: float = 0.005
) -> ImpliedBaselines:
    """Find the single-task baselines behind printed multi-task gains.

    Δm is linear in the reciprocals x_t = 1 / M_b,t: 100/T · sum of s_t (M_t x_t − 1), with s_t = −1 where lower is
    better. So every row of a table confines the x_t to a strip, as wide as the rounding of its gain, and the baselines
    lie where all strips overlap; linear programs find the extremes of that region. If it is empty, some row is a slip:
    the one that a least-squares fit misses most is left out, and the rest tried again.

    Parameters
    ----------
    rows
        Metrics of every row, by the tasks' names, e.g. rows of :func:`mlore_edu.published.table`.
    gains
        Their Δm in percent.
    tasks
        The tasks averaged over.
    rounding
        How far a printed gain may be from the one that the printed metrics give: half a unit of its last digit.

    Raises
    ------
    UserError
        If fewer rows than one more than there are tasks agree with each other.

    Notes
    -----
    The printed metrics are taken as they are. That is a hypothesis: gains computed from more digits may differ by more
    than their own rounding (for normals near 13.7°, half a hundredth is 0.007 % of Δm). Chapter 2.
    """
    sign = np.array([-1.0 if task.lower_is_better else 1.0 for task in tasks])
    slope = 100 / len(tasks) * sign * np.array([[float(row[task.name]) for task in tasks] for row in rows])
    target = np.asarray(gains, dtype=float) + 100 * sign.mean()
    used, slips = list(range(len(rows))), []
    while True:
        if len(used) <= len(tasks) or np.linalg.matrix_rank(slope[used]) < len(tasks):
            raise UserError(f"{len(tasks)} baselines cannot be told from {len(used)} rows that agree; give more rows.")
        corners = _extremes(slope[used], target[used], rounding)
        if corners is not None:
            break
        fit = np.linalg.lstsq(slope[used], target[used], rcond=None)[0]
        slips.append(used.pop(int(np.abs(slope[used] @ fit - target[used]).argmax())))
    low, high, middle = corners.min(axis=0), corners.max(axis=0), corners.mean(axis=0)
    ranges = [(1 / most, 1 / least if least > 0 else math.inf) for least, most in zip(low.tolist(), high.tolist())]
    recomputed: list[float] = (slope @ middle - 100 * sign.mean()).tolist()
    values = dict(zip(tasks.names, (1 / middle).tolist()))
    return ImpliedBaselines(dict(zip(tasks.names, ranges)), values, recomputed, slips)


def _extremes(slope: Array, target: Array, rounding: float) -> Array | None:
    """Points (2T, T) with the smallest or the largest x_t among all x ≥ 0 that miss no target by more than rounding.

    Their mean lies in that region too, since it is convex. None if the region is empty.
    """
    sides, limits = np.vstack([slope, -slope]), np.concatenate([target + rounding, rounding - target])
    axes = np.eye(slope.shape[1])
    solutions = [linprog(direction, sides, limits) for direction in (*axes, *-axes)]
    return None if any(solution.status != 0 for solution in solutions) else np.stack([s.x for s in solutions])
