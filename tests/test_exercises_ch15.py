"""The self-checks of chapter 15 accept right answers, and answer wrong ones with a hint."""

import numpy as np
import pytest
import torch

from mlore_edu.data.files import Folder
from mlore_edu.data.labels import decode_normals
from mlore_edu.data.nyud_v2 import build_of
from mlore_edu.data.transforms import RandomCrop
from mlore_edu.exercises import ch15
from mlore_edu.metrics import NormalError

FULL = {build: set(files.split()) for build, files in ch15.BUILDS[:3]}


def which_build(paths):
    left = [build for build, files in FULL.items() if paths <= files]
    return left[0] if len(left) == 1 else "unknown"


def first_that_fits(paths):
    return next((build for build, files in FULL.items() if paths <= files), "unknown")


def share(pixels):
    return np.bincount(pixels.ravel(), minlength=256).max() / pixels.size


def mean_error(predicted, stored, shortest):
    meter = NormalError()
    maps = (predicted, decode_normals(stored, shortest))
    meter.update(*(torch.from_numpy(np.float64(values)).movedim(-1, 0)[None] for values in maps))
    return meter.compute()


ANSWERS = {
    ch15.check_which_build: (
        which_build,
        first_that_fits,  # guesses where several fit
        lambda paths: "ATRC" if "images/7.png" in paths else "ASTMT",
        lambda paths: next((build for build, files in FULL.items() if paths == files), "unknown"),  # needs all files
    ),
    ch15.check_is_varied: (
        lambda semseg, limit: bool((semseg != 255).any()) and share(semseg[semseg != 255]) < limit,
        lambda semseg, limit: share(semseg) < limit,  # void counts as a class
        lambda semseg, limit: share(np.where(semseg == 255, 254, semseg)) <= limit,
        lambda semseg, limit: len(np.unique(semseg[semseg != 255])) > 1,  # however small the second class is
        lambda semseg, limit: not semseg[semseg != 255].size or share(semseg[semseg != 255]) < limit,
    ),
    ch15.check_better: (
        lambda a, b, tau: "open" if abs(a - b) <= 2 * tau else "AB"[b < a],
        lambda a, b, tau: "AB"[b < a],  # believes the teacher
        lambda a, b, tau: "open" if abs(a - b) <= tau else "AB"[b < a],  # only one of the two may be off
        lambda a, b, tau: "open" if abs(a - b) <= 2 * tau else "AB"[b > a],  # higher is better
    ),
    ch15.check_mean_error: (
        mean_error,
        lambda predicted, stored, shortest: mean_error(predicted, stored, 0.0),  # holes always count
        lambda predicted, stored, shortest: mean_error(predicted, stored, 0.5),  # and never
        lambda predicted, stored, shortest: mean_error(predicted, stored[..., ::-1], shortest),
    ),
}


@pytest.mark.parametrize(("build", "files"), ch15.BUILDS)
def test_the_readers_know_the_same_builds(tmp_path, build, files):
    """They are more careful: a JPEG image alone proves nothing to them, whatever lies beside it."""
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert build_of(Folder(tmp_path, "make it again"), "7") in (build, None)


def test_a_crop_that_is_varied_is_the_one_that_training_takes():
    chance = np.random.default_rng(0)
    is_varied, *_ = ANSWERS[ch15.check_is_varied]
    semseg = torch.from_numpy(chance.choice([0, 7, 255], (24, 24), p=[0.6, 0.2, 0.2]).astype(np.uint8))
    semseg[:16, :16] = 3
    sample = {"image": torch.zeros(3, 24, 24), "semseg": semseg}
    crops = [
        RandomCrop(8, tries=200)(sample, torch.Generator().manual_seed(seed))["semseg"].numpy() for seed in range(20)
    ]
    assert all(is_varied(crop, 0.75) for crop in crops)
