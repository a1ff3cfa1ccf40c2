"""The self-checks of chapter 12 accept right answers, and answer wrong ones with a hint."""

import torch
import torch.nn.functional as F

from mlore_edu.decoders.pyramid import align
from mlore_edu.exercises import ch12


def share_seen(factor):
    read = 1 if factor % 2 else 2
    return (read / factor) ** 2


def projected_first(sources, weight, bias, size, bias_each_time=False, right_columns=True):
    total, start = 0, 0
    for source in sources:
        columns = weight[:, start : start + source.shape[1]] if right_columns else weight[:, : source.shape[1]]
        once = bias if bias_each_time or start == 0 else None
        total = total + align(F.conv2d(source, columns[:, :, None, None], once), size)
        start += source.shape[1]
    return total


def cheapest(channels, tokens, target, width, choose=min):
    others = [scale for scale in range(4) if scale != target]
    return width * sum(choose(tokens[target], tokens[scale]) * channels[scale] for scale in others)


def saff_size(channels, scale, width):
    others = sum(channels) - channels[scale]
    narrow = channels[scale] * width + 2 * width
    gather = (others + 1) * width
    fuse = (18 * width + 1) * width + (9 * width + 1) * width
    return narrow + gather + fuse + 10 * width + (width + 1) * width


ANSWERS = {
    ch12.check_share_seen: (
        share_seen,
        lambda factor: 1.0,
        lambda factor: min(1.0, 4 / factor**2),  # odd factors read one pixel
        lambda factor: 2 / factor,  # one direction only
    ),
    ch12.check_projected_first: (
        projected_first,
        lambda *given: projected_first(*given, bias_each_time=True),
        lambda *given: projected_first(*given, right_columns=False),
        lambda sources, weight, bias, size: F.conv2d(sources[0], weight[:, :5, None, None], bias),
    ),
    ch12.check_cheapest: (
        cheapest,
        lambda *given: cheapest(*given, choose=lambda target, source: target),  # as printed
        lambda *given: cheapest(*given, choose=lambda target, source: source),  # always before aligning
        lambda *given: cheapest(*given, choose=max),
    ),
    ch12.check_saff_size: (
        saff_size,
        lambda channels, scale, width: saff_size(channels, scale, width) - 2 * width,  # forgets BatchNorm
        lambda channels, scale, width: saff_size(channels, scale, width) + 9 * width * (width - 1),  # not depthwise
        lambda channels, scale, width: saff_size(channels, scale, width) + channels[scale] * width,  # W_i of all four
    ),
}


def test_projecting_first_is_exact_for_other_sizes_and_in_single_precision():
    generator = torch.Generator().manual_seed(1)
    sources = [torch.randn(1, 4, side, side, generator=generator) for side in (32, 4)]
    weight, bias = torch.randn(3, 8, generator=generator), torch.randn(3, generator=generator)
    together = torch.cat([align(source, (8, 8)) for source in sources], dim=1)
    expected = F.conv2d(together, weight[:, :, None, None], bias)
    torch.testing.assert_close(projected_first(sources, weight, bias, (8, 8)), expected)
