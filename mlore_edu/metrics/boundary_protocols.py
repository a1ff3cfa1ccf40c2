"""Every choice of the boundary evaluation, the variants in use by name, and which images count (appendix on matching).

Two odsF values can be compared only if they were made by the same variant on the same images; chapter 2 and the
appendix on boundary matching show how far apart the variants lie on one and the same predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from mlore_edu.errors import UserError
from mlore_edu.tasks import IGNORE


@dataclass(frozen=True)
class BoundaryProtocol:
    """Every choice of the boundary evaluation.

    Parameters
    ----------
    max_distance
        Largest distance of a matched pair, as a share of the image diagonal.
    thresholds
        Ascending, from 0 to below 1; a pixel is predicted where its probability is greater.
    levels
        The probability is rounded to multiples of 1/levels, as if stored in 8 bits; 0 leaves it as it is.
    suppress
        Whether to keep only the ridges of the probability (non-maximum suppression).
    presmoothing_radius
        Radius in pixels of a triangle filter that the probability passes through before it is suppressed; 0 for none.
    smoothing_radius
        Radius in pixels of the triangle filter under which the direction of a ridge is measured.
    suppression_radius
        A pixel stays if no neighbour up to so many pixels across the ridge has more than ``suppression_multiplier``
        times its value.
    border
        Width in pixels along the image border over which the suppressed map fades to 0.
    truth_is_regions
        Whether the target is first taken for a map of regions, whose outlines are drawn (seg2bmap): NYUD-v2's
        protocol does this to a target that is a boundary map already, and so doubles its lines.
    """

    max_distance: float = 0.0075
    thresholds: tuple[float, ...] = (0.001, *(k / 100 for k in range(1, 100)), 0.999)
    levels: int = 255
    suppress: bool = True
    presmoothing_radius: int = 0
    smoothing_radius: int = 4
    suppression_radius: int = 1
    suppression_multiplier: float = 1.01
    border: int = 5
    truth_is_regions: bool = False

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.thresholds, self.thresholds[1:]))
        if not self.thresholds or not ascending or not 0 <= self.thresholds[0] <= self.thresholds[-1] < 1:
            raise UserError("odsF: the thresholds are not ascending numbers from 0 to below 1; give at least one so.")
        if not 0 <= self.max_distance < 1:
            raise UserError(
                f"odsF: max_distance is {self.max_distance}; give a share of the diagonal from 0 to below 1."
            )


PASCAL_BOUNDARY = BoundaryProtocol()
"""PASCAL-Context: 0.0075 of the diagonal (4.7 pixels at 375×500), 101 thresholds.

Source: the boundary evaluation tools of InvPT's and TaskPrompter's authors, "identical to ATRC": SEISM with the
thresholds of its HED.txt.
"""

PASCAL_99_BOUNDARY = replace(PASCAL_BOUNDARY, thresholds=tuple(k / 100 for k in range(1, 100)))
"""Without the outermost two thresholds, the default of Dollár's edges toolbox and what pyEdgeEval advises."""

PASCAL_UNSUPPRESSED_BOUNDARY = replace(PASCAL_BOUNDARY, suppress=False)
"""Thresholds and thinning alone, as pyEdgeEval does unless told ``--apply-nms``."""

PASCAL_PRESMOOTHED_BOUNDARY = replace(PASCAL_BOUNDARY, presmoothing_radius=1)
"""The probability smoothed with (1, 2, 1) / 4 along both axes first, as pyEdgeEval's suppression does.

Source: measured on its outputs (appendix on boundary matching); its code was not read.
"""

NYUD_BOUNDARY = BoundaryProtocol(max_distance=0.011, truth_is_regions=True)
"""NYUD-v2: 0.011 of the diagonal (7.7 pixels at 425×560), 101 thresholds, the target drawn once more.

Source: as PASCAL-Context's; SEISM takes its targets for regions.
"""

NYUD_NARROW_BOUNDARY = replace(NYUD_BOUNDARY, max_distance=0.0075)
"""With the tolerance that SEISM has if nobody changes it for NYUD-v2 (brdav/atrc, issue 3)."""

NYUD_DRAWN_ONCE_BOUNDARY = replace(NYUD_BOUNDARY, truth_is_regions=False)
"""With the targets as they are: the boundaries they hold already."""

DOLLHOUSE_BOUNDARY = BoundaryProtocol(max_distance=0.0225, thresholds=tuple(k / 20 for k in range(1, 20)), border=0)
"""For the small images of the chapters: 2 pixels at 64×64, 19 thresholds, the border not faded.

PASCAL's share of the diagonal would be less than one pixel there and demand exact hits, and its faded border would be
an eighth of the image.
"""

BoundaryName: TypeAlias = Literal[
    "pascal",
    "pascal_99",
    "pascal_unsuppressed",
    "pascal_presmoothed",
    "nyud",
    "nyud_narrow",
    "nyud_drawn_once",
    "dollhouse",
]
"""Names of the variants, as recipes and the command line take them."""

BOUNDARY_PROTOCOLS: dict[str, BoundaryProtocol] = {
    "pascal": PASCAL_BOUNDARY,
    "pascal_99": PASCAL_99_BOUNDARY,
    "pascal_unsuppressed": PASCAL_UNSUPPRESSED_BOUNDARY,
    "pascal_presmoothed": PASCAL_PRESMOOTHED_BOUNDARY,
    "nyud": NYUD_BOUNDARY,
    "nyud_narrow": NYUD_NARROW_BOUNDARY,
    "nyud_drawn_once": NYUD_DRAWN_ONCE_BOUNDARY,
    "dollhouse": DOLLHOUSE_BOUNDARY,
}
"""The variants by name."""


def read_image_ids(file: Path, known: Collection[str]) -> frozenset[str]:
    """Read which images are to count, such as the 2,498 of PASCAL-Context behind published odsF values.

    Parameters
    ----------
    file
        Text with one id a line.
    known
        Ids of the split that is judged.

    Raises
    ------
    UserError
        If the file cannot be read, names no image, or one that the split has not.
    """
    try:
        ids = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{file} cannot be read ({reason}); give a text file with one image id a line.") from None
    if not ids:
        raise UserError(f"{file} names no image; write one image id a line.")
    split = set(known)
    unknown = [name for name in ids if name not in split]
    if unknown:
        raise UserError(
            f"{file} names {len(unknown)} images that are not in the split, {unknown[0]} among them; "
            "give ids of the split that is judged."
        )
    return frozenset(ids)


def ignore_unlisted(target: Tensor, image_ids: Sequence[str], listed: Collection[str]) -> Tensor:
    """Set the target of every image that is not listed to ignored, so that it adds nothing to any count.

    Parameters
    ----------
    target
        (B, …).
    image_ids
        One for each image of the batch.
    listed
        Ids of the images that count, as :func:`read_image_ids` gives them.

    Returns
    -------
    A tensor like ``target``; the original is untouched.
    """
    left_out = [index for index, name in enumerate(image_ids) if name not in listed]
    target = target.clone()
    target[left_out] = IGNORE
    return target
