"""Laws that every meter keeps: images count once, whatever the order, the batches and the processes."""

import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlore_edu.errors import UserError
from mlore_edu.metrics import BoundaryF, BoundaryProtocol, DepthRMSE, MaxF, MeanIoU, NormalError, make_meters
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT

QUICK = BoundaryProtocol(max_distance=0.1, thresholds=(0.2, 0.5, 0.8), border=1)
IMAGES, HEIGHT, WIDTH = 7, 9, 6


def semseg(generator):
    target = torch.randint(5, (IMAGES, HEIGHT, WIDTH), generator=generator)
    prediction = torch.randint(5, (IMAGES, HEIGHT, WIDTH), generator=generator)
    return prediction, torch.where(torch.rand(target.shape, generator=generator) < 0.1, 255, target)


def saliency(generator):
    prediction = torch.rand(IMAGES, HEIGHT, WIDTH, generator=generator)
    return prediction, (prediction + 0.5 * torch.rand(prediction.shape, generator=generator) > 0.8).long()


def normals(generator):
    prediction, target = (torch.randn(IMAGES, 3, HEIGHT, WIDTH, generator=generator) for _ in range(2))
    return prediction, target * (torch.rand(IMAGES, 1, HEIGHT, WIDTH, generator=generator) < 0.9)


def depth(generator):
    prediction, target = (10 * torch.rand(IMAGES, 1, HEIGHT, WIDTH, generator=generator) for _ in range(2))
    return prediction, target * (target > 1)


def edge(generator):
    prediction, target = saliency(generator)
    return prediction, target[:, None].float()


METERS = {
    "mIoU": (lambda: MeanIoU(5), semseg, 255),
    "maxF": (MaxF, saliency, 255),
    "maxF released": (lambda: MaxF("released"), saliency, 255),
    "maxF astmt": (lambda: MaxF("astmt"), saliency, 255),
    "mErr": (NormalError, normals, 0),
    "RMSE": (DepthRMSE, depth, 0),
    "RMSE per image": (lambda: DepthRMSE(per_image=True), depth, 0),
    "odsF": (lambda: BoundaryF(QUICK), edge, 255),
    "odsF with workers": (lambda: BoundaryF(QUICK, workers=2), edge, 255),
}
every_meter = pytest.mark.parametrize("name", METERS)


def in_parts(new, prediction, target, order, cuts):
    """Images in another order, cut into batches, each seen by a meter of its own that then travels to be merged."""
    meter = new()
    for part in torch.tensor_split(torch.tensor(order), sorted(cuts)):
        other = new()
        other.update(prediction[part], target[part])
        merged = meter.merge(pickle.loads(pickle.dumps(other)))
        assert merged is meter
    return meter


@every_meter
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_split_order_and_merge_gives_exactly_the_same(name, data):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(data.draw(st.integers(0, 1000))))
    once = new()
    once.update(prediction, target)
    order = data.draw(st.permutations(range(IMAGES)))
    cuts = data.draw(st.lists(st.integers(0, IMAGES), max_size=4))
    parts = in_parts(new, prediction, target, order, cuts)
    assert parts.compute() == once.compute()
    assert str(parts.details()) == str(once.details())
    assert math.isfinite(once.compute())


@every_meter
def test_one_image_at_a_time_equals_one_batch(name):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    once, single = new(), new()
    once.update(prediction, target)
    for image in range(IMAGES):
        single.update(prediction[image : image + 1], target[image : image + 1])
    assert single.compute() == once.compute()


@every_meter
def test_compute_does_not_end_a_meter_and_does_not_change_it(name):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    once, twice = new(), new()
    once.update(prediction, target)
    twice.update(prediction[:3], target[:3])
    assert twice.compute() == twice.compute()
    twice.update(prediction[3:], target[3:])
    assert twice.compute() == once.compute()


@every_meter
def test_nothing_counted_gives_nan_without_a_warning(name):
    new, make, ignore = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    fresh, ignored, no_image = new(), new(), new()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored.update(prediction, torch.full_like(target, ignore))
        no_image.update(prediction[:0], target[:0])
        for meter in (fresh, ignored, no_image):
            assert math.isnan(meter.compute())
            meter.details()
    ignored.update(prediction, target)
    once = new()
    once.update(prediction, target)
    assert ignored.compute() == once.compute()


@every_meter
def test_inputs_are_left_as_they_were(name):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    before = prediction.clone(), target.clone()
    new().update(prediction, target)
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])


@every_meter
def test_predictions_that_carry_a_gradient_are_welcome(name):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    if prediction.is_floating_point():
        with_gradient, without = new(), new()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with_gradient.update(prediction.requires_grad_(), target)
        without.update(prediction.detach(), target)
        assert with_gradient.compute() == without.compute()


@every_meter
@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (3, 2)])
def test_any_image_size_will_do(name, shape):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    meter = new()
    meter.update(prediction[..., : shape[0], : shape[1]], target[..., : shape[0], : shape[1]])
    assert meter.compute() >= 0 or math.isnan(meter.compute())


@every_meter
def test_wrong_shapes_are_one_clear_sentence(name):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    for p, t in ((prediction[..., 1:], target), (prediction[:1], target), (prediction[0], target[0])):
        with pytest.raises(UserError, match=r"has shape .*; (pass|resize)"):
            new().update(p, t)
    with pytest.raises(UserError, match="pass a torch tensor"):
        new().update(prediction.numpy(), target)


@every_meter
def test_a_refused_batch_leaves_no_trace(name):
    new, make, _ = METERS[name]
    prediction, target = make(torch.Generator().manual_seed(0))
    meter = new()
    meter.update(prediction, target)
    before = str(meter.details())
    spoilt = prediction.clone()
    spoilt[-1] = 77 if name == "mIoU" else math.nan
    with pytest.raises(UserError, match=r"(mIoU|maxF|mErr|RMSE|odsF): the prediction"):
        meter.update(spoilt, target)
    assert str(meter.details()) == before


@pytest.mark.parametrize(
    ("mine", "others"),
    [(MeanIoU(3), MeanIoU(4)), (MaxF(), MaxF("released")), (DepthRMSE(), DepthRMSE(per_image=True))],
)
def test_meters_of_different_settings_are_not_merged(mine, others):
    with pytest.raises(UserError, match="merge meters of equal settings"):
        mine.merge(others)


def test_every_task_gets_the_meter_its_metric_names():
    kinds = {"mIoU": MeanIoU, "maxF": MaxF, "mErr": NormalError, "RMSE": DepthRMSE, "odsF": BoundaryF}
    for tasks in (PASCAL_CONTEXT, NYUD_V2, DOLLHOUSE):
        meters = make_meters(tasks)
        assert tuple(meters) == tasks.names
        for task in tasks:
            assert type(meters[task.name]) is kinds[task.metric]
    assert make_meters(DOLLHOUSE)["human_parts"].num_classes == 7
    assert make_meters(NYUD_V2)["edge"].protocol.max_distance == 0.011
    assert make_meters(PASCAL_CONTEXT.subset("edge"))["edge"].protocol.max_distance == 0.0075
    options = make_meters(DOLLHOUSE, saliency="released", depth_per_image=True, boundary=QUICK, workers=1)
    assert options["saliency"].variant == "released"
    assert options["depth"].per_image
    assert (options["edge"].protocol, options["edge"].workers) == (QUICK, 1)
