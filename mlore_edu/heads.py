"""Prediction heads: from a task's features to its raw prediction (chapter 3)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from mlore_edu.decoders.base import resize


class PredictionHead(nn.Module):
    """Upsample, mix neighbours, predict: resize → conv 3×3 → BatchNorm → GELU → conv 1×1.

    The 3×3 convolution runs at the finer resolution. That is most of a model's multiply-accumulates (16 times as
    many as at a ViT's stride of 16), and what lets a task draw finer than the backbone's tokens.

    Parameters
    ----------
    in_channels
        Width C of the decoder's features.
    channels
        Channels of the task's prediction.
    size
        Resolution ``(h, w)`` at which the head works, usually the image's divided by 4.
    activation
        ``"gelu"`` as in MLoRE, or ``"relu"`` as in TaskExpert (Sec. 3.4).

    Notes
    -----
    Initialisation as in MLoRE's released model: 3×3 weights normal with standard deviation 0.02, truncated at ±2
    as torch does; bias of the prediction normal with 0.02. Chapter 3.
    """

    def __init__(
        self, in_channels: int, channels: int, size: tuple[int, int], activation: Literal["gelu", "relu"] = "gelu"
    ) -> None:
        super().__init__()
        self.size = size
        self.activation = nn.functional.gelu if activation == "gelu" else nn.functional.relu
        self.mix = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(in_channels)
        self.predict = nn.Conv2d(in_channels, channels, 1)
        nn.init.trunc_normal_(self.mix.weight, std=0.02)
        if self.predict.bias is not None:
            nn.init.normal_(self.predict.bias, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(B, C, h, w)`` into a raw prediction ``(B, channels, *size)``."""
        features = resize(features, self.size)  # (B, C, H/4, W/4)
        hidden = self.activation(self.norm(self.mix(features)))  # (B, C, H/4, W/4)
        return cast(torch.Tensor, self.predict(hidden))  # (B, channels, H/4, W/4)
