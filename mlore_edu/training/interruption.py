"""Stopping on request: Ctrl-C and SIGTERM finish the current step, save, and leave with one clear sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers a request to stop instead of breaking off in the middle of a step; a second Ctrl-C breaks off.

    Use as a context; the handlers before it come back at its end. Only a program's main thread receives signals, so
    elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loading process, forked off with this handler: the training process ends it when it is done
        if self._at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step; press Ctrl-C again to break off at once", file=sys.stderr)

    @contextlib.contextmanager
    def at_once(self, iteration: int, run: Path) -> Iterator[None]:
        """Inside, a request stops at once, because all there is to save is saved: during an evaluation."""
        self._at_once = True
        try:
            yield
        except KeyboardInterrupt:
            self.leave(iteration, run)
        finally:
            self._at_once = False

    def leave(self, iteration: int, run: Path) -> NoReturn:
        """End the run by a ``KeyboardInterrupt`` that says where it stands."""
        raise KeyboardInterrupt(
            f"stopped after iteration {iteration}; everything is saved in {run}: run the same command again to go on."
        )
