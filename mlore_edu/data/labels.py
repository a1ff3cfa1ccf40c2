"""How labels are stored in files, and back: the encodings of PASCAL-Context and NYUD-v2 as functions (chapter 1).

All functions take and return numpy arrays of one image: maps are (H, W), normals (H, W, 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.tasks import IGNORE


def _package_data(name: str) -> Any:
    return json.loads(files("mlore_edu.data").joinpath(name).read_text(encoding="utf-8"))


LABELMAP_IDS: dict[str, int] = _package_data("pascal_context_459_names.json")
"""The 459 classes of PASCAL-Context's ``LabelMap``: id (1…459) by name."""
NORMALS_VALID_IDS: tuple[int, ...] = tuple(_package_data("pascal_context_ids_with_valid_normals.json"))
"""The 170 of them that NYU also knows; the distilled normals are trusted only there."""
PERSON = 15
"""Class index of a person in PASCAL VOC."""

_MERGED_NAMES = {
    1: "head hair lear rear lebrow rebrow leye reye mouth nose",
    2: "neck torso",
    3: "luarm ruarm",
    4: "llarm rlarm lhand rhand",
    5: "luleg ruleg",
    6: "llleg rlleg lfoot rfoot",
}
MERGED_PART = {name: part for part, names in _MERGED_NAMES.items() for name in names.split()}
"""The field's merge of PASCAL-Part's 24 parts of a person into six: head, torso, upper and lower arms, upper and lower
legs. (The first l or r means left or right, a second letter l or u lower or upper.)"""


def encode_normals(normals: Array) -> Array:
    """Store unit normals (H, W, 3) in 8 bits a component: v = round(255 (n + 1) / 2).

    The rounding moves a normal by at most 0.4°. Zero falls between 127 and 128: it cannot be stored exactly.
    """
    return np.asarray(np.rint((np.asarray(normals, np.float64) + 1) * 127.5).clip(0, 255), np.uint8)


def decode_normals(pixels: Array, shortest: float = 0.0) -> Array:
    """Read 8-bit normals: n = 2 v / 255 − 1, brought back to length one.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3).
    shortest
        Vectors shorter than this were "no normal" and become exactly zero (ignored). The field's files of NYUD-v2
        are read with 0: invalid normals are not masked there. Dollhouse's own files are read with 0.5.

    Returns
    -------
    Array
        float32 (H, W, 3), unit vectors or zero vectors.
    """
    normals = pixels.astype(np.float32) * np.float32(2 / 255) - 1
    x, y, z = np.moveaxis(normals, -1, 0)  # three sums over the map are faster than a sum over three
    length = np.sqrt(x * x + y * y + z * z)  # at least 1/255 · √3: v is an integer, zero is not
    normals /= length[..., None]
    normals[length < shortest] = 0
    return normals


def trusted_normals(labelmap: Array) -> Array:
    """Where PASCAL-Context's distilled normals count: uint8 (H, W), 1 where the ``LabelMap`` class is one of NYU's."""
    return np.isin(labelmap, NORMALS_VALID_IDS).astype(np.uint8)


def mask_normals(normals: Array, trusted: Array) -> Array:
    """Keep normals (H, W, 3) where ``trusted`` (H, W) is not zero; the zero vector, ignored, elsewhere."""
    return np.where(trusted[..., None] != 0, normals, np.float32(0))


def encode_depth(depth: Array) -> Array:
    """Store metres as 16-bit millimetres (0 = invalid, at most 65.535 m), as Dollhouse's PNG files do."""
    millimetres = np.rint(valid_depth(depth).astype(np.float64) * 1000).clip(0, 65535)
    return np.asarray(millimetres, np.uint16)


def decode_depth(millimetres: Array) -> Array:
    """Read 16-bit millimetres as float32 metres."""
    return millimetres.astype(np.float32) / np.float32(1000)


def valid_depth(depth: Array) -> Array:
    """Depth in metres as float32 with every impossible value (negative, infinite, not a number) made invalid, 0."""
    metres = np.asarray(depth, np.float32)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def decode_nyud_semseg(stored: Array) -> Array:
    """NYUD-v2 stores 0 for unlabelled and classes from 1: subtract 1, unlabelled becomes 255 (uint8 wraps around)."""
    return stored.astype(np.uint8) - np.uint8(1)


def encode_nyud_semseg(semseg: Array) -> Array:
    """The inverse of :func:`decode_nyud_semseg`."""
    return semseg.astype(np.uint8) + np.uint8(1)


def decode_saliency(pixels: Array) -> Array:
    """Distilled saliency is a grey picture; a pixel is salient where v / 255 > 0.5."""
    return np.asarray(pixels > 127, np.uint8)


def labelmap_boundaries(labelmap: Array) -> Array:
    """PASCAL-Context's boundaries: where the Laplacian of the ``LabelMap`` is not zero, thinned to one pixel.

    Parameters
    ----------
    labelmap
        Integers (H, W), at least 2×2.

    Returns
    -------
    Array
        uint8 (H, W), 1 = boundary.
    """
    ids = np.pad(labelmap.astype(np.int64), 1, mode="reflect")
    centre = ids[1:-1, 1:-1]
    laplacian = ids[:-2, 1:-1] + ids[2:, 1:-1] + ids[1:-1, :-2] + ids[1:-1, 2:] - 4 * centre
    return thin(laplacian != 0)


def thin(mask: Array) -> Array:
    """Thin a mask to lines of one pixel without breaking them (Guo and Hall, 1989).

    Two half-steps alternate until nothing changes, the first nibbling at right and top borders, the second at left and
    bottom ones. A pixel goes if it belongs to one connected border (G1), is neither an end nor inside (G2), and lies
    on the side whose turn it is (G3).

    Parameters
    ----------
    mask
        Boolean or 0/1 (H, W).

    Returns
    -------
    Array
        uint8 (H, W), a subset of the mask with the same connected pieces.
    """
    mask = np.asarray(mask, bool)
    while True:
        before = mask
        for half in (0, 1):
            mask = mask & ~_removable(mask, half)
        if (mask == before).all():
            return mask.astype(np.uint8)


def _removable(mask: Array, half: int) -> Array:
    padded = np.pad(mask, 1)
    height, width = mask.shape
    # The eight neighbours x0 … x7, counter-clockwise from the right one.
    offsets = ((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))
    x = [padded[top : top + height, left : left + width] for top, left in offsets]
    borders = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int8) for i in (0, 2, 4, 6))
    pairs = sum((x[i] | x[i + 1]).astype(np.int8) for i in (0, 2, 4, 6))
    other_pairs = sum((x[i + 1] | x[(i + 2) % 8]).astype(np.int8) for i in (0, 2, 4, 6))
    neighbours = np.minimum(pairs, other_pairs)
    turn = 4 * half  # the second half-step is the first one rotated by 180°
    protected = (x[1 + turn] | x[2 + turn] | ~x[(7 + turn) % 8]) & x[turn]
    removable: Array = (borders == 1) & (neighbours >= 2) & (neighbours <= 3) & ~protected
    return removable


def merge_person_parts(anno: Mapping[str, Any], shape: tuple[int, int]) -> Array:
    """The six parts of all people in one of PASCAL-Part's ``anno`` structures.

    Parameters
    ----------
    anno
        ``{"objects": [{"class_ind": int, "parts": [{"part_name": str, "mask": (H, W)}, …]}, …]}``; where there is one
        object or part, MATLAB's files hold it without a list, and where there is none, an empty array.
    shape
        (H, W) of the image.

    Returns
    -------
    Array
        uint8 (H, W), 0 = no part, 1…6. Later parts cover earlier ones.

    Raises
    ------
    KeyError, ValueError
        If the structure is another one, a part has an unknown name, or a mask another size.
    """
    merged = np.zeros(shape, np.uint8)
    for thing in _as_list(anno["objects"]):
        if int(thing["class_ind"]) != PERSON:
            continue
        for part in _as_list(thing["parts"]):
            mask = np.asarray(part["mask"])
            if mask.shape != shape:
                raise ValueError(f"part {part['part_name']} has size {mask.shape}, the image {shape}")
            merged[mask != 0] = MERGED_PART[part["part_name"]]
    return merged


def _as_list(entries: Any) -> list[Any]:
    return [entries] if isinstance(entries, Mapping) else list(entries)


def no_parts_ignored(parts: Array) -> Array:
    """The field's rule for human parts: an image that shows none is ignored as a whole (all 255)."""
    shown = ((parts > 0) & (parts < IGNORE)).any()
    return parts if shown else np.full_like(parts, IGNORE)
