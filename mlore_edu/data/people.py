"""The people of Dollhouse: capsules on a skeleton of six labelled parts, in several poses (chapter 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data.furniture import Paint, Rng, Solid, Thing, placed, rod, solid
from mlore_edu.data.materials import Material
from mlore_edu.data.raycasting import Primitive

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, 7)
"""Labels of the six parts, as in ``mlore_edu.tasks.PART_NAMES``; a hand is lower arm, a foot lower leg."""


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians, left side first.

    Parameters
    ----------
    name
        For people.
    hips, knees, shoulders, elbows
        Bending forwards (a knee: backwards) of the (left, right) joint.
    spread
        (left, right) angle between upper arm and body, seen from the front.
    stance
        Angle between each leg and the middle, seen from the front.
    lean
        Forward lean of the trunk.
    """

    name: str
    hips: tuple[float, float]
    knees: tuple[float, float]
    shoulders: tuple[float, float]
    elbows: tuple[float, float]
    spread: tuple[float, float]
    stance: float = 0.06
    lean: float = 0.0


POSES = ("standing", "walking", "arms raised", "waving", "hands on hips", "reaching")
"""Poses on two feet; beside them people sit."""


def _pair(rng: Rng, low: float, high: float) -> tuple[float, float]:
    left, right = rng.uniform(low, high, 2)
    return float(left), float(right)


def choose_pose(rng: Rng, name: str) -> Pose:
    """Draw the joint angles of a named pose: one of :data:`POSES`, ``"sitting"`` or ``"sitting at a table"``."""
    if name.startswith("sitting"):
        hips = knees = (1.43, 1.43)
        if name == "sitting at a table":
            return Pose(name, hips, knees, _pair(rng, 0.55, 0.75), _pair(rng, 0.95, 1.1), (0.12, 0.12), 0.1)
        return Pose(name, hips, knees, _pair(rng, 0.3, 0.5), _pair(rng, 0.6, 0.8), _pair(rng, 0.1, 0.2), 0.12, -0.04)
    standing = Pose(
        *(name, _pair(rng, -0.06, 0.1), _pair(rng, 0.0, 0.12), _pair(rng, -0.1, 0.15), _pair(rng, 0.1, 0.5)),
        *(_pair(rng, 0.15, 0.3), rng.uniform(0.04, 0.12)),
    )
    if name == "walking":
        stride, swing = rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.6)
        return replace(
            standing, hips=(stride, -0.7 * stride), knees=(0.12, 0.6), shoulders=(-swing, swing), lean=0.06, stance=0.02
        )
    if name == "arms raised":
        return replace(standing, shoulders=_pair(rng, 2.5, 2.9), spread=_pair(rng, 0.35, 0.7))
    if name == "waving":
        return replace(standing, shoulders=(standing.shoulders[0], 2.6), spread=(0.2, 0.6), elbows=(0.3, 0.9))
    if name == "hands on hips":
        return replace(standing, shoulders=(-0.45, -0.45), spread=(0.75, 0.75), elbows=(1.3, 1.3))
    if name == "reaching":
        return replace(
            standing, shoulders=(1.2, rng.uniform(0.9, 1.5)), elbows=(0.2, 0.3), spread=(0.1, 0.1), lean=0.08
        )
    return standing


def seated(pose: Pose, height: float, seat: float) -> Pose:
    """The pose with knees bent so that the feet of someone of a height reach the floor from a seat of a height.

    Shins that are longer than the way down slant forwards; shorter ones hang straight, and the feet dangle.
    """
    size = height / 1.72
    knee_height = seat + size * (0.095 - 0.02 - 0.43 * np.cos(pose.hips[0]) * np.cos(pose.stance))
    ratio = (knee_height / size - 0.068) / (0.4 * np.cos(pose.stance))
    bend = float(pose.hips[0] - np.arccos(np.clip(ratio, 0.5, 1.0)))
    return replace(pose, knees=(bend, bend))


def _direction(forward: float, outward: float) -> Array:
    """Unit vector of a limb that hangs down (0, 0), bent forwards (+z) and outwards (+x) by angles."""
    down, ahead = -np.cos(forward), np.sin(forward)
    return np.array([-np.sin(outward) * down, np.cos(outward) * down, ahead])


@dataclass(frozen=True)
class Looks:
    """What a person wears, and the colours of skin and hair."""

    shirt: Material
    sleeves: Material
    trousers: Material
    shins: Material
    skin: Material
    hair: Material
    shoes: Material


def choose_looks(rng: Rng, paint: Paint) -> Looks:
    """Draw clothes: long or short sleeves, trousers or shorts, sometimes a suit of one colour."""
    shirt, trousers, skin = paint("clothes"), paint("trousers"), paint("skin")
    trousers = shirt if rng.random() < 0.15 else trousers
    sleeves = shirt if rng.random() < 0.5 else skin
    shins = trousers if rng.random() < 0.75 else skin
    return Looks(shirt, sleeves, trousers, shins, skin, paint("hair"), paint("shoes"))


def person(rng: Rng, looks: Looks, pose: Pose, height: float) -> Thing:
    """A person of a height in metres.

    Standing, the lowest foot is at y = 0; sitting, the hips are above the origin and the seat is at y = 0.
    """
    trunk = np.array([0, np.cos(pose.lean), np.sin(pose.lean)])
    across = np.array([1.0, 0, 0])
    solids = [
        rod("capsule", -0.075 * across, 0.075 * across, 0.105, looks.trousers, TORSO),
        rod("capsule", 0.06 * trunk, 0.3 * trunk, 0.125, looks.shirt, TORSO),
        rod("capsule", 0.39 * trunk - 0.09 * across, 0.39 * trunk + 0.09 * across, 0.095, looks.shirt, TORSO),
        *_head(rng, trunk, looks),
    ]
    for side, k in ((-1, 0), (1, 1)):
        solids += _arm(side, k, trunk, pose, looks)
        solids += _leg(side, k, pose, looks)
    size = height / 1.72
    solids = [Solid(_scaled(s.primitive, size), s.material, s.part, s.shades) for s in solids]
    lowest = min(s.primitive.centre[1] - _drop(s.primitive) for s in solids)
    lift = np.array([0, 0.095 * size if pose.name.startswith("sitting") else -lowest, 0])
    return Thing("person", placed(tuple(solids), lift, np.eye(3)), (0.26, 0.22), height)


def _scaled(primitive: Primitive, size: float) -> Primitive:
    return Primitive(primitive.kind, size * primitive.centre, primitive.rotation, size * primitive.half)


def _drop(primitive: Primitive) -> float:
    """How far below its centre a capsule reaches."""
    return float(abs(primitive.rotation[1, 1]) * primitive.half[1] + primitive.half[0])


def _arm(side: int, k: int, trunk: Array, pose: Pose, looks: Looks) -> list[Solid]:
    mirror = np.array([side, 1, 1])
    shoulder = np.array([side * 0.18, 0, 0]) + 0.42 * trunk
    elbow = shoulder + 0.27 * mirror * _direction(pose.shoulders[k], pose.spread[k])
    inward = -0.9 if pose.name == "hands on hips" else 0.4 * pose.spread[k]
    wrist = elbow + 0.23 * mirror * _direction(pose.shoulders[k] + pose.elbows[k], inward)
    return [
        rod("capsule", shoulder, elbow, 0.056, looks.shirt, UPPER_ARM),
        rod("capsule", elbow, wrist, 0.043, looks.sleeves, LOWER_ARM),
        rod("capsule", wrist, wrist + 0.3 * (wrist - elbow), 0.041, looks.skin, LOWER_ARM),
    ]


def _leg(side: int, k: int, pose: Pose, looks: Looks) -> list[Solid]:
    mirror = np.array([side, 1, 1])
    hip = np.array([side * 0.092, -0.02, 0])
    knee = hip + 0.43 * mirror * _direction(pose.hips[k], pose.stance)
    ankle = knee + 0.4 * mirror * _direction(pose.hips[k] - pose.knees[k], pose.stance)
    heel, toe = ankle + np.array([0, -0.02, -0.02]), ankle + np.array([side * 0.025, -0.02, 0.13])
    return [
        rod("capsule", hip, knee, 0.082, looks.trousers, UPPER_LEG),
        rod("capsule", knee, ankle, 0.06, looks.shins, LOWER_LEG),
        rod("capsule", heel, toe, 0.048, looks.shoes, LOWER_LEG),
    ]


def _head(rng: Rng, trunk: Array, looks: Looks) -> list[Solid]:
    """Neck, head, hair and eyes; the head is a little large, as a doll's."""
    centre, dark = 0.68 * trunk, replace(looks.hair, colour=np.full(3, 0.02))
    eyes = []
    for x in (-0.043, 0.043):
        place = (x, centre[1] + 0.012, centre[2] + 0.102)
        eyes.append(replace(solid("ellipsoid", place, (0.014, 0.019, 0.012), dark, HEAD), shades=False))
    hair = [solid("ellipsoid", (0, centre[1] + 0.035, centre[2] - 0.022), (0.122, 0.125, 0.118), looks.hair, HEAD)]
    style = rng.integers(4)
    if style == 1:  # long hair
        hair.append(solid("ellipsoid", (0, centre[1] - 0.05, centre[2] - 0.06), (0.115, 0.16, 0.07), looks.hair, HEAD))
    elif style == 2:  # a bun
        hair.append(solid("ellipsoid", (0, centre[1] + 0.15, centre[2] - 0.05), (0.05, 0.05, 0.05), looks.hair, HEAD))
    elif style == 3:  # a cap
        peak = solid("ellipsoid", (0, centre[1] + 0.07, centre[2] + 0.1), (0.075, 0.012, 0.07), looks.shirt, HEAD)
        hair = [solid("ellipsoid", (0, centre[1] + 0.05, centre[2] - 0.01), (0.12, 0.1, 0.12), looks.shirt, HEAD), peak]
    skull = solid("ellipsoid", tuple(centre), (0.108, 0.132, 0.112), looks.skin, HEAD)
    return [rod("capsule", 0.46 * trunk, 0.58 * trunk, 0.05, looks.skin, HEAD), skull, *hair, *eyes]
