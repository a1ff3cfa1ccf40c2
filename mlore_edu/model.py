"""The multi-task model: backbone → decoder → one head per task (chapter 3)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mlore_edu.backbones import BACKBONES, Backbone, build_backbone
from mlore_edu.decoders.base import DecoderOutput, MapShape, resize
from mlore_edu.decoders.baseline import BaselineDecoder
from mlore_edu.decoders.mlore import MLoREDecoder
from mlore_edu.decoders.moe import MoEDecoder
from mlore_edu.decoders.own import find_own, is_own
from mlore_edu.decoders.taskexpert import TaskExpertDecoder
from mlore_edu.decoders.tif import TIFDecoder
from mlore_edu.errors import UserError
from mlore_edu.heads import PredictionHead
from mlore_edu.tasks import TaskSet

DECODERS: dict[str, Callable[..., Any]] = {
    "baseline": BaselineDecoder,
    "moe": MoEDecoder,
    "mlore": MLoREDecoder,
    "taskexpert": TaskExpertDecoder,
    "tif": TIFDecoder,
}
"""Decoders by name; a model is called ``<decoder>_<backbone>``."""

DECODER_WIDTHS = {
    **dict.fromkeys(("vit_nano", "vit_nano_12"), 32),
    **dict.fromkeys(("vit_small", "dinov2_small", "dinov3_small"), 192),
    **dict.fromkeys(("vit_base", "dinov2_base", "dinov3_base"), 640),
    **dict.fromkeys(("vit_large", "dinov2_large", "dinov3_large"), 452),
    **{"hrnet18": 40, "swin_tiny": 96, "swin_small": 96, "swin_base": 128, "swin_large": 112},
}
"""Width C of the decoder where none is given: those of MLoRE's released models for ViT, TIF's for the pyramids."""

HEAD_STRIDES = {"vit_nano": 2, "vit_nano_12": 2}
"""Stride at which the heads work where it is not the usual 4."""


class ModelOutput(NamedTuple):
    """What a model returns.

    Attributes
    ----------
    predictions
        Raw predictions ``(B, channels, H, W)`` by task, float32: logits, unnormalised normals, metres.
    balance_loss, routing
        The decoder's, see :class:`~mlore_edu.decoders.base.DecoderOutput`.
    """

    predictions: dict[str, Tensor]
    balance_loss: Tensor
    routing: dict[str, Tensor]


@dataclass(frozen=True)
class Configuration:
    """What :func:`build_model` was told, but for where the first weights came from: enough to build a model again.

    Parameters
    ----------
    name, tasks, img_size
        As for :func:`build_model`.
    options
        All its other options that were given; names, numbers, and tuples of them.
    """

    name: str
    tasks: TaskSet
    img_size: tuple[int, int]
    options: Mapping[str, Any]


class MultiTaskModel(nn.Module):
    """All tasks from one image in one pass.

    Parameters
    ----------
    backbone
        From images to maps (:func:`~mlore_edu.backbones.build_backbone`).
    decoder
        Module from maps to a :class:`~mlore_edu.decoders.base.DecoderOutput`.
    heads
        One :class:`~mlore_edu.heads.PredictionHead` per task, by name.

    Attributes
    ----------
    img_size
        ``(H, W)`` of the images that it takes.
    configuration
        How :func:`build_model` built it; None where it was put together by hand.
    """

    configuration: Configuration | None = None

    def __init__(self, backbone: Backbone, decoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.heads = nn.ModuleDict(dict(heads))
        self.img_size = backbone.img_size

    def forward(self, images: Tensor) -> ModelOutput:
        """Predict every task at the resolution of the images.

        Parameters
        ----------
        images
            float ``(B, 3, H, W)``, ImageNet-normalised, of the size the model was built for.

        Raises
        ------
        UserError
            Where the images have another size.
        """
        size = tuple(images.shape[-2:])
        if size != self.img_size:
            raise UserError(
                f"The model was built for images of {self.img_size}, not {size}; build it with img_size={size}."
            )
        decoded: DecoderOutput = self.decoder(self.backbone(images))
        predictions = {}
        for name, head in self.heads.items():
            coarse = head(decoded.features[name])  # (B, channels, H/4, W/4)
            full_precision = coarse.to(torch.promote_types(coarse.dtype, torch.float32))
            predictions[name] = resize(full_precision, size)  # (B, channels, H, W)
        return ModelOutput(predictions, decoded.balance_loss, decoded.routing)


def build_model(
    name: str,
    tasks: TaskSet,
    img_size: tuple[int, int] = (512, 512),
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    drop_path_rate: float = 0.0,
    head_stride: int | None = None,
    channels: int | None = None,
    blocks: tuple[int, ...] | None = None,
    **decoder_overrides: Any,
) -> MultiTaskModel:
    """Build a model by name.

    >>> import mlore_edu as me
    >>> model = me.build_model("baseline_vit_nano", me.DOLLHOUSE, img_size=(64, 64))

    Parameters
    ----------
    name
        ``<decoder>_<backbone>``, one of :func:`list_models`; for a decoder of your own, the file or module before it:
        ``my_decoders.py:Mine_vit_nano`` (chapter 20).
    tasks
        What to predict; a single-task model is one with ``tasks.subset("depth")``.
    img_size
        ``(H, W)`` of the images in pixels.
    pretrained, weights, drop_path_rate, blocks
        For the backbone, see :func:`~mlore_edu.backbones.build_backbone`.
    head_stride
        The heads work at 1/``head_stride`` of the image's resolution: 4, and 2 with the nano ViTs, if not given.
    channels
        Width C of the decoder; see :data:`DECODER_WIDTHS` for what it is if not given, or the decoder's own ``preset``.
    **decoder_overrides
        Options of the decoder, by name; they replace those of its ``preset`` for the backbone, where it has one.

    Raises
    ------
    UserError
        For an unknown model or option, or where the backbone cannot be built.
    """
    decoder_name, backbone_name = _parse(name)
    _check_count("channels", channels)
    _check_count("head_stride", head_stride, min(img_size))
    if blocks is not None and not isinstance(blocks, (tuple, list)):
        raise UserError(f"blocks is {blocks!r}; give a tuple of numbers, which only Python can (build_model).")
    decoder_class = find_own(decoder_name) if is_own(decoder_name) else DECODERS[decoder_name]
    _check_overrides(decoder_name, decoder_class, decoder_overrides)
    preset = _preset(decoder_class, backbone_name, tasks, decoder_overrides)
    preset_blocks = preset.pop("blocks", None)
    of_backbone: dict[str, Any] = {"weights": weights, "drop_path_rate": drop_path_rate}
    of_backbone["blocks"] = preset_blocks if blocks is None else blocks
    backbone = build_backbone(backbone_name, img_size, pretrained=pretrained, **of_backbone)
    height, width = img_size
    maps = [MapShape(c, height // s, width // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    options = {"channels": DECODER_WIDTHS[backbone_name], **preset}
    decoder = decoder_class(tasks, maps, **(options | decoder_overrides | ({"channels": channels} if channels else {})))
    width_of_features: Any = getattr(decoder, "channels", None)
    if type(width_of_features) is not int:
        raise UserError(f"{decoder_name} does not say how wide its features are; set self.channels in its __init__.")
    stride = head_stride or HEAD_STRIDES.get(backbone_name, 4)
    size = (height // stride, width // stride)
    activation: Literal["gelu", "relu"] = getattr(decoder_class, "head_activation", "gelu")
    heads = {task.name: PredictionHead(width_of_features, task.channels, size, activation) for task in tasks}
    model = MultiTaskModel(backbone, decoder, heads)
    given: dict[str, Any] = {"drop_path_rate": drop_path_rate or None, "head_stride": head_stride}
    given |= {"channels": channels, "blocks": None if blocks is None else tuple(blocks)}
    chosen = {option: value for option, value in given.items() if value is not None}
    model.configuration = Configuration(name, tasks, (height, width), chosen | decoder_overrides)
    return model


def _preset(
    decoder_class: Callable[..., Any], backbone: str, tasks: TaskSet, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options that a decoder proposes for a backbone, ``blocks`` of the backbone's among them; it may have none."""
    preset: Callable[..., dict[str, Any]] | None = getattr(decoder_class, "preset", None)
    return preset(backbone, tasks, options) if preset else {}


def list_models() -> list[str]:
    """Names that :func:`build_model` takes."""
    return [f"{decoder}_{backbone}" for decoder in DECODERS for backbone in BACKBONES]


def _parse(name: str) -> tuple[str, str]:
    """Split ``<decoder>_<backbone>``; of one's own decoder, the name may hold underscores too."""
    if is_own(name):
        for backbone in sorted(BACKBONES, key=len, reverse=True):
            if name.endswith(f"_{backbone}"):
                return name.removesuffix(f"_{backbone}"), backbone
        raise UserError(f"{name!r} names no backbone at its end; give FILE.py:CLASS_vit_nano, or another backbone.")
    if name not in list_models():
        close = difflib.get_close_matches(name, list_models()) or list_models()[:3]
        raise UserError(f"There is no model {name!r}; close names are {', '.join(close)}.")
    decoder_name, _, backbone_name = name.partition("_")
    return decoder_name, backbone_name


def _check_count(option: str, value: Any, largest: int | None = None) -> None:
    """Options come from the command line too, where any word may be given for a number."""
    if value is None or (type(value) is int and 1 <= value <= (largest or value)):
        return
    limits = "of at least 1" if largest is None else f"from 1 to {largest}"
    raise UserError(f"{option} is {value!r}; give a whole number {limits}.")


def _check_overrides(decoder_name: str, decoder_class: Callable[..., Any], overrides: Mapping[str, Any]) -> None:
    """Name the options of a decoder when one is given that it does not have."""
    parameters = inspect.signature(decoder_class).parameters.values()
    of_decoder = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = [option for option in overrides if option not in of_decoder]
    if unknown:
        valid = ["channels", *of_decoder, "head_stride", "drop_path_rate", "blocks"]
        raise UserError(f"{decoder_name} has no option {unknown[0]!r}; its options are {', '.join(valid)}.")
