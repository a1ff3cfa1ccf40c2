"""PASCAL-Context in the multi-task build that the papers share (chapter 15).

Five labels per image, each from its own source: VOC's and PASCAL-Context's segmentations, PASCAL-Part's people, and
normals and saliency that other networks predicted ("distilled"). Boundaries, and where normals can be trusted, follow
from the 459-class ``LabelMap``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlore_edu.data import labels
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.files import Array, class_map, normals_map, open_split
from mlore_edu.data.tensors import Sample, Step
from mlore_edu.tasks import PASCAL_CLASSES, PASCAL_CONTEXT, TaskSet


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
        self.folder, ids = open_split(root, "ImageSets/Context/{}.txt", split, "PASCAL-Context", remedy)
        super().__init__(ids, tasks or self.offers, transform)

    def load(self, index: int) -> Sample:
        name = self.ids[index]
        image = self.folder.image(f"JPEGImages/{name}.jpg")
        shape = (image.shape[-2], image.shape[-1])
        labelmap = self._labelmap(name, shape) if "edge" in self.tasks or "normals" in self.tasks else None
        sample: Sample = {"image": image}
        for task in self.tasks.names:
            sample[task] = self._label(task, name, shape, labelmap)
        return {**sample, "meta": {"id": name, "size": shape}}

    def _label(self, task: str, name: str, shape: tuple[int, int], labelmap: Array | None) -> Any:
        if task == "semseg":
            return class_map(self._semseg(name, shape))
        if task == "human_parts":
            return class_map(self._human_parts(name, shape))
        if task == "saliency":
            return class_map(labels.decode_saliency(self.folder.grey(f"sal_distill/{name}.png", shape)))
        assert labelmap is not None
        if task == "normals":
            pixels = self.folder.coloured(f"normals_distill/{name}.png", shape)
            return normals_map(labels.mask_normals(labels.decode_normals(pixels), labelmap))
        return class_map(labels.labelmap_boundaries(labelmap))

    def _semseg(self, name: str, shape: tuple[int, int]) -> Array:
        path = f"semseg/VOC12/{name}.png"
        if not (self.folder.root / path).exists():
            path = f"semseg/pascal-context/{name}.png"
        semseg = self.folder.grey(path, shape)
        self.folder.check_values(path, semseg, len(PASCAL_CLASSES) - 1)
        return semseg

    def _human_parts(self, name: str, shape: tuple[int, int]) -> Array:
        path = f"human_parts/{name}.mat"
        anno = self.folder.matlab(path, "anno")
        try:
            return labels.no_parts_ignored(labels.merge_person_parts(anno, shape))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            what = f"does not hold the people's parts as PASCAL-Part does ({type(error).__name__}: {error})"
            raise self.folder.bad(path, what) from None

    def _labelmap(self, name: str, shape: tuple[int, int]) -> Array:
        path = f"pascal-context/trainval/{name}.mat"
        labelmap: Array = self.folder.matlab(path, "LabelMap")
        self.folder.check_shape(path, labelmap, shape)
        self.folder.check_values(path, labelmap, len(labels.LABELMAP_IDS), void=None)
        return labelmap
