"""Light in Dollhouse: soft shadows, highlights, and smooth boundaries (chapter 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlore_edu.data.raycasting import Camera, Primitive, cast

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Light:
    """A parallelogram that sends out light: its centre, its two half sides (3,), and its linear RGB colour (3,)."""

    centre: Array
    side_u: Array
    side_v: Array
    colour: Array


BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
"""Which of 16 points of a light a pixel looks at, repeated over the image: any 4 x 4 block sees them all, and its mean
is the soft shadow. The numbers below 8 form a checkerboard, so half the pixels give a coarser mean at half the cost."""


def light_points(light: Light, pixels: Array, width: int) -> Array:
    """The point (3, N) of the light that each pixel looks at; ``pixels`` (N,) are flat indices in rows of ``width``."""
    n = BAYER[pixels // width % 4, pixels % width % 4]
    # multiples of these two fractions fill the unit square evenly, however many are taken (R2 sequence, M. Roberts)
    u, v = (2 * ((0.5 + n * step) % 1) - 1 for step in (0.7548776662, 0.5698402910))
    point = light.centre[:, None] + light.side_u[:, None] * u + light.side_v[:, None] * v
    return np.asarray(point, np.float32)


def block_mean(values: Array, same: Array, step: int = 1) -> Array:
    """Mean of (H, W) values over the 4 x 4 pixels around each pixel that show the same solid, ``step`` pixels apart.

    A pixel whose value is nan was not looked at and does not count; where no pixel counts the result is 1.
    """
    border = (2 * step, step)
    padded = np.pad(values, border, constant_values=np.nan)
    counted = np.where(np.isnan(padded), -2, np.pad(same, border, constant_values=-2))
    padded = np.nan_to_num(padded)
    height, width = values.shape
    total, count = np.zeros_like(values), np.zeros_like(values)
    for i in range(0, 4 * step, step):
        for j in range(0, 4 * step, step):
            equal = counted[i : i + height, j : j + width] == same
            total += padded[i : i + height, j : j + width] * equal
            count += equal
    return np.where(count > 0, total / np.maximum(count, 1), 1).astype(values.dtype, copy=False)


def lambert(light: Light, points: Array, normals: Array, view: Array, gloss: Array) -> tuple[Array, Array]:
    """Light received without shadows: matt (N,) and mirrored (N,), both falling off with distance from the light.

    ``view`` (3, N) points towards the camera; ``gloss`` (N,) is 0 for matt surfaces.
    """
    towards = light.centre[:, None].astype(points.dtype) - points
    distance = np.sqrt((towards * towards).sum(axis=0))
    towards /= distance
    fall_off = 1 / (1 + (distance / 3) ** 2)
    matt = np.maximum((normals * towards).sum(axis=0), 0) * fall_off
    half_way = towards + view
    cosine = (normals * half_way).sum(axis=0) / np.sqrt((half_way * half_way).sum(axis=0))
    return matt, gloss * fall_off * np.maximum(cosine, 0) ** 40 * (matt > 0)


SUBPIXELS = ((-0.375, -0.125), (0.375, 0.125), (-0.125, 0.375), (0.125, -0.375))
"""Offsets (down, right) of the rays that a pixel on a boundary is averaged over: opposite ones side by side."""


def antialias(primitives: Sequence[Primitive], camera: Camera, index: Array, colour: Array, samples: int = 4) -> Array:
    """Smooth the steps along boundaries, as a sensor does that collects light over its whole area.

    A pixel next to a boundary sends two or four rays; each takes the mean colour of those neighbours that show the
    solid it meets (the pixel's own colour when none does).

    Parameters
    ----------
    primitives, camera
        What was rendered, and from where.
    index
        (H, W) solid at each pixel centre, from :func:`cast`.
    colour
        (3, H, W) rendered colours.
    samples
        Rays per pixel, 2 or 4.

    Returns
    -------
    (3, H, W) smoothed colours.
    """
    height, width = index.shape
    differs = np.zeros(index.shape, bool)
    for a, b in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
                 ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):  # fmt: skip
        step = index[a] != index[b]
        differs[a] |= step
        differs[b] |= step
    pixels = np.flatnonzero(differs)
    rows, columns = pixels // width, pixels % width
    ring = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = np.stack([np.clip(rows + i, 0, height - 1) * width + np.clip(columns + j, 0, width - 1) for i, j in ring])
    ring_index, ring_colour = index.take(around), colour.reshape(3, -1).take(around, axis=1)  # (9, N), (3, 9, N)
    origin = camera.position[:, None]
    visible = np.unique(index)
    shifts = [camera.rays((height, width), pixels, shift) for shift in SUBPIXELS[:samples]]
    _, met = cast([primitives[k] for k in visible], origin, camera.rotation @ np.concatenate(shifts, axis=1))
    total = np.zeros((3, pixels.size), np.float32)
    for seen in visible[met].reshape(samples, -1):
        weight = (ring_index == seen).astype(np.float32)
        weight[4] += 1e-3  # the pixel itself, for a solid that no neighbour shows
        total += np.einsum("crn,rn->cn", ring_colour, weight) / weight.sum(axis=0)
    result = colour.reshape(3, -1).copy()
    result[:, pixels] = total / samples
    return result.reshape(3, height, width)
