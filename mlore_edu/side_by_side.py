"""A place for every row of every table of the papers, with our number or *not run* and why (chapter 17, all tables).

``published/ours.csv`` says which of our networks answers to a printed row; the rows it leaves out are other papers'
methods. Accuracies of the papers' data sets were never ours to measure, so beside them stand those of the counterpart
on Dollhouse, which say something of the method and nothing of the number. Costs are counted at the printed size.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from statistics import mean
from typing import Any

from mlore_edu.published import Cell, Column, Row, Table
from mlore_edu.scorecard import Runs
from mlore_edu.tasks import DOLLHOUSE

REASONS = {
    "data": "not run: needs data that could not be had, and a GPU",
    "counted": "nothing to train: the table counts, and so do we",
    "rival": "not run: another paper's method, not written again here",
    "unsaid": "not run: the paper does not say what its baseline is",
    "gates": "not run: needs data that could not be had; our gates are in chapter 7",
}
"""Why the paper's accuracies of a row have none of ours beside them."""

NEEDS_GPU = {"inference_memory": "GPU memory", "gpu_hours": "hours of training on a GPU"}
"""Columns that nobody can fill without a GPU."""

_COSTS = ("parameters", "flops", "parameters_encoder", "parameters_moe", "parameters_mlore", "flops_moe", "flops_mlore")
"""Columns that can be counted."""

_SHORT = {"human_parts": "parts", "parameters": "params", "delta_m": "Δm"}


@dataclass(frozen=True)
class Place:
    """One printed row and what we have beside it.

    Attributes
    ----------
    label
        What the row is about, from its cells that are no measurements.
    row
        As printed.
    counted
        Our costs, by column.
    dollhouse
        Mean of our counterpart's relative gains over single-task networks in percent, by task and ``"delta_m"``; empty
        where there is none.
    seeds
        How many runs these are means of.
    counterpart
        Which network that is, as ``"mlore/table2: + SPE"``; "" for none.
    reason
        Why the paper's own numbers have none of ours beside them.
    """

    label: str
    row: Row
    counted: Mapping[str, float]
    dollhouse: Mapping[str, float]
    seeds: int
    counterpart: str
    reason: str


def places(table: Table, runs: Mapping[tuple[str, str], Runs], counts: Mapping[str, Mapping[str, Any]]) -> list[Place]:
    """Put something of ours, or a reason, beside every row of a printed table.

    Parameters
    ----------
    table
        From :func:`mlore_edu.published.table`.
    runs, counts
        As for :func:`mlore_edu.scorecard.judge`.

    Returns
    -------
    list of Place
        One for each row, in printed order. Chapter 17 and the appendix of all tables.
    """
    ours = {int(entry["row"]): entry for entry in _ours() if _is_of(entry, table)}
    return [_place(table, row, ours.get(number), runs, counts) for number, row in enumerate(table.rows, start=1)]


def label(table: Table, row: Row) -> str:
    """Name a row by its cells that are no measurements: text as it is, settings with their name."""
    words = []
    for column in table.columns:
        cell = row[column.name]
        if column.lower_is_better is not None or column.unit or cell is None or column.name.startswith("rank"):
            continue
        plain = isinstance(cell, str) and cell not in ("yes", "no")
        words.append(str(cell) if plain else f"{column.name} {cell}")
    return ", ".join(words)


def markdown(table: Table, its: list[Place]) -> str:
    """Lay a printed table and our numbers out as Markdown: printed cells, counts behind an equals sign, counterparts.

    Columns are the printed ones, percent without a unit, then our Δm on Dollhouse. A count of ours stands as
    ``259 = 259.1`` in the paper's cell.
    """
    shown = [column for column in table.columns if column.lower_is_better is not None]
    with_ours = any(place.dollhouse for place in its)
    heads = ["row", *map(_head, shown), *(["ours, Δm"] if with_ours else [])]
    lines = [heads, ["---"] * len(heads)]
    for place in its:
        cells = [place.label.replace("*", r"\*"), *(_cell(place, column.name, column.decimals) for column in shown)]
        lines.append(cells + ([_gain(place)] if with_ours else []))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(column: Column) -> str:
    name = _SHORT.get(column.name, column.name.replace("_", " "))
    unit = "" if column.unit == "%" else f" {column.unit}"
    return f"{name} {'↓' if column.lower_is_better else '↑'}{unit}"


def why_not(its: list[Place]) -> str:
    """Say in Markdown which rows of a table were not run, and why; rows of one reason together."""
    reasons = {place.reason: [other.label for other in its if other.reason == place.reason] for place in its}
    if len(reasons) == 1:
        return f"All rows: {next(iter(reasons))}."
    joined = {reason: "; ".join(dict.fromkeys(labels)).replace("*", r"\*") for reason, labels in reasons.items()}
    return "\n".join(f"- {labels}: {reason}." for reason, labels in joined.items())


def _cell(place: Place, name: str, decimals: int) -> str:
    value = place.row[name]
    printed = "–" if value is None else f"{value:.{decimals}f}"
    if name in place.counted:
        return f"{printed} = **{place.counted[name]:.{max(decimals, 1)}f}**"
    return f"{printed}, not run" if name in NEEDS_GPU and value is not None else printed


def _gain(place: Place) -> str:
    return f"**{place.dollhouse['delta_m']:+.1f} %**" if "delta_m" in place.dollhouse else "–"


def _ours() -> list[dict[str, str]]:
    text = (files("mlore_edu") / "published" / "ours.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _is_of(entry: Mapping[str, str], table: Table) -> bool:
    return (entry["paper"], entry["table"]) == (table.paper, str(table.number))


def _place(
    table: Table,
    row: Row,
    entry: Mapping[str, str] | None,
    runs: Mapping[tuple[str, str], Runs],
    counts: Mapping[str, Mapping[str, Any]],
) -> Place:
    if entry is None:  # only tables that compare methods have rows without an entry
        return Place(label(table, row), row, {}, {}, 0, "", REASONS["rival"])
    counted = counts[entry["counted"]] if entry["counted"] else {}
    costs = {name: float(counted[name]) for name in _COSTS if name in counted and _printed(row, name) is not None}
    its = runs[entry["sweep"], entry["ours"]] if entry["sweep"] else {}
    counterpart = f"{entry['sweep']}: {entry['ours']}" if its else ""
    return Place(label(table, row), row, costs, _means(its), len(its), counterpart, REASONS[entry["reason"]])


def _printed(row: Row, name: str) -> Cell:
    return row.get(name)


def _means(its: Runs) -> dict[str, float]:
    """Mean gains over the seeds, and Δm, over all of Dollhouse's tasks that the runs have."""
    if not its:
        return {}
    names = [name for name in DOLLHOUSE.names if name in next(iter(its.values()))]
    gains = {name: mean(run[name] for run in its.values()) for name in names}
    return gains | {"delta_m": mean(gains.values())}
