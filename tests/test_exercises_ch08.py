"""The self-checks of chapter 8 accept right answers and explain typical wrong ones."""

import torch

from mlore_edu.exercises import ch08


def identity_kernel(channels, size):
    weight = torch.zeros(channels, channels, size, size)
    weight[:, :, size // 2, size // 2] = torch.eye(channels)
    return weight


def crossing(width, ranks):
    return 9 * width * ranks / (10 * ranks - 9 * width) if 10 * ranks > 9 * width else float("inf")


def corner_kernel(channels, size):
    weight = torch.zeros(channels, channels, size, size)
    weight[:, :, 0, 0] = torch.eye(channels)
    return weight


RIGHT = {
    "fold_first": lambda scale, shift, weight, bias: (weight * scale, weight @ shift + bias),
    "identity_kernel": identity_kernel,
    "padding": lambda p, q: torch.linalg.solve(p, -q),
    "crossing": crossing,
}

WRONG = {
    "fold_first": {
        "scales the outputs": lambda a, d, w, b: (w * torch.cat([a, a])[:, None], w @ d + b),
        "adds the shift to the bias": lambda a, d, w, b: (w * a, b + torch.cat([d, d])),
        "forgets the shift": lambda a, d, w, b: (w * a, b),
        "keeps the two last axes": lambda a, d, w, b: ((w * a)[..., None, None], w @ d + b),
    },
    "identity_kernel": {
        "takes the corner": corner_kernel,
        "mixes all channels": lambda c, k: torch.nn.functional.pad(torch.ones(c, c, 1, 1), [k // 2] * 4),
        "spreads over the patch": lambda c, k: torch.eye(c)[..., None, None].expand(c, c, k, k) / k**2,
        "gives one channel": lambda c, k: torch.nn.functional.pad(torch.ones(1, 1, 1, 1), [k // 2] * 4),
    },
    "padding": {
        "pads with the bias": lambda p, q: q,
        "has the wrong sign": lambda p, q: torch.linalg.solve(p, q),
        "multiplies": lambda p, q: -p @ q,
        "pads with zeros": lambda p, q: torch.zeros_like(q),
        "solves for a matrix": lambda p, q: torch.linalg.inv(p),
    },
    "crossing": {
        "has a generic path": lambda c, r: 0.9 * c,
        "forgets the convolution": lambda c, r: 0.9 * c if r > 0.9 * c else float("inf"),
        "lets it be negative": lambda c, r: 9 * c * r / (10 * r - 9 * c) if 10 * r != 9 * c else float("inf"),
        "swaps the letters": lambda c, r: crossing(r, c),
    },
}

ANSWERS = {getattr(ch08, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}
