"""Reading the files of a data set so that a bad one is named in one clear sentence, and never written to."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision import tv_tensors

from mlore_edu.arrays import Array
from mlore_edu.data.tensors import ClassMap, Depth, Normals
from mlore_edu.errors import UserError
from mlore_edu.tasks import IGNORE

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, struct.error, zlib.error, MatReadError)
"""What PIL, numpy and scipy raise, between them, on files that are cut off or of another kind."""


class FileError(UserError):
    """What is wrong with one file, in a form that a report can count.

    Parameters
    ----------
    name
        Its path below the data set's folder.
    kind
        ``"missing"``, ``"locked"``, ``"damaged"``, ``"size"``, ``"type"`` or ``"value"``.
    what
        The fault in words.
    sentence
        The fault with path and remedy.
    """

    def __init__(self, name: str, kind: str, what: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name, self.kind, self.what = name, kind, what

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions travel between processes as their arguments
        return FileError, (self.name, self.kind, self.what, str(self))


@dataclass(frozen=True)
class Folder:
    """The folder of a data set, read with errors that a person can act on.

    Parameters
    ----------
    root
        Its path.
    remedy
        What to do when a file is missing or damaged; ends the error's sentence.
    """

    root: Path
    remedy: str

    def bad(self, name: str, what: str, kind: str = "damaged") -> FileError:
        """The error about one file: what is wrong with it, and the remedy."""
        return FileError(name, kind, what, f"{self.root / name} {what}; {self.remedy}.")

    def _open(self, name: str, read: Any) -> Any:
        try:
            return read(self.root / name)
        except FileNotFoundError:
            raise self.bad(name, "is missing", "missing") from None
        except PermissionError:
            what = "may not be read"
            sentence = f"{self.root / name} {what}; grant yourself permission to read it."
            raise FileError(name, "locked", what, sentence) from None
        except _UNREADABLE as error:
            raise self.bad(name, f"is damaged or of another format ({type(error).__name__}: {error})") from None

    def ids(self, name: str) -> list[str]:
        """The ids in a split's text file, one a line."""
        lines = self._open(name, lambda path: path.read_text(encoding="utf-8")).splitlines()
        ids = [line.strip() for line in lines if line.strip()]
        if not ids:
            raise self.bad(name, "lists no images", "value")
        return ids

    def pixels(self, name: str, mode: str | None = None) -> Array:
        """An image file as an array; palette images keep their indices, ``mode="RGB"`` asks for colours."""

        def read(path: Path) -> Array:
            with Image.open(path) as image:
                return np.array(image.convert(mode) if mode and image.mode != mode else image)

        return np.asarray(self._open(name, read))

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of an image file, told by its first bytes."""

        def read(path: Path) -> tuple[int, int]:
            with Image.open(path) as image:
                return image.height, image.width

        height, width = self._open(name, read)
        return height, width

    def image(self, name: str) -> tv_tensors.Image:
        """A picture as a uint8 image tensor (3, H, W)."""
        pixels = self.pixels(name, "RGB")
        return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))

    def array(self, name: str) -> Array:
        """A ``.npy`` file."""
        return np.asarray(self._open(name, lambda path: np.load(path, allow_pickle=False)))

    def matlab(self, name: str, variable: str) -> Any:
        """One variable of a ``.mat`` file, structures as dictionaries."""

        def read(path: Path) -> Any:
            with path.open("rb") as stream:
                return loadmat(stream, simplify_cells=True)[variable]

        return self._open(name, read)

    def grey(self, name: str, shape: tuple[int, int], bits: int = 8) -> Array:
        """An image file with one channel and the size of the picture; ``bits=16`` for more than 256 values."""
        pixels = self.pixels(name)
        self.check_shape(name, pixels, shape)
        if bits == 8 and pixels.dtype != np.uint8:
            raise self.bad(name, f"holds values of type {pixels.dtype}, not of 8 bits", "type")
        return pixels

    def coloured(self, name: str, shape: tuple[int, int]) -> Array:
        """An image file with three channels and the size of the picture."""
        pixels = self.pixels(name)
        self.check_shape(name, pixels, (*shape, 3))
        return pixels

    def mask(self, name: str, shape: tuple[int, int]) -> Array:
        """An image file of 0 and 255 alone, as 0 and 1."""
        pixels = self.grey(name, shape)
        self.check_values(name, pixels, 0)
        return pixels // IGNORE

    def check_shape(self, name: str, values: Array, shape: tuple[int, ...]) -> None:
        """Labels have the size of their image."""
        if values.shape != shape:
            found, wanted = ("×".join(map(str, sizes)) for sizes in (values.shape, shape))
            raise self.bad(name, f"is {found}, but its image needs {wanted}", "size")

    def check_values(self, name: str, values: Array, largest: int, void: int | None = IGNORE) -> None:
        """Class ids are 0…largest, or ``void``."""
        wrong = values[(values < 0) | (values > largest)]
        if void is not None:
            wrong = wrong[wrong != void]
        if wrong.size:
            kinds = f"0…{largest}" + ("" if void is None else f" and {void}")
            raise self.bad(name, f"holds the value {wrong.flat[0]}, where only {kinds} can be", "value")


def png_bytes(pixels: Array, colours: list[int] | None = None) -> bytes:
    """A picture or map as the content of a PNG file; with ``colours``, indices stay and a viewer shows colours."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if colours is not None:
        picture.putpalette(colours)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def npy_bytes(values: Array) -> bytes:
    """An array as the content of a ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def class_map(values: Array) -> ClassMap:
    """(H, W) integers up to 255 as a typed tensor."""
    return ClassMap(torch.from_numpy(np.ascontiguousarray(values, np.uint8)))


def normals_map(normals: Array) -> Normals:
    """(H, W, 3) as a typed tensor (3, H, W)."""
    return Normals(torch.from_numpy(np.ascontiguousarray(normals.transpose(2, 0, 1), np.float32)))


def depth_map(depth: Array) -> Depth:
    """(H, W) metres as a typed tensor (1, H, W)."""
    return Depth(torch.from_numpy(np.ascontiguousarray(depth[None], np.float32)))


def open_split(root: str | Path, splits: str, split: str, data: str, remedy: str) -> tuple[Folder, list[str]]:
    """Open a data set's folder and read the ids of one split.

    Parameters
    ----------
    root
        The folder.
    splits
        Where its split files are, e.g. ``"gt_sets/{}.txt"``.
    split
        ``"train"`` or ``"val"``.
    data
        Name of the data set, for the error.
    remedy
        What to do about a missing or damaged file.
    """
    if split not in ("train", "val"):
        raise UserError(f"There is no split {split!r}; choose train or val.")
    folder = Folder(Path(root), remedy)
    if not folder.root.is_dir():
        raise UserError(f"There is no folder {folder.root}; {remedy}.")
    name = splits.format(split)
    if not (folder.root / name).is_file():
        raise UserError(f"{folder.root} does not hold {data} ({name} is missing); {remedy}.")
    return folder, folder.ids(name)
