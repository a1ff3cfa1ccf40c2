"""Ray casting: every primitive against its implicit function, light and smoothing against naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlore_edu.data.lighting import BAYER, Light, antialias, block_mean, lambert, light_points
from mlore_edu.data.raycasting import (
    Camera,
    Primitive,
    blocked,
    cast,
    hit_distance,
    local_normal,
    look_at,
    make_group,
    single,
    surface_coordinates,
)

SOLIDS = ("box", "ellipsoid", "cylinder", "capsule")


def random_rotation(rng):
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix * np.sign(np.linalg.det(matrix))


def random_primitive(rng, kind, spread=0.5):
    half = rng.uniform(0.2, 0.9, 3)
    if kind in ("cylinder", "capsule"):
        half[2] = half[0]
    return Primitive(kind, rng.normal(size=3) * spread, random_rotation(rng), half)


def implicit(primitive, points):
    """Negative inside, zero on the surface, positive outside: written from each solid's definition, one point a row."""
    x, y, z = primitive.rotation.T @ (points - primitive.centre[:, None])
    a, b, c = primitive.half
    if primitive.kind == "plane":
        return y
    if primitive.kind == "box":
        return np.maximum(np.maximum(np.abs(x) - a, np.abs(y) - b), np.abs(z) - c)
    if primitive.kind == "ellipsoid":
        return np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2) - 1
    if primitive.kind == "cylinder":
        return np.maximum(np.sqrt(x**2 + z**2) - a, np.abs(y) - b)
    gap = np.maximum(np.abs(y) - b, 0)
    return np.sqrt(x**2 + gap**2 + z**2) - a


def rays_at(rng, count, target=(0, 0, 0), distance=4.0):
    """Rays from a sphere around the origin to points near the target."""
    origins = rng.normal(size=(3, count))
    origins *= distance / np.linalg.norm(origins, axis=0)
    directions = rng.normal(size=(3, count)) * 0.4 + np.reshape(target, (3, 1)) - origins
    return origins, directions / np.linalg.norm(directions, axis=0)


def march(primitive, origins, directions, reach=8.0, steps=4000):
    """First sign change of the implicit function along each ray, refined by bisection; infinity if there is none."""
    t = np.linspace(0, reach, steps)
    inside = np.stack([implicit(primitive, origins + step * directions) < 0 for step in t])
    first = inside.argmax(axis=0)
    low, high = t[np.maximum(first - 1, 0)], t[first]
    for _ in range(50):
        middle = (low + high) / 2
        within = implicit(primitive, origins + middle * directions) < 0
        low, high = np.where(within, low, middle), np.where(within, middle, high)
    return np.where(inside.any(axis=0), high, np.inf)


@pytest.mark.parametrize("kind", SOLIDS)
def test_hit_distance_equals_a_march_along_the_ray_to_the_implicit_surface(kind):
    rng = np.random.default_rng(5)
    grazing = 0
    for _ in range(4):
        primitive = random_primitive(rng, kind)
        origins, directions = rays_at(rng, 100, primitive.centre)
        expected, found = march(primitive, origins, directions), hit_distance(primitive, origins, directions)
        both = np.isfinite(expected) & np.isfinite(found)
        assert both.sum() > 15
        np.testing.assert_allclose(found[both], expected[both], atol=1e-9)
        assert not (np.isfinite(expected) & ~np.isfinite(found)).any()
        grazing += int((np.isfinite(found) & ~np.isfinite(expected)).sum())
    assert grazing <= 2  # the march can step over a sliver thinner than its 2 mm step


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(SOLIDS))
def test_every_hit_lies_on_the_surface_and_nothing_before_it_is_inside(seed, kind):
    rng = np.random.default_rng(seed)
    primitive = random_primitive(rng, kind)
    origins, directions = rays_at(rng, 50, primitive.centre)
    t = hit_distance(primitive, origins, directions)
    hit = np.isfinite(t)
    points = origins[:, hit] + t[hit] * directions[:, hit]
    np.testing.assert_allclose(implicit(primitive, points), 0, atol=1e-6)
    for fraction in (0.2, 0.6, 0.95):
        assert (implicit(primitive, origins[:, hit] + fraction * t[hit] * directions[:, hit]) > 0).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(SOLIDS))
def test_a_rigid_motion_of_solid_and_rays_leaves_hit_distances_alone(seed, kind):
    rng = np.random.default_rng(seed)
    primitive, turn, shift = random_primitive(rng, kind), random_rotation(rng), rng.normal(size=3)
    origins, directions = rays_at(rng, 40, primitive.centre)
    moved = Primitive(kind, turn @ primitive.centre + shift, turn @ primitive.rotation, primitive.half)
    before = hit_distance(primitive, origins, directions)
    after = hit_distance(moved, turn @ origins + shift[:, None], turn @ directions)
    both = np.isfinite(before) & np.isfinite(after)
    np.testing.assert_allclose(after[both], before[both], atol=1e-6)
    assert (np.isfinite(before) != np.isfinite(after)).sum() <= 1  # a ray that just grazes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(SOLIDS))
def test_normals_are_unit_face_the_ray_and_follow_the_implicit_gradient(seed, kind):
    rng = np.random.default_rng(seed)
    primitive = random_primitive(rng, kind)
    origins, directions = rays_at(rng, 60, primitive.centre)
    t = hit_distance(primitive, origins, directions)
    hit = np.isfinite(t)
    points = origins[:, hit] + t[hit] * directions[:, hit]
    local = primitive.rotation.T @ (points - primitive.centre[:, None])
    normal = primitive.rotation @ local_normal(primitive, local, primitive.rotation.T @ directions[:, hit])
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-9)
    assert ((normal * directions[:, hit]).sum(axis=0) < 1e-6).all()
    step = 1e-6
    gradient = np.stack(
        [implicit(primitive, points + step * e) - implicit(primitive, points - step * e) for e in np.eye(3)[:, :, None]]
    )
    gradient /= np.linalg.norm(gradient, axis=0)
    agrees = (gradient * normal).sum(axis=0) > 1 - 1e-6
    assert (~agrees).sum() <= 1  # a hit within a micrometre of an edge, where there is no gradient


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(SOLIDS))
def test_the_bounding_ball_holds_the_solid(seed, kind):
    rng = np.random.default_rng(seed)
    primitive = random_primitive(rng, kind)
    outside = rng.normal(size=(3, 200))
    outside *= primitive.bounding_radius * rng.uniform(1.0001, 1.5, 200) / np.linalg.norm(outside, axis=0)
    assert (implicit(primitive, outside + primitive.centre[:, None]) > 0).all()


@pytest.mark.parametrize("kind", SOLIDS)
def test_a_solid_behind_the_ray_is_not_hit(kind):
    primitive = Primitive(kind, np.array([0.0, 0.0, 5.0]), np.eye(3), np.full(3, 0.5))
    assert np.isinf(hit_distance(primitive, np.zeros((3, 1)), np.array([[0.0], [0.0], [-1.0]]))).all()
    assert np.isfinite(hit_distance(primitive, np.zeros((3, 1)), np.array([[0.0], [0.0], [1.0]]))).all()


@pytest.mark.parametrize("kind", SOLIDS)
def test_rays_along_the_axes_are_no_special_case(kind):
    primitive = Primitive(kind, np.zeros(3), np.eye(3), np.array([0.5, 0.4, 0.5]))
    along_y = 0.9 if kind == "capsule" else 0.4
    origins = np.array([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]])
    np.testing.assert_allclose(hit_distance(primitive, origins, -np.eye(3)), [2.5, 3 - along_y, 2.5], atol=1e-9)


def test_a_plane_is_hit_from_above_only_at_height_over_fall():
    ground = Primitive("plane", np.array([0, 0.5, 0]), np.eye(3), np.ones(3))
    down, up, level = np.array([0.6, -0.8, 0]), np.array([0.6, 0.8, 0]), np.array([1.0, 0, 0])
    t = hit_distance(ground, np.array([[0.0], [2.1], [0.0]]), np.stack([down, up, level], axis=1))
    np.testing.assert_allclose(t, [2.0, np.inf, np.inf])
    np.testing.assert_array_equal(local_normal(ground, np.zeros((3, 1)), np.ones((3, 1))), [[0], [1], [0]])
    assert ground.bounding_radius == np.inf


def a_few_solids(rng, count=6):
    kinds = [SOLIDS[i % 4] for i in range(count)]
    return [random_primitive(rng, kind, spread=1.2) for kind in kinds]


def test_cast_finds_the_nearest_of_all_solids_as_testing_each_without_bounds_does():
    rng = np.random.default_rng(2)
    solids = [*a_few_solids(rng), Primitive("plane", np.array([0, -2.5, 0]), np.eye(3), np.ones(3))]
    camera = look_at(np.array([0.5, 1.0, 7.0]), np.zeros(3), 1.1)
    directions = camera.rotation @ camera.rays((40, 50)).astype(float)
    origin = camera.position[:, None]
    every = np.stack([hit_distance(solid, origin, directions) for solid in solids])
    distance, index = cast(solids, origin, directions)
    np.testing.assert_array_equal(distance, every.min(axis=0))
    hit = np.isfinite(distance)
    assert hit.any()
    assert not hit.all()
    np.testing.assert_array_equal(index[hit], every.argmin(axis=0)[hit])
    assert (index[~hit] == -1).all()


def test_cast_in_float32_agrees_with_float64_to_a_tenth_of_a_millimetre():
    rng = np.random.default_rng(4)
    solids = a_few_solids(rng)
    camera = look_at(np.array([0.0, 1.0, 6.0]), np.zeros(3), 1.0)
    directions = (camera.rotation.astype(np.float32) @ camera.rays((60, 60))).astype(np.float32)
    fine, which = cast(solids, camera.position[:, None], directions.astype(float))
    coarse, also = cast([single(s) for s in solids], camera.position[:, None].astype(np.float32), directions)
    assert coarse.dtype == np.float32
    same = (which == also) & (which >= 0)
    assert (which == also).mean() > 0.99
    assert np.quantile(np.abs(fine[same] - coarse[same]), 0.99) < 1e-4


def test_blocked_agrees_with_testing_every_solid_on_every_ray():
    rng = np.random.default_rng(7)
    solids = [*a_few_solids(rng, 8), Primitive("plane", np.array([0, -3.0, 0]), np.eye(3), np.ones(3))]
    groups = [
        make_group(solids, [0, 1, 2]),
        make_group(solids, [3, 4]),
        make_group(solids, [5]),
        make_group(solids, [6, 7]),
    ]
    origins = np.stack([rng.uniform(-3, 3, 300), np.full(300, -3.0), rng.uniform(-3, 3, 300)])
    towards = np.array([[0.3], [4.0], [0.5]]) - origins
    length = np.linalg.norm(towards, axis=0)
    dark = blocked(solids, groups, origins, towards / length, length, np.full(300, 8))
    naive = np.zeros(300, bool)
    for ray in range(300):
        for solid in solids[:8]:
            naive[ray] |= hit_distance(solid, origins[:, [ray]], towards[:, [ray]] / length[ray])[0] < length[ray]
    assert 0.05 < naive.mean() < 0.95
    np.testing.assert_array_equal(dark, naive)


def test_a_convex_solid_does_not_shade_itself_but_shades_others():
    ball = Primitive("ellipsoid", np.zeros(3), np.eye(3), np.ones(3))
    args = [ball], [make_group([ball], [0])], np.array([[0.0], [-1.0], [0.0]]), np.array([[0.0], [1.0], [0.0]])
    assert not blocked(*args, np.array([5.0]), np.array([0]))[0]
    below = np.array([[0.0], [-1.5], [0.0]])
    assert blocked(*args[:2], below, args[3], np.array([5.0]), np.array([1]))[0]
    assert not blocked(*args[:2], below, args[3], np.array([0.3]), np.array([1]))[
        0
    ]  # the light is nearer than the ball


def test_each_block_of_4_by_4_pixels_looks_at_16_points_of_the_light_spread_over_it():
    assert sorted(BAYER.reshape(-1)) == list(range(16))
    rows, columns = np.indices((4, 4))
    np.testing.assert_array_equal(BAYER < 8, (rows + columns) % 2 == 0)
    light = Light(np.array([1.0, 2, 3]), np.array([0.5, 0, 0]), np.array([0, 0, 0.25]), np.ones(3))
    points = light_points(light, np.arange(64), 8).astype(float)
    u, v = (points[0] - 1) / 0.5, (points[2] - 3) / 0.25
    assert (points[1] == 2).all()
    assert max(np.abs(u).max(), np.abs(v).max()) <= 1
    block = (np.arange(64) // 8 < 4) & (np.arange(64) % 8 < 4)
    assert len({(round(a, 4), round(b, 4)) for a, b in zip(u[block], v[block])}) == 16
    for half in (block, block & ((np.arange(64) // 8 + np.arange(64) % 8) % 2 == 0)):
        quadrants = {(a > 0, b > 0) for a, b in zip(u[half], v[half])}
        assert len(quadrants) == 4
        assert max(abs(u[half].mean()), abs(v[half].mean())) < 0.25


def test_block_mean_is_the_mean_over_a_4_by_4_window_of_the_same_solid():
    rng = np.random.default_rng(0)
    values, same = rng.random((9, 11)), rng.integers(0, 3, (9, 11))
    values[rng.random((9, 11)) < 0.4] = np.nan
    expected = np.ones_like(values)
    for i in range(9):
        for j in range(11):
            window = [
                values[a, b]
                for a in range(max(i - 2, 0), min(i + 2, 9))
                for b in range(max(j - 2, 0), min(j + 2, 11))
                if same[a, b] == same[i, j] and not np.isnan(values[a, b])
            ]
            expected[i, j] = np.mean(window) if window else 1
    np.testing.assert_allclose(block_mean(values, same), expected)


def test_lambert_follows_the_cosine_and_falls_off_with_distance():
    light = Light(np.array([0.0, 3.0, 0.0]), np.zeros(3), np.zeros(3), np.ones(3))
    tilt = np.array([0.0, 0.5, 1.2, 2.0])
    normals = np.stack([np.sin(tilt), np.cos(tilt), 0 * tilt])
    up = np.array([[0.0], [1.0], [0.0]])
    matt, shine = lambert(light, np.zeros((3, 4)), normals, up, np.array([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(matt, 0.5 * np.maximum(np.cos(tilt), 0))
    np.testing.assert_allclose(shine, 0.5 * np.array([1, np.cos(0.5) ** 40, 0, 0]))
    far, _ = lambert(light, np.array([[0.0], [-3.0], [0.0]]), up, up, np.zeros(1))
    np.testing.assert_allclose(far, 1 / 5)


def test_the_camera_looks_at_its_target_with_x_right_and_y_up():
    camera = look_at(np.array([2.0, 1.5, 4.0]), np.array([0.0, 1.0, 0.0]), 0.9)
    np.testing.assert_allclose(camera.rotation.T @ camera.rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.rotation) > 0
    ahead = camera.rotation.T @ (np.array([0.0, 1.0, 0.0]) - camera.position)
    np.testing.assert_allclose(ahead[:2], 0, atol=1e-12)
    assert ahead[2] < 0
    assert camera.rotation[1, 1] > 0.9  # its up is nearly the room's up
    assert abs(camera.rotation[1, 0]) < 1e-12  # its right is level
    rolled = look_at(np.array([2.0, 1.5, 4.0]), np.array([0.0, 1.0, 0.0]), 0.9, roll=0.3)
    np.testing.assert_allclose(rolled.rotation[:, 0] @ camera.rotation[:, 0], np.cos(0.3))


def test_rays_project_back_to_the_pixels_they_were_made_for():
    camera = Camera(np.zeros(3), np.eye(3), 1.2)
    rays = camera.rays((6, 10)).astype(float)
    focal = 1.2 * 6
    row, column = -rays[1] / -rays[2] * focal + 3 - 0.5, rays[0] / -rays[2] * focal + 5 - 0.5
    np.testing.assert_allclose(row, np.repeat(np.arange(6), 10), atol=1e-5)
    np.testing.assert_allclose(column, np.tile(np.arange(10), 6), atol=1e-5)
    np.testing.assert_allclose(camera.rays((6, 10), np.array([23])), camera.rays((6, 10))[:, [23]])


def test_antialiasing_shades_a_boundary_pixel_by_the_area_each_solid_covers():
    """A black square in front of white: the smoothed pixels add up to the square's true area."""
    square = Primitive("box", np.array([0.0, 0, -3]), np.eye(3), np.array([0.513, 0.513, 0.01]))
    back = Primitive("plane", np.array([0.0, 0, -5]), np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.ones(3))
    solids, camera = [single(square), single(back)], Camera(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), 1.0)
    _, index = cast(solids, np.zeros((3, 1), np.float32), camera.rays((30, 30)))
    index = index.reshape(30, 30)
    colour = np.repeat((index == 1).astype(np.float32)[None], 3, axis=0)
    smooth = antialias(solids, camera, index, colour)
    true_area = (2 * 0.513 / 2.99 * 30) ** 2
    assert abs((1 - smooth[0]).sum() - true_area) < abs((index == 0).sum() - true_area)
    assert abs((1 - smooth[0]).sum() - true_area) < 0.04 * true_area
    assert ((smooth > 0.01) & (smooth < 0.99)).any()
    inner = np.zeros((30, 30), bool)
    inner[13:17, 13:17] = True
    np.testing.assert_array_equal(smooth[0][inner], 0)
    rough = antialias(solids, camera, index, colour, exact=False)
    assert np.abs(rough - smooth).max() < 0.5
    assert abs(rough.sum() - colour.sum()) < 0.02 * colour.sum()  # a blur moves light, it does not make any
    np.testing.assert_array_equal(rough[0][inner], 0)


@pytest.mark.parametrize("kind", ["plane", *SOLIDS])
def test_texture_coordinates_keep_lengths_on_the_surface(kind):
    """A step of 1 mm on the surface is a step of 1 mm in (u, v), apart from seams and the bulge of balls."""
    rng = np.random.default_rng(1)
    primitive = Primitive(kind, np.zeros(3), np.eye(3), np.array([0.5, 0.4, 0.5]))
    if kind == "plane":
        points = np.stack([rng.normal(size=100), np.zeros(100), rng.normal(size=100)])
        normals = local_normal(primitive, points, -np.ones_like(points))
    else:
        origins, directions = rays_at(rng, 200)
        t = hit_distance(primitive, origins, directions)
        points = (origins + t * directions)[:, np.isfinite(t)]
        normals = local_normal(primitive, points, directions[:, np.isfinite(t)])
    flat = np.ones(points.shape[1], bool) if kind != "ellipsoid" else np.abs(normals[1]) < 0.2
    side = np.cross(normals.T, rng.normal(size=3)).T
    side *= 1e-3 / np.linalg.norm(side, axis=0)
    u, v = surface_coordinates(primitive, points, normals)
    u2, v2 = surface_coordinates(primitive, points + side, normals)
    step = np.hypot(u2 - u, v2 - v)
    limits = (0.9e-3, 1.1e-3) if kind in ("plane", "box", "cylinder") else (0.5e-3, 1.6e-3)
    assert ((step[flat] > limits[0]) & (step[flat] < limits[1])).mean() > 0.85


def test_tall_boxes_turn_their_grain_upright():
    leg = Primitive("box", np.zeros(3), np.eye(3), np.array([0.03, 0.4, 0.03]))
    points = np.array([[0.0, 0.0], [0.1, 0.3], [0.03, 0.03]])
    normals = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    u, v = surface_coordinates(leg, points, normals)
    np.testing.assert_allclose(u, [0.1, 0.3])
    np.testing.assert_allclose(v, 0)
