"""Self-checks of the exercises: one file per chapter, one function per exercise.

A check takes the reader's answer, tries it, and prints one line: correct, not yet (with a hint), or not answered.
It returns whether the answer is right and never raises, so a chapter runs from top to bottom with empty answers.

>>> from mlore_edu.exercises import ch01
>>> ch01.check_flip(lambda normals: ...)
Exercise 1.1: not answered yet.
False
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


class NotAnsweredError(Exception):
    """Raised inside a check when the answer is still the empty stub of the chapter."""


def answered(value: Any) -> Any:
    """Give back what the reader's function returned, or stop the check if it is the stub's ``...`` or nothing."""
    if value is None or value is ...:
        raise NotAnsweredError
    return value


def exercise(number: str, hint: str) -> Callable[[Callable[[Any], None]], Callable[[Any], bool]]:
    """Turn a function of assertions on the reader's answer into the self-check of exercise ``number``.

    Parameters
    ----------
    number
        As printed, e.g. ``"1.2"``.
    hint
        One sentence, shown when the answer is wrong; the assertion's own message comes first.
    """

    def decorate(test: Callable[[Any], None]) -> Callable[[Any], bool]:
        @wraps(test)
        def check(answer: Any) -> bool:
            try:
                answered(answer)
                test(answer)
            except NotAnsweredError:
                print(f"Exercise {number}: not answered yet.")
                return False
            except Exception as problem:  # the reader's code may raise anything
                reason = str(problem).strip().split("\n")[0] or type(problem).__name__
                print(f"Exercise {number}: not yet. {reason} Hint: {hint}")
                return False
            print(f"Exercise {number}: correct.")
            return True

        return check

    return decorate
