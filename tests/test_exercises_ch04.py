"""The self-checks of chapter 4 accept right answers and explain typical wrong ones."""

import torch
from torch.nn.functional import one_hot

from mlore_edu.exercises import ch04


def cv_squared(values):
    if len(values) == 1 or not values.any():
        return values.sum() * 0
    return values.var() / values.mean() ** 2


def switch(logits):
    probabilities = logits.softmax(-1)
    share = one_hot(logits.argmax(-1), logits.shape[-1]).to(logits).mean(0)
    return logits.shape[-1] * (share * probabilities.mean(0)).sum()


RIGHT = {
    "left_out": lambda n, k, tasks: n * ((n - k) / n) ** tasks,
    "renormalise": lambda gates: gates / gates.sum(-1, keepdim=True),
    "cv_squared": cv_squared,
    "price": lambda c, n, calls, tokens: (n * (10 * c * c + 2 * c), 10 * c * c * calls * tokens),
    "switch_loss": switch,
}

WRONG = {
    "left_out": {
        "gives the probability alone": lambda n, k, tasks: (1 - k / n) ** tasks,
        "subtracts the choices": lambda n, k, tasks: max(0, n - k * tasks),
        "lets a task pick an expert twice": lambda n, k, tasks: n * (1 - 1 / n) ** (k * tasks),
    },
    "renormalise": {
        "takes a second softmax": lambda gates: gates.softmax(-1),
        "divides by the sum over everything": lambda gates: gates / gates.sum(),
        "changes nothing": lambda gates: gates,
        "drops the shape": lambda gates: (gates / gates.sum(-1, keepdim=True)).flatten(),
    },
    "cv_squared": {
        "divides 0 by 0": lambda x: x.var() / x.mean() ** 2 if len(x) > 1 else x.sum() * 0,
        "gives one value a CV² of 1": lambda x: torch.ones(()) if len(x) == 1 else cv_squared(x),
        "takes the biased variance": lambda x: x.var(unbiased=False) / x.mean().clamp(min=1e-9) ** 2,
        "forgets the square": lambda x: cv_squared(x).sqrt(),
    },
    "price": {
        "forgets the biases": lambda c, n, calls, tokens: (n * 10 * c * c, 10 * c * c * calls * tokens),
        "runs every expert once": lambda c, n, calls, tokens: (n * (10 * c * c + 2 * c), 10 * c * c * n * tokens),
        "forgets the tokens": lambda c, n, calls, tokens: (n * (10 * c * c + 2 * c), 10 * c * c * calls),
    },
    "switch_loss": {
        "forgets N": lambda logits: switch(logits) / logits.shape[-1],
        "uses the probabilities twice": lambda logits: logits.shape[-1] * (logits.softmax(-1).mean(0) ** 2).sum(),
        "has no gradient": lambda logits: switch(logits.detach()),
        "is no number": lambda logits: logits.softmax(-1).mean(0),
    },
}

ANSWERS = {getattr(ch04, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}
