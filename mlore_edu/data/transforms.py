"""From a sample on disk to the tensors a model trains on: the field's recipe, one small class per step (chapter 1).

``train_transform`` chains, in the order shared by InvPT, TaskPrompter, TaskExpert and MLoRE: random scale, random
crop, flip, photometric distortion, normalisation, centred padding, targets. ``eval_transform`` keeps the last three.
Every step is called as ``step(sample, generator)`` and draws its chance from that generator alone, so that a loader can
reproduce the augmentation of any sample of any iteration exactly. A step works where the sample's tensors are, on a
GPU too (chapter 16); the generator is always one of the CPU, so that chance is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torchvision.transforms.v2 import functional as F

from mlore_edu.data.tensors import ClassMap, Sample, Step
from mlore_edu.errors import UserError
from mlore_edu.tasks import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue over ImageNet, for values in 0…1."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _move(sample: Sample, functional: Callable[..., Any], *args: Any, **kwargs: Any) -> Sample:
    """Move the image and all labels together; what that means for each is the business of its type."""
    return {
        name: functional(value, *args, **kwargs) if isinstance(value, torch.Tensor) else value
        for name, value in sample.items()
    }


@dataclass(frozen=True)
class RandomScale:
    """Resize by a factor drawn evenly from ``low…high``: labels nearest, depth divided by the factor."""

    low: float = 0.5
    high: float = 2.0

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        factor = _uniform(self.low, self.high, generator)
        height, width = sample["image"].shape[-2:]
        return _move(sample, F.resize, [max(1, round(height * factor)), max(1, round(width * factor))], antialias=True)


@dataclass(frozen=True)
class RandomCrop:
    """Cut out a window in which no class covers more than ``max_class_share``, if ``tries`` draws find one.

    An image smaller than the window is kept whole along that side; :class:`Pad` fills it up. Without a
    ``semseg`` label (a single-task baseline) the first draw is taken.
    """

    size: int | tuple[int, int]
    max_class_share: float = 0.75
    tries: int = 10

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        height, width = sample["image"].shape[-2:]
        crop_height, crop_width = (min(side, limit) for side, limit in zip(_sides(self.size), (height, width)))
        if (crop_height, crop_width) == (height, width):
            return sample
        # The one thing in all steps that a GPU would be waited for: fetched once, not asked again for every try.
        semseg = sample["semseg"].cpu() if "semseg" in sample else None
        for _ in range(self.tries):
            top = int(torch.randint(height - crop_height + 1, (), generator=generator))
            left = int(torch.randint(width - crop_width + 1, (), generator=generator))
            if semseg is None or self._is_varied(F.crop(semseg, top, left, crop_height, crop_width)):
                break
        return _move(sample, F.crop, top, left, crop_height, crop_width)

    def _is_varied(self, semseg: torch.Tensor) -> bool:
        pixels = torch.bincount(semseg.as_subclass(torch.Tensor).flatten(), minlength=IGNORE + 1)[:IGNORE]
        return bool(pixels.max() < self.max_class_share * pixels.sum())


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right with the given probability; the x of normals changes sign."""

    probability: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        if torch.rand((), generator=generator) >= self.probability:
            return sample
        return _move(sample, F.horizontal_flip)


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change the light, not the geometry: brightness, contrast, saturation and hue, each with probability one half.

    The classic distortion of SSD (Liu et al., 2016): brightness is added, contrast multiplied before or after the
    colour changes, saturation scales the distance of each channel to the brightest one (the S of HSV, at most 1), hue
    turns the colour wheel. Values are clipped to 0…1.
    """

    brightness: float = 32 / 255
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue_degrees: float = 18.0
    probability: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        chances = torch.rand(5, generator=generator).tolist()
        brighten, contrast, saturate, turn = (chance < self.probability for chance in chances[:4])
        contrast_first = chances[4] < 0.5
        offset = _uniform(-self.brightness, self.brightness, generator)
        gain = _uniform(*self.contrast, generator)
        richness = _uniform(*self.saturation, generator)
        degrees = _uniform(-self.hue_degrees, self.hue_degrees, generator)

        image = F.to_dtype(sample["image"], torch.float32, scale=True).as_subclass(torch.Tensor)
        if brighten:
            image = (image + offset).clamp(0, 1)
        if contrast and contrast_first:
            image = (image * gain).clamp(0, 1)
        if saturate:
            image = saturated(image, richness)
        if turn:
            image = F.adjust_hue(image, degrees / 360)
        if contrast and not contrast_first:
            image = (image * gain).clamp(0, 1)
        return {**sample, "image": F.to_image(image)}


def saturated(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply the saturation (S of HSV) of an image by a factor, keeping hue and value.

    Parameters
    ----------
    image
        Float tensor (3, H, W) in 0…1.
    factor
        New over old saturation; where it would pass 1, saturation becomes 1.

    Returns
    -------
    torch.Tensor
        Image of the same shape in 0…1.
    """
    value = image.amax(0, keepdim=True)
    distance = value - image  # = value · saturation · (0…1), so scaling it scales the saturation
    limit = value / distance.amax(0, keepdim=True).clamp_min(1e-8)
    return (value - distance * limit.clamp_max(factor)).clamp_min(0)


@dataclass(frozen=True)
class Normalise:
    """Image to float, minus the ImageNet mean, divided by its standard deviation."""

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        image = F.to_dtype(sample["image"], torch.float32, scale=True)
        mean, std = (_per_channel(tuple(values), image.device) for values in (self.mean, self.std))
        return {**sample, "image": F.to_image((image - mean).div_(std))}


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Numbers as a tensor (3, 1, 1); kept, because a GPU would be waited for whenever they are sent there."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def denormalise(image: torch.Tensor) -> torch.Tensor:
    """Undo :class:`Normalise`: float (…, 3, H, W) back to uint8 for pictures."""
    mean, std = (image.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Pad:
    """Centre the image in a frame: 0 around the image (ImageNet's mean, after normalisation), ignored around labels.

    ``meta["size"]`` is the size before padding and ``meta["offset"]`` its (top, left) corner in the frame.
    """

    size: int | tuple[int, int]

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        height, width = sample["image"].shape[-2:]
        frame_height, frame_width = _sides(self.size)
        down, right = frame_height - height, frame_width - width
        meta = {**sample.get("meta", {}), "size": (height, width), "offset": (down // 2, right // 2)}
        if down < 0 or right < 0:
            raise UserError(
                f"{meta.get('id', 'an image')} is {height}×{width}, larger than the frame of {frame_height}×"
                f"{frame_width}; choose a size of at least {height}×{width}."
            )
        if down or right:
            left, top = right // 2, down // 2
            sample = _move(sample, F.pad, [left, top, right - left, down - top])
        return {**sample, "meta": meta}


@dataclass(frozen=True)
class IgnoreEmptyParts:
    """The field's rule: an image or crop without any body part is ignored for human parts, not all background."""

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        parts = sample.get("human_parts")
        if parts is None:
            return sample
        shown = ((parts > 0) & (parts < IGNORE)).any()  # not asked by an "if": a GPU would be waited for
        return {**sample, "human_parts": ClassMap(torch.where(shown, parts, IGNORE))}


@dataclass(frozen=True)
class ToTargets:
    """Plain tensors of the types the losses and metrics take.

    semseg, human_parts, saliency: int64 (H, W); edge: float32 (1, H, W); normals: float32 (3, H, W);
    depth: float32 (1, H, W). ``meta`` stays.
    """

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        targets = {}
        for name, value in sample.items():
            if isinstance(value, torch.Tensor):
                value = value.as_subclass(torch.Tensor)
            if name == "edge":
                value = value.float().unsqueeze(0)  # (1, H, W)
            elif isinstance(sample[name], ClassMap):
                value = value.long()  # (H, W)
            targets[name] = value
        return targets


@dataclass(frozen=True)
class Pipeline:
    """Steps applied one after the other."""

    steps: tuple[Step, ...]

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        for step in self.steps:
            sample = step(sample, generator)
        return sample


def train_transform(
    size: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    max_class_share: float = 0.75,
    flip: float = 0.5,
    photometric: bool = True,
) -> Pipeline:
    """The field's augmentation of a training sample, in its order.

    Parameters
    ----------
    size
        Side of the training crop, or (height, width); 512 for PASCAL-Context, (448, 576) for NYUD-v2.
    scale
        Range of the random scale; ``(1, 1)`` leaves it out.
    max_class_share
        Largest share of a crop that one class may cover.
    flip
        Probability of a horizontal flip; 0 leaves it out.
    photometric
        Whether brightness, contrast, saturation and hue change.

    Returns
    -------
    Pipeline
        ``transform(sample, generator=None)`` giving the training tensors.

    Notes
    -----
    Chapters that train for a minute on tiny images use ``train_transform(64, scale=(1, 1), photometric=False)``.
    """
    steps: list[Step] = []
    if scale != (1, 1):
        steps.append(RandomScale(*scale))
    steps.append(RandomCrop(size, max_class_share))
    if flip:
        steps.append(RandomFlip(flip))
    if photometric:
        steps.append(PhotometricDistortion())
    return Pipeline((*steps, *eval_transform(size).steps))


def eval_transform(size: int | tuple[int, int]) -> Pipeline:
    """Normalise, pad to ``size`` and convert: what validation images and the end of training share."""
    return Pipeline((Normalise(), Pad(size), IgnoreEmptyParts(), ToTargets()))
