"""Files in, files out: predictions for images, folders and films as pictures and arrays (chapter 19).

One bad file does not stop the others. Nothing that was there is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mlore_edu.atomic import write_atomically
from mlore_edu.checks import check_new, check_whole
from mlore_edu.data.files import png_bytes
from mlore_edu.errors import UserError
from mlore_edu.images import FILMS, film_frames, read_image
from mlore_edu.model import MultiTaskModel
from mlore_edu.pictures import panel
from mlore_edu.prediction import predict, tasks_of
from mlore_edu.saved_predictions import encode
from mlore_edu.tasks import TaskSet
from mlore_edu.training.checkpoint import explain_disk_errors

SIDE = 480
"""Width in pixels of each map in a picture, at most."""


@dataclass
class Outcome:
    """What became of many files.

    Parameters
    ----------
    written
        Ids of the images that were predicted.
    failures
        Why others were not, by file: one sentence each.
    """

    written: list[str] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)


def predict_files(
    model: MultiTaskModel,
    sources: Sequence[Path],
    out: Path,
    *,
    arrays: bool = False,
    every: int = 1,
    progress: bool = True,
    **options: Any,
) -> Outcome:
    """Predict files, and write a picture of each and, where asked for, its answers.

    Parameters
    ----------
    model
        Built by :func:`~mlore_edu.model.build_model`, or loaded.
    sources
        Images, folders of images (without the folders in them), and films.
    out
        A folder that is new or empty. It will hold ``ID.png``, a picture of all answers over the image; and with
        ``arrays`` also ``TASK/ID.png`` or ``.npy``, at the image's own size, in the form that
        ``mlore-edu evaluate --predictions`` reads. ID is the file's name without its ending; for a film, with the
        number of the picture.
    arrays
        Whether to write these.
    every
        Of a film, take one of so many pictures.
    progress
        Show a progress bar.
    **options
        ``enlarge`` and ``focal_ratio`` of :func:`~mlore_edu.prediction.predict`.

    Returns
    -------
    Outcome
        What was written, and the files that could not be predicted. Chapter 19.

    Raises
    ------
    UserError
        If there is nothing to predict, two files would get one name, or ``out`` is not empty or cannot be written.
    """
    check_whole(1, every=every)
    files, tasks, outcome = find_images(sources), tasks_of(model), Outcome()
    check_new(out, "--out")
    with explain_disk_errors(f"the predictions to {out}", option="--out"):
        for folder in (out, *(out / name for name in tasks.names if arrays)):
            folder.mkdir(parents=True, exist_ok=True)
    for path in tqdm(files, desc="predicting", disable=not progress or len(files) == 1, leave=False):
        try:
            for name, image in _images(path, every):
                answers = predict(model, image, **options)
                _write(out, name, image, answers, tasks, arrays)
                outcome.written.append(name)
        except UserError as error:
            outcome.failures[path] = str(error)
    return outcome


def find_images(sources: Sequence[Path]) -> list[Path]:
    """The files that are meant: each file, and the images of each folder by their endings, sorted by name.

    Raises
    ------
    UserError
        If a source is not there, a folder holds no image, or two files would be written under one name.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: dict[str, Path] = {}
    for source in sources:
        found = [source]
        if source.is_dir():
            inside = (path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
            found = sorted(path for path in inside if path.suffix.lower() in endings)
            if not found:
                raise UserError(f"{source} holds no image; give a folder of JPEGs, PNGs or the like.")
        elif not source.exists():
            raise UserError(f"There is no file or folder {source}; check the path.")
        for path in found:
            if path.stem in files:
                raise UserError(f"{files[path.stem]} and {path} would both be {path.stem}.png; rename one of them.")
            files[path.stem] = path
    return list(files.values())


def _images(path: Path, every: int) -> Iterator[tuple[str, Tensor]]:
    """Names and images of one file: one, or those of a film."""
    if path.suffix.lower() not in FILMS:
        yield path.stem, read_image(path)
        return
    for number, frame in film_frames(path, every):
        yield f"{path.stem}_{number:06d}", frame


def _draw(image: Tensor, answers: Mapping[str, Tensor], tasks: TaskSet) -> Image.Image:
    """All answers over their image, side by side."""
    step = -(-max(image.shape[-2:]) // (2 * SIDE))  # of a large photo every so many pixels are enough
    row = {name: value[..., ::step, ::step].numpy() for name, value in {"image": image, **answers}.items()}
    classes = tasks["semseg"].channels if "semseg" in tasks else None
    return panel([row], side=max(64, min(SIDE, image.shape[-1])), classes=classes, overlaid=True)


def _write(out: Path, name: str, image: Tensor, answers: Mapping[str, Tensor], tasks: TaskSet, arrays: bool) -> None:
    picture = _draw(image, answers, tasks)
    with explain_disk_errors(f"the predictions to {out}", option="--out"):
        write_atomically(out / f"{name}.png", png_bytes(np.asarray(picture)), durable=False)
        for task in tasks if arrays else ():
            suffix, content = encode(task, answers[task.name].numpy())
            write_atomically(out / task.name / f"{name}{suffix}", content, durable=False)
