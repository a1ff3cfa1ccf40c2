"""Routers: from a task's features to one number per expert (MLoRE, Sec. 3.3 and Table 4; chapter 7)."""

from __future__ import annotations

from math import sqrt
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.decoders.per_task import PerTaskConv2d, PerTaskLayerNorm
from mlore_edu.errors import UserError

RouterKind = Literal["both", "basic", "position", "static"]
"""The rows of MLoRE's Table 4: basic + pos., basic, only pos., w/o sample-dep."""


class PositionBranch(nn.Module):
    """One learned weight per place in the image for every task: a mean that knows where things are.

    Parameters
    ----------
    tasks, channels, hidden
        T, C, and the width of the result.
    tokens
        Places H*W of the maps; they fix the resolution, as a position embedding does.
    activation
        False as the paper prints it; True with LayerNorm and GELU after the mean, as released.
    """

    def __init__(self, tasks: int, channels: int, hidden: int, tokens: int, activation: bool) -> None:
        super().__init__()
        bound = 1 / sqrt(tokens)  # as torch initialises a linear layer with H*W inputs
        self.weight = nn.Parameter(torch.empty(tasks, tokens).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(tasks).uniform_(-bound, bound))
        self.norm = PerTaskLayerNorm(tasks, channels) if activation else None
        self.project = PerTaskConv2d(tasks, channels, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(B, T, C, H, W)`` into ``(B, T, hidden, 1, 1)``."""
        pooled = torch.einsum("btcp,tp->btc", features.flatten(3), self.weight) + self.bias[:, None]  # (B, T, C)
        pooled = pooled[..., None, None]  # (B, T, C, 1, 1)
        if self.norm is not None:
            pooled = F.gelu(self.norm(pooled))
        projected: Tensor = self.project(pooled)  # (B, T, hidden, 1, 1)
        return projected


class BasicBranch(nn.Module):
    """Two 1×1 convolutions and the mean over the image, for every task.

    Without an activation between them (as printed) all three are linear, so the mean may be taken first, on the
    smaller side of the work; with LayerNorm and GELU (as released) only the second convolution commutes with it.
    """

    def __init__(self, tasks: int, channels: int, hidden: int, activation: bool) -> None:
        super().__init__()
        self.first = PerTaskConv2d(tasks, channels, hidden)
        self.norm = PerTaskLayerNorm(tasks, hidden) if activation else None
        self.second = PerTaskConv2d(tasks, hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(B, T, C, H, W)`` into ``(B, T, hidden, 1, 1)``."""
        if self.norm is None:
            hidden = self.first(features.mean((-2, -1), keepdim=True))  # (B, T, hidden, 1, 1)
        else:
            hidden = F.gelu(self.norm(self.first(features))).mean((-2, -1), keepdim=True)  # (B, T, hidden, 1, 1)
        projected: Tensor = self.second(hidden)
        return projected


class Router(nn.Module):
    """The routers of all tasks: pool the image to a vector, and predict.

    Parameters
    ----------
    tasks, channels, tokens
        T, C and H*W of the features.
    outputs
        Numbers predicted per task: logits of the experts, and what else the gates need.
    kind
        Which branches there are; ``"static"`` is the basic branch fed with learned parameters in place of an image.
    activation
        LayerNorm and GELU inside the branches, as in the released code; the paper prints none.

    Notes
    -----
    Both branches give C/4 numbers, which are concatenated. Source: MLoRE, Sec. 3.3, Table 4. Chapter 7.
    """

    def __init__(
        self, tasks: int, channels: int, tokens: int, outputs: int, *, kind: RouterKind = "both", activation: bool
    ) -> None:
        super().__init__()
        if kind not in get_args(RouterKind):
            raise UserError(f"There is no router {kind!r}; choose one of {', '.join(get_args(RouterKind))}.")
        hidden = max(1, channels // 4)
        branches: dict[str, nn.Module] = {}
        if kind != "position":
            branches["basic"] = BasicBranch(tasks, channels, hidden, activation)
        if kind in ("both", "position"):
            branches["position"] = PositionBranch(tasks, channels, hidden, tokens, activation)
        self.branches = nn.ModuleDict(branches)
        self.predict = PerTaskConv2d(tasks, len(branches) * hidden, outputs)
        self.input = nn.Parameter(torch.randn(tasks, channels, 1, 1)) if kind == "static" else None

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(B, T, C, H, W)`` into ``(B, T, outputs)``."""
        if self.input is not None:
            features = self.input.expand(len(features), *self.input.shape)  # (B, T, C, 1, 1): the same for every image
        pooled = torch.cat([branch(features) for branch in self.branches.values()], dim=2)  # (B, T, hidden sum, 1, 1)
        predicted: Tensor = self.predict(pooled)  # (B, T, outputs, 1, 1)
        return predicted.flatten(2)  # (B, T, outputs)

    def start_at(self, rows: slice, value: float) -> None:
        """Let these outputs of every task be this value, whatever the image, until training changes it."""
        with torch.no_grad():
            for parameter, start in ((self.predict.weight, 0.0), (self.predict.bias, value)):
                assert parameter is not None
                parameter.view(self.predict.tasks, -1, *parameter.shape[1:])[:, rows] = start  # (T, outputs, ...)
