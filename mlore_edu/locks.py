"""One process at a time: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlore_edu.errors import UserError


@contextmanager
def alone(path: Path, busy: str | None = None) -> Iterator[None]:
    """Run a block while no other process runs one with the same lock file.

    Parameters
    ----------
    path
        The lock file; made for the time of the block, its folder if need be.
    busy
        What to say if another process holds the lock; None waits for its end.

    Raises
    ------
    UserError
        With ``busy``, at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy is not None:
                    raise UserError(busy) from None
                print(f"waiting for another process that holds {path}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_open_as(file.fileno(), path):
                continue  # its last holder removed this file while we waited: take the new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_open_as(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
