"""``mlore-edu doctor``: what this machine has, which data and runs are there, and what to do next (chapter 15)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

from mlore_edu.data.catalogue import BENCHMARKS, Benchmark
from mlore_edu.data.derived import DerivedLabels
from mlore_edu.data.nyud_v2 import recorded_build
from mlore_edu.data.pascal_context import DERIVED
from mlore_edu.errors import UserError
from mlore_edu.training.recipe import Recipe, load_recipe
from mlore_edu.training.recipes import RECIPES

PACKAGES = ("torch", "torchvision", "timm", "numpy")


def report(folder: Path | None = None) -> str:
    """A short account in words, for the folder that commands are run in.

    Parameters
    ----------
    folder
        Where ``data`` and ``runs`` are looked for; the present folder if not given.

    Returns
    -------
    str
        A few lines; never raises for what is missing.
    """
    folder = folder or Path()
    readers = {recipe.root: recipe for recipe in RECIPES.values() if not recipe.tasks}  # each folder is opened once
    found = {root: _data(folder, recipe) for root, recipe in readers.items()}
    runs = {path.parent: _run(path.parent) for path in sorted((folder / "runs").glob("*/recipe.json"))}
    lines = [
        *_machine(folder),
        "",
        *(f"data  {root}: {state}" for root, state in found.items()),
        *(f"run   {path.relative_to(folder)}: {state}" for path, state in runs.items()),
        "",
        f"next  {_next_step(folder)}",
    ]
    return "\n".join(lines)


def _machine(folder: Path) -> list[str]:
    import torch

    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    gpus = [
        f"{torch.cuda.get_device_name(index)}, {torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB"
        for index in range(torch.cuda.device_count())
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        f"software  Python {platform.python_version()}, {packages}",
        f"GPU       {'; '.join(gpus) or 'none: the chapters and nano recipes do without; the others need one'}",
        f"CPU       {cores} cores, {torch.get_num_threads()} threads in use by torch, {memory:.0f} GiB memory",
        f"disk      {shutil.disk_usage(folder).free / 2**30:.0f} GiB free in {folder.resolve()}",
    ]


def _data(folder: Path, recipe: Recipe) -> str:
    """Whether a data set is there, judged by the reader that training would use."""
    from mlore_edu.data.loaders import open_dataset

    root, benchmark = folder / recipe.root, BENCHMARKS.get(recipe.data)
    if not root.exists():
        return f"not there{_how_to_get(folder, benchmark)}" if benchmark else "not there"
    try:
        counts = [len(open_dataset(recipe.data, root, split, recipe.task_set)) for split in ("train", "val")]
    except UserError as error:
        return f"not usable: {error}"
    return f"{counts[0]} training and {counts[1]} validation images{_what_kind(root, benchmark, sum(counts))}"


def _how_to_get(folder: Path, benchmark: Benchmark) -> str:
    """The next command towards a data set that is not there."""
    archives = [folder / benchmark.archive(build) for build in benchmark.sources]
    fetched = [archive.relative_to(folder) for archive in archives if archive.exists()]
    if not fetched:
        return f"; next: {benchmark.script} fetch"
    return f", but its archive {fetched[0]} is; next: {benchmark.script} prepare --archive {fetched[0]}"


def _what_kind(root: Path, benchmark: Benchmark | None, images: int) -> str:
    """Which build is there, whether its labels are derived, and the command that looks into every file."""
    if benchmark is None:
        return ""
    if benchmark.name == "nyud_v2":
        return f" of the {recorded_build(root)} build; {benchmark.script} verify checks every file"
    if min(DerivedLabels(root).count(kind) for kind in DERIVED) >= images:
        return f", labels derived; {benchmark.script} verify checks every file"
    return f"; next: {benchmark.script} prepare, which derives labels once instead of while training"


def _run(run: Path) -> str:
    from mlore_edu.training.checkpoint import latest
    from mlore_edu.training.run_folder import RunFolder

    try:
        recipe, metrics = load_recipe(run), RunFolder(run).read_metrics()
    except UserError as error:
        return f"not readable: {error}"
    if metrics:
        return f"complete, {recipe.iterations} iterations"
    last = latest(run / "checkpoints")
    return f"at iteration {int(last.name) if last else 0} of {recipe.iterations}; train again to go on"


def _next_step(folder: Path) -> str:
    nano = RECIPES["dollhouse_baseline_nano"]
    if not (folder / nano.root).exists():
        return f"mlore-edu dollhouse --root {nano.root}"
    if not (folder / "runs" / nano.name / "metrics.json").exists():
        return f"mlore-edu train {nano.name}"
    return f"mlore-edu evaluate runs/{nano.name}, or another recipe: mlore-edu recipes"
