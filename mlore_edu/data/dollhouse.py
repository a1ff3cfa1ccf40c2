"""Dollhouse: rendered rooms with exact labels for six tasks (chapter 1).

A seed fixes a scene: :func:`mlore_edu.data.interiors.compose` furnishes a room, :func:`faults` judges a small view of
it by rules on the label maps and has it furnished anew if it is a poor picture, and :func:`scene` renders what is left.
Labels come from the geometry that the rays meet, never from the colours, so they are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.data.furniture import Solid
from mlore_edu.data.interiors import DIFFICULTIES, EASY, FULL, MEDIUM, Difficulty, compose
from mlore_edu.data.lighting import BAYER, antialias, block_mean, lambert, light_points
from mlore_edu.data.materials import albedo
from mlore_edu.data.people import HEAD
from mlore_edu.data.raycasting import (
    Camera,
    Group,
    Primitive,
    blocked,
    cast,
    local_normal,
    make_group,
    single,
    surface_coordinates,
)
from mlore_edu.data.rooms import Interior
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE_CLASSES

__all__ = ["DIFFICULTIES", "EASY", "FULL", "MEDIUM", "Difficulty", "Scene", "boundaries", "faults", "salient", "scene"]


SURFACES = tuple(DOLLHOUSE_CLASSES.index(name) for name in ("wall", "floor", "ceiling", "window", "picture", "rug"))
"""Classes that make up the room; all others are objects, and may be salient."""

PERSON = DOLLHOUSE_CLASSES.index("person")
TABLE = DOLLHOUSE_CLASSES.index("table")

PROBE = 48
"""Side in pixels of the view by which a scene is judged and its salient object chosen, whatever size is asked for."""

FINE_FROM = 256
"""Shorter side in pixels from which twice as many rays make shadows and boundaries smooth."""

ATTEMPTS = 60
"""Rooms furnished for one seed before the last one is taken as it is."""


@dataclass(frozen=True)
class Labels:
    """What the rays of one view say, without colour.

    Parameters
    ----------
    solid
        (H, W) index of the solid that each pixel shows.
    instances, semseg, human_parts
        (H, W) maps as in :class:`Scene`.
    distance
        (H * W,) metres along each ray.
    directions
        (3, H * W) unit vectors in room coordinates.
    depth
        (H, W) metres along the optical axis.
    """

    solid: Array
    instances: Array
    semseg: Array
    human_parts: Array
    distance: Array
    directions: Array
    depth: Array


@dataclass(frozen=True)
class Scene:
    """One picture and all its labels.

    Parameters
    ----------
    image
        (H, W, 3) uint8 sRGB.
    semseg
        (H, W) uint8, position in ``DOLLHOUSE_CLASSES``.
    instances
        (H, W) uint16, from 1: each object, wall, floor and ceiling has a number of its own.
    human_parts
        (H, W) uint8, 0 (no person) to 6, position in ``PART_NAMES``.
    saliency
        (H, W) uint8, 1 on what a person would name first (:func:`salient`).
    normals
        (H, W, 3) float32 unit vectors: x right, y up, z towards the camera.
    depth
        (H, W) float32 metres along the optical axis.
    edge
        (H, W) uint8, 1 where a pixel differs in instance or class from the pixel to its right or below.
    meta
        ``id``, ``seed``, ``attempt``, ``difficulty``, ``size`` (H, W), ``focal`` (pixels), ``centre`` (principal point
        (row, column) in pixels from the top left corner), ``instances`` {number: (class, name)}, ``salient`` (numbers).
    """

    image: Array
    semseg: Array
    instances: Array
    human_parts: Array
    saliency: Array
    normals: Array
    depth: Array
    edge: Array
    meta: dict[str, Any]


class Stage:
    """A furnished room made ready for rendering: its solids in float32, and what each belongs to."""

    def __init__(self, interior: Interior) -> None:
        self.interior = interior
        camera = interior.camera
        self.camera = Camera(camera.position.astype(np.float32), camera.rotation.astype(np.float32), camera.focal)
        self.solids: list[Solid] = [solid for thing in interior.objects for solid in thing.solids]
        self.primitives: list[Primitive] = [single(solid.primitive) for solid in self.solids]
        self.owner = np.array([i for i, thing in enumerate(interior.objects) for _ in thing.solids])
        self.part = np.array([solid.part for solid in self.solids], np.uint8)
        names = [thing.class_name for thing in interior.objects]
        self.classes = np.array([DOLLHOUSE_CLASSES.index(name) for name in names], np.uint8)
        self.names = {i + 1: (name, f"{name} {names[:i].count(name) + 1}") for i, name in enumerate(names)}

    def groups(self) -> list[Group]:
        """The objects that cast shadows, a group each: all but the room's surfaces and what hangs flat on them."""
        members: dict[int, list[int]] = {}
        for k, i in enumerate(self.owner):
            if self.classes[i] not in SURFACES and self.solids[k].shades:
                members.setdefault(i, []).append(k)
        return [make_group(self.primitives, group) for group in members.values()]

    def labels(self, shape: tuple[int, int]) -> Labels:
        """Cast one ray through the middle of each pixel and look up what it meets."""
        rays = self.camera.rays(shape)
        directions = self.camera.rotation @ rays
        distance, solid = cast(self.primitives, self.camera.position[:, None], directions)
        solid = solid.reshape(shape)
        owner = self.owner[solid]
        instances = (owner + 1).astype(np.uint16)
        depth = (distance * -rays[2]).reshape(shape)
        return Labels(solid, instances, self.classes[owner], self.part[solid], distance, directions, depth)


def boundaries(instances: Array, semseg: Array) -> Array:
    """1 where a pixel differs from its right or lower neighbour in instance or class: lines one pixel thin."""
    edge = np.zeros(instances.shape, np.uint8)
    for labels in (instances, semseg):
        edge[:-1] |= labels[:-1] != labels[1:]
        edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edge


def faults(labels: Labels, level: Difficulty) -> list[str]:
    """Why a view makes a poor picture; an empty list if it does not.

    Parameters
    ----------
    labels
        The probe view of a room.
    level
        Its difficulty: a scene that must hold people has to show one.
    """
    pixels = labels.semseg.size
    numbers, first, counts = np.unique(labels.instances, return_index=True, return_counts=True)
    classes, share = labels.semseg.reshape(-1)[first], counts / pixels
    thing = ~np.isin(classes, SURFACES)
    person = classes == PERSON
    bodies = [labels.instances == n for n in numbers[person & (share > 0.015)]]
    heads = labels.human_parts == HEAD
    small = np.isin(classes, [DOLLHOUSE_CLASSES.index(name) for name in ("lamp", "plant", "ball")])
    room = share[np.isin(classes, SURFACES)].sum()
    rules = {
        "something is right in front of the camera": labels.depth.min() < 0.9,
        "one object fills the view": bool((share[thing] > 0.4).any()),
        "a person fills the view": bool((share[person] > 0.3).any()),
        "a table top fills the view": bool((labels.semseg == TABLE).mean() > 0.22),
        "the room is hidden": room < 0.3,
        "the room is empty": room > 0.93,
        "too few objects": int((share[thing] > 0.006).sum()) < max(1, level.furniture[0]),
        "nothing stands out": not bool((share[thing] > 0.02).any()),
        "a surface fills the view": bool((share[~thing] > 0.62).any()),
        "no floor to stand on": bool((labels.semseg == DOLLHOUSE_CLASSES.index("floor")).mean() < 0.04),
        "a small thing fills the view": bool((share[small] > 0.12).any()),
        "a person has no head": not all((body & heads).any() for body in bodies),
        "a head is cut off by the picture's border": any((body & heads)[0].any() for body in bodies),
        "no person where one belongs": level.people[0] > 0 and not bool((share[person] > 0.02).any()),
    }
    return [name for name, broken in rules.items() if broken]


def salient(labels: Labels, colours: Array) -> list[int]:
    """Numbers of the instances that a person would name first.

    People come first: all those at least a third as large as the largest, if that one covers 1.5 % of the view.
    Otherwise it is the one object with the best product of size (square root of its share, at most 0.4), centrality
    (a bell curve around the middle), nearness (inverse depth) and contrast (distance of its mean colour to the view's).

    Parameters
    ----------
    labels
        The probe view of a room.
    colours
        (S, 3) linear colour of each solid.
    """
    shape = labels.semseg.shape
    people = np.unique(labels.instances[labels.semseg == PERSON], return_counts=True)
    if people[0].size and people[1].max() >= 0.015 * labels.semseg.size:
        return [int(n) for n, count in zip(*people, strict=True) if 3 * count >= people[1].max()]
    rows, columns = (np.indices(shape) + 0.5) / np.array(shape)[:, None, None] - 0.5
    picture = colours[labels.solid]
    best, winner = 0.0, []
    for number in np.unique(labels.instances[~np.isin(labels.semseg, SURFACES)]):
        on = labels.instances == number
        size = min(float(np.sqrt(on.mean())), 0.4)
        central = float(np.exp(-4 * (rows[on].mean() ** 2 + columns[on].mean() ** 2)))
        contrast = 0.15 + float(np.linalg.norm(picture[on].mean(axis=0) - picture.mean(axis=(0, 1))))
        score = size * central * contrast / float(labels.depth[on].mean())
        if score > best:
            best, winner = score, [int(number)]
    return winner


def _stage(seed: int, level: Difficulty) -> tuple[Stage, list[int], int]:
    """The first room of a seed that is a good picture, its salient instances, and how many were thrown away."""
    for attempt in range(ATTEMPTS):
        stage = Stage(compose(np.random.Generator(np.random.PCG64([seed, attempt])), level))
        probe = stage.labels((PROBE, PROBE))
        if not faults(probe, level):
            break
    colours = np.stack([solid.material.colour for solid in stage.solids])
    return stage, salient(probe, colours), attempt


@dataclass(frozen=True)
class _Surface:
    """What the rays meet, seen closely: points, normals, albedo (3, N) in room coordinates; gloss and glow (N,)."""

    points: Array
    normals: Array
    albedo: Array
    gloss: Array
    glow: Array


def _surface(stage: Stage, labels: Labels) -> _Surface:
    """Normals and materials at every pixel, one visible solid after the other."""
    solid = labels.solid.reshape(-1)
    order = np.argsort(solid, kind="stable")  # pixels of one solid lie side by side, so each solid is a slice
    start = np.searchsorted(solid[order], np.arange(len(stage.solids) + 1))
    points = stage.camera.position[:, None] + labels.directions * labels.distance
    sorted_points, distance = points.take(order, axis=1), labels.distance[order]
    rays = labels.directions.take(order, axis=1)
    # rows: normal, albedo, gloss, glow
    rows = np.empty((8, order.size), np.float32)
    pixel = np.float32(1 / (stage.camera.focal * min(labels.solid.shape)))  # its width at a distance of one metre
    for k in np.flatnonzero(np.diff(start)):
        here = slice(start[k], start[k + 1])
        primitive, material = stage.primitives[k], stage.solids[k].material
        local = primitive.rotation.T @ (sorted_points[:, here] - primitive.centre[:, None])
        local_up = local_normal(primitive, local, primitive.rotation.T @ rays[:, here])
        normal = rows[:3, here] = primitive.rotation @ local_up
        if material.texture == "plain":
            rows[3:6, here] = material.colour[:, None]
        else:
            slope = np.maximum(-(normal * rays[:, here]).sum(axis=0), np.float32(0.15))
            u, v = surface_coordinates(primitive, local, local_up)
            rows[3:6, here] = albedo(material, u, v, distance[here] * pixel / slope)
        rows[6, here], rows[7, here] = material.gloss, material.glow
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    rows = rows.take(back, axis=1)
    return _Surface(points, rows[:3], rows[3:6], rows[6], rows[7])


def _ambient(interior: Interior, points: Array, normals: Array) -> Array:
    """(3, N) light from everywhere: a little brighter from above, darker towards the room's corners."""
    strength = 0.9 + 0.1 * normals[1]
    limits = ((-interior.width / 2, interior.width / 2), (0.0, interior.height), (0.0, interior.depth))
    for axis, (low, high) in enumerate(limits):
        gap = np.minimum(points[axis] - low, high - points[axis])
        strength *= 1 - 0.45 * np.exp(-4 * gap) * (1 - np.abs(normals[axis]))
    light: Array = interior.ambient[:, None].astype(np.float32) * strength
    return light


def _shade(stage: Stage, labels: Labels, surface: _Surface) -> Array:
    """(3, H, W) linear colour: light received times albedo, plus highlights."""
    shape, rows, columns = labels.solid.shape, *np.indices(labels.solid.shape) % 4
    fine = min(shape) >= FINE_FROM
    looking = (BAYER[rows, columns] < (16 if fine else 8)).reshape(-1)
    groups = stage.groups()
    received = _ambient(stage.interior, surface.points, surface.normals) + np.float32(1.3) * surface.glow
    mirrored = np.zeros_like(received)
    for light in stage.interior.lights:
        matt, shine = lambert(light, surface.points, surface.normals, -labels.directions, surface.gloss)
        pixels = np.flatnonzero(looking & (matt > 1e-4))
        points = surface.points.take(pixels, axis=1)
        towards = light_points(light, pixels, shape[1]) - points
        length = np.sqrt(np.einsum("cn,cn->n", towards, towards))
        dark = blocked(stage.primitives, groups, points, towards / length, length, labels.solid.take(pixels))
        visible = np.where(looking, np.float32(0), np.float32(np.nan))
        visible[pixels] = ~dark
        visible = block_mean(visible.reshape(shape), labels.solid)
        if fine:  # a wider second mean, since the 16 shadows of a light lie further apart
            visible = block_mean(visible, labels.solid, step=3)
        visible = visible.reshape(-1)
        colour = light.colour[:, None].astype(np.float32)
        received += colour * (matt * visible)
        mirrored += colour * (shine * visible)
    colour = surface.albedo * received + np.float32(0.5) * mirrored
    return antialias(stage.primitives, stage.camera, labels.solid, colour.reshape(3, *shape), exact=fine)


def _develop(colour: Array, noise: float, seed: int) -> Array:
    """Linear light (3, H, W) to an 8-bit picture (H, W, 3): soft shoulder, sRGB's gamma, sensor noise."""
    value = 255 * (1 - np.exp(np.float32(-1.25) * np.maximum(colour, 0))) ** np.float32(1 / 2.2)
    rng = np.random.Generator(np.random.PCG64([seed, *colour.shape]))
    value += np.float32(noise) * rng.standard_normal(colour.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(value + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _check(seed: int, size: int | tuple[int, int], difficulty: str | Difficulty) -> tuple[tuple[int, int], Difficulty]:
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 8:
        raise UserError(f"A Dollhouse scene of {shape[0]} x {shape[1]} pixels is too small; ask for at least 8 x 8.")
    if seed < 0:
        raise UserError(f"The seed {seed} is negative; use 0 or a positive whole number.")
    if isinstance(difficulty, Difficulty):
        return shape, difficulty
    if difficulty not in DIFFICULTIES:
        raise UserError(f"There is no difficulty {difficulty!r}; choose one of {', '.join(DIFFICULTIES)}.")
    return shape, DIFFICULTIES[difficulty]


def scene(seed: int, size: int | tuple[int, int] = 128, difficulty: str | Difficulty = "full") -> Scene:
    """Render the scene of a seed; the same seed gives the same scene on any machine, and at any size the same room.

    Parameters
    ----------
    seed
        0 or a positive whole number.
    size
        Side of the square picture in pixels, or (H, W); at least 8.
    difficulty
        ``"easy"``, ``"medium"``, ``"full"`` or a :class:`Difficulty` of one's own.

    Raises
    ------
    UserError
        If the seed is negative, the size too small, or the difficulty unknown.
    """
    shape, level = _check(seed, size, difficulty)
    stage, chosen, attempt = _stage(seed, level)
    labels = stage.labels(shape)
    surface = _surface(stage, labels)
    normals = (stage.camera.rotation.T @ surface.normals).T.reshape(*shape, 3)
    meta = {
        "id": f"{level.name}_{seed:06d}",
        "seed": seed,
        "attempt": attempt,
        "difficulty": level.name,
        "size": shape,
        "focal": stage.camera.focal * min(shape),
        "centre": (shape[0] / 2, shape[1] / 2),
        "instances": {n: stage.names[n] for n in np.unique(labels.instances).tolist()},
        "salient": chosen,
    }
    return Scene(
        image=_develop(_shade(stage, labels, surface), level.noise, seed),
        semseg=labels.semseg,
        instances=labels.instances,
        human_parts=labels.human_parts,
        saliency=np.isin(labels.instances, chosen).astype(np.uint8),
        normals=np.ascontiguousarray(normals),
        depth=labels.depth,
        edge=boundaries(labels.instances, labels.semseg),
        meta=meta,
    )
