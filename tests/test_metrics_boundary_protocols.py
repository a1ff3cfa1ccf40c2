"""The variants of the boundary protocol are those of the field, and a list of images decides which ones count."""

import math
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch

from mlore_edu.errors import UserError
from mlore_edu.metrics import (
    BOUNDARY_PROTOCOLS,
    DOLLHOUSE_BOUNDARY,
    NYUD_BOUNDARY,
    PASCAL_BOUNDARY,
    BoundaryF,
    BoundaryName,
    BoundaryProtocol,
    ignore_unlisted,
    read_image_ids,
)


def test_the_named_protocols_are_those_of_the_field():
    assert len(PASCAL_BOUNDARY.thresholds) == len(NYUD_BOUNDARY.thresholds) == 101
    assert PASCAL_BOUNDARY.thresholds[:3] == (0.001, 0.01, 0.02)
    assert PASCAL_BOUNDARY.thresholds[-2:] == (0.99, 0.999)
    assert (PASCAL_BOUNDARY.max_distance, NYUD_BOUNDARY.max_distance) == (0.0075, 0.011)
    assert replace(PASCAL_BOUNDARY, max_distance=0.011, truth_is_regions=True) == NYUD_BOUNDARY
    assert 2 <= DOLLHOUSE_BOUNDARY.max_distance * math.hypot(64, 64) < 2.1
    assert len(DOLLHOUSE_BOUNDARY.thresholds) == 19


def test_every_variant_has_a_name_and_differs_from_its_parent_in_one_choice():
    assert get_args(BoundaryName) == tuple(BOUNDARY_PROTOCOLS)
    assert len(set(BOUNDARY_PROTOCOLS.values())) == len(BOUNDARY_PROTOCOLS)
    for name, protocol in BOUNDARY_PROTOCOLS.items():
        parent = BOUNDARY_PROTOCOLS[name.split("_")[0]]
        changed = [
            field.name for field in fields(protocol) if getattr(protocol, field.name) != getattr(parent, field.name)
        ]
        assert len(changed) == (protocol != parent), changed


def test_the_variants_say_what_their_names_say():
    assert BOUNDARY_PROTOCOLS["pascal_99"].thresholds == PASCAL_BOUNDARY.thresholds[1:-1]
    assert BOUNDARY_PROTOCOLS["pascal_unsuppressed"] == replace(PASCAL_BOUNDARY, suppress=False)
    assert BOUNDARY_PROTOCOLS["pascal_presmoothed"] == replace(PASCAL_BOUNDARY, presmoothing_radius=1)
    assert BOUNDARY_PROTOCOLS["nyud_narrow"].max_distance == PASCAL_BOUNDARY.max_distance
    assert BOUNDARY_PROTOCOLS["nyud_drawn_once"] == replace(PASCAL_BOUNDARY, max_distance=0.011)


@pytest.mark.parametrize(
    "wrong",
    [
        {"thresholds": ()},
        {"thresholds": (0.5, 0.2)},
        {"thresholds": (0.5, 1.0)},
        {"thresholds": (-0.1,)},
        {"max_distance": 2},
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match="give"):
        BoundaryProtocol(**wrong)


# ---- which images count


def test_images_that_are_not_listed_add_nothing():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(4, 20, 20, generator=generator)
    target = (torch.rand(4, 1, 20, 20, generator=generator) < 0.1).float()
    ids = ["2008_000002", "2008_000003", "2008_000007", "2008_000009"]
    listed, alone = BoundaryF(DOLLHOUSE_BOUNDARY), BoundaryF(DOLLHOUSE_BOUNDARY)
    before = target.clone()
    listed.update(prediction, ignore_unlisted(target, ids, {"2008_000003", "2008_000009"}))
    alone.update(prediction[[1, 3]], target[[1, 3]])
    assert str(listed.details()) == str(alone.details())
    assert listed.details()["images"] == 2
    assert torch.equal(target, before)


def test_the_list_is_a_text_file_with_an_id_a_line(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("2008_000003\n2008_000009\r\n\n2008_000003\n")
    assert read_image_ids(file, ["2008_000003", "2008_000007", "2008_000009"]) == {"2008_000003", "2008_000009"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"ids.txt cannot be read \(No such file or directory\); give a text file"),
        (b"\xff\xfe", r"cannot be read \(it is no text\); give"),
        (b"\n \n", "names no image; write one image id a line"),
        (b"a\nx1\nx2\n", "names 2 images that are not in the split, x1 among them; give ids"),
    ],
)
def test_a_list_that_does_not_fit_is_one_clear_sentence(tmp_path, content, sentence):
    file = tmp_path / "ids.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_image_ids(file, ["a", "b"])
