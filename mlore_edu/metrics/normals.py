"""Mean angular error of surface normals (chapter 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mlore_edu.metrics.meter import check_finite, check_maps

ACCURACY_ANGLES = (11.25, 22.5, 30.0)
"""Angles in degrees below which the literature counts a normal as right."""

_BINS_PER_DEGREE = 100


def angular_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the angle between vectors in degrees (0 to 180), float64, over dimension 1.

    The angle is 2·atan2(‖p − g‖, ‖p + g‖) of the normalised vectors: unlike acos(p·g) it is accurate near 0 and 180
    degrees and never leaves its domain by rounding. A zero vector has no direction and comes out as 90 degrees.

    Parameters
    ----------
    prediction, target
        Vectors of any length, floating point (B, 3, …).
    """
    p, g = normalize(prediction.double()), normalize(target.double())
    angle: Tensor = 2 * torch.atan2((p - g).norm(dim=1), (p + g).norm(dim=1))
    return torch.rad2deg(angle)


class NormalError:
    """Mean angle between predicted and true normals over all valid pixels of the data set, in degrees.

    A target of exactly zero is no normal and does not count. Built by hand in chapter 2.
    """

    def __init__(self) -> None:
        self.sums: list[float] = []  # of the angles of each image; added exactly, so their order cannot matter
        self.pixels = 0
        self.accurate = torch.zeros(len(ACCURACY_ANGLES), dtype=torch.int64)
        self.histogram = torch.zeros(180 * _BINS_PER_DEGREE, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch.

        Parameters
        ----------
        prediction
            Vectors of any length, floating point (B, 3, H, W).
        target
            Unit vectors, zero where ignored, floating point (B, 3, H, W).
        """
        check_maps("mErr", prediction, target, channels=3)
        check_finite("mErr", "target", target)
        prediction, valid = prediction.detach(), target.ne(0).any(1)  # (B, H, W)
        check_finite("mErr", "prediction", prediction.movedim(1, -1)[valid])
        for image_prediction, image_target, image_valid in zip(prediction, target, valid):
            angles = angular_error(image_prediction[:, image_valid].T, image_target[:, image_valid].T).cpu()  # (N,)
            self.sums.append(float(angles.sum()))
            self.pixels += angles.numel()
            self.accurate += torch.tensor([int((angles < limit).sum()) for limit in ACCURACY_ANGLES])
            bins = (angles * _BINS_PER_DEGREE).long().clamp_(max=len(self.histogram) - 1)
            self.histogram += torch.bincount(bins, minlength=len(self.histogram))

    def compute(self) -> float:
        """Return mErr in degrees, or nan when no pixel was counted."""
        return math.fsum(self.sums) / self.pixels if self.pixels else math.nan

    def details(self) -> dict[str, Any]:
        """Return mean and median in degrees (the median to 0.01), and the share of pixels below each accuracy angle
        in percent; nan when no pixel was counted.
        """
        half = torch.searchsorted(self.histogram.cumsum(0), (self.pixels + 1) // 2)
        share = 100 * self.accurate.double() / self.pixels
        return {
            "mean": self.compute(),
            "median": (int(half) + 0.5) / _BINS_PER_DEGREE if self.pixels else math.nan,
            "accuracy": dict(zip(ACCURACY_ANGLES, share.tolist())),
            "pixels": self.pixels,
        }

    def merge(self, other: NormalError) -> NormalError:
        """Add another meter's counts."""
        self.sums += other.sums
        self.pixels += other.pixels
        self.accurate += other.accurate
        self.histogram += other.histogram
        return self
