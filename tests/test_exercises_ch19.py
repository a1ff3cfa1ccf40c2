"""The self-checks of chapter 19 accept right answers, and answer wrong ones with a hint."""

import numpy as np
import torch.nn.functional as F

from mlore_edu.exercises import ch19


def on_white(rgba):
    share = rgba[..., 3:] / 255
    return share * rgba[..., :3] + (1 - share) * 255


def to_own_size(scores, window, size, mode="bilinear"):
    top, left, height, width = window
    return F.interpolate(scores[None, :, top : top + height, left : left + width], size, mode=mode)[0].argmax(dim=0)


def early(scores, window, size):
    top, left, height, width = window
    classes = scores.argmax(dim=0)[top : top + height, left : left + width]
    return F.interpolate(classes[None, None].float(), size)[0, 0].long()


def corners(scores, window, size):
    top, left, height, width = window
    inner = scores[None, :, top : top + height, left : left + width]
    return F.interpolate(inner, size, mode="bilinear", align_corners=True)[0].argmax(dim=0)


ANSWERS = {
    ch19.check_on_white: (
        on_white,
        lambda rgba: rgba[..., :3],  # what lies hidden under the transparency
        lambda rgba: rgba[..., :3] * (rgba[..., 3:] / 255),  # on black
        lambda rgba: rgba[..., 3:] * rgba[..., :3] + (1 - rgba[..., 3:]) * 255,  # in bytes
        lambda rgba: on_white(rgba).mean(axis=-1),
    ),
    ch19.check_to_own_size: (
        to_own_size,
        early,
        corners,
        lambda scores, window, size: to_own_size(scores, (0, 0, 16, 16), size),  # with the padding
        lambda scores, window, size: to_own_size(scores, window, size, "nearest"),
    ),
    ch19.check_metres: (
        lambda predicted, focal, width, seen, training: predicted * focal * seen / width / training,
        lambda predicted, focal, width, seen, training: predicted * focal / training,
        lambda predicted, focal, width, seen, training: predicted * training / (focal * seen / width),
        lambda predicted, focal, width, seen, training: predicted,
    ),
    ch19.check_agree: (
        lambda a, b, tolerance: a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * np.abs(a).max()),
        lambda a, b, tolerance: a.shape == b.shape and not np.abs(a - b).max() > tolerance * np.abs(a).max(),
        lambda a, b, tolerance: bool(np.abs(a - b).max() <= tolerance * np.abs(a).max()),  # broadcasts
        lambda a, b, tolerance: a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance),
        lambda a, b, tolerance: a.shape == b.shape and bool(np.abs(a - b).min() <= tolerance * np.abs(a).max()),
    ),
}
