"""A training step without contents, which tells on any machine what the step would hold and compute on a GPU.

Tensors of torch's FakeTensorMode have shapes, types and storages, but no numbers in them. A step is run with them at
the recipe's true size, batch and precision, and a watcher adds up the storages that are alive at every moment: their
peak is the memory. As nothing is computed, a model of 400 million weights takes seconds and no memory. Chapter 16.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.losses import MultiTaskLoss
from mlore_edu.tasks import Task
from mlore_edu.training.budget import Budget
from mlore_edu.training.engine import AUTOCAST
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.recompute import checkpoint_activations
from mlore_edu.training.setup import make_model

STATES = {"sgd": 1, "adam": 2, "adamw": 2}
"""Numbers that an optimiser keeps for every weight: the momentum, or the means of the gradient and of its square."""


def rehearse(recipe: Recipe) -> Budget:
    """Estimate what training a recipe takes on one GPU.

    Parameters
    ----------
    recipe
        Its size, batch, accumulation, precision, checkpointing, optimiser and moving average count.

    Returns
    -------
    Budget
        Not in it: what CUDA and cuDNN take for themselves (about a gigabyte), gaps between blocks of memory, and what
        torch.compile saves. The operations are those of torch on a CPU, where attention with a learned bias keeps more
        than it does on a GPU: up to a tenth of the whole with Swin.
    """
    with torch.device("meta"):
        model = make_model(replace(recipe, pretrained=False, weights=None)).train()
    if recipe.checkpointing:
        checkpoint_activations(model)
    learned = sum(_bytes(parameter) for parameter in model.parameters())
    apart = STATES[recipe.optimizer] * learned * (recipe.optimizer != "sgd" or recipe.momentum > 0)
    average = learned if recipe.ema else 0
    with FakeTensorMode(allow_non_fake_inputs=True), LiveStorages() as live:
        model.to_empty(device="cpu")
        weights = live.now
        macs, activations = _step(model, recipe, live)
    return Budget(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs,
        weights=weights + average,
        gradients=learned,
        optimizer=apart,
        activations=activations,
        peak=live.peak + apart + average,
    )


def _step(model: nn.Module, recipe: Recipe, live: LiveStorages) -> tuple[int, int]:
    """Go there and back; return multiply-accumulates of the whole batch, and the bytes left between there and back.

    Only the way there is counted: torch's counter makes several times too much of the way back through convolutions in
    groups. It is counted here and not by complexity.py, because MLoRE's experts choose their form by the batch.
    """
    loss = MultiTaskLoss(recipe.task_set, dict(recipe.loss_weights), recipe.edge_positive_weight)
    counter = FlopCounterMode(display=False)
    precision = AUTOCAST.get(recipe.precision)
    activations = 0
    for _ in range(min(recipe.accumulation, 2)):  # with the second part there are gradients beside the activations
        before = live.now
        batch = blank_batch(recipe)
        with counter, torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            output = model(batch["image"])
            total, by_task = loss(output.predictions, batch)
            total = total + output.balance_loss
        activations = live.now - before
        total.backward()
        del output, total, by_task, batch  # as late as in engine.py
    return counter.get_total_flops() // 2 * recipe.accumulation, activations


def blank_batch(recipe: Recipe) -> dict[str, Tensor]:
    """One part of a batch, of the right shapes and types and without meaning."""
    size = (recipe.batch_size // recipe.accumulation, *recipe.img_size)
    return {"image": torch.zeros(size[0], 3, *size[1:])} | {task.name: _label(task, size) for task in recipe.task_set}


def _label(task: Task, size: tuple[int, ...]) -> Tensor:
    if "cross_entropy" in task.loss:
        return torch.zeros(size, dtype=torch.long)  # (B, H, W)
    return torch.zeros(size[0], task.channels, *size[1:])  # (B, c, H, W)


class LiveStorages(TorchDispatchMode):
    """Watch every operation, and add up the storages that are alive: ``now``, and at most (``peak``), in bytes.

    torch.distributed._tools.MemTracker finds the same peak and sorts what it finds, in two to ten times the time.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.peak = 0
        self.alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self.alive:  # there: a view, or in place
                self._welcome(leaf.untyped_storage())
        return result

    def _welcome(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.alive.add(storage)
        weakref.finalize(storage, self._leave, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _leave(self, size: int) -> None:
        self.now -= size


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
