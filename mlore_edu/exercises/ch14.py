"""Self-checks of chapter 14: where attention overtakes, sums of affinities, effective numbers, who is wanted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mlore_edu.exercises import answered, exercise


@exercise("14.1", hint="Divide both terms by C times n: what is left of the first has no n in it.")
def check_overtakes(answer: Any) -> None:
    """``answer(C, N, r)``: the number of tokens at which attention costs as much as the linear maps."""
    for width, maps, ratio in ((96, 4, 2), (32, 6, 2), (7, 1, 4)):
        n = float(answered(answer(width, maps, ratio)))
        linear, attention = (1 + maps + 2 * ratio) * width**2 * n, 2 * width * n**2
        message = f"With C = {width}, N = {maps}, r = {ratio} and {n:g} tokens it is {linear:g} against {attention:g}."
        assert n > 0, "Without tokens nothing costs anything; there is another number."
        assert math.isclose(linear, attention), message


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@exercise("14.2", hint="Set queries beside queries and keys beside keys; multiply one of the two by its weight.")
def check_factors(answer: Any) -> None:
    """``answer(pairs, weights)``: one pair of factors whose product is the weighted sum of the pairs' products."""
    generator = torch.Generator().manual_seed(0)
    for n, widths, weights in ((5, (3,), (2.0,)), (6, (4, 2), (1.0, 1.0)), (4, (2, 3, 1), (0.5, -1.0, 3.0))):
        pairs = [(_random(generator, n, width), _random(generator, n, width)) for width in widths]
        queries, keys = answered(answer(pairs, list(weights)))
        truth = sum((w * q @ k.T for w, (q, k) in zip(weights, pairs)), torch.zeros(n, n, dtype=torch.float64))
        shape = (n, sum(widths))
        assert tuple(queries.shape) == tuple(keys.shape) == shape, f"Both factors should have the shape {shape}."
        assert torch.allclose(queries @ keys.T, truth), f"With the weights {weights} the product is not the sum."


@exercise("14.3", hint="A weight of zero adds nothing: torch.special.entr(0) is 0, while 0 * log(0) is not a number.")
def check_effective(answer: Any) -> None:
    """``answer(weights)``: e to the entropy of every row."""
    for count in (1, 2, 8):
        weights = torch.zeros(2, 3, 8, dtype=torch.float64)
        weights[..., :count] = 1 / count
        value = answered(answer(weights))
        shape = tuple(value.shape)
        assert shape == (2, 3), f"For weights of the shape (2, 3, 8) the answer should have (2, 3), not {shape}."
        right = torch.allclose(value, torch.full((2, 3), float(count), dtype=torch.float64))
        assert right, f"If {count} of 8 tokens have equal weights the number is {value[0, 0].item():.2f}, not {count}."
    row = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert math.isclose(float(answer(row)), 2**1.5), "For weights of 1/2, 1/4 and 1/4 it should be 2 to the power 1.5."


@exercise("14.4", hint="The softmax runs over those who are asked; the sum that is wanted, over those who ask.")
def check_wanted(answer: Any) -> None:
    """``answer(Q, K)``: the sum of every column of the weights."""
    generator = torch.Generator().manual_seed(0)
    for n, width in ((1, 2), (7, 3)):
        queries, keys = _random(generator, n, width), _random(generator, n, width)
        value = answered(answer(queries, keys))
        shape = tuple(value.shape)
        assert shape == (n,), f"For {n} tokens the answer should have the shape ({n},), not {shape}."
        truth = torch.stack([(query @ keys.T).softmax(dim=0) for query in queries]).sum(dim=0)  # (n,)
        assert torch.allclose(value, truth), f"With {n} tokens some are wanted more or less than that."
