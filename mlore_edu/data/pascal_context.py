"""PASCAL-Context in the multi-task build that the papers share (chapter 15).

Five labels per image, each from its own source: VOC's and PASCAL-Context's segmentations, PASCAL-Part's people, and
normals and saliency that other networks predicted ("distilled"). Boundaries, and where normals can be trusted, follow
from the 459-class ``LabelMap``; ``data_scripts/pascal_context.py prepare`` derives them once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from mlore_edu.arrays import Array
from mlore_edu.data import labels
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.derived import DerivedLabels
from mlore_edu.data.files import class_map, normals_map, open_split
from mlore_edu.data.tensors import Sample, Step
from mlore_edu.tasks import PASCAL_CLASSES, PASCAL_CONTEXT, TaskSet

SPLITS = "ImageSets/Context/{}.txt"
FILES = {
    "JPEGImages": ("JPEGImages/{}.jpg",),
    "semseg": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "pascal-context": ("pascal-context/trainval/{}.mat",),
    "human_parts": ("human_parts/{}.mat",),
    "normals_distill": ("normals_distill/{}.png",),
    "sal_distill": ("sal_distill/{}.png",),
}
"""Where each kind of file is; of two places the first one that holds the file counts."""
DERIVED: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "edge": ("pascal-context", labels.labelmap_boundaries),
    "normals_trusted": ("pascal-context", labels.trusted_normals),
    "human_parts": ("human_parts", labels.no_parts_ignored),
}
"""Labels that follow from stored ones: from which, and by which rule."""


class PASCALContext(LabelledImages):
    """The images of one split with their labels.

    Parameters
    ----------
    root
        Folder with ``JPEGImages``, ``ImageSets/Context``, ``semseg``, ``pascal-context/trainval``, ``human_parts``,
        ``normals_distill`` and ``sal_distill``; it is only read.
    split
        ``"train"`` (4,998 images) or ``"val"`` (5,105).
    tasks, transform
        As for every data set.

    Raises
    ------
    UserError
        Naming the folder or file that is missing, damaged, of another size than its image, or out of range.
    """

    offers = PASCAL_CONTEXT

    def __init__(
        self, root: str | Path, split: str, tasks: TaskSet | None = None, transform: Step | None = None
    ) -> None:
        remedy = (
            "give the folder of the unpacked PASCALContext archive (--root), and unpack it again if a file is damaged"
        )
        self.folder, ids = open_split(root, SPLITS, split, "PASCAL-Context", remedy)
        self.derived = DerivedLabels(root)
        super().__init__(ids, tasks or self.offers, transform)

    def load(self, index: int) -> Sample:
        name = self.ids[index]
        image = self.picture(name)
        shape = (image.shape[-2], image.shape[-1])
        sample: Sample = {"image": image}
        sources: dict[str, Array] = {}  # boundaries and trusted normals follow from one file, read once
        for task in self.tasks.names:
            sample[task] = self._label(task, name, shape, sources)
        return {**sample, "meta": {"id": name, "size": shape}}

    def picture(self, name: str) -> tv_tensors.Image:
        """One image, uint8 (3, H, W)."""
        return self.folder.image(f"JPEGImages/{name}.jpg")

    def _label(self, task: str, name: str, shape: tuple[int, int], sources: dict[str, Array]) -> Any:
        if task == "semseg":
            return class_map(self.stored("semseg", name, shape))
        if task == "saliency":
            return class_map(labels.decode_saliency(self.stored("sal_distill", name, shape)))
        if task != "normals":
            return class_map(self._derive(task, name, shape, sources))
        normals = labels.decode_normals(self.stored("normals_distill", name, shape))
        return normals_map(labels.mask_normals(normals, self._derive("normals_trusted", name, shape, sources)))

    def _derive(self, kind: str, name: str, shape: tuple[int, int], sources: dict[str, Array]) -> Array:
        """A label (H, W) that follows from stored ones: from the cache where it is kept, else by the field's rule."""
        source, rule = DERIVED[kind]
        kept = self.derived.read(kind, self.folder.root / FILES[source][0].format(name))
        if kept is not None and kept.shape == shape:
            return kept
        if source not in sources:
            sources[source] = self.stored(source, name, shape)
        return rule(sources[source])

    def stored(self, kind: str, name: str, shape: tuple[int, int]) -> Array:
        """One file of labels as it is stored, checked; people's parts already merged to six."""
        places = [pattern.format(name) for pattern in FILES[kind]]
        path = next((place for place in places if (self.folder.root / place).exists()), places[0])
        if kind == "pascal-context":
            return self._labelmap(path, shape)
        if kind == "human_parts":
            return self._merged_parts(path, shape)
        if kind == "normals_distill":
            return self.folder.coloured(path, shape)
        pixels = self.folder.grey(path, shape)
        if kind == "semseg":
            self.folder.check_values(path, pixels, len(PASCAL_CLASSES) - 1)
        return pixels

    def _merged_parts(self, path: str, shape: tuple[int, int]) -> Array:
        anno = self.folder.matlab(path, "anno")
        try:
            return labels.merge_person_parts(anno, shape)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            what = f"does not hold the people's parts as PASCAL-Part does ({type(error).__name__}: {error})"
            raise self.folder.bad(path, what) from None

    def _labelmap(self, path: str, shape: tuple[int, int]) -> Array:
        labelmap: Array = np.asarray(self.folder.matlab(path, "LabelMap"))
        self.folder.check_shape(path, labelmap, shape)
        self.folder.check_values(path, labelmap, len(labels.LABELMAP_IDS), void=None)
        return labelmap
