"""The self-checks of chapter 18 accept right answers, and answer wrong ones with a hint."""

import numpy as np
import torch

from mlore_edu.exercises import ch18


def relations(gates):
    active = (gates > 0).double().mean(dim=0)
    return gates.mean(dim=0), active / active.sum(dim=1, keepdim=True)


def explained(classes, gate):
    return (
        1
        - sum(((gate[classes == c] - gate[classes == c].mean()) ** 2).sum() for c in classes.unique())
        / ((gate - gate.mean()) ** 2).sum()
    )


ANSWERS = {
    ch18.check_relations: (
        relations,
        lambda gates: relations(gates)[::-1],
        lambda gates: (gates.mean(dim=0), (gates > 0).double().mean(dim=0)),  # a rate
        lambda gates: (gates.mean(dim=0), gates.mean(dim=0) / gates.mean(dim=0).sum(dim=1, keepdim=True)),
        lambda gates: (gates.sum(dim=0) / (gates > 0).sum(dim=0).clamp(1), relations(gates)[1]),  # where active only
    ),
    ch18.check_p_value: (
        lambda observed, null: (1 + (null >= observed).sum()) / (1 + len(null)),
        lambda observed, null: (null >= observed).mean(),  # does not count the observed
        lambda observed, null: (1 + (null > observed).sum()) / (1 + len(null)),
        lambda observed, null: (1 + (abs(null) >= abs(observed)).sum()) / (1 + len(null)),
        lambda observed, null: (1 + (null >= observed).sum()) / len(null),
    ),
    ch18.check_moved: (
        lambda a, b: (a - b).abs().sum(dim=-1).mean() / 2,
        lambda a, b: (a - b).abs().sum(dim=-1).mean(),
        lambda a, b: (a - b).abs().mean(),
        lambda a, b: (a - b).square().sum(dim=-1).mean().sqrt(),
        lambda a, b: (a - b).abs().sum(dim=-1).max() / 2,
    ),
    ch18.check_explained: (
        explained,
        lambda classes, gate: 1 - explained(classes, gate),
        lambda classes, gate: np.corrcoef(classes, gate)[0, 1] ** 2,  # the number of a class means nothing
        lambda classes, gate: torch.stack([gate[classes == c].mean() for c in range(4)]).var() / gate.var(),
    ),
}
