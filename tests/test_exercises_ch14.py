"""The self-checks of chapter 14 accept right answers, and answer wrong ones with a hint."""

import torch

from mlore_edu.exercises import ch14


def factors(pairs, weights):
    queries = torch.cat([w * q for w, (q, _) in zip(weights, pairs)], dim=1)
    return queries, torch.cat([k for _, k in pairs], dim=1)


def weighed_twice(pairs, weights):
    queries, _ = factors(pairs, weights)
    return queries, torch.cat([w * k for w, (_, k) in zip(weights, pairs)], dim=1)


ANSWERS = {
    ch14.check_overtakes: (
        lambda c, n, r: (1 + n + 2 * r) * c / 2,
        lambda c, n, r: (1 + n + 2 * r) * c,  # forgets that attention is two products
        lambda c, n, r: (n + 2 * r) * c / 2,  # forgets the queries
        lambda c, n, r: 0,  # both cost nothing there
    ),
    ch14.check_factors: (
        factors,
        weighed_twice,
        lambda pairs, weights: pairs[0],
        lambda pairs, weights: factors(pairs, [1.0] * len(pairs)),
    ),
    ch14.check_effective: (
        lambda weights: torch.special.entr(weights).sum(dim=-1).exp(),
        lambda weights: torch.special.entr(weights).sum(dim=-1),  # the entropy itself
        lambda weights: (-weights * weights.log()).sum(dim=-1).exp(),  # not a number where a weight is 0
        lambda weights: (weights > 0).sum(dim=-1).double(),
        lambda weights: 1 / weights.square().sum(dim=-1),  # another effective number
    ),
    ch14.check_wanted: (
        lambda q, k: (q @ k.T).softmax(dim=1).sum(dim=0),
        lambda q, k: (q @ k.T).softmax(dim=1).sum(dim=1),  # what is handed out
        lambda q, k: (q @ k.T).softmax(dim=0).sum(dim=1),  # the softmax over those who ask
        lambda q, k: (q @ k.T).sum(dim=0),
    ),
}
