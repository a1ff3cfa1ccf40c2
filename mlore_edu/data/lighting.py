"""Light in Dollhouse: soft shadows, highlights, and smooth boundaries (chapter 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data.raycasting import Camera, Primitive, hit_distance


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
    # multiples of these two fractions fill the unit square evenly, however many are taken (R2 sequence, M. Roberts)
    u, v = (2 * ((0.5 + np.arange(16) * step) % 1) - 1 for step in (0.7548776662, 0.5698402910))
    points: Array = light.centre[:, None] + light.side_u[:, None] * u + light.side_v[:, None] * v  # (3, 16)
    chosen: Array = points.astype(np.float32).take(BAYER[pixels // width % 4, pixels % width % 4], axis=1)
    return chosen


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


def _cast_among(primitives: Sequence[Primitive], candidates: Array, origin: Array, directions: Array) -> Array:
    """Which solid (S, N) each ray (3, S, N) meets first, among the candidates (C, N) of its pixel; -1 for none."""
    distance = np.full(directions.shape[1:], np.inf, directions.dtype)
    met = np.full(distance.shape, -1, np.int32)
    for k in np.unique(candidates):
        near = (candidates == k).any(axis=0).nonzero()[0]
        rays = directions.take(near, axis=2)
        t = hit_distance(primitives[k], origin, rays.reshape(3, -1)).reshape(len(met), -1)
        before = distance.take(near, axis=1)
        met[:, near] = np.where(t < before, k, met.take(near, axis=1))
        distance[:, near] = np.minimum(t, before)
    return met


SUBPIXELS = ((-0.375, -0.125), (-0.125, 0.375), (0.125, -0.375), (0.375, 0.125))
"""Offsets (down, right) of the four rays that a pixel on a boundary is averaged over."""

BINOMIAL = np.outer([1, 2, 1], [1, 2, 1]).reshape(9, 1) / np.float32(16)
"""Weights of a pixel and its eight neighbours in a slight blur."""


def antialias(
    primitives: Sequence[Primitive], camera: Camera, index: Array, colour: Array, exact: bool = True
) -> Array:
    """Smooth the steps along boundaries, as a sensor does that collects light over its whole area.

    Exactly: a pixel next to a boundary sends four rays, and each takes the mean colour of those neighbours that show
    the solid it meets. Roughly, for small pictures in a hurry: such a pixel is blurred with its neighbours.

    Parameters
    ----------
    primitives, camera
        What was rendered, and from where.
    index
        (H, W) solid at each pixel centre, from :func:`mlore_edu.data.raycasting.cast`.
    colour
        (3, H, W) rendered colours.
    exact
        Which of the two.

    Returns
    -------
    (3, H, W) smoothed colours.
    """
    height, width = index.shape
    differs = np.zeros(index.shape, bool)
    down, right = index[1:] != index[:-1], index[:, 1:] != index[:, :-1]
    for part, step in ((differs[1:], down), (differs[:-1], down), (differs[:, 1:], right), (differs[:, :-1], right)):
        part |= step
    pixels = np.flatnonzero(differs)
    rows, columns = pixels // width, pixels % width
    ring = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = np.stack([np.clip(rows + i, 0, height - 1) * width + np.clip(columns + j, 0, width - 1) for i, j in ring])
    result = colour.reshape(3, -1).copy()
    ring_index, ring_colour = index.take(around), result.take(around, axis=1)  # (9, N), (3, 9, N)
    if not exact:
        result[:, pixels] = np.einsum("crn,rn->cn", ring_colour, np.broadcast_to(BINOMIAL, ring_index.shape))
        return result.reshape(3, height, width)
    rays = [camera.rotation @ camera.rays((height, width), pixels, shift) for shift in SUBPIXELS]
    total = np.zeros((3, pixels.size), np.float32)
    for met in _cast_among(primitives, ring_index, camera.position[:, None], np.stack(rays, axis=1)):
        weight = (ring_index == met).astype(np.float32)
        weight[4] += 1e-3  # the pixel itself, for a solid that no neighbour shows
        total += np.einsum("crn,rn->cn", ring_colour, weight) / weight.sum(axis=0)
    result[:, pixels] = total / len(SUBPIXELS)
    return result.reshape(3, height, width)
