"""From raw predictions to the numbers of the papers' tables, and to pictures (chapters 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.loaders import Batch
from mlore_edu.data.tensors import Sample
from mlore_edu.data.transforms import denormalise
from mlore_edu.metrics import BOUNDARY_PROTOCOLS, Meter, make_meters
from mlore_edu.modes import evaluation_mode
from mlore_edu.pictures import panel
from mlore_edu.tasks import Task, TaskSet
from mlore_edu.training import distributed
from mlore_edu.training.checkpoint import explain_disk_errors
from mlore_edu.training.recipe import Recipe

Answers: TypeAlias = dict[str, Tensor]
"""Decoded predictions of a batch by task, as :func:`decode` gives them."""
Answered: TypeAlias = Iterable[tuple[Answers, Batch]]
"""Batches with what was answered to them."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Parameters
    ----------
    metrics
        The number of the papers' tables by task: mIoU, maxF, odsF in percent, mErr in degrees, RMSE in metres.
    details
        What lies behind each number: per class, curves, variants.
    """

    metrics: dict[str, float]
    details: dict[str, dict[str, Any]]


def decode(predictions: Mapping[str, Tensor], tasks: TaskSet) -> Answers:
    """Turn a model's raw predictions into answers.

    Parameters
    ----------
    predictions
        By task ``(B, channels, H, W)``: logits, unnormalised normals, metres.
    tasks
        Which tasks to decode.

    Returns
    -------
    dict
        Classes and parts: most likely class, int64 ``(B, H, W)``. Saliency and boundaries: probability ``(B, H, W)``.
        Normals: unit vectors ``(B, 3, H, W)``. Depth: metres ``(B, 1, H, W)``. All float32. Chapter 3.
    """
    decoded = {}
    for task in tasks:
        raw = predictions[task.name].float()
        if task.loss == "cross_entropy":
            decoded[task.name] = raw.argmax(dim=1)  # (B, H, W)
        elif task.loss == "balanced_cross_entropy":
            decoded[task.name] = raw.softmax(dim=1)[:, 1]  # (B, H, W)
        elif task.loss == "weighted_bce":
            decoded[task.name] = raw.sigmoid()[:, 0]  # (B, H, W)
        elif task.loss == "normals_l1":
            decoded[task.name] = F.normalize(raw, dim=1)
        else:
            decoded[task.name] = raw
    return decoded


PROTOCOLS = BOUNDARY_PROTOCOLS
"""Boundary protocols by the name that recipes use."""


def recipe_meters(recipe: Recipe) -> dict[str, Meter]:
    """The meters that a recipe asks for, by task; boundaries are matched in as many threads as there are workers."""
    return make_meters(
        recipe.task_set,
        boundary=PROTOCOLS[recipe.boundary_protocol] if recipe.boundary_protocol else None,
        saliency=recipe.saliency_variant,
        workers=recipe.workers,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Put a model into evaluation mode without gradients, and back; gives its device."""
    with evaluation_mode(model), torch.inference_mode():
        yield next(model.parameters()).device


def score(answered: Answered, meters: Mapping[str, Meter]) -> Evaluation:
    """Judge answers by the labels of their batches.

    Of several processes each brings the answers to its share of the images; all of them get the result of the whole.

    Parameters
    ----------
    answered
        Answers and batches; a task without an answer is not judged on that batch.
    meters
        One meter per task.
    """
    for answers, batch in answered:
        for name, answer in answers.items():
            meters[name].update(answer, batch[name].to(answer.device))
    merged = {
        name: reduce(lambda first, other: first.merge(other), distributed.gather(meters[name])) for name in meters
    }
    metrics = {name: float(meter.compute()) for name, meter in merged.items()}
    return Evaluation(metrics, {name: meter.details() for name, meter in merged.items()})


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    tasks: TaskSet,
    *,
    meters: Mapping[str, Meter] | None = None,
    progress: bool = True,
    keep: Callable[[Answered], Answered] | None = None,
) -> Evaluation:
    """Judge a model on a data set, in single precision whatever it was trained in.

    Images are judged at the padded size; padding carries ignored labels and does not count. Of several processes each
    judges its share of the images, and all of them get the result of the whole.

    Parameters
    ----------
    model
        Returns raw predictions; judged in evaluation mode, and left in the mode it was in.
    loader
        Batches of images and targets, each image once (:func:`~mlore_edu.data.loaders.make_loader`).
    tasks
        Which tasks to judge.
    meters
        One meter per task; those of :func:`~mlore_edu.metrics.make_meters` if not given.
    progress
        Show a progress bar.
    keep
        Sees the answers pass on their way to the meters, such as
        :func:`~mlore_edu.saved_predictions.save_answers`.

    Returns
    -------
    Evaluation
        Metrics and details by task. Source of the protocols: chapter 2.
    """
    with (
        evaluating(model) as device,
        tqdm(loader, desc="evaluating", disable=not progress, leave=False) as batches,
    ):
        answered = ((decode(model(batch["image"].to(device)).predictions, tasks), batch) for batch in batches)
        return score(keep(answered) if keep else answered, meters or make_meters(tasks))


def draw(
    model: nn.Module, dataset: LabelledImages, tasks: TaskSet, folder: Path, count: int, option: str = "--run"
) -> list[Path]:
    """Draw images, their labels, and below them the model's predictions, as ``folder/ID.png``.

    Parameters
    ----------
    model, dataset, tasks
        What predicts, on what, and which tasks are drawn.
    folder
        Where the pictures go.
    count
        How many images, spread evenly over the data set.
    option
        Of the command line, which names another folder if this one cannot be written.

    Returns
    -------
    list of Path
        The pictures.
    """
    with (
        evaluating(model) as device,
        explain_disk_errors(f"the pictures to {folder}", "the checkpoint is intact", option),
    ):
        samples = (dataset[index] for index in spread(len(dataset), count))
        return draw_answers(
            ((decode(model(sample["image"][None].to(device)).predictions, tasks), sample) for sample in samples),
            folder,
            _classes(tasks),
        )


def spread(images: int, count: int) -> list[int]:
    """Indices of at most ``count`` images, spread evenly over the data set."""
    chosen: list[int] = torch.linspace(0, images - 1, min(count, images)).round().int().tolist()
    return chosen


def draw_answers(answered: Iterable[tuple[Answers, Sample]], folder: Path, classes: int | None) -> list[Path]:
    """Draw answers to single images, in a batch of one, below the labels of the same tasks, as ``folder/ID.png``."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for answers, sample in answered:
        image = sample["image"]
        image = denormalise(image) if image.is_floating_point() else image
        label = {"image": image, **{name: sample[name] for name in answers}}
        prediction = {"image": image, **{name: maps[0].cpu() for name, maps in answers.items()}}
        paths.append(folder / f"{sample['meta']['id']}.png")
        panel([label, prediction], ("label", "prediction"), classes=classes).save(paths[-1])
    return paths


def _classes(tasks: TaskSet) -> int | None:
    return tasks["semseg"].channels if "semseg" in tasks else None


def constant_predictor_scores(
    train_set: LabelledImages, validation_set: LabelledImages, tasks: TaskSet, *, per_pixel: bool = False
) -> dict[str, float]:
    """Scores of the best answer that does not look at the image: what a model must beat to have learned anything.

    The answer is the most frequent class, the share of salient and boundary pixels, the mean direction and the mean
    depth of the training labels.

    Parameters
    ----------
    train_set, validation_set
        Data sets whose samples all have the same size, transforms included.
    tasks
        Tasks to score.
    per_pixel
        False: one answer for all pixels. True: one for each place in the picture (floors are below), harder to beat.

    Returns
    -------
    dict
        Metric by task, as :func:`evaluate` gives it. Chapter 3.
    """
    sums: dict[str, Tensor] = {}
    for index in range(len(train_set)):
        sample = train_set[index]
        for task in tasks:
            sums[task.name] = sums.get(task.name, 0) + _label_sums(task, sample[task.name])  # (channels + 1, H, W)
    meters = make_meters(tasks)
    for index in range(len(validation_set)):
        sample = validation_set[index]
        for task in tasks:
            pooled = sums[task.name] if per_pixel else sums[task.name].sum((1, 2), keepdim=True)
            answer = _best_answer(task, pooled.expand_as(sums[task.name]))
            meters[task.name].update(answer[None], sample[task.name][None])
    return {name: float(meter.compute()) for name, meter in meters.items()}


def _label_sums(task: Task, target: Tensor) -> Tensor:
    """What an average is made of, (channels + 1, H, W): the label (one channel per class), and whether it counts."""
    if task.loss == "normals_l1":
        valid = (target != 0).any(0)
    else:
        valid = (target != task.ignore).view(target.shape[-2:])
    label = target.double().view(-1, *valid.shape)
    if task.loss == "cross_entropy":
        label = (torch.arange(task.channels)[:, None, None] == target).double()
    return torch.cat([label * valid, valid[None].double()])


def _best_answer(task: Task, sums: Tensor) -> Tensor:
    """The decoded prediction that the sums of training labels suggest."""
    total, valid = sums[:-1].float(), sums[-1:].float()
    if task.loss == "cross_entropy":
        return total.argmax(0)  # (H, W)
    if task.loss == "normals_l1":
        return F.normalize(total, dim=0)  # (3, H, W)
    mean = total / valid.clamp(min=1)
    return mean if task.loss == "depth_l1" else mean[0]  # (1, H, W) or (H, W)
