"""Self-checks of chapter 1: flip normals, read NYUD's classes, find boundaries, zoom a depth map, merge body parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data.labels import MERGED_PART
from mlore_edu.exercises import answered, exercise
from mlore_edu.tasks import IGNORE


def _same(answer: Any, expected: Array, message: str) -> None:
    given = np.asarray(answered(answer))
    assert given.shape == expected.shape, f"The result has shape {given.shape}; it should be {expected.shape}."
    assert np.allclose(given.astype(np.float64), expected, atol=1e-6), message


@exercise("1.1", hint="Reverse the last axis, then look at which of x, y and z a mirror turns round.")
def check_flip(flip_normals: Callable[[Array], Array]) -> None:
    """``flip_normals(normals)``: mirror a map of normals (3, H, W) left and right."""
    normals = np.random.default_rng(0).normal(size=(3, 4, 6))
    normals /= np.linalg.norm(normals, axis=0)
    before = normals.copy()
    flipped = answered(flip_normals(normals))
    assert np.array_equal(normals, before), "The normals that were passed in have been changed."
    assert not np.allclose(flipped, before[:, :, ::-1]), "The pixels moved, but the vectors did not turn."
    _same(flipped, before[:, :, ::-1] * np.array([-1, 1, 1])[:, None, None], "Some vectors point the wrong way.")


@exercise("1.2", hint="Subtract 1, and give the pixels that were 0 the value 255.")
def check_decode_semseg(decode_semseg: Callable[[Array], Array]) -> None:
    """``decode_semseg(stored)``: NYUD-v2's stored uint8 classes (H, W) as class ids with 255 = ignored."""
    stored = np.array([[0, 1, 2], [39, 40, 0]], np.uint8)
    decoded = np.asarray(answered(decode_semseg(stored)))
    assert not np.array_equal(decoded, stored), "These are still the stored values, one too high."
    assert (decoded[stored == 0] == IGNORE).all(), "Unlabelled pixels should become 255."
    _same(decoded, np.array([[255, 0, 1], [38, 39, 255]]), "A class has the wrong number.")


@exercise(
    "1.3", hint="Compare the map with itself shifted by a row, and by a column; each difference marks two pixels."
)
def check_boundaries(boundaries: Callable[[Array], Array]) -> None:
    """``boundaries(label_map)``: bool (H, W), True where a pixel differs from one above, below, left or right."""
    ramp = np.tile(np.array([1, 2, 3], np.uint8), (3, 1))
    assert not np.asarray(answered(boundaries(np.full((4, 5), 7, np.uint8)))).any(), (
        "A map of one class has no boundary."
    )
    marked = np.asarray(boundaries(ramp), bool)
    assert marked.all(), "In rows of classes 1, 2, 3 every pixel touches another class, the middle ones too."
    corner = np.zeros((4, 4), np.uint16)
    corner[2:, 2:] = 459
    expected = np.zeros((4, 4), bool)
    expected[2:, 1:] = expected[1:, 2:] = True
    expected[3, 3] = False
    _same(boundaries(corner), expected, "Around the corner of a square, the wrong pixels are marked.")


@exercise("1.4", hint="Repeat rows and columns, then ask how far away something is that looks twice as large.")
def check_zoom(zoom_depth: Callable[[Array, int], Array]) -> None:
    """``zoom_depth(depth, zoom)``: enlarge a depth map (H, W) by a whole number; 0 stays invalid."""
    depth = np.array([[2.0, 4.0, 0.0], [6.0, 1.0, 3.0]], np.float32)
    larger = np.repeat(np.repeat(depth, 2, axis=0), 2, axis=1)
    zoomed = np.asarray(answered(zoom_depth(depth, 2)))
    assert not np.array_equal(zoomed, larger), "The map is larger, but its metres are the old ones."
    _same(zoomed, larger / 2, "Some depths are wrong.")
    _same(zoom_depth(depth, 3), np.repeat(np.repeat(depth, 3, axis=0), 3, axis=1) / 3, "A zoom of 3 goes wrong.")


@exercise(
    "1.5", hint="Start from zeros, write each part's number under its mask, and see whether anything was written."
)
def check_merge_parts(merge_parts: Callable[[dict[str, Array], tuple[int, int]], Array]) -> None:
    """``merge_parts(masks, shape)``: masks by PASCAL-Part name as one map of six parts, 255 without any person."""
    shape = (6, 5)
    masks, expected = {}, np.zeros(shape)
    for index, (name, part) in enumerate(sorted(MERGED_PART.items())):
        masks[name] = np.zeros(shape, np.uint8)
        masks[name].flat[index] = 1
        expected.flat[index] = part
    merged = np.asarray(answered(merge_parts(masks, shape)))
    _same(merged, expected, "A part got the wrong number.")
    empty = np.asarray(answered(merge_parts({}, shape)))
    assert (empty == IGNORE).all(), "An image without people should be ignored as a whole: 255 everywhere."
