"""Self-checks of chapter 4: experts left out by chance, two orders of a softmax, a safe CV², the price, a loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mlore_edu.decoders.moe import ConvExperts, cv_squared, noisy_top_k
from mlore_edu.exercises import answered, exercise


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@exercise("4.1", hint="One task leaves a given expert out with probability 1 - k/N; the tasks choose independently.")
def check_left_out(answer: Any) -> None:
    """``answer(experts, k, tasks)``: expected number of experts that no task picks when each picks k at random."""
    for experts, k, tasks in ((16, 1, 6), (15, 9, 5), (4, 4, 3), (10, 2, 1)):
        truth = experts * (1 - k / experts) ** tasks
        value = float(answered(answer(experts, k, tasks)))
        where = f"{tasks} tasks that pick {k} of {experts}"
        assert math.isclose(value, truth, rel_tol=1e-9, abs_tol=1e-12), f"{where} leave {truth:.4g}, not {value:.4g}."


@exercise("4.2", hint="The two differ by one factor per row: what the chosen gates sum to.")
def check_renormalise(answer: Any) -> None:
    """``answer(gates)``: gates of the softmax-first order turned into those of the softmax-last order."""
    logits = _draw(3, 4, 6)
    for k in (1, 2, 6):
        first, last = (
            noisy_top_k(logits, None, k, softmax_first=order, training=False).gates for order in (True, False)
        )
        value = answered(answer(first.clone()))
        assert value.shape == last.shape, f"The gates should keep the shape {tuple(last.shape)}."
        assert torch.allclose(value, last), f"With k = {k} they are not the gates of top-k, then softmax."


@exercise("4.3", hint="Return 0 for one value; where all values are 0, do not divide by their mean.")
def check_cv_squared(answer: Any) -> None:
    """``answer(values)``: CV² with the unbiased variance, 0 for one value and where all are 0, its gradient finite."""
    for values in ([1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 5.0], [2.0, 2.0], [4.0], [0.0, 0.0, 0.0]):
        leaf = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        value = torch.as_tensor(answered(answer(leaf)), dtype=torch.float64)
        truth = cv_squared(leaf).item()
        assert math.isclose(value.item(), truth, abs_tol=1e-9), (
            f"CV² of {values} is {truth:.4g}, not {value.item():.4g}."
        )
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf)
            assert bool(gradient.isfinite().all()), f"At {values} its gradient is {gradient.tolist()}."


@exercise("4.4", hint="9·C² + C² weights and 2·C biases an expert; each call multiplies every weight once per token.")
def check_price(answer: Any) -> None:
    """``answer(channels, experts, calls, tokens)``: (parameters, multiply-accumulates) of full-width experts."""
    for channels, experts, calls, tokens in ((8, 3, 3, 16), (4, 6, 20, 9), (640, 15, 45, 1024)):
        with torch.device("meta"):
            module: nn.Module = ConvExperts(channels, experts)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        value = tuple(answered(answer(channels, experts, calls, tokens)))
        where = f"C = {channels}, N = {experts}"
        assert value[0] == parameters, f"{where}: {parameters:,} parameters, not {value[0]:,}."
        macs = 10 * channels**2 * calls * tokens
        assert value[1] == macs, f"{where}, {calls} calls on {tokens} tokens: {macs:,} MACs, not {value[1]:,}."


@exercise("4.5", hint="N · Σ f_n P_n; f_n is the share of rows whose largest probability is n's, P_n its mean.")
def check_switch_loss(answer: Any) -> None:
    """``answer(logits)``: the balance loss of Switch Transformers for logits (rows, N)."""
    for logits in (torch.zeros(8, 4, dtype=torch.float64), 3 * torch.eye(4, dtype=torch.float64), _draw(20, 5)):
        leaf = logits.clone().requires_grad_()
        probabilities = leaf.softmax(-1)  # (rows, N)
        share = torch.eye(logits.shape[1], dtype=torch.float64)[probabilities.argmax(-1)].mean(0)  # (N,)
        truth = logits.shape[1] * (share * probabilities.mean(0)).sum()
        value = torch.as_tensor(answered(answer(leaf)))
        assert value.shape == (), f"The loss should be one number, not {tuple(value.shape)}."
        assert torch.allclose(value, truth), f"The loss should be {truth.item():.4f}, not {value.item():.4f}."
        assert value.requires_grad, "The loss should have a gradient, through the probabilities."
