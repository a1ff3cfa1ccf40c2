"""Self-checks of chapter 18: relations, a p-value, a distance between attentions, and explained variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mlore_edu.exercises import answered, exercise


@exercise("18.1", hint="A gate counts as active where it is above 0; divide by what a task has over all experts.")
def check_relations(answer: Any) -> None:
    """``answer(gates (S, T, N))``: mean gates and shares of activations, ``(T, N)`` each."""
    torch.manual_seed(0)
    for scenes, tasks, experts, k in ((50, 5, 15, 9), (7, 2, 4, 1), (3, 6, 5, 5)):
        logits = torch.randn(scenes, tasks, experts, dtype=torch.float64)
        threshold = logits.topk(k, dim=-1).values[..., -1:]
        gates = torch.where(logits >= threshold, logits.softmax(dim=-1), 0)
        found = answered(answer(gates.clone()))
        assert len(found) == 2, "Two tables are wanted, mean gates and shares."
        share = (gates > 0).double().mean(dim=0) / k
        for name, value, truth in zip(("mean gates", "shares"), found, (gates.mean(dim=0), share), strict=True):
            table = torch.as_tensor(answered(value)).double()
            assert table.shape == (tasks, experts), (
                f"The {name} should be {(tasks, experts)}, not {tuple(table.shape)}."
            )
            sums = table.sum(dim=1)
            assert name == "mean gates" or torch.allclose(sums, torch.ones(tasks).double()), (
                f"With k = {k} a row of your shares sums to {sums[0]:.2f}, not to 1."
            )
            assert torch.allclose(table, truth), (
                f"With k = {k} your {name} differ by {(table - truth).abs().max():.3f}."
            )


@exercise("18.2", hint="The matrix that was observed is one of the possible dealings, too; count it.")
def check_p_value(answer: Any) -> None:
    """``answer(observed, null)``: how probable a value as large as the observed one is under the null."""
    null = np.array([0.1, 0.2, 0.2, 0.5, 0.9, -0.3, 0.4, 0.0, 0.1])
    for observed, truth in ((0.5, 0.3), (2.0, 0.1), (-1.0, 1.0), (0.2, 0.6)):
        value = float(answered(answer(observed, null.copy())))
        assert value != 0, f"No number of shuffles can show that {observed} is impossible."
        assert abs(value - truth) < 1e-9, (
            f"For {observed} and nine shuffles {null.tolist()} it is {truth}, not {value}."
        )


@exercise("18.3", hint="What one token gets too much the others get too little: count what is moved once.")
def check_moved(answer: Any) -> None:
    """``answer(a, b)``: weights ``(n, n)``; mean over the rows of the share that must be moved to make a into b."""
    torch.manual_seed(0)
    eye = torch.eye(4, dtype=torch.float64)
    even = torch.full((4, 4), 0.25, dtype=torch.float64)
    a, b = torch.randn(2, 6, 6, dtype=torch.float64).mul(2).softmax(dim=-1)
    known = [(eye, eye, 0.0), (eye, eye.roll(1, 0), 1.0), (eye, even, 0.75), (a, b, None)]
    for first, second, truth in known:
        exact = torch.minimum(first, second).sum(dim=-1)  # what may stay
        truth = float(1 - exact.mean()) if truth is None else truth
        value = float(answered(answer(first, second)))
        rows = len(first)
        assert abs(value - truth) < 1e-9, f"For two of {rows} × {rows} weights it is {truth:.3f}, not {value:.3f}."


@exercise("18.4", hint="Put the mean gate of its class at every token; which share of the variance has this map?")
def check_explained(answer: Any) -> None:
    """``answer(classes (P,), gate (P,))``: share of the gate's variance that lies between classes."""
    torch.manual_seed(0)
    classes = torch.randint(0, 4, (200,))
    classes[:60] = 1  # classes of unequal size
    pure = torch.tensor([0.1, 0.9, 0.3, 0.6], dtype=torch.float64)[classes]
    noise = torch.rand(200, dtype=torch.float64)
    for name, gate in (("its class alone", pure), ("chance and its class", pure + noise), ("chance", noise)):
        between = torch.stack([gate[classes == c].mean() for c in range(4)])[classes]  # (P,)
        truth = float(between.var() / gate.var())
        value = float(answered(answer(classes.clone(), gate.clone())))
        assert abs(value - truth) < 1e-9, f"For a gate that follows {name} it is {truth:.3f}, not {value:.3f}."
