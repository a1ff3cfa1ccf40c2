"""Self-checks of chapter 19: transparency, the way back from a frame, metres of another camera, and parity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mlore_edu.exercises import answered, exercise


@exercise("19.1", hint="Of each pixel the share α is its own colour, and 1 - α the white paper under it; α is 0…255.")
def check_on_white(answer: Any) -> None:
    """``answer(rgba (H, W, 4) uint8)``: what a viewer shows on white, ``(H, W, 3)`` in 0…255."""
    rgba = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    found = np.asarray(answered(answer(rgba.copy())), dtype=float)
    assert found.shape == (5, 6, 3), f"A picture of 5 × 6 pixels should come out, (5, 6, 3), not {found.shape}."
    share = rgba[..., 3:] / 255.0
    wanted = share * rgba[..., :3] + (1 - share) * 255
    for row, kind in ((0, "wholly transparent"), (1, "opaque"), (slice(2, None), "half transparent")):
        off = np.abs(found[row] - wanted[row]).max()
        assert off <= 1, f"A {kind} pixel is off by up to {off:.0f} of 255."


@exercise("19.2", hint="First cut the padding off, then enlarge the scores, and only then choose the class.")
def check_to_own_size(answer: Any) -> None:
    """``answer(scores (K, H, W), window, size)``: classes ``size`` of an image that lies in a window of the frame."""
    scores = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    for (top, left, height, width), size in (((0, 0, 16, 16), (64, 64)), ((3, 0, 10, 16), (25, 40))):
        found = torch.as_tensor(answered(answer(scores.clone(), (top, left, height, width), size)))
        assert tuple(found.shape) == size, f"Classes of an image of {size} are wanted, not of {tuple(found.shape)}."
        inner = scores[None, :, top : top + height, left : left + width]
        wanted = F.interpolate(inner, size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
        share = (found == wanted).float().mean()
        assert share == 1, f"From a window of {height} × {width}, {100 * (1 - share):.0f} % of the pixels are wrong."


@exercise("19.3", hint="Bring both focal lengths to pixels of the frame that the model sees; distance grows with them.")
def check_metres(answer: Any) -> None:
    """``answer(predicted, focal, width, seen_width, training_focal)``: metres for an image of a known camera."""
    for predicted, focal, width, seen, training in ((2.0, 900.0, 640, 128, 120.0), (3.0, 500.0, 256, 128, 125.0)):
        wanted = predicted * (focal * seen / width) / training
        value = float(answered(answer(predicted, focal, width, seen, training)))
        assert abs(value - wanted) < 1e-6, (
            f"{predicted} m with a focal length of {focal:.0f} pixels in an image {width} wide, seen at {seen}, after "
            f"training at {training:.0f}: {wanted:.3f} m, not {value:.3f}."
        )


@exercise("19.4", hint="'Not (difference ≤ tolerance)' catches nan, 'difference > tolerance' does not; compare shapes.")
def check_agree(answer: Any) -> None:
    """``answer(expected, found, tolerance)``: whether two arrays agree, as a share of the largest expected value."""
    expected = np.array([[1.0, -200.0], [1.0, -200.0]])
    one_off, broken = expected.copy(), expected.copy()
    one_off[1, 0], broken[1, 0] = 2.0, np.nan
    cases = (
        (expected, True, "the same numbers"),
        (expected + 0.01, True, "numbers that are off by 0.00005 of the largest"),
        (one_off, False, "numbers of which one is off by 0.005 of the largest"),
        (broken, False, "a result with a nan"),
        (expected[:1], False, "a result of another shape"),
    )
    for found, wanted, words in cases:
        verdict = answered(answer(expected.copy(), found.copy(), 1e-4))
        assert bool(verdict) == wanted, f"Of {words} it should say {wanted}."
