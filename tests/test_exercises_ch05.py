"""The self-checks of chapter 5 accept right answers and explain typical wrong ones."""

import itertools

import torch

from mlore_edu.exercises import ch05


def factors(kernel, rank):
    u, s, v = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    return v[:rank].unflatten(1, kernel.shape[1:]), u[:, :rank] * s[:rank]


def rank_needed(kernel, share):
    squares = torch.linalg.svdvals(kernel.flatten(1)) ** 2
    return int((squares.cumsum(0) / squares.sum() < share).sum()) + 1


def fewest_active(ranks, channels):
    total, active = 0, 0
    for rank in sorted(ranks):
        if total < channels:
            total, active = total + rank, active + 1
    return active


RIGHT = {
    "expert_parameters": lambda c, r, k: (k * k * c + 1) * r + (r + 1) * c,
    "factors": factors,
    "rank_needed": rank_needed,
    "gate_of_rank": lambda gates, ranks: gates.repeat_interleave(torch.tensor(ranks), dim=-1),
    "fewest_active": fewest_active,
}

WRONG = {
    "expert_parameters": {
        "forgets the biases": lambda c, r, k: (k * k + 1) * c * r,
        "forgets the 1×1": lambda c, r, k: (k * k * c + 1) * r,
        "is full-width": lambda c, r, k: (k * k + 1) * c * c + 2 * c,
    },
    "factors": {
        "forgets the singular values": lambda kernel, rank: (
            factors(kernel, rank)[0],
            torch.linalg.svd(kernel.flatten(1))[0][:, :rank],
        ),
        "keeps the last ones": lambda kernel, rank: (
            factors(kernel, 6)[0][-rank:],
            factors(kernel, 6)[1][:, -rank:],
        ),
        "swaps the factors": lambda kernel, rank: factors(kernel, rank)[::-1],
    },
    "rank_needed": {
        "sums singular values instead of their squares": lambda kernel, share: (
            int(
                (
                    torch.linalg.svdvals(kernel.flatten(1)).cumsum(0) / torch.linalg.svdvals(kernel.flatten(1)).sum()
                    < share
                ).sum()
            )
            + 1
        ),
        "is one too few": lambda kernel, share: rank_needed(kernel, share) - 1,
        "keeps everything": lambda kernel, share: len(kernel),
    },
    "gate_of_rank": {
        "repeats the whole row": lambda gates, ranks: gates.repeat(1, 1, 2),
        "repeats all alike": lambda gates, ranks: gates.repeat_interleave(2, dim=-1),
        "shares a gate between its ranks": lambda gates, ranks: (gates / torch.tensor(ranks)).repeat_interleave(
            torch.tensor(ranks), dim=-1
        ),
    },
    "fewest_active": {
        "takes the experts in the order given": lambda ranks, channels: next(
            k for k in itertools.count(1) if sum(ranks[:k]) >= channels
        ),
        "takes the largest": lambda ranks, channels: next(
            k for k in itertools.count(1) if sum(sorted(ranks)[-k:]) >= channels
        ),
        "goes by the mean rank": lambda ranks, channels: -(-channels * len(ranks) // sum(ranks)),
    },
}

ANSWERS = {getattr(ch05, f"check_{name}"): (right, *WRONG[name].values()) for name, right in RIGHT.items()}
