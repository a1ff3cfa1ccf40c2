"""Colours of labels: what is drawn is what the label says, and colours stay apart for colour-blind readers."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from mlore_edu.errors import UserError
from mlore_edu.pictures import (
    CLASS_COLOURS,
    DOLLHOUSE_COLOURS,
    IGNORED_COLOUR,
    PART_COLOURS,
    overlay,
    palette,
    panel,
    to_rgb,
)
from mlore_edu.tasks import NYUD_V2, PASCAL_CONTEXT

# Linear-light simulation of full colour blindness (Machado, Oliveira and Fernandes, 2009, severity 1).
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


def seen(rgb, matrix):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    light = np.clip(linear @ np.array(matrix).T, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("colours", [DOLLHOUSE_COLOURS, PART_COLOURS, CLASS_COLOURS[:21], CLASS_COLOURS])
@pytest.mark.parametrize("vision", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["full", "deuteranopia", "protanopia"])
def test_every_pair_of_class_colours_stays_apart(colours, vision):
    rgb = np.array([tuple(bytes.fromhex(colour)) for colour in colours]) / 255
    lab = rgb2lab(seen(rgb, vision)[None])[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(len(lab))
    assert distance.min() > 6  # a difference of about 2 is just visible side by side


def test_palettes_cover_every_class():
    for tasks in (PASCAL_CONTEXT, NYUD_V2):
        classes = tasks["semseg"].channels
        assert len(palette("semseg", classes)) >= classes


def test_each_label_gets_its_colours():
    ids = np.array([[0, 14], [255, 1]])
    expected = np.array([palette("semseg")[0], palette("semseg")[14], IGNORED_COLOUR, palette("semseg")[1]])
    assert (to_rgb("semseg", ids).reshape(4, 3) == expected).all()
    assert to_rgb("saliency", np.array([[0.0, 1.0, 255]])).tolist() == [[[0] * 3, [255] * 3, list(IGNORED_COLOUR)]]
    assert to_rgb("edge", torch.tensor([[0.0, 1.0]])).tolist() == [[[255] * 3, [0] * 3]]
    facing = to_rgb("normals", torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1))
    assert facing.tolist() == [[[128, 128, 255]]]
    assert to_rgb("normals", np.zeros((1, 1, 3))).tolist() == [[list(IGNORED_COLOUR)]]


def test_near_is_brighter_than_far_and_invalid_is_white():
    near, far, invalid = to_rgb("depth", np.array([[[1.0, 7.0, 0.0]]]))[0].astype(int)
    assert near.sum() > far.sum()
    assert tuple(invalid) == IGNORED_COLOUR


def test_images_pass_through_as_bytes():
    image = np.full((3, 4, 5), 0.5, dtype=np.float32)
    assert to_rgb("image", image).shape == (4, 5, 3)
    assert to_rgb("image", np.full((4, 5, 3), 7, dtype=np.uint8)).max() == 7


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="'flow'"):
        to_rgb("flow", np.zeros((2, 2)))


def test_class_ids_without_a_colour_and_batches_are_refused():
    for wrong in (np.full((2, 2), 15), np.zeros((2, 2, 2), int), np.full((2, 2), -1)):
        with pytest.raises(UserError, match="0 to 14"):
            to_rgb("semseg", wrong)


def test_a_panel_has_a_cell_per_row_and_key():
    row = {"image": np.zeros((32, 48, 3), np.uint8), "depth": np.ones((1, 32, 48))}
    page = panel([row, {"depth": row["depth"]}], ("label", "prediction"), side=96)
    assert page.size == (22 + 2 * 100 - 4, 22 + 2 * 68 - 4)
    cells = np.asarray(page)
    assert (cells[22:86, 22:118] == 0).all()  # the image
    assert (cells[22 + 68 :, 22:118] == 255).all()  # the gap below it


def test_an_overlay_shows_the_image_where_there_is_nothing_to_say():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    parts = np.zeros((4, 6), int)
    parts[1, 2] = 3
    laid = overlay(image, "human_parts", parts)
    np.testing.assert_array_equal(np.abs(laid.astype(int) - image).any(-1), parts > 0)
    np.testing.assert_allclose(overlay(image, "saliency", np.ones((4, 6))), image, atol=1)
    assert overlay(image, "saliency", np.zeros((4, 6))).max() <= 0.15 * 255 + 1
    depth = rng.uniform(1, 7, (1, 4, 6))
    np.testing.assert_array_equal(overlay(image, "depth", depth), to_rgb("depth", depth))


def test_an_overlay_of_classes_keeps_their_colours_apart_and_lets_light_and_dark_through():
    labels = np.arange(15).reshape(3, 5)
    dark, light = (overlay(np.full((3, 5, 3), grey, np.uint8), "semseg", labels).astype(float) for grey in (0, 255))
    np.testing.assert_allclose(light - dark, 0.4 * 255, atol=1)
    np.testing.assert_allclose(dark, 0.6 * palette("semseg")[labels], atol=1)


def test_a_panel_can_lay_answers_over_its_image():
    row = {"image": np.full((8, 8, 3), 200, np.uint8), "human_parts": np.zeros((8, 8), int)}
    page = np.asarray(panel([row], side=8, overlaid=True))
    np.testing.assert_array_equal(page[-8:, :8], page[-8:, 12:20])
    assert not np.array_equal(np.asarray(panel([row], side=8))[-8:, 12:20], page[-8:, :8])
