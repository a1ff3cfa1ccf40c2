"""Images of any kind as one kind of tensor: files, Pillow images, arrays, tensors, frames of a film (chapter 19).

What a viewer would show is what the model gets: turned upright as the camera noted, transparent parts white, 16 bits
made 8, one grey channel made three.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mlore_edu.arrays import Array
from mlore_edu.checks import check_whole
from mlore_edu.errors import UserError

ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image | Array | Tensor
"""What :func:`read_image` takes."""

FILMS = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})
"""Endings of file names that are read as films."""

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(source: ImageSource) -> Tensor:
    """Read one image, whatever it is stored as.

    Parameters
    ----------
    source
        Path of a file that Pillow reads (of an animation its first picture); a Pillow image of any mode; an array
        ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``; a tensor ``(H, W)``, ``(1, H, W)``, ``(3, H, W)``
        or ``(4, H, W)``. Whole numbers from 0 to 255, or to 65535; floats from 0 to 1, not normalised.

    Returns
    -------
    Tensor
        Red, green and blue, uint8 ``(3, H, W)``, upright where the camera noted how it was held.

    Raises
    ------
    UserError
        If there is no such file, it is no image or damaged, or an array has another shape or range. Chapter 19.
    """
    if isinstance(source, (str, os.PathLike)):
        rgb = _read_file(Path(source))
    elif isinstance(source, Image.Image):
        rgb = _explained("The image", source)
    elif isinstance(source, (np.ndarray, Tensor)):
        rgb = _from_array(source)
    else:
        raise UserError(f"A {type(source).__name__} is no image; give a path, a Pillow image, an array or a tensor.")
    if 0 in rgb.shape:
        raise UserError("The image has no pixels; give one of at least 1 × 1.")
    return torch.from_numpy(np.moveaxis(rgb, -1, 0).copy())  # (3, H, W), no memory shared with the source


def _read_file(path: Path) -> Array:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of an image.")
    if not path.exists():
        raise UserError(f"There is no file {path}; check the path.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; save or fetch it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
            picture = Image.open(path)
    except UnidentifiedImageError:
        raise UserError(f"{path} is no image that Pillow can read; give a JPEG, PNG or the like.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more pixels than Pillow opens safely; make it smaller first.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read; grant yourself permission to read it.") from None
    except Exception as error:
        raise _damaged(str(path), error) from error
    with picture:
        return _explained(str(path), picture)


def _explained(name: str, picture: Image.Image) -> Array:
    """The pixels of a Pillow image, which reads its file only now."""
    try:
        return _to_rgb(picture)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # on a damaged file Pillow's forty readers may raise anything
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"{name} is damaged ({reason}); save or fetch it again.")


def _to_rgb(picture: Image.Image) -> Array:
    """Red, green and blue of a Pillow image of any mode, uint8 (H, W, 3)."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _DEEP:  # Pillow itself would cut off everything above 255
        grey = eight_bits(np.asarray(picture))
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        picture = picture.convert({"RGBa": "RGBA", "La": "LA"}.get(picture.mode, "RGBA")).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def _from_array(source: Array | Tensor) -> Array:
    """Red, green and blue of an array or a tensor, uint8 (H, W, 3)."""
    if isinstance(source, Tensor):
        values, wanted = source.detach().cpu(), "(3, H, W), (1, H, W) or (H, W)"
        array: Array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array, wanted = source, "(H, W, 3), (H, W, 1) or (H, W)"
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise UserError(f"An image of shape {tuple(source.shape)} is not understood; give one as {wanted}.")
    if 0 in array.shape:
        return np.zeros((0, 0, 3), np.uint8)
    levels = eight_bits(array)
    if array.shape[-1] == 4:
        return _to_rgb(Image.fromarray(levels, "RGBA"))
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def eight_bits(values: Array) -> Array:
    """Bring grey or colour values to the 256 levels of a common photograph.

    Parameters
    ----------
    values
        bool; uint8; uint16, of which 65535 is white; other whole numbers, up to 255, or else up to 65535; floats from
        0 to 1.

    Returns
    -------
    uint8, of the same shape.

    Raises
    ------
    UserError
        If values lie outside their range, or are not finite. Chapter 19.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "uif":
        raise UserError(f"values of type {values.dtype} are no image; give whole numbers or floats.")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        limit = 1.0
    else:
        limit = 255.0 if high <= 255 and values.dtype != np.uint16 else 65535.0
    if not (low >= 0 and high <= limit):  # also catches nan
        range_ = "floats from 0 to 1, before any normalisation" if limit == 1 else "whole numbers from 0 to 65535"
        raise UserError(f"an image's values run from {low:g} to {high:g}; give {range_}.")
    return np.rint(values.astype(np.float64) * (255 / limit)).astype(np.uint8)


def film_frames(path: Path, every: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Read a film, picture by picture.

    Parameters
    ----------
    path
        A file that FFmpeg reads.
    every
        Give one of so many pictures, beginning with the first; at least 1.

    Yields
    ------
    The picture's number from 0, and the picture, uint8 ``(3, H, W)``.

    Raises
    ------
    UserError
        If ``every`` is no such number, the package ``av`` is not installed, or the file is no film or damaged.
        Chapter 19.
    """
    check_whole(1, every=every)
    try:
        import av
    except ImportError as error:
        raise UserError("Films need the package av; install it with 'pip install av'.") from error
    try:
        with av.open(str(path)) as film:
            for number, frame in enumerate(film.decode(video=0)):
                if number % every == 0:
                    yield number, read_image(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:  # IndexError: sound without pictures
        raise UserError(f"{path} is no film that FFmpeg can read ({error}); convert it to an MP4.") from error
