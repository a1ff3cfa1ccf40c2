"""What Dollhouse's surfaces look like: colours and procedural textures (chapter 1).

A texture is a function of surface coordinates (u, v) in metres that says, between 0 and 1, how far a point's colour
has moved from the material's first colour to its second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlore_edu.arrays import Array

_LATTICE = np.random.Generator(np.random.PCG64(0)).random(4096, dtype=np.float32)
"""Random values on an integer lattice, the same in every scene; a scene sees its own corner by an offset of (u, v)."""


@dataclass(frozen=True)
class Material:
    """How a surface answers light.

    Parameters
    ----------
    colour, second
        (3,) linear RGB in 0..1; the texture blends from one to the other.
    texture
        Key of :data:`TEXTURES`.
    scale
        Size in metres of one period of the texture.
    gloss
        Strength of the highlight, 0 (matt) to 1.
    glow
        Light that the surface sends out itself, as a multiple of its colour.
    """

    colour: Array
    second: Array
    texture: str = "plain"
    scale: float = 0.3
    gloss: float = 0.0
    glow: float = 0.0


def _wave(x: Array) -> Array:
    """Square wave of period 1 with softened flanks, in 0..1."""
    wave: Array = np.clip(0.5 + 4 * np.sin(2 * np.pi * x), 0, 1)
    return wave


def _line(x: Array, width: float) -> Array:
    """1 on a line of relative `width` at each integer, else 0, with a soft border."""
    distance = np.abs(x - np.round(x))
    line: Array = np.clip((width - distance) / (0.4 * width), 0, 1)
    return line


def _lattice(i: Array, j: Array) -> Array:
    value: Array = _LATTICE[(i * 131 + j * 1543) & 4095]
    return value


def value_noise(u: Array, v: Array) -> Array:
    """Smooth random field in 0..1 with features of size 1: random values on a lattice, blended between."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i, j = i.astype(np.int64), j.astype(np.int64)
    top: Array = _lattice(i, j) * (1 - a) + _lattice(i + 1, j) * a
    bottom = _lattice(i, j + 1) * (1 - a) + _lattice(i + 1, j + 1) * a
    noise: Array = top * (1 - b) + bottom * b
    return noise


def _plain(u: Array, v: Array) -> Array:
    return np.zeros_like(u)


def _stripes(u: Array, v: Array) -> Array:
    return _wave(u)


def _checks(u: Array, v: Array) -> Array:
    board: Array = np.clip(0.5 + 8 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1)
    return board


def _dots(u: Array, v: Array) -> Array:
    u, v = u - np.round(u), v - np.round(v)
    dots: Array = np.clip(8 * (0.32 - np.sqrt(u * u + v * v)), 0, 1)
    return dots


def _zigzag(u: Array, v: Array) -> Array:
    return _wave(v + np.abs(u - np.round(u)))


def _plaid(u: Array, v: Array) -> Array:
    return 0.5 * _wave(u) + 0.5 * _wave(v)


def _plaster(u: Array, v: Array) -> Array:
    return 0.55 * value_noise(u, v) + 0.45 * value_noise(3.1 * u + 7, 3.1 * v)


def _wood(u: Array, v: Array) -> Array:
    grain = value_noise(0.35 * u, 6 * v)
    return np.clip(0.65 * grain + 0.35 * value_noise(0.8 * u, 23 * v), 0, 1)


def _planks(u: Array, v: Array) -> Array:
    row = np.floor(v)
    along = 0.2 * u + 0.37 * row
    board = _lattice(np.floor(along).astype(np.int64), row.astype(np.int64))
    gap = np.maximum(_line(v, 0.03), _line(along, 0.006))
    return np.clip(0.6 * board + 0.4 * _wood(u + 9 * board, 0.4 * v) + 0.7 * gap, 0, 1)


def _tiles(u: Array, v: Array) -> Array:
    return np.maximum(_line(u, 0.03), _line(v, 0.03))


def _bricks(u: Array, v: Array) -> Array:
    row = np.floor(2 * v)
    shifted = u + 0.5 * row
    brick = _lattice(np.floor(shifted).astype(np.int64), row.astype(np.int64))
    mortar: Array = np.maximum(_line(2 * v, 0.06), _line(shifted, 0.03))
    return np.maximum(0.45 * brick, mortar)


def _wainscot(u: Array, v: Array) -> Array:
    """Two-coloured wall: v is the height above the floor, the colours meet at 1."""
    below: Array = np.clip(80 * (1 - v), 0, 1)
    return below


def _horizon(u: Array, v: Array) -> Array:
    """A view: hills below, a gradient of sky above."""
    hills = 0.16 * value_noise(1.7 * u + 3, np.zeros_like(u)) - 0.22
    return np.where(v < hills, 1.0, np.clip(0.45 - 0.6 * v, 0, 0.6)).astype(u.dtype)


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "zigzag": _zigzag,
    "plaid": _plaid,
    "plaster": _plaster,
    "wood": _wood,
    "planks": _planks,
    "tiles": _tiles,
    "bricks": _bricks,
    "wainscot": _wainscot,
    "horizon": _horizon,
}
"""Name → texture; each takes (N,) coordinates in periods and gives (N,) blends in 0..1."""


def albedo(material: Material, u: Array, v: Array, footprint: Array) -> Array:
    """Colour of a surface at points.

    Parameters
    ----------
    material
        What the surface is made of.
    u, v
        (N,) surface coordinates in metres.
    footprint
        (N,) width of a pixel on the surface in metres: a texture finer than that fades to its mean, as in a camera.

    Returns
    -------
    (3, N) linear RGB in 0..1.
    """
    blend = TEXTURES[material.texture](u / material.scale, v / material.scale)
    keep = np.clip(1.5 - 2.5 * footprint / material.scale, 0, 1)
    blend = blend * keep + np.float32(0.35) * (1 - keep)
    difference = (material.second - material.colour)[:, None].astype(u.dtype)
    colour: Array = material.colour[:, None].astype(u.dtype) + difference * blend
    return colour


def _palette(text: str) -> Array:
    """Linear RGB (K, 3) of colours written as sRGB hexadecimal numbers."""
    rows = [[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in text.split()]
    linear: Array = np.array(rows) ** 2.2
    return linear


COLOURS = {
    "wall": _palette("e9e1d0 f2efe8 cfd8cf d9c6b8 b9cbd6 e6cf9c c98f72 7f9a94 6f7f9b d8b7b5 a9b98f 5d6b70 b4a7c4"),
    "ceiling": _palette("f4f2ec fbf9f4 e8eef0 efe3d0 dcd5e2 c7b79c"),
    "wood": _palette("b98a57 c9a26d 8a5a34 6b4429 d9bb8a a8683c 4a3328 caa98a e4dccb"),
    "floor": _palette("b98a57 a87a4b 8a5a34 cdb089 6b4a32 c8c2b6 9b9b98 7c8a8d c2a79b 5a4a44 d6d0c4"),
    "fabric": _palette("5b7fa3 b5533c 5f8a6b d7a441 8c6a9e 3f5a6d c9796b a7a79c e0d6c2 3c6e71 8a3b4a 77889a 4c4f69"),
    "rug": _palette("a8433f 3f6a8a d9a24a 6d8f6a 7a5577 c9c0ae 3d4a5c c76f4b e7ddc8"),
    "clothes": _palette("d9483b 3468a8 f0c244 3f9163 7d4f9e e8e4da 2f3b4c e58a3c 57b0b8 d6739a 6b7c3a 8f2f3a a9c0d6"),
    "trousers": _palette("34507c 2c2f38 6b5a45 4f5d4a 8a8f98 9c6b4a 5c2f3a c7b48c 27425c"),
    "skin": _palette("e6b594 c98f68 f1cdb2 a46d48 7a4b30 563322 d8a57c"),
    "hair": _palette("3a2618 1c1815 6b4423 a8743a d1ab62 8d3a1f 9a9893"),
    "leaf": _palette("3f7d3a 5c9a48 2f6640 7fa653 4d7f63 8a9a3f 9a4a52 c9a53f 5a7f99 7a5c8a"),
    "pot": _palette("b4633f d8cfc2 3f5561 8a8f7a e1b64c 5b4a46 f0efe9"),
    "paint": _palette("e9e4d8 7d9b92 c2654a 3f5a78 d7b25c 8f8f8a b98a57 4d4543 a9bccb d39a9a"),
    "metal": _palette("3a3a3c 8c8880 b9964f c9c9c6"),
    "shoes": _palette("2b2526 5c3a26 e9e6df 8f2f2a 34465c"),
    "shade": _palette("f3e3bf f7f0df e8c58a e6b7a0 d0dfd8"),
    "ball": _palette("d63b32 2f6fc0 f2b632 3d9a57 e8772e 8a4fb0 f0efe9 e2679a"),
    "white": _palette("f5f3ee e9e7e2 ded8cc"),
    "sky": _palette("9cc7ec bcd9f2 d9e6ee f4c79a 6f8fc0 2c3a5c"),
    "ground": _palette("6f9a55 8aa86a 4f7350 a39468 3a4a40"),
    "art": _palette("d9483b 2f5f9a f2c14e e9e1d0 2b2b33 4d9a86 e58a5c c7d3d9 7d4f7e"),
}
"""Linear RGB palettes by family, the most typical colour first: an easier scene uses only the first few of each."""

PATTERNS: dict[str, tuple[tuple[str, float], ...]] = {
    "wall": (
        ("plaster", 0.5),
        ("wainscot", 0.95),
        ("stripes", 0.3),
        ("bricks", 0.35),
        ("dots", 0.25),
        ("plaid", 0.8),
        ("planks", 0.14),
    ),
    "ceiling": (("plain", 1.0), ("plaster", 0.6), ("planks", 0.2)),
    "wood": (("wood", 0.35), ("plain", 1.0), ("wood", 0.2)),
    "floor": (("planks", 0.16), ("planks", 0.11), ("tiles", 0.45), ("checks", 0.4), ("plaster", 0.12), ("zigzag", 0.3)),
    "fabric": (("plaster", 0.04), ("plain", 1.0), ("stripes", 0.12), ("plaid", 0.16), ("checks", 0.1), ("dots", 0.12)),
    "rug": (("stripes", 0.3), ("plaster", 0.1), ("checks", 0.22), ("zigzag", 0.3), ("dots", 0.25), ("plaid", 0.4)),
    "clothes": (("plain", 1.0), ("stripes", 0.09), ("plain", 1.0), ("checks", 0.07), ("plaid", 0.12), ("dots", 0.08)),
    "trousers": (("plain", 1.0), ("plaster", 0.03), ("plain", 1.0), ("stripes", 0.05)),
    "ball": (("plain", 1.0), ("stripes", 0.2), ("checks", 0.14), ("dots", 0.12)),
    "pot": (("plain", 1.0), ("stripes", 0.08), ("zigzag", 0.1)),
    "paint": (("plain", 1.0), ("wood", 0.3), ("plaster", 0.3)),
}
"""Texture and period in metres by family, the most typical first; a family not named here is plain."""

DARKENING = {"plaster": 0.72, "wood": 0.5, "planks": 0.5, "tiles": 0.6, "bricks": 0.5}
"""How dark a pattern's second colour is, as a multiple of the first, where it is not a colour of its own."""

GLOSS = {"floor": 0.25, "wood": 0.2, "metal": 0.6, "ball": 0.6, "pot": 0.4, "paint": 0.2, "hair": 0.15, "leaf": 0.15}
"""Strength of the highlight by family, 0 where not named."""


def choose_material(rng: np.random.Generator, family: str, variety: float, mixing: float, texture: float) -> Material:
    """Draw a material of a family.

    Parameters
    ----------
    rng
        Source of chance.
    family
        Key of :data:`COLOURS`.
    variety
        Fraction of the family's colours and patterns in use, 0 (the typical one alone) to 1 (all).
    mixing
        Probability that the colour comes from another family, so that colour does not give the class away.
    texture
        Strength of the texture, 0 to 1.
    """
    source = family
    if family in PATTERNS and rng.random() < mixing:
        source = ("wall", "wood", "fabric", "clothes", "paint")[rng.integers(5)]
    colours = COLOURS[source][: max(1, round(variety * len(COLOURS[source])))]
    patterns = PATTERNS.get(family, (("plain", 1.0),))
    name, scale = patterns[rng.integers(max(1, round(variety * len(patterns))))]
    colour = np.minimum(colours[rng.integers(len(colours))] * rng.uniform(1 - 0.25 * variety, 1 + 0.15 * variety), 1)
    bold = name in ("stripes", "checks", "dots", "zigzag", "plaid", "wainscot")
    other = colours[rng.integers(len(colours))] if bold and variety > 0.3 else colour * DARKENING.get(name, 0.45)
    second = colour + texture * (other - colour)
    return Material(colour, second, name, scale * rng.uniform(0.8, 1.25), GLOSS.get(family, 0.0))
