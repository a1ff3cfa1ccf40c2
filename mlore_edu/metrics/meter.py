"""What every metric has in common: the life of a meter, and the checks of its inputs (chapter 2).

A meter counts over a whole data set and divides once, at the end. The mean of per-image scores is another number,
and so is the mean over batches; the papers pool. What a meter stores is small, so it can be pickled, sent between
processes and merged.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mlore_edu.errors import UserError

Self = TypeVar("Self", bound="Meter")


class Meter(Protocol):
    """A metric over a data set: ``update`` with every batch, then ``compute``."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch of decoded predictions."""

    def compute(self) -> float:
        """Return the number the papers report, or nan when nothing was counted."""
        ...

    def details(self) -> dict[str, Any]:
        """Return what lies behind the number: per class, per threshold, variants."""
        ...

    def merge(self: Self, other: Self) -> Self:
        """Add what another meter counted, as if this one had seen those images too."""
        ...


def check_maps(metric: str, prediction: Tensor, target: Tensor, channels: int | None = None) -> None:
    """Check that prediction and target are tensors of one shape, (B, H, W) or with ``channels`` (B, channels, H, W)."""
    wanted = "(B, H, W)" if channels is None else f"(B, {channels}, H, W)"
    for name, tensor in (("prediction", prediction), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"{metric}: the {name} is a {type(tensor).__name__}; pass a torch tensor of shape {wanted}."
            )
        if tensor.dim() != (3 if channels is None else 4) or (channels is not None and tensor.shape[1] != channels):
            raise UserError(f"{metric}: the {name} has shape {tuple(tensor.shape)}; pass a batch of shape {wanted}.")
    if prediction.shape != target.shape:
        raise UserError(
            f"{metric}: the prediction has shape {tuple(prediction.shape)} but the target {tuple(target.shape)}; "
            "resize the prediction to the target."
        )


def check_labels(metric: str, name: str, labels: Tensor, classes: int) -> None:
    """Check that the labels (ignored pixels already left out) are integers from 0 to ``classes - 1``."""
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"{metric}: the {name} holds {labels.dtype} values; pass integer class ids (argmax of the logits)."
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = labels[(labels < 0) | (labels >= classes)]
        raise UserError(
            f"{metric}: the {name} holds class id {int(wrong[0])}; use ids 0 to {classes - 1}, and 255 in the target "
            "for pixels to ignore."
        )


def check_probability(metric: str, probability: Tensor) -> None:
    """Check that the values (ignored pixels already left out) are floating point numbers from 0 to 1."""
    if not probability.is_floating_point():
        raise UserError(
            f"{metric}: the prediction holds {probability.dtype} values; pass floating point probabilities."
        )
    if not bool(((probability >= 0) & (probability <= 1)).all()):  # also catches nan
        raise UserError(f"{metric}: the prediction leaves the range 0 to 1 or is nan; pass probabilities, not logits.")


def check_finite(metric: str, name: str, values: Tensor) -> None:
    """Check that the values (ignored pixels already left out) are finite floating point numbers."""
    if not values.is_floating_point():
        raise UserError(f"{metric}: the {name} holds {values.dtype} values; convert it to floating point.")
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{metric}: the {name} holds nan or infinite values; find the image and repair or ignore it.")


def check_same(metric: str, mine: object, others: object) -> None:
    """Check that two meters about to be merged measure the same thing."""
    if mine != others:
        raise UserError(f"{metric}: meters with settings {mine} and {others} differ; merge meters of equal settings.")
