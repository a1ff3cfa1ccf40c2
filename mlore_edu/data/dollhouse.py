"""Dollhouse: rendered rooms with exact labels for six tasks (chapter 1).  First simple version: a room, a box, a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlore_edu.data.raycasting import Primitive, hit_distance, local_normal
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE_CLASSES

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Difficulty:
    """How much varies from scene to scene."""

    name: str


EASY, MEDIUM, FULL = Difficulty("easy"), Difficulty("medium"), Difficulty("full")
DIFFICULTIES: dict[str, Difficulty] = {d.name: d for d in (EASY, MEDIUM, FULL)}


@dataclass(frozen=True)
class Scene:
    """One picture and all its labels.

    ``image`` (H, W, 3) uint8; ``semseg`` (H, W) uint8 index into DOLLHOUSE_CLASSES; ``instances`` (H, W) uint16;
    ``human_parts`` (H, W) uint8 0..6; ``saliency`` (H, W) uint8 0 or 1; ``normals`` (H, W, 3) float32 unit vectors
    (x right, y up, z towards the camera); ``depth`` (H, W) float32 metres along the optical axis; ``edge`` (H, W) uint8;
    ``meta``: seed, attempt, difficulty, size, focal (pixels), instances {id: (class, name)}.
    """

    image: Array
    semseg: Array
    instances: Array
    human_parts: Array
    saliency: Array
    normals: Array
    depth: Array
    edge: Array
    meta: dict[str, Any] = field(default_factory=dict)


def scene(seed: int, size: int | tuple[int, int] = 128, difficulty: str | Difficulty = "full") -> Scene:
    """Render the scene of a seed."""
    name = difficulty if isinstance(difficulty, str) else difficulty.name
    if name not in DIFFICULTIES:
        raise UserError(f"There is no difficulty {name!r}; choose one of {', '.join(DIFFICULTIES)}.")
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.Generator(np.random.PCG64(seed))
    focal = 0.9 * min(height, width)
    y, x = np.mgrid[:height, :width]
    d = np.stack([(x + 0.5 - width / 2) / focal, -(y + 0.5 - height / 2) / focal, -np.ones((height, width))])
    d = (d / np.linalg.norm(d, axis=0)).reshape(3, -1).astype(np.float32)
    o = np.array([[0.0], [1.4], [0.0]], np.float32)
    px, bx = rng.uniform(-1.2, 1.2), rng.uniform(-1.2, 1.2)

    def solid(kind: Any, centre: tuple[float, ...], half: tuple[float, ...]) -> Primitive:
        return Primitive(kind, np.array(centre), np.eye(3), np.array(half))

    parts: list[tuple[Primitive, int, int, int]] = [
        (solid("box", (0, -0.5, -3), (4, 0.5, 5)), 1, 1, 0),
        (solid("box", (0, 1.5, -6.5), (4, 1.5, 0.5)), 0, 2, 0),
        (solid("box", (-3, 1.5, -3), (0.5, 1.5, 5)), 0, 3, 0),
        (solid("box", (3, 1.5, -3), (0.5, 1.5, 5)), 0, 4, 0),
        (solid("box", (0, 3.2, -3), (4, 0.5, 5)), 2, 5, 0),
        (solid("box", (bx, 0.4, -4.5), (0.6, 0.4, 0.4)), DOLLHOUSE_CLASSES.index("cabinet"), 6, 0),
    ]
    body: list[tuple[str, tuple[float, float], tuple[float, float], int]] = [
        ("capsule", (0, 1.62), (0.12, 0.03), 1),
        ("capsule", (0, 1.15), (0.18, 0.2), 2),
        *[("capsule", (s * 0.25, 1.25), (0.06, 0.12), 3) for s in (-1, 1)],
        *[("capsule", (s * 0.25, 0.98), (0.05, 0.1), 4) for s in (-1, 1)],
        *[("capsule", (s * 0.1, 0.68), (0.09, 0.16), 5) for s in (-1, 1)],
        *[("capsule", (s * 0.1, 0.28), (0.07, 0.2), 6) for s in (-1, 1)],
    ]
    person = DOLLHOUSE_CLASSES.index("person")
    parts += [(solid(k, (px + c[0], c[1], -2.8), (h[0], h[1], h[0])), person, 7, p) for k, c, h, p in body]
    t = np.stack([hit_distance(p[0], o, d) for p in parts])
    index = t.argmin(axis=0)
    distance = t.min(axis=0)
    points = o + distance * d
    normals = np.zeros_like(points)
    for k, (primitive, *_) in enumerate(parts):
        on = index == k
        normals[:, on] = local_normal(primitive, points[:, on] - primitive.centre[:, None].astype(np.float32))
    colours = rng.uniform(0.2, 0.9, (len(parts), 3))
    light = np.array([0.4, 0.8, 0.45])
    shade = 0.4 + 0.6 * np.maximum(light @ normals, 0)
    image = np.clip(255 * colours[index] * shade[:, None] ** 0.7, 0, 255).astype(np.uint8)

    def table(column: int, dtype: Any) -> Array:
        return np.array([p[column] for p in parts], dtype)[index].reshape(height, width)

    instances = table(2, np.uint16)
    edge = np.zeros((height, width), np.uint8)
    edge[:-1] |= instances[:-1] != instances[1:]
    edge[:, :-1] |= instances[:, :-1] != instances[:, 1:]
    names = {p[2]: (DOLLHOUSE_CLASSES[p[1]], DOLLHOUSE_CLASSES[p[1]]) for p in parts}
    return Scene(
        image.reshape(height, width, 3),
        table(1, np.uint8),
        instances,
        table(3, np.uint8),
        (instances == 7).astype(np.uint8),
        np.ascontiguousarray(normals.T.reshape(height, width, 3), np.float32),
        (distance * -d[2]).reshape(height, width).astype(np.float32),
        edge,
        {"seed": seed, "attempt": 0, "difficulty": name, "size": (height, width), "focal": focal, "instances": names},
    )
