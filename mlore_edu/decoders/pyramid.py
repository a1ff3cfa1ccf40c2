"""Four scales out of four maps, and the way from one scale to another (chapter 12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.decoders.base import MapShape, resize
from mlore_edu.errors import UserError


class SimpleFeaturePyramid(nn.Module):
    """Four scales, each half as fine as the one before, from the four maps of a plain ViT.

    The third map keeps its size. The finer ones are enlarged by 2×2 transposed convolutions, the last is max-pooled;
    a map that has its size already passes. So the maps of a Swin or an HRNet all pass.

    Parameters
    ----------
    maps
        Shapes of the backbone's maps.

    Raises
    ------
    UserError
        Where there are not four, or one cannot be brought to its scale.

    Notes
    -----
    TIF does not say how a ViT feeds four scales; this is what detectors on plain ViTs do. Chapter 12.
    """

    def __init__(self, maps: Sequence[MapShape]) -> None:
        super().__init__()
        if len(maps) != 4:
            raise UserError(f"TIF needs four maps, and the backbone gives {len(maps)}; choose four blocks.")
        steps = [nn.Identity() for _ in maps]
        self.steps = nn.ModuleList(steps)
        self.shapes = list(maps)
        for scale, (channels, height, width) in enumerate(maps):
            wanted = [side * 4 >> scale for side in maps[2][1:]]  # (4h, 4w), (2h, 2w), (h, w), (h/2, w/2)
            doublings = 2 - scale
            if not min(wanted):
                raise UserError(f"A map of {height} × {width} cannot be halved for the last scale; use larger images.")
            if [height, width] == wanted:
                continue
            if (height, width) != maps[2][1:]:
                raise UserError(f"TIF cannot make scale {scale} of a map of {height} × {width}; take another backbone.")
            self.steps[scale] = _enlarge(channels, doublings) if doublings > 0 else nn.MaxPool2d(2)
            self.shapes[scale] = MapShape(channels, *wanted)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn four maps ``(B, C_i, h_i, w_i)`` into four of strides that double from one to the next."""
        return [step(feature_map) for step, feature_map in zip(self.steps, maps, strict=True)]


def _enlarge(channels: int, doublings: int) -> nn.Sequential:
    """Double a map once or twice."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(channels, channels, 2, stride=2)]
    if doublings == 2:
        layers += [nn.BatchNorm2d(channels), nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, stride=2)]
    return nn.Sequential(*layers)


def align(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map ``(…, C, h, w)`` to another scale: enlarge it bilinearly, reduce it by averaging (P of Eq. 2)."""
    maps = features.flatten(0, -4)  # (…, C, h, w)
    fitted = F.adaptive_avg_pool2d(maps, size) if features.shape[-2] > size[0] else resize(maps, size)
    return torch.unflatten(fitted, 0, features.shape[:-3])  # (…, C, *size)
