"""Is a data set all there, and is it what it should be? A report in words (chapter 15).

Every rule that the readers apply while training is applied here to every file beforehand, and what is missing or odd
is counted and grouped: one line for 12 missing files, not twelve.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from mlore_edu.arrays import Array
from mlore_edu.data.catalogue import BENCHMARKS, Benchmark
from mlore_edu.data.derived import DerivedLabels
from mlore_edu.data.files import FileError, Folder
from mlore_edu.data.nyud_builds import MEANING
from mlore_edu.data.nyud_v2 import NYUDv2, recorded_build
from mlore_edu.data.parallel import in_parallel
from mlore_edu.data.pascal_context import DERIVED, PASCALContext

KINDS = {
    "missing": ("is missing", "are missing"),
    "locked": ("may not be read", "may not be read"),
    "damaged": ("is damaged or of another format", "are damaged or of another format"),
    "size": ("has another size than its image", "have another size than their image"),
    "type": ("holds another type of number", "hold another type of number"),
    "value": ("holds values that cannot be", "hold values that cannot be"),
    "odd": ("looks odd", "look odd"),
}
"""Kinds of faults, in the order of a report: of one file, of several."""
FARTHEST = 80.0
"""Metres; the field's limit for depth."""


@dataclass
class Findings:
    """What was found: ``facts`` that are as they should be or worth knowing, and ``problems``, each in one sentence."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def grouped(faults: Iterable[FileError], total: int) -> list[str]:
    """One sentence for all faults of one kind in one folder.

    Parameters
    ----------
    faults
        Of single files; one that is named twice counts once.
    total
        Number of files that each folder should hold.
    """
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for fault in faults:
        groups[str(PurePosixPath(fault.name).parent), fault.kind].setdefault(fault.name, fault.what)
    order = list(KINDS)
    lines = []
    for (folder, kind), files in sorted(groups.items(), key=lambda group: (group[0][0], order.index(group[0][1]))):
        name, what = min(files.items())
        example = name if kind in ("missing", "locked") else f"{name} {what}"
        lines.append(f"{folder}: {len(files):,} of {total:,} files {KINDS[kind][len(files) > 1]}, e.g. {example}")
    return lines


def verify(name: str, root: str | Path, *, contents: bool = True, workers: int = 1, progress: bool = True) -> Findings:
    """Look at every file that the splits of a data set name.

    Parameters
    ----------
    name
        ``"pascal_context"`` or ``"nyud_v2"``.
    root
        Its folder; it is only read.
    contents
        False looks for the files only, without opening them.
    workers
        Reading processes.
    progress
        Whether to show a bar.

    Raises
    ------
    UserError
        If the folder cannot be looked at: not there, another data set, another build.
    """
    benchmark, root = BENCHMARKS[name], Path(root)
    report = Findings()
    ids = _check_splits(benchmark, root, report)
    images = [image for listed in ids.values() for image in listed]
    faults = _check_presence(benchmark, root, images, report)
    if contents and images:
        jobs = [
            Job(name, str(root), split, tuple(listed[first : first + 8]))
            for split, listed in ids.items()
            for first in range(0, len(listed), 8)
        ]
        sizes: Counter[str] = Counter()
        with tqdm(total=len(images), desc=str(root), unit="image", disable=not progress) as bar:
            for job, (found, seen) in zip(jobs, in_parallel(check_images, jobs, workers), strict=True):
                faults += [fault for fault in found if fault.kind != "missing"]
                sizes.update(seen)
                bar.update(len(job.ids))
        _check_sizes(benchmark, root, sizes, report)
    report.problems += grouped(faults, len(images))
    if name == "pascal_context":
        report.facts.append(_count_derived(root, images))
    return report


def _check_splits(benchmark: Benchmark, root: Path, report: Findings) -> dict[str, list[str]]:
    """The ids of each split, after judging their number, doubles and overlap."""
    ids: dict[str, list[str]] = {}
    expected = benchmark.expected_counts(root)
    for split in ("train", "val"):
        path = benchmark.splits.format(split)
        try:
            listed = list(open_reader(benchmark.name, str(root), split).ids)
        except FileError as fault:
            report.problems.append(f"{path} {fault.what}: {expected[split]:,} ids belong there")
            continue
        ids[split] = list(dict.fromkeys(listed))
        if len(ids[split]) != len(listed):
            report.problems.append(f"{path} lists ids more than once, {len(listed) - len(ids[split]):,} times in all")
        if len(ids[split]) != expected[split]:
            report.problems.append(f"{path} lists {len(ids[split]):,} images, but should list {expected[split]:,}")
        report.facts.append(f"{split}: {len(ids[split]):,} images")
    both = sorted(set(ids.get("train", ())) & set(ids.get("val", ())))
    if both:
        report.problems.append(f"train and val must not meet, but share {len(both):,} of their images, e.g. {both[0]}")
    if benchmark.name == "nyud_v2":
        build = recorded_build(root)
        report.facts.append(f"build: {MEANING.get(build, build)}")
    return ids


def _check_presence(benchmark: Benchmark, root: Path, images: Sequence[str], report: Findings) -> list[FileError]:
    """Which files are not there, folder by folder; folders that are missing as a whole are said at once."""
    folder, faults = Folder(root, "unpack the archive again"), []
    for kind, patterns in benchmark.files.items():
        places = [(root / pattern).parent for pattern in patterns]
        there = {place.relative_to(root) / entry for place in places if place.is_dir() for entry in os.listdir(place)}
        if not any(place.is_dir() for place in places):
            report.problems.append(f"{kind}: the folder {patterns[0].rpartition('/')[0]} is missing")
            continue
        wanted = [[Path(pattern.format(image)) for pattern in patterns] for image in images]
        missing = [paths[0] for paths in wanted if there.isdisjoint(paths)]
        faults += [folder.bad(str(path), "is missing", "missing") for path in missing]
        more = len(there.difference(path for paths in wanted for path in paths))
        report.facts.append(
            f"{kind}: {len(images) - len(missing):,} of {len(images):,} files" + (f", and {more:,} others" * (more > 0))
        )
    return faults


@dataclass(frozen=True)
class Job:
    """Some images of one split."""

    benchmark: str
    root: str
    split: str
    ids: tuple[str, ...]


@lru_cache(maxsize=4)
def _cached_reader(benchmark: str, root: str, split: str) -> PASCALContext | NYUDv2:
    return open_reader(benchmark, root, split)


def open_reader(benchmark: str, root: str, split: str) -> PASCALContext | NYUDv2:
    """The reader that training uses, without its cache: what is judged is the files."""
    if benchmark == "nyud_v2":
        return NYUDv2(root, split)
    reader = PASCALContext(root, split)
    reader.derived = DerivedLabels(None)
    return reader


def check_images(job: Job) -> tuple[list[FileError], list[str]]:
    """Read all files of some images, and say what is wrong with them and how large the images are."""
    reader = _cached_reader(job.benchmark, job.root, job.split)
    label_kinds = list(BENCHMARKS[job.benchmark].files)[1:]  # the first are the images themselves
    faults, sizes = [], []
    for name in job.ids:
        try:
            image = reader.picture(name)
        except FileError as fault:
            faults.append(fault)
            continue
        shape = (image.shape[-2], image.shape[-1])
        sizes.append(f"{shape[0]}×{shape[1]}")
        for kind in label_kinds:
            path = BENCHMARKS[job.benchmark].files[kind][0].format(name)
            try:
                what = ODD.get(kind, _never)(reader.stored(kind, name, shape))
            except FileError as fault:
                faults.append(fault)
                continue
            if what:
                faults.append(reader.folder.bad(path, what, "odd"))
    return faults, sizes


def _never(values: Array) -> str:
    return ""


def _odd_normals(pixels: Array) -> str:
    length = np.linalg.norm(pixels.astype(np.float32) * np.float32(2 / 255) - 1, axis=-1)
    unit = (abs(length - 1) < 0.15) | (length < 0.1)  # very short ones mean "no normal"
    if unit.mean() < 0.5:
        return f"holds vectors that are no unit normals in {1 - unit.mean():.0%} of its pixels"
    return ""


def _odd_depth(depth: Array) -> str:
    valid = depth[np.isfinite(depth) & (depth > 0)]
    if not valid.size:
        return "holds no valid depth"
    return f"reaches {valid.max():.0f} m, beyond the field's {FARTHEST:.0f} m" if valid.max() > FARTHEST else ""


def _odd_segmentation(stored: Array) -> str:
    return "" if stored.any() else "has no labelled pixel"


def _odd_edge(edge: Array) -> str:
    return f"is boundary in {edge.mean():.0%} of its pixels" if edge.mean() > 0.5 else ""


ODD: dict[str, Callable[[Array], str]] = {
    "normals": _odd_normals,
    "normals_distill": _odd_normals,
    "depth": _odd_depth,
    "segmentation": _odd_segmentation,
    "edge": _odd_edge,
}
"""What is possible, but not seen in good files, by kind of file: a phrase, or nothing."""


def _check_sizes(benchmark: Benchmark, root: Path, sizes: Counter[str], report: Findings) -> None:
    common = ", ".join(f"{size} ({count:,} images)" for size, count in sizes.most_common(3))
    more = f" and {len(sizes) - 3:,} other sizes" if len(sizes) > 3 else ""
    report.facts.append(f"image sizes: {common}{more}")
    if benchmark.name != "nyud_v2" or not sizes:
        return
    if len(sizes) > 1:
        report.problems.append(f"images: {len(sizes):,} sizes are mixed, where all should be equal")
    elif benchmark.expected_counts(root) is benchmark.counts and recorded_build(root) == "ATRC":
        (size,) = sizes
        if size != "425×560":
            report.problems.append(f"images: all are {size}, but those of this build are 425×560")


def _count_derived(root: Path, images: Sequence[str]) -> str:
    derived, reader_files = DerivedLabels(root), BENCHMARKS["pascal_context"].files
    complete = 0
    for name in images:
        paths = [
            derived.path(kind, root / reader_files[source][0].format(name)) for kind, (source, _) in DERIVED.items()
        ]
        complete += all(path is not None and path.exists() for path in paths)
    return f"derived labels: kept for {complete:,} of {len(images):,} images"
