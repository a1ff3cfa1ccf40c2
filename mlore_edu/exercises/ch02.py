"""Self-checks of chapter 2: IoU, the acting thresholds, small angles, a pooled RMSE, a gain of logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mlore_edu.arrays import Array
from mlore_edu.exercises import answered, exercise


@exercise("2.1", hint="Throw the pixels labelled 255 out of the prediction too, then count both and either.")
def check_iou(iou: Callable[[Array, Array, int], float]) -> None:
    """``iou(prediction, target, c)``: IoU of class c, 0 to 1, nan where the class never occurs."""
    prediction = np.array([[1, 1, 1], [0, 2, 1]])
    target = np.array([[1, 1, 0], [1, 0, 255]])
    assert not np.isclose(answered(iou(prediction, target, 1)), 2 / 5), "The pixel labelled 255 was counted."
    assert np.isclose(iou(prediction, target, 1), 2 / 4), "Two pixels agree and four are claimed by either side."
    assert iou(prediction, target, 2) == 0, "Class 2 was predicted but is never true: its IoU is 0."
    assert np.isnan(iou(prediction, target, 3)), "Class 3 occurs nowhere: its IoU is 0/0, that is nan."


@exercise("2.2", hint="Solve σ(p / T) > τ for p, and keep the solutions strictly between 0 and 1.")
def check_acting(acting: Callable[[float], Sequence[float]]) -> None:
    """``acting(temperature)``: the thresholds on p that σ(p / T) leaves between 0 and 1."""
    at_one = list(answered(acting(1.0)))
    assert len(at_one) == 4, f"With T = 1 there are {len(at_one)} thresholds; there should be 4."
    expected = [math.log(k / (20 - k)) for k in (11, 12, 13, 14)]
    assert np.allclose(at_one, expected), "These are not the thresholds on p, in ascending order."
    assert len(acting(2.0)) == 2, "With T = 2 the sigmoid is flatter, and two thresholds are left."
    assert np.allclose(acting(0.1), [0.1 * math.log(k / (20 - k)) for k in range(11, 20)]), "T = 0.1 goes wrong."


@exercise("2.3", hint="Make both vectors unit length, then take 2·atan2 of the lengths of their difference and sum.")
def check_angle(angle: Callable[[Array, Array], Array]) -> None:
    """``angle(p, g)``: degrees between float32 vectors along the last axis."""
    true = np.array([1e-3, 0.01, 0.1, 1.0, 45.0, 90.0, 135.0, 179.0])
    turn = np.radians(true)
    g = np.broadcast_to(np.array([1.0, 0.0, 0.0], np.float32), (len(true), 3))
    p = np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], axis=-1).astype(np.float32)  # (8, 3)
    given = np.asarray(answered(angle(p, g)), np.float64)
    assert given.shape == true.shape, f"The result has shape {given.shape}; it should be {true.shape}."
    assert np.allclose(given[3:], true[3:], rtol=0.01), "Large angles are wrong; is the result in degrees?"
    assert np.allclose(given[:3], true[:3], rtol=0.01), "Large angles are right, but small ones are lost to rounding."
    longer = np.asarray(angle(np.float32(3) * p, np.float32(0.5) * g), np.float64)
    assert np.allclose(longer, true, rtol=0.01), "Vectors that do not have length one come out wrong."


@exercise("2.4", hint="Undo the root and the division by the number of pixels, add, and redo both.")
def check_pooled(pooled: Callable[[Sequence[float], Sequence[int]], float]) -> None:
    """``pooled(errors, pixels)``: RMSE over all pixels from RMSE and valid pixels of each image."""
    errors, pixels = [1.0, 3.0], [300, 100]
    given = answered(pooled(errors, pixels))
    assert not np.isclose(given, 1.5), "This is the mean weighted by pixels; errors add as squares."
    assert not np.isclose(given, math.sqrt(5)), "Images with more pixels should count more."
    assert np.isclose(given, math.sqrt(3)), "Errors of 1 m on 300 pixels and 3 m on 100 should give √3 m."
    assert np.isclose(pooled([0.5, 0.5, 2.0], [10, 30, 0]), 0.5), "An image without valid pixels should not count."


@exercise("2.5", hint="Take the logarithm of each ratio, turn its sign where lower is better, and average.")
def check_log_gain(log_gain: Callable[[Sequence[float], Sequence[float], Sequence[bool]], float]) -> None:
    """``log_gain(results, baseline, lower_is_better)``: 100 times the mean logarithm of the improvement."""
    results, baseline, lower = [80.0, 10.0], [40.0, 20.0], [False, True]
    given = answered(log_gain(results, baseline, lower))
    assert not np.isclose(given, 0), "One score doubled and one error halved; both are gains."
    assert np.isclose(given, 100 * math.log(2)), "A doubled score and a halved error should give 100 · ln 2."
    assert np.isclose(log_gain(baseline, results, lower), -given), "Exchanging the two models should turn the sign."
    assert np.isclose(log_gain([60.0, 5.0, 5.0], [60.0, 5.0, 10.0], [False, True, True]), 100 * math.log(2) / 3), (
        "With three tasks, of which one error halved, the mean is a third of 100 · ln 2."
    )
