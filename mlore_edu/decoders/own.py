"""Decoders that are not of this library: named by the file or module that holds them (chapter 20)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from mlore_edu.errors import UserError


def is_own(name: str) -> bool:
    """Whether a decoder's name says where to find it, ``"my_decoders.py:Mine"``, and is none of the library's."""
    return ":" in name


def find_own(name: str) -> Callable[..., nn.Module]:
    """Fetch a decoder's class from the place that its name says; the code there is run.

    Parameters
    ----------
    name
        ``"folder/file.py:Class"``, from the current folder on, or ``"package.module:Class"``; in a notebook,
        ``"__main__:Class"`` is a class of its cells.

    Returns
    -------
    type
        The class. A file is read anew each time, so that what was edited counts.

    Raises
    ------
    UserError
        If there is no such file, module or class, or the class is no ``torch.nn.Module``. Errors of the code itself
        are raised as they are. Chapter 20.
    """
    place, _, class_name = name.rpartition(":")
    module = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    found: Any = getattr(module, class_name, None)
    if found is None:
        raise UserError(f"{place} has no class {class_name!r}; name one that is there.")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{class_name} of {place} is no torch.nn.Module; a decoder must be one (chapter 20).")
    return found


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"There is no file {path} here; give the decoder's file as seen from the current folder.")
    module_name = f"own_decoder_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None  # as for every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module


def _import(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another
        raise UserError(f"There is no module {place!r}; give FILE.py:CLASS or an installed MODULE:CLASS.") from None
