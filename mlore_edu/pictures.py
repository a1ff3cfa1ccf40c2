"""Colours for labels and predictions, and panels of them as one picture; numpy and Pillow only (chapter 1).

The class colours were chosen by farthest-point search in CIELAB so that every pair stays apart for readers with
normal, deuteranopic and protanopic vision (``tests/test_pictures.py`` checks the distances again).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlore_edu.arrays import Array
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE_CLASSES, IGNORE, PART_NAMES

DOLLHOUSE_COLOURS = (
    *("d8d2c4", "9c7450", "f7f4ec", "9fd8f5", "e69f00", "9a7fc0", "4a2c12", "0072b2", "4b2f8a", "6fae8e"),
    *("38474f", "f0e442", "0f5a2a", "d55e00", "e0589f"),
)
"""One hex colour per class of Dollhouse: the walls and the floor calm, the things on them bright."""

PART_COLOURS = ("2b2b2b", "f0e442", "0072b2", "e69f00", "d55e00", "56b4e9", "009e73")
"""Background dark, then the six parts in the colours of Okabe and Ito."""

CLASS_COLOURS = (
    *("334433", "0077aa", "ffcc44", "aaeecc", "448877", "779944", "55ddff", "0077ee", "661155", "ddee99"),
    *("332288", "55aaff", "88bbbb", "004400", "55bb88", "447744", "bb9922", "556600", "338899", "55ffff"),
    *("0066bb", "88cc66", "00aacc", "334488", "eeee77", "005577", "226666", "77dd99", "66aa66", "558800"),
    *("3388dd", "aa0055", "883322", "339966", "cccc55", "559999", "ee77cc", "880033", "bb4444", "88bbff"),
)
"""Up to 40 classes, for PASCAL VOC and NYUD-v2."""

IGNORED_COLOUR = (255, 255, 255)
"""Pixels that do not count are white."""

NEAR, FAR = 1.0, 7.0
"""Depths in metres that are drawn in the brightest and in the darkest colour."""


def palette(task: str, classes: int | None = None) -> Array:
    """Colours of a class task as (classes, 3) uint8; ``classes`` tells 15 Dollhouse classes from 21 or 40 others."""
    if task == "human_parts":
        colours: Sequence[str] = PART_COLOURS
    elif classes in (None, len(DOLLHOUSE_COLOURS)):
        colours = DOLLHOUSE_COLOURS
    else:
        colours = CLASS_COLOURS
    return np.array([tuple(bytes.fromhex(colour)) for colour in colours], dtype=np.uint8)


def to_rgb(task: str, label: Any, classes: int | None = None) -> Array:
    """Colour one label or decoded prediction.

    Parameters
    ----------
    task
        ``"image"`` or a task's name.
    label
        (H, W) class ids, saliency or boundary probability, (1, H, W) or (H, W) depth in metres, (3, H, W) or
        (H, W, 3) normals or image; numpy or torch, without a batch dimension.
    classes
        Number of classes, for ``"semseg"`` (15 when not given).

    Returns
    -------
    (H, W, 3) uint8. Ignored pixels are white. Normals: x, y, z from [-1, 1] to red, green, blue. Depth: near is
    bright, :data:`NEAR` metres and less brightest, :data:`FAR` metres and more darkest. Boundaries are black on white.
    """
    array = np.asarray(label)
    if array.ndim == 3 and task in ("image", "normals"):
        array = array if array.shape[-1] == 3 else np.moveaxis(array, 0, -1)
    elif array.ndim == 3 and len(array) == 1:
        array = array[0]
    if task == "image":
        return array if array.dtype == np.uint8 else _to_byte(array)
    if task in ("semseg", "human_parts"):
        colours = palette(task, classes)
        ignored = array == IGNORE
        if array.ndim != 2 or (~ignored & ((array < 0) | (array >= len(colours)))).any():
            raise UserError(
                f"A map of class ids (H, W) from 0 to {len(colours) - 1} is needed; give one, and classes=."
            )
        rgb = colours[np.where(ignored, 0, array).astype(int)]
        return _blank(rgb, ignored)
    if task == "normals":
        return _blank(_to_byte((array + 1) / 2), np.abs(array).sum(-1) == 0)
    if task == "depth":
        return _blank(_cividis(np.clip((FAR - array) / (FAR - NEAR), 0, 1)), array <= 0)
    if task in ("saliency", "edge"):
        ignored = array == IGNORE
        shade = np.where(ignored, 0, array)
        grey = _to_byte(1 - shade if task == "edge" else shade)
        return _blank(np.repeat(grey[..., None], 3, axis=-1), ignored)
    raise UserError(f"No colours are known for a task named {task!r}; use image or one of the six tasks' names.")


def overlay(image: Any, task: str, label: Any, classes: int | None = None) -> Array:
    """Lay one label or decoded prediction over its image, as far as it has places to be seen through.

    Parameters
    ----------
    image, label
        As :func:`to_rgb` takes them.
    task, classes
        As for :func:`to_rgb`.

    Returns
    -------
    (H, W, 3) uint8. Classes tint the grey image; parts tint people and leave the rest; what is not salient is dark;
    normals, depth and boundaries are drawn as they are.
    """
    under, colours = to_rgb("image", image), to_rgb(task, label, classes)
    if task == "saliency":
        return _to_byte(under / 255 * (0.15 + 0.85 * colours / 255))
    if task not in ("semseg", "human_parts"):
        return colours
    grey = under.mean(axis=-1, keepdims=True) / 255
    tinted = _to_byte(0.4 * grey + 0.6 * colours / 255)
    return np.where((np.asarray(label) > 0)[..., None], tinted, under) if task == "human_parts" else tinted


def panel(
    rows: Sequence[Mapping[str, Any]],
    row_titles: Sequence[str] = (),
    side: int = 160,
    classes: int | None = None,
    *,
    overlaid: bool = False,
) -> Image.Image:
    """Put labels and predictions in one picture: a row per mapping, a column per key, column titles on top.

    Parameters
    ----------
    rows
        ``{"image": …, "semseg": …}`` per row, each value as :func:`to_rgb` takes it; a missing key leaves a gap.
    row_titles
        Written up the left side, e.g. ``("label", "prediction")``.
    side
        Width in pixels that each cell is drawn at (nearest neighbour, so no colour is invented).
    overlaid
        Whether each row's cells are laid over its ``"image"``, see :func:`overlay`.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def draw_cell(row: Mapping[str, Any], key: str) -> Array:
        return overlay(row["image"], key, row[key], classes) if overlaid else to_rgb(key, row[key], classes)

    cells = [[draw_cell(row, key) if key in row else None for key in columns] for row in rows]
    height, width = next(cell.shape[:2] for line in cells for cell in line if cell is not None)
    cell_size = (side, round(side * height / width))
    top, left, gap = 22, 22 if row_titles else 0, 4
    page = Image.new(
        "RGB", (left + len(columns) * (side + gap) - gap, top + len(rows) * (cell_size[1] + gap) - gap), "white"
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for x, key in enumerate(columns):
        draw.text((left + x * (side + gap) + side / 2, top / 2), key.replace("_", " "), "black", font, anchor="mm")
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            if cell is not None:
                picture = Image.fromarray(cell).resize(cell_size, Image.Resampling.NEAREST)
                page.paste(picture, (left + x * (side + gap), top + y * (cell_size[1] + gap)))
    for y, title in enumerate(row_titles):
        strip = Image.new("RGB", (cell_size[1], left), "white")
        ImageDraw.Draw(strip).text((cell_size[1] / 2, left / 2), title, "black", font, anchor="mm")
        page.paste(strip.rotate(90, expand=True), (0, top + y * (cell_size[1] + gap)))
    return page


def _to_byte(values: Array) -> Array:
    byte: Array = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return byte


def _blank(rgb: Array, ignored: Array) -> Array:
    rgb = rgb.copy()
    rgb[ignored] = IGNORED_COLOUR
    return rgb


def _cividis(values: Array) -> Array:
    """Matplotlib's colour map made for colour-blind readers, values in [0, 1] to (…, 3) uint8."""
    from matplotlib import colormaps

    return np.asarray(colormaps["cividis"](values, bytes=True))[..., :3]


assert len(DOLLHOUSE_COLOURS) == len(DOLLHOUSE_CLASSES)
assert len(PART_COLOURS) == len(PART_NAMES)
