"""The self-checks of chapter 3 accept right answers and explain typical wrong ones."""

import math

import torch
from torch import nn

from mlore_edu.exercises import ch03

LN2 = math.log(2)


class Head(nn.Module):
    """Another way to write the head: parameters in the same order, under other names."""

    def __init__(self, in_channels, channels, size, resize_first=True, activation="gelu"):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.BatchNorm2d(in_channels)
        self.out = nn.Conv2d(in_channels, channels, 1)
        self.size, self.resize_first, self.activation = size, resize_first, getattr(nn.functional, activation)

    def forward(self, x):
        def up(y):
            return nn.functional.interpolate(y, size=self.size, mode="bilinear")

        x = up(x) if self.resize_first else x
        y = self.out(self.activation(self.bn(self.conv(x))))
        return y if self.resize_first else up(y)


def mean_over(per_pixel, valid):
    return torch.where(valid, per_pixel, 0.0).sum() / valid.sum().clamp(min=1)


RIGHT = {
    "first_edge_loss": lambda share, weight: (weight * share + (1 - weight) * (1 - share)) * LN2,
    "poly": lambda step, steps, rate, power: rate * (1 - step / steps) ** power,
    "head": Head,
    "decoder_parameters": lambda map_channels, tasks, channels: sum((c + 1) * tasks * channels for c in map_channels),
    "mean_over": mean_over,
}

WRONG = {
    "first_edge_loss": {
        "forgets the weight": lambda share, weight: LN2,
        "forgets the other pixels": lambda share, weight: weight * share * LN2,
        "takes the binary logarithm": lambda share, weight: weight * share + (1 - weight) * (1 - share),
    },
    "poly": {
        "counts from one": lambda step, steps, rate, power: rate * (1 - (step + 1) / steps) ** power,
        "applies the power to the step": lambda step, steps, rate, power: rate * (1 - (step / steps) ** power),
        "ignores the power": lambda step, steps, rate, power: rate * (1 - step / steps),
    },
    "head": {
        "resizes last": lambda *a: Head(*a, resize_first=False),
        "uses ReLU": lambda *a: Head(*a, activation="relu"),
        "has no norm": lambda i, c, s: nn.Sequential(nn.Upsample(s), nn.Conv2d(i, i, 3, padding=1), nn.Conv2d(i, c, 1)),
        "is no module": lambda *a: 3,
    },
    "decoder_parameters": {
        "forgets the biases": lambda maps, tasks, channels: sum(c * tasks * channels for c in maps),
        "shares the map between tasks": lambda maps, tasks, channels: sum((c + 1) * channels for c in maps),
        "counts one bias per task": lambda maps, tasks, channels: sum(c * tasks * channels for c in maps) + tasks,
    },
    "mean_over": {
        "multiplies by the mask": lambda x, valid: (x * valid).sum() / valid.sum().clamp(min=1),
        "selects, and divides 0 by 0": lambda x, valid: x[valid].mean(),
        "divides by all pixels": lambda x, valid: torch.where(valid, x, 0.0).mean(),
        "returns a detached zero": lambda x, valid: x[valid].mean() if valid.any() else torch.zeros(()),
    },
}

ANSWERS = {getattr(ch03, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}
