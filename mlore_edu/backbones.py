"""Backbones: from an image to four feature maps (chapter 3).

Each is a model of timm, or the small one of the chapters, under one interface: ``backbone(images)`` returns a list of
four maps ``(B, C, h, w)``, ``backbone.channels`` and ``backbone.strides`` say beforehand what they will measure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mlore_edu.decoders.base import resize
from mlore_edu.errors import UserError


@dataclass(frozen=True)
class _Spec:
    """Which timm model, which of its outputs, and what they measure."""

    timm_name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...] = (16, 16, 16, 16)
    outputs: tuple[int, ...] = (2, 5, 8, 11)
    patch: int = 16
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_vit(self) -> bool:
        return self.strides[0] == self.strides[-1]


def _vit(timm_name: str, width: int, depth: int, patch: int = 16, **options: Any) -> _Spec:
    """Features after a quarter, half, three quarters and all of the blocks."""
    outputs = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    return _Spec(timm_name, (width,) * 4, outputs=outputs, patch=patch, options={"global_pool": "", **options})


def _pyramid(timm_name: str, width: int, outputs: tuple[int, ...], **options: Any) -> _Spec:
    """Four resolutions, each half as fine and twice as wide as the one before."""
    return _Spec(timm_name, (width, 2 * width, 4 * width, 8 * width), (4, 8, 16, 32), outputs, options=options)


_SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24)}

_SPECS = {
    **{f"vit_{s}": _vit(f"vit_{s}_patch16_384", *_SIZES[s], class_token=False) for s in _SIZES},
    **{f"dinov2_{s}": _vit(f"vit_{s}_patch14_dinov2", *_SIZES[s], patch=14) for s in _SIZES},
    **{f"dinov3_{s}": _vit(f"vit_{s}_patch16_dinov3", *_SIZES[s]) for s in _SIZES},
    "swin_tiny": _pyramid("swin_tiny_patch4_window7_224", 96, (0, 1, 2, 3)),
    "swin_small": _pyramid("swin_small_patch4_window7_224", 96, (0, 1, 2, 3)),
    "swin_base": _pyramid("swin_base_patch4_window12_384", 128, (0, 1, 2, 3)),
    "swin_large": _pyramid("swin_large_patch4_window12_384", 192, (0, 1, 2, 3)),
    # the four raw branches, without the classifier's widening modules; output 0 is the stem
    "hrnet18": _pyramid("hrnet_w18_small_v2", 18, (1, 2, 3, 4), head=""),
}

_NANO_DEPTHS = {"vit_nano": 3, "vit_nano_12": 12}

BACKBONES = (*_NANO_DEPTHS, *_SPECS)
"""Names that :func:`build_backbone` takes."""


class TimmBackbone(nn.Module):
    """A model of timm as four feature maps.

    A ViT gives its tokens after a quarter, half, three quarters and all of its blocks, the last after the final
    LayerNorm; class and register tokens are dropped. A pyramid (Swin, HRNet) gives its four stages or branches.
    DINOv2 was trained with patches of 14 pixels: its image is resized by 14/16, so that it, too, has one token for
    16 × 16 pixels of the original.
    """

    def __init__(self, spec: _Spec, img_size: tuple[int, int], drop_path_rate: float) -> None:
        super().__init__()
        self.spec = spec
        self.channels, self.strides, self.img_size = spec.channels, spec.strides, img_size
        self.outputs = list(spec.outputs)
        self.input_size = (img_size[0] * spec.patch // 16, img_size[1] * spec.patch // 16)
        options = dict(spec.options)
        if "hrnet" not in spec.timm_name:  # fully convolutional, without drop path
            options |= {"img_size": self.input_size, "drop_path_rate": drop_path_rate}
        self.net: Any = timm.create_model(spec.timm_name, num_classes=0, **options)
        module: Any
        for module in self.net.modules():  # off in timm's Swin: the same numbers, and complexity.py knows the products
            if hasattr(module, "fused_attn"):
                module.fused_attn = True

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images ``(B, 3, H, W)`` into four maps ``(B, channels[i], H / strides[i], W / strides[i])``."""
        images = resize(images, self.input_size)
        maps: list[Tensor] = self.net.forward_intermediates(images, indices=self.outputs, intermediates_only=True)
        if hasattr(self.net, "norm"):
            maps[-1] = self.net.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over the channels
        return maps


class NanoViT(nn.Module):
    """A convolutional stem and a small transformer, for a chapter's minutes on two CPU cores (not from a paper).

    The stem's map, at half the image's resolution, is the first of the four; the transformer's tokens, one for 8 × 8
    pixels, after a third, two thirds and all of its blocks are the others. Without the stem's map boundaries and
    human parts do not appear at all within a minute of training.
    """

    def __init__(
        self, img_size: tuple[int, int], drop_path_rate: float = 0.0, width: int = 96, depth: int = 3, stem: int = 32
    ) -> None:
        super().__init__()
        self.channels, self.strides, self.img_size = (stem, width, width, width), (2, 8, 8, 8), img_size
        self.stem = nn.Sequential(*_conv_norm_gelu(3, stem, 2), *_conv_norm_gelu(stem, stem, 1))
        self.patch_embed = nn.Sequential(*_conv_norm_gelu(stem, 2 * stem, 2), nn.Conv2d(2 * stem, width, 2, stride=2))
        self.grid = (img_size[0] // 8, img_size[1] // 8)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        drops = [drop_path_rate * block / max(depth - 1, 1) for block in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, num_heads=width // 32, mlp_ratio=2.0, qkv_bias=True, drop_path=p) for p in drops
        )
        self.outputs = [depth // 3 - 1, 2 * depth // 3 - 1, depth - 1]
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images ``(B, 3, H, W)`` into the stem's map ``(B, C, H/2, W/2)`` and three token maps of H/8 × W/8."""
        fine = self.stem(images)  # (B, stem, H/2, W/2)
        tokens = self.patch_embed(fine).flatten(2).transpose(1, 2) + self.pos_embed  # (B, HW/64, width)
        maps = [fine]
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.outputs:
                last = self.norm(tokens) if index == self.outputs[-1] else tokens
                maps.append(last.transpose(1, 2).unflatten(2, self.grid))  # (B, width, H/8, W/8)
        return maps


def _conv_norm_gelu(channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.GELU()


Backbone = TimmBackbone | NanoViT


def build_backbone(
    name: str,
    img_size: tuple[int, int],
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    drop_path_rate: float = 0.0,
    blocks: Sequence[int] | None = None,
) -> Backbone:
    """Build a backbone by name.

    Parameters
    ----------
    name
        One of :data:`BACKBONES`.
    img_size
        ``(H, W)``, multiples of the largest stride (8 for the nano ViTs, 16 for the others, 32 for Swin and HRNet).
    pretrained
        Load timm's weights, from the network or its cache.
    weights
        File with a state dict in timm's layout (``.safetensors``, ``.pth``), instead of ``pretrained``. Position
        embeddings are resized to the image, a class token's row is dropped, classifiers are passed over.
    drop_path_rate
        Stochastic depth of the last block; it falls to 0 towards the first. HRNet has none.
    blocks
        After which blocks a ViT gives features, counted from 1; the last block must be the last of them.

    Returns
    -------
    Backbone
        Module with ``channels``, ``strides`` and ``img_size``; its forward returns a list of maps.

    Raises
    ------
    UserError
        For an unknown name, an image size that does not divide, or weights that cannot be had or do not fit.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES) or BACKBONES
        raise UserError(f"There is no backbone {name!r}; choose one of {', '.join(close)}.")
    if pretrained and name in _NANO_DEPTHS:
        raise UserError(f"{name} has no pretrained weights; leave out pretrained.")
    spec = _SPECS.get(name)
    _check_size(name, img_size, max(spec.strides) if spec else 8)
    if spec is None:
        backbone: Backbone = NanoViT(img_size, drop_path_rate, depth=_NANO_DEPTHS[name])
    else:
        backbone = TimmBackbone(spec, img_size, drop_path_rate)
    if blocks is not None:
        _choose_blocks(backbone, name, blocks)
    if weights is not None:
        _load(backbone, read_state_dict(weights), f"{weights}")
    elif pretrained and spec is not None:
        _load(backbone, _download(name, spec), f"timm's {spec.timm_name}")
    return backbone


def _check_size(name: str, img_size: tuple[int, int], stride: int) -> None:
    if min(img_size) < stride or any(side % stride for side in img_size):
        fitting = tuple(max(stride, round(side / stride) * stride) for side in img_size)
        raise UserError(f"{name} needs image sides that are multiples of {stride}, not {img_size}; use {fitting}.")


def _choose_blocks(backbone: Backbone, name: str, blocks: Sequence[int]) -> None:
    """Replace the blocks after which a ViT gives its features; the stem's map of a ``vit_nano`` stays the first."""
    nano = isinstance(backbone, NanoViT)
    depth = len(backbone.blocks) if isinstance(backbone, NanoViT) else _depth(backbone)
    if not depth:
        raise UserError(f"{name} has no choice of blocks; leave out blocks, or take a ViT.")
    if list(blocks) != sorted(set(blocks)) or not blocks or blocks[0] < 1 or blocks[-1] != depth:
        raise UserError(f"blocks is {list(blocks)}; give increasing numbers from 1, the last of them {depth}.")
    backbone.outputs = [block - 1 for block in blocks]
    backbone.channels = backbone.channels[:nano] + backbone.channels[-1:] * len(blocks)
    backbone.strides = backbone.strides[:nano] + backbone.strides[-1:] * len(blocks)


def _depth(backbone: TimmBackbone) -> int:
    """Blocks of a ViT; 0 of a pyramid."""
    return len(backbone.net.blocks) if backbone.spec.is_vit else 0


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` or a torch file, without running any code that it may hold.

    A dictionary under ``model`` or ``state_dict`` is unwrapped, and the prefix ``module.`` of distributed training
    taken off.

    Raises
    ------
    UserError
        Where the file is missing, damaged, or no state dict.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}; check the path.") from error
    except Exception as error:  # on a damaged file torch's reader may raise anything, IndexError and KeyError included
        raise UserError(f"{path} is damaged or holds more than weights; fetch or save it again.") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), path).")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _download(name: str, spec: _Spec) -> dict[str, Tensor]:
    """Fetch timm's weights, at the size they were trained at; any failure to do so is the user's to mend."""
    try:
        options = {key: value for key, value in spec.options.items() if key == "head"}
        net: nn.Module = timm.create_model(spec.timm_name, pretrained=True, **options)
    except Exception as error:  # every layer below has its own exception for a missing network
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"The pretrained weights of {name} ({spec.timm_name}) could not be fetched ({reason}); "
            "connect to the network, or fetch the file elsewhere and give it with --weights FILE."
        ) from error
    return net.state_dict()


_CLASSIFIER = re.compile(r"(head|head_dist|fc_norm|pre_logits|classifier|incre_modules|downsamp_modules|final_layer)\.")
"""Keys that belong to a classifier, which a backbone has no use for."""


def _load(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict of timm's layout into a backbone, adapted to its image size, or say what does not fit."""
    net = backbone.net if isinstance(backbone, TimmBackbone) else backbone
    own = net.state_dict()
    state = {key: value for key, value in state.items() if not _CLASSIFIER.match(key)}
    if "cls_token" not in own:
        state.pop("cls_token", None)
    if "pos_embed" in own and "pos_embed" in state:
        prefix = getattr(net, "num_prefix_tokens", 0)
        state["pos_embed"] = _fit_position_embedding(state["pos_embed"], _grid(backbone), prefix, source)
    faults = {
        "missing": [key for key in own if key not in state],
        "not expected": [key for key in state if key not in own],
        "of another shape": [key for key in own if key in state and state[key].shape != own[key].shape],
    }
    if any(faults.values()):
        words = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
        raise UserError(
            f"The weights of {source} do not fit ({words}); use weights of the same model in timm's layout."
        )
    net.load_state_dict(state)


def _some(keys: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _grid(backbone: Backbone) -> tuple[int, int]:
    """Tokens down and across."""
    stride = backbone.strides[-1]
    return backbone.img_size[0] // stride, backbone.img_size[1] // stride


def _fit_position_embedding(rows: Tensor, grid: tuple[int, int], prefix: int, source: str) -> Tensor:
    """Resize the rows of a position embedding to a grid of tokens, keeping ``prefix`` rows before it and no more.

    A stored embedding of 1 + h·w rows has a class token's row first. Where the stored number of tokens is not that of
    ``grid``, the stored grid is taken to be square, as timm's are.
    """
    stored, tokens = rows.shape[1], grid[0] * grid[1]
    leading = next((n for n in (0, 1) if stored - n == tokens or isqrt(stored - n) ** 2 == stored - n), None)
    if leading is None:
        raise UserError(
            f"The position embedding of {source} has {stored} rows, which is no square grid; resize it first."
        )
    old_grid = grid if stored - leading == tokens else (isqrt(stored - leading),) * 2
    patches: Tensor = resample_abs_pos_embed(rows[:, leading:], list(grid), list(old_grid), num_prefix_tokens=0)
    return torch.cat([rows[:, leading - min(prefix, leading) : leading], patches], dim=1)  # (1, prefix + h*w, C)
