"""maxF is counted over the data set at 19 thresholds; its released and ASTMT variants are other numbers."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import fbeta_score

from mlore_edu.errors import UserError
from mlore_edu.metrics import MaxF
from mlore_edu.metrics.saliency import THRESHOLDS


def naive_maxf(probability, target, beta_squared=0.3, squeeze=lambda p: p):
    """F from its definition, threshold by threshold and pixel by pixel."""
    best = 0.0
    for threshold in THRESHOLDS:
        tp = fp = fn = 0
        for p, t in zip(probability.flatten().tolist(), target.flatten().tolist()):
            if t == 255:
                continue
            said = squeeze(p) > threshold
            tp += said and t == 1
            fp += said and t == 0
            fn += not said and t == 1
        if tp:
            precision, recall = tp / (tp + fp), tp / (tp + fn)
            best = max(best, (1 + beta_squared) * precision * recall / (beta_squared * precision + recall))
    return 100 * best


def random_maps(seed, shape=(3, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, shape, generator=generator)
    probability = (0.35 * target + 0.65 * torch.rand(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    return probability, target


def maxf(probability, target, variant="standard"):
    meter = MaxF(variant)
    meter.update(probability, target)
    return meter.compute()


@pytest.mark.parametrize("seed", range(5))
def test_standard_equals_the_definition_and_scikit_learn(seed):
    probability, target = random_maps(seed)
    assert maxf(probability, target) == pytest.approx(naive_maxf(probability, target), rel=1e-12)
    true, score = target[target != 255].numpy(), probability[target != 255].numpy()
    reference = max(fbeta_score(true, score > t, beta=np.sqrt(0.3), zero_division=0) for t in THRESHOLDS)
    assert maxf(probability, target) == pytest.approx(100 * reference, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_released_equals_the_definition_after_one_more_sigmoid(seed):
    probability, target = random_maps(seed)
    expected = naive_maxf(probability, target, squeeze=lambda p: 1 / (1 + math.exp(-p)))
    assert maxf(probability, target, "released") == pytest.approx(expected, rel=1e-12)


def test_only_four_thresholds_act_in_the_released_variant():
    assert MaxF("released").acting_thresholds == pytest.approx((0.20, 0.41, 0.62, 0.85), abs=0.005)
    assert MaxF("standard").acting_thresholds == THRESHOLDS
    # a map of zeros and ones, and one whose values never cross an acting threshold, cannot be told apart
    target = torch.tensor([[[1, 1, 0, 0, 0, 0]]])
    sharp = torch.tensor([[[0.95, 0.80, 0.80, 0.1, 0.1, 0.1]]])
    moved = torch.tensor([[[0.86, 0.63, 0.84, 0.19, 0.0, 0.1]]])
    assert maxf(sharp, target, "released") == maxf(moved, target, "released")
    # the standard thresholds separate 0.63 from 0.84, the released ones 0.62 and 0.85 do not
    swapped = torch.tensor([[[0.95, 0.84, 0.63, 0.1, 0.1, 0.1]]])
    assert maxf(swapped, target) == pytest.approx(100)
    assert maxf(swapped, target, "released") < 100


def test_hand_computed_case():
    target = torch.tensor([[[1, 1, 0, 0, 255]]])
    probability = torch.tensor([[[0.9, 0.3, 0.5, 0.02, 1.0]]])
    meter = MaxF()
    meter.update(probability, target)
    details = meter.details()
    # above 0.5 and up to 0.85: one hit, no false alarm, P = 1, R = 1/2; below 0.3: P = 2/3, R = 1
    assert details["f"][10] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))
    assert details["f"][0] == pytest.approx(1.3 * (2 / 3) / (0.3 * 2 / 3 + 1))
    assert details["precision"][0] == pytest.approx(2 / 3)
    assert details["recall"][10] == pytest.approx(0.5)
    assert details["best_threshold"] == 0.5  # a pixel of exactly 0.5 is not above 0.5
    assert meter.compute() == pytest.approx(81.25)


def test_a_stored_threshold_does_not_exceed_itself_in_any_precision():
    target = torch.ones(1, 1, 1, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64):
        for index, threshold in enumerate(THRESHOLDS):
            meter = MaxF()
            meter.update(torch.full((1, 1, 1), threshold, dtype=dtype), target)
            assert meter.details()["recall"] == [1.0] * index + [0.0] * (19 - index)


def test_astmt_averages_precision_and_recall_of_images():
    target = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]])  # the third has nothing to find: left out
    probability = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]])
    precision, recall = (1 / 2 + 1) / 2, (1 + 1 / 4) / 2
    expected = 100 * 2 * precision * recall / (precision + recall)
    assert maxf(probability, target, "astmt") == pytest.approx(expected)
    assert maxf(probability, target, "standard") != pytest.approx(expected, abs=1)


def test_astmt_counts_an_image_where_nothing_is_predicted_as_precision_zero():
    target = torch.ones(2, 1, 2, dtype=torch.int64)
    probability = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    assert maxf(probability, target, "astmt") == pytest.approx(50)
    assert maxf(torch.zeros(1, 1, 2), target[:1], "astmt") == 0


@pytest.mark.parametrize("variant", ["standard", "released", "astmt"])
def test_without_a_salient_pixel_there_is_no_score(variant):
    assert math.isnan(maxf(torch.ones(1, 2, 2), torch.zeros(1, 2, 2).long(), variant))


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (torch.full((1, 2, 2), 1.5), torch.zeros(1, 2, 2).long(), "probabilities, not logits"),
        (torch.full((1, 2, 2), math.nan), torch.zeros(1, 2, 2).long(), "nan"),
        (torch.ones(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), "floating point"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 2), "class id 2"),
    ],
)
def test_wrong_maps_are_one_clear_sentence(prediction, target, sentence):
    with pytest.raises(UserError, match=sentence):
        MaxF().update(prediction, target)


def test_unknown_variant_is_refused():
    with pytest.raises(UserError, match="standard, released, astmt"):
        MaxF("other")
