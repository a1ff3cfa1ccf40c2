"""odsF, oisF and AP follow the protocol, step by step and as a whole."""

import math
import pickle
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from test_metrics_boundary_matching import naive_thin, pairs_within

from mlore_edu.errors import UserError
from mlore_edu.metrics import DOLLHOUSE_BOUNDARY, NYUD_BOUNDARY, PASCAL_BOUNDARY, BoundaryF, BoundaryProtocol
from mlore_edu.metrics.boundary import (
    count_image,
    fade_border,
    interpolate,
    keep_ridges,
    region_outlines,
    ridge_normals,
    suppress,
    triangle_smooth,
)

FEW = BoundaryProtocol(max_distance=0.1, thresholds=(0.05, 0.25, 0.5, 0.75, 0.95), border=2)


def random_image(seed, shape=(17, 14)):
    """A blurred, displaced, noisy prediction of a few random lines."""
    rng = np.random.default_rng(seed)
    target = np.zeros(shape, dtype=np.float32)
    target[rng.integers(shape[0])] = 1
    target[:, rng.integers(shape[1])] = 1
    blurred = sum(np.roll(target, (r, c), (0, 1)) / (1 + r * r + c * c) for r in (-1, 0, 1) for c in (-1, 0, 1))
    probability = np.clip(0.4 * blurred + 0.4 * rng.random(shape), 0, 1)
    target[rng.random(shape) < 0.05] = 255
    return probability, target


def batch(seeds, shape=(17, 14)):
    images = [random_image(seed, shape) for seed in seeds]
    predictions = torch.tensor(np.stack([p for p, _ in images]))
    return predictions, torch.tensor(np.stack([t for _, t in images]))[:, None]


def score(prediction, target, protocol=FEW, **options):
    meter = BoundaryF(protocol, **options)
    meter.update(prediction, target)
    return meter


def naive_ridges(probability, normals, multiplier):
    height, width = probability.shape

    def read(x, y):
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        total = 0.0
        for row in range(height):  # bilinear: every pixel weighs by how near it is, up to one pixel
            for column in range(width):
                total += max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x)) * probability[row, column]
        return total

    out = np.zeros_like(probability)
    for row in range(height):
        for column in range(width):
            dx, dy = math.cos(normals[row, column]), math.sin(normals[row, column])
            beside = max(read(column + dx, row + dy), read(column - dx, row - dy))
            if probability[row, column] * multiplier >= beside:
                out[row, column] = probability[row, column]
    return out


def naive_counts(probability, target, protocol):
    """The protocol with plain loops; no image border of ignored pixels."""
    height, width = target.shape
    quantised = np.array([[round(float(p) * 255) / 255 for p in row] for row in probability])
    ridges = naive_ridges(quantised, ridge_normals(quantised, 4), protocol.suppression_multiplier)
    for row in range(height):
        for column in range(width):
            for place, size in ((row, height), (column, width)):
                ridges[row, column] *= min(1, min(place, size - 1 - place) / protocol.border)
    ridges[target == 255] = 0
    truth = naive_thin(target == 1)
    counts = []
    for threshold in protocol.thresholds:
        thinned = naive_thin(ridges > threshold)
        near = pairs_within(thinned, truth, protocol.max_distance * math.sqrt(height**2 + width**2))
        counts.append((thinned.sum(), (maximum_bipartite_matching(csr_matrix(near)) >= 0).sum()))
    return np.array(counts).T, truth.sum()


# ---- the whole protocol


@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_a_plain_implementation_of_the_protocol(seed):
    probability, target = random_image(seed)
    target[[0, -1]] = np.where(target[[0, -1]] == 255, 0, target[[0, -1]])  # keep the frame: see the padding test
    target[:, [0, -1]] = np.where(target[:, [0, -1]] == 255, 0, target[:, [0, -1]])
    (predicted, matched), true = naive_counts(probability, target, FEW)
    counts = count_image(probability, target, FEW)
    assert counts.predicted.tolist() == predicted.tolist()
    assert counts.matched.tolist() == matched.tolist()
    assert counts.true == true


def test_scores_follow_from_the_counts():
    meter = score(*batch(range(4)))
    details = meter.details()
    predicted = sum(image.predicted for image in meter.images)
    matched = sum(image.matched for image in meter.images)
    true = sum(image.true for image in meter.images)
    f = [2 * m / (p + true) for p, m in zip(predicted, matched)]
    assert meter.compute() == pytest.approx(100 * max(f))
    assert details["ods_threshold"] == FEW.thresholds[int(np.argmax(f))]
    for t, (precision, recall) in enumerate(zip(details["precision"], details["recall"])):
        assert precision == pytest.approx(matched[t] / predicted[t], nan_ok=True)
        assert recall == pytest.approx(matched[t] / true)
        assert details["f"][t] == pytest.approx(f[t])
    best = [
        max(range(5), key=lambda t: (image.matched[t] / max(1, image.predicted[t] + image.true), t))
        for image in meter.images
    ]
    chosen = np.array([(image.predicted[t], image.matched[t]) for image, t in zip(meter.images, best)]).sum(0)
    assert details["oisF"] == pytest.approx(100 * 2 * chosen[1] / (chosen[0] + true))
    assert details["images"] == 4
    assert details["true_pixels"] == true


def test_hand_computed_case():
    # one true line of 8 pixels; one predicted on it (0.9), one far from it (0.6): no suppression, no fading
    target, probability = torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8)
    target[0, 0, 1] = 1
    probability[0, 1], probability[0, 6] = 0.9, 0.6
    protocol = BoundaryProtocol(max_distance=0.1, thresholds=(0.3, 0.7, 0.95), suppress=False)
    details = score(probability, target, protocol).details()
    assert details["precision"][:2] == [0.5, 1]
    assert math.isnan(details["precision"][2])
    assert details["recall"] == [1, 1, 0]
    assert details["f"] == pytest.approx([2 / 3, 1, 0])
    assert details["odsF"] == details["oisF"] == 100
    assert details["ods_threshold"] == 0.7
    assert details["ap"] == pytest.approx(100)  # of two maps with the same recall the one with higher threshold counts


def test_average_precision_falls_linearly_between_recalls_and_ends_with_them():
    target, probability = torch.zeros(1, 1, 1, 200), torch.zeros(1, 1, 200)
    target[0, 0, 0, 0:200:4] = 1  # 50 true pixels
    probability[0, 0, 0:100:4] = 0.9  # 25 of them surely
    probability[0, 0, 100:160:4] = 0.5  # 15 more
    probability[0, 0, 102:182:4] = 0.5  # with 20 false ones
    protocol = BoundaryProtocol(max_distance=0, thresholds=(0.1, 0.7), suppress=False)
    details = score(probability, target, protocol).details()
    assert details["precision"] == pytest.approx([40 / 60, 1])
    assert details["recall"] == pytest.approx([0.8, 0.5])
    # recalls 0 … 0.50: precision 1 (51 values); 0.51 … 0.80: from 1 to 2/3 in 30 steps; beyond: 0
    expected = 51 + sum(1 - k / 30 / 3 for k in range(1, 31))
    assert details["ap"] == pytest.approx(100 * expected / 101)


def test_an_exact_prediction_scores_100_and_an_empty_one_0():
    target = torch.zeros(1, 1, 20, 20)
    target[0, 0, 9] = 1
    assert score(target[:, 0], target, DOLLHOUSE_BOUNDARY).compute() == 100
    empty = score(torch.zeros(1, 20, 20), target).details()
    assert empty["odsF"] == empty["oisF"] == empty["ap"] == 0


def test_an_image_without_boundaries_lowers_ods_but_ois_finds_the_threshold_where_it_is_silent():
    target = torch.zeros(2, 1, 20, 20)
    target[0, 0, 9] = 1
    probability = torch.stack([target[0, 0] * 0.5, torch.zeros(20, 20)])
    probability[1, 5] = 0.5
    details = score(probability, target, DOLLHOUSE_BOUNDARY).details()
    assert details["odsF"] == pytest.approx(100 * 2 * 20 / (40 + 20))
    assert details["oisF"] == 100


def test_a_displaced_line_counts_within_the_tolerance_only():
    target, probability = torch.zeros(1, 1, 100, 100), torch.zeros(1, 100, 100)
    target[0, 0, 50] = 1
    probability[0, 52] = 1
    diagonal = math.hypot(100, 100)
    far, near = (replace(DOLLHOUSE_BOUNDARY, max_distance=pixels / diagonal) for pixels in (1.9, 2.1))
    assert score(probability, target, far).compute() == 0
    assert score(probability, target, near).compute() == 100


def test_nyud_doubles_the_lines_of_the_truth():
    target = np.zeros((12, 12), np.float32)
    target[5] = 1
    plain = count_image(target, target, PASCAL_BOUNDARY)
    doubled = count_image(target, target, NYUD_BOUNDARY)
    assert plain.true == 12
    # outlines of the line as a region lie in rows 4 and 5: two pixels thick, thinned to about one line again
    assert region_outlines(target == 1).sum(1).tolist() == [0, 0, 0, 0, 12, 12, 0, 0, 0, 0, 0, 0]
    assert 10 <= doubled.true <= 12
    wide = np.zeros((12, 12), np.float32)
    wide[4:7] = 1
    assert region_outlines(wide == 1).sum(1).tolist() == [0, 0, 0, 12, 0, 0, 12, 0, 0, 0, 0, 0]


def test_region_outlines_equal_a_loop_over_pixels():
    regions = np.random.default_rng(0).integers(0, 3, (6, 7))
    expected = np.zeros((6, 7), bool)
    for r in range(6):
        for c in range(7):
            beside = [(r, c + 1), (r + 1, c), (r + 1, c + 1)]
            expected[r, c] = any(regions[p] != regions[r, c] for p in beside if p[0] < 6 and p[1] < 7)
    assert (region_outlines(regions) == expected).all()


# ---- suppression


@pytest.mark.parametrize("shape", [(9, 12), (1, 8), (7, 1), (1, 1), (2, 3)])
def test_suppression_equals_a_loop_over_pixels_and_its_python_source(shape):
    rng = np.random.default_rng(1)
    probability, normals = rng.random(shape) * (rng.random(shape) < 0.8), 7 * rng.random(shape)
    expected = naive_ridges(probability, normals, 1.01)
    assert (keep_ridges(probability, normals, 1, 1.01) == expected).all()
    assert (keep_ridges.py_func(probability, normals, 1, 1.01) == expected).all()
    assert interpolate.py_func(probability, -3.0, 99.0) == probability[-1, 0]


@pytest.mark.parametrize("shape", [(9, 12), (3, 4), (1, 8), (7, 1)])
def test_ridge_normals_equal_a_loop_over_pixels(shape):
    radius, (height, width) = 2, shape
    image = 1e-3 * np.random.default_rng(2).random(shape)  # so faint that the filter's scale shows beside the 1e-5

    def mirrored(place, size):
        place %= 2 * size
        return min(place, 2 * size - 1 - place)

    def smooth(row, column):
        total = 0.0
        for dr in range(-radius, radius + 1):
            for dc in range(-radius, radius + 1):
                weight = (radius + 1 - abs(dr)) * (radius + 1 - abs(dc)) / (radius + 1) ** 4
                total += weight * image[mirrored(row + dr, height), mirrored(column + dc, width)]
        return total

    def slope(function, axis):
        """Central difference, one-sided at the border, 0 across a single pixel."""

        def derivative(*place):
            ahead, behind = list(place), list(place)
            ahead[axis], behind[axis] = min(place[axis] + 1, shape[axis] - 1), max(place[axis] - 1, 0)
            return (function(*ahead) - function(*behind)) / max(1, ahead[axis] - behind[axis])

        return derivative

    xx, xy, yy = slope(slope(smooth, 1), 1), slope(slope(smooth, 1), 0), slope(slope(smooth, 0), 0)
    for (row, column), measured in np.ndenumerate(ridge_normals(image, radius)):
        sign = -1 if xy(row, column) > 0 else 1
        assert measured == pytest.approx(math.atan(sign * yy(row, column) / (xx(row, column) + 1e-5)), abs=1e-6)


@pytest.mark.parametrize("degrees", [0, 45, 90, 135])
def test_ridge_normals_point_across_straight_ridges(degrees):
    angle = math.radians(degrees)
    y, x = np.mgrid[:31, :31] - 15
    ridge = np.exp(-((x * math.cos(angle) + y * math.sin(angle)) ** 2) / 8)
    measured = math.degrees(ridge_normals(ridge, 4)[15, 15]) % 180
    assert min(abs(measured - degrees), 180 - abs(measured - degrees)) < 0.5


@pytest.mark.parametrize("degrees", [10, 20, 30, 60, 80, 100, 120, 170])
def test_ridge_normals_in_between_follow_the_squared_tangent(degrees):
    angle = math.radians(degrees)
    y, x = np.mgrid[:41, :41] - 20
    ridge = np.exp(-((x * math.cos(angle) + y * math.sin(angle)) ** 2) / 18)
    expected = math.degrees(math.copysign(math.atan(math.tan(angle) ** 2), math.tan(angle))) % 180
    assert math.degrees(ridge_normals(ridge, 4)[20, 20]) % 180 == pytest.approx(expected, abs=2)


def test_suppression_leaves_the_crest_of_a_broad_ridge():
    profile = np.array([0.1, 0.3, 0.6, 0.9, 0.6, 0.3, 0.1])
    probability = np.tile(np.pad(profile, 7), (21, 1))
    kept = suppress(probability, replace(PASCAL_BOUNDARY, border=0)) > 0
    assert (np.flatnonzero(kept.any(0)) == [10]).all()
    assert kept[:, 10].all()


def test_presmoothing_filters_with_one_two_one_before_ridges_are_sought():
    spot = np.zeros((9, 9))
    spot[4, 4] = 1
    assert (triangle_smooth(spot, 1)[3:6, 3:6] * 16).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert (triangle_smooth(spot, 0) == spot).all()
    once = replace(PASCAL_BOUNDARY, levels=0)
    image = np.random.default_rng(5).random((20, 24))
    smoothed = suppress(image, replace(once, presmoothing_radius=1))
    assert (smoothed == suppress(triangle_smooth(image, 1), once)).all()


def test_probabilities_are_rounded_to_eight_bits():
    plain = BoundaryProtocol(suppress=False)
    values = np.array([[0.0, 0.0019, 0.002, 0.2, 1.0]])
    assert (suppress(values, plain) * 255).round(9).tolist() == [[0, 0, 1, 51, 255]]
    assert (suppress(values, replace(plain, levels=0)) == values).all()


def test_the_border_fades_linearly():
    assert fade_border(np.ones((1, 12)), 5)[0].tolist() == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1] * 1 + [1, 0.8, 0.6, 0.4, 0.2, 0]
    )
    assert fade_border(np.ones((12, 12)), 5)[1, 2] == pytest.approx(0.2 * 0.4)
    assert fade_border(np.ones((1, 6)), 5)[0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1 / 3, 0])
    assert (fade_border(np.ones((4, 4)), 0) == 1).all()


# ---- ignored pixels


@given(seed=st.integers(0, 10**6), margins=st.tuples(*[st.integers(0, 4)] * 4))
@settings(max_examples=20, deadline=None)
def test_padding_changes_nothing(seed, margins):
    probability, target = random_image(seed)
    top, bottom, left, right = margins
    pads = ((top, bottom), (left, right))
    padded_target = np.pad(target, pads, constant_values=255)
    padded_probability = np.pad(probability, pads, constant_values=0.77)
    for mine, others in zip(count_image(probability, target, FEW), count_image(padded_probability, padded_target, FEW)):
        assert np.all(mine == others)


def test_predictions_on_ignored_pixels_are_no_false_alarms():
    target, probability = torch.zeros(1, 1, 20, 20), torch.zeros(1, 20, 20)
    target[0, 0, 5], probability[0, 5] = 1, 1
    probability[0, 12] = 1
    assert score(probability, target, DOLLHOUSE_BOUNDARY).compute() < 70
    target[0, 0, 11:14] = 255
    assert score(probability, target, DOLLHOUSE_BOUNDARY).compute() == 100
    probability[0, 11:14] = math.nan
    assert score(probability, target, DOLLHOUSE_BOUNDARY).compute() == 100


def test_nothing_to_find_gives_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for target in (torch.full((1, 1, 9, 9), 255.0), torch.zeros(1, 1, 9, 9), torch.zeros(0, 1, 9, 9)):
            meter = score(torch.ones(len(target), 9, 9), target)
            for name in ("odsF", "oisF", "ap", "ods_threshold"):
                assert math.isnan(meter.details()[name])
            assert math.isnan(meter.compute())
        assert math.isnan(BoundaryF().compute())


# ---- the meter


def test_the_number_of_workers_changes_nothing():
    predictions, targets = batch(range(40))
    alone = score(predictions, targets).details()
    for workers in (1, 2, 3):
        meter = BoundaryF(FEW, workers=workers)
        for k in range(0, 40, 20):
            meter.update(predictions[k : k + 20], targets[k : k + 20])
        assert str(meter.details()) == str(alone)


def test_a_meter_at_work_can_be_pickled_and_merged():
    predictions, targets = batch(range(6))
    whole = score(predictions, targets)
    first, second = score(predictions[:4], targets[:4], workers=2), score(predictions[4:], targets[4:], workers=1)
    merged = pickle.loads(pickle.dumps(first)).merge(second)
    assert str(merged.details()) == str(whole.details())
    merged.update(predictions, targets)  # still alive
    assert merged.details()["images"] == 12


def test_an_image_without_a_labelled_pixel_is_not_counted():
    predictions, targets = batch(range(3))
    targets[1] = 255
    meter = score(predictions, targets)
    assert meter.details()["images"] == 2
    assert str(meter.details()) == str(score(predictions[[0, 2]], targets[[0, 2]]).details())


def test_targets_come_with_or_without_a_channel():
    predictions, targets = batch(range(2))
    assert score(predictions, targets).compute() == score(predictions.float(), targets[:, 0].long()).compute()


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (torch.full((1, 4, 4), -2.0), torch.zeros(1, 1, 4, 4), "probabilities, not logits"),
        (torch.full((1, 4, 4), math.nan), torch.zeros(1, 1, 4, 4), "nan"),
        (torch.zeros(1, 4, 4), torch.full((1, 1, 4, 4), 0.5), "0, 1 and 255"),
        (torch.zeros(1, 4, 4), torch.full((1, 1, 4, 4), math.nan), "0, 1 and 255"),
        (torch.zeros(1, 4, 4).long(), torch.zeros(1, 1, 4, 4), "floating point"),
        (torch.zeros(1, 4, 5), torch.zeros(1, 1, 4, 4), "resize"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), r"pass a batch of shape \(B, H, W\)"),
    ],
)
def test_wrong_maps_are_one_clear_sentence(prediction, target, sentence):
    with pytest.raises(UserError, match=sentence):
        score(prediction, target)


def test_meters_of_different_protocols_are_not_merged():
    with pytest.raises(UserError, match="equal settings"):
        BoundaryF(PASCAL_BOUNDARY).merge(BoundaryF(NYUD_BOUNDARY))


def test_two_hundred_small_images_take_a_few_seconds():
    predictions, targets = (m.repeat(20, *[1] * (m.dim() - 1)) for m in batch(range(10), (64, 64)))
    score(predictions[:1], targets[:1], DOLLHOUSE_BOUNDARY)  # compile
    start = time.perf_counter()
    score(predictions, targets, DOLLHOUSE_BOUNDARY)
    assert time.perf_counter() - start < 10  # 0.5 s on the development machine; catches only a lost compilation
