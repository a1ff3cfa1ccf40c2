"""Labels derived once and kept beside a data set: the same values, without the seconds (chapter 15).

``PASCALContext.derived`` lies beside ``PASCALContext``, never inside it. It holds only what can be derived again, so it
may be deleted at any time. A file's name carries the size of the file it was derived from: when that one is replaced,
the old label is not found any more.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from mlore_edu.arrays import Array
from mlore_edu.atomic import write_atomically
from mlore_edu.data.files import png_bytes

RULES = "1"
"""Version of the rules that labels are derived by; a new one starts a new folder."""


def derived_folder(root: str | Path) -> Path:
    """Where the derived labels of a data set's folder are kept; a link is not followed."""
    root = Path(os.path.abspath(root))
    return root.with_name(f"{root.name}.derived")


class DerivedLabels:
    """Reads and writes the labels derived from a data set's files.

    Parameters
    ----------
    root
        The data set's folder; None keeps nothing, so that everything is derived when asked for.
    """

    def __init__(self, root: str | Path | None) -> None:
        self.folder = None if root is None else derived_folder(root) / RULES

    def path(self, kind: str, source: Path) -> Path | None:
        """The file of one label; None where nothing is kept or the source is missing."""
        try:
            size = source.stat().st_size
        except OSError:
            return None
        return None if self.folder is None else self.folder / kind / f"{source.stem}.{size}.png"

    def read(self, kind: str, source: Path) -> Array | None:
        """The label (H, W) uint8, or None if it must be derived: not there, or not readable."""
        path = self.path(kind, source)
        if path is None:
            return None
        try:
            with Image.open(path) as image:
                return np.array(image)
        except (OSError, SyntaxError, ValueError):
            return None

    def write(self, kind: str, source: Path, values: Array) -> None:
        """Keep a label (H, W) uint8."""
        path = self.path(kind, source)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, png_bytes(values), durable=False)

    def count(self, kind: str) -> int:
        """How many labels of a kind are kept."""
        return 0 if self.folder is None else sum(1 for _ in (self.folder / kind).glob("*.png"))
