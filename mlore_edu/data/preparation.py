"""From an archive, or a folder the reader has, to a data set that trains (chapter 15).

Three steps, each of which a second call finds done or goes on with: put the data set's folder where recipes look for
it (unpacked, linked, or converted from another build of NYUD-v2), derive labels once into a cache beside it, and say
what came of it. What the reader had is only read; what is unfinished has a name that begins with a dot.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from mlore_edu.arrays import Array
from mlore_edu.data.archives import unpack
from mlore_edu.data.catalogue import BENCHMARKS, Benchmark, find_folder
from mlore_edu.data.derived import DerivedLabels, derived_folder
from mlore_edu.data.downloads import check_record
from mlore_edu.data.files import FileError, Folder
from mlore_edu.data.nyud_builds import MEANING, begin_conversion, convert, find_build, finish_conversion
from mlore_edu.data.nyud_v2 import recorded_build
from mlore_edu.data.parallel import in_parallel
from mlore_edu.data.pascal_context import DERIVED, FILES, PASCALContext
from mlore_edu.data.verification import grouped
from mlore_edu.errors import UserError
from mlore_edu.locks import alone

Job = TypeVar("Job")


@dataclass
class Prepared:
    """What a preparation did (``facts``) and which files it could not use (``problems``), each in one sentence."""

    root: Path
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class How:
    """How the work is done: by how many processes, and with a bar or not."""

    workers: int
    progress: bool

    def faults(self, function: Callable[[Job], list[FileError]], jobs: Sequence[Job], title: str) -> list[FileError]:
        """All that went wrong with all jobs."""
        results = tqdm(
            in_parallel(function, jobs, self.workers),
            total=len(jobs), desc=title, unit="image", disable=not self.progress,
        )  # fmt: skip
        return [fault for faults in results for fault in faults]


def prepare(
    name: str,
    root: str | Path,
    *,
    archive: Path | None = None,
    folder: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Prepared:
    """Make a data set ready for training; an interrupted call is completed by calling again.

    Parameters
    ----------
    name
        ``"pascal_context"`` or ``"nyud_v2"``.
    root
        Where recipes look for it. If the data set is there already, only derived labels are completed.
    archive
        Unpack this one (it is only read).
    folder
        Use what was unpacked here (it is only read): linked where its files are as they should be, converted where it
        is another build of NYUD-v2.
    workers
        Processes for converting and deriving.
    progress
        Whether to show bars.

    Returns
    -------
    Prepared
        What was done in words. Files that are missing or damaged are listed, and do not stop the others.

    Raises
    ------
    UserError
        If there is nothing to prepare from, it is not this data set, or it cannot be written.
    """
    benchmark, root, how = BENCHMARKS[name], Path(root), How(workers, progress)
    if archive and folder:
        raise UserError("An archive and a folder are two data sets; give --archive or --folder, not both.")
    with _explained(root), alone(root.parent / f".{root.name}.lock"):
        prepared = Prepared(root)
        _put_in_place(benchmark, archive, folder, how, prepared)
        for draft in (*root.parent.glob(f".{root.name}.*.unpacked"), root.with_name(f".{root.name}.converting")):
            shutil.rmtree(draft, ignore_errors=True)  # what earlier calls left unfinished is not needed any more
        if name == "pascal_context":
            _derive_all(benchmark, how, prepared)
        else:
            build = recorded_build(root)
            prepared.facts.append(f"It is {MEANING.get(build, build)}.")
    return prepared


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """What can befall a long job, each in one sentence that says how to go on."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "A process was ended from outside, perhaps for lack of memory; run the same command with fewer --workers "
            "to go on."
        ) from None
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be used while preparing {root} ({error.strerror or error}); make room or "
            "grant permission, or choose another place with --root, then run the same command to go on."
        ) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped.") from None


def _put_in_place(
    benchmark: Benchmark, archive: Path | None, folder: Path | None, how: How, prepared: Prepared
) -> None:
    root = prepared.root
    if _is_there(benchmark, root):
        prepared.facts.append(f"{root} was there already; to make it from something else, move it away first.")
    elif archive:
        check_record(archive)
        # The name tells what was unpacked: the next call goes on with it, whatever this one is stopped by.
        mark = hashlib.sha256(f"{archive.resolve()} {_size(archive)}".encode()).hexdigest()[:8]
        unpacked = root.with_name(f".{root.name}.{mark}.unpacked")
        if not unpacked.exists():
            unpack(archive, unpacked, progress=how.progress)
        try:
            found = find_folder(benchmark, unpacked)
        except UserError:
            shutil.rmtree(unpacked)  # another archive: it will not be gone on with
            raise
        if not _convert(benchmark, found, how, prepared):
            found.rename(root)
        prepared.facts.insert(0, f"{archive} was unpacked to {root}.")
    elif folder:
        found = find_folder(benchmark, folder)
        if not _convert(benchmark, found, how, prepared):
            root.symlink_to(found.resolve(), target_is_directory=True)
            prepared.facts.append(f"{root} is a link to {found}, which is only read.")
    else:
        raise UserError(
            f"There is nothing to prepare {benchmark.title} from; fetch it with '{benchmark.script} fetch', or give an "
            "archive with --archive FILE or an unpacked folder with --folder FOLDER."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_there(benchmark: Benchmark, root: Path) -> bool:
    """Whether the data set is in place; whatever else has its name is the reader's, and not touched."""
    if root.is_symlink() and not root.exists():
        raise UserError(f"{root} is a link to {root.readlink()}, which is gone; delete the link, or bring it back.")
    if not root.exists():
        return False
    if not all((root / benchmark.splits.format(split)).is_file() for split in ("train", "val")):
        raise UserError(f"{root} exists and holds no {benchmark.title}; move it away, or choose another --root.")
    if benchmark.name == "nyud_v2":
        build = find_build(Folder(root, "unpack it again"))
        if build != "ATRC":
            raise UserError(
                f"{root} holds the {build} build as it came; move it, say to {root}_{build}, and run "
                f"'{benchmark.script} prepare --folder {root}_{build}'."
            )
    return True


def _convert(benchmark: Benchmark, found: Path, how: How, prepared: Prepared) -> bool:
    """Convert another build of NYUD-v2 to the root; False where there is nothing to convert."""
    if benchmark.name != "nyud_v2":
        return False
    source = Folder(found.resolve(), "unpack its archive again")
    build, root = find_build(source), prepared.root
    if build == "ATRC":
        return False
    draft = root.with_name(f".{root.name}.converting")
    jobs = begin_conversion(source, build, draft)
    faults = how.faults(convert, jobs, f"converting {build}")
    finish_conversion(source, draft)
    draft.rename(root)
    prepared.problems += grouped(faults, len(jobs))
    prepared.facts.append(f"{len(jobs):,} images of the {build} build were converted to {root}, sizes kept.")
    return True


@dataclass(frozen=True)
class Derivation:
    """One image whose labels are derived: of which folder."""

    root: Path
    split: str
    name: str


def _derive_all(benchmark: Benchmark, how: How, prepared: Prepared) -> None:
    """Derive and keep the labels of all images, those kept already excepted."""
    root = prepared.root
    readers = {split: PASCALContext(root, split) for split in ("train", "val")}
    jobs = [Derivation(root, split, name) for split, reader in readers.items() for name in reader.ids]
    faults = how.faults(derive, jobs, "deriving labels")
    prepared.problems += grouped(faults, len(jobs))
    prepared.facts.append(
        f"Boundaries, human parts and the places of trusted normals of {len(jobs):,} images are kept in "
        f"{derived_folder(root)} (it may be deleted: then they are derived while training)."
    )


def derive(job: Derivation) -> list[FileError]:
    """Derive the labels of one image that are not kept yet.

    Parameters
    ----------
    job
        The image.

    Returns
    -------
    list of FileError
        What they could not be derived from.
    """
    kept = DerivedLabels(job.root)
    folder = Folder(job.root, "unpack its archive again")
    wanted: dict[str, list[str]] = {}
    for kind, (source, _) in DERIVED.items():
        path = kept.path(kind, job.root / FILES[source][0].format(job.name))
        if path is None or not path.exists():
            wanted.setdefault(source, []).append(kind)
    faults = []
    for source, kinds in wanted.items():
        try:
            stored = _stored(job, folder, source)
        except FileError as fault:
            faults.append(fault)
            continue
        for kind in kinds:
            kept.write(kind, job.root / FILES[source][0].format(job.name), DERIVED[kind][1](stored))
    return faults


def _stored(job: Derivation, folder: Folder, source: str) -> Array:
    shape = folder.size(FILES["JPEGImages"][0].format(job.name))
    return PASCALContext(job.root, job.split).stored(source, job.name, shape)
