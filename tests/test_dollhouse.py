"""Dollhouse: labels are proven against the geometry and each other, scenes against the rules that accept them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlore_edu.data.dollhouse import (
    ATTEMPTS,
    DIFFICULTIES,
    FULL,
    PROBE,
    Labels,
    Stage,
    boundaries,
    faults,
    salient,
    scene,
)
from mlore_edu.data.interiors import compose
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE_CLASSES, PART_NAMES

CLASS = {name: i for i, name in enumerate(DOLLHOUSE_CLASSES)}


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed, 96, level) for seed in range(4) for level in DIFFICULTIES]


def test_a_scene_has_the_promised_arrays(scenes):
    for s in scenes:
        assert s.image.shape == s.normals.shape == (96, 96, 3)
        maps = (s.semseg, s.instances, s.human_parts, s.saliency, s.depth, s.edge)
        assert all(m.shape == (96, 96) for m in maps)
        assert [m.dtype.name for m in maps] == ["uint8", "uint16", "uint8", "uint8", "float32", "uint8"]
        assert s.image.dtype == np.uint8
        assert s.normals.dtype == np.float32
        assert all(array.flags["C_CONTIGUOUS"] for array in (s.image, s.normals, *maps))
        assert s.semseg.max() < len(DOLLHOUSE_CLASSES)
        assert s.human_parts.max() < len(PART_NAMES)
        assert set(np.unique(s.saliency)) == set(np.unique(s.edge)) == {0, 1}


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = scene(3, 64), scene(3, 64), scene(4, 64)
    for name in ("image", "semseg", "instances", "human_parts", "saliency", "normals", "depth", "edge"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.meta == again.meta
    assert (first.semseg != other.semseg).mean() > 0.2


@pytest.mark.parametrize("level", list(DIFFICULTIES))
def test_two_sizes_show_the_same_scene(level):
    """The centres of a picture's pixels are centres of pixels of the picture three times as large."""
    small, large = scene(11, 64, level), scene(11, 192, level)
    for name in ("semseg", "instances", "human_parts", "saliency"):
        assert (getattr(small, name) == getattr(large, name)[1::3, 1::3]).mean() > 0.998
    same = small.instances == large.instances[1::3, 1::3]
    np.testing.assert_allclose(small.depth[same], large.depth[1::3, 1::3][same], rtol=0.02)
    assert small.meta["salient"] == large.meta["salient"]
    assert large.meta["focal"] == pytest.approx(3 * small.meta["focal"])
    blurred = large.image.reshape(64, 3, 64, 3, 3).mean(axis=(1, 3))
    assert np.abs(blurred - small.image).mean() < 12


def test_a_wide_picture_shows_more_at_its_sides():
    square, wide = scene(5, 64), scene(5, (64, 96))
    assert wide.image.shape == (64, 96, 3)
    assert (square.semseg == wide.semseg[:, 16:80]).mean() > 0.998
    assert wide.meta["focal"] == square.meta["focal"]


def unproject(s):
    """Points (H, W, 3) in camera coordinates (x right, y up, z towards the camera), from depth and intrinsics alone."""
    rows, columns = np.indices(s.depth.shape) + 0.5
    row0, column0 = s.meta["centre"]
    depth = s.depth.astype(float)
    x, y = (columns - column0) / s.meta["focal"] * depth, -(rows - row0) / s.meta["focal"] * depth
    return np.stack([x, y, -depth], axis=-1)


def test_normals_of_planes_equal_the_gradient_of_the_depth(scenes):
    counted = 0
    for s in scenes:
        points = unproject(s)
        right = points[1:-1, 2:] - points[1:-1, :-2]
        up = points[:-2, 1:-1] - points[2:, 1:-1]
        normal = np.cross(right, up)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        around = [(slice(1, -1), slice(2, None)), (slice(1, -1), slice(None, -2)),
                  (slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))]  # fmt: skip
        inner = (slice(1, -1), slice(1, -1))
        planar = np.isin(s.semseg, [CLASS["wall"], CLASS["floor"], CLASS["ceiling"]])[inner]
        for side in around:
            planar &= s.instances[side] == s.instances[inner]
        cosine = (normal * s.normals[inner]).sum(axis=-1)[planar]
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.2
        counted += planar.sum()
    assert counted > 30_000


def test_normals_are_unit_and_face_the_camera(scenes):
    for s in scenes:
        np.testing.assert_allclose(np.linalg.norm(s.normals, axis=-1), 1, atol=1e-5)
        points = unproject(s)
        towards = -points / np.linalg.norm(points, axis=-1, keepdims=True)
        assert ((towards * s.normals).sum(axis=-1) > -1e-3).all()  # float32 on a silhouette
        floor = s.normals[s.semseg == CLASS["floor"]]
        assert (floor[:, 1] > 0.6).all()  # the camera never tips far, so the floor points up
        if (s.semseg == CLASS["ceiling"]).any():
            assert (s.normals[s.semseg == CLASS["ceiling"]][:, 1] < -0.6).all()


def test_depth_is_in_metres_and_nothing_is_right_in_front_of_the_camera(scenes):
    for s in scenes:
        assert s.depth.min() > 0.5
        assert s.depth.max() < 10


def test_parts_lie_exactly_in_persons(scenes):
    for s in scenes:
        np.testing.assert_array_equal(s.human_parts > 0, s.semseg == CLASS["person"])
    assert {p for s in scenes for p in np.unique(s.human_parts)} == set(range(7))


def test_boundaries_lie_where_instance_or_class_changes_to_the_right_or_below(scenes):
    for s in scenes[:3]:
        expected = np.zeros_like(s.edge)
        for i in range(96):
            for j in range(96):
                for a, b in ((i + 1, j), (i, j + 1)):
                    if a < 96 and b < 96:
                        differs = s.instances[i, j] != s.instances[a, b] or s.semseg[i, j] != s.semseg[a, b]
                        expected[i, j] |= differs
        np.testing.assert_array_equal(s.edge, expected)
    assert boundaries(np.ones((3, 3)), np.array([[0, 0, 1]] * 3)).tolist() == [[0, 1, 0]] * 3


def test_each_instance_has_one_class_and_it_is_the_tables(scenes):
    for s in scenes:
        assert set(s.meta["instances"]) == set(np.unique(s.instances).tolist())
        for number, (class_name, name) in s.meta["instances"].items():
            assert set(np.unique(s.semseg[s.instances == number])) == {CLASS[class_name]}
            assert name.startswith(class_name)
        assert len({name for _, name in s.meta["instances"].values()}) == len(s.meta["instances"])


def test_saliency_covers_whole_instances_and_people_come_first(scenes):
    for s in scenes:
        np.testing.assert_array_equal(s.saliency == 1, np.isin(s.instances, s.meta["salient"]))
        chosen = {s.meta["instances"][n][0] for n in s.meta["salient"] if n in s.meta["instances"]}
        if (s.semseg == CLASS["person"]).mean() > 0.03:
            assert chosen == {"person"}
        assert not chosen & {"wall", "floor", "ceiling", "window", "picture", "rug"}


def test_every_accepted_scene_obeys_every_rule():
    for name, level in DIFFICULTIES.items():
        for seed in range(8):
            attempt = scene(seed, 16, level).meta["attempt"]
            assert attempt < ATTEMPTS - 1
            rooms = [compose(np.random.Generator(np.random.PCG64([seed, a])), level) for a in range(attempt + 1)]
            found = [faults(Stage(room).labels((PROBE, PROBE)), level) for room in rooms]
            assert found[-1] == [], name
            assert all(found[:-1]), name  # and every room thrown away broke one


def view(semseg, instances=None, parts=None, depth=3.0):
    semseg = np.asarray(semseg)
    instances = semseg + 1 if instances is None else np.asarray(instances)
    parts = np.where(semseg == CLASS["person"], 1, 0) if parts is None else np.asarray(parts)
    depth = np.broadcast_to(np.asarray(depth, float), semseg.shape)
    none = np.zeros(0)
    return Labels(instances - 1, instances, semseg, parts, none, none, depth)


def good_view():
    """20 x 20: wall above floor, a table and a sofa."""
    semseg = np.full((20, 20), CLASS["wall"])
    semseg[10:] = CLASS["floor"]
    semseg[8:12, 2:7] = CLASS["table"]
    semseg[6:12, 10:16] = CLASS["sofa"]
    return semseg


def painted(row, column, height, width, name):
    semseg = good_view()
    semseg[row : row + height, column : column + width] = CLASS[name]
    return semseg


def test_rules_accept_a_good_view():
    assert faults(view(good_view()), FULL) == []


@pytest.mark.parametrize(
    ("fault", "labels"),
    [
        ("something is right in front of the camera", view(good_view(), depth=0.5)),
        ("one object fills the view", view(painted(2, 2, 14, 14, "sofa"))),
        ("a person fills the view", view(painted(2, 4, 18, 8, "person"))),
        ("a table top fills the view", view(painted(6, 2, 12, 8, "table"))),
        ("the room is hidden", view(painted(0, 0, 20, 15, "bed"))),
        ("the room is empty", view(np.repeat([CLASS["wall"], CLASS["floor"]], 10)[:, None].repeat(20, axis=1))),
        ("too few objects", view(np.where(good_view() == CLASS["sofa"], CLASS["wall"], good_view()))),
        ("nothing stands out", view(np.where(good_view() > CLASS["rug"], CLASS["floor"], good_view()))),
        ("a surface fills the view", view(np.where(good_view() == CLASS["floor"], CLASS["wall"], good_view()))),
        ("no floor to stand on", view(np.where(good_view() == CLASS["floor"], CLASS["rug"], good_view()))),
        ("a small thing fills the view", view(painted(4, 6, 10, 8, "plant"))),
        ("a person has no head", view(painted(4, 6, 10, 3, "person"), parts=np.full((20, 20), 2))),
        ("a head is cut off by the picture's border", view(painted(0, 6, 10, 3, "person"))),
    ],
)
def test_each_rule_rejects_the_view_it_is_about(fault, labels):
    assert fault in faults(labels, FULL)


def test_a_level_that_promises_people_rejects_a_view_without_them():
    assert faults(view(good_view()), replace(FULL, people=(1, 2))) == ["no person where one belongs"]
    assert faults(view(painted(4, 6, 10, 3, "person")), replace(FULL, people=(1, 2))) == []


def test_the_salient_object_is_large_central_near_and_of_another_colour():
    grey = np.full((20, 3), 0.5)
    two = np.full((20, 20), CLASS["wall"])
    two[9:12, 9:12], two[9:12, 16:19] = CLASS["ball"], CLASS["plant"]
    assert salient(view(two), grey) == [CLASS["ball"] + 1]  # central
    mirrored = two[:, ::-1].copy()
    mirrored[9:12, 1:4], mirrored[9:12, 8:11] = CLASS["ball"], CLASS["plant"]
    assert salient(view(mirrored), grey) == [CLASS["plant"] + 1]
    twins = np.full((20, 20), CLASS["wall"])
    twins[9:11, 5:8], twins[9:11, 12:15] = CLASS["ball"], CLASS["plant"]
    depth = np.where(np.arange(20) < 10, 2.0, 4.0)[None].repeat(20, axis=0)
    assert salient(view(twins, depth=depth), grey) == [CLASS["ball"] + 1]  # nearer
    colours = grey.copy()
    colours[CLASS["plant"]] = (1, 0, 0)
    assert salient(view(twins), colours) == [CLASS["plant"] + 1]  # of another colour
    larger = twins.copy()
    larger[8:12, 4:9] = CLASS["ball"]
    assert salient(view(larger), grey) == [CLASS["ball"] + 1]
    assert salient(view(np.zeros((20, 20), int)), grey) == []


def test_people_are_salient_before_everything_but_not_those_far_behind():
    semseg = painted(4, 6, 10, 3, "person")
    instances = semseg + 1
    semseg[5:7, 18:20], instances[5:7, 18:20] = CLASS["person"], 40
    assert salient(view(semseg, instances), np.full((50, 3), 0.5)) == [CLASS["person"] + 1]
    semseg[5:15, 17:20], instances[5:15, 17:20] = CLASS["person"], 40
    assert salient(view(semseg, instances), np.full((50, 3), 0.5)) == [CLASS["person"] + 1, 40]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 64, "hard"), "choose one of easy, medium, full"),
        ((0, 4, "easy"), "ask for at least 8 x 8"),
        ((-1, 64, "easy"), "use 0 or a positive"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        scene(*arguments)


def test_a_difficulty_of_ones_own_is_taken():
    level = replace(DIFFICULTIES["easy"], name="still", noise=0.0, people=(0, 0))
    s = scene(1, 48, level)
    assert s.meta["difficulty"] == "still"
    assert s.meta["id"] == "still_000001"
    assert (s.semseg != CLASS["person"]).all()


@pytest.fixture(scope="module")
def many():
    return [scene(seed, 48) for seed in range(48)]


@pytest.mark.slow
def test_every_class_and_every_part_appears_over_a_few_dozen_seeds(many):
    seen = np.bincount(np.concatenate([np.unique(s.semseg) for s in many]), minlength=15)
    assert (seen >= 3).all(), dict(zip(DOLLHOUSE_CLASSES, seen))
    share = np.bincount(np.concatenate([s.semseg.reshape(-1) for s in many]), minlength=15) / (48 * 48 * 48)
    assert share.max() < 0.5


def mean_iou(prediction, target, classes):
    scores = []
    for c in range(classes):
        union = ((prediction == c) | (target == c)).sum()
        if union:
            scores.append(((prediction == c) & (target == c)).sum() / union)
    return 100 * np.mean(scores)


@pytest.mark.slow
def test_constant_predictors_score_low_on_every_task(many):
    def stack(name):
        return np.stack([getattr(s, name) for s in many])

    semseg, parts, saliency, depth = stack("semseg"), stack("human_parts"), stack("saliency"), stack("depth")
    assert mean_iou(np.zeros_like(semseg), semseg, 15) < 5  # all wall
    assert mean_iou(np.zeros_like(parts), parts, 7) < 15  # no person
    precision = saliency.mean()
    assert 100 * 1.3 * precision / (0.3 * precision + 1) < 25  # all salient
    assert depth.std() > 0.7
    normals = stack("normals").reshape(-1, 3)
    mean = normals.mean(axis=0) / np.linalg.norm(normals.mean(axis=0))
    assert np.degrees(np.arccos(np.clip(normals @ mean, -1, 1))).mean() > 35
    assert 0.02 < stack("edge").mean() < 0.2


@pytest.mark.slow
def test_colour_alone_does_not_tell_the_class_in_full_scenes_and_tells_more_in_easy_ones(many):
    from sklearn.neighbors import KNeighborsClassifier

    def by_colour(scenes, classes):
        def pixels(some):
            return np.concatenate([s.image.reshape(-1, 3) for s in some]).astype(float)

        def labels(some):
            return np.concatenate([s.semseg.reshape(-1) for s in some])

        cut = len(scenes) * 2 // 3
        model = KNeighborsClassifier(15).fit(pixels(scenes[:cut])[::5], labels(scenes[:cut])[::5])
        return mean_iou(model.predict(pixels(scenes[cut:])[::5]), labels(scenes[cut:])[::5], classes)

    full = by_colour(many, 15)
    easy = by_colour([scene(seed, 48, "easy") for seed in range(24)], 15)
    assert full < 15
    assert easy > full + 25
