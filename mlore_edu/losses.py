"""Training losses, one pure function per kind of label, and their weighted sum (chapter 3).

Every loss is a sum over the pixels that count, divided by their number. Where no pixel counts the sum is empty and the
loss an exact zero that still hangs on the prediction, so that its gradient is zero rather than absent (several
processes that train together need every gradient). All of it is computed in float32 at least, autocast or not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mlore_edu.checks import check_inner_share
from mlore_edu.errors import UserError
from mlore_edu.tasks import IGNORE, TaskSet

SHORTEST_NORMAL = 1e-3
"""A predicted normal shorter than this is divided by this, not by its length: it bounds the gradient near zero."""


def _precise(prediction: Tensor) -> Tensor:
    """Raise half precision to float32; keep float64."""
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))


def _mean_over(valid: Tensor, per_pixel: Tensor) -> Tensor:
    """Sum of ``per_pixel`` where ``valid``, divided by the number of valid pixels (0 where there is none)."""
    return torch.where(valid, per_pixel, 0.0).sum() / valid.sum().clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a class map, averaged over the pixels of the batch that are not 255.

    Parameters
    ----------
    logits
        ``(B, classes, H, W)``.
    target
        int64 ``(B, H, W)``, 255 = ignored.

    Returns
    -------
    Tensor
        Scalar; ln(classes) where all logits are equal. Chapter 3.
    """
    per_pixel = F.cross_entropy(_precise(logits), target, ignore_index=IGNORE, reduction="none")  # (B, H, W)
    return _mean_over(target != IGNORE, per_pixel)


def balanced_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Two-class cross-entropy in which both classes weigh the same in all, however rare one is (saliency).

    With P salient and N other pixels in the batch (255 left out), a salient pixel weighs N / (P + N), another one
    P / (P + N); the weighted sum is divided by P + N. At equal logits the loss is 2 P N / (P + N)² · ln 2: half of
    ln 2 when the classes are equally frequent, 0 when one is absent.

    Parameters
    ----------
    logits
        ``(B, 2, H, W)``.
    target
        int64 ``(B, H, W)``: 1 salient, 0 not, 255 = ignored.

    Returns
    -------
    Tensor
        Scalar. Source: the recipe of InvPT, TaskExpert and MLoRE. Chapter 3.
    """
    valid = target != IGNORE
    salient_share = (target == 1).sum() / valid.sum().clamp(min=1)
    per_pixel = F.cross_entropy(_precise(logits), target, ignore_index=IGNORE, reduction="none")  # (B, H, W)
    return _mean_over(valid, torch.where(target == 1, 1 - salient_share, salient_share) * per_pixel)


def weighted_bce(logits: Tensor, target: Tensor, positive_weight: float = 0.95) -> Tensor:
    """Binary cross-entropy in which a boundary pixel weighs w and any other 1 − w, averaged over valid pixels.

    Parameters
    ----------
    logits
        ``(B, 1, H, W)``.
    target
        float ``(B, 1, H, W)``: 1 boundary, 0 not, 255 = ignored.
    positive_weight
        w, in 0..1. The field uses 0.95 on PASCAL-Context; a smaller one gives thinner boundaries.

    Returns
    -------
    Tensor
        Scalar. Source: the recipe of InvPT, TaskExpert and MLoRE. Chapter 3.
    """
    valid = target != IGNORE
    truth = torch.where(valid, target, 0.0).to(_precise(logits).dtype)  # (B, 1, H, W)
    weight = positive_weight * truth + (1 - positive_weight) * (1 - truth)
    per_pixel = F.binary_cross_entropy_with_logits(_precise(logits), truth, reduction="none")
    return _mean_over(valid, weight * per_pixel)


def normals_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute difference of unit normals, summed over x, y, z and averaged over valid pixels.

    Parameters
    ----------
    prediction
        ``(B, 3, H, W)``, of any length: it is L2-normalised here.
    target
        ``(B, 3, H, W)`` unit vectors; the zero vector = ignored.

    Returns
    -------
    Tensor
        Scalar in 0 .. 2·sqrt(3). Source: the recipe of InvPT, TaskExpert and MLoRE. Chapter 3.
    """
    unit = F.normalize(_precise(prediction), dim=1, eps=SHORTEST_NORMAL)  # (B, 3, H, W)
    return _mean_over((target != 0).any(dim=1), (unit - target).abs().sum(dim=1))


def depth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute difference of depths in metres, averaged over valid pixels.

    Parameters
    ----------
    prediction
        ``(B, 1, H, W)`` metres.
    target
        ``(B, 1, H, W)`` metres; 0 = invalid.

    Returns
    -------
    Tensor
        Scalar, metres. Source: the recipe of InvPT, TaskExpert and MLoRE. Chapter 3.
    """
    return _mean_over(target > 0, (_precise(prediction) - target).abs())


class MultiTaskLoss:
    """Weighted sum of the tasks' losses.

    Parameters
    ----------
    tasks
        Tasks to train.
    loss_weights
        Weights that replace those of the tasks, by task name; e.g. ``{"edge": 10.0}``.
    edge_positive_weight
        Weight of a boundary pixel in :func:`weighted_bce`, between 0 and 1.

    Raises
    ------
    UserError
        Where a weight names no task of the set, or ``edge_positive_weight`` is not between 0 and 1.
    """

    def __init__(
        self, tasks: TaskSet, loss_weights: Mapping[str, float] | None = None, edge_positive_weight: float = 0.95
    ) -> None:
        check_inner_share(edge_positive_weight=edge_positive_weight)
        self.tasks = tasks
        self.edge_positive_weight = edge_positive_weight
        replaced = {tasks[name].name: weight for name, weight in (loss_weights or {}).items()}
        self.loss_weights = {task.name: replaced.get(task.name, task.loss_weight) for task in tasks}

    def __call__(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses of all tasks.

        Parameters
        ----------
        predictions, targets
            By task name, as described in each loss; predictions at the targets' resolution.

        Returns
        -------
        total, by_task
            The weighted sum, and each task's loss before its weight.

        Raises
        ------
        UserError
            Where a task has no prediction or no target, or their resolutions differ.
        """
        by_task = {}
        for task in self.tasks:
            prediction, target = _pair(task.name, predictions, targets)
            with torch.autocast(prediction.device.type, enabled=False):
                if task.loss == "weighted_bce":
                    by_task[task.name] = weighted_bce(prediction, target, self.edge_positive_weight)
                else:
                    by_task[task.name] = _LOSSES[task.loss](prediction, target)
        total = torch.stack([self.loss_weights[name] * loss for name, loss in by_task.items()]).sum()
        return total, by_task


_LOSSES = {
    "cross_entropy": cross_entropy,
    "balanced_cross_entropy": balanced_cross_entropy,
    "normals_l1": normals_l1,
    "depth_l1": depth_l1,
}


def _pair(name: str, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if name not in predictions:
        raise UserError(f"The model predicts no {name!r}; build it with the same tasks as the loss.")
    if name not in targets:
        raise UserError(
            f"The batch has no {name!r} label; open the data set with that task, or leave it out of the loss."
        )
    prediction, target = predictions[name], targets[name]
    if prediction.shape[-2:] != target.shape[-2:]:
        sizes = f"{tuple(prediction.shape[-2:])} and its label {tuple(target.shape[-2:])}"
        raise UserError(f"The {name!r} prediction measures {sizes}; use the same image size for model and data.")
    return prediction, target
