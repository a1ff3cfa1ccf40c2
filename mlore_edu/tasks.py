"""What is predicted: tasks, and the task sets of the three data sets (chapter 1).

A :class:`Task` says everything the rest of the library needs to know about one kind of label: how many channels a
head predicts, which loss trains it, which metric judges it, and which value marks a pixel that does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from mlore_edu.errors import UserError

Loss = Literal["cross_entropy", "balanced_cross_entropy", "weighted_bce", "normals_l1", "depth_l1"]
Metric = Literal["mIoU", "maxF", "mErr", "RMSE", "odsF"]

IGNORE = 255
"""Label of a pixel that does not count, in class maps, saliency and boundaries."""


@dataclass(frozen=True)
class Task:
    """One dense prediction task.

    Parameters
    ----------
    name
        Key in every dictionary of predictions and targets, e.g. ``"semseg"``.
    title
        Name for people, e.g. ``"Semantic segmentation"``.
    channels
        Channels of the prediction (classes; 3 for normals; 1 for depth and boundaries).
    loss, loss_weight
        Training loss and its weight in the sum (chapter 3).
    metric, unit, lower_is_better
        Evaluation metric (chapter 2), its unit, and its direction.
    ignore
        Label value that does not count: 255, or 0 for depth (metres) and normals (the zero vector).
    class_names
        One name per class, empty for regression tasks.
    """

    name: str
    title: str
    channels: int
    loss: Loss
    loss_weight: float
    metric: Metric
    unit: str
    lower_is_better: bool = False
    ignore: int = IGNORE
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSet:
    """An ordered set of tasks that one model predicts in one pass.

    ``task_set["semseg"]`` looks a task up, ``task_set.names`` lists the names in order, iteration gives the tasks.
    """

    name: str
    tasks: tuple[Task, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def __getitem__(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f"{self.name} has no task {name!r}; its tasks are {', '.join(self.names)}.")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def subset(self, *names: str) -> TaskSet:
        """The same task set with only the named tasks, in this set's order (single-task baselines use it)."""
        wanted = {self[name].name for name in names}
        return replace(self, tasks=tuple(task for task in self.tasks if task.name in wanted))


PASCAL_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
"""The 21 classes of PASCAL VOC, background first."""

NYUD_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *(
        "counter",
        "blinds",
        "desk",
        "shelves",
        "curtain",
        "dresser",
        "pillow",
        "mirror",
        "floor mat",
        "clothes",
    ),
    *(
        "ceiling",
        "books",
        "refrigerator",
        "television",
        "paper",
        "towel",
        "shower curtain",
        "box",
        "whiteboard",
    ),
    *(
        "person",
        "night stand",
        "toilet",
        "sink",
        "lamp",
        "bathtub",
        "bag",
        "otherstructure",
        "otherfurniture",
    ),
    "otherprop",
)
"""The 40 classes of NYUD-v2 (class 0 here is label 1 on disk; label 0 on disk is ignored)."""

DOLLHOUSE_CLASSES = (
    *("wall", "floor", "ceiling", "window", "picture", "rug", "table", "chair", "sofa", "bed", "cabinet"),
    *("lamp", "plant", "ball", "person"),
)
"""The 15 classes of Dollhouse; the names are those of NYUD-v2 or PASCAL where one exists."""

PART_NAMES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
"""The six human parts of the field's PASCAL-Part merge, background first."""

_HUMAN_PARTS = Task(
    "human_parts", "Human parts", len(PART_NAMES), "cross_entropy", 2.0, "mIoU", "%", class_names=PART_NAMES
)
_SALIENCY = Task(
    *("saliency", "Saliency", 2, "balanced_cross_entropy", 5.0, "maxF", "%"),
    class_names=("background", "salient"),
)
_NORMALS = Task("normals", "Surface normals", 3, "normals_l1", 10.0, "mErr", "°", lower_is_better=True, ignore=0)
_DEPTH = Task("depth", "Depth", 1, "depth_l1", 1.0, "RMSE", "m", lower_is_better=True, ignore=0)
_EDGE = Task("edge", "Boundaries", 1, "weighted_bce", 50.0, "odsF", "%")


def _semseg(class_names: tuple[str, ...]) -> Task:
    channels = len(class_names)
    return Task(
        *("semseg", "Semantic segmentation", channels, "cross_entropy", 1.0, "mIoU", "%"),
        class_names=class_names,
    )


PASCAL_CONTEXT = TaskSet("PASCAL-Context", (_semseg(PASCAL_CLASSES), _HUMAN_PARTS, _SALIENCY, _NORMALS, _EDGE))
"""Five tasks, in the order of the papers' tables."""

NYUD_V2 = TaskSet("NYUD-v2", (_semseg(NYUD_CLASSES), _DEPTH, _NORMALS, _EDGE))
"""Four tasks, in the order of the papers' tables."""

DOLLHOUSE = TaskSet("Dollhouse", (_semseg(DOLLHOUSE_CLASSES), _HUMAN_PARTS, _SALIENCY, _NORMALS, _DEPTH, _EDGE))
"""All six tasks, on rendered rooms with exact labels."""

TASK_SETS = {"pascal_context": PASCAL_CONTEXT, "nyud_v2": NYUD_V2, "dollhouse": DOLLHOUSE}
"""Task sets by the name that recipes and the command line use."""
