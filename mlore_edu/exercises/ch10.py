"""Self-checks of chapter 10: gates from features, a window, experts that are needed, and the size of a module."""

from __future__ import annotations

from typing import Any

import torch

from mlore_edu.decoders.moe import top_k_mask
from mlore_edu.decoders.taskexpert import MMoEModule
from mlore_edu.exercises import answered, exercise


@exercise("10.1", hint="D equations say what is assembled, one more that the gates sum to 1; solve them together.")
def check_find_gates(answer: Any) -> None:
    """``answer(answers (K, D), feature (D,))``: the gates ``(K,)`` with which the feature was assembled."""
    torch.manual_seed(0)
    for experts, channels in ((3, 5), (6, 32), (4, 3)):  # in the last, the D equations alone do not suffice
        answers = torch.randn(experts, channels, dtype=torch.float64)
        gates = torch.randn(experts, dtype=torch.float64).softmax(dim=0)
        found = torch.as_tensor(answered(answer(answers, gates @ answers))).flatten()
        where = f"{experts} experts, {channels} channels"
        assert found.shape == (experts,), f"{where}: {experts} gates are wanted, not {len(found)}."
        assert torch.allclose(found.sum(), gates.sum()), f"{where}: your gates sum to {found.sum():.3f}, not to 1."
        assert torch.allclose(found, gates), f"{where}: it should be {_list(gates)}, not {_list(found)}."


@exercise("10.2", hint="A kernel of k taps, d apart, sees (k - 1)/2 · d tokens further in each direction.")
def check_window(answer: Any) -> None:
    """``answer(kernels, dilations)``: tokens along the side of the window that stacked convolutions see."""
    for kernels, dilations in (
        ((), ()),
        ((3, 3, 3), (1, 1, 1)),
        ((1, 1, 1), (1, 1, 1)),
        ((5, 3), (1, 2)),
        ((3,), (4,)),
    ):
        layers = [
            torch.nn.Conv2d(1, 1, k, padding=k // 2 * d, dilation=d, dtype=torch.float64)
            for k, d in zip(kernels, dilations, strict=True)
        ]
        for layer in layers:
            torch.nn.init.ones_(layer.weight)
        side = 1 + 2 * sum(layer.padding[0] for layer in layers if isinstance(layer.padding[0], int))
        tokens = torch.zeros(1, 1, side + 2, side + 2, dtype=torch.float64, requires_grad=True)
        middle = torch.nn.Sequential(*layers)(tokens)[0, 0, side // 2 + 1, side // 2 + 1]
        rows = torch.autograd.grad(middle, tokens)[0][0, 0].any(dim=1).nonzero()  # (tokens seen, 1)
        truth = int(rows.max() - rows.min()) + 1
        value = answered(answer(kernels, dilations))
        assert value == truth, f"Kernels {kernels} with dilations {dilations} see {truth} tokens, not {value}."


@exercise("10.3", hint="Mark the best k of every task at every token; an expert is needed where any mark is.")
def check_needed(answer: Any) -> None:
    """``answer(gates (B, T, K, H, W), k)``: experts ``(B, H, W)`` among the best k of one task or more."""
    torch.manual_seed(0)
    gates = torch.randn(2, 5, 6, 4, 3).softmax(dim=2)  # (B, T, K, H, W)
    gates[0, 1] = gates[0, 0]  # two tasks that want the same
    for k in (1, 2, 6):
        value = torch.as_tensor(answered(answer(gates, k)))
        assert value.shape == (2, 4, 3), f"One number for each of (2, 4, 3) tokens, not {tuple(value.shape)}."
        truth = top_k_mask(gates.movedim(2, -1), k).any(dim=1).sum(dim=-1)  # (B, H, W)
        off = (value != truth).nonzero()
        where = "" if not len(off) else f"With k = {k}, token {off[0].tolist()} needs {truth[tuple(off[0])]} experts"
        assert not len(off), f"{where}, not {value[tuple(off[0])]}."


@exercise("10.4", hint="A k × k convolution from a to b channels has k²ab + b parameters, a BatchNorm two a channel.")
def check_module_size(answer: Any) -> None:
    """``answer(width, channels, tasks, experts, hidden, gate)``: parameters of a first module, with context."""
    for sizes in ((96, 32, 6, 6, 32, 8), (12, 4, 3, 5, 7, 2), (9, 9, 1, 1, 9, 9)):
        width, channels, tasks, experts, hidden, gate = sizes
        module = MMoEModule(tasks, width, channels, experts=experts, expert_width=hidden, gate_width=gate)
        truth = sum(parameter.numel() for parameter in module.parameters())
        value = answered(answer(*sizes))
        letters = f"E = {width}, D = {channels}, T = {tasks}, K = {experts}, e = {hidden}, h = {gate}"
        assert value == truth, f"With {letters} it has {truth} parameters, not {value}."


def _list(values: torch.Tensor) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values.tolist()) + "]"
