"""Self-checks of chapter 5: what an expert costs, the best factors, the rank that is needed, gates, active experts."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from mlore_edu.exercises import answered, exercise

PAPER_RANKS = tuple(range(16, 129, 8))


def _kernel(seed: int, rank: int, channels: int = 6) -> torch.Tensor:
    """A kernel (channels, channels, 3, 3) in float64 whose matrix has the given rank and falling singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(channels, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(9 * channels, rank, generator=generator, dtype=torch.float64)).Q
    values = 2.0 ** -torch.arange(rank, dtype=torch.float64)
    matrix: torch.Tensor = (left * values) @ right.T  # (C, 9C)
    return matrix.reshape(channels, channels, 3, 3)


@exercise("5.1", hint="r kernels of k × k × C and r biases; then C rows of r weights and C biases.")
def check_expert_parameters(answer: Any) -> None:
    """``answer(channels, rank, kernel)``: learned numbers of one low-rank expert, both biases included."""
    for channels, rank, kernel in ((640, 16, 3), (384, 128, 3), (12, 5, 1)):
        layers = nn.Conv2d(channels, rank, kernel), nn.Conv2d(rank, channels, 1)
        truth = sum(p.numel() for layer in layers for p in layer.parameters())
        value = answered(answer(channels, rank, kernel))
        assert value == truth, f"C = {channels}, r = {rank}, k = {kernel} makes {truth} parameters, not {value}."


@exercise("5.2", hint="torch.linalg.svd of kernel.flatten(1); keep r singular values and put them into either factor.")
def check_factors(answer: Any) -> None:
    """``answer(kernel, rank)``: (down, up) of shapes (r, C, 3, 3) and (C, r), the closest there are to the kernel."""
    for rank in (1, 3):
        kernel = _kernel(rank, 6)
        down, up = answered(answer(kernel, rank))
        assert down.shape == (rank, 6, 3, 3), f"The 3×3 factor should be {(rank, 6, 3, 3)}, not {tuple(down.shape)}."
        assert up.shape == (6, rank), f"The 1×1 factor should be {(6, rank)}, not {tuple(up.shape)}."
        error = float((torch.einsum("cr,rikl->cikl", up, down) - kernel).norm())
        best = float(torch.linalg.svdvals(kernel.flatten(1))[rank:].norm())
        assert error < 1.000001 * best, f"At rank {rank} the distance can be {best:.3f}; yours is {error:.3f}."


@exercise("5.3", hint="Cumulative sums of squared singular values, over their total; how many lie below the share?")
def check_rank_needed(answer: Any) -> None:
    """``answer(kernel, share)``: the smallest rank that keeps the given share of the squared singular values."""
    cases = (1, 0.7, 1), (2, 0.76, 2), (3, 0.93, 2), (3, 0.94, 3), (3, 0.98, 3), (4, 0.0001, 1)
    for seed, share, truth in cases:  # squares 1, 1/4, 1/16, …: shares 0.75, 0.94, 0.98, …
        value = answered(answer(_kernel(seed, 6), share))
        assert value == truth, f"For a share of {share} rank {truth} is enough and needed, not {value}."


@exercise("5.4", hint="repeat_interleave along the last dimension, each gate as often as its expert has ranks.")
def check_gate_of_rank(answer: Any) -> None:
    """``answer(gates, ranks)``: (…, N) to (…, sum of ranks), the gate of the expert that each channel belongs to."""
    gates = torch.tensor([[[0.5, 0.0, 0.2], [0.1, 0.3, 0.6]]])  # (1, 2, 3)
    value = torch.as_tensor(answered(answer(gates, (2, 1, 3))))
    assert value.shape == (1, 2, 6), f"Ranks 2, 1, 3 make (1, 2, 6), not {tuple(value.shape)}."
    truth = torch.tensor([[[0.5, 0.5, 0.0, 0.2, 0.2, 0.2], [0.1, 0.1, 0.3, 0.6, 0.6, 0.6]]])
    assert torch.equal(value, truth), f"Gates 0.5, 0, 0.2 with ranks 2, 1, 3 make {truth[0, 0].tolist()}."


@exercise("5.5", hint="The worst choice is the k experts of lowest rank; how many of those reach C together?")
def check_fewest_active(answer: Any) -> None:
    """``answer(ranks, channels)``: the smallest k such that any k experts can sum to a kernel of rank C."""
    for ranks, channels in ((PAPER_RANKS, 384), (PAPER_RANKS, 640), ((4, 1, 3, 2), 5), ((2, 2, 2), 2)):
        truth = next(k for k in itertools.count(1) if sum(sorted(ranks)[:k]) >= channels)
        value = answered(answer(ranks, channels))
        assert value == truth, f"C = {channels} with ranks {', '.join(map(str, ranks))} needs k = {truth}, not {value}."
