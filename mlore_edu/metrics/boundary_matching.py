"""Thinning and one-to-one matching of boundary pixels, compiled (chapter 2 and the appendix on boundary matching).

The compiled functions work on *flat* maps: rows one after another, with so many empty pixels around the image that no
neighbour ever falls outside. A pixel is then one number, its position, and a neighbour is a fixed step away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""(row, column) steps to the eight neighbours, counter-clockwise from the east."""

UNMATCHED = -1


def compiled(function: Function) -> Function:
    """Compile a function with numba; it runs without the interpreter lock, so threads work side by side."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


def _removable_neighbourhoods() -> NDArray[np.bool_]:
    """Say for each of the two half-passes of thinning which of the 256 neighbourhoods let the middle pixel go.

    Guo and Hall, "Parallel thinning with two-subiteration algorithms" (1989), as in MATLAB's ``bwmorph('thin')``. Bit
    k of the neighbourhood is the k-th pixel of the ring.
    """
    removable = np.zeros((2, 256), dtype=np.bool_)
    for code in range(256):
        x = [bool(code >> k & 1) for k in range(8)]
        pieces = sum(not x[k] and (x[k + 1] or x[(k + 2) % 8]) for k in (0, 2, 4, 6))
        pairs = sum(x[k] or x[k + 1] for k in (0, 2, 4, 6)), sum(x[k - 1] or x[k] for k in (0, 2, 4, 6))
        if pieces == 1 and 2 <= min(pairs) <= 3:  # one piece stays one piece; neither an end nor the inside
            removable[0, code] = not ((x[1] or x[2] or not x[7]) and x[0])
            removable[1, code] = not ((x[5] or x[6] or not x[3]) and x[4])
    return removable


_REMOVABLE = _removable_neighbourhoods()


@compiled
def peel(grid: NDArray[np.uint8], candidates: Ints, ring: Ints, removable: NDArray[np.bool_]) -> Ints:
    """Make one half-pass of thinning over some pixels of the flat map ``grid``, and return those it took away."""
    removed = np.empty(len(candidates), np.int64)
    judged = gone = 0
    for position in candidates:
        code = 0
        for k in range(8):
            code |= int(grid[position + ring[k]]) << k
        if grid[position] and removable[code]:
            removed[judged] = position
            judged += 1
    for position in removed[:judged]:  # only now: a half-pass judges every pixel on the same picture
        if grid[position]:  # a candidate may be named twice
            grid[position] = 0
            removed[gone] = position
            gone += 1
    return removed[:gone]


@compiled
def pixels_beside(grid: NDArray[np.uint8], positions: Ints, ring: Ints) -> Ints:
    """List the set neighbours of some positions, each once."""
    found = np.empty(8 * len(positions), np.int64)
    count = 0
    for position in positions:
        for step in ring:
            if grid[position + step] == 1:
                grid[position + step] = 2  # listed
                found[count] = position + step
                count += 1
    found = found[:count]
    grid[found] = 1
    return found


@compiled
def thin_pixels(grid: NDArray[np.uint8], pixels: Ints, ring: Ints, removable: NDArray[np.bool_]) -> Ints:
    """Thin the flat map ``grid``, set at ``pixels``, in place, and return the pixels that stay.

    After the first pass a pixel is judged again only if it lost a neighbour: the verdict on the others stands.
    """
    beside_first = pixels_beside(grid, peel(grid, pixels, ring, removable[0]), ring)
    beside_second = pixels_beside(grid, peel(grid, pixels, ring, removable[1]), ring)
    while len(beside_first) + len(beside_second) > 0:
        candidates = np.concatenate((beside_first, beside_second))
        beside_first = pixels_beside(grid, peel(grid, candidates, ring, removable[0]), ring)
        candidates = np.concatenate((beside_first, beside_second))
        beside_second = pixels_beside(grid, peel(grid, candidates, ring, removable[1]), ring)
    return pixels[grid[pixels] > 0]


@compiled
def neighbour_lists(positions: Ints, true_at: Ints, offsets: Ints) -> tuple[Ints, Ints]:
    """List the true pixels within reach of each predicted pixel, nearest first.

    Those of predicted pixel i are ``neighbour[start[i] : start[i + 1]]``. ``true_at`` is the flat map of the true
    pixels' numbers, −1 elsewhere.
    """
    start = np.zeros(len(positions) + 1, np.int64)
    for i in range(len(positions)):
        start[i + 1] = start[i]
        for offset in offsets:
            start[i + 1] += true_at[positions[i] + offset] >= 0
    neighbour = np.empty(start[-1], np.int64)
    filled = 0
    for i in range(len(positions)):
        for offset in offsets:
            if true_at[positions[i] + offset] >= 0:
                neighbour[filled] = true_at[positions[i] + offset]
                filled += 1
    return start, neighbour


@compiled
def augment(
    root: int, start: Ints, neighbour: Ints, mates: tuple[Ints, Ints], reached: tuple[Ints, Ints], search: int
) -> bool:
    """Try to match one more predicted pixel, ``root``, by a breadth-first search for an augmenting path (Berge, 1957).

    Such a path leads from root over predicted and true pixels in turn, along pairs that are alternately unmatched and
    matched, to an unmatched true pixel; swapping the two kinds along it gives one more matched pair.

    Parameters
    ----------
    mates
        The partner of each predicted and of each true pixel, or UNMATCHED; changed in place.
    reached
        For each true pixel, the number of the last search that saw it, and the predicted pixel it was seen from. After
        a search that failed, the pixels it saw are dead ends for all later ones: their number becomes the largest int.
    search
        Number of this search, larger than any before.
    """
    mate_of_predicted, mate_of_true = mates
    reached_in, reached_from = reached
    queue = [root]
    for predicted in queue:
        for true in neighbour[start[predicted] : start[predicted + 1]]:
            if reached_in[true] >= search:
                continue
            reached_in[true], reached_from[true] = search, predicted
            if mate_of_true[true] != UNMATCHED:
                queue.append(mate_of_true[true])
                continue
            while True:  # walk back to the root, giving each predicted pixel the true pixel it was left by
                giver = reached_from[true]
                freed = mate_of_predicted[giver]
                mate_of_predicted[giver], mate_of_true[true] = true, giver
                if giver == root:
                    return True
                true = freed
    for predicted in queue[1:]:
        reached_in[mate_of_predicted[predicted]] = np.iinfo(np.int64).max
    return False


@compiled
def repair_matching(
    grid: NDArray[np.uint8], present: Ints, positions: Ints, lists: tuple[Ints, Ints], mates: tuple[Ints, Ints]
) -> int:
    """Turn a matching of an earlier map into a maximum matching of this one, and return its number of pairs.

    Pairs whose predicted pixel is gone are dissolved; then every unmatched predicted pixel gets one search. One is
    enough: a pixel without an augmenting path does not gain one when others are matched.

    Parameters
    ----------
    grid, present
        The flat map, and the numbers of the predicted pixels that are set in it.
    positions
        Position of each predicted pixel, set or not.
    """
    mate_of_predicted, mate_of_true = mates
    pairs = 0
    for true in range(len(mate_of_true)):
        predicted = mate_of_true[true]
        if predicted != UNMATCHED and grid[positions[predicted]]:
            pairs += 1
        elif predicted != UNMATCHED:
            mate_of_true[true] = mate_of_predicted[predicted] = UNMATCHED
    reached = np.zeros(len(mate_of_true), np.int64), np.empty(len(mate_of_true), np.int64)
    for search, predicted in enumerate(present):
        has_neighbours = lists[0][predicted] < lists[0][predicted + 1]
        if has_neighbours and mate_of_predicted[predicted] == UNMATCHED:
            pairs += augment(predicted, lists[0], lists[1], mates, reached, search + 1)
    return pairs


@compiled
def count_matches(
    values: NDArray[np.float64],
    positions: Ints,
    thresholds: NDArray[np.float64],
    true_at: Ints,
    offsets: Ints,
    ring: Ints,
    removable: Mask,
) -> Ints:
    """Count predicted and matched pixels at every threshold.

    The pixels come in descending order of value, so that the map at a threshold is the front part of the list. From
    high to low thresholds this part grows, thinning changes few of its pixels, and the matching is repaired.

    Returns
    -------
    (2, thresholds): pixels of the thinned map, and how many of them are matched.
    """
    counts = np.zeros((2, len(thresholds)), np.int64)
    lists = neighbour_lists(positions, true_at, offsets)
    mates = np.full(len(positions), UNMATCHED, np.int64), np.full(true_at.max() + 1, UNMATCHED, np.int64)
    grid = np.zeros(len(true_at), np.uint8)
    number_at = np.empty(len(true_at), np.int64)
    number_at[positions] = np.arange(len(positions))
    on = 0
    for t in range(len(thresholds) - 1, -1, -1):
        before = on
        while on < len(values) and values[on] > thresholds[t]:
            on += 1
        if on == before:  # the map of the threshold above
            if t + 1 < len(thresholds):
                counts[:, t] = counts[:, t + 1]
            continue
        pixels = positions[:on].copy()
        grid[pixels] = 1
        pixels = thin_pixels(grid, pixels, ring, removable)
        counts[0, t] = len(pixels)
        counts[1, t] = repair_matching(grid, number_at[pixels], positions, lists, mates)
        grid[pixels] = 0
    return counts


def _steps(tolerance: float, width: int) -> Ints:
    """Steps in a flat map of this width to all pixels within the tolerance, nearest first."""
    reach = int(tolerance)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    near = [(r * r + c * c, r * width + c) for r, c in zip(rows.tolist(), columns.tolist())]
    return np.array([step for square, step in sorted(near) if square <= tolerance**2], dtype=np.int64)


def _ring_steps(width: int) -> Ints:
    return np.array([row * width + column for row, column in _RING], dtype=np.int64)


def thin(mask: Mask) -> Mask:
    """Thin a map to lines of one pixel, until nothing changes; connected parts stay connected.

    Parameters
    ----------
    mask
        Boolean (H, W). Beyond its border nothing is set.

    Returns
    -------
    Boolean (H, W). Source: Guo and Hall (1989); chapter 2.
    """
    grid = np.pad(mask.astype(np.uint8), 1)
    flat = grid.reshape(-1)
    thin_pixels(flat, np.flatnonzero(flat), _ring_steps(grid.shape[1]), _REMOVABLE)
    return cast(Mask, grid[1:-1, 1:-1].astype(np.bool_))


def match_thresholds(
    probability: NDArray[np.float64], truth: Mask, thresholds: tuple[float, ...], tolerance: float
) -> Ints:
    """Threshold a map, thin it and match it with the true boundary, for all thresholds at once.

    Parameters
    ----------
    probability
        (H, W), suppressed already; a pixel is set where its value is greater than the threshold.
    truth
        Boolean (H, W), thinned already.
    thresholds
        Ascending, at least 0.
    tolerance
        Largest distance of a pair, in pixels.

    Returns
    -------
    int64 (2, thresholds): pixels of the thinned map, and pairs of a maximum one-to-one matching.
    """
    border = max(1, int(tolerance))
    width = truth.shape[1] + 2 * border
    true_at = np.full(truth.size, UNMATCHED, dtype=np.int64).reshape(truth.shape)
    true_at[truth] = np.arange(truth.sum())
    true_at = np.pad(true_at, border, constant_values=UNMATCHED)
    flat = np.pad(probability, border).reshape(-1)
    positions = np.flatnonzero(flat > thresholds[0])
    positions = positions[np.argsort(-flat[positions], kind="stable")]
    counts: Ints = count_matches(
        *(flat[positions], positions, np.array(thresholds), true_at.reshape(-1)),
        *(_steps(tolerance, width), _ring_steps(width), _REMOVABLE),
    )
    return counts


def match(prediction: Mask, truth: Mask, tolerance: float) -> Ints:
    """Match the set pixels of two maps one to one, as many as possible, no pair further apart than the tolerance.

    Parameters
    ----------
    prediction, truth
        Boolean (H, W).
    tolerance
        In pixels.

    Returns
    -------
    int64 (pairs, 2, 2): row and column of the predicted pixel, row and column of its true pixel. The number of pairs
    is unique, the pairs are not. Chapter 2 draws them.
    """
    border = int(tolerance)
    width = truth.shape[1] + 2 * border
    grid, true_grid = (np.pad(mask, border).reshape(-1) for mask in (prediction, truth))
    positions, true_positions = np.flatnonzero(grid), np.flatnonzero(true_grid)
    true_at = np.full(len(grid), UNMATCHED, dtype=np.int64)
    true_at[true_positions] = np.arange(len(true_positions))
    lists = neighbour_lists(positions, true_at, _steps(tolerance, width))
    mates = np.full(len(positions), UNMATCHED), np.full(len(true_positions), UNMATCHED)
    repair_matching(grid.astype(np.uint8), np.arange(len(positions)), positions, lists, mates)
    matched = np.flatnonzero(mates[0] != UNMATCHED)
    ends = np.stack([positions[matched], true_positions[mates[0][matched]]], axis=1)  # (pairs, 2)
    return cast(Ints, np.stack([ends // width, ends % width], axis=-1) - border)
