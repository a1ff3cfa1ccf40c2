"""Every number of the papers' tables, typed in once with its source (chapters 2, 5, 9 and 17).

>>> from mlore_edu import published
>>> print(published.table("mlore", 1).format("experts", "kernel", "parameters_moe", "parameters_mlore"))
experts  kernel  parameters_moe ↓  parameters_mlore ↓
                                M                   M
      5       1               3.1                 1.2
     10       1               4.7                 1.6
     15       1               6.3                 1.9
      5       3              14.9                 3.4
     10       3              22.4                 4.7
     15       3              29.9                 6.0

The numbers lie in ``published/*.csv``, one file a table, as printed; ``tables.csv`` holds captions and sources,
``columns.csv`` units and directions. Columns of metrics bear the names of the library's tasks, so that a row can be
given to :func:`mlore_edu.multitask_gain` as it is. A new paper needs new files and no code. ``settings.csv`` holds how
the papers trained (:func:`settings`, chapter 16), ``ledger.csv`` what is wrong, contradictory or left open in them
(:func:`ledger`, the appendix of that name).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import TypeAlias

from mlore_edu.errors import UserError

Cell: TypeAlias = str | float | None
Row: TypeAlias = dict[str, Cell]


@dataclass(frozen=True)
class Column:
    """What stands in one column.

    Attributes
    ----------
    name
        Key in every row, e.g. ``"semseg"``.
    title
        For people.
    unit
        ``"%"``, ``"°"``, ``"m"``, ``"M"`` (10⁶), ``"G"``; empty for text and settings.
    lower_is_better
        None where neither is: text and settings.
    decimals
        Digits printed behind the point, so that half a unit of the last one is how far rounding may have moved it; the
        most that a cell has, where a paper (TIF) leaves out zeros at the end.
    """

    name: str
    title: str
    unit: str
    lower_is_better: bool | None
    decimals: int


@dataclass(frozen=True)
class Table:
    """One printed table.

    Attributes
    ----------
    paper, number
        ``"mlore"``, ``5``; a figure's numbers are found under ``"figure 5"``.
    caption, source
        What it shows, in this book's words, and where it is printed.
    columns
        In printed order.
    rows
        One dictionary a row: numbers, text, and None for a cell that is printed as "-" or not at all.
    """

    paper: str
    number: int | str
    caption: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> list[Cell]:
        """All cells of one column."""
        self._find(name)
        return [row[name] for row in self.rows]

    def row(self, **which: Cell) -> Row:
        """Return the one row whose cells are the given ones, e.g. ``table.row(method="MLoRE")``.

        Raises
        ------
        UserError
            If no row fits, or more than one does.
        """
        found = [row for row in self.rows if all(row[self._find(name).name] == cell for name, cell in which.items())]
        if len(found) != 1:
            wanted = ", ".join(f"{name}={cell!r}" for name, cell in which.items())
            seen = "; ".join(f"{name}: {', '.join(dict.fromkeys(map(str, self[name])))}" for name in which)
            raise UserError(f"{self.source}: {len(found)} rows have {wanted}; choose one by what is there ({seen}).")
        return found[0]

    def beside(
        self, name: str, values: Sequence[float | None], label: str = "ours", decimals: int | None = None
    ) -> Table:
        """Return the table with a column of our own beside one of the paper's.

        Parameters
        ----------
        name
            The paper's column.
        values
            One for each row, in order and in the column's unit; None where there is none.
        label
            The new column is named ``"<name> <label>"``.
        decimals
            Digits to show; as many as the paper's where not given.
        """
        if len(values) != len(self.rows):
            raise UserError(f"{self.source} has {len(self.rows)} rows, not {len(values)}; give one value for each.")
        theirs = self._find(name)
        ours = replace(theirs, name=f"{name} {label}", decimals=theirs.decimals if decimals is None else decimals)
        place = self.columns.index(theirs) + 1
        rows = tuple(row | {ours.name: value} for row, value in zip(self.rows, values))
        return replace(self, columns=(*self.columns[:place], ours, *self.columns[place:]), rows=rows)

    def format(self, *names: str) -> str:
        """Lay the table out as aligned text, all columns or those named; arrows show which way is better."""
        columns = [self._find(name) for name in names] if names else self.columns
        arrows = {True: " ↓", False: " ↑", None: ""}
        lines = [[column.name + arrows[column.lower_is_better] for column in columns]]
        lines += [[column.unit for column in columns]] if any(column.unit for column in columns) else []
        lines += [[_show(row[column.name], column) for column in columns] for row in self.rows]
        is_text = [any(isinstance(cell, str) for cell in self[column.name]) for column in columns]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        return "\n".join(
            "  ".join(cell.ljust(w) if text else cell.rjust(w) for cell, w, text in zip(line, widths, is_text)).rstrip()
            for line in lines
        )

    def __str__(self) -> str:
        return f"{self.source}: {self.caption}\n{self.format()}"

    def _find(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise UserError(f"{self.source} has no {name!r}; its columns are {', '.join(c.name for c in self.columns)}.")


def tables() -> dict[tuple[str, int | str], str]:
    """List the tables there are: ``{(paper, number): caption}``."""
    return {(entry["paper"], _number(entry["number"])): entry["caption"] for entry in _read("tables.csv")}


def table(paper: str, number: int | str) -> Table:
    """Return one printed table.

    Parameters
    ----------
    paper
        ``"mlore"`` or ``"mlore_supplement"``; :func:`tables` lists all.
    number
        As printed; ``"figure 5"`` for the numbers of a figure.

    Raises
    ------
    UserError
        If there is no such table.
    """
    number = _number(str(number))
    entry = next((e for e in _read("tables.csv") if (e["paper"], _number(e["number"])) == (paper, number)), None)
    if entry is None:
        there: dict[str, list[str]] = {}
        for known, its in tables():
            there.setdefault(known, []).append(str(its))
        listed = "; ".join(f"{known}: {', '.join(its)}" for known, its in there.items())
        raise UserError(f"There is no table {number!r} of {paper!r}; choose one of these ({listed}).")
    kind = "table" if isinstance(number, int) else ""
    printed = _read(f"{paper}_{kind}{number}.csv".replace(" ", ""))
    columns = tuple(_column(name, [line[name] for line in printed]) for name in printed[0])
    fractional = {column.name for column in columns if column.decimals}
    rows = tuple({name: _cell(text, name in fractional) for name, text in line.items()} for line in printed)
    return Table(paper, number, entry["caption"], entry["source"], columns, rows)


@dataclass(frozen=True)
class Setting:
    """How one thing was set in a paper's training.

    Attributes
    ----------
    value
        A number or text; None for what is left out.
    source
        Where it is from.
    status
        ``"stated"`` in the paper; in ``"code"`` that its authors, or those whose settings they say they take, have
        published; or ``"assumed"`` here.
    """

    value: Cell
    source: str
    status: str


def settings(paper: str, data: str, backbone: str) -> dict[str, Setting]:
    """Return all settings of a paper's training, by name: fields of a recipe, weights of losses, the decoder's.

    Parameters
    ----------
    paper
        ``"taskexpert"``, ``"mlore"``, ``"mlore_released"`` (as its published code departs from it) or ``"tif"``.
    data, backbone
        As recipes and models name them, e.g. ``"nyud_v2"`` and ``"vit_base"``.

    Raises
    ------
    UserError
        If there is no such paper.
    """
    rows = _read("settings.csv")
    papers = dict.fromkeys(row["paper"] for row in rows)
    if paper not in papers:
        raise UserError(f"There are no settings of {paper!r}; choose one of {', '.join(papers)}.")
    found = {}
    for row in rows:  # a row with * stands before those that except something from it
        of_the_paper = paper in (row["paper"], f"{row['paper']}_released")
        if of_the_paper and fnmatchcase(data, row["data"]) and fnmatchcase(backbone, row["backbone"]):
            found[row["setting"]] = Setting(_cell(row["value"]), row["source"], row["status"])
    return found


@dataclass(frozen=True)
class Finding:
    """One line of the ledger: something in a paper, or in released code, that a reader should know.

    Attributes
    ----------
    paper, place
        ``"MLoRE"``, ``"TaskExpert"``, ``"TIF"`` or ``"all three"``; and where in it.
    kind
        ``"slip"``: a wrong number or symbol. ``"contradiction"``: two places that cannot both hold. ``"claim"``: words
        that the paper's own numbers do not bear out. ``"silence"``: something needed and not said.
        ``"released code"``: where that departs from the text.
    printed, follows
        What is there (of a silence: what is not), and what follows from it.
    proof
        Tests as ``module::name``, chapters whose cells show it, ``reading`` where the page itself is enough, and
        ``facts page`` for what was told to the authors of this book and could not be checked here; joined by ``"; "``.
    here
        What this book does.
    """

    paper: str
    place: str
    kind: str
    printed: str
    follows: str
    proof: str
    here: str


def ledger() -> tuple[Finding, ...]:
    """Return every slip, contradiction and silence of the papers that this book found, in its order."""
    return tuple(Finding(**row) for row in _read("ledger.csv"))


def _read(name: str) -> list[dict[str, str]]:
    text = (files("mlore_edu") / "published" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _number(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _cell(text: str, fractional: bool = False) -> Cell:
    if text == "-":
        return None
    try:
        return float(text) if fractional or "." in text or "e-" in text else int(text)
    except ValueError:
        return text


def _column(name: str, texts: Sequence[str]) -> Column:
    known = next((entry for entry in _read("columns.csv") if entry["name"] == name), None)
    decimals = max((len(t.partition(".")[2]) for t in texts if isinstance(_cell(t), float)), default=0)
    if known is None:
        return Column(name, name, "", None, decimals)
    return Column(name, known["title"], known["unit"], known["lower_is_better"] == "yes", decimals)


def _show(cell: Cell, column: Column) -> str:
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else f"{cell:.{column.decimals}f}"
