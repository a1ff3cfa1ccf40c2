"""The papers' claims as data, and a rule that says what became of each (chapter 17).

A claim is two rows of a printed table, the better one and the worse one. Its size in the paper follows from the table;
ours from the runs of the same two configurations, paired by seed; and the verdict from both, by :func:`verdict`.
``published/claims.csv`` holds them all. Every size is a relative gain in percent, so that tasks, Δm and costs can stand
on one axis.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import numpy as np

from mlore_edu import published
from mlore_edu.arrays import Array
from mlore_edu.errors import UserError
from mlore_edu.seeds import Interval, kth_interval
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TaskSet

SUPPORTED = "supported on Dollhouse"
CONTRADICTED = "contradicted on Dollhouse"
NOISE = "noise on Dollhouse"
OWN_TABLE = "contradicted by the paper's own table"
COUNTED = "supported by counting"
MISCOUNTED = "contradicted by counting"
UNTESTABLE = "untestable here"
VERDICTS = (SUPPORTED, CONTRADICTED, NOISE, OWN_TABLE, COUNTED, MISCOUNTED, UNTESTABLE)
"""All that :func:`verdict` may say."""

RECORDS = ("mlore", "taskexpert", "tif")
"""Sweeps that the book has recorded, by the paper whose tables they follow."""

COSTS = ("parameters", "flops")
_TASKS = {task.name: task for tasks in (PASCAL_CONTEXT, NYUD_V2) for task in tasks}
_EXACT = Interval(0.0, 0.0, 0.0, 0.0)

Runs: TypeAlias = dict[int, dict[str, float]]
"""Relative gain over the single-task network in percent, by seed and task."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that two rows of a table bear out or do not.

    Attributes
    ----------
    paper, table
        Of the printed table; "" where the claim has none.
    place
        Where the paper makes it.
    claim
        In this book's words.
    metric
        ``"delta_m"``, a task's name, ``"every task"``, ``"most tasks"``, ``"parameters"`` or ``"flops"``.
    better, worse
        Printed rows, from 1: ``"3"``; ``"1-4"``, the best of these in each task; ``"4&2"``, their sum; ``"6:column"``
        where a row holds both.
    sweep, ours_better, ours_worse
        Our rows: of a recorded sweep, as ``"mlore/table2"``, or of ``"counts"``. "" where there are none.
    reason
        Why there are none.
    """

    paper: str
    table: str
    place: str
    claim: str
    metric: str
    better: str
    worse: str
    sweep: str
    ours_better: str
    ours_worse: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """A claim, its size in the paper (None if it prints none) and here, in percent, and what follows."""

    claim: Claim
    paper: float | None
    ours: Interval | None
    seeds: int
    verdict: str


def claims() -> list[Claim]:
    """List the claims of the four papers, in the order of their tables."""
    text = (files("mlore_edu") / "published" / "claims.csv").read_text(encoding="utf-8")
    return [Claim(**row) for row in csv.DictReader(text.splitlines())]


def verdict(paper: float | None, ours: Interval | None, counted: bool = False) -> str:
    """Judge a claim that something is better by its size in the paper and by ours.

    A claim that its own table does not bear out (the "better" row is no better) is not looked at further. Of the others
    one is supported if the whole interval of ours is above zero, contradicted if it is below, and noise if it holds
    zero. A count has no interval.

    Parameters
    ----------
    paper
        Relative gain of the better row in percent; None where the paper prints no numbers.
    ours
        The same of our runs; None where there are none.
    counted
        Whether ours was counted rather than trained.

    Returns
    -------
    str
        One of ``VERDICTS``. Chapter 17.
    """
    if paper is not None and paper <= 0:
        return OWN_TABLE
    if ours is None:
        return UNTESTABLE
    if ours.low > 0:
        return COUNTED if counted else SUPPORTED
    if ours.high < 0:
        return MISCOUNTED if counted else CONTRADICTED
    return NOISE


def judge(claim: Claim, runs: Mapping[tuple[str, str], Runs], counts: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Size a claim in the paper and here, and say what follows.

    Parameters
    ----------
    claim
        One of :func:`claims`.
    runs
        Of every sweep and row (:func:`read_runs`).
    counts
        Costs by model (``book/results/counts.json``). Chapter 17.
    """
    theirs = paper_size(claim)
    if claim.sweep == "counts":
        size = _cost_saved(claim, counts)
        ours = _EXACT._replace(value=size, low=size, high=size)
        return Judged(claim, theirs, ours, 0, verdict(theirs, ours, counted=True))
    differences = paired_differences(claim, runs)
    seeds = 0 if differences is None else len(differences)
    interval = kth_interval(differences, rank(claim, differences)) if differences is not None and seeds > 1 else None
    return Judged(claim, theirs, interval, seeds, verdict(theirs, interval))


# --- the paper's side ------------------------------------------------------------------------------------------------


def paper_size(claim: Claim) -> float | None:
    """Return by how many percent the better row of the paper's table is better; None where it prints no numbers."""
    if not (claim.table and claim.better):
        return None
    table = published.table(claim.paper, claim.table)
    if claim.metric in COSTS:
        return _saved(*(_cell(table, which, claim.metric) for which in (claim.better, claim.worse)))
    if claim.metric == "delta_m" and "delta_m" in table.rows[0]:
        better, worse = (_delta_m(table, which) for which in (claim.better, claim.worse))
        return better - worse
    gains = _relative_gains(table, claim)
    if claim.metric == "delta_m":
        return mean(gains.values())
    values = [gains[claim.metric]] if claim.metric in gains else list(gains.values())
    return sorted(values)[-rank(claim, np.empty((0, len(values))))]


def rank(claim: Claim, columns: Array) -> int:
    """Which of the (S, T) columns' means, from the largest, a claim speaks of: all of them, most, or the only one."""
    tasks: int = columns.shape[1]
    return {"every task": tasks, "most tasks": tasks // 2 + 1}.get(claim.metric, 1)


def _rows(table: published.Table, which: str) -> list[published.Row]:
    if "-" in which:
        first, last = which.split("-")
        return list(table.rows[int(first) - 1 : int(last)])
    return [table.rows[int(number) - 1] for number in which.split("&")]


def _cell(table: published.Table, which: str, metric: str) -> float:
    number, _, column = which.partition(":")
    return float(table.rows[int(number) - 1][column or metric] or 0)


def _delta_m(table: published.Table, which: str) -> float:
    gains = [float(row["delta_m"] or 0) for row in _rows(table, which)]
    return max(gains) if "-" in which else sum(gains)


def _relative_gains(table: published.Table, claim: Claim) -> dict[str, float]:
    """By how many percent the better row leads the best of the worse ones, task by task."""
    (mine,), others = _rows(table, claim.better), _rows(table, claim.worse)
    gains = {}
    for name, task in _TASKS.items():
        value = mine.get(name)
        if value is not None:
            rivals = [float(cell) for row in others if (cell := row[name]) is not None]
            best = (min if task.lower_is_better else max)(rivals)
            gains[name] = 100 * (-1 if task.lower_is_better else 1) * (float(value) - best) / best
    return gains


def _saved(less: float, more: float) -> float:
    """How much less of a cost, in percent."""
    return 100 * (more - less) / more


# --- our side --------------------------------------------------------------------------------------------------------


def read_runs(folder: Path, tasks: TaskSet = DOLLHOUSE) -> dict[tuple[str, str], Runs]:
    """Read the recorded sweeps as relative gains over single-task networks.

    Parameters
    ----------
    folder
        ``book/results``: ``<paper>_sweeps.json`` and ``chapter03.json``, whose single-task networks are averaged over
        their seeds.
    tasks
        Whose directions count.

    Returns
    -------
    dict
        By (sweep, row), e.g. ``("mlore/table2", "+ SPE")``. Runs of fewer tasks have gains for these only.
    """
    single = single_tasks(folder)
    found: dict[tuple[str, str], Runs] = {}
    for paper in RECORDS:
        record = _load(folder / f"{paper}_sweeps.json")
        by_key: dict[str, Runs] = {}
        for run in record["runs"]:
            by_key.setdefault(run["key"], {})[run["seed"]] = {
                name: 100 * (-1 if tasks[name].lower_is_better else 1) * (value / single[name] - 1)
                for name, value in run["metrics"].items()
            }
        for sweep, rows in record["sweeps"].items():
            found |= {(f"{paper}/{sweep}", row): by_key.get(key, {}) for row, key in rows.items()}
    return found


def single_tasks(folder: Path) -> dict[str, float]:
    """Mean metric of the recorded networks of one task each (chapter 3)."""
    runs = [run for run in _load(folder / "chapter03.json")["runs"] if len(run["tasks"]) == 1]
    names = dict.fromkeys(run["tasks"][0] for run in runs)
    return {name: mean(run["metrics"][name] for run in runs if run["tasks"] == [name]) for name in names}


def paired_differences(claim: Claim, runs: Mapping[tuple[str, str], Runs]) -> Array | None:
    """Gains of our better row less those of the worse one, seed by seed.

    Returns
    -------
    array (S, T) or None
        A row for each seed that all networks have, in order; a column for each task, or one for Δm or a single task.
        None if the claim has no runs.
    """
    if not claim.sweep or claim.sweep == "counts":
        return None
    sides = [_sum(claim.sweep, names.split("&"), runs) for names in (claim.ours_better, claim.ours_worse)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    if not seeds:
        return None
    names = sorted(sides[0][seeds[0]])
    gains: Array = np.array([[sides[0][seed][name] - sides[1][seed][name] for name in names] for seed in seeds])
    if claim.metric == "delta_m":
        gains = gains.mean(axis=1, keepdims=True)
    if claim.metric in names:
        gains = gains[:, [names.index(claim.metric)]]
    return gains  # (S, T)


def _sum(sweep: str, rows: Sequence[str], runs: Mapping[tuple[str, str], Runs]) -> Runs:
    """Gains of several configurations added, by seed and task."""
    for row in rows:
        if (sweep, row) not in runs:
            raise UserError(f"No run is recorded under {sweep}, {row!r}; correct the claim or the record of the sweep.")
    its = [runs[sweep, row] for row in rows]
    shared = set.intersection(*(set(part) for part in its))
    return {seed: {name: sum(part[seed][name] for part in its) for name in its[0][seed]} for seed in shared}


def _cost_saved(claim: Claim, counts: Mapping[str, Mapping[str, Any]]) -> float:
    found = []
    for which in (claim.ours_better, claim.ours_worse):
        name, _, column = which.partition(":")
        unit = {"2**30": 2**30 / 1e9}.get(counts[name]["unit"], 1.0) if claim.metric == "flops" else 1.0
        found.append(counts[name][column or claim.metric] * unit)
    return _saved(*found)


def tally(judged: Iterable[Judged]) -> dict[str, int]:
    """Count how often each verdict was given, in the order of ``VERDICTS``."""
    given = [one.verdict for one in judged]
    return {name: given.count(name) for name in VERDICTS}


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
