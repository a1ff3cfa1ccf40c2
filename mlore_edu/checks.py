"""Refusals of options; they come from the command line too, where any word may be given for a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlore_edu.errors import UserError


def check_new(folder: Path, option: str) -> None:
    """Refuse a folder that holds anything, or is none: writing into it must destroy nothing."""
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise UserError(f"{folder} is there already and not an empty folder; choose another with {option}.")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is not one of the choices."""
    if value not in choices:
        raise UserError(f"{option} is {value!r}; choose one of {', '.join(choices)}.")


def check_whole(least: int, **options: Any) -> None:
    """Refuse what is not a whole number of at least this."""
    for option, value in options.items():
        if type(value) is not int or value < least:
            raise UserError(f"{option} is {value!r}; give a whole number of at least {least}.")


def check_weight(**options: Any) -> None:
    """Refuse what is not a finite number of at least 0."""
    for option, value in options.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise UserError(f"{option} is {value!r}; give a number of at least 0.")


def check_inner_share(**options: Any) -> None:
    """Refuse what is not a number between 0 and 1, both left out."""
    for option, value in options.items():
        if not isinstance(value, float) or not 0 < value < 1:
            raise UserError(f"{option} is {value!r}; give a number between 0 and 1.")


def check_switches(**options: Any) -> None:
    """Refuse what is neither True nor False."""
    for option, value in options.items():
        if not isinstance(value, bool):
            raise UserError(f"{option} is {value!r}; give True or False.")
