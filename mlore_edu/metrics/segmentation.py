"""Mean intersection over union, for semantic segmentation and human parts (chapter 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlore_edu.errors import UserError
from mlore_edu.metrics.meter import check_labels, check_maps, check_same
from mlore_edu.tasks import IGNORE


class MeanIoU:
    """Mean over classes of IoU = TP / (TP + FP + FN), counted over all pixels of the data set, in percent.

    Pixels whose target is 255 do not count, whatever was predicted there. A class that appears neither in the
    targets nor in the predictions has IoU 0/0 and is left out of the mean; a class that was predicted somewhere but
    never true has IoU 0 and stays in.

    Parameters
    ----------
    num_classes
        Number of classes, background included: 21, 40 or 7 in the papers.

    Notes
    -----
    Built by hand in chapter 2. ``torchmetrics``' ``segmentation.MeanIoU`` averages per image and cannot ignore
    pixels: another number.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise UserError(f"mIoU: {num_classes} classes make no sense; give the number of classes, at least 1.")
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # (true class, predicted class)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch.

        Parameters
        ----------
        prediction
            Class ids, integer (B, H, W).
        target
            Class ids or 255, integer (B, H, W).
        """
        check_maps("mIoU", prediction, target)
        counted = target != IGNORE
        predicted, true = prediction[counted], target[counted]  # (N,)
        check_labels("mIoU", "prediction", predicted, self.num_classes)
        check_labels("mIoU", "target", true, self.num_classes)
        pair = true.long() * self.num_classes + predicted.long()  # one number per cell of the confusion matrix
        counts = torch.bincount(pair, minlength=self.num_classes**2)
        self.confusion += counts.reshape(self.num_classes, self.num_classes).cpu()

    def class_iou(self) -> Tensor:
        """Return the IoU of each class in percent, float64 (num_classes,), nan for a class that never appeared."""
        hit = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        return 100 * hit / union  # 0/0 is nan

    def compute(self) -> float:
        """Return mIoU in percent (0 to 100), or nan when no pixel was counted."""
        return float(self.class_iou().nanmean())

    def details(self) -> dict[str, Any]:
        """Return the IoU per class (nan: never appeared), pixel accuracy in percent, and the confusion matrix."""
        accuracy = 100 * self.confusion.diagonal().sum().double() / self.confusion.sum()
        return {
            "iou": self.class_iou().tolist(),
            "pixel_accuracy": float(accuracy),
            "confusion": self.confusion.tolist(),
        }

    def merge(self, other: MeanIoU) -> MeanIoU:
        """Add another meter's counts."""
        check_same("mIoU", self.num_classes, other.num_classes)
        self.confusion += other.confusion
        return self
