"""From a recipe to the objects it describes: model, data, optimiser. Training and evaluation share these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.loaders import Loader, make_loader, open_dataset
from mlore_edu.data.transforms import eval_transform, train_transform
from mlore_edu.errors import UserError
from mlore_edu.model import MultiTaskModel, build_model
from mlore_edu.training import distributed
from mlore_edu.training.recipe import Recipe

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "field": {},
    "flip": {"scale": (1, 1), "photometric": False},
    "none": {"scale": (1, 1), "photometric": False, "flip": 0.0},
}
"""What each ``augmentation`` of a recipe tells :func:`~mlore_edu.data.transforms.train_transform`."""


LOOKED_AT = 16
"""Validation images that are opened before training, spread evenly: mistakes in the data are better found early."""


def make_model(recipe: Recipe, *, for_training: bool = True) -> MultiTaskModel:
    """The recipe's model; without ImageNet weights where a checkpoint will replace them anyway."""
    start = {"pretrained": recipe.pretrained, "weights": recipe.weights} if for_training else {}
    options: dict[str, Any] = {**start, "drop_path_rate": recipe.drop_path_rate, **dict(recipe.model_options)}
    model = build_model(recipe.model, recipe.task_set, recipe.img_size, **options)
    arrange(model, recipe)
    return model


def arrange(model: nn.Module, recipe: Recipe) -> None:
    """Lay the weights out in memory as the recipe says; it decides which kernels run, and so the last digits."""
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)


def make_datasets(recipe: Recipe) -> tuple[LabelledImages, LabelledImages]:
    """The recipe's training and validation data.

    Raises
    ------
    UserError
        If the data are not there, or not as they should be, or validation images are larger than ``img_size``.
    """
    if recipe.data == "dollhouse" and not Path(recipe.root).exists():
        raise UserError(f"there is no Dollhouse at {recipe.root}; render it with '{recipe.data_command}'.")
    transform = train_transform(recipe.img_size, **AUGMENTATIONS[recipe.augmentation])
    train_set = open_dataset(recipe.data, recipe.root, "train", recipe.task_set, transform)
    validation_set = make_validation_set(recipe)
    for index in range(0, len(validation_set), -(-len(validation_set) // LOOKED_AT)):
        validation_set[index]  # one larger than img_size would end the run in its evaluation, when all is trained
    return train_set, validation_set


def make_validation_set(recipe: Recipe) -> LabelledImages:
    """The recipe's validation data."""
    return open_dataset(recipe.data, recipe.root, "val", recipe.task_set, eval_transform(recipe.img_size))


def evaluation_loader(recipe: Recipe, dataset: LabelledImages) -> Loader:
    """Every image of this process's share once, in batches that fit where a part of a training batch fits."""
    return make_loader(
        dataset,
        max(1, recipe.batch_size // recipe.accumulation // distributed.world_size()),
        train=False,
        workers=recipe.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters; the learning rate is set anew before every step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay, fused = recipe.weight_decay, recipe.fused_optimizer or None  # None: torch chooses, and not this
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, recipe.lr, momentum=recipe.momentum, weight_decay=decay, fused=fused)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, recipe.lr, weight_decay=decay, fused=fused)
