"""Self-checks of chapter 6: who meets in an expert, what the paths cost, a dial for gradients, gradient surgery."""

from __future__ import annotations

from typing import Any

import torch

from mlore_edu.decoders.low_rank import LowRankExperts, TaskExperts
from mlore_edu.exercises import answered, exercise


@exercise(
    "6.1", hint="gates > 0 says which tasks use an expert; sum it over the tasks, then count how often each sum is."
)
def check_meetings(answer: Any) -> None:
    """``answer(gates)``: for 0, 1, …, T tasks, the share of (image, expert) pairs that exactly so many tasks use."""
    gates = torch.tensor([[[0.5, 0.0, 0.2], [0.3, 0.0, 0.0]], [[0.1, 0.4, 0.0], [0.0, 0.2, 0.6]]])  # (2, 2, 3)
    for some, truth in (
        (gates, [1 / 6, 3 / 6, 2 / 6]),
        (gates[:1], [1 / 3, 1 / 3, 1 / 3]),
        (torch.ones(2, 4, 3), [0.0] * 4 + [1.0]),
    ):
        shares = torch.as_tensor(answered(answer(some)), dtype=torch.float64)
        size = tuple(some.shape)
        assert shares.shape == (size[1] + 1,), f"For gates {size} there are {size[1] + 1} shares, from 0 tasks to all."
        right = torch.allclose(shares, torch.tensor(truth, dtype=torch.float64), atol=1e-6)
        wanted, found = ([round(float(share), 3) for share in values] for values in (truth, shares))
        assert right, f"For gates {size} the shares should be {wanted}, not {found}."


@exercise("6.2", hint="A convolution k × k from a to b channels has k²·a·b weights and b biases; count both of a pair.")
def check_path_parameters(answer: Any) -> None:
    """``answer(channels, ranks, task_rank, tasks)``: parameters of the generic path, the experts, the task experts."""
    for channels, ranks, task_rank, tasks in ((8, (2, 3), 4, 3), (32, tuple(range(2, 17)), 8, 6)):
        paths = {
            "generic path": torch.nn.Conv2d(channels, channels, 3),
            "shared experts": LowRankExperts(channels, ranks),
            "task experts": TaskExperts(tasks, channels, task_rank),
        }
        given = answered(answer(channels, ranks, task_rank, tasks))
        assert len(given) == len(paths), f"Give three numbers, not {len(given)}."
        for (name, path), value in zip(paths.items(), given, strict=True):
            truth = sum(parameter.numel() for parameter in path.parameters())
            where = f"C = {channels}, ranks {ranks[0]} to {ranks[-1]}, R = {task_rank}, {tasks} tasks: the {name}"
            assert value == truth, f"{where} should have {truth:,} parameters, not {value:,}."


@exercise("6.3", hint="x.detach() has the values and no gradient; add alpha times something of value 0 that has one.")
def check_dial(answer: Any) -> None:
    """``answer(x, alpha)``: the values of x, through which a gradient passes multiplied by alpha."""
    for alpha in (0.0, 0.25, 1.0):
        x = torch.linspace(-2, 3, 6).requires_grad_()
        y = answered(answer(x, alpha))
        assert torch.allclose(y, x), f"With alpha = {alpha:g} the values should stay as they are."
        gradient = torch.zeros(6)
        if y.requires_grad:
            (gradient,) = torch.autograd.grad((y**2).sum(), x)
        found = (gradient[-1] / (2 * x[-1])).item()
        right = torch.allclose(gradient, alpha * 2 * x.detach(), atol=1e-6)
        assert right, f"With alpha = {alpha:g} the gradient should be multiplied by {alpha:g}, not by {found:g}."


@exercise("6.4", hint="Where a·b < 0, take from a its part along b, (a·b / b·b) b; else leave a alone.")
def check_surgery(answer: Any) -> None:
    """``answer(a, b)``: gradient a without what would undo b."""
    b = torch.tensor([0.0, 2.0, 0.0])
    for a, truth, case in (
        ([1.0, -3.0, 2.0], [1.0, 0.0, 2.0], "that pull apart"),
        ([1.0, 3.0, 2.0], [1.0, 3.0, 2.0], "that agree"),
        ([1.0, 0.0, 2.0], [1.0, 0.0, 2.0], "at a right angle"),
    ):
        result = torch.as_tensor(answered(answer(torch.tensor(a), b)))
        right = result.shape == b.shape and torch.allclose(result, torch.tensor(truth), atol=1e-6)
        assert right, f"Of two gradients {case}, {a} and {b.tolist()}, should be left {truth}, not {result.tolist()}."
