"""What a recipe is expected to cost on one GPU: memory and hours, both estimates (chapter 16).

:mod:`~mlore_edu.training.rehearsal` finds memory and multiply-accumulates by running a step without contents; here the
latter become hours, and budgets of the named recipes are read from ``budgets.json``, made by ``benchmarks/budgets.py``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mlore_edu.training.recipe import Recipe

SUSTAINED = {"fp32": 20e12, "bf16": 80e12, "fp16": 80e12}
"""Floating-point operations per second that training is assumed to keep up on one H200 (or H100), by precision.

No GPU has confirmed them. The one training time that the papers print is TaskExpert's: with ViT-S, 5 hours on an
RTX 3090 (Table 3), which is 31 % of that card's 35.6e12 in fp32. About the same share of an H200's 67e12 is 20e12. In
bf16 its products run up to fifteen times as fast, what lies between them (norms, activations, resizing) only twice:
four times in all is assumed.
"""

ASSUMED_GPU = "one H200 or H100 that keeps up 20 (fp32) or 80 (bf16) of its 67 or 989 Tflop/s"
"""The same in words, for those who read the hours."""

OF_THE_COST = (
    *("data", "tasks", "img_size", "model", "model_options", "drop_path_rate", "batch_size", "accumulation"),
    *("optimizer", "momentum", "precision", "channels_last", "checkpointing", "ema"),
)
"""Fields of a recipe that decide what a step costs; a stored budget holds where they are the same."""


@dataclass(frozen=True)
class Budget:
    """What training a recipe takes on one GPU; sizes in bytes.

    Attributes
    ----------
    parameters
        Numbers that are learned.
    macs
        Multiply-accumulates of the forward passes of one optimiser step, over the whole batch.
    weights, gradients, optimizer
        Of weights, buffers and, where the recipe keeps one, their moving average; of the gradients; of the optimiser's
        states. Exact.
    activations
        What the forward pass leaves for the way back.
    peak
        The worst moment, all of the above included; less than their sum, because activations go as gradients come.
    """

    parameters: int
    macs: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    def hours(self, recipe: Recipe) -> float:
        """Hours of all iterations at :data:`SUSTAINED`.

        A multiply-accumulate is two operations, the way back costs twice the way there, and checkpointing goes there
        twice.
        """
        passes = 4 if recipe.checkpointing else 3
        return 2 * passes * self.macs * recipe.iterations / SUSTAINED[recipe.precision] / 3600


def stored_budget(recipe: Recipe) -> Budget | None:
    """A named recipe's budget in ``budgets.json``; None where there is none, or a field of the cost was changed."""
    entry = read_stored().get(recipe.name)
    if entry is None or entry["recipe"] != fields_of_the_cost(recipe):
        return None
    return Budget(**entry["budget"])


def read_stored() -> dict[str, Any]:
    """All of ``budgets.json``, by the recipes' names."""
    text = (files("mlore_edu") / "training" / "budgets.json").read_text(encoding="utf-8")
    stored: dict[str, Any] = json.loads(text)["budgets"]
    return stored


def to_entry(recipe: Recipe, budget: Budget) -> dict[str, Any]:
    """What ``budgets.json`` holds of one recipe."""
    return {"recipe": fields_of_the_cost(recipe), "budget": dataclasses.asdict(budget)}


def fields_of_the_cost(recipe: Recipe) -> dict[str, Any]:
    """The fields :data:`OF_THE_COST`, as JSON gives them back."""
    fields = json.loads(recipe.to_json())
    return {name: fields[name] for name in OF_THE_COST}
