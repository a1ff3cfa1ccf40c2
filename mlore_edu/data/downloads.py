"""Fetching an archive from links that die: several sources, resumable, checked against the first success (chapter 15).

Links to the field's archives have died repeatedly, and mirrors sent web pages or cut files. So each source is tried in
turn, what arrived is kept and continued later, and the SHA-256 of the first success is recorded beside the archive in
the format of ``sha256sum``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlparse

from tqdm import tqdm

from mlore_edu.atomic import write_atomically
from mlore_edu.data.archives import SPARE, check_archive, kind_of
from mlore_edu.errors import UserError
from mlore_edu.locks import alone

TRIES = 3
"""Connections in a row that bring nothing new before a source is given up."""
PAUSE = 2.0
"""Seconds between them."""
_CHUNK = 2**18


class _SourceError(Exception):
    """Why one source did not give the archive."""


class _BrokenOffError(_SourceError):
    """The connection ended early; another one may go on."""


def fetch(sources: Sequence[str], target: Path, remedy: str, *, timeout: float = 30.0, progress: bool = True) -> Path:
    """Fetch an archive from the first source that gives it; an interrupted call is continued by calling again.

    Parameters
    ----------
    sources
        Web addresses (https), ``file://`` addresses or paths, in the order of trying. Each one's bytes are collected
        in a file of their own, ``TARGET.….part``, so that two sources are never mixed.
    target
        The archive's file; ``TARGET.sha256`` is written beside it, and checked if it is there already.
    remedy
        What to do when every source fails; ends the error's sentence.
    timeout
        Seconds of silence after which a connection counts as broken.
    progress
        Whether to show a bar.

    Returns
    -------
    Path
        ``target``; an archive that is there already is only checked.

    Raises
    ------
    UserError
        If every source fails (all reasons in one sentence), the archive differs from its record, the disk is full, or
        another process is fetching the same archive.
    """
    busy = f"Another process is fetching {target}; wait for its end, then run the same command again."
    try:
        with alone(target.with_name(f".{target.name}.lock"), busy):
            if target.exists():
                check_archive(target)
                check_record(target)
                _record(target, target)
                return target
            failures = [_try(source, target, timeout, progress) for source in _until_there(sources, target)]
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped.") from None
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); make room or grant permission there, then run "
            "the same command to go on."
        ) from None
    if target.exists():
        return target
    raise UserError(f"{target.name} could not be fetched ({'; '.join(map(str, failures))}); {remedy}.")


def _until_there(sources: Sequence[str], target: Path) -> Iterator[str]:
    for source in sources:
        if target.exists():
            return
        yield source


def _try(source: str, target: Path, timeout: float, progress: bool) -> str | None:
    """Fetch from one source; what went wrong, or None if the archive is there now."""
    part = target.with_name(f"{target.name}.{hashlib.sha256(source.encode()).hexdigest()[:8]}.part")
    place = urlparse(source)
    try:
        if place.scheme in ("http", "https"):
            _download(source, part, timeout, progress)
        elif place.scheme in ("", "file"):
            _copy(Path(unquote(place.path) if place.scheme else source), part, progress)
        else:
            raise _SourceError("neither an https:// nor a file:// address, nor a path")
        _record(part, target)
    except _SourceError as failure:
        if not _begins_as_archive(part):
            _remove_parts(part.name, part.parent)
        return f"{source}: {failure}"
    part.replace(target)
    _remove_parts(f"{target.name}.*.part", target.parent)
    return None


def _begins_as_archive(part: Path) -> bool:
    if not part.exists():
        return False
    with part.open("rb") as file:
        return kind_of(file.read(512)) in ("tar", "zip")


def _remove_parts(pattern: str, folder: Path) -> None:
    for path in (*folder.glob(pattern), *folder.glob(f"{pattern}.json")):
        path.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def record_of(target: Path) -> Path:
    """Where the SHA-256 of an archive's first success is recorded."""
    return target.with_name(f"{target.name}.sha256")


def check_record(target: Path) -> None:
    """Compare an archive with the SHA-256 recorded beside it, if there is one.

    Raises
    ------
    UserError
        If they differ.
    """
    recorded = _recorded(target)
    if recorded and sha256(target) != recorded:
        raise UserError(
            f"{target} is not the file it was when it was fetched (its SHA-256 differs from {record_of(target).name}); "
            "delete it and fetch it again."
        )


def _recorded(target: Path) -> str:
    try:
        return record_of(target).read_text(encoding="utf-8").split(maxsplit=1)[0]
    except (FileNotFoundError, IndexError):
        return ""


def _record(found: Path, target: Path) -> None:
    """Record the SHA-256 of what was found, if it is an archive and no other one is on record."""
    with found.open("rb") as file:
        _check_head(file.read(512))
    digest, recorded = sha256(found), _recorded(target)
    if recorded not in ("", digest):
        found.unlink()
        raise _SourceError(
            f"sends another file than the one on record in {record_of(target).name}, whose SHA-256 differs"
        )
    if not recorded:
        write_atomically(record_of(target), f"{digest}  {target.name}\n".encode())


def _check_head(head: bytes) -> None:
    kind = kind_of(head)
    if kind not in ("tar", "zip"):
        raise _SourceError("sends a web page instead of the archive" if kind else "sends something that is no archive")


def _copy(source: Path, part: Path, progress: bool) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise _SourceError(error.strerror or str(error)) from None
    with file:
        size = source.stat().st_size
        _check_room(part, size)
        with part.open("wb") as copy, _bar(part, size, 0, progress) as bar:
            _pour(file, copy, bar, from_the_start=True)


def _bar(part: Path, size: int | None, start: int, progress: bool) -> Any:
    name = part.name.rsplit(".", 2)[0]
    return tqdm(total=size, initial=start, desc=name, unit="B", unit_scale=True, disable=not progress)


def _pour(source: Any, target: IO[bytes], bar: Any, from_the_start: bool) -> None:
    """Chunk by chunk as they come, so that what arrived before a break is kept."""
    read, size = source.read, 512  # enough to see what it is
    while True:
        try:
            chunk = read(size)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(f"broke off ({error or type(error).__name__})") from None
        if not chunk:
            return
        if from_the_start and size == 512:
            _check_head(chunk)
        target.write(chunk)
        bar.update(len(chunk))
        read, size = source.read1, _CHUNK


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed + SPARE > free:
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free, and the archive needs {needed / 1e9:.1f} GB more; make room, "
            "or choose another folder with --archives."
        )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _download(url: str, part: Path, timeout: float, progress: bool) -> None:
    """Connections to one address until its file is complete, or ``TRIES`` of them in a row bring nothing new."""
    idle = 0
    while True:
        before = _size(part)
        try:
            return _transfer(url, part, timeout, progress)
        except _BrokenOffError as failure:
            idle = 0 if _size(part) > before else idle + 1
            if idle == TRIES:
                raise _SourceError(f"{failure}; what arrived is kept") from None
            time.sleep(PAUSE)


def _transfer(url: str, part: Path, timeout: float, progress: bool) -> None:
    """One connection: what the server has from the part's end on, or everything if it cannot go on there."""
    state_file = part.with_name(f"{part.name}.json")
    have, state = _size(part), _read_state(state_file)
    if not state:
        have = 0
    elif state["size"] == have:
        return
    headers = {"User-Agent": "mlore-edu", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state["validator"]:
            headers["If-Range"] = state["validator"]
    with _connect(urllib.request.Request(url, headers=headers), part, timeout) as response:
        start, size = _extent(response, have)
        if start and (start != have or size != state["size"]):
            part.unlink()
            raise _BrokenOffError("the file at this address has changed")
        _check_room(part, (size or 0) - start)
        state_file.write_text(json.dumps({"url": url, "size": size, "validator": _validator(response)}))
        with part.open("ab" if start else "wb") as file, _bar(part, size, start, progress) as bar:
            _pour(response, file, bar, from_the_start=not start)
    if size is not None and _size(part) != size:
        raise _BrokenOffError(f"broke off after {_size(part):,} of {size:,} bytes")


def _connect(request: urllib.request.Request, part: Path, timeout: float) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing from there on: the file there has become shorter
            part.unlink()
            raise _BrokenOffError("the file at this address has changed") from None
        kind = _BrokenOffError if error.code in (408, 429) or error.code >= 500 else _SourceError
        raise kind(f"answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenOffError(f"cannot be reached ({getattr(error, 'reason', None) or error})") from None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
        return {"size": state["size"], "validator": state["validator"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _validator(response: Any) -> str | None:
    """What tells one version of a file from another; weak tags do not."""
    tag = response.headers.get("ETag")
    return str(tag) if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Where the answer starts, and the size of the whole file if the server says it."""
    if have and response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(found[1]), int(found[2])) if found else (-1, None)
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None
