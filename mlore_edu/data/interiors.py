"""Furnishing a Dollhouse room: who and what stands where, the light, and the camera (chapter 1).

The room's floor is y = 0; x runs from -width / 2 to width / 2, z from 0 (the far wall) to ``depth``. The camera stands
near the front and looks towards the far wall or a corner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data import furniture, people
from mlore_edu.data.furniture import Paint, Rng, Solid, Thing, placed, turn_y
from mlore_edu.data.lighting import Light
from mlore_edu.data.materials import choose_material
from mlore_edu.data.raycasting import Primitive, look_at
from mlore_edu.data.rooms import Interior, Rectangle


@dataclass(frozen=True)
class Difficulty:
    """How much varies from scene to scene.

    Parameters
    ----------
    name
        Key of :data:`DIFFICULTIES`.
    classes
        Classes of objects that may appear (walls, floor and ceiling always may).
    furniture, people, clutter
        Smallest and largest number of large pieces, of people, and of small things and pictures.
    near
        (nearest, farthest) distance in metres at which people stand.
    variety
        Fraction of all colours and patterns in use, 0 to 1.
    mixing
        Probability that a surface takes the colours of another family, so that colour does not give the class away.
    texture
        Strength of textures, 0 to 1.
    light, camera
        How much the light and the viewpoint vary, 0 to 1.
    noise
        Standard deviation of the sensor's noise, in the image's 256 levels.
    """

    name: str
    classes: frozenset[str]
    furniture: tuple[int, int]
    people: tuple[int, int]
    clutter: tuple[int, int]
    near: tuple[float, float]
    variety: float
    mixing: float
    texture: float
    light: float
    camera: float
    noise: float


_SMALL = frozenset({"table", "sofa", "cabinet", "ball", "person"})
_ALL = _SMALL | {"window", "picture", "rug", "chair", "bed", "lamp", "plant"}
EASY = Difficulty("easy", _SMALL, (1, 1), (1, 1), (1, 1), (1.7, 2.3), 0.15, 0.0, 0.3, 0.25, 0.2, 2.0)
MEDIUM = Difficulty(
    "medium", _ALL - {"window", "bed"}, (1, 3), (1, 2), (2, 4), (1.9, 3.4), 0.5, 0.15, 0.6, 0.6, 0.6, 3.0
)
FULL = Difficulty("full", _ALL, (2, 4), (0, 3), (3, 7), (1.9, 4.2), 1.0, 0.35, 1.0, 1.0, 1.0, 4.0)
DIFFICULTIES = {level.name: level for level in (EASY, MEDIUM, FULL)}
"""The three settings by name: from one large person in a plain room to everything."""


def compose(rng: Rng, level: Difficulty) -> Interior:
    """Furnish a room at random: large pieces along the walls and in the middle, people, small things, lights."""

    def paint(family: str) -> Any:
        return choose_material(rng, family, level.variety, level.mixing, level.texture)

    interior = _empty_room(rng, level, paint)
    _add_furniture(rng, level, interior, paint)
    _add_people(rng, level, interior, paint)
    _add_clutter(rng, level, interior, paint)
    _add_lights(rng, level, interior)
    return interior


def _empty_room(rng: Rng, level: Difficulty, paint: Paint) -> Interior:
    """Six planes and a camera that looks at the far half of the room."""
    vary = level.camera
    width, depth, height = (
        4.4 + vary * rng.uniform(-0.8, 1.2),
        5.2 + vary * rng.uniform(-0.9, 0.9),
        rng.uniform(2.4, 2.9),
    )
    x = vary * rng.uniform(-1, 1) * (width / 2 - 0.4)
    eye = np.array([x, 1.45 + vary * rng.uniform(-0.45, 0.6), depth - 0.25 - vary * rng.uniform(0, 0.5)])
    target = np.array([vary * rng.uniform(-1, 1) * 0.22 * width - 0.25 * x, rng.uniform(0.75, 1.0), 0.32 * depth])
    focal = 0.95 + vary * rng.uniform(-0.18, 0.22)
    camera = look_at(eye, target, focal, vary * rng.normal() * 0.02)
    interior = Interior(width, height, depth, camera)
    wall = paint("wall")
    accent = paint("wall") if rng.random() < 0.4 * level.variety else wall
    right, up, out = np.eye(3)
    # columns: along the surface, into the room, and the texture's v axis (up on a wall)
    faces = (
        ("wall", np.zeros(3), (right, out, up), accent),
        ("wall", np.array([0, 0, depth]), (-right, -out, up), wall),
        ("wall", np.array([-width / 2, 0, 0]), (-out, right, up), wall),
        ("wall", np.array([width / 2, 0, 0]), (out, -right, up), wall),
        ("floor", np.zeros(3), (right, up, -out), paint("floor")),
        ("ceiling", np.array([0, height, 0]), (right, -up, out), paint("ceiling")),
    )
    for name, point, axes, material in faces:
        plane = Primitive("plane", point, np.stack(axes, axis=1), np.ones(3))
        interior.objects.append(Thing(name, (Solid(plane, material),), (0, 0), 0))
    interior.taken.append(Rectangle(eye[0], eye[2], 0.9, 0.9, 0))
    return interior


def _against_wall(rng: Rng, interior: Interior, thing: Thing) -> bool:
    """Stand a thing with its back to the far, left or right wall, where there is room and the camera sees it."""
    for _ in range(12):
        side = rng.choice(3, p=(0.5, 0.25, 0.25))
        gap, half_width = thing.footprint[1] + 0.02, interior.width / 2
        along = rng.uniform(-1, 1) * max(half_width - thing.footprint[0], 0)
        z = rng.uniform(thing.footprint[0], max(0.75 * interior.depth, thing.footprint[0] + 0.1))
        x, z, angle = (
            (along, gap, 0.0),
            (-half_width + gap, z, np.pi / 2),
            (half_width - gap, z, -np.pi / 2),
        )[side]
        here = Rectangle(x, z, *thing.footprint, angle)
        if interior.in_view(x, z, 1.7, 0.95) and interior.free(here):
            interior.add(thing, x, z, angle)
            if thing.height > 1.1:
                interior.walls.append((side, -z if side == 1 else z if side == 2 else x, thing.footprint[0]))
            return True
    return False


def _on_floor(
    rng: Rng, interior: Interior, thing: Thing, nearest: float, farthest: float = 99.0
) -> tuple[float, float] | None:
    """A free place on the floor that the camera sees between two distances in metres, or none."""
    eye = interior.camera.position
    for _ in range(40):
        x, z = rng.uniform(-interior.width / 2, interior.width / 2), rng.uniform(0, interior.depth)
        half = max(thing.footprint)
        if (x - eye[0]) ** 2 + (z - eye[2]) ** 2 > farthest * farthest:
            continue
        if interior.in_view(x, z, nearest, 0.85) and interior.free(Rectangle(x, z, half, half, 0)):
            return x, z
    return None


def _add_furniture(rng: Rng, level: Difficulty, interior: Interior, paint: Paint) -> None:
    large = [name for name in ("sofa", "bed", "cabinet", "table", "chair") if name in level.classes]
    weights = np.array([{"sofa": 3, "bed": 1.5, "cabinet": 2.5, "table": 3, "chair": 1}[name] for name in large])
    count = min(int(rng.integers(level.furniture[0], level.furniture[1] + 1)), len(large))
    for name in rng.choice(large, count, replace=False, p=weights / weights.sum()):
        if name == "table":
            _table_group(rng, level, interior, paint)
        elif name == "chair":
            chair = furniture.chair(rng, paint)
            place = _on_floor(rng, interior, chair, 2.0)
            if place:
                interior.add(chair, *place, rng.uniform(-1.5, 1.5))
        else:
            build = {"sofa": furniture.sofa, "bed": furniture.bed, "cabinet": furniture.cabinet}[name]
            _against_wall(rng, interior, build(rng, paint))
    if "rug" in level.classes and rng.random() < 0.5:
        rug = furniture.rug(rng, paint)
        x, z = rng.uniform(-0.5, 0.5), rng.uniform(0.35, 0.5) * interior.depth
        if abs(x) + max(rug.footprint) < interior.width / 2:
            interior.add(rug, x, z, rng.choice((0.0, np.pi / 2)) + rng.normal() * 0.08, take=False)


def _table_group(rng: Rng, level: Difficulty, interior: Interior, paint: Paint) -> None:
    """A table with chairs on its sides, turned towards it."""
    table = furniture.table(rng, paint)
    place = _on_floor(rng, interior, replace(table, footprint=(max(table.footprint) + 0.1,) * 2), 2.2)
    if place is None:
        return
    angle = level.camera * (rng.choice((0.0, np.pi / 2)) + rng.normal() * 0.15)
    interior.add(table, *place, angle)
    own = interior.taken[-1]
    if "chair" not in level.classes or table.height < 0.6:
        return
    chair = furniture.chair(rng, paint)
    for side in rng.permutation(4)[: int(rng.integers(1, 5))]:
        direction = angle + side * np.pi / 2
        reach = table.footprint[1 - side % 2] + rng.uniform(0.18, 0.34)
        x, z = place[0] + np.sin(direction) * reach, place[1] + np.cos(direction) * reach
        here = Rectangle(x, z, chair.footprint[0], chair.footprint[1], direction + np.pi)
        if interior.free(here, ignore=own) and interior.in_view(x, z, 1.5):
            interior.add(chair, x, z, direction + np.pi + rng.normal() * 0.08)


def _add_people(rng: Rng, level: Difficulty, interior: Interior, paint: Paint) -> None:
    count = int(rng.integers(level.people[0], level.people[1] + 1))
    for _ in range(count):
        looks = people.choose_looks(rng, paint)
        height = 1.7 + level.camera * rng.choice((rng.uniform(-0.15, 0.15), rng.uniform(-0.6, -0.3)), p=(0.8, 0.2))
        for _ in range(6):
            sits = len(interior.seats) > 0 and rng.random() < 0.45 * min(1.0, 2 * level.camera)
            place = _seat_person if sits else _stand_person
            if place(rng, level, interior, looks, height):
                break


def _stand_person(rng: Rng, level: Difficulty, interior: Interior, looks: people.Looks, height: float) -> bool:
    names = people.POSES if level.variety > 0.3 else people.POSES[:3]
    thing = people.person(rng, looks, people.choose_pose(rng, str(rng.choice(names))), height)
    place = _on_floor(rng, interior, thing, *level.near)
    if place is None:
        return False
    to_camera = interior.camera.position - (place[0], 0, place[1])
    angle = np.arctan2(to_camera[0], to_camera[2]) + rng.normal() * (0.3 + 0.6 * level.camera)
    standing = placed(thing.solids, np.array([place[0], 0, place[1]]), turn_y(angle))
    if collides(standing, interior, None):
        return False
    interior.add(thing, *place, angle)
    return True


def _seat_person(rng: Rng, level: Difficulty, interior: Interior, looks: people.Looks, height: float) -> bool:
    seat, owner = interior.seats[rng.integers(len(interior.seats))]
    size = height / 1.72
    ahead = np.array([np.sin(seat.facing), 0, np.cos(seat.facing)])
    point = seat.point + ahead * max(0.0, seat.reach + 0.08 - 0.43 * size)
    at_table = owner.class_name == "chair" and rng.random() < 0.5
    pose = people.choose_pose(rng, "sitting at a table" if at_table else "sitting")
    thing = people.person(rng, looks, people.seated(pose, height, float(point[1])), height)
    sitting = placed(thing.solids, point, turn_y(seat.facing))
    if collides(sitting, interior, owner) or not interior.in_view(point[0], point[2], 1.6, 0.85):
        return False
    interior.add(replace(thing, footprint=(0.28, 0.6)), point[0], point[2], seat.facing, point[1])
    interior.seats = [(other, thing) for other, thing in interior.seats if other is not seat]
    return True


def inside_depth(solid: Primitive, points: Array) -> Array:
    """How deep points (3, N) are in the solid's bounding box, in metres; negative outside."""
    local = np.abs(solid.rotation.T @ (points - solid.centre[:, None]))
    half = solid.half + np.array([0, solid.half[0] if solid.kind == "capsule" else 0, 0])
    depth: Array = (half[:, None] - local).min(axis=0)
    return depth


def collides(body: tuple[Solid, ...], interior: Interior, seat: Thing | None) -> bool:
    """Whether a body (all but its feet's soles) runs into an object other than its seat, or leaves the room."""
    own = [solid.primitive for solid in body]
    centre = np.stack([p.centre for p in own], axis=1)  # (3, S)
    arm = np.stack([p.rotation[:, 1] * (p.half[1] if p.kind == "capsule" else 0.0) for p in own], axis=1)
    cloud = np.concatenate([centre + step * arm for step in (-1.0, -0.5, 0.0, 0.5, 1.0)], axis=1)  # (3, 5 S)
    radius = np.tile([p.half[0] for p in own], 5)
    low, high = (cloud - radius).min(axis=1), (cloud + radius).max(axis=1)
    if low[2] < 0 or high[1] > interior.height or max(-low[0], high[0]) > interior.width / 2:
        return True
    for thing in interior.objects:
        if thing is seat or thing.class_name in ("wall", "floor", "ceiling", "rug"):
            continue
        for p in (solid.primitive for solid in thing.solids):
            r = p.bounding_radius
            near = (p.centre + r > low).all() and (p.centre - r < high).all()
            if near and (inside_depth(p, cloud) > 0.01 - radius).any():
                return True
    return False


def _add_clutter(rng: Rng, level: Difficulty, interior: Interior, paint: Paint) -> None:
    """Small things on the floor and on tables, pictures and windows on the walls."""
    small = [name for name in ("ball", "plant", "lamp", "picture", "window") if name in level.classes]
    for _ in range(int(rng.integers(level.clutter[0], level.clutter[1] + 1))):
        name = str(rng.choice(small))
        if name in ("picture", "window"):
            _hang(rng, interior, furniture.picture(rng, paint) if name == "picture" else furniture.window(rng, paint))
        elif name == "lamp" and rng.random() < 0.3:
            lamp = furniture.hanging_lamp(rng, paint, interior.height)
            x, z = rng.uniform(-0.25, 0.25) * interior.width, rng.uniform(0.25, 0.5) * interior.depth
            if not collides(placed(lamp.solids, np.array([x, 0, z]), np.eye(3)), interior, None):
                interior.add(lamp, x, z, take=False)
        elif rng.random() < 0.4 and any(thing.surface for thing in interior.objects):
            _put_on_top(rng, interior, name, paint)
        else:
            thing = _small_thing(rng, name, paint, on_top=False)
            place = _on_floor(rng, interior, thing, {"ball": 1.8, "plant": 2.0, "lamp": 2.5}[name])
            if place:
                interior.add(thing, *place, rng.uniform(0, 6.3))


def _small_thing(rng: Rng, name: str, paint: Paint, on_top: bool) -> Thing:
    if name == "ball":
        return furniture.ball(rng, paint, rng.uniform(0.06, 0.11) if on_top else rng.uniform(0.11, 0.3))
    if name == "plant":
        return furniture.plant(rng, paint, rng.uniform(0.35, 0.5) if on_top else rng.uniform(0.8, 1.2))
    return furniture.lamp(rng, paint, standing=not on_top)


def _put_on_top(rng: Rng, interior: Interior, name: str, paint: Paint) -> None:
    supports = [thing for thing in interior.objects if thing.surface]
    support = supports[rng.integers(len(supports))]
    thing = _small_thing(rng, name, paint, on_top=True)
    top = max(support.solids, key=lambda s: s.primitive.half[0] * s.primitive.half[2]).primitive
    room = np.maximum(top.half[[0, 2]] * 0.7 - thing.footprint[0], 0)
    offset = top.rotation @ np.array([rng.uniform(-1, 1) * room[0], 0, rng.uniform(-1, 1) * room[1]])
    x, _, z = top.centre + offset
    solids = placed(thing.solids, np.array([x, support.height, z]), np.eye(3))
    if not collides(solids, interior, support):
        interior.add(thing, x, z, y=support.height, take=False)


def _hang(rng: Rng, interior: Interior, thing: Thing) -> None:
    """Hang a picture or window on the far, left or right wall, beside what hangs or stands there already."""
    for _ in range(6):
        side = int(rng.choice(3, p=(0.6, 0.2, 0.2)))
        y, half = rng.uniform(1.45, 1.65), thing.footprint[0] + 0.06
        span = interior.width / 2 if side == 0 else interior.depth / 2
        along = rng.uniform(-1, 1) * (span - half)
        middle = 0 if side == 0 else span
        x, z, angle = (
            (along, 0.0, 0.0),
            (-interior.width / 2, middle - along, np.pi / 2),
            (interior.width / 2, middle + along, -np.pi / 2),
        )[side]
        key = along if side == 0 else -z if side == 1 else z
        beside = all(s != side or abs(key - other) > half + size for s, other, size in interior.walls)
        if beside and interior.in_view(x, z, 1.5, 0.9):
            interior.add(thing, x, z, angle, y, take=False)
            interior.walls.append((side, key, half))
            return


def _add_lights(rng: Rng, level: Difficulty, interior: Interior) -> None:
    """A key light from a side, a wide soft one from the ceiling, and the glow of lamps."""
    vary = level.light
    warm, cool = np.array([1.0, 0.83, 0.62]), np.array([0.78, 0.9, 1.0])
    tint = warm + (cool - warm) * (0.5 + vary * rng.uniform(-0.5, 0.5))
    x = rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 1) * (interior.width / 2 - 0.1)
    key_at = np.array([x, rng.uniform(1.7, interior.height - 0.2), rng.uniform(0.45, 1.0) * interior.depth - 0.1])
    strength = 2.9 + vary * rng.uniform(-0.9, 1.2)
    size = rng.uniform(0.15, 0.45)
    interior.lights.append(Light(key_at, np.array([size, 0, 0]), np.array([0, size, size * 0.5]), strength * tint))
    top = np.array([0, interior.height - 0.02, 0.5 * interior.depth])
    other = warm + (cool - warm) * (0.5 + vary * rng.uniform(-0.5, 0.5))
    sides = np.array([0.4 * interior.width, 0, 0]), np.array([0, 0, 0.4 * interior.depth])
    interior.lights.append(Light(top, *sides, (0.9 + vary * rng.uniform(-0.4, 0.5)) * other))
    interior.ambient = (0.28 + vary * rng.uniform(-0.1, 0.1)) * (0.5 * (tint + other))
