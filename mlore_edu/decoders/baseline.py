"""The decoder to beat: one linear map per scale and task, summed (MLoRE, Sec. 4.2 and Table 2, row Baseline)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from mlore_edu.decoders.base import DecoderOutput, MapShape, resize
from mlore_edu.tasks import TaskSet


class BaselineDecoder(nn.Module):
    """Project every scale linearly to every task, and sum over the scales.

    The T maps of a scale share their input, so they are one 1×1 convolution with T·C outputs. A convolution that
    looks at one pixel and a bilinear resize commute, so the projection is done at each map's own resolution.

    Parameters
    ----------
    tasks
        Tasks to make features for.
    maps
        Shapes of the backbone's maps.
    channels
        Width C of a task's features.
    shared
        True: one map for all tasks, which then differ in their heads alone (chapter 3 compares the two).

    Notes
    -----
    Source: MLoRE, Sec. 4.2: 115 M parameters and 391 G with ViT-B at C = 640, heads included. Chapter 3.
    """

    def __init__(self, tasks: TaskSet, maps: Sequence[MapShape], channels: int, *, shared: bool = False) -> None:
        super().__init__()
        self.task_names = tasks.names
        self.channels = channels
        self.size = max((shape.height, shape.width) for shape in maps)
        self.copies = 1 if shared else len(tasks)
        self.projections = nn.ModuleList(nn.Conv2d(shape.channels, self.copies * channels, 1) for shape in maps)

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        """Turn the backbone's maps into one map ``(B, C, h, w)`` per task, at the size of the largest map."""
        by_size: dict[tuple[int, int], Tensor] = {}  # maps of one size are summed before they are resized
        for feature_map, projection in zip(maps, self.projections, strict=True):
            size, projected = (feature_map.shape[2], feature_map.shape[3]), projection(feature_map)  # (B, T*C, h, w)
            by_size[size] = by_size[size] + projected if size in by_size else projected
        total = reduce(torch.add, (resize(summed, self.size) for summed in by_size.values()))  # (B, T*C, h, w)
        per_task = total.chunk(self.copies, dim=1) * (len(self.task_names) // self.copies)  # T of (B, C, h, w)
        return DecoderOutput(dict(zip(self.task_names, per_task, strict=True)), maps[0].new_zeros(()), {})
