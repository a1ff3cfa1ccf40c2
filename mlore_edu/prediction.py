"""Answers for images of your own, of any size and kind (chapter 19).

A model takes images of one size (H, W). An image that fits into that frame is padded as in training and predicted as it
is, so that its answers are those that an evaluation judges. A larger one is first shrunk to fit, keeping its shape; its
answers are then enlarged to its own size: scores and probabilities before a class is chosen, normals before they are
given unit length. Enlarging draws no finer than the model saw.

Metres need a decision. A model knows no camera: it has learned how large things look at which distance through the
training's cameras. Resizing a photograph does not change its angle of view, so metres are left as predicted; this is
right if the resized picture has the training images' angle for its width. Who knows the cameras says so by
``focal_ratio``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from mlore_edu.data.transforms import eval_transform
from mlore_edu.decoders.base import resize
from mlore_edu.errors import UserError
from mlore_edu.evaluation import decode, evaluating
from mlore_edu.images import ImageSource, read_image
from mlore_edu.model import Configuration, MultiTaskModel
from mlore_edu.sharing import from_pretrained
from mlore_edu.tasks import Task, TaskSet

Size = tuple[int, int]


class Framed(NamedTuple):
    """An image as a model takes it.

    Attributes
    ----------
    image
        float ``(3, H, W)``, normalised and padded.
    size, offset
        Height and width of what is not padding, and its (top, left) corner.
    """

    image: Tensor
    size: Size
    offset: tuple[int, int]


def predict(
    model: MultiTaskModel | str | Path,
    image: ImageSource,
    *,
    tasks: TaskSet | None = None,
    enlarge: bool = False,
    focal_ratio: float | None = None,
) -> dict[str, Tensor]:
    """Answer all tasks for one image, at the image's own size.

    >>> import mlore_edu as me
    >>> model = me.build_model("mlore_vit_nano", me.DOLLHOUSE, img_size=(64, 64))
    >>> me.predict(model, torch.rand(3, 48, 100))["normals"].shape
    torch.Size([3, 48, 100])

    Parameters
    ----------
    model
        A model, fused or not; or what :func:`~mlore_edu.sharing.from_pretrained` takes, which is then loaded anew
        each time.
    image
        Whatever :func:`~mlore_edu.images.read_image` reads: a path, a Pillow image, an array, a tensor.
    tasks
        The model's tasks, for one that was put together by hand; else the model knows them.
    enlarge
        Whether an image smaller than the model's frame is enlarged to it, rather than padded all around. Its answers
        are then no longer those of an evaluation, but a small picture gets more tokens.
    focal_ratio
        Focal length of the image's camera over that of the training's, each in pixels of its own images. Where given,
        metres are multiplied by ``focal_ratio`` and by the factor of resizing: the inverse of what
        :class:`~mlore_edu.data.transforms.RandomScale` does to depth. 1 for an image of the training's own camera.

    Returns
    -------
    dict
        Of CPU tensors, for the image H × W turned upright: classes and parts int64 ``(H, W)``, probability of saliency
        and boundaries ``(H, W)``, unit normals ``(3, H, W)``, metres ``(1, H, W)``.

    Raises
    ------
    UserError
        If the image or the model cannot be read, or the model does not know its tasks. Chapter 19.
    """
    if focal_ratio is not None and not 0 < focal_ratio < torch.inf:
        raise UserError(f"focal_ratio is {focal_ratio}; give a positive number, 1 for the training's own camera.")
    if isinstance(model, (str, Path)):
        model = from_pretrained(model)
    tasks = tasks or tasks_of(model)
    picture = read_image(image)  # (3, H, W)
    own_size = cast(Size, tuple(picture.shape[-2:]))
    framed = frame_image(picture, model.img_size, enlarge=enlarge)
    with evaluating(model) as device:
        raw = model(framed.image[None].to(device)).predictions
    if framed.size == own_size:
        decoded = {name: _window(value, framed) for name, value in decode(raw, tasks).items()}
    else:
        decoded = {task.name: _enlarged(task, _window(raw[task.name], framed).float(), own_size) for task in tasks}
    answers = {name: value[0].cpu().clone() for name, value in decoded.items()}  # no view of the whole frame
    if focal_ratio is not None:
        factor = max(framed.size) / max(own_size)
        for task in tasks:
            if task.loss == "depth_l1":
                answers[task.name] *= focal_ratio * factor
    return answers


def tasks_of(model: nn.Module) -> TaskSet:
    """The tasks that a model was built for.

    Raises
    ------
    UserError
        If it was put together by hand.
    """
    configuration: Configuration | None = getattr(model, "configuration", None)  # also behind torch.compile
    if configuration is None:
        raise UserError("This model does not know its tasks; build it with build_model, or give tasks=.")
    return configuration.tasks


def frame_image(image: Tensor, size: Size, *, enlarge: bool = False) -> Framed:
    """Fit an image into a model's frame: shrunk where it is larger, centred and padded where it is smaller.

    Parameters
    ----------
    image
        uint8 ``(3, H, W)``.
    size
        Height and width of the frame.
    enlarge
        Whether a smaller image is enlarged.

    Returns
    -------
    Framed
        The image, normalised, and where it lies. An image that fits is treated exactly as by
        :func:`~mlore_edu.data.transforms.eval_transform`.
    """
    height, width = image.shape[-2:]
    factor = min(size[0] / height, size[1] / width)
    typed = tv_tensors.Image(image)
    if factor < 1 or enlarge:
        target = [min(limit, max(1, round(side * factor))) for side, limit in zip((height, width), size)]
        typed = F.resize(typed, target, antialias=True)
    sample = eval_transform(size)({"image": typed})
    return Framed(sample["image"], sample["meta"]["size"], sample["meta"]["offset"])


def _window(maps: Tensor, framed: Framed) -> Tensor:
    """The part of a frame that is not padding."""
    (top, left), (height, width) = framed.offset, framed.size
    return maps[..., top : top + height, left : left + width]


def _enlarged(task: Task, raw: Tensor, size: Size) -> Tensor:
    """Bring one task's raw prediction ``(1, channels, h, w)`` to the image's size, and decode it."""
    if task.loss != "cross_entropy":
        return decode({task.name: _resize(raw, size)}, _only(task))[task.name]
    best = _resize(raw[:, :1], size)  # one class after the other: 40 at once of a large photo would fill the memory
    label = torch.zeros_like(best, dtype=torch.int16)
    for index in range(1, task.channels):
        score = _resize(raw[:, index : index + 1], size)
        label.masked_fill_(score > best, index)
        torch.maximum(best, score, out=best)
    return label[:, 0].long()  # (1, H, W)


def _resize(maps: Tensor, size: Size) -> Tensor:
    """Larger: bilinear between pixels. Smaller: the mean of the pixels that each new one covers."""
    if maps.shape[-2] > size[0] or maps.shape[-1] > size[1]:
        return nn.functional.interpolate(maps, size, mode="area")
    return resize(maps, size)


def _only(task: Task) -> TaskSet:
    return TaskSet(task.title, (task,))
