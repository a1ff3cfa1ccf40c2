"""Unpacking an archive of unknown origin: all of it or nothing, and nothing outside of its folder (chapter 15).

An archive is a list of names with contents, and it may lie: a name can point out of the folder, a link can redirect
what follows, a few kilobytes can swell to terabytes. So nothing here trusts it: only plain files and folders are
taken, everything is counted while it is read, and all of it goes to a draft folder that gets its name at the end.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from mlore_edu.errors import UserError

SPARE = 64 * 2**20
"""Bytes that are left free on a disk."""
_CHUNK = 2**20
_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_DAMAGED = (
    *(EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, struct.error, ValueError),
    *(RuntimeError, NotImplementedError),  # what zipfile says about passwords and unknown compressions
)

Member = tuple[str, int, IO[bytes] | None]
"""Name, announced size, and content of a file; None for a folder."""


@dataclass(frozen=True)
class Limits:
    """What no archive of these data sets comes near; whoever exceeds it is a bomb.

    Parameters
    ----------
    size
        Bytes, unpacked.
    ratio
        Unpacked to packed size, after ``unsuspicious`` bytes.
    members
        Files and folders.
    unsuspicious
        Bytes that every archive may unpack to, however small it is.
    """

    size: int = 256 * 2**30
    ratio: int = 200
    members: int = 500_000
    unsuspicious: int = 64 * 2**20


LIMITS = Limits()


def kind_of(head: bytes) -> str:
    """What a file is, told by its first 512 bytes: ``"tar"`` (compressed or not), ``"zip"``, ``"web page"``, ``""``."""
    if any(head.startswith(magic) for magic in _COMPRESSIONS) or head[257:262] == b"ustar":
        return "tar"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "web page" if re.match(rb"\s*<(!doctype|html|\?xml|head|script)", head, re.IGNORECASE) else ""


def check_archive(path: Path) -> str:
    """``"tar"`` or ``"zip"``; anything else is refused.

    Raises
    ------
    UserError
        If the file is missing, or no archive.
    """
    try:
        with path.open("rb") as file:
            kind = kind_of(file.read(512))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no archive {path}; give the file's path with --archive.") from None
    if kind not in ("tar", "zip"):
        what = "a web page, saved in place of the archive" if kind else "no tar or zip archive"
        raise UserError(f"{path} is {what}; download it again, in a browser if it asks to log in or confirm.")
    return kind


class _RefusedError(Exception):
    """What an archive does that none of these data sets needs."""


class _Guarded:
    """A decompressed stream that stops a bomb while it is read, also where tarfile reads headers by itself."""

    def __init__(self, stream: Any, largest: int) -> None:
        self.stream, self.largest = stream, largest

    def tell(self) -> int:
        return int(self.stream.tell())

    def seek(self, position: int) -> int:
        if position > self.largest:
            raise _RefusedError(f"unpacks to more than {_gigabytes(self.largest)}")
        return int(self.stream.seek(position))

    def read(self, size: int) -> bytes:
        if self.tell() + size > self.largest + _CHUNK:
            raise _RefusedError(f"unpacks to more than {_gigabytes(self.largest)}")
        return bytes(self.stream.read(size))


def unpack(archive: Path, folder: Path, *, limits: Limits = LIMITS, progress: bool = True) -> None:
    """Unpack a tar or zip archive into a new folder.

    Parameters
    ----------
    archive
        .tar, .tar.gz (.tgz), .tar.bz2, .tar.xz or .zip, told by its content; it is only read.
    folder
        Does not exist yet; it appears when everything is in it. Until then the files are in ``.NAME.unpacking``
        beside it, which the next call replaces if this one is killed.
    limits
        Above them an archive is refused as a bomb.
    progress
        Whether to show a bar.

    Raises
    ------
    UserError
        If the archive is damaged or not to be trusted, the folder exists, or the disk is full; nothing is left then.
    """
    kind = check_archive(archive)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} exists already; unpack to another folder, or move this one.")
    draft = folder.with_name(f".{folder.name}.unpacking")
    try:
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        bar = tqdm(total=archive.stat().st_size, desc=archive.name, unit="B", unit_scale=True, disable=not progress)
        with archive.open("rb") as file, bar:
            for member in _tar_members(file, archive, limits) if kind == "tar" else _zip_members(file, archive, limits):
                _write(draft, member)
                bar.update(file.tell() - bar.n)
        draft.rename(folder)
    except _RefusedError as refusal:
        raise UserError(
            f"{archive} {refusal}, which no archive of this data does; get it from another source, or unpack it "
            "yourself and give the folder with --folder."
        ) from None
    except _DAMAGED as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        if error.errno is None:  # gzip's way to say that the content is not gzip
            raise _damaged(archive, error) from None
        raise UserError(
            f"{archive} cannot be unpacked to {folder} ({error.strerror}); make room or grant permission there, then "
            "run the same command again."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _damaged(archive: Path, error: BaseException) -> UserError:
    return UserError(
        f"{archive} is cut off or damaged ({type(error).__name__}: {error}); delete it together with "
        f"{archive.name}.sha256 and fetch it again, or import another copy with --archive FILE."
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _write(draft: Path, member: Member) -> None:
    """One member below the draft folder, if its name stays there and the disk has room for it."""
    name, size, content = member
    path = PurePosixPath(name)
    if name.startswith("/") or ".." in path.parts or re.match("[A-Za-z]:", name) or set(name) & {"\\", "\0"}:
        raise _RefusedError(f"holds {name!r}, a path out of its own folder")
    target = draft / path
    if content is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    free = shutil.disk_usage(draft).free
    if size + SPARE > free:
        raise OSError(28, f"only {_gigabytes(free)} are free, and {name} alone needs {_gigabytes(size)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("wb") as file:
        while chunk := content.read(_CHUNK):
            written += file.write(chunk)
    if written != size:
        raise EOFError(f"{name} has {written} of {size} bytes")


def _count(limits: Limits, count: int) -> None:
    if count > limits.members:
        raise _RefusedError(f"holds more than {limits.members:,} files")


def _largest(archive: Path, limits: Limits) -> int:
    """How much this archive may unpack to."""
    return min(limits.size, max(limits.unsuspicious, limits.ratio * archive.stat().st_size))


def _tar_members(file: IO[bytes], archive: Path, limits: Limits) -> Iterator[Member]:
    head = file.read(512)
    file.seek(0)
    opened: Any = next((opener(file) for magic, opener in _COMPRESSIONS.items() if head.startswith(magic)), file)
    stream: Any = _Guarded(opened, _largest(archive, limits))
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for count in itertools.count(1):
            member = tar.next()
            if member is None:
                break
            _count(limits, count)
            if member.issym() or member.islnk():
                raise _RefusedError(f"holds the link {member.name!r}")
            if not (member.isreg() or member.isdir()) or member.sparse is not None:
                raise _RefusedError(f"holds {member.name!r}, neither file nor folder")
            if member.size > stream.largest:
                raise _RefusedError(f"announces {_gigabytes(member.size)} for {member.name!r}")
            yield member.name, member.size, tar.extractfile(member)
        end = tar.offset
    # An uncut tar ends in blocks of zeros; without looking, a cut between two files would pass as the end.
    stream.seek(end)
    if stream.read(512) != bytes(512):
        raise EOFError("the end is missing")
    while stream.read(_CHUNK):  # to the end of the compressed stream, where its checksum is
        pass


def _zip_members(file: IO[bytes], archive: Path, limits: Limits) -> Iterator[Member]:
    with zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        _count(limits, len(members))
        total, largest = sum(member.file_size for member in members), _largest(archive, limits)
        if total > largest:
            raise _RefusedError(f"unpacks to {_gigabytes(total)}, more than {_gigabytes(largest)}")
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise _RefusedError(f"holds the link {member.filename!r}")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedError(f"holds {member.filename!r}, neither file nor folder")
            if member.is_dir():
                yield member.filename, 0, None
            else:
                with packed.open(member) as content:
                    yield member.filename, member.file_size, content
