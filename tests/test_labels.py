"""The encodings of labels: read back what was stored, and the field's rules on hand-made maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import thin as reference_thin

from mlore_edu.data import labels


def random_unit_vectors(shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(*shape, 3))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_normals_survive_eight_bits_within_four_tenths_of_a_degree():
    normals = random_unit_vectors((100, 100))
    stored = labels.encode_normals(normals)
    assert stored.dtype == np.uint8
    read = labels.decode_normals(stored)
    degrees = np.degrees(np.arccos(np.clip((read.astype(np.float64) * normals).sum(-1), -1, 1)))
    assert degrees.max() < 0.4
    assert np.linalg.norm(read, axis=-1) == pytest.approx(1, abs=1e-6)


@given(arrays(np.uint8, (2, 3, 3)))
def test_decoded_normals_are_two_v_over_255_minus_one_made_unit(pixels):
    for pixel, normal in zip(pixels.reshape(-1, 3), labels.decode_normals(pixels).reshape(-1, 3)):
        expected = [2 * int(v) / 255 - 1 for v in pixel]
        length = sum(c * c for c in expected) ** 0.5
        assert normal == pytest.approx([c / length for c in expected], abs=1e-5)


def test_a_zero_normal_cannot_be_stored_but_short_vectors_can_be_told_apart():
    stored = labels.encode_normals(np.zeros((1, 1, 3)))
    assert np.linalg.norm(labels.decode_normals(stored)) == pytest.approx(1)  # NYUD-v2: not masked
    assert not labels.decode_normals(stored, shortest=0.5).any()  # Dollhouse: ignored


def test_pascal_normals_are_kept_only_where_nyu_knows_the_class():
    wall, potted_plant, nothing = labels.LABELMAP_IDS["wall"], labels.LABELMAP_IDS["pottedplant"], 0
    normals = random_unit_vectors((1, 3))
    trusted = labels.trusted_normals(np.array([[wall, potted_plant, nothing]]))
    assert (trusted.dtype, trusted.tolist()) == (np.uint8, [[1, 0, 0]])
    masked = labels.mask_normals(normals, trusted)
    assert (masked[0, 0] == normals[0, 0]).all()
    assert not masked[0, 1:].any()
    assert masked.dtype == np.float32


def test_there_are_459_classes_and_170_with_normals():
    assert sorted(labels.LABELMAP_IDS.values()) == list(range(1, 460))
    assert len(set(labels.NORMALS_VALID_IDS)) == 170
    assert set(labels.NORMALS_VALID_IDS) <= set(labels.LABELMAP_IDS.values())


def test_depth_in_millimetres_keeps_half_a_millimetre_and_invalid_stays_zero():
    depth = np.array([[0.0, -1.0, np.nan, np.inf, 0.0004, 2.3456, 70.0]], np.float32)
    stored = labels.encode_depth(depth)
    assert stored.tolist() == [[0, 0, 0, 0, 0, 2346, 65535]]
    assert labels.decode_depth(stored)[0, 5] == pytest.approx(2.346)
    assert labels.decode_depth(stored).dtype == np.float32


def test_valid_depth_leaves_good_metres_alone():
    depth = np.array([[0.5, -0.1, np.nan, 79.0]])
    assert labels.valid_depth(depth).tolist() == [[0.5, 0.0, 0.0, 79.0]]


def test_nyud_classes_lose_one_and_unlabelled_becomes_255():
    stored = np.arange(41, dtype=np.uint8)
    semseg = labels.decode_nyud_semseg(stored)
    assert semseg.tolist() == [255, *range(40)]
    assert (labels.encode_nyud_semseg(semseg) == stored).all()


def test_saliency_is_above_one_half():
    assert labels.decode_saliency(np.array([0, 127, 128, 255], np.uint8)).tolist() == [0, 0, 1, 1]


def test_the_boundary_of_two_halves_is_one_line_between_them():
    labelmap = np.full((6, 8), 3)
    labelmap[:, 4:] = 7
    boundary = labels.labelmap_boundaries(labelmap)
    assert boundary.dtype == np.uint8
    assert boundary[:, [0, 1, 2, 5, 6, 7]].sum() == 0
    assert (boundary[1:-1].sum(1) == 1).all()


def test_a_map_of_one_class_has_no_boundary():
    assert labels.labelmap_boundaries(np.full((5, 5), 9)).sum() == 0


def naive_laplacian(labelmap):
    height, width = labelmap.shape
    out = np.zeros(labelmap.shape, bool)
    for i in range(height):
        for j in range(width):
            total = -4 * int(labelmap[i, j])
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                k, m = abs(i + di), abs(j + dj)  # mirrored at the border, which is not repeated
                k, m = (2 * (height - 1) - k if k >= height else k), (2 * (width - 1) - m if m >= width else m)
                total += int(labelmap[k, m])
            out[i, j] = total != 0
    return out


@settings(max_examples=25)
@given(arrays(np.uint16, (7, 9), elements=st.sampled_from([1, 2, 3, 459])))
def test_boundaries_are_the_thinned_pixels_of_non_zero_laplacian(labelmap):
    assert (labels.labelmap_boundaries(labelmap) == reference_thin(naive_laplacian(labelmap))).all()


@settings(max_examples=50)
@given(arrays(bool, (12, 15)))
def test_thinning_agrees_with_scikit_image(mask):
    assert (labels.thin(mask) == reference_thin(mask)).all()


def test_thinning_agrees_with_scikit_image_on_thick_shapes():
    y, x = np.mgrid[:60, :70]
    shapes = (np.hypot(y - 30, x - 30) < 20) ^ (np.hypot(y - 30, x - 35) < 9) | (abs(y - x) < 4)
    assert (labels.thin(shapes) == reference_thin(shapes)).all()


def test_every_part_name_of_pascal_part_is_merged_into_one_of_six():
    in_order = "head leye reye lear rear lebrow rebrow nose mouth hair torso neck llarm luarm lhand rlarm ruarm rhand "
    in_order += "llleg luleg lfoot rlleg ruleg rfoot"  # PASCAL-Part numbers them from 1 to 24
    merged = labels.MERGED_PART
    assert set(merged) == set(in_order.split())
    assert {merged["hair"], merged["lear"], merged["rebrow"], merged["leye"], merged["mouth"], merged["nose"]} == {1}
    assert {merged["neck"], merged["torso"]} == {2}
    assert {merged["luarm"], merged["ruarm"]} == {3}
    assert {merged["llarm"], merged["rlarm"], merged["lhand"], merged["rhand"]} == {4}
    assert {merged["luleg"], merged["ruleg"]} == {5}
    assert {merged["llleg"], merged["rlleg"], merged["lfoot"], merged["rfoot"]} == {6}


def pixel(i, j):
    mask = np.zeros((2, 3), np.uint8)
    mask[i, j] = 1
    return mask


def test_parts_of_all_people_are_merged_and_other_objects_are_left_out():
    horse = {"class_ind": 13, "parts": [{"part_name": "head", "mask": pixel(0, 0)}]}
    first = {"class_ind": 15, "parts": [{"part_name": "lear", "mask": pixel(0, 1)}]}
    second = {"class_ind": 15, "parts": {"part_name": "rfoot", "mask": pixel(1, 2)}}  # a single part has no list
    without = {"class_ind": 15, "parts": np.zeros((0, 0))}
    merged = labels.merge_person_parts({"objects": [horse, first, second, without]}, (2, 3))
    assert merged.tolist() == [[0, 1, 0], [0, 0, 6]]
    assert merged.dtype == np.uint8


def test_a_later_part_covers_an_earlier_one():
    parts = [{"part_name": "torso", "mask": np.ones((2, 3))}, {"part_name": "hair", "mask": pixel(0, 0)}]
    merged = labels.merge_person_parts({"objects": {"class_ind": 15, "parts": parts}}, (2, 3))
    assert merged.tolist() == [[1, 2, 2], [2, 2, 2]]


def test_an_unknown_part_and_a_mask_of_another_size_are_refused():
    def person(name, mask):
        return {"objects": {"class_ind": 15, "parts": {"part_name": name, "mask": mask}}}

    with pytest.raises(KeyError, match="wing"):
        labels.merge_person_parts(person("wing", pixel(0, 0)), (2, 3))
    with pytest.raises(ValueError, match="torso has size"):
        labels.merge_person_parts(person("torso", np.ones((3, 3))), (2, 3))


def test_an_image_without_parts_is_ignored_as_a_whole():
    assert (labels.no_parts_ignored(np.zeros((2, 2), np.uint8)) == 255).all()
    parts = np.array([[0, 4], [255, 0]], np.uint8)
    assert (labels.no_parts_ignored(parts) == parts).all()
