"""Mixture of low-rank experts (MLoRE, Yang et al., CVPR 2024), in the order of its Sec. 3.3 (chapters 5 to 9).

The features of all tasks travel as one tensor ``(B, T, C, H, W)``. Letters: B samples, T tasks, C width, N experts,
k of them active, r_n the rank of expert n, R the rank of a task's own expert.

Two readings of the paper differ in many details, and ``variant`` chooses between them: ``"paper"`` is what its text
and supplement say, ``"released"`` what the published checkpoints were made with. Every line that differs asks
``released``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.checks import check_choice, check_weight, check_whole
from mlore_edu.decoders.base import DecoderOutput, MapShape
from mlore_edu.decoders.low_rank import Form, LowRankConv2d, LowRankExperts, TaskExperts
from mlore_edu.decoders.mlore_options import (
    SHAZEER_NOISE,
    MLoREOptions,
    active_experts,
    check_paths,
    preset,
    rank_schedule,
)
from mlore_edu.decoders.moe import ConvExperts, Gating, importance_loss, load_loss, noisy_top_k
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d, resize_tasks
from mlore_edu.decoders.routers import Router, RouterKind
from mlore_edu.errors import UserError
from mlore_edu.reparameterization import Mode
from mlore_edu.tasks import TaskSet

Variant = Literal["paper", "released"]


class NonlinearBlock(nn.Module):
    """What stands between two linear modules: GELU–BatchNorm–Linear, or BatchNorm–GELU–Linear as released."""

    def __init__(self, tasks: int, channels: int, *, norm_first: bool) -> None:
        super().__init__()
        self.norm = PerTaskBatchNorm2d(tasks, channels)
        self.linear = PerTaskConv2d(tasks, channels, channels)
        self.norm_first = norm_first

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(B, T, C, H, W)`` into ``(B, T, C, H, W)``."""
        features = F.gelu(self.norm(features)) if self.norm_first else self.norm(F.gelu(features))
        return cast(Tensor, self.linear(features))


class ModuleOutput(NamedTuple):
    """Features ``(B, T, C, H, W)``, gates ``(B, T, N)`` or none, and the module's unweighted balance loss."""

    features: Tensor
    gates: Tensor | None
    balance_loss: Tensor


class MLoREModule(nn.Module):
    """One module: S^t = f_g(X^t) + f_sr^t(f_lre(X^t)) + f_se^t(X^t) for every task (Eq. 2).

    Parameters
    ----------
    tasks, channels, tokens
        T, C, and H*W of the maps.
    options
        Which paths there are, and how.
    nonlinear
        Whether a :class:`NonlinearBlock` ends the module.

    Notes
    -----
    Chapter 6 builds the paths, chapter 9 the module. :meth:`fuse` gives its inference form (chapter 8).
    """

    def __init__(self, tasks: int, channels: int, tokens: int, options: MLoREOptions, *, nonlinear: bool) -> None:
        super().__init__()
        self.options, released, count = options, options.released, len(options.ranks)
        self.project = PerTaskConv2d(tasks, channels, channels)  # f_{t,1×1}
        self.generic: nn.Module | None = None  # f_g
        if options.generic_rank is not None:
            self.generic = LowRankConv2d(channels, options.generic_rank)
        elif options.generic:
            self.generic = nn.Conv2d(channels, channels, 3, padding=1)
        self.experts: LowRankExperts | ConvExperts | None = None  # f_lre
        if count:
            conv = options.experts_kind == "conv"
            self.experts = (
                ConvExperts(channels, count) if conv else LowRankExperts(channels, options.ranks, options.form)
            )
            self.norm = PerTaskBatchNorm2d(tasks, channels)
        self.task_experts = TaskExperts(tasks, channels, options.task_rank) if options.task_experts else None  # f_se
        scale = 1 if released and options.task_experts else 0  # released: the task path has a learned scale
        outputs = count * (1 + options.noise) + scale
        self.router = None  # f_sr
        if outputs:
            self.router = Router(tasks, channels, tokens, outputs, kind=options.router, activation=released)
            if options.noise and count and not released:  # released: the scale starts as the layer's weights have it
                self.router.start_at(slice(count, 2 * count), math.log(math.expm1(options.noise_start)))
        self.nonlinear = NonlinearBlock(tasks, channels, norm_first=released) if nonlinear else None

    def forward(self, features: Tensor) -> ModuleOutput:
        """Turn the features ``(B, T, C, H, W)`` of all tasks, or ``(B, C, H, W)`` shared by them, into new ones."""
        features = self.project(features)  # X^t: (B, T, C, H, W)
        gating, task_scale = self.route(features)
        paths = []
        if self.generic is not None:  # its gradient stops here: only the other paths teach what lies below
            source = features.detach() if self.options.stop_gradient else features
            paths.append(torch.unflatten(self.generic(source.flatten(0, 1)), 0, features.shape[:2]))  # (B, T, C, H, W)
        if gating is not None:
            paths.append(self.norm(self._mix_experts(features, gating.gates)))
        if self.task_experts is not None:
            specific = self.task_experts(features)
            paths.append(specific if task_scale is None else specific * task_scale[..., None, None, None])
        return self.finish(reduce(torch.add, paths), gating)

    def route(self, features: Tensor) -> tuple[Gating | None, Tensor | None]:
        """Gates of the experts, and the released code's scale ``(B, T)`` of the task path."""
        if self.router is None:
            return None, None
        count, released = len(self.options.ranks), self.options.released
        outputs = self.router(features)  # (B, T, N [+ N] [+ 1])
        scale = outputs[..., -1] if released and self.options.task_experts else None  # (B, T)
        if not count:
            return None, scale
        logits, noise = outputs[..., :count], outputs[..., count : 2 * count] if self.options.noise else None
        if released and noise is not None:  # plain Gaussian noise times a raw scale; no estimate of the load
            logits, noise = logits + torch.randn_like(logits) * noise if self.training else logits, None
        choose = {"softmax_first": self.options.softmax_first, "training": self.training}
        return noisy_top_k(logits, noise, self.options.k, **choose), scale

    def finish(self, features: Tensor, gating: Gating | None) -> ModuleOutput:
        """Apply the non-linear block, and add up the balance loss."""
        if self.nonlinear is not None:
            features = self.nonlinear(features)
        if gating is None:
            return ModuleOutput(features, None, features.new_zeros(()))
        balance_loss = importance_loss(gating.gates)
        if not self.options.released:  # released: importance only
            balance_loss = balance_loss + load_loss(gating.load)
        return ModuleOutput(features, gating.gates, balance_loss)

    def _mix_experts(self, features: Tensor, gates: Tensor) -> Tensor:
        if isinstance(self.experts, ConvExperts):
            return cast(Tensor, self.experts(features, gates, self.options.k))
        return cast(Tensor, cast(LowRankExperts, self.experts)(features, gates))

    def fuse(self, mode: Mode | None = None) -> nn.Module:
        """The module's inference form (Eqs. 3 to 7), see :func:`mlore_edu.decoders.mlore_fused.fuse_module`."""
        from mlore_edu.decoders.mlore_fused import fuse_module

        return fuse_module(self, mode)


class ConcatenateScales(nn.Module):
    """One 1×1 convolution 4C → C per task on the concatenated scales (as the paper's text has it).

    It equals a sum of convolutions C → C, one per scale, each done at its map's own resolution before resizing.
    """

    def __init__(self, tasks: int, channels: int, scales: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(PerTaskConv2d(tasks, channels, channels, bias=s == 0) for s in range(scales))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Turn S maps ``(B, T, C, h, w)`` into one ``(B, T, C, *size)``."""
        by_size: dict[tuple[int, int], Tensor] = {}  # maps of one size are summed before they are resized
        for part, features in zip(self.parts, maps, strict=True):
            own, share = (features.shape[-2], features.shape[-1]), part(features)  # (B, T, C, h, w)
            by_size[own] = by_size[own] + share if own in by_size else share
        return reduce(Tensor.add, (resize_tasks(summed, size) for summed in by_size.values()))


class WeighScales(nn.Module):
    """A softmax over the scales at every pixel of every task (as released); the concatenation predicts its weights."""

    def __init__(self, tasks: int, channels: int, scales: int) -> None:
        super().__init__()
        self.reduce = PerTaskConv2d(tasks, scales * channels, channels)
        self.norm = PerTaskBatchNorm2d(tasks, channels)
        self.predict = PerTaskConv2d(tasks, channels, scales, 3)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Turn S maps ``(B, T, C, h, w)`` into one ``(B, T, C, *size)``."""
        resized = [resize_tasks(features, size) for features in maps]
        hidden = F.gelu(self.norm(self.reduce(torch.cat(resized, dim=2))))  # (B, T, C, H, W)
        weights: Tensor = self.predict(hidden).softmax(dim=2)  # (B, T, S, H, W)
        weighed = [weight[:, :, None] * m for weight, m in zip(weights.unbind(2), resized, strict=True)]
        return reduce(Tensor.add, weighed)


class MLoREDecoder(nn.Module):
    """MLoRE on every scale, and a fusion of the scales, for all tasks at once.

    Parameters
    ----------
    tasks
        Tasks to make features for.
    maps
        Shapes of the backbone's maps.
    channels
        Width C.
    variant
        ``"paper"`` or ``"released"``, see the top of this file; chapter 9 lists every difference.
    modules
        MLoRE modules stacked at each scale (supplement, Table 1).
    experts, min_rank, max_rank
        N, and the ranks: evenly spaced from the lowest to the highest, rounded (Table 3). N = 0: no shared experts.
    k
        Active experts per sample and task; round(0.6 N), at least 1, where not given (Fig. 3).
    experts_kind
        ``"low_rank"``, or ``"conv"`` for the full-width ones of Table 2's row MoE.
    task_rank
        R of the task experts.
    generic, generic_rank, task_experts
        Whether there is a generic path, its rank where it is to be low (supplement, Table 2), and whether there are
        task experts (Table 2).
    stop_gradient
        Whether the generic path passes no gradient to the features below it.
    router
        Row of Table 4: ``"both"``, ``"basic"``, ``"position"`` or ``"static"``.
    softmax_first
        True: gates are the softmax over all N, and all but k are dropped; False: drop first, then softmax over k.
    noise
        Whether the gates are noisy in training.
    noise_start
        Standard deviation of that noise before training, above :data:`~mlore_edu.decoders.moe.SMALLEST_NOISE`; the
        network learns it from there. Shazeer et al. start at ln 2; the released variant has its own start.
    balance_weight
        Weight of the balance loss, summed over scales and modules; 0 leaves it out (supplement, Table 5).
    form
        How the experts are computed in training, see :class:`~mlore_edu.decoders.low_rank.LowRankExperts`.
    plain_maps
        Number of leading maps that get one 1×1 convolution per task instead of modules: 1 for ``vit_nano``, whose
        first map is the stem's and four times as fine as its tokens.

    Raises
    ------
    UserError
        For an option out of its range.

    Notes
    -----
    Source: MLoRE, Sec. 3 and supplement Sec. 1. Chapter 9.
    """

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        variant: Variant = "paper",
        modules: int = 2,
        experts: int = 15,
        min_rank: int = 16,
        max_rank: int = 128,
        k: int | None = None,
        experts_kind: Literal["low_rank", "conv"] = "low_rank",
        task_rank: int = 64,
        generic: bool = True,
        generic_rank: int | None = None,
        task_experts: bool = True,
        stop_gradient: bool = True,
        router: RouterKind = "both",
        softmax_first: bool = True,
        noise: bool = True,
        noise_start: float = SHAZEER_NOISE,
        balance_weight: float = 1e-4,
        form: Form = "auto",
        plain_maps: int = 0,
    ) -> None:
        super().__init__()
        check_choice("variant", variant, get_args(Variant))
        check_whole(1, modules=modules)
        check_whole(0, plain_maps=plain_maps)
        if plain_maps >= len(maps):
            raise UserError(f"plain_maps is {plain_maps} of {len(maps)} maps; leave at least one to the modules.")
        check_weight(balance_weight=balance_weight)
        self.task_names, self.channels, self.balance_weight = tasks.names, channels, balance_weight
        self.size = max((shape.height, shape.width) for shape in maps)
        released = variant == "released"
        options = MLoREOptions(
            released=released,
            ranks=rank_schedule(experts, min_rank, max_rank),
            k=active_experts(experts, k),
            task_rank=task_rank,
            generic=generic,
            generic_rank=generic_rank,
            stop_gradient=stop_gradient,
            task_experts=task_experts,
            experts_kind=experts_kind,
            router=router,
            softmax_first=softmax_first,
            noise=noise,
            noise_start=noise_start,
            form=form,
        )
        check_paths(options)
        count = len(tasks)
        self.narrow = nn.ModuleList(nn.Conv2d(shape.channels, channels, 1) for shape in maps)
        self.scales = nn.ModuleList()
        for index, shape in enumerate(maps):
            if index < plain_maps:
                self.scales.append(nn.ModuleList([PerTaskConv2d(count, channels, channels)]))
                continue
            nonlinear = [released or module + 1 < modules for module in range(modules)]  # paper: only between modules
            tokens = shape.height * shape.width
            self.scales.append(
                nn.ModuleList(MLoREModule(count, channels, tokens, options, nonlinear=block) for block in nonlinear)
            )
        fusion = WeighScales if released else ConcatenateScales
        self.fusion = fusion(count, channels, len(maps))

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        """Turn the backbone's maps into one map ``(B, C, h, w)`` per task, at the size of the largest map."""
        outputs, routing, balance_loss = [], {}, maps[0].new_zeros(())
        for scale, (feature_map, narrow, modules) in enumerate(zip(maps, self.narrow, self.scales, strict=True), 1):
            features = narrow(feature_map)  # (B, C, h, w)
            for number, module in enumerate(cast(nn.ModuleList, modules), 1):
                output = module(features)
                if isinstance(output, Tensor):  # a plain map
                    features = output  # (B, T, C, h, w)
                    continue
                features, balance_loss = output.features, balance_loss + output.balance_loss
                if output.gates is not None:
                    routing[f"scale {scale}, module {number}"] = output.gates  # (B, T, N)
            outputs.append(features)
        fused = self.fusion(outputs, self.size)  # (B, T, C, h, w)
        features_by_task = dict(zip(self.task_names, fused.unbind(1), strict=True))
        return DecoderOutput(features_by_task, self.balance_weight * balance_loss, routing)

    @staticmethod
    def preset(backbone: str, tasks: TaskSet, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that go with a backbone and a data set, see :func:`mlore_edu.decoders.mlore_options.preset`."""
        return preset(backbone, tasks, options)
