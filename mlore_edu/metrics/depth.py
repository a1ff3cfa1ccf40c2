"""Root mean square error of depth (chapter 2)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mlore_edu.metrics.meter import check_finite, check_maps, check_same

MAX_DEPTH = 80.0
"""Depths of this many metres and more are not valid, nor are those of 0 and less."""


class DepthRMSE:
    """Root mean square error over the valid pixels (0 < depth < 80 m) of the data set, in metres.

    Parameters
    ----------
    per_image
        ``False``: sqrt(sum of squared errors / number of pixels), both over the whole data set.
        ``True``: the mean over images of each image's own error, ASTMT's variant; an image without a valid pixel is
        left out. It is never larger than the pooled one when all images have as many valid pixels (chapter 2).
    """

    def __init__(self, per_image: bool = False) -> None:
        self.per_image = per_image
        self.images: list[tuple[float, int]] = []  # squared error and valid pixels of each image

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch.

        Parameters
        ----------
        prediction
            Depth in metres, floating point (B, 1, H, W).
        target
            Depth in metres, 0 where invalid, floating point (B, 1, H, W).
        """
        check_maps("RMSE", prediction, target, channels=1)
        check_finite("RMSE", "target", target)
        prediction, valid = prediction.detach(), (target > 0) & (target < MAX_DEPTH)
        check_finite("RMSE", "prediction", prediction[valid])
        for image_prediction, image_target, image_valid in zip(prediction, target, valid):
            error = image_prediction[image_valid].double() - image_target[image_valid].double()  # (N,)
            if error.numel():
                self.images.append((float(error.square().sum()), error.numel()))

    def details(self) -> dict[str, Any]:
        """Return both variants in metres (nan when no pixel was counted), and the counts of images and pixels."""
        pixels = sum(count for _, count in self.images)
        # fsum adds exactly, so the order of images, batches and processes cannot matter
        squares = math.fsum(square for square, _ in self.images)
        of_images = math.fsum(math.sqrt(square / count) for square, count in self.images)
        return {
            "pooled": math.sqrt(squares / pixels) if pixels else math.nan,
            "per_image": of_images / len(self.images) if self.images else math.nan,
            "images": len(self.images),
            "pixels": pixels,
        }

    def compute(self) -> float:
        """Return the RMSE in metres, or nan when no pixel was counted."""
        return float(self.details()["per_image" if self.per_image else "pooled"])

    def merge(self, other: DepthRMSE) -> DepthRMSE:
        """Add another meter's counts."""
        check_same("RMSE", self.per_image, other.per_image)
        self.images += other.images
        return self
