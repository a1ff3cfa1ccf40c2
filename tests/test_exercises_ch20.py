"""The self-checks of chapter 20 accept right answers, and answer wrong ones with a hint."""

import torch
from torch import nn

from mlore_edu.decoders.base import DecoderOutput, resize
from mlore_edu.exercises import ch20


class Shared(nn.Module):
    """One feature for all tasks."""

    def __init__(self, tasks, maps, channels):
        super().__init__()
        self.names, self.channels = tasks.names, channels
        self.size = (maps[0].height, maps[0].width)
        self.narrow = nn.ModuleList(nn.Conv2d(shape.channels, channels, 1) for shape in maps)

    def forward(self, maps):
        feature = sum(resize(layer(one), self.size) for layer, one in zip(self.narrow, maps))
        return DecoderOutput(dict.fromkeys(self.names, feature), feature.new_zeros(()), {})


class Silent(Shared):
    def __init__(self, tasks, maps, channels):
        super().__init__(tasks, maps, channels)
        del self.channels


class Idle(Shared):
    def __init__(self, tasks, maps, channels):
        super().__init__(tasks, maps, channels)
        self.never_called = nn.Linear(2, 2)


class Coarse(Shared):
    def __init__(self, tasks, maps, channels):
        super().__init__(tasks, maps, channels)
        self.size = (maps[-1].height, maps[-1].width)


class Nosy(Shared):
    def forward(self, maps):
        return super().forward([one - one.mean(dim=0) for one in maps])


def remember(features, memory, gate, momentum):
    return features + gate * memory + momentum[:, None, None, None] * memory


def widest(count, limit):
    low, high = 1, 2
    while count(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= limit else (low, middle)
    return low


def one_by_one(count, limit):
    width = 1
    while count(width + 1) <= limit:
        width += 1
    return width


def seeds(spread, effect, quantile):
    n = 2
    while quantile(n - 1) * spread / n**0.5 > effect:
        n += 1
    return n


ANSWERS = {
    ch20.check_decoder: (Shared, Silent, Idle, Coarse, Nosy),
    ch20.check_remember: (
        remember,
        lambda features, memory, gate, momentum: features + gate * memory,  # reads and does not keep
        lambda features, memory, gate, momentum: features + momentum[:, None, None, None] * memory,
        lambda features, memory, gate, momentum: features + gate * memory + momentum[0] * memory,
        lambda features, memory, gate, momentum: torch.zeros(2),
    ),
    ch20.check_widest: (
        widest,
        one_by_one,
        lambda count, limit: widest(count, limit) + 1,
        lambda count, limit: int(limit**0.5),
    ),
    ch20.check_seeds: (
        seeds,
        lambda spread, effect, quantile: seeds(spread, effect, quantile) - 1,
        lambda spread, effect, quantile: max(2, round((1.96 * spread / effect) ** 2)),
        lambda spread, effect, quantile: seeds(spread, 2 * effect, quantile),
    ),
}
