"""The one number that compares a multi-task model with single-task models (chapter 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
