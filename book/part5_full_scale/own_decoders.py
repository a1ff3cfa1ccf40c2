"""Decoders that chapter 20 builds out of the pieces of the three papers; a template for yours.

    mlore-edu train dollhouse_mlore_nano_64 --model book/part5_full_scale/own_decoders.py:ExpertsOnScales_vit_nano

A decoder takes the tasks, the shapes of the encoder's maps and a width, and turns the maps into one map per task.
Every argument behind the star is an option of the recipe, `--model-options memory_gates False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from mlore_edu.decoders.base import DecoderOutput, MapShape, resize
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_options import (
    MLoREOptions,
    active_experts,
    rank_schedule,
)
from mlore_edu.decoders.per_task import (
    PerTaskBatchNorm2d,
    PerTaskConv2d,
    resize_tasks,
)
from mlore_edu.decoders.pyramid import SimpleFeaturePyramid
from mlore_edu.decoders.taskexpert import TaskGates
from mlore_edu.decoders.tif import FeatureFuse, ScaleAttentiveFusion
from mlore_edu.tasks import TaskSet


class Template(nn.Module):
    """All maps narrowed, enlarged and summed, then one convolution per task."""

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        self.task_names = tasks.names
        self.channels = channels  # the heads are built from it
        self.size = max((shape.height, shape.width) for shape in maps)
        self.narrow = nn.ModuleList(
            nn.Conv2d(shape.channels, channels, 1) for shape in maps
        )
        self.to_tasks = PerTaskConv2d(len(tasks), channels, channels, kernel_size)

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        narrowed = [
            resize(narrow(feature_map), self.size)  # (B, C, h, w)
            for narrow, feature_map in zip(self.narrow, maps)
        ]
        shared = reduce(torch.add, narrowed).relu()  # (B, C, h, w)
        features = self.to_tasks(shared)  # (B, T, C, h, w)
        by_task = dict(zip(self.task_names, features.unbind(1)))
        return DecoderOutput(by_task, shared.new_zeros(()), {})


def options(experts: int) -> MLoREOptions:
    """What MLoRE's modules are told in both hybrids: ranks from 2 to 16, quiet gates, as in `vit_nano`'s own."""
    return MLoREOptions(
        ranks=rank_schedule(experts, 2, 16),
        k=active_experts(experts, None),
        task_rank=8,
        noise_start=0.05,
    )


class ExpertsWithMemory(nn.Module):
    """MLoRE's experts on every map, and TaskExpert's memory from one map to the next."""

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        experts: int = 15,
        modules: int = 2,
        memory: bool = True,
        balance_weight: float = 1e-2,
    ) -> None:
        super().__init__()
        count, (fine, *others) = len(tasks), maps  # the first map is the stem's
        self.task_names, self.channels = tasks.names, channels
        self.balance_weight = balance_weight
        self.plain = PerTaskConv2d(count, fine.channels, channels)
        self.narrow = nn.ModuleList(
            nn.Conv2d(shape.channels, channels, 1) for shape in others
        )
        self.layers = nn.ModuleList()
        for shape in others:
            sizes = (count, channels, shape.height * shape.width)
            self.layers.append(
                nn.ModuleList(
                    MLoREModule(*sizes, options(experts), nonlinear=n + 1 < modules)
                    for n in range(modules)
                )
            )
        self.gates, self.momentum = nn.ModuleList(), None
        if memory:
            self.gates.extend(
                TaskGates(shape.channels, count, 1, max(1, channels // 4))
                for shape in others[1:]  # the first has no memory to read
            )
            self.momentum = nn.Parameter(torch.ones(count))  # alpha

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        fine, *others = maps
        memory, balance_loss, routing = None, fine.new_zeros(()), {}
        for number, feature_map in enumerate(others):
            features = self.narrow[number](feature_map)  # (B, C, h, w)
            for depth, module in enumerate(self.layers[number], 1):
                output = module(features)
                features = output.features  # (B, T, C, h, w)
                balance_loss = balance_loss + output.balance_loss
                routing[f"map {number + 2}, module {depth}"] = output.gates
            memory = self.remember(number, feature_map, features, memory)
        size = (fine.shape[-2], fine.shape[-1])
        features = self.plain(fine) + resize_tasks(memory, size)
        by_task = dict(zip(self.task_names, features.unbind(1)))
        return DecoderOutput(by_task, self.balance_weight * balance_loss, routing)

    def remember(
        self,
        number: int,
        feature_map: Tensor,
        features: Tensor,
        memory: Tensor | None,
    ) -> Tensor:
        """Read what the maps before have left, `(B, T, C, h, w)`, and leave the sum."""
        if memory is None:
            return features
        if self.momentum is None:
            return features + memory
        gate = self.gates[number - 1](feature_map).sigmoid()  # (B, T, 1, h, w)
        read = features + gate * memory
        return read + self.momentum[:, None, None, None] * memory


class ExpertsOnScales(nn.Module):
    """MLoRE's experts where TIF has its attention: at each of four scales that have heard one another."""

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        high_width: int = 16,
        low_width: int = 32,
        fused_scales: int = 4,
        experts: int = 15,
        mixture: bool = True,
        balance_weight: float = 1e-2,
    ) -> None:
        super().__init__()
        count = len(tasks)
        self.task_names, self.channels = tasks.names, channels
        self.balance_weight = balance_weight
        self.pyramid = SimpleFeaturePyramid(maps)
        shapes = self.pyramid.shapes
        widths = [high_width, high_width, low_width, low_width]
        self.fusions = nn.ModuleList(
            ScaleAttentiveFusion(shapes, scale, width, 4 - scale <= fused_scales)
            for scale, width in enumerate(widths)
        )
        self.to_tasks = nn.ModuleList(
            nn.Sequential(
                PerTaskConv2d(count, width, width, 3, bias=False),
                PerTaskBatchNorm2d(count, width),
                nn.ReLU(),
            )
            for width in widths
        )
        self.mixtures = nn.ModuleList(
            MLoREModule(
                count,
                width,
                shape.height * shape.width,
                options(experts),
                nonlinear=False,
            )
            for shape, width in zip(shapes, widths)
            if mixture
        )
        self.fuse = FeatureFuse(count, widths, channels)

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        scales = self.pyramid(maps)
        features = [  # four of (B, T, C_i, H_i, W_i)
            to_tasks(fusion(scales))
            for fusion, to_tasks in zip(self.fusions, self.to_tasks)
        ]
        balance_loss, routing = maps[0].new_zeros(()), {}
        for scale, mixture in enumerate(self.mixtures):
            output = mixture(features[scale])
            features[scale] = features[scale] + output.features
            balance_loss = balance_loss + output.balance_loss
            routing[f"scale {scale}"] = output.gates
        fused = self.fuse(features)  # (B, T, C, H, W)
        by_task = dict(zip(self.task_names, fused.unbind(1)))
        return DecoderOutput(by_task, self.balance_weight * balance_loss, routing)
