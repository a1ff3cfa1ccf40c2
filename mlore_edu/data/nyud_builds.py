"""The other two builds of NYUD-v2, written again in the file formats of ATRC's (chapter 15).

Nothing is resized or invented: images keep their pixels and sizes, so the numbers of the builds stay different; what
becomes equal is the way to read them. Everything that is not as the build is known to be is named, not absorbed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.atomic import write_atomically
from mlore_edu.data import labels
from mlore_edu.data.files import FileError, Folder, npy_bytes, png_bytes
from mlore_edu.data.nyud_v2 import FILES, RECORD, SPLITS, build_of
from mlore_edu.errors import UserError
from mlore_edu.tasks import IGNORE, NYUD_CLASSES

MEANING = {
    "ATRC": "the build of ATRC, InvPT and MLoRE, whose numbers the papers print",
    "ASTMT": "the build of ASTMT: numbers from it are not comparable with those of InvPT, TaskExpert or MLoRE",
    "MTL-PyTorch": (
        "the build of MTL-PyTorch, 480×640: numbers from it are not comparable with those of InvPT, TaskExpert or "
        "MLoRE, and its images do not fit the recipes' 448×576 frame, so train with --img-size 480 640"
    ),
}
"""What a build means for whoever trains on it."""

Shape = tuple[int, int]


def read_split_ids(folder: Folder) -> list[str]:
    """The ids of both splits."""
    return [name for split in ("train", "val") for name in folder.ids(SPLITS.format(split))]


def find_build(folder: Folder) -> str:
    """Which build a folder holds, told by the files of its first image that has any.

    Raises
    ------
    UserError
        If the files are those of no known build.
    """
    builds = (build_of(folder, name) for name in read_split_ids(folder))
    build = next((build for build in builds if build is not None), None)
    if build is None:
        raise UserError(
            f"{folder.root} holds none of the three builds of NYUD-v2 (no images/*.png, segmentation/*.mat or "
            "normals/*.npy of its splits); get one of the archives that 'python data_scripts/nyud_v2.py fetch' names."
        )
    return build


def _same(folder: Folder, path: str, shape: Shape) -> bytes:
    """A file that is as ATRC's already."""
    folder.pixels(path)
    return (folder.root / path).read_bytes()


def _picture(folder: Folder, path: str, shape: Shape) -> bytes:
    return png_bytes(folder.pixels(path, "RGB"))


def _classes(folder: Folder, path: str, values: Array, shape: Shape) -> bytes:
    folder.check_shape(path, values, shape)
    folder.check_values(path, values, len(NYUD_CLASSES), void=None)
    return png_bytes(values.astype(np.uint8))


def _matlab_classes(folder: Folder, path: str, shape: Shape) -> bytes:
    return _classes(folder, path, np.asarray(folder.matlab(path, "segmentation")), shape)


def _metres(folder: Folder, path: str, depth: Array, shape: Shape) -> bytes:
    depth = depth.squeeze(-1) if depth.ndim == 3 and depth.shape[-1] == 1 else depth
    folder.check_shape(path, depth, shape)
    if depth.dtype.kind != "f":
        raise folder.bad(path, f"holds values of type {depth.dtype}, not metres in floats", "type")
    return npy_bytes(depth.astype(np.float32))


def _matlab_metres(folder: Folder, path: str, shape: Shape) -> bytes:
    return _metres(folder, path, np.asarray(folder.matlab(path, "depth")), shape)


def _array_metres(folder: Folder, path: str, shape: Shape) -> bytes:
    return _metres(folder, path, folder.array(path), shape)


def _unit_vectors(folder: Folder, path: str, shape: Shape) -> bytes:
    """Floats to 8 bits: at most 0.4° are lost; "no normal here", zero, becomes a vector too short to be a normal."""
    normals = folder.array(path)
    folder.check_shape(path, normals, (*shape, 3))
    length = np.linalg.norm(normals.astype(np.float64), axis=-1)
    odd = (length > 0.01) & (abs(length - 1) > 0.1)
    if not np.isfinite(length).all() or odd.mean() > 0.01:
        raise folder.bad(path, f"holds vectors that are no unit normals in {odd.mean():.0%} of its pixels", "value")
    return png_bytes(labels.encode_normals(normals))


def _boundaries(folder: Folder, path: str, shape: Shape) -> bytes:
    edge = folder.array(path)
    edge = edge.squeeze(-1) if edge.ndim == 3 and edge.shape[-1] == 1 else edge
    folder.check_shape(path, edge, shape)
    if not np.isin(edge, (0, 1)).all():
        raise folder.bad(path, "holds other values than 0 and 1", "value")
    return png_bytes(edge.astype(np.uint8) * np.uint8(IGNORE))


Encoder = Callable[[Folder, str, Shape], bytes]
CONVERSIONS: dict[str, dict[str, tuple[str, Encoder]]] = {
    "ASTMT": {
        "images": ("jpg", _picture),
        "segmentation": ("mat", _matlab_classes),
        "normals": ("jpg", _picture),
        "depth": ("mat", _matlab_metres),
        "edge": ("png", _same),
    },
    "MTL-PyTorch": {
        "images": ("jpg", _picture),
        "segmentation": ("png", _same),
        "normals": ("npy", _unit_vectors),
        "depth": ("npy", _array_metres),
        "edge": ("npy", _boundaries),
    },
}
"""How each kind of file is stored in a build, and how it becomes ATRC's."""


@dataclass(frozen=True)
class Conversion:
    """One image to convert: from which folder and build, into which folder."""

    source: Folder
    build: str
    target: Path
    name: str


def convert(job: Conversion) -> list[FileError]:
    """Write the files of one image in ATRC's formats; those already there are kept, bad ones are left out.

    Parameters
    ----------
    job
        The image.

    Returns
    -------
    list of FileError
        What could not be converted.
    """
    conversions, faults = CONVERSIONS[job.build], []
    try:
        shape = job.source.size(f"images/{job.name}.{conversions['images'][0]}")
    except FileError as fault:
        return [fault]
    for kind, (suffix, encode) in conversions.items():
        target = job.target / FILES[kind][0].format(job.name)
        if target.exists():
            continue
        try:
            content = encode(job.source, f"{kind}/{job.name}.{suffix}", shape)
        except FileError as fault:
            faults.append(fault)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content, durable=False)
    return faults


def begin_conversion(source: Folder, build: str, draft: Path) -> list[Conversion]:
    """Make the draft folder of a conversion, or go on with one of the same source, and list its images.

    Parameters
    ----------
    source
        The build as it came; it is only read.
    build
        Which one it is.
    draft
        Where the converted files are collected.
    """
    record: dict[str, Any] = {"data": "nyud_v2", "build": build, "source": str(source.root), "meaning": MEANING[build]}
    if draft.exists() and _record(draft) != record:
        shutil.rmtree(draft)  # begun from another folder
    draft.mkdir(parents=True, exist_ok=True)
    write_atomically(draft / RECORD, json.dumps(record, indent=2, ensure_ascii=False).encode())
    return [Conversion(source, build, draft, name) for name in read_split_ids(source)]


def finish_conversion(source: Folder, draft: Path) -> None:
    """Copy the lists of both splits (and Dollhouse's own description): readers accept the folder from now on."""
    for path in (*(SPLITS.format(split) for split in ("train", "val")), "dataset.json"):
        if (source.root / path).exists():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(draft / path, (source.root / path).read_bytes())


def _record(folder: Path) -> Any:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
