"""The self-checks of chapter 6 accept right answers and explain typical wrong ones."""

import torch

from mlore_edu.exercises import ch06


def meetings(gates):
    met = (gates > 0).sum(dim=1)  # (B, N)
    return [(met == j).float().mean() for j in range(gates.shape[1] + 1)]


def path_parameters(channels, ranks, task_rank, tasks):
    def pair(rank):
        return 9 * channels * rank + rank + rank * channels + channels

    return 9 * channels**2 + channels, sum(map(pair, ranks)), tasks * pair(task_rank)


def surgery(a, b):
    return a - (a @ b).clamp(max=0) / (b @ b) * b


RIGHT = {
    "meetings": meetings,
    "path_parameters": path_parameters,
    "dial": lambda x, alpha: x.detach() + alpha * (x - x.detach()),
    "surgery": surgery,
}

WRONG = {
    "meetings": {
        "counts experts per task": lambda gates: [
            ((gates > 0).sum(dim=2) == j).float().mean() for j in range(gates.shape[1] + 1)
        ],
        "leaves out zero": lambda gates: meetings(gates)[1:],
        "does not divide": lambda gates: [x * gates[:, 0].numel() for x in meetings(gates)],
    },
    "path_parameters": {
        "forgets the biases": lambda c, ranks, r, t: (9 * c**2, sum(10 * c * n for n in ranks), t * 10 * c * r),
        "gives every task a generic path": lambda c, ranks, r, t: (
            t * (9 * c**2 + c),
            *path_parameters(c, ranks, r, t)[1:],
        ),
        "forgets the way back": lambda c, ranks, r, t: (9 * c**2 + c, sum(9 * c * n + n for n in ranks), t * 9 * c * r),
        "gives one number": lambda *a: (sum(path_parameters(*a)),),
    },
    "dial": {
        "scales the values": lambda x, alpha: alpha * x,
        "always stops": lambda x, alpha: x.detach(),
        "never stops": lambda x, alpha: x * 1,
        "turns the wrong way": lambda x, alpha: x.detach() + (1 - alpha) * (x - x.detach()),
    },
    "surgery": {
        "always projects": lambda a, b: a - (a @ b) / (b @ b) * b,
        "forgets the length of b": lambda a, b: a - (a @ b).clamp(max=0) * b,
        "does nothing": lambda a, b: a,
        "drops a": lambda a, b: a * (a @ b >= 0),
    },
}

ANSWERS = {getattr(ch06, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}


def test_the_dial_of_a_gradient_is_the_stopped_gradient_at_zero():
    x = torch.ones(3, requires_grad=True)
    assert not torch.autograd.grad(RIGHT["dial"](x, 0.0).sum(), x)[0].any()
