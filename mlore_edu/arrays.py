"""The type of NumPy arrays in signatures; shapes and units stand in the docstrings."""

from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
