"""Depth RMSE is pooled over the data set; the mean of per-image errors is another number."""

import math

import pytest
import torch
from torchmetrics.functional import mean_squared_error

from mlore_edu.errors import UserError
from mlore_edu.metrics import DepthRMSE


def random_depths(seed, shape=(3, 1, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    target = 9 * torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    prediction = target + torch.randn(shape, generator=generator, dtype=torch.float64)
    target[torch.rand(shape, generator=generator) < 0.2] = 0
    target[torch.rand(shape, generator=generator) < 0.1] = 80.0
    return prediction, target


@pytest.mark.parametrize("seed", range(5))
def test_both_variants_equal_the_definition(seed):
    prediction, target = random_depths(seed)
    total, count, of_images = 0.0, 0, []
    for p_image, t_image in zip(prediction.flatten(1).tolist(), target.flatten(1).tolist()):
        squares = [(p - t) ** 2 for p, t in zip(p_image, t_image) if 0 < t < 80]
        total, count = total + sum(squares), count + len(squares)
        of_images.append(math.sqrt(sum(squares) / len(squares)))
    pooled, per_image = DepthRMSE(), DepthRMSE(per_image=True)
    for meter in (pooled, per_image):
        meter.update(prediction, target)
    assert pooled.compute() == pytest.approx(math.sqrt(total / count), rel=1e-12)
    assert per_image.compute() == pytest.approx(sum(of_images) / len(of_images), rel=1e-12)
    valid = (target > 0) & (target < 80)
    reference = mean_squared_error(prediction[valid], target[valid], squared=False)
    assert pooled.compute() == pytest.approx(float(reference), rel=1e-9)


def test_hand_computed_case():
    target = torch.tensor([[[[1.0, 2.0, 0.0, 80.0]]], [[[5.0, 0.0, 79.0, -1.0]]]])
    prediction = torch.tensor([[[[4.0, 6.0, 9.0, 9.0]]], [[[5.0, 9.0, 79.0, 9.0]]]])
    pooled, per_image = DepthRMSE(), DepthRMSE(per_image=True)
    for meter in (pooled, per_image):
        meter.update(prediction, target)
    assert pooled.compute() == pytest.approx(2.5)  # sqrt((9 + 16) / 4)
    assert per_image.compute() == pytest.approx(math.sqrt(12.5) / 2)
    assert pooled.details() == {
        "pooled": pooled.compute(),
        "per_image": per_image.compute(),
        "images": 2,
        "pixels": 4,
    }


def test_image_without_a_valid_pixel_is_left_out_of_the_mean_over_images():
    target = torch.ones(2, 1, 2, 2)
    target[1] = 0
    meter = DepthRMSE(per_image=True)
    meter.update(torch.full((2, 1, 2, 2), 3.0), target)
    assert meter.compute() == 2


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (torch.full((1, 1, 1, 1), math.nan), torch.ones(1, 1, 1, 1), "prediction holds nan"),
        (torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), math.nan), "target holds nan"),
        (torch.ones(1, 1, 1, 1).long(), torch.ones(1, 1, 1, 1), "floating point"),
        (torch.ones(1, 1, 1), torch.ones(1, 1, 1), r"\(B, 1, H, W\)"),
    ],
)
def test_wrong_depths_are_one_clear_sentence(prediction, target, sentence):
    with pytest.raises(UserError, match=sentence):
        DepthRMSE().update(prediction, target)
