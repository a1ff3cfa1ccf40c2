"""Writing a file so that it is there as a whole or not at all; used for data, runs and results alike."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and push it to the disk; otherwise a power cut may leave the name with the content in memory."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that it holds the old or the new content at any moment, never a part of the new one.

    Parameters
    ----------
    path
        The file, in a folder that is there.
    content
        What it shall hold.
    durable
        Also survive a power cut. Too slow for thousands of files that could be made again.

    Raises
    ------
    OSError
        If the disk is full or not writable; the old content is intact then.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        if durable:
            write_durably(draft, content)
        else:
            draft.write_bytes(content)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
