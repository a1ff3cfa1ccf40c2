"""Self-checks of chapter 20: a decoder of one's own, a memory, a control of equal size, and seeds enough."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from mlore_edu.decoders.base import MapShape
from mlore_edu.exercises import answered, exercise
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2


@exercise("20.1", hint="One convolution per map, resize to the largest, and the same sum for every task's name.")
def check_decoder(answer: Any) -> None:
    """``answer``: a decoder's class, ``(tasks, maps, channels)``."""
    torch.manual_seed(0)
    shapes = [MapShape(3, 8, 12), MapShape(5, 4, 6), MapShape(5, 2, 3)]
    maps = [torch.randn(2, *shape) for shape in shapes]
    for tasks in (DOLLHOUSE, NYUD_V2.subset("depth")):
        decoder = answered(answer(tasks, shapes, 7))
        assert getattr(decoder, "channels", None) == 7, "The heads need to know: set self.channels."
        output = answered(decoder.train()(maps))
        assert tuple(output.features) == tasks.names, f"Features of {list(tasks.names)} are wanted, in this order."
        for name, feature in output.features.items():
            assert feature.shape == (2, 7, 8, 12), f"{name}'s feature is {tuple(feature.shape)}, not (2, 7, 8, 12)."
        torch.autograd.backward([feature.square().sum() for feature in output.features.values()])
        idle = [name for name, weight in decoder.named_parameters() if weight.grad is None]
        assert not idle, f"No gradient reaches {idle[0]}."
        assert next(decoder.parameters(), None) is not None, "A decoder without weights cannot learn."
        alone = decoder.eval()([feature_map[:1] for feature_map in maps]).features
        both = decoder(maps).features
        for name in tasks.names:
            assert torch.allclose(alone[name], both[name][:1], atol=1e-5), "A sample depends on its neighbours."


@exercise("20.2", hint="Read first: the gate weighs the memory. What is written back holds what was read, too.")
def check_remember(answer: Any) -> None:
    """``answer(features, memory, gate, momentum)``: the memory after one map, of ``(B, T, C, h, w)`` tensors."""
    torch.manual_seed(0)
    features, memory = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64)
    gate = torch.rand(2, 3, 1, 5, 6, dtype=torch.float64)
    momentum = torch.randn(3, dtype=torch.float64)
    value = torch.as_tensor(answered(answer(features, memory, gate, momentum)))
    assert value.shape == features.shape, f"The memory should be {tuple(features.shape)}, not {tuple(value.shape)}."
    for task in range(3):
        read = features[:, task] + gate[:, task] * memory[:, task]
        truth: Tensor = read + momentum[task] * memory[:, task]
        assert torch.allclose(value[:, task], truth), (
            f"Task {task} is off by {(value[:, task] - truth).abs().max():.2f}."
        )


@exercise("20.3", hint="Parameters grow with the width, so halve the range in which the answer must lie.")
def check_widest(answer: Any) -> None:
    """``answer(count, limit)``: the largest whole width w of at least 1 with ``count(w) <= limit``."""
    for slope, limit, truth in ((9, 1000, 10), (1, 17, 4), (3, 3, 1), (1, 1_000_000, 1000)):
        asked: list[int] = []

        def count(width: int, slope: int = slope, asked: list[int] = asked) -> int:
            asked.append(width)
            return slope * width**2

        value = answered(answer(count, limit))
        assert value == truth, f"With {slope} w² parameters and a limit of {limit:,} it is {truth}, not {value}."
        assert len(asked) <= 60, f"{len(asked)} networks were built to find {truth}; some twenty should do."


@exercise("20.4", hint="Student's quantile depends on the number of seeds too, so try two, three, four, …")
def check_seeds(answer: Any) -> None:
    """``answer(spread, effect, quantile)``: fewest seeds whose 95 % interval is no wider than ± effect."""

    def quantile(freedom: int) -> float:
        return float(student.ppf(0.975, freedom))

    for spread, effect in ((1.0, 1.0), (1.0, 0.5), (0.3, 1.0), (2.0, 0.7)):
        truth = next(n for n in range(2, 1000) if quantile(n - 1) * spread / n**0.5 <= effect)
        value = answered(answer(spread, effect, quantile))
        assert value == truth, f"For a spread of {spread} and ± {effect} it takes {truth} seeds, not {value}."
