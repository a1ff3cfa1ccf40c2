"""Self-checks of chapter 7: a collapsed router, chance, habit, and a map of places at another resolution."""

from __future__ import annotations

from itertools import pairwise
from math import comb
from typing import Any

import torch

from mlore_edu.exercises import answered, exercise


@exercise("7.1", hint="Multiply the matrices from the last to the first; each bias passes through what comes after it.")
def check_collapse(answer: Any) -> None:
    """``answer([(W1, b1), (W2, b2), (W3, b3)])``: the one ``(W, b)`` that equals the layers one after the other."""
    torch.manual_seed(0)
    sizes = (12, 3, 5, 7)
    layers = [(torch.randn(o, i).double(), torch.randn(o).double()) for i, o in pairwise(sizes)]
    weight, bias = answered(answer(layers))
    assert weight.shape == (7, 12), f"W should turn 12 numbers into 7 and be (7, 12), not {tuple(weight.shape)}."
    mean, zero = torch.randn(12).double(), torch.zeros(12).double()
    slope = _run(layers, mean) - _run(layers, zero)
    assert torch.allclose(weight @ mean, slope), "W is not the product of the layers' matrices."
    assert torch.allclose(weight @ mean + bias, _run(layers, mean)), "W is right; b is what the layers make of zeros."


def _run(layers: list[tuple[torch.Tensor, torch.Tensor]], vector: torch.Tensor) -> torch.Tensor:
    for weight, bias in layers:
        vector = weight @ vector + bias
    return vector


@exercise("7.2", hint="Every task has the expert among its own with probability k/N, whatever the others do: binomial.")
def check_chance(answer: Any) -> None:
    """``answer(served, tasks, k, experts)``: probability that an expert serves exactly ``served`` tasks."""
    for tasks, k, experts in ((5, 9, 15), (4, 9, 15), (3, 15, 15), (6, 1, 4)):
        for served in range(tasks + 1):
            share = k / experts
            truth = comb(tasks, served) * share**served * (1 - share) ** (tasks - served)
            value = float(answered(answer(served, tasks, k, experts)))
            where = f"{served} of {tasks} tasks, {k} of {experts} experts each"
            assert abs(value - truth) < 1e-9, f"{where}: {truth:.4f}, not {value:.4f}."


@exercise("7.3", hint="Shuffled tasks are independent: multiply each task's rate for an expert over the tasks.")
def check_habit(answer: Any) -> None:
    """``answer(active)``, bool ``(images, T, N)``: how often each expert serves all tasks once images are shuffled."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(40, 3, 4, generator=generator) < torch.tensor([0.2, 0.5, 0.9, 1.0])  # (40, 3, 4)
    active[:, 1, 1] = active[:, 0, 1]  # two tasks that always agree
    value = torch.as_tensor(answered(answer(active))).double()
    assert value.shape == (4,), f"One number for each of the 4 experts, not {tuple(value.shape)}."
    truth = active.double().mean(dim=0).prod(dim=0)  # (4,)
    together = active.all(dim=1).double().mean(dim=0)  # (4,)
    assert not torch.allclose(value, together), "That is how often it happens together, before any shuffling."
    assert torch.allclose(value, truth, atol=1e-6), f"It should be {_list(truth)}, not {_list(value)}."


@exercise("7.4", hint="Where a place becomes f × f places, each gets the old weight divided by f².")
def check_carry(answer: Any) -> None:
    """``answer(weights, factor)``: a map of weights ``(h, w)`` for features with ``factor`` times as many rows."""
    torch.manual_seed(0)
    weights, features = torch.randn(3, 4), torch.randn(3, 4)
    for factor in (1, 2, 3):
        value = answered(answer(weights, factor))
        shape = (3 * factor, 4 * factor)
        assert value.shape == shape, f"With factor {factor} the map is {shape}, not {tuple(value.shape)}."
        fine = features.repeat_interleave(factor, 0).repeat_interleave(factor, 1)  # (3·factor, 4·factor)
        assert torch.allclose(value.sum(), weights.sum(), atol=1e-4), "The weights should keep their sum."
        same = torch.allclose((value * fine).sum(), (weights * features).sum(), atol=1e-4)
        assert same, "On features that are repeated, the weighted sum should be the old one."


def _list(values: torch.Tensor) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values.tolist()) + "]"
