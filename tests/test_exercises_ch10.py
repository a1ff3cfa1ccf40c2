"""The self-checks of chapter 10 accept right answers and explain typical wrong ones."""

import torch

from mlore_edu.exercises import ch10


def find_gates(answers, feature):
    rows = torch.cat([answers.T, answers.new_ones(1, len(answers))])
    wanted = torch.cat([feature, feature.new_ones(1)])
    return torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]


def window(kernels, dilations):
    return 1 + sum((k - 1) * d for k, d in zip(kernels, dilations, strict=True))


def needed(gates, k):
    best = gates.topk(k, dim=2).indices
    return torch.zeros_like(gates).scatter(2, best, 1).amax(dim=1).sum(dim=1).int()


def module_size(width, channels, tasks, experts, hidden, gate, kernel=9):
    decompose = experts * ((width + 1) * hidden + 2 * hidden + (hidden + 1) * channels)
    one_gate = (kernel * width + 1) * gate + (kernel * gate + 1) * (gate + experts)
    return decompose + tasks * one_gate


RIGHT = {"find_gates": find_gates, "window": window, "needed": needed, "module_size": module_size}

WRONG = {
    "find_gates": {
        "forgets that gates sum to one": lambda answers, feature: torch.linalg.pinv(answers.T) @ feature,
        "takes similarities": lambda answers, feature: (answers @ feature).softmax(dim=0),
        "returns a gate too few": lambda answers, feature: find_gates(answers, feature)[:-1],
    },
    "window": {
        "adds the kernels up": lambda kernels, dilations: sum(kernels),
        "forgets the dilation": lambda kernels, dilations: 1 + sum(k - 1 for k in kernels),
        "multiplies": lambda kernels, dilations: torch.tensor(kernels).prod().item(),
        "gives the reach to one side": lambda kernels, dilations: (window(kernels, dilations) - 1) // 2,
    },
    "needed": {
        "counts per task": lambda gates, k: torch.full((2, 4, 3), k),
        "adds the tasks' choices": lambda gates, k: torch.full((2, 4, 3), k * gates.shape[1]),
        "counts for the whole picture": lambda gates, k: needed(gates.mean(dim=(3, 4), keepdim=True), k).flatten(),
        "takes one mean task": lambda gates, k: needed(gates.mean(dim=1, keepdim=True), k),
    },
    "module_size": {
        "forgets the BatchNorm": lambda *sizes: module_size(*sizes) - 2 * sizes[3] * sizes[4],
        "has pointwise gates": lambda *sizes: module_size(*sizes, kernel=1),
        "lets all tasks share a gate": lambda *sizes: module_size(*sizes[:2], 1, *sizes[3:]),
        "gives each task experts": lambda *sizes: sizes[2] * module_size(*sizes[:2], 1, *sizes[3:]),
    },
}

ANSWERS = {getattr(ch10, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}
