"""Label tensors that know how they move with the image (chapter 1).

torchvision's v2 transforms look at the *type* of a tensor to decide what a flip or a resize does to it. Three types
are enough for all six tasks: class maps take the nearest label, normals are vectors and turn with the image, depth
shrinks when the camera zooms in. Importing this module registers what each functional does to them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from mlore_edu.errors import UserError
from mlore_edu.tasks import IGNORE

if TYPE_CHECKING:
    from torch import Tensor as Mask
else:
    from torchvision.tv_tensors import Mask

Sample = dict[str, Any]
"""One image and its labels: ``{"image": tv_tensors.Image, "<task>": Label…, "meta": {...}}``."""


class Step(Protocol):
    """A transform of one sample; all its chance comes from ``generator`` (torch's global one when it is None)."""

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample: ...


class Label(Mask):
    """A label map: resized by nearest neighbour, and filled with its own ignored value outside the image."""

    ignored: ClassVar[int] = IGNORE


class ClassMap(Label):
    """Classes, parts, saliency or boundaries: integers (H, W), 255 = ignored."""


class Normals(Label):
    """Surface normals (3, H, W): x right, y up, z towards the camera; the zero vector = ignored."""

    ignored = 0


class Depth(Label):
    """Depth in metres (1, H, W); 0 = invalid."""

    ignored = 0


def _plain(label: Label) -> torch.Tensor:
    """The label without its type, always (C, H, W), because torchvision's image kernels need channels."""
    tensor = label.as_subclass(torch.Tensor)
    return tensor if tensor.ndim > 2 else tensor.unsqueeze(0)


def _like(label: Label, tensor: torch.Tensor) -> Label:
    if tensor.ndim > label.ndim:
        tensor = tensor.squeeze(0)
    wrapped: Label = tv_tensors.wrap(tensor, like=label)
    return wrapped


def resize_label(label: Label, size: list[int] | None, *args: Any, max_size: int | None = None, **kwargs: Any) -> Label:
    """Nearest neighbour from pixel centres ("nearest-exact"), so that labels do not shift against the image."""
    mode = F.InterpolationMode.NEAREST_EXACT
    return _like(label, F.resize(_plain(label), size, interpolation=mode, max_size=max_size))


def resize_depth(depth: Depth, size: list[int] | None, *args: Any, **kwargs: Any) -> Label:
    """An object twice as large in the image is seen from half as far: depth is divided by the zoom."""
    resized = resize_label(depth, size, *args, **kwargs)
    zoom = math.sqrt((resized.shape[-1] * resized.shape[-2]) / (depth.shape[-1] * depth.shape[-2]))
    return _like(depth, _plain(resized) / zoom)


def pad_label(label: Label, padding: list[int], fill: Any = None, padding_mode: str = "constant") -> Label:
    """Pixels outside the image are ignored, whatever ``fill`` the image gets."""
    return _like(label, F.pad(_plain(label), padding, fill=label.ignored, padding_mode=padding_mode))


def rotate_label(label: Label, angle: float, *args: Any, **kwargs: Any) -> Label:
    """Counter-clockwise by ``angle`` degrees, nearest neighbour; pixels from outside the image are ignored."""
    shape = {name: kwargs[name] for name in ("expand", "center") if name in kwargs}
    mode = F.InterpolationMode.NEAREST
    return _like(label, F.rotate(_plain(label), angle, interpolation=mode, fill=[float(label.ignored)], **shape))


def rotate_normals(normals: Normals, angle: float, *args: Any, **kwargs: Any) -> Label:
    """When the image plane turns counter-clockwise, so do the (x, y) of every normal; z stays."""
    x, y, z = _plain(rotate_label(normals, angle, *args, **kwargs)).unbind(0)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return _like(normals, torch.stack((cos * x - sin * y, sin * x + cos * y, z)))


def flip_normals_horizontally(normals: Normals) -> Label:
    """A mirror exchanges left and right: the map is reversed and x changes its sign."""
    x, y, z = _plain(normals).flip(-1).unbind(0)
    return _like(normals, torch.stack((-x, y, z)))


def flip_normals_vertically(normals: Normals) -> Label:
    """Turning upside down reverses the map's rows and the sign of y."""
    x, y, z = _plain(normals).flip(-2).unbind(0)
    return _like(normals, torch.stack((x, -y, z)))


def refuse(label: Label, *args: Any, **kwargs: Any) -> Label:
    """Warps that would move pixels without turning normals or scaling depth are refused instead of done wrongly."""
    raise UserError(
        f"{type(label).__name__} maps cannot be warped by this transform; use flip, rotate, resize, crop and pad."
    )


F.register_kernel(F.resize, Label)(resize_label)
F.register_kernel(F.resize, Depth)(resize_depth)
F.register_kernel(F.pad, Label)(pad_label)
F.register_kernel(F.rotate, Label)(rotate_label)
F.register_kernel(F.rotate, Normals)(rotate_normals)
F.register_kernel(F.horizontal_flip, Normals)(flip_normals_horizontally)
F.register_kernel(F.vertical_flip, Normals)(flip_normals_vertically)
for _warp in (F.affine, F.perspective, F.elastic, F.resized_crop):
    F.register_kernel(_warp, Label)(refuse)
