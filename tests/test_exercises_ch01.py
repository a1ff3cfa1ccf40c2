"""Chapter 1's self-checks accept right answers and see through the mistakes that are usually made."""

import numpy as np
import pytest

from mlore_edu.data.labels import MERGED_PART
from mlore_edu.exercises import ch01

X_TURNED = np.array([-1, 1, 1])[:, None, None]


def differs_from_a_neighbour(label_map):
    marked = np.zeros(label_map.shape, bool)
    down, right = label_map[1:] != label_map[:-1], label_map[:, 1:] != label_map[:, :-1]
    marked[1:] |= down
    marked[:-1] |= down
    marked[:, 1:] |= right
    marked[:, :-1] |= right
    return marked


def laplacian(label_map):
    ids = np.pad(label_map.astype(int), 1, mode="edge")
    return ids[2:, 1:-1] + ids[:-2, 1:-1] + ids[1:-1, 2:] + ids[1:-1, :-2] != 4 * ids[1:-1, 1:-1]


def enlarge(depth, zoom):
    return np.kron(depth, np.ones((zoom, zoom)))


def merge(masks, shape):
    merged = np.zeros(shape, int)
    for name, mask in masks.items():
        merged[mask > 0] = MERGED_PART[name]
    return merged if merged.any() else np.full(shape, 255)


RIGHT = [
    (ch01.check_flip, lambda normals: normals[:, :, ::-1] * X_TURNED),
    (ch01.check_decode_semseg, lambda stored: stored - np.uint8(1)),
    (ch01.check_decode_semseg, lambda stored: np.where(stored == 0, 255, stored.astype(int) - 1)),
    (ch01.check_boundaries, differs_from_a_neighbour),
    (ch01.check_zoom, lambda depth, zoom: enlarge(depth, zoom) / zoom),
    (ch01.check_merge_parts, merge),
]

WRONG = [
    (ch01.check_flip, lambda normals: normals[:, :, ::-1], "vectors did not turn"),
    (ch01.check_flip, lambda normals: normals * X_TURNED, "wrong way"),
    (ch01.check_flip, lambda normals: normals[:, :, ::-1] * -X_TURNED, "wrong way"),
    (ch01.check_flip, lambda normals: normals[:, ::-1] * X_TURNED, "wrong way"),
    (ch01.check_flip, lambda normals: normals[:2], "shape"),
    (ch01.check_decode_semseg, lambda stored: stored, "one too high"),
    (ch01.check_decode_semseg, lambda stored: stored.astype(int) - 1, "should become 255"),
    (ch01.check_decode_semseg, lambda stored: np.where(stored == 0, 255, stored), "wrong number"),
    (ch01.check_boundaries, lambda label_map: label_map >= 0, "one class has no boundary"),
    (ch01.check_boundaries, laplacian, "the middle ones too"),
    (
        ch01.check_boundaries,
        lambda label_map: differs_from_a_neighbour(label_map) | (label_map == 459),
        "Around the corner",
    ),
    (ch01.check_zoom, lambda depth, zoom: enlarge(depth, zoom), "metres are the old ones"),
    (ch01.check_zoom, lambda depth, zoom: enlarge(depth, zoom) * zoom, "depths are wrong"),
    (ch01.check_zoom, lambda depth, zoom: enlarge(depth, 2) / 2, "shape"),
    (ch01.check_zoom, lambda depth, zoom: depth / zoom, "shape"),
    (ch01.check_merge_parts, lambda masks, shape: np.where(merge(masks, shape) == 255, 0, merge(masks, shape)), "255"),
    (ch01.check_merge_parts, lambda masks, shape: merge(masks, shape) % 255 // 2, "wrong number"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_is_correct(check, answer, capsys):
    assert check(answer)
    assert capsys.readouterr().out.endswith(": correct.\n")


@pytest.mark.parametrize(("check", "answer", "reason"), WRONG)
def test_a_usual_mistake_is_named_and_gets_a_hint(check, answer, reason, capsys):
    assert not check(answer)
    printed = capsys.readouterr().out
    assert reason in printed
    assert "Hint: " in printed


def flip_in_place(normals):
    normals[0] *= -1
    return normals[:, :, ::-1]


def test_changing_the_readers_input_is_noticed(capsys):
    assert not ch01.check_flip(flip_in_place)
    assert "have been changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "check",
    [ch01.check_flip, ch01.check_decode_semseg, ch01.check_boundaries, ch01.check_zoom, ch01.check_merge_parts],
)
def test_the_empty_stub_is_not_answered(check, capsys):
    assert not check(lambda *arguments: ...)
    assert "not answered yet" in capsys.readouterr().out
