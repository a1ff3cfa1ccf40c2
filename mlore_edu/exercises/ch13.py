"""Self-checks of chapter 13: who is reached by whose loss, merged maps, tokens listened to, what attention adds."""

from __future__ import annotations

import itertools
import math
from statistics import mean, variance
from typing import Any

import torch
from torch import Tensor

from mlore_edu.decoders.tif import Distillation, Query, SelfFeatureDistillation
from mlore_edu.exercises import answered, exercise

CHANNELS, SIZE = 4, (3, 2)


def _features(tasks: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, tasks, CHANNELS, *SIZE, generator=generator, dtype=torch.float64)  # (B, T, C, h, w)


def _reached(tasks: int, distillation: Distillation, query: Query) -> Tensor:
    """Found by differentiation: does task i's output change with task j's feature?"""
    module = SelfFeatureDistillation(tasks, CHANNELS, key_maps=2, distillation=distillation, query=query).double()
    features = _features(tasks).requires_grad_()
    refined, _ = module(features)
    rows = [
        torch.autograd.grad(refined[:, task].square().sum(), features, retain_graph=True)[0] for task in range(tasks)
    ]
    return torch.stack([row.abs().amax(dim=(0, 2, 3, 4)) > 0 for row in rows])  # (T, T)


@exercise("13.1", hint="Ask for each task which features its query, its keys and its residual are made of.")
def check_reached(answer: Any) -> None:
    """``answer(tasks, distillation, query)``: (tasks, tasks), whether a row's loss reaches a column's decoder."""
    distillations: tuple[Distillation, ...] = ("self", "cross")
    queries: tuple[Query, ...] = ("own", "first")
    for tasks, distillation, query in itertools.product((2, 5), distillations, queries):
        truth = _reached(tasks, distillation, query)
        found = torch.as_tensor(answered(answer(tasks, distillation, query))).bool()
        assert found.shape == truth.shape, f"The table should have the shape {tuple(truth.shape)}."
        wrong = (found != truth).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            word = "reaches" if truth[row, column] else "does not reach"
            raise AssertionError(
                f'With "{distillation}" and "{query}" the loss of task {row} {word} the decoder of task {column}.'
            )


@exercise("13.2", hint="Rows of key.weight lie task by task, within a task map by map; add the maps of each task.")
def check_merge(answer: Any) -> None:
    """``answer(distiller)``: the same module with one map."""
    torch.manual_seed(0)
    for tasks, maps in ((1, 3), (3, 2), (2, 1)):
        distiller = SelfFeatureDistillation(tasks, CHANNELS, key_maps=maps).double()
        before = distiller.key.weight.detach().clone()
        merged = answered(answer(distiller))
        same = distiller.maps == maps and torch.equal(distiller.key.weight, before)
        assert same, "The module that was given has changed; work on a copy."
        size, wanted = merged.key.weight.numel(), tasks * CHANNELS**2
        assert size == wanted, f"With {tasks} tasks and one map there are {wanted} weights, not {size}."
        features = _features(tasks)
        close = torch.allclose(merged(features)[0], distiller(features)[0], rtol=1e-9, atol=1e-12)
        assert close, f"With {tasks} tasks and {maps} maps the output is another."


@exercise("13.3", hint="Softmax each row, then exp(-sum of a ln a), where 0 ln 0 is 0.")
def check_listened(answer: Any) -> None:
    """``answer(affinity)``: exp of the entropy of the softmax of every row."""
    cases = {
        "equal affinities": (torch.zeros(6, 6, dtype=torch.float64), torch.full((6,), 6.0, dtype=torch.float64)),
        "affinities of a thousand": (
            1000 * torch.eye(5, dtype=torch.float64),
            torch.ones(5, dtype=torch.float64),
        ),
        "two equal favourites": (
            torch.tensor([[50.0, 50.0, 0.0, 0.0]], dtype=torch.float64).expand(4, 4),
            torch.full((4,), 2.0, dtype=torch.float64),
        ),
        "affinities ln 1, ln 2, ln 4": (
            torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64).log().expand(3, 3),
            torch.full((3,), 7 / 2 ** (10 / 7), dtype=torch.float64),
        ),
    }
    for name, (affinity, truth) in cases.items():
        found = torch.as_tensor(answered(answer(affinity)), dtype=torch.float64)
        shape = tuple(found.shape)
        assert shape == tuple(truth.shape), f"There should be {len(truth)} numbers, one a row, not {shape}."
        close = torch.allclose(found, truth, rtol=1e-6)
        assert close, f"With {name} a token listens to {truth[0]:.2f} tokens, not {found[0]:.2f}."


@exercise("13.4", hint="Means are added and subtracted; the variances of all four means add, whatever their signs.")
def check_added(answer: Any) -> None:
    """``answer(a, b, c, d)``: the difference of differences, and its standard error."""
    generator = torch.Generator().manual_seed(0)
    for sizes in ((3, 3, 3, 3), (2, 3, 4, 5), (5, 2, 2, 3)):
        lists = [(70 + 3 * torch.randn(size, generator=generator)).tolist() for size in sizes]
        a, b, c, d = map(mean, lists)
        error = math.sqrt(sum(variance(values) / len(values) for values in lists))
        effect, found = answered(answer(*lists))
        assert math.isclose(effect, c - d - a + b, rel_tol=1e-9), f"What attention adds is {c - d - a + b:.3f} here."
        assert math.isclose(found, error, rel_tol=1e-9), f"The standard error is {error:.3f} here, not {found:.3f}."
