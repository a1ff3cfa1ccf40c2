"""mErr is the mean angle over all valid pixels of the data set."""

import math

import pytest
import torch

from mlore_edu.errors import UserError
from mlore_edu.metrics import NormalError, angular_error


def random_vectors(seed, shape=(2, 3, 5, 4)):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    target = target / target.norm(dim=1, keepdim=True)
    target *= torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.8
    return prediction, target


def naive_angles(prediction, target):
    """Angles by acos, pixel by pixel."""
    angles = []
    for p, g in zip(prediction.movedim(1, -1).reshape(-1, 3).tolist(), target.movedim(1, -1).reshape(-1, 3).tolist()):
        if any(g):
            cosine = sum(a * b for a, b in zip(p, g)) / (math.hypot(*p) * math.hypot(*g))
            angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    return angles


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed):
    prediction, target = random_vectors(seed)
    meter = NormalError()
    meter.update(prediction, target)
    angles = sorted(naive_angles(prediction, target))
    details = meter.details()
    assert meter.compute() == pytest.approx(sum(angles) / len(angles), rel=1e-9)
    assert details["median"] == pytest.approx(angles[(len(angles) - 1) // 2], abs=0.0051)
    for limit, share in details["accuracy"].items():
        assert share == pytest.approx(100 * sum(a < limit for a in angles) / len(angles))
    assert details["pixels"] == len(angles)


@pytest.mark.parametrize("degrees", [0, 1e-9, 1e-6, 1e-3, 1, 45, 90, 135, 179.999999, 180])
def test_angles_are_exact_where_acos_is_not(degrees):
    radians = math.radians(degrees)
    p = torch.tensor([[math.sin(radians), 0.0, math.cos(radians)]], dtype=torch.float64)
    g = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    assert float(angular_error(p, g)) == pytest.approx(degrees, rel=1e-12, abs=1e-13)


def test_length_of_the_prediction_does_not_matter_and_zero_counts_as_90_degrees():
    target = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    for prediction, degrees in (([0, 0, 1e-3], 0), ([0, 7, 7], 45), ([0, 0, -2], 180), ([0, 0, 0], 90)):
        meter = NormalError()
        meter.update(torch.tensor(prediction).float().reshape(1, 3, 1, 1), target)
        assert meter.compute() == pytest.approx(degrees, abs=1e-9)


def test_pixels_are_pooled_over_images():
    target = torch.zeros(2, 3, 1, 3)
    target[0, 2, 0, 0] = 1  # one valid pixel, wrong by 90 degrees
    target[1, 2] = 1  # three valid pixels, right
    prediction = torch.zeros(2, 3, 1, 3)
    prediction[0, 0] = 1
    prediction[1, 2] = 1
    meter = NormalError()
    meter.update(prediction, target)
    assert meter.compute() == pytest.approx(22.5)  # not 45, the mean of the images' means
    assert meter.details()["accuracy"] == {11.25: 75, 22.5: 75, 30.0: 75}


def test_prediction_under_ignored_pixels_may_be_anything():
    target = torch.zeros(1, 3, 1, 2)
    target[0, 2, 0, 0] = 1
    prediction = torch.full((1, 3, 1, 2), math.nan)
    prediction[..., 0] = target[..., 0]
    meter = NormalError()
    meter.update(prediction, target)
    assert meter.compute() == 0


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (torch.full((1, 3, 1, 1), math.nan), torch.ones(1, 3, 1, 1), "prediction holds nan"),
        (torch.ones(1, 3, 1, 1), torch.full((1, 3, 1, 1), math.inf), "target holds nan or infinite"),
        (torch.ones(1, 3, 1, 1).long(), torch.ones(1, 3, 1, 1), "floating point"),
        (torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1), r"\(B, 3, H, W\)"),
    ],
)
def test_wrong_vectors_are_one_clear_sentence(prediction, target, sentence):
    with pytest.raises(UserError, match=sentence):
        NormalError().update(prediction, target)
