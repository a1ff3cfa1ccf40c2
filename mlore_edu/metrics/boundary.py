"""The F-measure of boundaries, by the field's protocol and without MATLAB (chapter 2, appendix on boundary matching).

A predicted boundary pixel is right when a true boundary pixel of its own lies within a small distance. For each image:
the probability is rounded to 8 bits and thinned to its ridges by non-maximum suppression; at every threshold the map
is thinned to lines of one pixel, which are matched with the true lines. The counts are added over the data set.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d
from torch import Tensor

from mlore_edu.errors import UserError
from mlore_edu.metrics.boundary_matching import Ints, Mask, compiled, match_thresholds, thin
from mlore_edu.metrics.boundary_protocols import PASCAL_BOUNDARY, BoundaryProtocol
from mlore_edu.metrics.meter import check_maps, check_probability, check_same
from mlore_edu.tasks import IGNORE

Floats = NDArray[np.float64]


class ImageCounts(NamedTuple):
    """Boundary pixels of one image: predicted and matched at each threshold (T,), and true."""

    predicted: Ints
    matched: Ints
    true: int


def triangle_smooth(image: Floats, radius: int) -> Floats:
    """Filter along both axes with weights that fall linearly to 0 at ``radius + 1``; the image goes on mirrored."""
    triangle = np.minimum(np.arange(1, 2 * radius + 2), np.arange(2 * radius + 1, 0, -1)) / (radius + 1) ** 2
    return cast(Floats, convolve1d(convolve1d(image, triangle, axis=0), triangle, axis=1))


def ridge_normals(probability: Floats, radius: int) -> Floats:
    """Return the direction across the ridge at each pixel, in radians from the x axis towards the y axis (down).

    The second derivatives of the smoothed map say how it bends: across a ridge strongly, along it hardly. The field
    takes arctan(±Oyy / Oxx); on a straight ridge at angle a this is arctan(tan² a), exact at multiples of 45 degrees.
    Its sign is that of −Oxy, 0 included, and then a ridge that is horizontal to the last bit is not thinned at all;
    here it is, like any other.

    Parameters
    ----------
    probability
        (H, W).
    radius
        Of the triangle filter, in pixels.
    """
    smooth = triangle_smooth(probability, radius)

    def derivative(values: Floats, axis: int) -> Floats:
        single = values.shape[axis] == 1
        return np.zeros_like(values) if single else cast(Floats, np.gradient(values, axis=axis))

    along_x = derivative(smooth, 1)
    xx, xy, yy = derivative(along_x, 1), derivative(along_x, 0), derivative(derivative(smooth, 0), 0)
    return cast(Floats, np.arctan(np.where(xy > 0, -yy, yy) / (xx + 1e-5)))


@compiled
def interpolate(image: Floats, x: float, y: float) -> float:
    """Read an image between its pixels, bilinearly; beyond the border the border's value continues."""
    height, width = image.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    dx, dy = x - left, y - top
    upper = (1 - dx) * image[top, left] + dx * image[top, right]
    lower = (1 - dx) * image[bottom, left] + dx * image[bottom, right]
    return float((1 - dy) * upper + dy * lower)


@compiled
def keep_ridges(probability: Floats, normals: Floats, radius: int, multiplier: float) -> Floats:
    """Set to 0 every pixel that is less than a neighbour across the ridge, even when multiplied by ``multiplier``."""
    ridges = probability.copy()
    height, width = probability.shape
    for y in range(height):
        for x in range(width):
            if probability[y, x] == 0:
                continue
            step_x, step_y = np.cos(normals[y, x]), np.sin(normals[y, x])
            for d in range(-radius, radius + 1):
                neighbour = interpolate(probability, x + d * step_x, y + d * step_y) if d != 0 else 0.0
                if probability[y, x] * multiplier < neighbour:
                    ridges[y, x] = 0
    return ridges


def fade_border(image: Floats, border: int) -> Floats:
    """Scale an image linearly from 0 at its outermost pixels to 1 at ``border`` pixels from them (or halfway in)."""
    for axis, size in enumerate(image.shape):
        fade = min(border, size // 2)
        distance = np.minimum(np.arange(size), np.arange(size)[::-1])
        weight = np.minimum(distance / fade, 1.0) if fade else np.ones(size)
        image = image * (weight[:, None] if axis == 0 else weight)
    return image


def suppress(probability: Floats, protocol: BoundaryProtocol) -> Floats:
    """Round the probability to 8 bits, keep its ridges, and fade its border, as the protocol says; (H, W) to (H, W)."""
    if protocol.levels:
        probability = np.round(probability * protocol.levels) / protocol.levels
    if protocol.suppress:
        probability = triangle_smooth(probability, protocol.presmoothing_radius)
        normals = ridge_normals(probability, protocol.smoothing_radius)
        probability = keep_ridges(probability, normals, protocol.suppression_radius, protocol.suppression_multiplier)
        probability = fade_border(probability, protocol.border)
    return probability


def region_outlines(regions: Mask) -> Mask:
    """Draw a boundary pixel wherever the neighbour to the east, south or south-east belongs to another region."""
    around = np.pad(regions, ((0, 1), (0, 1)), mode="edge")
    east, south, south_east = around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    return cast(Mask, (regions != east) | (regions != south) | (regions != south_east))


def count_image(probability: Floats, target: NDArray[Any], protocol: BoundaryProtocol) -> ImageCounts:
    """Count the boundary pixels of one image: predicted, matched and true.

    Ignored pixels (255) hold neither predicted nor true boundaries. Where they frame the image, as padding does, they
    are cut off first, so that they change neither the diagonal nor the border: padding has no effect on the counts.

    Parameters
    ----------
    probability
        From 0 to 1, (H, W).
    target
        1 boundary, 0 none, 255 ignored, (H, W).
    """
    labelled = target != IGNORE
    if not labelled.any():
        nothing = np.zeros(len(protocol.thresholds), dtype=np.int64)
        return ImageCounts(nothing, nothing, 0)
    rows, columns = np.flatnonzero(labelled.any(axis=1)), np.flatnonzero(labelled.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    labelled = labelled[box]
    ridges = suppress(probability[box], protocol) * labelled
    truth = target[box] == 1
    if protocol.truth_is_regions:
        truth = region_outlines(truth) & labelled
    truth = thin(truth)
    tolerance = protocol.max_distance * math.hypot(*truth.shape)
    predicted, matched = match_thresholds(ridges, truth, protocol.thresholds, tolerance)
    return ImageCounts(predicted, matched, int(truth.sum()))


class BoundaryF:
    """odsF: the best F-measure of boundaries at one threshold for the whole data set, in percent.

    F = 2 P R / (P + R) = 2 matched / (predicted + true), with counts pooled over the images; the maximum is taken over
    the protocol's thresholds without interpolation.

    Parameters
    ----------
    protocol
        Every choice of the evaluation: one of BOUNDARY_PROTOCOLS, or your own.
    workers
        Images are counted by so many threads while the caller goes on (the work is compiled and leaves Python's lock
        free); 0 counts them in ``update``. The result is the same.

    Notes
    -----
    Built by hand in chapter 2. The reference solver (BSDS) seeks a cheapest assignment and in doing so misses a few
    pairs; here the number of pairs is the largest possible, which makes it unique and reproducible.
    """

    def __init__(self, protocol: BoundaryProtocol = PASCAL_BOUNDARY, workers: int = 0) -> None:
        self.protocol = protocol
        self.workers = workers
        self._images: list[ImageCounts] = []
        self._pending: list[Future[ImageCounts]] = []
        self._pool: ThreadPoolExecutor | None = None

    @property
    def images(self) -> list[ImageCounts]:
        """The counts of every image so far, those still in work waited for."""
        self._images += [future.result() for future in self._pending]
        self._pending = []
        return self._images

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch; images without a labelled pixel are passed over.

        Parameters
        ----------
        prediction
            Boundary probability, 0 to 1, floating point (B, H, W).
        target
            1 boundary, 0 none, 255 ignored, (B, 1, H, W) or (B, H, W).
        """
        target = target[:, 0] if target.dim() == 4 and target.shape[1] == 1 else target
        check_maps("odsF", prediction, target)
        counted = target != IGNORE
        check_probability("odsF", prediction[counted])
        if not bool(((target == 0) | (target == 1) | ~counted).all()):
            raise UserError(
                "odsF: the target holds values other than 0, 1 and 255; encode boundaries as 1, others as 0."
            )
        # nan may stand where nothing is counted; it must not spread through the smoothing
        probabilities = prediction.detach().double().nan_to_num(0).clamp(0, 1).cpu().numpy()
        for probability, labels in zip(probabilities, target.cpu().numpy()):
            if (labels == IGNORE).all():
                continue
            if not self.workers:
                self._images.append(count_image(probability, labels, self.protocol))
                continue
            self._pool = self._pool or ThreadPoolExecutor(self.workers)
            self._pending.append(self._pool.submit(count_image, probability, labels, self.protocol))
            if len(self._pending) > 16 * self.workers:  # waiting images take memory
                self._images.append(self._pending.pop(0).result())

    def compute(self) -> float:
        """Return odsF in percent (0 to 100), or nan when the targets hold no boundary."""
        return float(self.details()["odsF"])

    def details(self) -> dict[str, Any]:
        """Return the curves and what else the protocol reports.

        Returns
        -------
        ``thresholds``, and per threshold ``precision`` (nan where nothing is predicted), ``recall`` and ``f``, 0 to 1;
        ``odsF`` and ``ods_threshold``; ``oisF``: each image at its own best threshold, the counts then pooled;
        ``ap``: mean of the precision at recalls 0, 0.01, …, 1, linear between the measured ones, 0 beyond the largest.
        odsF, oisF and ap are in percent, and nan when the targets hold no boundary.
        """
        counts = [(image.predicted, image.matched) for image in self.images]
        shape = len(counts), 2, len(self.protocol.thresholds)
        predicted, matched = np.array(counts, dtype=np.int64).reshape(shape).swapaxes(0, 1)  # (images, thresholds)
        true = np.array([image.true for image in self.images], dtype=np.int64)
        precision, recall, f = _curves(predicted.sum(0), matched.sum(0), true.sum())
        best = int(f.argmax())
        # of equally good thresholds the highest: an image without true boundaries then adds the fewest false alarms
        of_images = 2 * matched / np.maximum(predicted + true[:, None], 1)
        chosen = np.arange(len(true)), len(f) - 1 - of_images[:, ::-1].argmax(1)
        ois = _curves(predicted[chosen].sum(), matched[chosen].sum(), true.sum())[2]
        some = bool(true.any())
        return {
            "thresholds": list(self.protocol.thresholds),
            "precision": precision.tolist(),
            "recall": recall.tolist(),
            "f": f.tolist(),
            "odsF": float(100 * f[best]),
            "ods_threshold": self.protocol.thresholds[best] if some else math.nan,
            "oisF": float(100 * ois),
            "ap": 100 * _average_precision(precision, recall) if some else math.nan,
            "images": len(self.images),
            "true_pixels": int(true.sum()),
        }

    def merge(self, other: BoundaryF) -> BoundaryF:
        """Add another meter's counts."""
        check_same("odsF", self.protocol, other.protocol)
        self._images = self.images + other.images
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "workers": self.workers, "images": self.images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BoundaryF.__init__(self, state["protocol"], state["workers"])
        self._images = state["images"]


def _curves(predicted: Ints, matched: Ints, true: Ints) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F from counts; recall and F are nan without a true pixel."""
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = matched / predicted, matched / true
        f = np.where(true > 0, 2 * matched / (predicted + true), np.nan)
    return precision, recall, f


def _average_precision(precision: Floats, recall: Floats) -> float:
    measured = ~np.isnan(precision)
    if not measured.any():
        return 0.0
    precision, recall = precision[measured][::-1], recall[measured][::-1]  # high thresholds first
    recalls, first = np.unique(recall, return_index=True)
    return float(np.interp(np.linspace(0, 1, 101), recalls, precision[first], right=0.0).mean())
