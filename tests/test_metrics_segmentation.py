"""mIoU is counted over the data set, and agrees with the definition and with torchmetrics."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from mlore_edu.errors import UserError
from mlore_edu.metrics import MeanIoU


def naive_miou(predictions, targets, classes):
    """IoU from its definition, pixel by pixel."""
    ious = []
    for c in range(classes):
        inter = union = 0
        for p, t in zip(predictions.flatten().tolist(), targets.flatten().tolist()):
            if t != 255:
                inter += p == c and t == c
                union += p == c or t == c
        if union:
            ious.append(inter / union)
    return 100 * sum(ious) / len(ious)


def random_maps(seed, shape=(3, 7, 5), classes=6):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, shape, generator=generator)
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.6, target, (target + 1) % classes)
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    return prediction, target


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_and_torchmetrics(seed):
    prediction, target = random_maps(seed)
    meter = MeanIoU(6)
    meter.update(prediction, target)
    assert meter.compute() == pytest.approx(naive_miou(prediction, target, 6), rel=1e-12)
    reference = MulticlassJaccardIndex(6, ignore_index=255)(prediction, target)
    assert meter.compute() == pytest.approx(100 * float(reference), rel=1e-6)


def test_hand_computed_case():
    target = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 2]]])
    prediction = torch.tensor([[[0, 1, 1, 1], [0, 9, 0, 1]]])  # under the 255 anything may be predicted
    meter = MeanIoU(4)
    meter.update(prediction, target)
    # class 0: 2 of 4; class 1: 2 of 5; class 2: missed; class 3: never true, never predicted, left out
    assert meter.class_iou()[:3].tolist() == pytest.approx([50, 40, 0])
    assert math.isnan(meter.class_iou()[3])
    assert meter.compute() == pytest.approx(30)
    assert meter.details()["pixel_accuracy"] == pytest.approx(100 * 4 / 7)
    assert sum(map(sum, meter.details()["confusion"])) == 7


def test_pooling_differs_from_the_mean_over_images():
    # one image half right on a rare class, one image all background
    target = torch.zeros(2, 1, 4, dtype=torch.int64)
    target[0, 0, :2] = 1
    prediction = torch.zeros(2, 1, 4, dtype=torch.int64)
    prediction[0, 0, 0] = 1
    pooled, single = MeanIoU(2), MeanIoU(2)
    pooled.update(prediction, target)
    single.update(prediction[:1], target[:1])
    assert pooled.compute() == pytest.approx(100 * (6 / 7 + 1 / 2) / 2)
    assert (single.compute() + 100) / 2 != pytest.approx(pooled.compute())


def test_class_predicted_but_never_true_counts_as_zero():
    meter = MeanIoU(3)
    meter.update(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]))
    assert meter.class_iou().nan_to_num(-1).tolist() == [50, -1, 0]
    assert meter.compute() == 25


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_type_gives_the_same(dtype):
    prediction, target = random_maps(0)
    meter = MeanIoU(6)
    meter.update(prediction.to(dtype), target.to(dtype))
    assert meter.compute() == pytest.approx(naive_miou(prediction, target, 6))


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long(), "argmax"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2), "integer class ids"),
        (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2).long(), "class id 3; use ids 0 to 2"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 254), "class id 254"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), -1), "class id -1"),
    ],
)
def test_wrong_labels_are_one_clear_sentence(prediction, target, sentence):
    with pytest.raises(UserError, match=sentence):
        MeanIoU(3).update(prediction, target)


def test_a_meter_without_classes_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        MeanIoU(0)
