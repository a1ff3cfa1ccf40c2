"""Laws of the joint transforms: what moves the image moves every label as it should."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from mlore_edu.data.tensors import ClassMap, Depth, Normals
from mlore_edu.data.transforms import (
    IMAGENET_MEAN,
    IgnoreEmptyParts,
    Normalise,
    Pad,
    PhotometricDistortion,
    Pipeline,
    RandomCrop,
    RandomFlip,
    RandomScale,
    denormalise,
    eval_transform,
    saturated,
    train_transform,
)
from mlore_edu.errors import UserError

LABELS = {"semseg", "human_parts", "saliency", "edge", "normals", "depth"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_sample(height=24, width=32, seed=0):
    """All six labels at random, with ignored pixels in each."""
    chance = seeded(seed)
    classes = torch.randint(0, 5, (height, width), generator=chance, dtype=torch.uint8)
    ignored = torch.rand(height, width, generator=chance) < 0.1
    normals = torch.randn(3, height, width, generator=chance)
    normals = normals / normals.norm(dim=0)
    depth = 1 + 4 * torch.rand(1, height, width, generator=chance)
    return {
        "image": tv_tensors.Image(torch.randint(0, 256, (3, height, width), generator=chance, dtype=torch.uint8)),
        "semseg": ClassMap(classes.masked_fill(ignored, 255)),
        "human_parts": ClassMap((classes + 1).masked_fill(ignored, 255)),
        "saliency": ClassMap((classes > 2).to(torch.uint8).masked_fill(ignored, 255)),
        "edge": ClassMap((classes == 1).to(torch.uint8).masked_fill(ignored, 255)),
        "normals": Normals(normals.masked_fill(ignored, 0)),
        "depth": Depth(depth.masked_fill(ignored, 0)),
        "meta": {"id": "random", "size": (height, width)},
    }


def tensors(sample):
    return {name: value.as_subclass(torch.Tensor) for name, value in sample.items() if isinstance(value, torch.Tensor)}


def assert_same(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_unit_or_zero(normals):
    length = normals.as_subclass(torch.Tensor).norm(dim=0)
    assert (((length - 1).abs() < 1e-5) | (length == 0)).all()


def test_flipping_twice_is_the_identity():
    sample = make_sample()
    always = RandomFlip(1.0)
    assert_same(always(always(sample)), sample)
    assert_same(RandomFlip(0.0)(sample), sample)


def test_a_flip_negates_x_and_leaves_y_z_and_depth():
    sample = make_sample()
    flipped = RandomFlip(1.0)(sample)
    before, after = sample["normals"].flip(-1), flipped["normals"]
    assert torch.equal(after[0], -before[0])
    assert torch.equal(after[1:], before[1:])
    assert torch.equal(flipped["depth"], sample["depth"].flip(-1))
    assert type(flipped["normals"]) is Normals
    assert type(flipped["depth"]) is Depth


def test_a_vertical_flip_negates_y():
    normals = make_sample()["normals"]
    after = F.vertical_flip(normals)
    assert torch.equal(after[1], -normals.flip(-2)[1])
    assert torch.equal(after[::2], normals.flip(-2)[::2])


@given(st.integers(0, 2**31))
def test_cropping_commutes_with_looking_labels_up(seed):
    sample = make_sample()
    sample["semseg"] = ClassMap(torch.arange(24 * 32).remainder(251).to(torch.uint8).view(24, 32))
    sample["depth"] = Depth(torch.arange(24.0 * 32).view(1, 24, 32))  # each pixel knows where it came from
    cropped = RandomCrop((10, 12))(sample, seeded(seed))
    corner = int(cropped["depth"][0, 0, 0])
    top, left = divmod(corner, 32)
    for name, value in tensors(cropped).items():
        assert torch.equal(value, tensors(sample)[name][..., top : top + 10, left : left + 12]), name


def test_a_crop_larger_than_the_image_keeps_it_whole():
    sample = make_sample()
    assert_same(RandomCrop(64)(sample), sample)
    assert RandomCrop((10, 64))(sample)["image"].shape[-2:] == (10, 32)


def test_a_crop_shows_no_class_on_more_than_three_quarters():
    semseg = torch.zeros(64, 64, dtype=torch.uint8)
    semseg[:, 32:] = 1
    sample = {"image": tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)), "semseg": ClassMap(semseg)}
    shares = [RandomCrop(16, tries=60)(sample, seeded(seed))["semseg"].float().mean() for seed in range(40)]
    assert all(0.25 < share < 0.75 for share in shares)
    careless = [RandomCrop(16, tries=1)(sample, seeded(seed))["semseg"].float().mean() for seed in range(40)]
    assert any(share in (0, 1) for share in careless)


def test_ignored_pixels_do_not_count_towards_a_class_share():
    semseg = torch.full((8, 8), 255, dtype=torch.uint8)
    semseg[0, :5] = 3
    crop = RandomCrop(8)
    assert not crop._is_varied(ClassMap(semseg))  # all that counts is class 3
    semseg[1, :5] = 4
    assert crop._is_varied(ClassMap(semseg))


def test_without_a_semseg_label_any_crop_will_do():
    sample = make_sample()
    del sample["semseg"]
    assert RandomCrop(8)(sample, seeded(0))["image"].shape == (3, 8, 8)


@pytest.mark.parametrize("factor", [0.5, 1.37, 2.0])
def test_depth_is_divided_by_the_zoom_and_invalid_stays_invalid(factor):
    sample = make_sample(40, 40)
    sample["depth"] = Depth(torch.full((1, 40, 40), 3.0))
    sample["depth"][0, :20] = 0
    scaled = RandomScale(factor, factor)(sample)["depth"]
    values = set(scaled.unique().tolist())
    assert len(values) == 2
    assert 0.0 in values
    assert max(values) == pytest.approx(3 / factor, rel=0.02)


def test_a_label_pixel_stays_under_its_image_pixel_when_scaled():
    ramp = torch.arange(60.0).expand(1, 8, 60)
    image = F.resize(ramp.clone(), [8, 111], antialias=True)
    label = F.resize(ClassMap(ramp[0].to(torch.uint8)), [8, 111])
    assert ((image - label.float()).abs() <= 0.5001).all()  # nearest: never further than half a pixel


@given(st.integers(0, 1000), st.floats(0.3, 3.0))
@settings(max_examples=30, deadline=None)
def test_scaling_makes_no_new_labels_and_keeps_normals_unit(seed, factor):
    sample = make_sample(seed=seed)
    scaled = RandomScale(factor, factor)(sample)
    assert {value.shape[-2:] for value in tensors(scaled).values()} == {scaled["image"].shape[-2:]}
    for name in ("semseg", "human_parts", "saliency", "edge"):
        assert set(scaled[name].unique().tolist()) <= set(sample[name].unique().tolist())
    assert_unit_or_zero(scaled["normals"])
    # Ignored together before, ignored together after.
    ignored = scaled["semseg"] == 255
    assert torch.equal(ignored, scaled["depth"][0] == 0)
    assert torch.equal(ignored, (scaled["normals"] == 0).all(0))


def plane_seen_by_camera(roll_degrees, side=65):
    """Normals and inverse depth of a tilted plane n · X = -4 seen by a camera rolled about its axis, pixel by pixel."""
    normal = np.array([0.3, 0.5, math.sqrt(1 - 0.34)])
    angle = math.radians(roll_degrees)
    turned = np.array(
        [
            math.cos(angle) * normal[0] - math.sin(angle) * normal[1],
            math.sin(angle) * normal[0] + math.cos(angle) * normal[1],
            normal[2],
        ]
    )
    y, x = np.mgrid[:side, :side]
    ray = np.stack([(x - side // 2) / side, -(y - side // 2) / side, -np.ones_like(x, float)], -1)
    inverse_depth = ray @ turned / -4  # depth d along the axis: n · (d · ray) = -4
    return np.broadcast_to(turned, ray.shape), 1 / inverse_depth


@pytest.mark.parametrize("angle", [90.0, 30.0, -75.0])
def test_rotating_the_picture_gives_what_a_rolled_camera_would_see(angle):
    normals, depth = plane_seen_by_camera(0)
    expected_normals, expected_depth = plane_seen_by_camera(angle)
    rotated = F.rotate(Normals(torch.tensor(normals.transpose(2, 0, 1).copy(), dtype=torch.float32)), angle)
    inside = (rotated != 0).any(0)
    assert inside.float().mean() > 0.7
    expected = torch.tensor(expected_normals.transpose(2, 0, 1).copy(), dtype=torch.float32)
    assert torch.allclose(rotated[:, inside], expected[:, inside], atol=1e-5)
    assert_unit_or_zero(rotated)
    turned_depth = F.rotate(Depth(torch.tensor(depth[None], dtype=torch.float32)), angle)
    difference = (1 / turned_depth[0] - torch.tensor(1 / expected_depth, dtype=torch.float32)).abs()[inside]
    # 1 / depth of a plane is linear over the image, and the nearest pixel is at most half a diagonal away.
    slope = math.hypot(0.3, 0.5) / 65 / 4
    assert difference.max() <= math.sqrt(0.5) * slope + 1e-6


def test_rotation_ignores_what_comes_from_outside():
    classes = F.rotate(ClassMap(torch.zeros(21, 21, dtype=torch.uint8)), 45)
    assert classes.shape == (21, 21)
    assert classes[0, 0] == 255
    assert classes[10, 10] == 0
    assert F.rotate(Depth(torch.ones(1, 21, 21)), 45, expand=True)[0, 0, 0] == 0


def test_padding_ignores_each_label_in_its_own_way():
    sample = Pad((30, 40))(make_sample())
    assert {value.shape[-2:] for value in tensors(sample).values()} == {(30, 40)}
    for name, value in tensors(sample).items():
        border = value.clone().float()
        border[..., 3:27, 4:36] = -1
        outside = border[border != -1]
        assert set(outside.unique().tolist()) == {0.0 if name in ("image", "normals", "depth") else 255.0}
    assert sample["meta"] == {"id": "random", "size": (24, 32), "offset": (3, 4)}


def test_an_image_larger_than_the_frame_is_refused_by_name():
    with pytest.raises(UserError, match=r"random is 24×32.*frame of 16×64; choose a size of at least 24×32"):
        Pad((16, 64))(make_sample())


@pytest.mark.parametrize("warp", [F.affine, F.perspective, F.elastic, F.resized_crop])
def test_warps_that_would_falsify_labels_are_refused(warp):
    arguments = {
        F.affine: (10.0, [0, 0], 1.0, [0.0, 0.0]),
        F.perspective: ([[0, 0]] * 4, [[0, 0]] * 4),
        F.elastic: (torch.zeros(1, 24, 32, 2),),
        F.resized_crop: (0, 0, 4, 4, [8, 8]),
    }[warp]
    with pytest.raises(UserError, match=r"Normals maps cannot be warped.*use flip"):
        warp(make_sample()["normals"], *arguments)


def test_distortion_changes_the_image_alone_and_stays_in_range():
    sample = make_sample()
    images = []
    for seed in range(30):
        distorted = PhotometricDistortion()(sample, seeded(seed))
        assert 0 <= distorted["image"].min() <= distorted["image"].max() <= 1
        images.append(distorted.pop("image"))
        assert_same(distorted, {name: value for name, value in sample.items() if name != "image"})
    assert len({image.mean().item() for image in images}) > 20
    never = PhotometricDistortion(probability=0.0)(sample, seeded(0))
    assert torch.allclose(never["image"], sample["image"] / 255)


def test_saturation_scales_the_s_of_hsv_and_keeps_hue_and_value():
    import colorsys

    image = torch.rand(3, 4, 5, generator=seeded(0))
    for factor in (0.0, 0.6, 1.5, 4.0):
        changed = saturated(image, factor)
        for before, after in zip(image.flatten(1).T.tolist(), changed.flatten(1).T.tolist()):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            expected = colorsys.hsv_to_rgb(hue, min(1, saturation * factor), value)
            assert after == pytest.approx(expected, abs=1e-5)
    black = torch.zeros(3, 1, 1)
    assert torch.equal(saturated(black, 1.5), black)


def test_normalising_and_back_gives_the_same_picture():
    sample = make_sample()
    normalised = Normalise()(sample)["image"]
    assert normalised[0, 2, 3] == pytest.approx((sample["image"][0, 2, 3].item() / 255 - IMAGENET_MEAN[0]) / 0.229)
    assert torch.equal(denormalise(normalised.as_subclass(torch.Tensor)), sample["image"].as_subclass(torch.Tensor))


def test_a_crop_without_parts_is_ignored():
    sample = {"human_parts": ClassMap(torch.tensor([[0, 0], [255, 0]], dtype=torch.uint8))}
    assert (IgnoreEmptyParts()(sample)["human_parts"] == 255).all()
    sample["human_parts"][0, 0] = 3
    assert_same(IgnoreEmptyParts()(sample), sample)
    assert IgnoreEmptyParts()({"meta": {}}) == {"meta": {}}


@pytest.mark.parametrize("transform", [eval_transform((48, 40)), train_transform((48, 40))])
def test_targets_have_the_types_that_losses_take(transform):
    targets = transform(make_sample(), seeded(1))
    assert all(type(value) is torch.Tensor for name, value in targets.items() if name != "meta")
    assert (targets["image"].dtype, targets["image"].shape) == (torch.float32, (3, 48, 40))
    for name in ("semseg", "human_parts", "saliency"):
        assert (targets[name].dtype, targets[name].shape) == (torch.int64, (48, 40))
    assert (targets["edge"].dtype, targets["edge"].shape) == (torch.float32, (1, 48, 40))
    assert (targets["normals"].dtype, targets["normals"].shape) == (torch.float32, (3, 48, 40))
    assert (targets["depth"].dtype, targets["depth"].shape) == (torch.float32, (1, 48, 40))
    assert targets["meta"]["id"] == "random"


@given(st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_whole_recipe_keeps_the_laws(seed):
    sample = make_sample()
    targets = train_transform(32)(sample, seeded(seed))
    assert {value.shape[-2:] for name, value in targets.items() if name != "meta"} == {(32, 32)}
    for name in ("semseg", "saliency", "edge"):
        assert set(targets[name].unique().tolist()) <= {*sample[name].unique().tolist(), 255}
    assert_unit_or_zero(targets["normals"])
    ignored = targets["semseg"] == 255
    for other in (targets["edge"][0] == 255, targets["depth"][0] == 0, (targets["normals"] == 0).all(0)):
        assert torch.equal(other, ignored)
    assert (targets["depth"] <= 5 / 0.5 * 1.05).all()


def test_the_same_generator_gives_the_same_augmentation():
    transform, sample = train_transform(16), make_sample()
    assert_same(transform(sample, seeded(5)), transform(sample, seeded(5)))
    first, second = (transform(sample, seeded(seed))["image"] for seed in (5, 6))
    assert not torch.equal(first, second)


def test_the_recipe_leaves_the_stored_sample_untouched():
    sample, before = make_sample(), make_sample()
    train_transform(40)(sample, seeded(3))
    assert_same(sample, before)
    assert sample["meta"] == before["meta"]


def test_steps_can_be_left_out_for_tiny_data():
    def kinds(pipeline):
        return [type(step).__name__ for step in pipeline.steps]

    tail = ["Normalise", "Pad", "IgnoreEmptyParts", "ToTargets"]
    field = ["RandomScale", "RandomCrop", "RandomFlip", "PhotometricDistortion", *tail]
    assert kinds(train_transform(64)) == field
    assert kinds(train_transform(64, scale=(1, 1), photometric=False)) == ["RandomCrop", "RandomFlip", *tail]
    assert kinds(train_transform(64, scale=(1, 1), flip=0, photometric=False)) == ["RandomCrop", *tail]
    assert kinds(eval_transform(64)) == tail


def test_a_pipeline_of_nothing_changes_nothing():
    assert_same(Pipeline(())(make_sample()), make_sample())
