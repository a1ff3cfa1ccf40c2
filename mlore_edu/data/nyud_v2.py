"""NYUD-v2 in the build of ATRC, InvPT and MLoRE, told apart from the two others that circulate (chapter 15).

=================== ============= ================== ========= ========= ===========
build               images        segmentation       normals   depth     edge
=================== ============= ================== ========= ========= ===========
ASTMT               .jpg          .mat               .jpg      .mat      .png / 255
MTL-PyTorch         .jpg, 480×640 .png               .npy      .npy      .npy
ATRC, InvPT, MLoRE  .png, 425×560 .png               .png      .npy      .png / 255
=================== ============= ================== ========= ========= ===========

They give different numbers, so the other two are refused by name instead of read somehow;
``data_scripts/nyud_v2.py prepare`` writes them again in these file formats and records where they came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchvision import tv_tensors

from mlore_edu.arrays import Array
from mlore_edu.data import labels
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.files import Folder, class_map, depth_map, normals_map, open_split
from mlore_edu.data.tensors import Sample, Step
from mlore_edu.errors import UserError
from mlore_edu.tasks import NYUD_CLASSES, NYUD_V2, TaskSet

SPLITS = "gt_sets/{}.txt"
FILES = {
    "images": ("images/{}.png",),
    "segmentation": ("segmentation/{}.png",),
    "normals": ("normals/{}.png",),
    "depth": ("depth/{}.npy",),
    "edge": ("edge/{}.png",),
}
"""Where each kind of file is."""
RECORD = "build.json"
"""Says in a converted folder which build it was made of."""


def build_of(folder: Folder, name: str) -> str | None:
    """Which of the three builds holds the files of one image: "ASTMT", "MTL-PyTorch", "ATRC", or None.

    Parameters
    ----------
    folder
        The folder to look into.
    name
        An id from one of its splits.
    """
    has = {
        (kind, suffix): (folder.root / kind / f"{name}.{suffix}").exists()
        for kind in ("images", "segmentation", "normals", "depth", "edge")
        for suffix in ("jpg", "png", "npy", "mat")
    }
    if has["segmentation", "mat"] or has["depth", "mat"] or has["normals", "jpg"]:
        return "ASTMT"
    if has["normals", "npy"] or has["edge", "npy"]:
        return "MTL-PyTorch"
    return "ATRC" if has["images", "png"] else None


def recorded_build(root: Path) -> str:
    """The build a folder in ATRC's file formats came from, as ``prepare`` recorded it."""
    try:
        return str(json.loads((root / RECORD).read_text(encoding="utf-8"))["build"])
    except (OSError, ValueError, KeyError, TypeError):
        return "ATRC"


class NYUDv2(LabelledImages):
    """The images of one split with their labels.

    Parameters
    ----------
    root
        Folder with ``images``, ``segmentation``, ``normals``, ``depth``, ``edge`` and ``gt_sets``; it is only read.
    split
        ``"train"`` (795 images) or ``"val"`` (654).
    tasks, transform
        As for every data set.

    Raises
    ------
    UserError
        Naming another build, or the folder or file that is missing, damaged, of another size than its image, or out
        of range.
    """

    offers = NYUD_V2

    def __init__(
        self, root: str | Path, split: str, tasks: TaskSet | None = None, transform: Step | None = None
    ) -> None:
        remedy = "give the folder of the NYUDv2 archive of ATRC, InvPT and MLoRE, and unpack it again if a file is bad"
        self.folder, ids = open_split(root, SPLITS, split, "NYUD-v2", remedy)
        build = build_of(self.folder, ids[0])
        if build not in ("ATRC", None):
            raise UserError(
                f"{root} holds the {build} build of NYUD-v2, whose images and labels differ from those of the papers; "
                "get the NYUDv2 archive of ATRC, InvPT and MLoRE (PNG images of 425×560), or convert this one with "
                f"'python data_scripts/nyud_v2.py prepare --folder {root}'."
            )
        # Only MTL-PyTorch's floats could say "no normal here"; converted to 8 bits, those are the short vectors.
        self.shortest = 0.5 if recorded_build(self.folder.root) == "MTL-PyTorch" else 0.0
        super().__init__(ids, tasks or self.offers, transform)

    def load(self, index: int) -> Sample:
        name = self.ids[index]
        image = self.picture(name)
        shape = (image.shape[-2], image.shape[-1])
        sample: Sample = {"image": image}
        for task in self.tasks.names:
            sample[task] = self._label(task, name, shape)
        return {**sample, "meta": {"id": name, "size": shape}}

    def picture(self, name: str) -> tv_tensors.Image:
        """One image, uint8 (3, H, W)."""
        return self.folder.image(f"images/{name}.png")

    def _label(self, task: str, name: str, shape: tuple[int, int]) -> Any:
        stored = self.stored("segmentation" if task == "semseg" else task, name, shape)
        if task == "semseg":
            return class_map(labels.decode_nyud_semseg(stored))
        if task == "depth":
            return depth_map(labels.valid_depth(stored))
        return normals_map(labels.decode_normals(stored, self.shortest)) if task == "normals" else class_map(stored)

    def stored(self, kind: str, name: str, shape: tuple[int, int]) -> Array:
        """One file of labels as it is stored, checked; boundaries as 0 and 1."""
        path = FILES[kind][0].format(name)
        if kind == "depth":
            depth = self.folder.array(path)
            self.folder.check_shape(path, depth, shape)
            if depth.dtype.kind != "f":
                raise self.folder.bad(path, f"holds values of type {depth.dtype}, not metres in floats", "type")
            return depth
        if kind == "normals":
            return self.folder.coloured(path, shape)
        if kind == "edge":
            return self.folder.mask(path, shape)
        segmentation = self.folder.grey(path, shape)
        self.folder.check_values(path, segmentation, len(NYUD_CLASSES), void=None)
        return segmentation
