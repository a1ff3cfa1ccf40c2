"""PASCAL-Context and NYUD-v2 as they are known: where from, how many images, which files (chapter 15).

No address was tried on the machines this book was written on; they are those that the repositories of the field name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlore_edu.data import nyud_v2, pascal_context
from mlore_edu.errors import UserError

ARCHIVES = Path("data/archives")
"""Where archives are fetched to."""

_SHAREPOINT = "https://hkustconnect-my.sharepoint.com/:u:/g/personal/hyeae_connect_ust_hk"
_ETHZ = "https://data.vision.ee.ethz.ch"
_GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Benchmark:
    """What is known of a data set before looking at it.

    Parameters
    ----------
    name
        As recipes say it.
    title
        As papers say it.
    root
        The folder that recipes read.
    splits
        Where the ids of a split are listed.
    files
        Where each kind of file is, with ``{}`` for the id.
    counts
        Images in each split.
    sources
        Addresses of archives by build, in the order of trying; the first build is the papers'.
    """

    name: str
    title: str
    root: Path
    splits: str
    files: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    sources: Mapping[str, tuple[str, ...]]

    @property
    def script(self) -> str:
        """The command that fetches, prepares and verifies it."""
        return f"python data_scripts/{self.name}.py"

    def archive(self, build: str, archives: Path = ARCHIVES) -> Path:
        """Where the archive of a build is fetched to (its kind is told by its content, not by its name)."""
        return archives / f"{self.root.name}-{build}.tgz"

    def expected_counts(self, root: Path) -> Mapping[str, int]:
        """Images in each split: the field's, or those that Dollhouse says it has written in this layout."""
        try:
            settings = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["settings"]
            return {"train": int(settings["train"]), "val": int(settings["val"])}
        except (OSError, ValueError, KeyError, TypeError):
            return self.counts


PASCAL_CONTEXT = Benchmark(
    name="pascal_context",
    title="PASCAL-Context",
    root=Path("data/PASCALContext"),
    splits=pascal_context.SPLITS,
    files=pascal_context.FILES,
    counts={"train": 4998, "val": 5105},
    sources={
        "ATRC": (
            f"{_SHAREPOINT}/ER57KyZdEdxPtgMCai7ioV0BXCmAhYzwFftCwkTiMmuM7w?e=2Ex4ab&download=1",
            f"{_ETHZ}/brdavid/atrc/PASCALContext.tar.gz",
        ),
        "ASTMT": (f"{_ETHZ}/kmaninis/share/MTL/PASCAL_MT.tgz",),
    },
)
NYUD_V2 = Benchmark(
    name="nyud_v2",
    title="NYUD-v2",
    root=Path("data/NYUDv2"),
    splits=nyud_v2.SPLITS,
    files=nyud_v2.FILES,
    counts={"train": 795, "val": 654},
    sources={
        "ATRC": (
            f"{_SHAREPOINT}/EZ-2tWIDYSFKk7SCcHRimskBhgecungms4WFa_L-255GrQ?e=6jAt4c&download=1",
            f"{_ETHZ}/brdavid/atrc/NYUDv2.tar.gz",
        ),
        "ASTMT": (f"{_ETHZ}/kmaninis/share/MTL/NYUD_MT.tgz",),
        "MTL-PyTorch": (f"{_GOOGLE_DRIVE}14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw",),
    },
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in (PASCAL_CONTEXT, NYUD_V2)}


def find_folder(benchmark: Benchmark, place: Path) -> Path:
    """The data set's own folder inside a place, at most three levels down.

    Raises
    ------
    UserError
        If there is none, or more than one.
    """
    if not place.is_dir():
        raise UserError(f"There is no folder {place}; give the one that holds {benchmark.title} with --folder.")
    train = benchmark.splits.format("train")
    for levels in range(4):
        found = sorted(place.glob("*/" * levels + train))
        folders = [path.parents[train.count("/")] for path in found]
        if len(folders) > 1:
            names = ", ".join(str(folder) for folder in folders)
            raise UserError(
                f"{place} holds {benchmark.title} more than once ({names}); give one of them with --folder."
            )
        if folders:
            return folders[0]
    top = ", ".join(sorted(path.name for path in place.iterdir())[:6]) or "nothing"
    raise UserError(
        f"No {benchmark.title} was found (no folder with {train}; at the top there is {top}); this is another archive "
        f"or folder: '{benchmark.script} fetch --help' names those that fit."
    )
