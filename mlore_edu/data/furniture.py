"""What stands in a Dollhouse room: furniture of boxes, cylinders and ellipsoids (chapter 1).

Every builder gives a :class:`Thing` in its own coordinates: the origin on the floor under its middle, y up, the front
towards +z. :func:`placed` puts it into the room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data.materials import Material
from mlore_edu.data.raycasting import Kind, Primitive

Rng = np.random.Generator
Paint = Callable[[str], Material]
"""Draws a material of a family: :func:`mlore_edu.data.materials.choose_material` with a scene's settings filled in."""

_STRAIGHT = np.eye(3)
_STRAIGHT.setflags(write=False)


@dataclass(frozen=True)
class Solid:
    """A primitive, its material, the human part it belongs to (0: none), and whether it is large enough to shade."""

    primitive: Primitive
    material: Material
    part: int = 0
    shades: bool = True


@dataclass(frozen=True)
class Seat:
    """Where someone can sit: the seat's point (3,), the direction they face, and how far ahead the seat's edge is."""

    point: Array
    facing: float
    reach: float


@dataclass(frozen=True)
class Thing:
    """One object.

    Parameters
    ----------
    class_name
        One of ``DOLLHOUSE_CLASSES``.
    solids
        What it is built of.
    footprint
        Half width (x) and half depth (z) in metres of the floor it covers.
    height
        Height of its top in metres.
    seats
        Where people can sit.
    surface
        Whether small things may stand on top.
    """

    class_name: str
    solids: tuple[Solid, ...]
    footprint: tuple[float, float]
    height: float
    seats: tuple[Seat, ...] = ()
    surface: bool = False


def turn_y(angle: float) -> Array:
    """Rotation (3, 3) around the vertical; a positive angle turns +z towards +x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def placed(solids: tuple[Solid, ...], position: Array, rotation: Array) -> tuple[Solid, ...]:
    """The same solids, turned and then moved."""
    if not solids:
        return ()
    centres = np.stack([s.primitive.centre for s in solids]) @ rotation.T + position
    rotations = rotation @ np.stack([s.primitive.rotation for s in solids])
    return tuple(
        Solid(Primitive(s.primitive.kind, centre, turned, s.primitive.half), s.material, s.part, s.shades)
        for s, centre, turned in zip(solids, centres, rotations, strict=True)
    )


def solid(kind: Kind, centre: tuple[float, ...], half: tuple[float, ...], material: Material, part: int = 0) -> Solid:
    """A solid whose axes are those of its thing."""
    return Solid(Primitive(kind, np.array(centre, float), _STRAIGHT, np.array(half, float)), material, part)


def upright(x: float, z: float, low: float, high: float, radius: float, material: Material) -> Solid:
    """A standing cylinder from height ``low`` to ``high``."""
    return solid("cylinder", (x, (low + high) / 2, z), (radius, (high - low) / 2, radius), material)


def rod(kind: Kind, start: Array, end: Array, radius: float, material: Material, part: int = 0) -> Solid:
    """A cylinder or capsule whose axis runs from ``start`` to ``end`` (3,)."""
    axis = end - start
    length = float(np.sqrt(axis @ axis))
    y = axis / length
    a, b, c = y
    # any two directions square to the axis will do; this branch keeps the divisor away from 0
    if abs(a) < 0.9:
        norm = np.hypot(b, c)
        x, z = (norm, -a * b / norm, -a * c / norm), (0.0, -c / norm, b / norm)
    else:
        norm = np.hypot(a, c)
        x, z = (c / norm, 0.0, -a / norm), (a * b / norm, -norm, b * c / norm)
    rotation = np.array([x, y, z]).T
    return Solid(Primitive(kind, (start + end) / 2, rotation, np.array([radius, length / 2, radius])), material, part)


def _legs(width: float, depth: float, height: float, thick: float, round_legs: bool, wood: Material) -> list[Solid]:
    corners = [(sx * (width - thick), sz * (depth - thick)) for sx in (-1, 1) for sz in (-1, 1)]
    if round_legs:
        return [upright(x, z, 0, height, thick, wood) for x, z in corners]
    return [solid("box", (x, height / 2, z), (thick, height / 2, thick), wood) for x, z in corners]


def table(rng: Rng, paint: Paint) -> Thing:
    """A dining table (or a low one): square or round top, four legs or a column."""
    low = rng.random() < 0.3
    height = rng.uniform(0.38, 0.48) if low else rng.uniform(0.7, 0.76)
    width, depth = rng.uniform(0.5, 0.8), rng.uniform(0.36, 0.46)
    wood, thick = paint("wood"), rng.uniform(0.018, 0.03)
    other = paint("metal") if rng.random() < 0.25 else wood
    if rng.random() < 0.35:
        radius = rng.uniform(0.42, 0.58)
        top = upright(0, 0, height - 2 * thick, height, radius, wood)
        foot = [upright(0, 0, 0.03, height - 2 * thick, 0.05, other), upright(0, 0, 0, 0.03, 0.6 * radius, other)]
        return Thing("table", (top, *foot), (radius, radius), height, surface=True)
    top = solid("box", (0, height - thick, 0), (width, thick, depth), wood)
    legs = _legs(width - 0.02, depth - 0.02, height - 2 * thick, rng.uniform(0.022, 0.04), rng.random() < 0.4, other)
    if rng.random() < 0.4:
        legs.append(solid("box", (0, height - 0.09, 0), (width - 0.06, 0.05, depth - 0.06), other))
    return Thing("table", (top, *legs), (width, depth), height, surface=True)


def chair(rng: Rng, paint: Paint) -> Thing:
    """A chair with a solid, slatted or upholstered back."""
    seat, half, top = rng.uniform(0.43, 0.47), rng.uniform(0.2, 0.23), rng.uniform(0.82, 0.98)
    wood = paint("wood") if rng.random() < 0.7 else paint("paint")
    cushion = paint("fabric") if rng.random() < 0.6 else wood
    solids = _legs(half, half, seat - 0.05, 0.02, rng.random() < 0.5, wood)
    solids.append(solid("box", (0, seat - 0.025, 0), (half, 0.025, half), cushion))
    back = -half + 0.02
    if rng.random() < 0.5:
        solids.append(solid("box", (0, (seat + top) / 2 + 0.06, back), (half, (top - seat) / 2 - 0.06, 0.018), cushion))
    else:
        solids += [
            solid("box", (0, y, back), (half, 0.035, 0.013), wood) for y in np.linspace(seat + 0.16, top - 0.04, 3)
        ]
    solids += [
        solid("box", (sx * (half - 0.02), (seat + top) / 2, back), (0.02, (top - seat) / 2, 0.02), wood)
        for sx in (-1, 1)
    ]
    return Thing("chair", tuple(solids), (half, half), top, seats=(Seat(np.array([0, seat, 0]), 0.0, half),))


def sofa(rng: Rng, paint: Paint) -> Thing:
    """An armchair or a sofa for two or three, with loose cushions."""
    places = int(rng.integers(1, 4))
    half = 0.3 * places + 0.14
    fabric, cushion = paint("fabric"), paint("fabric")
    seat_material = fabric if rng.random() < 0.6 else paint("fabric")
    seat, back, arm = 0.42, rng.uniform(0.72, 0.86), rng.uniform(0.54, 0.62)
    solids = [
        solid("box", (0, 0.17, 0), (half, 0.11, 0.42), fabric),
        solid("box", (0, back / 2 + 0.03, -0.33), (half - 0.1, back / 2 - 0.03, 0.1), fabric),
        *_legs(half - 0.04, 0.38, 0.06, 0.025, True, paint("wood")),
    ]
    for sx in (-1, 1):
        x = sx * (half - 0.07)
        solids.append(solid("box", (x, arm / 2 + 0.03, 0), (0.07, arm / 2 - 0.03, 0.43), fabric))
        solids.append(rod("capsule", np.array([x, arm, -0.36]), np.array([x, arm, 0.36]), 0.075, fabric))
    seats = []
    for place in range(places):
        x = (place - (places - 1) / 2) * 0.6
        solids.append(solid("box", (x, seat - 0.07, 0.09), (0.295, 0.07, 0.33), seat_material))
        seats.append(Seat(np.array([x, seat, 0.06]), 0.0, 0.36))
    for sx in (-1, 1)[: int(rng.integers(0, 3))]:
        pillow = solid("ellipsoid", (0, 0, 0), (0.2, 0.2, 0.08), cushion)
        solids += placed((pillow,), np.array([sx * (half - 0.34), seat + 0.17, -0.15]), turn_y(-sx * 0.35))
    return Thing("sofa", tuple(solids), (half, 0.44), back, seats=tuple(seats))


def bed(rng: Rng, paint: Paint) -> Thing:
    """A bed with headboard (at -z), mattress, blanket and pillows."""
    half, length = (0.48, 1.0) if rng.random() < 0.5 else (0.75, 1.02)
    wood, blanket, sheet = paint("wood"), paint("fabric"), paint("white")
    top = rng.uniform(0.42, 0.5)
    solids = [
        solid("box", (0, 0.2, 0), (half, 0.1, length), wood),
        solid("box", (0, rng.uniform(0.4, 0.55), -length + 0.02), (half + 0.02, 0.4, 0.035), wood),
        solid("box", (0, (0.3 + top) / 2, 0.02), (half - 0.03, (top - 0.3) / 2, length - 0.05), sheet),
        solid("box", (0, (0.3 + top) / 2, 0.28), (half + 0.005, (top - 0.28) / 2, length - 0.29), blanket),
        *_legs(half, length, 0.1, 0.04, False, wood),
    ]
    for x in (0.0,) if half < 0.6 else (-0.36, 0.36):
        solids.append(solid("ellipsoid", (x, top + 0.05, -length + 0.32), (0.3, 0.1, 0.2), sheet))
    # people sit on the bed's sides and look away from it
    seats = tuple(Seat(np.array([sx * (half - 0.2), top, 0.3]), sx * np.pi / 2, 0.205) for sx in (-1, 1))
    return Thing("bed", tuple(solids), (half + 0.02, length + 0.02), 0.9, seats=seats)


def cabinet(rng: Rng, paint: Paint) -> Thing:
    """A sideboard, a wardrobe or an open bookshelf."""
    wood = paint("wood") if rng.random() < 0.5 else paint("paint")
    kind = rng.integers(3)
    if kind == 0:
        return _bookshelf(rng, wood, paint)
    half, depth = rng.uniform(0.4, 0.75), rng.uniform(0.2, 0.26)
    height = rng.uniform(0.7, 0.95) if kind == 1 else rng.uniform(1.6, 2.0)
    door = wood if rng.random() < 0.5 else paint("paint")
    knob, columns = paint("metal"), 2 if half < 0.6 else 3
    rows = 2 if kind == 1 and rng.random() < 0.5 else 1
    solids = [
        solid("box", (0, height / 2 + 0.03, 0), (half, height / 2 - 0.03, depth), wood),
        solid("box", (0, 0.03, 0), (half - 0.04, 0.03, depth - 0.04), wood),
    ]
    step, rise = 2 * half / columns, (height - 0.1) / rows
    for i in range(columns):
        for j in range(rows):
            x, y = -half + (i + 0.5) * step, 0.08 + (j + 0.5) * rise
            solids.append(solid("box", (x, y, depth), (step / 2 - 0.012, rise / 2 - 0.012, 0.012), door))
            handle = x + (0.36 * step if i % 2 == 0 else -0.36 * step)
            ball = solid("ellipsoid", (handle, y, depth + 0.025), (0.018, 0.018, 0.018), knob)
            solids.append(replace(ball, shades=False))
    return Thing("cabinet", tuple(solids), (half, depth + 0.04), height, surface=height < 1.2)


def _bookshelf(rng: Rng, wood: Material, paint: Paint) -> Thing:
    half, height, depth, boards = rng.uniform(0.4, 0.6), rng.uniform(1.1, 1.9), 0.15, int(rng.integers(3, 5))
    solids = [solid("box", (sx * half, height / 2, 0), (0.015, height / 2, depth), wood) for sx in (-1, 1)]
    solids.append(solid("box", (0, height / 2, -depth + 0.01), (half, height / 2, 0.008), wood))
    covers = [paint("art") for _ in range(5)]
    shelves = np.linspace(0.06, height - 0.015, boards + 1)
    solids += [solid("box", (0, y, 0), (half, 0.015, depth), wood) for y in shelves]
    for low, high in pairwise(shelves):
        x = -half + 0.03
        while x < half - 0.15:  # a row of books is a few blocks of one colour each
            wide, tall = (
                min(rng.uniform(0.05, 0.14), (half - 0.03 - x) / 2),
                (high - low - 0.03) * rng.uniform(0.55, 0.9),
            )
            if rng.random() < 0.75:
                book = solid(
                    "box", (x + wide, low + 0.015 + tall / 2, 0), (wide, tall / 2, 0.1), covers[rng.integers(5)]
                )
                solids.append(replace(book, shades=False))
            x += 2 * wide + 0.01
    return Thing("cabinet", tuple(solids), (half + 0.02, depth), height)


def lamp(rng: Rng, paint: Paint, standing: bool = True) -> Thing:
    """A floor lamp, or a table lamp; its shade glows."""
    metal, shade = paint("metal"), paint("shade")
    shade = replace(shade, glow=float(rng.uniform(0.35, 1.1)) if rng.random() < 0.7 else 0.0)
    height, radius = (rng.uniform(1.35, 1.7), rng.uniform(0.17, 0.24)) if standing else (0.46, rng.uniform(0.12, 0.15))
    tall = 0.28 if standing else 0.2
    solids = [
        upright(0, 0, 0, 0.025, 0.75 * radius, metal),
        upright(0, 0, 0.025, height - tall / 2, 0.014, metal),
    ]
    if rng.random() < 0.3:
        solids.append(solid("ellipsoid", (0, height - tall / 2, 0), (0.8 * radius, 0.8 * radius, 0.8 * radius), shade))
    else:
        solids.append(upright(0, 0, height - tall, height, radius, shade))
    return Thing("lamp", tuple(solids), (radius, radius), height)


def hanging_lamp(rng: Rng, paint: Paint, ceiling: float) -> Thing:
    """A lamp on a cord from the ceiling."""
    drop, radius = rng.uniform(0.45, 0.75), rng.uniform(0.14, 0.24)
    shade = replace(paint("shade"), glow=float(rng.uniform(0.5, 1.2)))
    middle = ceiling - drop
    body = solid("ellipsoid", (0, middle, 0), (radius, radius * rng.uniform(0.55, 1), radius), shade)
    cord = upright(0, 0, middle, ceiling, 0.008, paint("metal"))
    return Thing("lamp", (body, cord), (0.0, 0.0), ceiling)


def plant(rng: Rng, paint: Paint, size: float = 1.0) -> Thing:
    """A plant in a pot: a crown of leaves, a bush, or a cactus."""
    pot, leaf = paint("pot"), paint("leaf")
    radius, tall = rng.uniform(0.12, 0.17) * size, rng.uniform(0.2, 0.3) * size
    solids = [upright(0, 0, 0, tall, radius, pot), upright(0, 0, tall - 0.03, tall, 1.1 * radius, pot)]
    kind, top = rng.integers(3), rng.uniform(0.7, 1.15) * size
    if kind == 0:
        for angle in np.arange(7) * 2.4 + rng.uniform(0, 6):
            tilt = rng.uniform(0.25, 0.8)
            length = (top - tall) * rng.uniform(0.35, 0.5)
            base = solid("ellipsoid", (0, length, 0), (0.28 * length, length, 0.06 * length), leaf)
            lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
            solids += placed((base,), np.array([0, tall - 0.02, 0]), turn_y(angle) @ lean)
    elif kind == 1:
        solids.append(upright(0, 0, tall, 0.7 * top, 0.02 * size, paint("wood")))
        for _ in range(5):
            x, z = rng.uniform(-0.14, 0.14, 2) * size
            y, r = rng.uniform(0.62, 0.95) * top, rng.uniform(0.13, 0.2) * size
            solids.append(solid("ellipsoid", (x, y, z), (r, 0.85 * r, r), leaf))
    else:
        solids.append(rod("capsule", np.array([0, tall, 0]), np.array([0, top - 0.1, 0]), 0.075 * size, leaf))
        for sx in (-1, 1):
            y = tall + rng.uniform(0.35, 0.6) * (top - tall)
            elbow, tip = np.array([sx * 0.16 * size, y, 0]), np.array([sx * 0.16 * size, y + 0.22 * size, 0])
            solids += [rod("capsule", np.array([0, y, 0]), elbow, 0.05 * size, leaf)]
            solids += [rod("capsule", elbow, tip, 0.05 * size, leaf)]
    reach = 0.3 * size if kind < 2 else 0.22 * size
    return Thing("plant", tuple(solids), (reach, reach), top)


def ball(rng: Rng, paint: Paint, radius: float) -> Thing:
    """A ball, turned at random so that its pattern shows."""
    sphere = solid("ellipsoid", (0, 0, 0), (radius, radius, radius), paint("ball"))
    tilt = rng.uniform(-0.9, 0.9)
    roll = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    turned = placed((sphere,), np.array([0, radius, 0]), turn_y(rng.uniform(0, 6.3)) @ roll)
    return Thing("ball", turned, (radius, radius), 2 * radius)


def rug(rng: Rng, paint: Paint) -> Thing:
    """A thin rug, square or round."""
    half, depth, fabric = rng.uniform(0.8, 1.2), rng.uniform(0.6, 0.9), paint("rug")
    if rng.random() < 0.35:
        return Thing("rug", (upright(0, 0, 0, 0.012, depth, fabric),), (depth, depth), 0.012)
    return Thing("rug", (solid("box", (0, 0.006, 0), (half, 0.006, depth), fabric),), (half, depth), 0.012)


def picture(rng: Rng, paint: Paint) -> Thing:
    """A framed picture that hangs with its back at z = 0, its middle at the origin: a view, or discs and bars."""
    half, tall = rng.uniform(0.2, 0.5), rng.uniform(0.18, 0.4)
    view = rng.random() < 0.4
    canvas = replace(paint("sky" if view else "art"), texture="horizon" if view else "plain", scale=1.2)
    if view:
        canvas = replace(canvas, second=paint("ground").colour)
    solids = [
        solid(
            "box", (0, 0, 0.012), (half + 0.03, tall + 0.03, 0.012), paint("metal" if rng.random() < 0.5 else "wood")
        ),
        solid("box", (0, 0, 0.014), (half, tall, 0.014), canvas),
    ]
    for depth in (0.016, 0.018, 0.02)[: 0 if view else int(rng.integers(1, 4))]:
        x, y, r = rng.uniform(-0.5, 0.5) * half, rng.uniform(-0.5, 0.5) * tall, rng.uniform(0.25, 0.5)
        if rng.random() < 0.5:
            back, front = np.array([x, y, 0]), np.array([x, y, depth * 2])
            solids.append(rod("cylinder", back, front, r * min(half, tall), paint("art")))
        else:
            solids.append(solid("box", (x, y, depth), (r * half, r * tall * 0.6, depth), paint("art")))
    return Thing("picture", tuple(solids), (half + 0.03, 0.04), tall + 0.03)


def window(rng: Rng, paint: Paint) -> Thing:
    """A window with its back at z = 0: a bright view behind a frame with bars and a sill."""
    half, tall, bar = rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.6), paint("white")
    view = replace(paint("sky"), texture="horizon", scale=1.3, second=paint("ground").colour, glow=0.9)
    solids = [solid("box", (0, 0, 0.005), (half, tall, 0.005), view)]
    for s in (-1, 1):
        solids.append(solid("box", (s * half, 0, 0.025), (0.035, tall + 0.035, 0.025), bar))
        solids.append(solid("box", (0, s * tall, 0.025), (half + 0.035, 0.035, 0.025), bar))
    solids.append(solid("box", (0, 0, 0.02), (0.018, tall, 0.02), bar))
    if rng.random() < 0.6:
        solids.append(solid("box", (0, 0.1 * tall, 0.018), (half, 0.015, 0.018), bar))
    solids.append(solid("box", (0, -tall - 0.04, 0.06), (half + 0.08, 0.015, 0.06), bar))
    return Thing("window", tuple(solids), (half + 0.08, 0.12), tall + 0.06)
