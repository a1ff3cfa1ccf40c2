"""The standard mixture of experts for several tasks (MLoRE, Sec. 3.2 and Table 2, row MoE; chapter 4).

From small to large: which k experts (:func:`top_k_mask`, :func:`noisy_top_k`), how unequal their work is
(:func:`cv_squared`), the experts themselves (:class:`ConvExperts`), and the decoder (:class:`MoEDecoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.checks import check_switches, check_weight, check_whole
from mlore_edu.decoders.base import DecoderOutput, MapShape, resize
from mlore_edu.errors import UserError
from mlore_edu.tasks import TaskSet

SMALLEST_NOISE = 1e-2
"""Floor of the noise's standard deviation: a router must not switch exploration off, nor divide by zero."""


def _check_active(k: int, experts: int) -> None:
    """Refuse what is not a whole number from 1 to the number of experts."""
    if type(k) is not int or not 1 <= k <= experts:
        raise UserError(f"k is {k!r}; give a whole number from 1 to {experts}, the number of experts.")


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mark the k largest scores of every row; of equal scores, the one of lower index is taken first.

    Parameters
    ----------
    scores
        ``(..., N)``.
    k
        How many to mark, 1 to N.

    Returns
    -------
    Tensor
        bool ``(..., N)``, exactly k of each row True.

    Raises
    ------
    UserError
        Where k is not a whole number from 1 to N.
    """
    _check_active(k, scores.shape[-1])
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]  # (..., k)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)  # (..., N)


class Gating(NamedTuple):
    """What a router decides.

    Attributes
    ----------
    gates
        ``(..., N)``: weight of each expert, zero but for k of them.
    load
        ``(..., N)``: probability that an expert is among the k, were its noise drawn again; differentiable. Where no
        noise was drawn: 1 for the k, 0 for the others.
    """

    gates: Tensor
    load: Tensor


def noisy_top_k(logits: Tensor, raw_noise: Tensor | None, k: int, *, softmax_first: bool, training: bool) -> Gating:
    """Choose k experts, in training after noise was added to the logits, and weigh them by a softmax.

    Parameters
    ----------
    logits
        ``(..., N)``.
    raw_noise
        ``(..., N)``: softplus of it, and no less than :data:`SMALLEST_NOISE`, is the noise's standard deviation; None
        for no noise.
    k
        How many experts work, 1 to N.
    softmax_first
        False: softmax over the k chosen, whose gates sum to 1 (Shazeer et al.). True: softmax over all N, of which k
        are kept as they are and sum to less than 1 (MLoRE, Sec. 3.3).
    training
        Whether noise is drawn.

    Returns
    -------
    Gating
        In float32 or wider: half precision would make ties.

    Raises
    ------
    UserError
        Where k is not a whole number from 1 to N.

    Notes
    -----
    Source: Shazeer et al. 2017, Eqs. 3 to 5 and Appendix A; MLoRE supplement, Sec. 1.2. Chapter 4.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (..., N)
    if raw_noise is None or not training:
        chosen = top_k_mask(logits, k)  # (..., N)
        return Gating(_gates(logits, chosen, softmax_first), chosen.to(logits.dtype))
    scale = F.softplus(raw_noise.to(logits.dtype)).clamp_min(SMALLEST_NOISE)  # (..., N)
    noisy = logits + torch.randn_like(logits) * scale  # (..., N)
    chosen = top_k_mask(noisy, k)  # (..., N)
    return Gating(_gates(noisy, chosen, softmax_first), _load(logits, noisy, scale, chosen, k))


def _gates(scores: Tensor, chosen: Tensor, softmax_first: bool) -> Tensor:
    """Weights of the chosen experts: softmax, then choice, or choice, then softmax."""
    if softmax_first:
        return scores.softmax(dim=-1) * chosen  # (..., N)
    return scores.masked_fill(~chosen, -torch.inf).softmax(dim=-1)  # (..., N)


def _load(logits: Tensor, noisy: Tensor, scale: Tensor, chosen: Tensor, k: int) -> Tensor:
    """P(expert n is among the k) over its own noise, the others' noise held: Shazeer et al. 2017, Eqs. 8 and 9.

    Expert n is among the k when logit_n + scale_n * z beats the k-th largest noisy logit *of the others*. That bar is
    number k + 1 of all where n is one of the k itself, and number k where it is not. Logits meet logits: the softmax
    has no part in it.
    """
    if k == logits.shape[-1]:
        return torch.ones_like(logits)  # nobody can be left out
    ranked = noisy.sort(dim=-1, descending=True, stable=True).values  # (..., N)
    bar = torch.where(chosen, ranked[..., k : k + 1], ranked[..., k - 1 : k])  # (..., N)
    beaten: Tensor = torch.special.ndtr((logits - bar) / scale)  # (..., N)
    return beaten


def cv_squared(values: Tensor) -> Tensor:
    """Square the coefficient of variation: (standard deviation / mean)², zero for equal values.

    Parameters
    ----------
    values
        ``(N,)``, none negative.

    Returns
    -------
    Tensor
        Scalar from 0 to N, with the unbiased variance; 0 for one value, or where all are 0.
    """
    if values.numel() == 1:
        return values.sum() * 0
    mean = values.mean()
    return (values / torch.where(mean == 0, 1, mean)).var()


def importance_loss(gates: Tensor) -> Tensor:
    """CV² of the experts' summed gates: zero when all experts are given the same weight (Shazeer et al., Eqs. 6, 7).

    Parameters
    ----------
    gates
        ``(..., N)``.

    Returns
    -------
    Tensor
        Scalar from 0 to N.
    """
    return cv_squared(gates.reshape(-1, gates.shape[-1]).sum(dim=0))


def load_loss(load: Tensor) -> Tensor:
    """CV² of the experts' summed loads: zero when all are expected to work equally often (Shazeer et al., Eqs. 10, 11).

    Parameters
    ----------
    load
        ``(..., N)``.

    Returns
    -------
    Tensor
        Scalar from 0 to N.
    """
    return cv_squared(load.reshape(-1, load.shape[-1]).sum(dim=0))


class ConvExperts(nn.Module):
    """N experts of full width: convolution, ReLU, 1×1 convolution, each from C to C channels.

    Their kernels lie one behind the other, so that all experts are one convolution.

    Parameters
    ----------
    channels
        Width C.
    experts
        Number N of experts.
    kernel_size
        Of the first convolution; odd.

    Raises
    ------
    UserError
        For a number below 1 or an even kernel.

    Notes
    -----
    Source: MLoRE, Sec. 4.2 (the standard MoE of Table 2). Chapter 4.
    """

    def __init__(self, channels: int, experts: int, kernel_size: int = 3) -> None:
        super().__init__()
        check_whole(1, channels=channels, experts=experts, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size is {kernel_size}; give an odd number, which has a middle.")
        self.channels, self.experts = channels, experts
        self.spatial = nn.Conv2d(channels, experts * channels, kernel_size, padding=kernel_size // 2)
        self.pointwise = nn.Conv2d(experts * channels, experts * channels, 1, groups=experts)

    def shared(self, features: Tensor, gates: Tensor) -> Tensor:
        """Run every expert once on a feature that all tasks share, and mix for each task (Eq. 1).

        Parameters
        ----------
        features
            ``(B, C, H, W)``.
        gates
            ``(B, T, N)``.

        Returns
        -------
        Tensor
            ``(B, T, C, H, W)``.
        """
        answers = self.pointwise(self.spatial(features).relu())  # (B, N*C, H, W)
        answers = answers.unflatten(1, (self.experts, self.channels))  # (B, N, C, H, W)
        return torch.einsum("bnchw,btn->btchw", answers, gates.to(answers.dtype))  # (B, T, C, H, W)

    def forward(self, features: Tensor, gates: Tensor, k: int) -> Tensor:
        """Run on every task's own feature the k experts of largest gate, and no others (Eq. 1, sparse).

        Each (sample, task) gathers the kernels of its experts; one grouped convolution runs them all. The gates are
        multiplied into the second kernels, whose product sums over the experts.

        Parameters
        ----------
        features
            ``(B, T, C, H, W)``.
        gates
            ``(B, T, N)``, zero but for at most k of each row.
        k
            Experts per sample and task.

        Returns
        -------
        Tensor
            ``(B, T, C, H, W)``.

        Raises
        ------
        UserError
            Where k is not a whole number from 1 to N.
        """
        _check_active(k, self.experts)
        batch, tasks, channels, height, width = features.shape
        groups, gates = batch * tasks, gates.to(features.dtype).flatten(0, 1)  # (B*T, N)
        chosen = gates.argsort(dim=-1, descending=True, stable=True)[:, :k]  # (B*T, k)
        weights = gates.gather(-1, chosen)  # (B*T, k)
        spatial = self._by_expert(self.spatial.weight)[chosen].flatten(0, 2)  # (B*T*k*C, C, h, w)
        spatial_bias = self._by_expert(self.spatial.bias)[chosen].flatten()  # (B*T*k*C,)
        hidden = F.conv2d(
            features.reshape(1, groups * channels, height, width),  # (1, B*T*C, H, W)
            spatial,
            spatial_bias,
            padding=self.spatial.padding,
            groups=groups,
        ).relu()  # (1, B*T*k*C, H, W)
        pointwise = self._by_expert(self.pointwise.weight)[chosen].flatten(3)  # (B*T, k, C, C)
        pointwise = torch.einsum("gk,gkoi->goki", weights, pointwise).flatten(2).flatten(0, 1)  # (B*T*C, k*C)
        bias = torch.einsum("gk,gkc->gc", weights, self._by_expert(self.pointwise.bias)[chosen]).flatten()  # (B*T*C,)
        mixed = F.conv2d(hidden, pointwise[:, :, None, None], bias, groups=groups)  # (1, B*T*C, H, W)
        return mixed.reshape(batch, tasks, channels, height, width)  # (B, T, C, H, W)

    def _by_expert(self, parameter: Tensor | None) -> Tensor:
        """Split a parameter of all experts, ``(N*C, ...)``, into ``(N, C, ...)``."""
        assert parameter is not None
        return parameter.view(self.experts, self.channels, *parameter.shape[1:])  # (N, C, ...)


class _MoEScale(nn.Module):
    """One scale of the decoder: projection, routers, experts, and this scale's share of the last 1×1 convolution."""

    def __init__(self, tasks: int, in_channels: int, channels: int, experts: int, noise: bool, bias: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.routers = nn.Linear(channels, tasks * experts * (2 if noise else 1))
        self.experts = ConvExperts(channels, experts)
        self.to_sum = nn.Conv2d(tasks * channels, tasks * channels, 1, groups=tasks, bias=bias)
        self.tasks, self.noise = tasks, noise

    def forward(self, feature_map: Tensor, k: int) -> tuple[Tensor, Gating]:
        """From a map of the backbone to all tasks' features ``(B, T*C, h, w)`` and the gates ``(B, T, N)``."""
        features = self.project(feature_map)  # (B, C, h, w)
        routed = self.routers(features.mean(dim=(2, 3))).unflatten(1, (self.tasks, -1))  # (B, T, N or 2N)
        logits, raw_noise = routed.chunk(2, dim=-1) if self.noise else (routed, None)  # (B, T, N) each
        gating = noisy_top_k(logits, raw_noise, k, softmax_first=False, training=self.training)
        mixed = self.experts.shared(features, gating.gates)  # (B, T, C, h, w)
        return self.to_sum(mixed.flatten(1, 2)), gating  # (B, T*C, h, w)


class MoEDecoder(nn.Module):
    """A mixture of full-width experts at every scale, routed for each task and image.

    At each scale the experts run once on the feature that all tasks share; a router per task, which sees the mean of
    the tokens, mixes their answers (Eq. 1). The scales are concatenated and a 1×1 convolution per task makes 4C
    channels C. It is linear, so each scale does its share at its own resolution, as in the baseline.

    Parameters
    ----------
    tasks
        Tasks to make features for.
    maps
        Shapes of the backbone's maps.
    channels
        Width C.
    experts
        Experts N per scale.
    k
        Experts that each task uses; 60 % of N if not given.
    balance_weight
        Weight of the importance and load losses, summed over the scales; 0 for none.
    noise
        Whether the routers explore by noise in training.

    Raises
    ------
    UserError
        For options out of range.

    Notes
    -----
    Source: MLoRE, Sec. 3.2, Eq. 1, and supplement, Sec. 1.2. Chapter 4.
    """

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        experts: int = 15,
        k: int | None = None,
        balance_weight: float = 1e-2,
        noise: bool = True,
    ) -> None:
        super().__init__()
        check_whole(1, experts=experts)
        check_switches(noise=noise)
        self.k = max(1, round(0.6 * experts)) if k is None else k
        _check_active(self.k, experts)
        check_weight(balance_weight=balance_weight)
        self.task_names = tasks.names
        self.channels = channels
        self.balance_weight = balance_weight
        self.size = max((shape.height, shape.width) for shape in maps)
        self.scales = nn.ModuleList(
            _MoEScale(len(tasks), shape.channels, channels, experts, noise, bias=index == 0)
            for index, shape in enumerate(maps)
        )

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        """Turn the backbone's maps into one map ``(B, C, h, w)`` per task, at the size of the largest map."""
        results = [scale(feature_map, self.k) for feature_map, scale in zip(maps, self.scales, strict=True)]
        total = reduce(torch.add, (resize(features, self.size) for features, _ in results))  # (B, T*C, h, w)
        per_task = total.chunk(len(self.task_names), dim=1)  # T of (B, C, h, w)
        losses = [importance_loss(gating.gates) + load_loss(gating.load) for _, gating in results]
        balance_loss = self.balance_weight * torch.stack(losses).sum()
        routing = {f"scale {i}, module 1": gating.gates for i, (_, gating) in enumerate(results, start=1)}
        return DecoderOutput(dict(zip(self.task_names, per_task, strict=True)), balance_loss, routing)
