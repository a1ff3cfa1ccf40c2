"""Ray casting of planes, boxes, ellipsoids, cylinders and capsules with numpy (chapter 1).

Conventions: lengths in metres; points and directions are arrays (3, N), one row per coordinate, which keeps each
coordinate contiguous and numpy fast; directions are unit vectors; y is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mlore_edu.arrays import Array

Kind = Literal["plane", "box", "ellipsoid", "cylinder", "capsule"]

TINY = 1e-12
"""Added to divisors that may be zero: a ray parallel to a face meets it very far away instead of nowhere."""


@dataclass(frozen=True)
class Primitive:
    """A convex solid: its shape, its place in the world, and what it belongs to.

    Parameters
    ----------
    kind
        ``"plane"`` (the solid ground below y = 0), ``"box"``, ``"ellipsoid"``, ``"cylinder"`` (axis y, capped) or
        ``"capsule"`` (axis y: a cylinder with a ball at each end).
    centre
        (3,) world position of the centre.
    rotation
        (3, 3) matrix whose columns are the solid's own axes in world coordinates.
    half
        (3,) half sizes along its own axes; unused by a plane. Cylinder and capsule: radius, half length of the axis,
        radius (the balls of a capsule stick out by one radius).
    """

    kind: Kind
    centre: Array
    rotation: Array
    half: Array

    @cached_property
    def bounding_radius(self) -> float:
        """Radius of the smallest ball around the centre that holds the solid."""
        if self.kind == "plane":
            return float("inf")
        a, b, c = (float(value) for value in self.half)
        if self.kind == "box":
            return float(np.sqrt(a * a + b * b + c * c))
        if self.kind == "ellipsoid":
            return max(a, b, c)
        return float(np.hypot(a, b)) if self.kind == "cylinder" else a + b


def single(primitive: Primitive) -> Primitive:
    """The same solid in float32, the precision in which scenes are rendered (twice as fast as float64)."""
    centre, rotation, half = (np.asarray(a, np.float32) for a in (primitive.centre, primitive.rotation, primitive.half))
    return Primitive(primitive.kind, centre, rotation, half)


def to_local(primitive: Primitive, origins: Array, directions: Array) -> tuple[Array, Array]:
    """Rays in the solid's own coordinates; lengths do not change, so neither do hit distances."""
    turn = primitive.rotation.T
    return turn @ (origins - primitive.centre[:, None]), turn @ directions


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
    half = primitive.half
    if primitive.kind == "plane":
        return _hit_plane(o, d)
    if primitive.kind == "box":
        return _hit_box(o, d, half)
    if primitive.kind == "ellipsoid":
        return _hit_ellipsoid(o, d, half)
    if primitive.kind == "cylinder":
        return _hit_cylinder(o, d, half)
    return _hit_capsule(o, d, half)


def _inverse(x: Array) -> Array:
    inverse: Array = 1 / (x + np.copysign(np.asarray(TINY, x.dtype), x))
    return inverse


def _hit_plane(o: Array, d: Array) -> Array:
    """Height over fall: only a ray that sinks meets the ground."""
    return np.where(d[1] < -TINY, -o[1] / np.minimum(d[1], -TINY), np.inf).astype(d.dtype, copy=False)


def _hit_box(o: Array, d: Array, half: Array) -> Array:
    """A box is where three slabs overlap: the ray is inside after the last entry and before the first exit."""
    inverse = _inverse(d)
    middle, spread = -o * inverse, half[:, None] * np.abs(inverse)
    near, far = (middle - spread).max(axis=0), (middle + spread).min(axis=0)
    return np.where((near < far) & (near > 0), near, np.inf).astype(d.dtype, copy=False)


def _hit_ellipsoid(o: Array, d: Array, radii: Array) -> Array:
    """Scale space so that the ellipsoid becomes the unit ball, then solve |o + t d|^2 = 1."""
    o, d = o / radii[:, None], d / radii[:, None]
    a, b, c = (d * d).sum(axis=0), (o * d).sum(axis=0), (o * o).sum(axis=0) - 1
    discriminant = b * b - a * c
    t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where((discriminant > 0) & (t > 0), t, np.inf).astype(d.dtype, copy=False)


def _hit_cylinder(o: Array, d: Array, half: Array) -> Array:
    """Where the endless cylinder x^2 + z^2 <= r^2 and the slab |y| <= h overlap."""
    radius, height = half[0], half[1]
    a = np.maximum(d[0] * d[0] + d[2] * d[2], TINY)
    b = o[0] * d[0] + o[2] * d[2]
    c = o[0] * o[0] + o[2] * o[2] - radius * radius
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    inverse = _inverse(d[1])
    middle, spread = -o[1] * inverse, height * np.abs(inverse)
    near = np.maximum((-b - root) / a, middle - spread)
    far = np.minimum((-b + root) / a, middle + spread)
    hit = (b * b > a * c) & (near < far) & (near > 0)
    return np.where(hit, near, np.inf).astype(d.dtype, copy=False)


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
    return np.where(hit, t, np.inf).astype(d.dtype, copy=False)


def local_normal(primitive: Primitive, points: Array, directions: Array) -> Array:
    """Outward unit normals where rays meet a solid, in the solid's own coordinates.

    Parameters
    ----------
    primitive
        The solid.
    points, directions
        (3, N) points on its surface and (3, N) directions of the rays that met them: on an edge the face that is turned
        towards the ray counts.

    Returns
    -------
    (3, N) unit vectors.
    """
    half = primitive.half[:, None]
    if primitive.kind == "plane":
        return np.broadcast_to(np.array([[0], [1], [0]], points.dtype), points.shape)
    if primitive.kind == "box":
        face = np.where(points * directions < 0, np.abs(points) / half, 0).argmax(axis=0)
        return np.where(np.arange(3)[:, None] == face, np.sign(points), 0).astype(points.dtype, copy=False)
    if primitive.kind == "ellipsoid":
        normal: Array = points / (half * half)
    elif primitive.kind == "capsule":
        normal = points.copy()
        normal[1] -= np.clip(points[1], -half[1], half[1])
    else:
        on_cap = np.abs(points[1]) - half[1] > np.hypot(points[0], points[2]) - half[0]
        on_cap &= points[1] * directions[1] < 0
        normal = np.where(on_cap, 0, points)
        normal[1] = np.where(on_cap, np.sign(points[1]), 0)
    normal /= np.maximum(np.sqrt((normal * normal).sum(axis=0)), TINY)
    return normal


def cast(primitives: Sequence[Primitive], origin: Array, directions: Array) -> tuple[Array, Array]:
    """The first solid that each ray meets.

    Parameters
    ----------
    primitives
        The solids.
    origin
        (3, 1) common starting point, outside all solids.
    directions
        (3, N) unit vectors.

    Returns
    -------
    distance, index
        (N,) metres (infinity for a ray that meets nothing) and (N,) positions in ``primitives`` (-1 for nothing).
    """
    distance = np.full(directions.shape[1], np.inf, directions.dtype)
    index = np.full(directions.shape[1], -1, np.int32)
    for k in _in_view(primitives, origin, directions):
        primitive = primitives[k]
        rays = _rays_towards(primitive, origin, directions)
        if rays.size == 0:
            continue
        t = hit_distance(primitive, origin, directions.take(rays, axis=1))
        closer = t < distance[rays]
        rays = rays[closer]
        distance[rays], index[rays] = t[closer], k
    return distance, index


def _in_view(primitives: Sequence[Primitive], origin: Array, directions: Array) -> Array:
    """Indices of the solids whose bounding ball meets the cone around all the rays."""
    middle = directions.mean(axis=1)
    middle /= np.sqrt(middle @ middle)
    spread = np.arccos(np.clip((middle @ directions).min(), -1, 1))
    offset = np.stack([p.centre for p in primitives]) - origin[:, 0]
    radius = np.array([p.bounding_radius for p in primitives])
    away = np.sqrt((offset * offset).sum(axis=1)) + TINY
    angle = np.arccos(np.clip(offset @ middle / away, -1, 1)) - np.arcsin(np.minimum(radius / away, 1))
    return np.flatnonzero((angle < spread + 1e-3) | (radius >= away))


def _rays_towards(primitive: Primitive, origin: Array, directions: Array) -> Array:
    """Indices of the rays inside the cone that the bounding ball fills, seen from the origin."""
    if primitive.kind == "plane":
        return np.arange(directions.shape[1])
    offset = primitive.centre - origin[:, 0]
    tangent_squared = offset @ offset - primitive.bounding_radius**2
    along = offset @ directions
    rays: Array = (along > np.sqrt(max(tangent_squared, 0)) - 1e-4).nonzero()[0]
    return rays


@dataclass(frozen=True)
class Group:
    """Solids of one object and a ball around them all: rays that miss the ball need not be tested further."""

    centre: Array
    bounding_radius: float
    members: tuple[int, ...]


def make_group(primitives: Sequence[Primitive], members: Sequence[int]) -> Group:
    """The group of the named members of ``primitives``; its ball is centred in their middle."""
    centres = np.stack([primitives[k].centre for k in members])
    centre = (centres.min(axis=0) + centres.max(axis=0)) / 2
    reach = np.sqrt(((centres - centre) ** 2).sum(axis=1))
    radius = max(float(r) + primitives[k].bounding_radius for r, k in zip(reach, members, strict=True))
    return Group(centre, radius, tuple(members))


def _rays_near(ball: Group | Primitive, rays: tuple[Array, ...]) -> Array:
    """Indices of the rays that pass through a ball between their origin and their end."""
    origins, directions, length, origin_square, origin_along = rays
    centre, radius = ball.centre, ball.bounding_radius
    along = centre @ directions - origin_along
    # |centre - origin|^2 - along^2, the squared gap between ray and centre
    gap_square = origin_square - (2 * centre) @ origins
    gap_square -= along * along
    inside = gap_square < radius * radius - centre @ centre
    inside &= along > -radius
    inside &= along < length + radius
    chosen: Array = inside.nonzero()[0]
    return chosen


def blocked(
    primitives: Sequence[Primitive],
    groups: Sequence[Group],
    origins: Array,
    directions: Array,
    length: Array,
    own: Array,
) -> Array:
    """Whether something stands between each origin and a light.

    Parameters
    ----------
    primitives, groups
        The solids, and the groups of those that cast shadows.
    origins, directions
        (3, N) points on surfaces and (3, N) unit vectors towards the light.
    length
        (N,) distances to the light in metres.
    own
        (N,) index of the solid that each origin lies on: a convex solid does not shade its own lit side.

    Returns
    -------
    (N,) bool.
    """
    result = np.zeros(origins.shape[1], bool)
    squares = np.einsum("cn,cn->n", origins, origins), np.einsum("cn,cn->n", origins, directions)
    rays = (origins, directions, length, *squares)
    for group in groups:
        chosen = _rays_near(group, rays)
        if chosen.size == 0:
            continue
        some = tuple(array.take(chosen, axis=-1) for array in rays)
        own_some, dark = own.take(chosen), result.take(chosen)
        for k in group.members:
            near = _rays_near(primitives[k], some)
            near = near[(own_some[near] != k) & ~dark[near]]
            if near.size:
                o, d, reach = (array.take(near, axis=-1) for array in some[:3])
                dark[near] = hit_distance(primitives[k], o, d) < reach
        result[chosen] = dark
    return result


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: position (3,), rotation (3, 3) with columns right, up, back, and focal length over the shorter
    image side."""

    position: Array
    rotation: Array
    focal: float

    def rays(self, shape: tuple[int, int], pixels: Array | None = None, shift: tuple[float, float] = (0, 0)) -> Array:
        """Unit directions in the camera's own coordinates.

        Parameters
        ----------
        shape
            (H, W) of the image.
        pixels
            (N,) flat pixel indices; all of them, row by row, when left out.
        shift
            Offset (down, right) from the pixel centres, in pixels.

        Returns
        -------
        (3, N) float32; the third row is negative, since the camera looks along -z.
        """
        height, width = shape
        flat = np.arange(height * width) if pixels is None else pixels
        focal = self.focal * min(shape)
        down = (flat // width + 0.5 + shift[0] - height / 2) / focal
        right = (flat % width + 0.5 + shift[1] - width / 2) / focal
        length = np.sqrt(right * right + down * down + 1)
        return (np.stack([right, -down, -np.ones_like(right)]) / length).astype(np.float32)


def look_at(position: Array, target: Array, focal: float, roll: float = 0.0) -> Camera:
    """A camera at a position that looks at a target, turned by ``roll`` radians around the optical axis."""
    back = (position - target) / np.linalg.norm(position - target)
    right = np.array([back[2], 0, -back[0]]) / np.hypot(back[0], back[2])
    up = np.cross(back, right)
    turned = np.cos(roll) * right + np.sin(roll) * up
    return Camera(position, np.stack([turned, np.cross(back, turned), back], axis=1), focal)


def surface_coordinates(primitive: Primitive, points: Array, normals: Array) -> tuple[Array, Array]:
    """Texture coordinates (u, v) in metres of local surface points (3, N) with local normals (3, N)."""
    x, y, z = points
    if primitive.kind == "plane":
        return x, z
    if primitive.kind == "box":
        u, v = np.where(np.abs(normals[0]) > 0.5, z, x), np.where(np.abs(normals[1]) > 0.5, z, y)
        # the grain of wood runs along u, so tall pieces swap the two
        return (v, u) if primitive.half[1] > 2.1 * max(primitive.half[0], primitive.half[2]) else (u, v)
    flat = np.abs(normals[1]) > 0.999 if primitive.kind == "cylinder" else np.zeros(x.shape, bool)
    around = np.arctan2(x, z) * np.asarray(primitive.half[0], x.dtype)
    return np.where(flat, x, around), np.where(flat, z, y)
