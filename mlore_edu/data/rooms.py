"""A Dollhouse room while it is being furnished: what stands where, what is free, what the camera sees (chapter 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data.furniture import Seat, Thing, placed, turn_y
from mlore_edu.data.lighting import Light
from mlore_edu.data.raycasting import Camera


@dataclass(frozen=True)
class Rectangle:
    """A turned rectangle on the floor: middle (x, z), half sizes, angle."""

    x: float
    z: float
    half_x: float
    half_z: float
    angle: float

    def corners(self) -> list[tuple[float, float]]:
        """The four corners (x, z)."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        signed = ((i * self.half_x, j * self.half_z) for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1)))
        return [(self.x + c * u + s * v, self.z - s * u + c * v) for u, v in signed]


def overlap(a: Rectangle, b: Rectangle) -> bool:
    """Whether two rectangles meet: they do not if their shadows on one of the four side directions are apart."""
    reach = math.hypot(a.half_x, a.half_z) + math.hypot(b.half_x, b.half_z)
    if math.hypot(a.x - b.x, a.z - b.z) > reach:
        return False
    first, second = a.corners(), b.corners()
    for angle in (a.angle, a.angle + math.pi / 2, b.angle, b.angle + math.pi / 2):
        c, s = math.cos(angle), math.sin(angle)
        p, q = [c * x - s * z for x, z in first], [c * x - s * z for x, z in second]
        if max(p) < min(q) or max(q) < min(p):
            return False
    return True


@dataclass
class Interior:
    """A furnished room: its size, camera and lights, and its objects with everything in room coordinates."""

    width: float
    height: float
    depth: float
    camera: Camera
    lights: list[Light] = field(default_factory=list)
    ambient: Array = field(default_factory=lambda: np.ones(3))
    objects: list[Thing] = field(default_factory=list)
    seats: list[tuple[Seat, Thing]] = field(default_factory=list)
    taken: list[Rectangle] = field(default_factory=list)
    walls: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, thing: Thing, x: float, z: float, angle: float = 0.0, y: float = 0.0, take: bool = True) -> Thing:
        """Put a thing into the room; its footprint is taken from now on."""
        here, turn = np.array([x, y, z]), turn_y(angle)
        seats = tuple(Seat(turn @ seat.point + here, seat.facing + angle, seat.reach) for seat in thing.seats)
        thing = replace(thing, solids=placed(thing.solids, here, turn), seats=seats)
        self.objects.append(thing)
        self.seats += [(seat, thing) for seat in seats]
        if take:
            self.taken.append(Rectangle(x, z, *thing.footprint, angle))
        return thing

    def free(self, rectangle: Rectangle, ignore: Rectangle | None = None) -> bool:
        """Whether a rectangle lies in the room and on nothing that is taken."""
        for x, z in rectangle.corners():
            if abs(x) > self.width / 2 or not 0 < z < self.depth:
                return False
        return not any(overlap(rectangle, other) for other in self.taken if other is not ignore)

    def in_view(self, x: float, z: float, nearest: float, margin: float = 1.0) -> bool:
        """Whether a point on the floor is at least ``nearest`` metres away and between the picture's sides."""
        eye, axes = self.camera.position, self.camera.rotation
        away_x, away_z = x - float(eye[0]), z - float(eye[2])
        right = away_x * float(axes[0, 0]) + away_z * float(axes[2, 0])
        ahead = -away_x * float(axes[0, 2]) - away_z * float(axes[2, 2])
        return ahead > nearest and abs(right) < margin * 0.5 / self.camera.focal * ahead
