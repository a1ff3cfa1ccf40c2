"""Thinning equals its definition, and the matching is one to one and as large as possible."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

from mlore_edu.data.dollhouse import scene
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS
from mlore_edu.metrics import PASCAL_BOUNDARY, boundary_matching
from mlore_edu.metrics.boundary import suppress
from mlore_edu.metrics.boundary_matching import (
    _REMOVABLE,
    _ring_steps,
    _steps,
    match,
    match_thresholds,
    neighbour_lists,
    thin,
)

RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def naive_thin(mask):
    """Guo and Hall's thinning, pixel by pixel from the paper's conditions G1, G2, G3 and G3'."""
    mask = np.pad(np.array(mask, bool), 1)
    while True:
        before = mask.copy()
        for half in (0, 1):
            remove = []
            for r, c in np.argwhere(mask):
                x = [None] + [bool(mask[r + dr, c + dc]) for dr, dc in RING] + [bool(mask[r, c + 1])]  # x[1] … x[9]
                crossings = sum((not x[2 * i - 1]) and (x[2 * i] or x[2 * i + 1]) for i in range(1, 5))
                n1 = sum(x[2 * k - 1] or x[2 * k] for k in range(1, 5))
                n2 = sum(x[2 * k] or x[2 * k + 1] for k in range(1, 5))
                third = (x[2] or x[3] or not x[8]) and x[1] if half == 0 else (x[6] or x[7] or not x[4]) and x[5]
                if crossings == 1 and 2 <= min(n1, n2) <= 3 and not third:
                    remove.append((r, c))
            for r, c in remove:
                mask[r, c] = False
        if (mask == before).all():
            return mask[1:-1, 1:-1]


def pairs_within(prediction, truth, tolerance):
    p, t = np.argwhere(prediction), np.argwhere(truth)
    return cdist(p, t, "sqeuclidean") <= tolerance**2 if len(p) and len(t) else np.zeros((len(p), len(t)), bool)


def naive_matching(near):
    """Number of pairs of a maximum matching: recursive augmenting paths (Kuhn)."""
    mate = {}

    def place(i, seen):
        for j in np.flatnonzero(near[i]):
            if j not in seen:
                seen.add(j)
                if j not in mate or place(mate[j], seen):
                    mate[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(near)))


def exhaustive_matching(near):
    """Number of pairs of a maximum matching: every assignment tried."""
    rows, columns = near.shape
    if rows > columns:
        return exhaustive_matching(near.T)
    return max(sum(near[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(columns), rows))


def random_mask(seed, shape, density):
    return np.random.default_rng(seed).random(shape) < density


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_thinning_equals_its_definition(density):
    for seed, shape in enumerate([(9, 12), (1, 9), (8, 1), (1, 1), (2, 2), (15, 7)]):
        mask = random_mask(seed, shape, density)
        assert (thin(mask) == naive_thin(mask)).all()


def test_thinning_equals_scikit_image():
    thin_reference = pytest.importorskip("skimage.morphology").thin
    for seed in range(20):
        mask = random_mask(seed, (31, 40), 0.3 + 0.03 * seed)
        assert (thin(mask) == thin_reference(mask)).all()


def test_thinning_keeps_lines_of_one_pixel_and_reduces_a_bar_to_one():
    line = np.zeros((7, 12), bool)
    line[3, 2:10] = True
    assert (thin(line) == line).all()
    bar = np.zeros((7, 12), bool)
    bar[2:5, 1:11] = True
    assert thin(bar).sum(0).max() == 1
    assert thin(bar)[3].sum() >= 7


@given(seed=st.integers(0, 10**6), density=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_thinning_is_idempotent_and_keeps_the_number_of_parts(seed, density):
    from scipy.ndimage import label

    mask = random_mask(seed, (12, 14), density)
    thinned = thin(mask)
    assert not (thinned & ~mask).any()
    assert (thin(thinned) == thinned).all()
    assert label(thinned, np.ones((3, 3)))[1] == label(mask, np.ones((3, 3)))[1]


@given(seed=st.integers(0, 10**6), tolerance=st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_tiny_matchings_equal_an_exhaustive_search(seed, tolerance):
    rng = np.random.default_rng(seed)
    prediction, truth = np.zeros((2, 4, 5), bool)
    for mask in (prediction, truth):
        mask.ravel()[rng.choice(20, rng.integers(0, 7), replace=False)] = True
    assert len(match(prediction, truth, tolerance)) == exhaustive_matching(pairs_within(prediction, truth, tolerance))


@given(seed=st.integers(0, 10**6), density=st.floats(0.02, 0.6), tolerance=st.floats(0, 4))
@settings(max_examples=60, deadline=None)
def test_the_matching_is_valid_and_as_large_as_naive_and_scipy_solutions(seed, density, tolerance):
    prediction, truth = random_mask(seed, (11, 13), density), random_mask(seed + 1, (11, 13), density)
    pairs = match(prediction, truth, tolerance)
    for k, mask in enumerate((prediction, truth)):
        assert mask[pairs[:, k, 0], pairs[:, k, 1]].all()
        assert len(np.unique(pairs[:, k], axis=0)) == len(pairs)  # one to one
    assert (((pairs[:, 0] - pairs[:, 1]) ** 2).sum(1) <= tolerance**2).all()
    near = pairs_within(prediction, truth, tolerance)
    assert len(pairs) == naive_matching(near)
    assert len(pairs) == (maximum_bipartite_matching(csr_matrix(near)) >= 0).sum()


def test_matching_is_symmetric_and_never_counts_a_true_pixel_twice():
    truth = np.zeros((5, 9), bool)
    truth[2] = True
    double = np.zeros((5, 9), bool)
    double[1] = double[3] = True  # two lines beside one: half of the pixels find no partner
    assert len(match(double, truth, 1.0)) == len(match(truth, double, 1.0)) == 9


def test_a_chain_is_shifted_along_as_a_whole():
    # true pixels 1 … n, predicted pixels 0 … n−1, reach 1: only by shifting all of them does every pixel find one
    n = 300
    truth, prediction = np.zeros((2, 1, n + 1), bool)
    truth[0, 1:], prediction[0, :n] = True, True
    assert len(match(prediction, truth, 1.0)) == n


def test_the_tolerance_itself_is_within_reach():
    prediction, truth = np.zeros((2, 6, 6), bool)
    prediction[0, 0] = truth[3, 4] = True  # 5 apart
    assert len(match(prediction, truth, 5.0)) == 1
    assert len(match(prediction, truth, 4.999)) == 0


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    density=st.floats(0, 0.5),
    levels=st.integers(1, 12),
    tolerance=st.floats(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_repaired_matchings_count_the_same_as_fresh_ones_at_every_threshold(seed, shape, density, levels, tolerance):
    rng = np.random.default_rng(seed)
    probability = rng.integers(0, levels + 1, shape) / levels
    truth = thin(rng.random(shape) < density)
    thresholds = tuple(k / 10 for k in range(10))
    predicted, matched = match_thresholds(probability, truth, thresholds, tolerance)
    for t, threshold in enumerate(thresholds):
        fresh = thin(probability > threshold)
        near = pairs_within(fresh, truth, tolerance)
        assert predicted[t] == fresh.sum()
        assert matched[t] == (maximum_bipartite_matching(csr_matrix(near)) >= 0).sum()


def test_a_networks_predictions_count_as_with_scipy_at_all_thresholds_of_the_protocol():
    stored = np.load(Path(__file__).parents[1] / "book" / "results" / "boundary_predictions.npz")["probability"]
    number, middle = 0, (slice(30, 94), slice(20, 90))
    protocol = replace(PASCAL_BOUNDARY, max_distance=0.05)  # 4.7 pixels, as at full size: many compete for one
    ridges = suppress(stored[number][middle] / 255, protocol)
    truth = thin(scene(VALIDATION_SEEDS + number, 128, "full").edge[middle] == 1)
    tolerance = protocol.max_distance * math.hypot(*truth.shape)
    predicted, matched = match_thresholds(ridges, truth, protocol.thresholds, tolerance)
    assert matched.max() > 200
    for t, threshold in enumerate(protocol.thresholds):
        fresh = thin(ridges > threshold)
        near = csr_matrix(pairs_within(fresh, truth, tolerance))
        assert (predicted[t], matched[t]) == (fresh.sum(), (maximum_bipartite_matching(near) >= 0).sum())


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (61, 83)])
def test_of_two_identical_maps_every_pixel_is_matched(shape):
    truth = thin(random_mask(1, shape, 0.4))
    predicted, matched = match_thresholds(truth * 0.7, truth, (0.1, 0.5, 0.9), 4.0)
    assert predicted.tolist() == matched.tolist() == [truth.sum(), truth.sum(), 0]


def test_compiled_functions_equal_their_python_source(monkeypatch):
    rng = np.random.default_rng(0)
    truth, probability = thin(rng.random((9, 10)) < 0.3), np.round(rng.random((9, 10)), 1)
    expected = match_thresholds(probability, truth, (0.2, 0.4, 0.45, 0.6), 2.0)
    for name in (
        "peel",
        "pixels_beside",
        "thin_pixels",
        "neighbour_lists",
        "augment",
        "repair_matching",
        "count_matches",
    ):
        monkeypatch.setattr(boundary_matching, name, getattr(boundary_matching, name).py_func)
    assert (match_thresholds(probability, truth, (0.2, 0.4, 0.45, 0.6), 2.0) == expected).all()


def test_neighbours_come_nearest_first():
    width = 20
    offsets = _steps(3.0, width)
    rows, columns = np.divmod(offsets + 3 * width + 3, width) - np.array([[3], [3]])
    distances = np.hypot(rows, columns)
    assert (np.diff(distances) >= 0).all()
    assert len(offsets) == sum(math.hypot(r, c) <= 3 for r in range(-3, 4) for c in range(-3, 4))
    true_at = np.full(width * width, -1)
    true_at[[width * 10 + 12, width * 10 + 10]] = 0, 1
    start, neighbour = neighbour_lists(np.array([width * 10 + 10]), true_at, offsets)
    assert start.tolist() == [0, 2]
    assert neighbour.tolist() == [1, 0]


def test_thinning_never_removes_an_isolated_pixel_or_an_end():
    assert not _REMOVABLE[:, 0].any()
    assert not _REMOVABLE[:, [1 << k for k in range(8)]].any()
    assert _ring_steps(10).tolist() == [1, -9, -10, -11, -1, 9, 10, 11]
