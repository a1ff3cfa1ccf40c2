"""Self-checks of chapter 15: builds told by their files, varied crops, who is better for certain, bytes with holes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlore_edu.data.labels import encode_normals
from mlore_edu.exercises import answered, exercise

BUILDS = (
    ("ATRC", "images/7.png segmentation/7.png normals/7.png depth/7.npy edge/7.png"),
    ("ASTMT", "images/7.jpg segmentation/7.mat normals/7.jpg depth/7.mat edge/7.png"),
    ("MTL-PyTorch", "images/7.jpg segmentation/7.png normals/7.npy depth/7.npy edge/7.npy"),
    ("ATRC", "images/7.png edge/7.png"),
    ("ASTMT", "depth/7.mat"),
    ("ASTMT", "images/7.jpg edge/7.png"),
    ("MTL-PyTorch", "images/7.jpg depth/7.npy"),
    ("unknown", "images/7.jpg"),
    ("unknown", "segmentation/7.png depth/7.npy"),
    ("unknown", "images/7.tiff depth/7.npy"),
)
"""Files of one image, and the build that they prove."""


@exercise("15.1", hint="Start with all three builds, and strike out those that would not have one of the files.")
def check_which_build(answer: Any) -> None:
    """``answer(paths)``: the name of the only build that has all these files, or ``"unknown"``."""
    for build, names in BUILDS:
        found = answered(answer(set(names.split())))
        assert found == build, f"The files {names.replace(' ', ', ')} are of {build!r}, not {found!r}."


@exercise("15.2", hint="Take the pixels that are not 255, and count them before you divide.")
def check_is_varied(answer: Any) -> None:
    """``answer(semseg, share)``: whether no class has ``share`` or more of the pixels that are not void."""
    cases = {
        "one class and nothing else": (np.zeros((4, 4), np.uint8), False),
        "three quarters of one class": (np.array([[0, 0], [0, 7]], np.uint8), False),
        "two halves": (np.array([[0, 0], [9, 9]], np.uint8), True),
        "two classes in a sea of void": (np.array([[255, 255, 3], [255, 255, 4]], np.uint8), True),
        "one class in a sea of void": (np.array([[255, 255, 3], [255, 255, 3]], np.uint8), False),
        "nothing but void": (np.full((3, 3), 255, np.uint8), False),
    }
    for what, (semseg, varied) in cases.items():
        before = semseg.copy()
        found = answered(answer(semseg, 0.75))
        assert np.array_equal(semseg, before), "The map that was passed in has been changed."
        assert bool(found) == varied, f"A map with {what} is {'' if varied else 'not '}varied."
    assert not answered(answer(np.array([[0, 0], [9, 9]], np.uint8), 0.5)), (
        "With a share of 0.5 two halves are too much."
    )


@exercise("15.3", hint="Draw the interval in which the truth of each model must lie, and see whether they touch.")
def check_better(answer: Any) -> None:
    """``answer(a, b, tau)``: ``"A"``, ``"B"`` or ``"open"``."""
    for a, b, tau, truth in (
        (13.0, 20.0, 3.0, "A"),
        (20.0, 13.0, 3.0, "B"),
        (13.0, 18.0, 3.0, "open"),
        (18.0, 13.0, 3.0, "open"),
        (13.5, 13.75, 0.0, "A"),
        (14.0, 14.0, 0.0, "open"),
        (10.0, 14.0, 2.0, "open"),
    ):
        found = answered(answer(a, b, tau))
        message = f"With {a:g}° and {b:g}° against a teacher who may be off by {tau:g}° it is {truth!r}, not {found!r}."
        assert found == truth, message


@exercise("15.4", hint="Decode first: 2 v / 255 - 1. Its length says whether it counts, before you divide by it.")
def check_mean_error(answer: Any) -> None:
    """``answer(predicted, stored, shortest)``: the mean angle in degrees where the decoded vector is long enough."""
    generator = np.random.default_rng(0)
    true, predicted = generator.standard_normal((2, 6, 8, 3))
    true /= np.linalg.norm(true, axis=-1, keepdims=True)
    true[:, :3] = 0  # no normal here
    stored = encode_normals(true)
    decoded = stored.astype(np.float64) * 2 / 255 - 1
    lengths = np.linalg.norm(predicted, axis=-1) * np.linalg.norm(decoded, axis=-1)
    angles = np.degrees(np.arccos((predicted * decoded).sum(-1) / lengths))  # (6, 8)
    for shortest, counted in ((0.0, angles), (0.5, angles[:, 3:])):
        found = float(answered(answer(predicted.copy(), stored.copy(), shortest)))
        message = f"With shortest={shortest:g} the mean should be {counted.mean():.2f}°, not {found:.2f}°."
        assert math.isclose(found, counted.mean(), abs_tol=0.005), message
