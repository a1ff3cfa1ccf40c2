"""Furnished rooms: nothing hovers, nobody runs into furniture; colours and textures keep their ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_raycasting import implicit

from mlore_edu.data import furniture, people
from mlore_edu.data.furniture import placed, rod, turn_y
from mlore_edu.data.interiors import DIFFICULTIES, FULL, compose
from mlore_edu.data.materials import COLOURS, GLOSS, PATTERNS, TEXTURES, Material, albedo, choose_material, value_noise
from mlore_edu.data.raycasting import local_normal
from mlore_edu.data.rooms import Rectangle, overlap
from mlore_edu.tasks import DOLLHOUSE_CLASSES

SURFACES = ("wall", "floor", "ceiling", "window", "picture", "rug")


def generator(*seed):
    return np.random.Generator(np.random.PCG64(list(seed)))


def plain(family):
    return Material(COLOURS[family][0], COLOURS[family][0])


@pytest.fixture(scope="module")
def rooms():
    return [compose(generator(seed, 0), level) for seed in range(25) for level in DIFFICULTIES.values()]


def sample_inside(primitive, rng, count=60):
    """Random points inside a solid, in room coordinates."""
    reach = primitive.half + np.array([0, primitive.half[0] if primitive.kind == "capsule" else 0, 0])
    local = rng.uniform(-1, 1, (3, 4 * count)) * reach[:, None]
    points = primitive.rotation @ local + primitive.centre[:, None]
    return points[:, implicit(primitive, points) < 0][:, :count]


def lowest(thing):
    """Height of the lowest point, by sampling every solid."""
    rng = generator(1)
    return min(sample_inside(s.primitive, rng, 200)[1].min() for s in thing.solids)


def test_nobody_runs_into_furniture_or_another_person(rooms):
    """Points sampled inside people lie in no other object; where someone sits, the seat may give a little."""
    rng, tested = generator(0), 0
    for room in rooms:
        for person in (t for t in room.objects if t.class_name == "person"):
            cloud = np.concatenate([sample_inside(s.primitive, rng) for s in person.solids], axis=1)
            tested += 1
            for other in room.objects:
                if other is person or other.class_name in SURFACES:
                    continue
                inside = np.zeros(cloud.shape[1], bool)
                for solid in other.solids:
                    inside |= implicit(solid.primitive, cloud) < 0
                allowed = 0.25 if other.class_name in ("chair", "sofa", "bed") else 0.01
                assert inside.mean() < allowed, other.class_name
    assert tested > 50


def test_everyone_and_everything_is_inside_the_room(rooms):
    for room in rooms:
        for thing in room.objects:
            if thing.class_name in ("wall", "floor", "ceiling"):
                continue
            cloud = np.concatenate([sample_inside(s.primitive, generator(2)) for s in thing.solids], axis=1)
            assert np.abs(cloud[0]).max() < room.width / 2 + 0.01, thing.class_name
            assert cloud[2].min() > -0.01, thing.class_name
            assert cloud[2].max() < room.depth + 0.01, thing.class_name
            assert cloud[1].min() > -0.02, thing.class_name
            assert cloud[1].max() < room.height + 0.01, thing.class_name


def test_nothing_hovers(rooms):
    """Everything stands on the floor, stands on something, hangs on a wall or from the ceiling, or sits on a seat."""
    for room in rooms:
        tops = [t.height for t in room.objects if t.surface]
        for thing in room.objects:
            if thing.class_name in ("wall", "floor", "ceiling"):
                continue
            bottom = lowest(thing)
            if thing.class_name in ("picture", "window"):
                centre = thing.solids[0].primitive.centre
                wall = min(room.width / 2 - abs(centre[0]), centre[2])
                assert wall < 0.03
            elif thing.class_name == "lamp" and bottom > 1:
                assert max(s.primitive.centre[1] + s.primitive.half[1] for s in thing.solids) > room.height - 0.01
            elif thing.class_name == "person" and bottom > 0.05:
                assert bottom < 0.35  # sitting, a child's feet may dangle
            else:
                assert min(abs(bottom - top) for top in [0.0, *tops]) < 0.05, thing.class_name


def test_large_pieces_do_not_share_floor(rooms):
    for room in rooms:
        large = [t for t in room.objects if t.class_name in ("sofa", "bed", "cabinet", "table")]
        for i, a in enumerate(large):
            cloud = np.concatenate([sample_inside(s.primitive, generator(3)) for s in a.solids], axis=1)
            for b in large[i + 1 :]:
                assert not any((implicit(s.primitive, cloud) < 0).any() for s in b.solids)


def test_an_easier_level_uses_fewer_classes_and_solids(rooms):
    for level in DIFFICULTIES.values():
        mine = [compose(generator(seed, 0), level) for seed in range(10)]
        used = {t.class_name for room in mine for t in room.objects}
        assert used <= set(level.classes) | {"wall", "floor", "ceiling"}
        assert used <= set(DOLLHOUSE_CLASSES)
    count = [np.mean([sum(len(t.solids) for t in room.objects) for room in rooms[k::3]]) for k in range(3)]
    assert count[0] < count[1] < count[2]


def test_the_same_generator_gives_the_same_room():
    one, two = compose(generator(7, 0), FULL), compose(generator(7, 0), FULL)
    for a, b in zip(one.objects, two.objects, strict=True):
        assert a.class_name == b.class_name
        for s, t in zip(a.solids, b.solids, strict=True):
            np.testing.assert_array_equal(s.primitive.centre, t.primitive.centre)
            np.testing.assert_array_equal(s.material.colour, t.material.colour)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_overlap_agrees_with_points_sampled_in_both_rectangles(seed):
    rng = np.random.default_rng(seed)
    a, b = (Rectangle(*rng.uniform(-1, 1, 2), *rng.uniform(0.2, 0.8, 2), rng.uniform(0, 6.3)) for _ in range(2))

    def inside(r, x, z):
        c, s = np.cos(r.angle), np.sin(r.angle)
        u, v = c * (x - r.x) - s * (z - r.z), s * (x - r.x) + c * (z - r.z)
        return (np.abs(u) <= r.half_x) & (np.abs(v) <= r.half_z)

    x, z = np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-2.2, 2.2, 200))
    shared = (inside(a, x, z) & inside(b, x, z)).sum()
    if shared > 0:
        assert overlap(a, b)
    assert overlap(a, b) == overlap(b, a)
    if not overlap(a, b):
        assert shared == 0
    for corner in a.corners():
        nudged = Rectangle(a.x, a.z, a.half_x * 1.001, a.half_z * 1.001, a.angle)
        assert inside(nudged, *corner)


def test_rectangles_a_hair_apart_do_not_overlap_and_a_hair_inside_do():
    still = Rectangle(0, 0, 1, 1, 0)
    diamond = np.sqrt(2)
    assert not overlap(still, Rectangle(1 + diamond + 1e-6, 0, 1, 1, np.pi / 4))
    assert overlap(still, Rectangle(1 + diamond - 1e-6, 0, 1, 1, np.pi / 4))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_rod_runs_from_its_start_to_its_end(seed):
    rng = np.random.default_rng(seed)
    start, end = rng.normal(size=3), rng.normal(size=3)
    if seed % 4 == 0:
        end = start + np.roll([0.7, 0, 0], seed % 3)
    primitive = rod("capsule", start, end, 0.1, plain("wood")).primitive
    np.testing.assert_allclose(primitive.rotation.T @ primitive.rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(primitive.rotation) > 0
    axis = primitive.rotation[:, 1] * primitive.half[1]
    np.testing.assert_allclose(primitive.centre - axis, start, atol=1e-12)
    np.testing.assert_allclose(primitive.centre + axis, end, atol=1e-12)


def test_placing_turns_first_and_moves_then():
    block = furniture.solid("box", (1.0, 0, 0), (0.1, 0.2, 0.3), plain("wood"), part=3)
    (moved,) = placed((block,), np.array([0.0, 5.0, 0.0]), turn_y(np.pi / 2))
    np.testing.assert_allclose(moved.primitive.centre, [0, 5, -1], atol=1e-12)
    np.testing.assert_allclose(moved.primitive.rotation @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    assert moved.part == 3
    assert placed((), np.zeros(3), np.eye(3)) == ()


BUILDERS = ("table", "chair", "sofa", "bed", "cabinet", "lamp", "plant", "rug")


@pytest.mark.parametrize("name", BUILDERS)
def test_furniture_stands_on_the_floor_within_its_footprint(name):
    for seed in range(20):
        thing = getattr(furniture, name)(generator(seed), plain)
        assert thing.class_name == name
        assert abs(lowest(thing)) < 0.02
        cloud = np.concatenate([sample_inside(s.primitive, generator(seed)) for s in thing.solids], axis=1)
        slack = 0.25 if name == "plant" else 0.03  # leaves may reach over what stands beside
        assert np.abs(cloud[0]).max() < thing.footprint[0] + slack
        assert np.abs(cloud[2]).max() < thing.footprint[1] + slack
        assert cloud[1].max() < thing.height + 0.6


@pytest.mark.parametrize("pose", [*people.POSES, "sitting", "sitting at a table"])
def test_people_have_six_parts_and_stand_on_the_floor(pose):
    for seed in range(6):
        rng = generator(seed)
        height = rng.uniform(1.2, 1.85)
        body = people.person(rng, people.choose_looks(rng, plain), people.choose_pose(rng, pose), height)
        assert {s.part for s in body.solids} == set(range(1, 7))
        if pose.startswith("sitting"):
            seat = [s for s in body.solids if s.part == people.UPPER_LEG]
            assert abs(min(s.primitive.centre[1] - s.primitive.half[0] for s in seat)) < 0.06
        else:
            assert abs(lowest(body)) < 0.02
            head = max(s.primitive.centre[1] for s in body.solids if s.part == people.HEAD)
            assert abs(head - 0.95 * height) < 0.14 * height
        middle = body.solids[0].primitive.centre
        assert max(np.linalg.norm(s.primitive.centre - middle) for s in body.solids) < 0.75 * height


def test_limbs_hang_together():
    """Upper arm meets lower arm at the elbow, upper leg meets lower leg at the knee."""
    rng = generator(4)
    for pose in people.POSES:
        body = people.person(rng, people.choose_looks(rng, plain), people.choose_pose(rng, pose), 1.72)
        for upper, lower in ((people.UPPER_ARM, people.LOWER_ARM), (people.UPPER_LEG, people.LOWER_LEG)):
            for u in (s.primitive for s in body.solids if s.part == upper):
                end = u.centre + u.rotation[:, 1] * u.half[1]
                starts = [
                    s.primitive.centre - s.primitive.rotation[:, 1] * s.primitive.half[1]
                    for s in body.solids
                    if s.part == lower
                ]
                assert min(np.linalg.norm(end - start) for start in starts) < 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(TEXTURES)))
def test_textures_stay_between_0_and_1(seed, name):
    u, v = np.random.default_rng(seed).uniform(-30, 30, (2, 200)).astype(np.float32)
    blend = TEXTURES[name](u, v)
    assert blend.shape == (200,)
    assert blend.min() >= 0
    assert blend.max() <= 1


def test_value_noise_passes_through_its_lattice_and_is_continuous():
    u, v = np.meshgrid(np.arange(-3.0, 4), np.arange(-3.0, 4))
    grid = value_noise(u.reshape(-1), v.reshape(-1))
    assert grid.std() > 0.15
    np.testing.assert_allclose(value_noise(u.reshape(-1) + 1e-4, v.reshape(-1) - 1e-4), grid, atol=1e-6)
    middle = value_noise(np.array([0.5]), np.array([0.5]))
    corners = value_noise(np.array([0.0, 1, 0, 1]), np.array([0.0, 0, 1, 1]))
    np.testing.assert_allclose(middle, corners.mean(), atol=1e-6)


def test_a_texture_finer_than_a_pixel_fades_to_one_colour():
    material = Material(np.zeros(3), np.ones(3), "stripes", 0.1)
    u = np.linspace(0, 1, 500, dtype=np.float32)
    near = albedo(material, u, u, np.full(500, 0.001, np.float32))
    far = albedo(material, u, u, np.full(500, 0.1, np.float32))
    assert near.std() > 0.4
    assert far.std() < 1e-6
    assert near.min() >= 0
    assert near.max() <= 1


def test_variety_mixing_and_texture_do_what_they_say():
    def draw(family, variety, mixing, texture):
        return [choose_material(generator(seed), family, variety, mixing, texture) for seed in range(60)]

    for m in draw("fabric", 0.0, 0.0, 0.0):
        np.testing.assert_allclose(m.colour, COLOURS["fabric"][0])
        np.testing.assert_allclose(m.second, m.colour)  # no strength: the texture does not show
    assert len({m.texture for m in draw("fabric", 1.0, 0.0, 1.0)}) > 3
    own = np.array([m.colour for m in draw("floor", 1.0, 0.0, 1.0)])
    mixed = np.array([m.colour for m in draw("floor", 1.0, 1.0, 1.0)])
    assert mixed.std(axis=0).sum() > 1.3 * own.std(axis=0).sum()
    for family in [*PATTERNS, *GLOSS]:
        assert family in COLOURS
    assert all((m.colour >= 0).all() and (m.colour <= 1).all() for m in draw("ball", 1.0, 1.0, 1.0))


def test_the_seat_faces_the_way_its_furniture_does(rooms):
    """Who sits down does not look into the back of the seat: there is nothing of it ahead at chest height."""
    seen = 0
    for room in rooms:
        for seat, owner in room.seats:
            ahead = np.array([np.sin(seat.facing), 0, np.cos(seat.facing)])
            chest = seat.point + np.array([0, 0.35, 0])
            cloud = np.stack([chest + step * ahead for step in np.linspace(0.1, 0.8, 20)], axis=1)
            assert not any((implicit(s.primitive, cloud) < 0).any() for s in owner.solids)
            seen += 1
    assert seen > 20


def test_planes_of_the_room_face_inwards(rooms):
    for room in rooms[:3]:
        middle = np.array([0, room.height / 2, room.depth / 2])
        planes = [t for t in room.objects if t.class_name in ("wall", "floor", "ceiling")]
        assert len(planes) == 6
        for plane in (t.solids[0].primitive for t in planes):
            normal = plane.rotation @ local_normal(plane, np.zeros((3, 1)), np.zeros((3, 1)))[:, 0]
            assert normal @ (middle - plane.centre) > 0
            assert np.linalg.det(plane.rotation) == pytest.approx(1) or np.linalg.det(plane.rotation) == pytest.approx(
                -1
            )
