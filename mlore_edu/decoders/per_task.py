"""Layers that hold one set of weights per task and run all tasks at once (chapters 6 and 7).

The features of all tasks are one tensor ``(B, T, C, H, W)``. T convolutions on it are one convolution with T groups on
``(B, T*C, H, W)``; T BatchNorms are one BatchNorm over T*C channels. Same numbers, no loop over tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.decoders.base import resize


class PerTaskConv2d(nn.Conv2d):
    """T convolutions of one shape, the t-th for the features of task t.

    Rows ``t*C'`` to ``(t+1)*C'`` of the weight belong to task t; each task's weights start as those of a convolution
    of its own would.

    Parameters
    ----------
    tasks
        Number T of tasks.
    in_channels, out_channels
        Channels C and C' of one task.
    kernel_size
        Odd; borders are padded with zeros, so that the map keeps its size.
    bias
        Whether there is one.
    """

    def __init__(
        self, tasks: int, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = True
    ) -> None:
        sizes = (tasks * in_channels, tasks * out_channels, kernel_size)
        super().__init__(*sizes, padding=kernel_size // 2, groups=tasks, bias=bias)
        self.tasks = tasks

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(B, T, C, H, W)``, or ``(B, C, H, W)`` that all tasks share, into ``(B, T, C', H, W)``."""
        shared = features.dim() == 4
        stacked = features if shared else features.flatten(1, 2)  # (B, T*C, H, W)
        groups = 1 if shared else self.tasks  # on a shared input the groups' rows are simply stacked
        output = F.conv2d(stacked, self.weight, self.bias, padding=self.padding, groups=groups)  # (B, T*C', H, W)
        return torch.unflatten(output, 1, (self.tasks, -1))  # (B, T, C', H, W)


class PerTaskBatchNorm2d(nn.Module):
    """T BatchNorms, the t-th for the features ``(B, T, C, H, W)`` of task t.

    It holds a BatchNorm rather than being one, so that ``SyncBatchNorm.convert_sync_batchnorm`` finds and replaces it.
    """

    def __init__(self, tasks: int, channels: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.norm = nn.BatchNorm2d(tasks * channels)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise ``(B, T, C, H, W)``."""
        normalised: Tensor = self.norm(features.flatten(1, 2))  # (B, T*C, H, W)
        return torch.unflatten(normalised, 1, (self.tasks, -1))  # (B, T, C, H, W)


class PerTaskLayerNorm(nn.Module):
    """T LayerNorms over the channels of every pixel, the t-th for the features ``(B, T, C, H, W)`` of task t."""

    def __init__(self, tasks: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(tasks, channels))
        self.bias = nn.Parameter(torch.zeros(tasks, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise ``(B, T, C, H, W)``."""
        last = F.layer_norm(features.movedim(2, -1), self.weight.shape[1:]).movedim(-1, 2)  # (B, T, C, H, W)
        return last * self.weight[:, :, None, None] + self.bias[:, :, None, None]


def resize_tasks(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize features ``(B, T, C, h, w)`` bilinearly to ``(B, T, C, *size)``."""
    if features.shape[-2:] == size:
        return features
    return torch.unflatten(resize(features.flatten(0, 1), size), 0, features.shape[:2])
