"""Maximal F-measure of saliency, in the three forms the field uses (chapter 2)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mlore_edu.errors import UserError
from mlore_edu.metrics.meter import check_labels, check_maps, check_probability, check_same
from mlore_edu.tasks import IGNORE

SaliencyVariant = Literal["standard", "released", "astmt"]

THRESHOLDS = tuple(k / 20 for k in range(1, 20))
"""The 19 thresholds 0.05, 0.10, …, 0.95; a pixel is salient where the probability is greater."""


class MaxF:
    """Maximum over 19 thresholds of F = (1 + β²) P R / (β² P + R), in percent.

    Parameters
    ----------
    variant
        ``"standard"``: β² = 0.3, true and false positives pooled over the data set.
        ``"released"``: the same after one more sigmoid on the probability, as in the released evaluation of InvPT,
        TaskPrompter and MLoRE; published numbers carry it. The sigmoid squeezes [0, 1] into [0.5, 0.73], so that only
        :attr:`acting_thresholds` separate anything.
        ``"astmt"``: β² = 1; precision and recall of each image, their means over the images, then F. An image
        without a salient pixel is left out; one where nothing is predicted has precision 0.

    Notes
    -----
    Built by hand in chapter 2. In all variants the threshold is chosen on the data that is being scored.
    """

    def __init__(self, variant: SaliencyVariant = "standard") -> None:
        if variant not in get_args(SaliencyVariant):
            raise UserError(f"maxF: no variant {variant!r}; choose one of {', '.join(get_args(SaliencyVariant))}.")
        self.variant = variant
        self.beta_squared = 1.0 if variant == "astmt" else 0.3
        # pixels of each kind by the number of thresholds they exceed: one histogram serves all thresholds
        self.exceeded = torch.zeros(2, len(THRESHOLDS) + 1, dtype=torch.int64)  # (not salient | salient, exceeded)
        self.images: list[tuple[list[float], list[float]]] = []  # precision and recall per threshold (astmt)

    @property
    def acting_thresholds(self) -> tuple[float, ...]:
        """The thresholds on the probability itself that lie strictly between 0 and 1, and so can separate pixels."""
        if self.variant != "released":
            return THRESHOLDS
        on_probability = (math.log(t / (1 - t)) for t in THRESHOLDS)  # sigmoid(p) > t  <=>  p > log(t / (1 - t))
        return tuple(p for p in on_probability if 0 < p < 1)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch.

        Parameters
        ----------
        prediction
            Probability that a pixel is salient, 0 to 1, floating point (B, H, W).
        target
            1 salient, 0 not, 255 ignored, integer (B, H, W).
        """
        check_maps("maxF", prediction, target)
        counted = target != IGNORE
        check_labels("maxF", "target", target[counted], 2)
        check_probability("maxF", prediction[counted])
        for image_prediction, image_target, image_counted in zip(prediction, target, counted):
            exceeded = self._count(image_prediction[image_counted], image_target[image_counted])
            self.exceeded += exceeded
            if self.variant == "astmt" and exceeded[1].any():
                precision, recall, _ = self._curve(exceeded)
                self.images.append((precision.nan_to_num(0).tolist(), recall.tolist()))

    def _count(self, probability: Tensor, true: Tensor) -> Tensor:
        probability = probability if probability.dtype == torch.float64 else probability.float()
        if self.variant == "released":
            probability = probability.sigmoid()
        # thresholds in the dtype of the probability, so that a stored 0.55 does not exceed 0.55
        number = torch.bucketize(probability, probability.new_tensor(THRESHOLDS))  # thresholds below each pixel
        bins = len(THRESHOLDS) + 1
        return torch.bincount(true.long() * bins + number, minlength=2 * bins).reshape(2, bins).cpu()

    def _curve(self, exceeded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        above = exceeded.flip(1).cumsum(1).flip(1)[:, 1:].double()  # (2, 19): pixels above each threshold
        false_positives, true_positives = above
        positives = exceeded[1].sum().double()
        precision = true_positives / (true_positives + false_positives)
        recall = true_positives / positives
        # F written in counts is defined even where P is 0/0
        f = (1 + self.beta_squared) * true_positives
        f = f / (self.beta_squared * positives + true_positives + false_positives)
        return precision, recall, f

    def _mean_curve(self) -> tuple[Tensor, Tensor, Tensor]:
        columns = [[math.fsum(column) / len(self.images) for column in zip(*curves)] for curves in zip(*self.images)]
        precision, recall = torch.tensor(columns, dtype=torch.float64)
        f = (1 + self.beta_squared) * precision * recall / (self.beta_squared * precision + recall)
        return precision, recall, f.nan_to_num(0)

    def details(self) -> dict[str, Any]:
        """Return threshold, precision, recall and F (0 to 1) per threshold, and the best threshold, on the scale of
        the thresholds 0.05 … 0.95; no F is defined (nan) when the targets hold no salient pixel at all.
        """
        if not self.exceeded[1].any():
            nothing = [math.nan] * len(THRESHOLDS)
            curves, best = {"precision": nothing, "recall": nothing, "f": nothing}, math.nan
        else:
            precision, recall, f = self._mean_curve() if self.variant == "astmt" else self._curve(self.exceeded)
            curves = {"precision": precision.tolist(), "recall": recall.tolist(), "f": f.tolist()}
            best = THRESHOLDS[int(f.argmax())]
        return {"thresholds": list(THRESHOLDS), **curves, "best_threshold": best}

    def compute(self) -> float:
        """Return maxF in percent (0 to 100), or nan when the targets hold no salient pixel."""
        return 100 * float(max(self.details()["f"]))

    def merge(self, other: MaxF) -> MaxF:
        """Add another meter's counts."""
        check_same("maxF", self.variant, other.variant)
        self.exceeded += other.exceeded
        self.images += other.images
        return self
