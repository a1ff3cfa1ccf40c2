"""Self-checks of chapter 8: folding a BatchNorm forwards, the identity as a kernel, the right padding, a crossing."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlore_edu.exercises import answered, exercise


def _random(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _off(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).abs().max() / truth.abs().max())


@exercise("8.1", hint="Write out W (a x + d) + b: what multiplies x, and what is left over?")
def check_fold_first(answer: Any) -> None:
    """``answer(scale, shift, weight, bias)``: a scale and shift, then a 1×1 convolution, as one 1×1 convolution."""
    x, scale, shift, weight, bias = _random((2, 3, 4, 5), (3,), (3,), (6, 3), (6,))
    truth = F.conv2d(x * scale[:, None, None] + shift[:, None, None], weight[..., None, None], bias)
    new_weight, new_bias = answered(answer(scale.clone(), shift.clone(), weight.clone(), bias.clone()))
    shapes = tuple(new_weight.shape), tuple(new_bias.shape)
    assert shapes == ((6, 3), (6,)), f"The weight and bias should have the shapes (6, 3) and (6,), not {shapes}."
    no_bias = F.conv2d(x, new_weight[..., None, None]) - F.conv2d(x * scale[:, None, None], weight[..., None, None])
    assert no_bias.abs().max() < 1e-9, "The weight does not scale the inputs as the BatchNorm does."
    ours = F.conv2d(x, new_weight[..., None, None], new_bias)
    assert _off(ours, truth) < 1e-9, "The weight is right, the bias is not."


@exercise("8.2", hint="Only one of the k × k matrices of the kernel reads the pixel itself.")
def check_identity_kernel(answer: Any) -> None:
    """``answer(channels, size)``: the weight of a convolution that returns its input."""
    for channels, size in ((1, 3), (4, 3), (3, 5), (2, 1)):
        weight = answered(answer(channels, size))
        wanted = (channels, channels, size, size)
        assert tuple(weight.shape) == wanted, f"The weight should have the shape {wanted}, not {tuple(weight.shape)}."
        (x,) = _random((2, channels, 6, 7))
        ours = F.conv2d(x, weight.double(), padding=size // 2)
        assert _off(ours, x) < 1e-9, f"With {channels} channels and size {size} the output is not the input."


@exercise("8.3", hint="Beyond the border the 3×3 convolution must see zeros. What turns into zeros under P and q?")
def check_padding(answer: Any) -> None:
    """``answer(P, q)``: the constant to pad the input of the composed convolution with."""
    x, first, bias, second = _random((2, 4, 5, 6), (4, 4), (4,), (3, 4, 3, 3))
    truth = F.conv2d(F.conv2d(x, first[..., None, None], bias), second, padding=1)
    constant = answered(answer(first.clone(), bias.clone()))
    assert tuple(constant.shape) == (4,), f"The constant should have the shape (4,), not {tuple(constant.shape)}."
    padded = constant[:, None, None] + F.pad(x - constant[:, None, None], (1, 1, 1, 1))  # (2, 4, 7, 8)
    composed = torch.einsum("omij,mc->ocij", second, first)
    ours = F.conv2d(padded, composed, second.sum((2, 3)) @ bias)
    assert _off(ours[..., 1:-1, 1:-1], truth[..., 1:-1, 1:-1]) < 1e-9  # holds whatever the answer
    assert _off(ours, truth) < 1e-9, "At the border the composed convolution still gives something else."


@exercise("8.4", hint="Write both sides per image and task, divide by C, and solve for L; mind the sign.")
def check_crossing(answer: Any) -> None:
    """``answer(C, R)``: number of tokens from which mixing on the fly is cheaper where there is no generic path."""
    for width, ranks in ((640, 1080), (384, 1080), (100, 91), (192, 540)):
        value = float(answered(answer(width, ranks)))
        truth = 9 * width * ranks / (10 * ranks - 9 * width)
        where = f"With C = {width} and R = {ranks}"
        assert value != 0.9 * width, f"{where} this is the crossing with a generic path."
        assert math.isclose(value, truth, rel_tol=1e-9), f"{where} the forms cost the same at another number of tokens."
    for width, ranks in ((640, 500), (100, 90)):
        value = float(answered(answer(width, ranks)))
        assert value == math.inf, f"With C = {width} and R = {ranks} mixing on the fly never costs less."
