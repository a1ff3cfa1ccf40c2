"""What every decoder takes and gives, so that one model class serves them all (chapter 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor


class MapShape(NamedTuple):
    """Shape of one feature map of a backbone, without the batch: what a decoder must know to be built."""

    channels: int
    height: int
    width: int


class DecoderOutput(NamedTuple):
    """What a decoder hands to the prediction heads.

    Attributes
    ----------
    features
        One map ``(B, C, h, w)`` per task.
    balance_loss
        Scalar that keeps the experts of a mixture equally busy; zero where there is none. The training loop adds it.
    routing
        Named gates, for pictures and analysis; empty where nothing is routed.
    """

    features: dict[str, Tensor]
    balance_loss: Tensor
    routing: dict[str, Tensor]


class Decoder(Protocol):
    """A module built as ``Class(tasks, maps, channels=…, **options)`` that turns four maps into one map per task.

    ``channels`` is the width C of the features it returns; the heads are built from it.
    """

    channels: int

    def __call__(self, maps: Sequence[Tensor]) -> DecoderOutput: ...


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly.

    The corners of the *pixels* are aligned, not their centres (``align_corners=False``): pixel i of n covers
    [i/n, (i+1)/n] of the image at every resolution, so maps of different strides lie exactly on each other.

    Parameters
    ----------
    maps
        ``(B, C, h, w)``.
    size
        ``(H, W)`` wanted.

    Returns
    -------
    Tensor
        ``(B, C, H, W)``; the argument itself where it already has that size.
    """
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)  # (B, C, H, W)
