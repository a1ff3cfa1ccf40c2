"""TIF, the Task-Interaction-Free network: tasks share the encoder and nothing behind it (ACM MM 2024).

The order is that of its Sec. 3. Letters: B samples, T tasks, N maps of Eq. 6; scales i = 0 to 3 from fine to coarse, n
the tokens of one. Features of all tasks at one scale travel as one tensor ``(B, T, C, H, W)``, so that no decoder waits
for another: T tasks cost T groups of one convolution, and T heads of one attention. Chapters 12 to 14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.checks import check_choice, check_switches, check_whole
from mlore_edu.decoders.base import DecoderOutput, MapShape
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d, PerTaskLayerNorm
from mlore_edu.decoders.pyramid import SimpleFeaturePyramid, align
from mlore_edu.errors import UserError
from mlore_edu.tasks import TaskSet

Distillation = Literal["self", "cross"]
Query = Literal["own", "first"]
Diffusion = Literal["gather", "scatter", "none"]


# --- Sec. 3.2: four scales that help each other ----------------------------------------------------------------------


class ScaleAttentiveFusion(nn.Module):
    """SAFF: one scale of the encoder, enriched with what the three others know (Eqs. 2 to 5).

    Parameters
    ----------
    shapes
        Shapes of the four scales.
    scale
        The one to enrich, i.
    channels
        Width of what comes out.
    fused
        False: the scale is only brought to its width (Table 9, W/O SAFF).
    norm
        Whether what the others say is normalised, and the hidden layer that hears it. The paper names one BatchNorm
        only, that of the scale itself; chapter 12 shows what becomes of the others without.
    """

    def __init__(
        self, shapes: Sequence[MapShape], scale: int, channels: int, fused: bool = True, norm: bool = False
    ) -> None:
        super().__init__()
        own, others = shapes[scale].channels, sum(shape.channels for shape in shapes) - shapes[scale].channels
        self.scale, self.fused = scale, fused
        self.reduce = nn.Sequential(nn.Conv2d(own, channels, 1, bias=False), nn.BatchNorm2d(channels))
        if not fused:
            return
        self.gather = nn.Conv2d(others, channels, 1)  # W_i
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) if norm else nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def aligned(self, scales: Sequence[Tensor]) -> Tensor:
        """Y^i: the three other scales at the size of this one, narrowed to its width (Eq. 2); ``(B, C, H, W)``."""
        size = cast(tuple[int, int], scales[self.scale].shape[-2:])
        others = [align(scale, size) for index, scale in enumerate(scales) if index != self.scale]
        return cast(Tensor, self.norm(self.gather(torch.cat(others, dim=1))))  # (B, C, H, W)

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Turn four scales ``(B, C_j, H_j, W_j)`` into the enriched one ``(B, C, H, W)``."""
        own: Tensor = self.reduce(scales[self.scale])  # XL^i: (B, C, H, W)
        if not self.fused:
            return own
        together = torch.cat([own, self.aligned(scales)], dim=1)  # (B, 2C, H, W)
        fused = self.fuse(together) + own  # Eq. 3
        return cast(Tensor, self.mix(self.spatial(fused).relu()))  # Eqs. 4 and 5


# --- Sec. 3.3: every task asks itself --------------------------------------------------------------------------------


class Affinity(NamedTuple):
    """How much every token wants of every other, A of Eq. 8, kept as its two factors.

    The matrix has n² entries and its factors 2nC, and all that TIF does with it can be done to the factors: enlarging
    both of its token axes enlarges both factors, adding two matrices sets their factors side by side (chapter 14).

    Attributes
    ----------
    queries, keys
        ``(B, T, C, h, w)``; the queries hold the factor 1/√C already.
    """

    queries: Tensor
    keys: Tensor

    def matrix(self) -> Tensor:
        """The affinities before the softmax, ``(B, T, n, n)``: row for the token that asks, column for the asked."""
        return self.queries.flatten(3).mT @ self.keys.flatten(3)  # (B, T, n, n)

    def resized(self, size: tuple[int, int]) -> Affinity:
        """The same between the tokens of another size: both token axes enlarged bilinearly (f_up of Eq. 11)."""
        return Affinity(align(self.queries, size), align(self.keys, size))

    def plus(self, other: Affinity) -> Affinity:
        """The sum of two, between the same tokens (Eq. 11)."""
        pairs = zip(self, other)
        return Affinity(*(torch.cat(pair, dim=2) for pair in pairs))  # (B, T, C + C', h, w)

    def gather(self, values: Tensor) -> Tensor:
        """Give every token the mean of the others' values, weighed by its affinities: Softmax(A) V."""
        # contiguous: torch's kernels that never build the n × n matrix ask for it
        tokens = [part.flatten(3).mT.contiguous() for part in (self.queries, self.keys, values)]  # (B, T, n, C)
        mean = F.scaled_dot_product_attention(tokens[0], tokens[1], tokens[2], scale=1.0)  # (B, T, n, C)
        return torch.unflatten(mean.mT, 3, values.shape[3:])  # (B, T, C, h, w)

    def scatter(self, values: Tensor) -> Tensor:
        """Send every token's value to those that it wants, Softmax(A) on the right of V as Eq. 12 prints it."""
        sent = values.flatten(3) @ self.matrix().softmax(dim=-1)  # (B, T, C, n)
        return torch.unflatten(sent, 3, values.shape[3:])  # (B, T, C, h, w)


class FeedForward(nn.Module):
    """FFN of Eqs. 10 and 13, one per task: LayerNorm, a hidden layer ``ratio`` times as wide, and back."""

    def __init__(self, tasks: int, channels: int, ratio: int) -> None:
        super().__init__()
        self.norm = PerTaskLayerNorm(tasks, channels)
        self.expand = PerTaskConv2d(tasks, channels, ratio * channels)
        self.project = PerTaskConv2d(tasks, ratio * channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(B, T, C, H, W)`` into the same shape."""
        return cast(Tensor, self.project(F.gelu(self.expand(self.norm(features)))))


class SelfFeatureDistillation(nn.Module):
    """SFD: attention of every task's tokens among themselves (Eqs. 6 to 10).

    Parameters
    ----------
    tasks, channels
        T and C.
    key_maps
        N of Eq. 6: keys, which are the values too, are the sum of so many linear maps of the task's feature.
    distillation
        ``"self"``, or ``"cross"``: the sum runs over the tasks instead, with one map each, and all tasks attend to it
        (Table 8; Model 1 of Fig. 1).
    query
        ``"own"``, or ``"first"``: that of the first task's feature, as Eq. 7 prints it.
    scaled
        Whether affinities are divided by √C, which Eq. 8 does not print.
    ffn_ratio
        Hidden width of the feed-forward network, over C.
    """

    def __init__(
        self,
        tasks: int,
        channels: int,
        *,
        key_maps: int,
        distillation: Distillation = "self",
        query: Query = "own",
        scaled: bool = True,
        ffn_ratio: int = 2,
    ) -> None:
        super().__init__()
        self.cross, self.query_of_first = distillation == "cross", query == "first"
        self.maps = 1 if self.cross else key_maps
        self.scale = channels**-0.5 if scaled else 1.0
        self.flat = PerTaskLayerNorm(tasks, channels)
        self.query = PerTaskConv2d(tasks, channels, channels, bias=False)
        self.key = PerTaskConv2d(tasks, channels, self.maps * channels, bias=False)  # N maps, one under the other
        self.feed_forward = FeedForward(tasks, channels, ffn_ratio)

    def affinity(self, features: Tensor) -> Affinity:
        """Who asks, and who answers: Q and K = V of Eqs. 6 and 7 for features ``(B, T, C, H, W)``."""
        flat = self.flat(features)  # (B, T, C, H, W)
        keys = self.key(flat).unflatten(2, (self.maps, -1)).sum(dim=2)  # (B, T, C, H, W)
        if self.cross:
            keys = keys.sum(dim=1, keepdim=True).expand_as(keys)  # the tasks' sum, for each of them
        asking = flat[:, :1].expand_as(flat) if self.query_of_first else flat
        return Affinity(self.query(asking) * self.scale, keys)

    def forward(self, features: Tensor) -> tuple[Tensor, Affinity]:
        """Refine ``(B, T, C, H, W)``, and hand on the affinities."""
        affinity = self.affinity(features)
        refined = affinity.gather(affinity.keys) + features  # Eq. 9
        return self.feed_forward(refined) + refined, affinity  # Eq. 10


# --- Sec. 3.4: what was learned at low scales, told to the high ones -------------------------------------------------


class FeatureFuse(nn.Module):
    """One map per task out of several: brought to the size of the largest, concatenated, convolved (Eqs. 13 and 14).

    Parameters
    ----------
    tasks
        T.
    widths
        Channels of the maps.
    channels
        Channels of the result.
    """

    def __init__(self, tasks: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.block = _conv_norm_relu(tasks, sum(widths), channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Turn maps ``(B, T, C_i, H_i, W_i)`` into one ``(B, T, C, H, W)``."""
        size = cast(tuple[int, int], max(tuple(feature.shape[-2:]) for feature in features))
        together = torch.cat([align(feature, size) for feature in features], dim=2)  # (B, T, sum of C_i, H, W)
        return cast(Tensor, self.block(together))  # (B, T, C, H, W)


def _conv_norm_relu(tasks: int, in_channels: int, channels: int) -> nn.Sequential:
    """A 3×3 convolution per task, on features of their own or on one that they share."""
    conv = PerTaskConv2d(tasks, in_channels, channels, 3, bias=False)
    return nn.Sequential(conv, PerTaskBatchNorm2d(tasks, channels), nn.ReLU())


class LowToHighDiffusion(nn.Module):
    """LTHD: a high scale gathers its pixels as the low scales would (Eqs. 12 and 13).

    Parameters
    ----------
    tasks, channels
        T and C.
    diffusion
        ``"gather"``, or ``"scatter"``: the order of factors that Eq. 12 prints.
    ffn_ratio
        Hidden width of the feed-forward network, over C.
    """

    def __init__(self, tasks: int, channels: int, diffusion: Diffusion = "gather", ffn_ratio: int = 2) -> None:
        super().__init__()
        self.scatters = diffusion == "scatter"
        self.value = PerTaskConv2d(tasks, channels, channels, bias=False)
        self.feed_forward = FeedForward(tasks, channels, ffn_ratio)
        self.fuse = FeatureFuse(tasks, [channels, channels], channels)

    def forward(self, features: Tensor, affinity: Affinity) -> Tensor:
        """Refine ``(B, T, C, H, W)`` by affinities between the tokens of a lower scale."""
        size = cast(tuple[int, int], affinity.keys.shape[-2:])
        values = self.value(align(features, size))  # (B, T, C, h, w)
        diffused = affinity.scatter(values) if self.scatters else affinity.gather(values)  # Eq. 12
        return cast(Tensor, self.fuse([features, self.feed_forward(diffused)]))  # Eq. 13


# --- all of it -------------------------------------------------------------------------------------------------------


class Anatomy(NamedTuple):
    """Everything TIF makes on its way from the backbone's maps to the tasks' features; lists go from scale 0 to 3.

    Attributes
    ----------
    scales
        X^i, ``(B, C_i, H_i, W_i)``.
    shared
        X̂^i, enriched, the same for all tasks: ``(B, C, H_i, W_i)``.
    of_tasks
        X̂^i of every task: ``(B, T, C, H_i, W_i)``.
    affinities
        A^i of the distilled scales, by i.
    diffused
        What the high scales are given for A^0 and A^1 (Eq. 11); None without diffusion.
    refined
        RX^i: ``(B, T, C, H_i, W_i)``.
    features
        FX: ``(B, T, D, H_0, W_0)``.
    """

    scales: list[Tensor]
    shared: list[Tensor]
    of_tasks: list[Tensor]
    affinities: dict[int, Affinity]
    diffused: Affinity | None
    refined: list[Tensor]
    features: Tensor


class TIFDecoder(nn.Module):
    """TIF: SAFF enriches four scales, and every task decodes them alone with SFD and LTHD.

    Parameters
    ----------
    tasks
        Tasks to make features for.
    maps
        Shapes of the backbone's maps, four.
    channels
        Width D of the tasks' features.
    high_width, low_width
        Width C of the scales 0 and 1, and of 2 and 3; D where not given. The paper names none.
    fused_scales
        How many of the scales have SAFF, counted from the lowest (Table 9: 0, 2, 4).
    fusion_norm
        Whether SAFF has more BatchNorms than the paper's one, see :class:`ScaleAttentiveFusion`.
    distilled_scales
        How many have SFD, counted from the lowest (Table 7: 1, 2). With 4 the high scales attend for themselves,
        which the paper avoids for its cost.
    diffusion
        How LTHD applies the affinities, see :class:`LowToHighDiffusion`; ``"none"``: there is no LTHD.
    distillation, key_maps, query, scaled
        See :class:`SelfFeatureDistillation`; ``key_maps`` is the number of tasks where not given.
    ffn_ratio
        Hidden width of all feed-forward networks, over C.

    Raises
    ------
    UserError
        For an option out of its range, or maps that are not four scales.

    Notes
    -----
    Source: TIF, Sec. 3. No code was ever released: what the paper leaves open is listed in chapter 14.
    """

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        high_width: int | None = None,
        low_width: int | None = None,
        fused_scales: int = 4,
        fusion_norm: bool = False,
        distilled_scales: int = 2,
        diffusion: Diffusion = "gather",
        distillation: Distillation = "self",
        key_maps: int | None = None,
        query: Query = "own",
        scaled: bool = True,
        ffn_ratio: int = 2,
    ) -> None:
        super().__init__()
        count = len(tasks)
        high, low = (channels if width is None else width for width in (high_width, low_width))
        key_maps = count if key_maps is None else key_maps
        check_whole(1, high_width=high, low_width=low, key_maps=key_maps, ffn_ratio=ffn_ratio)
        check_switches(scaled=scaled, fusion_norm=fusion_norm)
        check_choice("distillation", distillation, get_args(Distillation))
        check_choice("query", query, get_args(Query))
        check_choice("diffusion", diffusion, get_args(Diffusion))
        _check_scales(fused_scales, distilled_scales, diffusion)
        self.task_names, self.channels = tasks.names, channels
        self.pyramid = SimpleFeaturePyramid(maps)
        widths, shapes = [high, high, low, low], self.pyramid.shapes
        self.fusions = nn.ModuleList(
            ScaleAttentiveFusion(shapes, scale, width, 4 - scale <= fused_scales, fusion_norm)
            for scale, width in enumerate(widths)
        )
        self.to_tasks = nn.ModuleList(_conv_norm_relu(count, width, width) for width in widths)
        settings: dict[str, Any] = {"key_maps": key_maps, "distillation": distillation, "query": query}
        settings |= {"scaled": scaled, "ffn_ratio": ffn_ratio}
        self.distillers = nn.ModuleDict(
            {str(scale): SelfFeatureDistillation(count, widths[scale], **settings) for scale in _low(distilled_scales)}
        )
        high_scales = [] if diffusion == "none" else [s for s in (0, 1) if str(s) not in self.distillers]
        self.diffusers = nn.ModuleDict(
            {str(scale): LowToHighDiffusion(count, high, diffusion, ffn_ratio) for scale in high_scales}
        )
        self.fuse = FeatureFuse(count, widths, channels)

    def anatomy(self, maps: Sequence[Tensor]) -> Anatomy:
        """Everything on the way, for those who want to look; ``features`` at the end is what :meth:`forward` uses."""
        scales = self.pyramid(maps)
        shared = [fusion(scales) for fusion in self.fusions]  # (B, C, H_i, W_i)
        of_tasks = [to_tasks(scale) for to_tasks, scale in zip(self.to_tasks, shared)]  # (B, T, C, H_i, W_i)
        refined, affinities = list(of_tasks), {}
        for name, distiller in self.distillers.items():
            refined[int(name)], affinities[int(name)] = distiller(of_tasks[int(name)])
        diffused = None
        if self.diffusers:
            size = cast(tuple[int, int], scales[2].shape[-2:])
            diffused = affinities[3].resized(size)  # Eq. 11
            if 2 in affinities:
                diffused = diffused.plus(affinities[2])
        for name, diffuser in self.diffusers.items():
            refined[int(name)] = diffuser(of_tasks[int(name)], diffused)
        return Anatomy(scales, shared, of_tasks, affinities, diffused, refined, self.fuse(refined))

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        """Turn the backbone's maps into one map ``(B, D, H_0, W_0)`` per task."""
        features = self.anatomy(maps).features.unbind(1)  # T of (B, D, H_0, W_0)
        return DecoderOutput(dict(zip(self.task_names, features, strict=True)), maps[0].new_zeros(()), {})

    @staticmethod
    def preset(backbone: str, tasks: TaskSet, options: Mapping[str, Any]) -> dict[str, Any]:
        """Widths that go with a backbone."""
        return dict(WIDTHS.get(backbone, {}))


WIDTHS: dict[str, dict[str, int]] = {
    **{f"vit_{size}": {"channels": 32, "high_width": 16, "low_width": 32} for size in ("nano", "nano_12")},
    "hrnet18": {"channels": 28, "high_width": 28, "low_width": 68},
    "swin_tiny": {"channels": 88, "high_width": 88, "low_width": 96},
    "swin_small": {"channels": 88, "high_width": 88, "low_width": 96},
    "swin_base": {"channels": 96, "high_width": 96, "low_width": 108},
    "swin_large": {"channels": 100, "high_width": 100, "low_width": 120},
    "vit_base": {"channels": 200, "high_width": 200, "low_width": 200},
}
"""Widths that give the paper's parameters and FLOPs (chapter 14); Swin-S and Swin-B, of which it has none, between."""


def _low(count: int) -> range:
    """The lowest scales, so many of them."""
    return range(4 - count, 4)


def _check_scales(fused: int, distilled: int, diffusion: str) -> None:
    for option, value in {"fused_scales": fused, "distilled_scales": distilled}.items():
        if type(value) is not int or not 0 <= value <= 4:
            raise UserError(f"{option} is {value!r}; give a number of scales from 0 to 4.")
    if diffusion != "none" and distilled not in (1, 2, 3):
        raise UserError(f"With distilled_scales={distilled} there is nothing to diffuse; give diffusion='none' too.")
