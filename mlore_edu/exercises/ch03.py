"""Self-checks of chapter 3: first losses, the learning rate's schedule, the head, the decoder's size, safe averages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.baseline import BaselineDecoder
from mlore_edu.exercises import answered, exercise
from mlore_edu.heads import PredictionHead
from mlore_edu.losses import weighted_bce
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2


@exercise("3.1", hint="At logit 0 every pixel costs ln 2; only its weight depends on whether it is a boundary.")
def check_first_edge_loss(answer: Any) -> None:
    """``answer(share, weight)``: the boundary loss of a network whose logits are all 0."""
    for boundaries in (1, 3, 16):
        for weight in (0.5, 0.8, 0.95):
            target = (torch.arange(16) < boundaries).double().reshape(1, 1, 4, 4)  # (1, 1, 4, 4)
            truth = float(weighted_bce(torch.zeros_like(target), target, weight))
            value = float(answered(answer(boundaries / 16, weight)))
            where = f"With a share of {boundaries}/16 and w = {weight}"
            assert math.isclose(value, truth, rel_tol=1e-6), f"{where} the loss is {truth:.4f}, not {value:.4f}."


@exercise("3.2", hint="Raise the share of steps that are still to come to the given power.")
def check_poly(answer: Any) -> None:
    """``answer(step, steps, rate, power)``: the learning rate of a step, the first being step 0."""
    for step, steps, rate, power in ((0, 10, 4e-3, 0.9), (5, 10, 4e-3, 1.0), (9, 10, 2e-5, 0.9), (30, 40, 1.0, 0.5)):
        truth = rate * (1 - step / steps) ** power
        value = float(answered(answer(step, steps, rate, power)))
        where = f"Step {step} of {steps} from {rate} with power {power}"
        assert math.isclose(value, truth, rel_tol=1e-6), f"{where} has the rate {truth:.4g}, not {value:.4g}."


@exercise("3.3", hint="Resize first, then conv 3×3, BatchNorm, GELU and conv 1×1, as attributes in that order.")
def check_head(answer: Any) -> None:
    """``answer(in_channels, channels, size)``: a module that equals PredictionHead once it has its weights."""
    torch.manual_seed(0)
    theirs, ours = answered(answer(8, 3, (12, 16))), PredictionHead(8, 3, (12, 16))
    assert isinstance(theirs, nn.Module), "The head should be an nn.Module."
    shapes, wanted = ([tuple(p.shape) for p in head.parameters()] for head in (theirs, ours))
    assert shapes == wanted, f"Its parameters should have the shapes {wanted}, not {shapes}."
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    features = torch.randn(2, 8, 3, 4)
    output = answered(theirs(features))  # (2, 3, 12, 16)
    assert output.shape == (2, 3, 12, 16), f"The prediction should be (2, 3, 12, 16), not {tuple(output.shape)}."
    assert torch.allclose(output, ours(features), atol=1e-5), "With the library's weights it predicts something else."


@exercise("3.4", hint="A 1×1 convolution from c to n channels has c·n weights and n biases; here n = T·C.")
def check_decoder_parameters(answer: Any) -> None:
    """``answer(map_channels, tasks, channels)``: parameters of the baseline decoder."""
    for tasks in (DOLLHOUSE, NYUD_V2):
        for map_channels, channels in (((32, 96, 96, 96), 32), ((18, 36, 72, 144), 40)):
            decoder = BaselineDecoder(tasks, [MapShape(c, 2, 2) for c in map_channels], channels)
            truth = sum(parameter.numel() for parameter in decoder.parameters())
            value = answered(answer(map_channels, len(tasks), channels))
            where = f"Maps of {map_channels} channels, {len(tasks)} tasks, C = {channels}"
            assert value == truth, f"{where}: {truth} parameters, not {value}."


@exercise("3.5", hint="torch.where(valid, per_pixel, 0.0) removes the rest; divide by the count, but never by 0.")
def check_mean_over(answer: Any) -> None:
    """``answer(per_pixel, valid)``: mean over the valid pixels, exactly 0 with gradient 0 where there is none."""
    per_pixel = torch.tensor([1.0, float("inf"), 3.0, float("nan")], requires_grad=True)
    valid = torch.tensor([True, False, True, False])
    value = torch.as_tensor(answered(answer(per_pixel, valid)))
    mean = value.item()
    assert mean == 2, f"The mean of 1 and 3 is 2, not {mean:g}; what is ignored may be inf or nan."
    value = torch.as_tensor(answered(answer(per_pixel, torch.zeros_like(valid))))
    assert value.item() == 0, f"Without a valid pixel the loss should be 0, not {value.item():g}."
    assert value.requires_grad, "The 0 of an empty batch should still hang on the prediction."
    (gradient,) = torch.autograd.grad(value, per_pixel)
    assert bool((gradient == 0).all()), f"Without a valid pixel the gradient should be 0, not {gradient.tolist()}."
