"""Figures of the book: one style, and pictures of labels with their names; imported by notebooks only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mlore_edu.pictures import palette, to_rgb
from mlore_edu.tasks import DOLLHOUSE, IGNORE

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#000000")
"""Line colours that stay apart for colour-blind readers (Okabe and Ito, 2008)."""

TITLES = {"image": "Image", **{task.name: task.title for task in DOLLHOUSE}, "instances": "Instances"}
"""Names for people, per key of a sample."""


def use_style() -> None:
    """Set the book's figure style: opaque white, legible at book width, colour-blind-safe line colours."""
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "figure.figsize": (7.5, 3.2),
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=OKABE_ITO),
            "image.interpolation": "nearest",
            "legend.frameon": False,
        }
    )


def show_grid(
    rows: Sequence[Mapping[str, Any]],
    row_titles: Sequence[str] = (),
    *,
    classes: int | None = None,
    width: float = 7.5,
    titles: bool = True,
) -> Figure:
    """Show images, labels and decoded predictions: a row per mapping, a column per key.

    Parameters
    ----------
    rows
        ``{"image": …, "semseg": …}`` per row; values as :func:`mlore_edu.pictures.to_rgb` takes them. A missing key
        leaves its cell empty.
    row_titles
        Text at the left of each row, e.g. ``("label", "prediction")``.
    classes
        Number of semantic classes, where they are not Dollhouse's.
    width
        Width of the figure in inches; the height follows from the pictures.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    pictures = [{key: to_rgb(key, value, classes) for key, value in row.items()} for row in rows]
    height, side = next(iter(pictures[0].values())).shape[:2]
    cell = width / len(keys)
    names = {key: fill(TITLES.get(key, key), max(8, int(12 * cell)), break_long_words=False) for key in keys}
    room = 0.2 * max(name.count("\n") + 1 for name in names.values()) + 0.1 if titles else 0
    figure, axes = plt.subplots(
        len(rows), len(keys), figsize=(width, len(rows) * cell * height / side + room), squeeze=False
    )
    for y, row in enumerate(pictures):
        for x, key in enumerate(keys):
            _picture(axes[y, x], row.get(key), names[key] if titles and y == 0 else "")
        if row_titles:
            axes[y, 0].set_ylabel(row_titles[y])
    return figure


def show_images(pictures: Sequence[Any], columns: int = 5, width: float = 7.5) -> Figure:
    """Show a contact sheet of RGB pictures, each (H, W, 3) uint8."""
    rows = -(-len(pictures) // columns)
    height, side = pictures[0].shape[:2]
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * width / columns * height / side), squeeze=False)
    for index, axis in enumerate(axes.flat):
        _picture(axis, pictures[index] if index < len(pictures) else None)
    return figure


def class_legend(figure: Figure, task: str, label: Any, class_names: Sequence[str], columns: int = 5) -> None:
    """Write the names of the classes that occur in ``label`` (H, W), in their colours, below the figure."""
    colours = palette(task, len(class_names)) / 255
    present = [int(index) for index in np.unique(np.asarray(label)) if index != IGNORE]
    patches = [Patch(facecolor=colours[i], edgecolor="grey", label=class_names[i]) for i in present]
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=9)


def _picture(axis: Axes, picture: Any, title: str = "") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set(visible=picture is not None, color="0.8")  # a frame, so that white areas end somewhere
    if picture is not None:
        axis.imshow(picture)
    axis.set_title(title)
