"""What ``mlore-edu evaluate`` judges: a run, a checkpoint of MLoRE's authors, or saved predictions (chapters 3 and 15).

Each comes down to the same thing, answers to the images of a validation split, and gives a :class:`Judgement`: the
numbers, and everything about how they came about that a reader of a table would ask.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from tqdm import tqdm

from mlore_edu.data.catalogue import BENCHMARKS
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.loaders import Batch, Loader, make_loader, open_dataset
from mlore_edu.data.transforms import IgnoreEmptyParts, Pipeline, ToTargets, eval_transform
from mlore_edu.errors import UserError
from mlore_edu.evaluation import (
    PROTOCOLS,
    Answered,
    Answers,
    Evaluation,
    draw,
    draw_answers,
    evaluate,
    recipe_meters,
    score,
    spread,
)
from mlore_edu.metrics import Meter, make_meters, read_image_ids
from mlore_edu.metrics.saliency import SaliencyVariant
from mlore_edu.saved_predictions import FRAMES, PredictionFiles, ReadPredictions, find_predictions, save_answers
from mlore_edu.tasks import TASK_SETS, TaskSet
from mlore_edu.training import checkpoint, distributed
from mlore_edu.training.checkpoint import explain_disk_errors
from mlore_edu.training.recipe import load_recipe

CUSTOM = {"pascal_context": "pascal", "nyud_v2": "nyud", "dollhouse": "dollhouse"}
"""Which boundary protocol is the custom for a data set."""

RELEASED_BATCH = 4
"""Images judged at a time with a checkpoint of MLoRE's authors; the batch of its training."""

VIT_SIZES = {384: "small", 768: "base", 1024: "large"}
"""Backbones of those checkpoints by their width."""

DOLLHOUSE_ROOT = "data/dollhouse"
"""Where Dollhouse lies unless one is told."""


@dataclass(frozen=True)
class Choices:
    """What may be chosen for any evaluation.

    Parameters
    ----------
    root
        Folder of the data set; that of the run, or of the recipes, if not given.
    boundary
        One of ``BOUNDARY_PROTOCOLS`` by name, in place of the run's or the data set's.
    boundary_images
        File that lists the images whose boundaries count, one id a line; all, if not given.
    saliency
        Variant of maxF in place of the run's or ``"standard"``; ``"released"`` is the one behind the papers' numbers.
    save
        Folder to save a model's predictions in, in the form of :mod:`mlore_edu.saved_predictions`.
    pictures, count
        Folder for pictures of labels beside predictions, and how many.
    progress
        Show a progress bar.
    """

    root: str | None = None
    boundary: str | None = None
    boundary_images: Path | None = None
    saliency: SaliencyVariant | None = None
    save: Path | None = None
    pictures: Path | None = None
    count: int = 8
    progress: bool = True


class TrainingRecord(NamedTuple):
    """How a run was trained: iterations done and planned, images a batch over all GPUs, (H, W) of an image."""

    iteration: int
    iterations: int
    batch_size: int
    img_size: tuple[int, int]


@dataclass(frozen=True)
class Judgement:
    """What was judged, on what, how, and what came out.

    Parameters
    ----------
    subject
        In words.
    model
        ``<decoder>_<backbone>``; None where it is not known.
    data, root
        Data set as recipes call it, and its folder.
    tasks
        Those that were judged.
    images
        Images of the validation split.
    boundary, saliency
        Protocols by name.
    evaluation
        Metrics and details.
    training
        Of a run.
    remarks
        What else is to be said, in sentences.
    """

    subject: str
    model: str | None
    data: str
    root: str
    tasks: TaskSet
    images: int
    boundary: str
    saliency: str
    evaluation: Evaluation
    training: TrainingRecord | None = None
    remarks: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The number of the papers' tables by task."""
        return self.evaluation.metrics


def judge_run(run: Path, choices: Choices) -> Judgement:
    """Judge the last checkpoint of a run.

    Parameters
    ----------
    run
        Folder of the run.
    choices
        What differs from the evaluation at the run's end.

    Raises
    ------
    UserError
        If the folder holds no run or no intact checkpoint, or the data are not there.
    """
    from mlore_edu.training.setup import evaluation_loader, make_model, make_validation_set

    wanted = {"root": choices.root, "boundary_protocol": choices.boundary, "saliency_variant": choices.saliency}
    changes: dict[str, Any] = {name: value for name, value in wanted.items() if value}
    recipe = replace(load_recipe(run), **changes)
    last = checkpoint.latest(run / "checkpoints")
    if last is None:
        raise UserError(f"{run} holds no checkpoint yet; train it first with 'mlore-edu train {recipe.name}'.")
    weights, state = checkpoint.load(last)
    model = make_model(recipe, for_training=False)
    model.load_state_dict(weights)
    dataset = make_validation_set(recipe)
    loader = evaluation_loader(recipe, dataset)
    return Judgement(
        subject=str(run),
        model=recipe.model,
        data=recipe.data,
        root=recipe.root,
        tasks=recipe.task_set,
        images=len(dataset),
        boundary=recipe.boundary_protocol or CUSTOM[recipe.data],
        saliency=recipe.saliency_variant,
        evaluation=_judge_model(model, loader, dataset, recipe_meters(recipe), choices),
        training=TrainingRecord(state["iteration"], recipe.iterations, recipe.batch_size, recipe.img_size),
    )


def _judge_model(
    model: nn.Module, loader: Loader, dataset: LabelledImages, meters: Mapping[str, Meter], choices: Choices
) -> Evaluation:
    """Judge a model's answers, and save and draw them where that is asked for."""
    listed = _listed(dataset, choices)

    def keep(answered: Answered) -> Answered:
        return only_listed(save_answers(answered, choices.save, dataset.tasks) if choices.save else answered, listed)

    model.to(distributed.default_device())
    evaluation = evaluate(model, loader, dataset.tasks, meters=meters, progress=choices.progress, keep=keep)
    if choices.pictures and distributed.is_main():
        draw(model, dataset, dataset.tasks, choices.pictures, choices.count, "--pictures")
    return evaluation


def _listed(dataset: LabelledImages, choices: Choices) -> frozenset[str]:
    """Ids of the images whose boundaries count."""
    if choices.boundary_images is None:
        return frozenset(dataset.ids)
    if "edge" not in dataset.tasks:
        raise UserError("--boundary-images is for boundaries, and none are judged here; leave it out.")
    return read_image_ids(choices.boundary_images, dataset.ids)


def only_listed(answered: Answered, listed: Collection[str]) -> Iterator[tuple[Answers, Batch]]:
    """Take the boundaries of all but some images out of what is judged; the other tasks stay.

    Parameters
    ----------
    answered
        Answers and batches.
    listed
        Ids of the images whose boundaries count, such as the 2,498 of PASCAL-Context behind published odsF values.
    """
    for answers, batch in answered:
        yield {name: answer for name, answer in answers.items() if name != "edge"}, batch
        chosen = [index for index, meta in enumerate(batch["meta"]) if meta["id"] in listed]
        if "edge" in answers and chosen:
            yield {"edge": answers["edge"][chosen]}, {"edge": batch["edge"][chosen]}


def judge_released(
    checkpoint_file: Path, choices: Choices, *, data: str | None = None, img_size: tuple[int, int] | None = None
) -> Judgement:
    """Judge a checkpoint of MLoRE's authors on the validation split of its data set.

    Parameters
    ----------
    checkpoint_file
        As its authors saved it (:mod:`mlore_edu.released`).
    choices
        As for every evaluation.
    data
        ``"pascal_context"`` or ``"nyud_v2"``; only checked, for the checkpoint's heads tell which it is.
    img_size
        ``(H, W)`` that images are padded to; that of the checkpoint's training if not given.

    Raises
    ------
    UserError
        If the file is no such checkpoint or not of ``data``, or the data are not there. Chapters 9 and 15.
    """
    from mlore_edu.released import released_model

    model = released_model(checkpoint_file, img_size)
    name, tasks = next((name, tasks) for name, tasks in TASK_SETS.items() if tasks.names == tuple(model.heads))
    if data not in (None, name):
        raise UserError(f"{checkpoint_file} predicts the tasks of {tasks.name}; give --data {name}, or leave it out.")
    root = _root(name, choices)
    dataset = open_dataset(name, root, "val", tasks, eval_transform(model.img_size))
    boundary, saliency, meters = _protocol(name, tasks, choices)
    return Judgement(
        subject=f"{checkpoint_file}, a checkpoint of MLoRE's authors",
        model=f"mlore_vit_{VIT_SIZES[model.backbone.channels[0]]}",
        data=name,
        root=root,
        tasks=tasks,
        images=len(dataset),
        boundary=boundary,
        saliency=saliency,
        evaluation=_judge_model(model, _share(dataset, RELEASED_BATCH), dataset, meters, choices),
    )


def judge_predictions(
    folder: Path, data: str, choices: Choices, *, img_size: tuple[int, int] | None = None, partial: bool = False
) -> Judgement:
    """Judge predictions that lie in files, whoever made them.

    Parameters
    ----------
    folder
        In the form of :mod:`mlore_edu.saved_predictions`; only the tasks it has are judged.
    data
        ``"pascal_context"``, ``"nyud_v2"`` or ``"dollhouse"``.
    choices
        As for every evaluation.
    img_size
        ``(H, W)`` of predictions that still have their padding; the field's if not given.
    partial
        Judge the images that have a prediction, though others have none.

    Raises
    ------
    UserError
        If a file is missing, damaged or not as it should be, or the data are not there. Chapter 15.
    """
    root, everything = _root(data, choices), TASK_SETS[data]
    dataset = open_dataset(data, root, "val", everything)
    files = find_predictions(folder, everything, dataset.ids, partial=partial)
    tasks = everything.subset(*files.names)
    read = ReadPredictions(files, tasks, img_size or FRAMES.get(data))
    dataset = dataset.using(tasks=tasks, transform=Pipeline((read, IgnoreEmptyParts(), ToTargets())))
    listed = _listed(dataset, choices)
    boundary, saliency, meters = _protocol(data, tasks, choices)
    with tqdm(_share(dataset, 1), desc="evaluating", disable=not choices.progress, leave=False) as batches:
        answered = ((batch["meta"][0]["predictions"], batch) for batch in batches)
        evaluation = score(only_listed(answered, listed), meters)
    if choices.pictures and distributed.is_main():
        with explain_disk_errors(f"the pictures to {choices.pictures}", option="--pictures"):
            samples = (dataset[index] for index in spread(len(dataset), choices.count))
            classes = everything["semseg"].channels
            draw_answers(((sample["meta"]["predictions"], sample) for sample in samples), choices.pictures, classes)
    return Judgement(
        subject=f"the predictions in {folder}",
        model=None,
        data=data,
        root=root,
        tasks=tasks,
        images=len(dataset),
        boundary=boundary,
        saliency=saliency,
        evaluation=evaluation,
        remarks=_what_was_there(everything, files, len(dataset)),
    )


def _what_was_there(tasks: TaskSet, files: PredictionFiles, images: int) -> tuple[str, ...]:
    """What of a data set the predictions cover, in words."""
    remarks = []
    if absent := [name for name in tasks.names if name not in files.names]:
        remarks.append(f"not judged, because {files.root} has no folder for it: {', '.join(absent)}")
    for name, present in files.names.items():
        if len(present) < images:
            remarks.append(f"{name} is judged on {len(present)} of {images} images")
        if count := files.strangers[name]:
            their = (
                "file of {} is named after no image of the split and was"
                if count == 1
                else ("files of {} are named after no image of the split and were")
            )
            remarks.append(f"{count} {their.format(name)} not read")
    return tuple(remarks)


def _root(data: str, choices: Choices) -> str:
    return choices.root or (str(BENCHMARKS[data].root) if data in BENCHMARKS else DOLLHOUSE_ROOT)


def _workers() -> int:
    return min(4, os.cpu_count() or 1)


def _protocol(data: str, tasks: TaskSet, choices: Choices) -> tuple[str, SaliencyVariant, dict[str, Meter]]:
    """Names of the protocols where no recipe says them, and their meters."""
    boundary, saliency = choices.boundary or CUSTOM[data], choices.saliency or "standard"
    meters = make_meters(tasks, saliency=saliency, boundary=PROTOCOLS[boundary], workers=_workers())
    return boundary, saliency, meters


def _share(dataset: LabelledImages, batch_size: int) -> Loader:
    """This process's share of the images, loaded by other processes where there are more than a few."""
    return make_loader(
        dataset,
        batch_size,
        train=False,
        workers=_workers() if len(dataset) > 4 * batch_size else 0,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
