"""A Dollhouse scene as files: its own layout, and byte for byte the formats of PASCAL-Context and NYUD-v2 (chapter 1).

Dollhouse's classes are carried over by name, so that the real readers, training and evaluation run on rendered rooms.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.io import savemat

from mlore_edu.arrays import Array
from mlore_edu.atomic import write_atomically
from mlore_edu.data import labels
from mlore_edu.data.dollhouse import Scene, scene
from mlore_edu.data.files import npy_bytes, png_bytes
from mlore_edu.tasks import DOLLHOUSE_CLASSES, NYUD_CLASSES, PASCAL_CLASSES

Layout = Literal["dollhouse", "pascal_context", "nyud_v2"]

Job = tuple[str, Layout, int, tuple[int, int], str]
"""(root, layout, scene seed, (height, width), difficulty)."""

SPLIT_FILES = {"dollhouse": "{}.txt", "pascal_context": "ImageSets/Context/{}.txt", "nyud_v2": "gt_sets/{}.txt"}
"""Where each layout lists the ids of a split."""

_VOC_NAMES = {"table": "diningtable", "chair": "chair", "sofa": "sofa", "plant": "pottedplant", "person": "person"}
_NYUD_NAMES = {"rug": "floor mat", "plant": "otherprop", "ball": "otherprop"}
_LABELMAP_NAMES = {"lamp": "light", "plant": "pottedplant"}

TO_VOC = np.array([PASCAL_CLASSES.index(_VOC_NAMES.get(name, "background")) for name in DOLLHOUSE_CLASSES], np.uint8)
"""Dollhouse class → one of PASCAL VOC's 21; what VOC does not know is background."""
TO_NYUD = np.array([NYUD_CLASSES.index(_NYUD_NAMES.get(name, name)) for name in DOLLHOUSE_CLASSES], np.uint8)
"""Dollhouse class → one of NYUD-v2's 40 (0…39, as in memory)."""
TO_LABELMAP = np.array([labels.LABELMAP_IDS[_LABELMAP_NAMES.get(name, name)] for name in DOLLHOUSE_CLASSES], np.uint16)
"""Dollhouse class → PASCAL-Context's 459. A potted plant is none of the 170 with trusted normals, so that rule acts."""

_PART_NAMES = ("", "head", "torso", "luarm", "llarm", "luleg", "llleg")
"""A name among PASCAL-Part's 24 that merges back into each of the six parts."""


@lru_cache
def palette() -> list[int]:
    """PASCAL VOC's 256 colours: the bits of a class number, dealt in turn to red, green and blue, highest first."""
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((np.arange(256) >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return [int(value) for value in colours.ravel()]


def _jpeg(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _mat(**variables: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables, do_compression=True)
    # The header's 116 characters of text carry the date; without it, equal content is equal bytes.
    return b"MATLAB 5.0 MAT-file, Dollhouse".ljust(116) + stream.getvalue()[116:]


def _structs(rows: list[dict[str, Any]]) -> Array:
    """A MATLAB structure array; an empty array where there is nothing, as in PASCAL-Part."""
    if not rows:
        return np.zeros((0, 0))
    table = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        table[0, i] = tuple(row.values())
    return table


def part_annotation(rendered: Scene, name: str) -> dict[str, Any]:
    """PASCAL-Part's ``anno`` structure of a scene: one object per instance of a VOC class, people with their parts."""
    objects = []
    for instance in np.unique(rendered.instances):
        inside = rendered.instances == instance
        voc = int(TO_VOC[rendered.semseg[inside][0]])
        if voc == 0:
            continue
        shown = [part for part in np.unique(rendered.human_parts[inside]) if part > 0]
        parts = [
            {"part_name": _PART_NAMES[part], "mask": (inside & (rendered.human_parts == part)).astype(np.uint8)}
            for part in shown
        ]
        objects.append(
            {"class": PASCAL_CLASSES[voc], "class_ind": voc, "mask": inside.astype(np.uint8), "parts": _structs(parts)}
        )
    return {"imname": name, "objects": _structs(objects)}


ENCODERS: dict[str, dict[str, Callable[[Scene, str], bytes]]] = {
    "dollhouse": {
        "images/{}.png": lambda s, _: png_bytes(s.image),
        "semseg/{}.png": lambda s, _: png_bytes(s.semseg, palette()),
        "human_parts/{}.png": lambda s, _: png_bytes(s.human_parts, palette()),
        "saliency/{}.png": lambda s, _: png_bytes(s.saliency * np.uint8(255)),
        "normals/{}.png": lambda s, _: png_bytes(labels.encode_normals(s.normals)),
        "depth/{}.png": lambda s, _: png_bytes(labels.encode_depth(s.depth)),
        "edge/{}.png": lambda s, _: png_bytes(s.edge * np.uint8(255)),
    },
    "pascal_context": {
        "JPEGImages/{}.jpg": lambda s, _: _jpeg(s.image),
        "semseg/VOC12/{}.png": lambda s, _: png_bytes(TO_VOC[s.semseg], palette()),
        "pascal-context/trainval/{}.mat": lambda s, _: _mat(LabelMap=TO_LABELMAP[s.semseg]),
        "human_parts/{}.mat": lambda s, name: _mat(anno=part_annotation(s, name)),
        "normals_distill/{}.png": lambda s, _: png_bytes(labels.encode_normals(s.normals)),
        "sal_distill/{}.png": lambda s, _: png_bytes(s.saliency * np.uint8(255)),
    },
    "nyud_v2": {
        "images/{}.png": lambda s, _: png_bytes(s.image),
        "segmentation/{}.png": lambda s, _: png_bytes(labels.encode_nyud_semseg(TO_NYUD[s.semseg])),
        "normals/{}.png": lambda s, _: png_bytes(labels.encode_normals(s.normals)),
        "depth/{}.npy": lambda s, _: npy_bytes(s.depth),
        "edge/{}.png": lambda s, _: png_bytes(s.edge * np.uint8(255)),
    },
}
"""The files of each layout, and how a scene becomes each of them."""


def scene_files(layout: Layout, name: str) -> tuple[str, ...]:
    """Paths of all files of one scene, relative to the data set's folder."""
    return tuple(path.format(name) for path in ENCODERS[layout])


def write_file(path: Path, content: bytes) -> None:
    """A file of the data set, as a whole or not at all; its folders are made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, durable=False)  # it can be rendered again


def write_scene(job: Job) -> dict[str, str]:
    """Render one scene and write its files.

    Parameters
    ----------
    job
        (root, layout, scene seed, size, difficulty).

    Returns
    -------
    dict
        SHA-256 by path relative to ``root``.
    """
    root, layout, seed, size, difficulty = job
    written = {}
    rendered, name = scene(seed, size, difficulty), scene_name(seed)
    for pattern, encode in ENCODERS[layout].items():
        path, content = pattern.format(name), encode(rendered, name)
        write_file(Path(root) / path, content)
        written[path] = hashlib.sha256(content).hexdigest()
    return written


def scene_name(seed: int) -> str:
    """The id of a scene is its seed, so that any picture can be rendered again."""
    return f"{seed:07d}"
