"""Experts that cost little: low-rank 3×3 convolutions (MLoRE, Sec. 3.3; chapters 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.decoders.per_task import PerTaskConv2d
from mlore_edu.reparameterization import compose, dynamic_conv, mix

Form = Literal["auto", "concatenated", "merged"]


class LowRankExperts(nn.Module):
    """N experts that all tasks share: 3×3 convolution C → r_n, then 1×1 convolution r_n → C, nothing between.

    All experts are computed as one: a 3×3 convolution to the sum of all ranks, a gate for every rank, a 1×1
    convolution back. N maps of C channels are never made.

    Parameters
    ----------
    channels
        Width C.
    ranks
        r_n for every expert.
    form
        ``"concatenated"`` as above; ``"merged"`` adds the experts' kernels first, weighted by the gates, and convolves
        once per sample and task; ``"auto"`` takes the merged form where it costs less in both multiply-accumulates
        and numbers held (:meth:`costs`). Outputs and gradients are the same.

    Notes
    -----
    Source: MLoRE, Sec. 3.3 (W_lreb, b_lreb: ``down``; W_lrea, b_lrea: ``up_weight``, ``up_bias``). Weights start as
    Kaiming-uniform with a = sqrt(5), biases as zero, as in the released code. Chapter 5; the merge: chapter 8.
    """

    def __init__(self, channels: int, ranks: Sequence[int], form: Form = "auto") -> None:
        super().__init__()
        self.expert_of_rank: Tensor
        self.channels, self.ranks, self.form = channels, tuple(ranks), form
        self.down = nn.Conv2d(channels, sum(ranks), 3, padding=1)
        self.up_weight = nn.Parameter(torch.empty(channels, sum(ranks)))
        self.up_bias = nn.Parameter(torch.zeros(len(ranks), channels))
        expert_of_rank = torch.tensor([expert for expert, rank in enumerate(ranks) for _ in range(rank)])
        self.register_buffer("expert_of_rank", expert_of_rank, persistent=False)
        nn.init.zeros_(cast(Tensor, self.down.bias))
        for block in torch.split(self.up_weight, list(ranks), dim=1):
            nn.init.uniform_(block, -(block.shape[1] ** -0.5), block.shape[1] ** -0.5)

    def forward(self, features: Tensor, gates: Tensor) -> Tensor:
        """Add the experts' outputs, weighted by the gates (the sum in Eqs. 3 and 4).

        Parameters
        ----------
        features
            X^t of every task, ``(B, T, C, H, W)``.
        gates
            g_n^t, ``(B, T, N)``; zero where an expert is not active.

        Returns
        -------
        Tensor
            ``(B, T, C, H, W)``.
        """
        form = self.form
        if form == "auto" and torch.compiler.is_exporting():
            form = "concatenated"  # an exported model must not depend on the batch it was traced with
        if form == "auto":
            samples, tasks, _, height, width = features.shape
            costs = self.costs(samples, tasks, height * width)
            cheaper = all(merged < other for merged, other in zip(*costs.values(), strict=True))
            form = "merged" if cheaper else "concatenated"
        return self.merged(features, gates) if form == "merged" else self.concatenated(features, gates)

    def concatenated(self, features: Tensor, gates: Tensor) -> Tensor:
        """Gate the ranks between one large 3×3 and one large 1×1 convolution."""
        hidden = self.down(features.flatten(0, 1))  # (B*T, sum r, H, W)
        gate_of_rank = gates.flatten(0, 1)[:, self.expert_of_rank].to(hidden.dtype)  # (B*T, sum r)
        hidden = hidden * gate_of_rank[:, :, None, None]
        mixed = F.conv2d(hidden, self.up_weight[:, :, None, None])  # (B*T, C, H, W)
        bias = mix(gates, self.up_bias)  # (B, T, C)
        return torch.unflatten(mixed, 0, features.shape[:2]) + bias[..., None, None]  # (B, T, C, H, W)

    def merged(self, features: Tensor, gates: Tensor) -> Tensor:
        """Mix the experts' kernels, then convolve once per sample and task; exact, gradients included."""
        kernels, biases = self.kernels()
        return dynamic_conv(features, mix(gates, kernels), mix(gates, biases))

    def kernels(self) -> tuple[Tensor, Tensor]:
        """Every expert as one 3×3 convolution: kernels ``(N, C, C, 3, 3)`` and biases ``(N, C)``."""
        ranks = list(self.ranks)
        down_weights, ups = torch.split(self.down.weight, ranks), torch.split(self.up_weight, ranks, dim=1)
        down_biases = torch.split(cast(Tensor, self.down.bias), ranks)
        composed = [compose(*weights) for weights in zip(down_weights, down_biases, ups, self.up_bias, strict=True)]
        weights, biases = zip(*composed, strict=True)
        return torch.stack(weights), torch.stack(biases)

    def costs(self, samples: int, tasks: int, tokens: int) -> dict[str, tuple[int, int]]:
        """Multiply-accumulates of one pass, and numbers held for the backward pass, of both forms.

        Concatenated: a rank costs 9C + C multiply-accumulates a token, and is held twice, before and after its gate.
        Merged: kernels of all experts are made once (9C² a rank) and mixed for each sample and task (9C² an expert),
        which then convolves (9C² a token); held are the experts' kernels and the mixed ones.
        """
        pairs, rank, kernel = samples * tasks, sum(self.ranks), 9 * self.channels**2
        merged = kernel * (rank + pairs * (len(self.ranks) + tokens)), kernel * (len(self.ranks) + pairs)
        concatenated = 10 * self.channels * rank * pairs * tokens, 2 * rank * pairs * tokens
        return {"merged": merged, "concatenated": concatenated}


class LowRankConv2d(nn.Module):
    """One low-rank 3×3 convolution shared by all tasks: the light generic path of the supplement's Table 2."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, rank, 3, padding=1)
        self.up = nn.Conv2d(rank, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(B, C, H, W)`` into ``(B, C, H, W)``."""
        return cast(Tensor, self.up(self.down(features)))


class TaskExperts(nn.Module):
    """One low-rank expert for each task: its own 3×3 C → R, then 1×1 R → C (f_se, Eq. 2). Chapter 6."""

    def __init__(self, tasks: int, channels: int, rank: int) -> None:
        super().__init__()
        self.down = PerTaskConv2d(tasks, channels, rank, 3)
        self.up = PerTaskConv2d(tasks, rank, channels)
        for convolution in (self.down, self.up):
            nn.init.zeros_(cast(Tensor, convolution.bias))

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(B, T, C, H, W)`` into ``(B, T, C, H, W)``."""
        return cast(Tensor, self.up(self.down(features)))
