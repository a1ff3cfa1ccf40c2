"""Ray casting of boxes, ellipsoids, cylinders and capsules with numpy (chapter 1).

Conventions: lengths in metres; points and directions are arrays (3, N), one row per coordinate, which keeps each
coordinate contiguous and numpy fast; directions are unit vectors; y is up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

Kind = Literal["box", "ellipsoid", "cylinder", "capsule"]

TINY = 1e-9
"""Smallest divisor: a ray parallel to a face divides by this instead of by zero and meets the face far away."""


@dataclass(frozen=True)
class Primitive:
    """A convex solid: its shape, its place in the world, and what it belongs to.

    Parameters
    ----------
    kind
        ``"box"``, ``"ellipsoid"``, ``"cylinder"`` (axis y, capped) or ``"capsule"`` (axis y: a cylinder with a ball
        at each end).
    centre
        (3,) world position of the centre.
    rotation
        (3, 3) matrix whose columns are the solid's own axes in world coordinates.
    half
        (3,) half sizes along its own axes. Cylinder and capsule: radius, half length of the axis, radius (the balls of
        a capsule stick out by one radius).
    """

    kind: Kind
    centre: Array
    rotation: Array
    half: Array

    @property
    def bounding_radius(self) -> float:
        """Radius of the smallest ball around the centre that holds the solid."""
        a, b, c = (float(value) for value in self.half)
        if self.kind == "box":
            return float(np.sqrt(a * a + b * b + c * c))
        if self.kind == "ellipsoid":
            return max(a, b, c)
        return float(np.hypot(a, b)) if self.kind == "cylinder" else a + b


def to_local(primitive: Primitive, origins: Array, directions: Array) -> tuple[Array, Array]:
    """Rays in the solid's own coordinates; lengths do not change, so neither do hit distances."""
    dtype = directions.dtype
    turn = primitive.rotation.T.astype(dtype)
    return turn @ (origins - primitive.centre[:, None].astype(dtype)), turn @ directions


def hit_distance(primitive: Primitive, origins: Array, directions: Array) -> Array:
    """Distance along each ray to the solid's surface, for rays that start outside it.

    Parameters
    ----------
    primitive
        The solid.
    origins
        (3, N), or (3, 1) for rays from one point.
    directions
        (3, N) unit vectors.

    Returns
    -------
    (N,) distances in metres, infinity where the ray misses or the solid lies behind.
    """
    o, d = to_local(primitive, origins, directions)
    half = primitive.half.astype(d.dtype)
    if primitive.kind == "box":
        return _hit_box(o, d, half)
    if primitive.kind == "ellipsoid":
        return _hit_ellipsoid(o, d, half)
    if primitive.kind == "cylinder":
        return _hit_cylinder(o, d, half)
    return _hit_capsule(o, d, half)


def _safe_inverse(x: Array) -> Array:
    return 1 / np.where(np.abs(x) < TINY, np.asarray(TINY, x.dtype), x)


def _hit_box(o: Array, d: Array, half: Array) -> Array:
    """A box is where three slabs overlap: the ray is inside after the last entry and before the first exit."""
    inverse = _safe_inverse(d)
    middle, spread = -o * inverse, half[:, None] * np.abs(inverse)
    near, far = (middle - spread).max(axis=0), (middle + spread).min(axis=0)
    return np.where((near < far) & (near > 0), near, np.inf).astype(d.dtype)


def _hit_ellipsoid(o: Array, d: Array, radii: Array) -> Array:
    """Scale space so that the ellipsoid becomes the unit ball, then solve |o + t d|^2 = 1."""
    o, d = o / radii[:, None], d / radii[:, None]
    a, b, c = (d * d).sum(axis=0), (o * d).sum(axis=0), (o * o).sum(axis=0) - 1
    discriminant = b * b - a * c
    t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where((discriminant > 0) & (t > 0), t, np.inf).astype(d.dtype)


def _hit_cylinder(o: Array, d: Array, half: Array) -> Array:
    """Where the endless cylinder x^2 + z^2 <= r^2 and the slab |y| <= h overlap."""
    radius, height = half[0], half[1]
    a = np.maximum(d[0] * d[0] + d[2] * d[2], TINY)
    b = o[0] * d[0] + o[2] * d[2]
    c = o[0] * o[0] + o[2] * o[2] - radius * radius
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    inverse = _safe_inverse(d[1])
    middle, spread = -o[1] * inverse, height * np.abs(inverse)
    near = np.maximum((-b - root) / a, middle - spread)
    far = np.minimum((-b + root) / a, middle + spread)
    hit = (b * b > a * c) & (near < far) & (near > 0)
    return np.where(hit, near, np.inf).astype(d.dtype)


def _hit_capsule(o: Array, d: Array, half: Array) -> Array:
    """Meet the endless cylinder; beyond an end of the axis, meet the ball at that end instead."""
    radius, height = half[0], half[1]
    a = np.maximum(d[0] * d[0] + d[2] * d[2], TINY)
    b = o[0] * d[0] + o[2] * d[2]
    c = o[0] * o[0] + o[2] * o[2] - radius * radius
    discriminant = b * b - a * c
    t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    y = o[1] + t * d[1]
    beyond = np.abs(y) > height
    end = o[1] - np.where(y > 0, height, -height)
    b_end = b + end * d[1]
    discriminant_end = b_end * b_end - (c + end * end)
    t_end = -b_end - np.sqrt(np.maximum(discriminant_end, 0))
    t = np.where(beyond, t_end, t)
    hit = (np.where(beyond, discriminant_end, discriminant) > 0) & (t > 0)
    return np.where(hit, t, np.inf).astype(d.dtype)


def local_normal(primitive: Primitive, points: Array) -> Array:
    """Outward unit normals (3, N), in the solid's own coordinates, at points (3, N) on its surface."""
    half = primitive.half[:, None].astype(points.dtype)
    if primitive.kind == "box":
        face = np.argmax(np.abs(points) / half, axis=0)
        return np.where(np.arange(3)[:, None] == face, np.sign(points), 0).astype(points.dtype)
    if primitive.kind == "ellipsoid":
        normal = points / (half * half)
    elif primitive.kind == "capsule":
        normal = points.copy()
        normal[1] -= np.clip(points[1], -half[1], half[1])
    else:
        on_cap = np.abs(points[1]) - half[1] > np.hypot(points[0], points[2]) - half[0]
        normal = points * np.array([[1], [0], [1]], points.dtype)
        normal = np.where(on_cap, np.array([[0], [1], [0]], points.dtype) * np.sign(points), normal)
    return normal / np.maximum(np.sqrt((normal * normal).sum(axis=0)), TINY)
