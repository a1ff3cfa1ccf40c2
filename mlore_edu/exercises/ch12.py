"""Self-checks of chapter 12: what bilinear reading sees, projecting before aligning, its price, the size of SAFF."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mlore_edu.decoders.base import MapShape, resize
from mlore_edu.decoders.pyramid import align
from mlore_edu.decoders.tif import ScaleAttentiveFusion
from mlore_edu.exercises import answered, exercise


def _share_seen(factor: int) -> float:
    """Share of the pixels that bilinear reading at 1/factor depends on, by its gradient."""
    pixels = torch.zeros(1, 1, 3 * factor, 3 * factor, requires_grad=True)
    (seen,) = torch.autograd.grad(resize(pixels, (3, 3)).sum(), pixels)
    return (seen != 0).float().mean().item()


@exercise("12.1", hint="An even factor puts every reading between two pixels, an odd one on top of one.")
def check_share_seen(answer: Any) -> None:
    """``answer(factor)``: share of a map's pixels that bilinear reading at 1/factor looks at."""
    for factor in (2, 4, 8, 3, 5, 1):
        value, truth = float(answered(answer(factor))), _share_seen(factor)
        message = f"At 1/{factor} it looks at {truth:.3f} of the pixels, not at {value:.3f}."
        assert abs(value - truth) < 1e-6, message


@exercise("12.2", hint="Split W by the channels of the sources, give each its own columns, and add the bias once.")
def check_projected_first(answer: Any) -> None:
    """``answer(sources, W, b, size)``: Y of Eq. 2, every source projected before it is aligned."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 16, 16), (3, 4, 4), (4, 2, 2))  # of the sources, for a target of 8 × 8
    sources = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weight = torch.randn(6, 12, generator=generator, dtype=torch.float64)  # (C, 12)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    together = torch.cat([align(source, (8, 8)) for source in sources], dim=1)  # (B, 12, 8, 8)
    truth = F.conv2d(together, weight[:, :, None, None], bias)  # (B, C, 8, 8)
    value = answered(answer(sources, weight, bias, (8, 8)))
    assert tuple(value.shape) == tuple(truth.shape), (
        f"Y should have the shape {tuple(truth.shape)}, not {tuple(value.shape)}."
    )
    error = (value - truth).abs().amax(dim=(0, 2, 3))
    assert error.max() < 1e-9, f"Channel {int(error.argmax())} of Y is off by up to {error.max().item():.2g}."


PYRAMIDS = (((96, 192, 384, 768), (112, 144)), ((18, 36, 72, 144), (64, 64)), ((32, 96, 96, 96), (32, 32)))
"""Channels of four scales, and the size of the finest."""


@exercise("12.3", hint="A source is projected wherever it has fewer tokens: at its own size or at the target's.")
def check_cheapest(answer: Any) -> None:
    """``answer(channels, tokens, i, C)``: multiply-accumulates of W_i, each source projected where it costs less."""
    for channels, (height, width) in PYRAMIDS:
        tokens = [(height >> scale) * (width >> scale) for scale in range(4)]
        for target in range(4):
            others = [scale for scale in range(4) if scale != target]
            truth = 32 * sum(min(tokens[target], tokens[other]) * channels[other] for other in others)
            value = answered(answer(channels, tokens, target, 32))
            where = f"For scale {target} of {tuple(channels)} channels and {tuple(tokens)} tokens"
            assert value == truth, f"{where} it takes {truth}, not {value}."


@exercise("12.4", hint="Count XL with its BatchNorm, W_i, two 3×3 convolutions, 3×3 for each channel, and a 1×1.")
def check_saff_size(answer: Any) -> None:
    """``answer(channels, i, C)``: parameters of SAFF at scale i, biases and BatchNorm included."""
    for channels, _ in PYRAMIDS:
        for scale, width in ((0, 88), (3, 96), (1, 5)):
            with torch.device("meta"):
                fusion = ScaleAttentiveFusion([MapShape(c, 8, 8) for c in channels], scale, width)
            truth = sum(parameter.numel() for parameter in fusion.parameters())
            value = answered(answer(channels, scale, width))
            where = f"With {tuple(channels)} channels, i = {scale} and C = {width}"
            assert value == truth, f"{where} there are {truth} parameters, not {value}."
