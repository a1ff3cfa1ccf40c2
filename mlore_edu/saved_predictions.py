"""Predictions as files, this book's or anybody's: one folder for each task, one file for each image (chapter 15).

=============== ================ ============ ===============================================================
folder          file             shape        holds
=============== ================ ============ ===============================================================
semseg,         ID.png, 8 bit    (H, W)       class ids 0 … classes − 1 (colours of a palette do not matter)
human_parts     ID.npy, integers (H, W)       the same
saliency, edge  ID.png, 8 bit    (H, W)       probability v / 255
                ID.npy, floats   (H, W)       probability 0 … 1
normals         ID.png, 8 bit    (H, W, 3)    n = 2 v / 255 − 1; x right, y up, z towards the camera
                ID.npy, floats   (H, W, 3)    n, each component −1 … 1
depth           ID.npy, floats   (H, W)       metres
                ID.png, 16 bit   (H, W)       millimetres
=============== ================ ============ ===============================================================

ID is the image's name in the list of the validation split. NYUD-v2's classes are 0 … 39, one less than in its files.
H × W is the size of the image itself, without padding; a file of the size that the field pads to (:data:`FRAMES`) is
recognised, and its centre taken. :func:`save_answers` writes class ids and probabilities as PNG, normals and depth as
``.npy``. Read back they give the numbers of the run itself, to the last digit; only saliency moves a little, because
its probability is rounded by up to 1/510. (The protocol of boundaries rounds to 8 bits anyway.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlore_edu.arrays import Array
from mlore_edu.atomic import write_atomically
from mlore_edu.data import labels
from mlore_edu.data.files import Folder, npy_bytes, png_bytes
from mlore_edu.data.loaders import Batch
from mlore_edu.data.tensors import Sample
from mlore_edu.errors import UserError
from mlore_edu.evaluation import Answered, Answers
from mlore_edu.tasks import Task, TaskSet
from mlore_edu.training.checkpoint import explain_disk_errors

FRAMES = {"pascal_context": (512, 512), "nyud_v2": (448, 576)}
"""Height and width that the field pads validation images to, by data set."""

SYNONYMS = {
    **dict.fromkeys(("seg", "semantic", "segmentation", "semantic_segmentation"), "semseg"),
    **dict.fromkeys(("parts", "human_part", "part", "parsing"), "human_parts"),
    "sal": "saliency",
    **dict.fromkeys(("normal", "surface_normals"), "normals"),
    **dict.fromkeys(("edges", "boundary", "boundaries"), "edge"),
}
"""What others call the folders of tasks."""

SUFFIXES = (".png", ".npy")
REMEDY = "save it again in the form that mlore_edu/saved_predictions.py describes"

Size = tuple[int, int]


@dataclass(frozen=True)
class PredictionFiles:
    """Which predictions a folder holds.

    Parameters
    ----------
    root
        The folder.
    names
        By task and id of the image: the file's path below the folder.
    strangers
        By task: files that are named after no image of the split, and not read.
    """

    root: Path
    names: Mapping[str, Mapping[str, str]]
    strangers: Mapping[str, int]


def find_predictions(root: Path, tasks: TaskSet, ids: Sequence[str], *, partial: bool = False) -> PredictionFiles:
    """See which tasks and images a folder of predictions has.

    Parameters
    ----------
    root
        Folder with a folder for each task; which tasks is free.
    tasks
        Those of the data set.
    ids
        Its images.
    partial
        Whether images may be missing.

    Raises
    ------
    UserError
        If there is no folder of a task, one of an unknown task, two of one task, a task without any image, an image
        with two files, or an image without one unless ``partial``.
    """
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give the one that holds the folders of the tasks.")
    found: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        task = SYNONYMS.get(folder.name.lower(), folder.name.lower())
        if task not in tasks:
            known = f"{tasks.name} ({', '.join(tasks.names)})"
            raise UserError(f"{folder} is named after no task of {known}; rename it, or move it away.")
        if task in found:
            raise UserError(f"{found[task]} and {folder} are both {task}; move one of them away.")
        found[task] = folder
    if not found:
        raise UserError(f"{root} holds no folder of a task; put predictions into {root / tasks.names[0]}, and so on.")
    files = {task: _files(folder) for task, folder in found.items()}
    names = {
        task: {name: f"{found[task].name}/{files[task][name]}" for name in ids if name in files[task]}
        for task in tasks.names
        if task in found
    }
    for task, present in names.items():
        _check_complete(found[task], ids, present, partial)
    return PredictionFiles(root, names, {task: len(files[task]) - len(names[task]) for task in names})


def _files(folder: Path) -> dict[str, str]:
    """Name of the file by id."""
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES and not path.name.startswith("."):
            if path.stem in files:
                raise UserError(f"{folder} holds both {files[path.stem]} and {path.name}; move one of them away.")
            files[path.stem] = path.name
    return files


def _check_complete(folder: Path, ids: Sequence[str], present: Mapping[str, str], partial: bool) -> None:
    if not present:
        raise UserError(
            f"{folder} holds no prediction of the {len(ids)} images; name files after them, such as {ids[0]}.png or "
            f"{ids[0]}.npy."
        )
    missing = [name for name in ids if name not in present]
    if missing and not partial:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(ids)} images ({some}); add them, or judge only those that are "
            "there with --partial."
        )


@dataclass(frozen=True)
class ReadPredictions:
    """A step of a transform: put an image's saved predictions into ``meta["predictions"]``.

    They are decoded (:func:`mlore_edu.evaluation.decode`) and in a batch of one. Raises a UserError that names the
    file which is damaged, of another size, type or number of channels, or out of range.

    Parameters
    ----------
    files
        From :func:`find_predictions`.
    tasks
        Those to read.
    frame
        Height and width of padded predictions; None: there are none.
    """

    files: PredictionFiles
    tasks: TaskSet
    frame: Size | None = None

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        meta, folder = sample["meta"], Folder(self.files.root, REMEDY)
        predictions = {
            task.name: read_prediction(folder, self.files.names[task.name][meta["id"]], task, meta["size"], self.frame)
            for task in self.tasks
            if meta["id"] in self.files.names[task.name]
        }
        return {**sample, "meta": {**meta, "predictions": predictions}}


def read_prediction(folder: Folder, name: str, task: Task, size: Size, frame: Size | None = None) -> Tensor:
    """Read one file.

    Parameters
    ----------
    folder, name
        Where it lies.
    task
        What it predicts.
    size, frame
        Height and width of the image, and of its padded frame.

    Returns
    -------
    Tensor
        Class ids int64 (1, H, W); probability float32 (1, H, W); normals float32 (1, 3, H, W); metres float32
        (1, 1, H, W).
    """
    stored = folder.array(name) if name.endswith(".npy") else folder.pixels(name)
    values = _READERS[task.metric](folder, name, _unpadded(folder, name, stored, task, size, frame), task)
    values = np.moveaxis(values, -1, 0) if task.metric == "mErr" else values  # (3, H, W)
    tensor = torch.from_numpy(np.ascontiguousarray(values))[None]
    return tensor[None] if task.metric == "RMSE" else tensor


def _unpadded(folder: Folder, name: str, values: Array, task: Task, size: Size, frame: Size | None) -> Array:
    """The part of a prediction that covers the image, which padding puts at the centre of its frame."""
    channels = (3,) if task.metric == "mErr" else ()
    if values.shape == (*size, *channels):
        return values
    if frame and values.shape == (*frame, *channels) and size[0] <= frame[0] and size[1] <= frame[1]:
        top, left = ((outer - inner) // 2 for outer, inner in zip(frame, size))
        return values[top : top + size[0], left : left + size[1]]
    padded = f" (or, padded, {_by((*frame, *channels))})" if frame else ""
    raise folder.bad(name, f"is {_by(values.shape)}, but its image needs {_by((*size, *channels))}{padded}", "size")


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _read_classes(folder: Folder, name: str, values: Array, task: Task) -> Array:
    if values.dtype.kind not in "iu":
        raise folder.bad(name, f"holds values of type {values.dtype}, not class ids in integers", "type")
    folder.check_values(name, values, task.channels - 1, void=None)
    return values.astype(np.int64)


def _read_probability(folder: Folder, name: str, values: Array, task: Task) -> Array:
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    return _read_floats(folder, name, values, 0, 1, "probabilities in 8 bits or floats")


def _read_normals(folder: Folder, name: str, values: Array, task: Task) -> Array:
    if values.dtype == np.uint8:
        return labels.decode_normals(values)
    return _read_floats(folder, name, values, -1.001, 1.001, "normals in 8 bits or floats")  # rounding may pass 1


def _read_depth(folder: Folder, name: str, values: Array, task: Task) -> Array:
    if values.dtype.kind in "iu" and values.dtype.itemsize > 1:
        return labels.decode_depth(values)
    return _read_floats(folder, name, values, -np.inf, np.inf, "metres in floats or millimetres in 16 bits")


def _read_floats(folder: Folder, name: str, values: Array, least: float, most: float, wanted: str) -> Array:
    if values.dtype.kind != "f":
        raise folder.bad(name, f"holds values of type {values.dtype}, not {wanted}", "type")
    values = values.astype(np.float32)
    wrong = values[~(np.isfinite(values) & (values >= least) & (values <= most))]
    if wrong.size:
        kinds = "finite numbers" if least == -np.inf else f"{least:.0f}…{most:.0f}"
        raise folder.bad(name, f"holds the value {wrong.flat[0]:g}, where only {kinds} can be", "value")
    return values


_READERS: Mapping[str, Callable[[Folder, str, Array, Task], Array]] = {
    "mIoU": _read_classes,
    "maxF": _read_probability,
    "odsF": _read_probability,
    "mErr": _read_normals,
    "RMSE": _read_depth,
}
"""How a file is read and checked, by the metric of its task."""


def save_answers(
    answered: Answered, folder: Path, tasks: TaskSet, *, threads: int = 4
) -> Iterator[tuple[Answers, Batch]]:
    """Write answers as files while they pass, without their padding.

    Parameters
    ----------
    answered
        Answers and batches, as :func:`mlore_edu.evaluation.evaluate` hands them to its ``keep``.
    folder
        Where to write ``<task>/<id>.png`` and ``.npy``; its folders are made.
    tasks
        Those to write.
    threads
        That write while the model goes on.

    Yields
    ------
    tuple
        The same answers and batches.
    """
    with explain_disk_errors(f"the predictions to {folder}", option="--save-predictions"):
        for task in tasks:
            (folder / task.name).mkdir(parents=True, exist_ok=True)
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for answers, batch in answered:
            for index, meta in enumerate(batch["meta"]):
                maps = {task: _inner(answers[task.name][index], meta).cpu().numpy() for task in tasks}
                pending.append(pool.submit(_write, folder, meta["id"], maps))
            while len(pending) > 4 * threads:  # waiting maps take memory
                pending.popleft().result()
            yield answers, batch
        for future in pending:
            future.result()


def _inner(answer: Tensor, meta: Mapping[str, Size]) -> Tensor:
    """The part of an answer that covers the image itself."""
    (top, left), (height, width) = meta.get("offset", (0, 0)), meta["size"]
    return answer[..., top : top + height, left : left + width]


def _write(folder: Path, name: str, maps: Mapping[Task, Array]) -> None:
    with explain_disk_errors(f"the predictions to {folder}", option="--save-predictions"):
        for task, values in maps.items():
            suffix, content = encode(task, values)
            write_atomically(folder / task.name / f"{name}{suffix}", content, durable=False)


def encode(task: Task, answer: Array) -> tuple[str, bytes]:
    """A decoded prediction of one image as a file: suffix and content.

    Parameters
    ----------
    task
        What is predicted.
    answer
        Class ids or probability (H, W), normals (3, H, W), metres (1, H, W).
    """
    if task.metric == "mIoU":
        return ".png", png_bytes(answer.astype(np.uint8))
    if task.metric in ("maxF", "odsF"):
        return ".png", png_bytes(np.round(answer.astype(np.float64) * 255).astype(np.uint8))
    return ".npy", npy_bytes(np.ascontiguousarray(np.moveaxis(answer, 0, -1)) if task.metric == "mErr" else answer[0])
