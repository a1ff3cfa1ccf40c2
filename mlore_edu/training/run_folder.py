"""A run's folder: everything a run was told, did and found, so that it can go on, be checked and be compared.

::

    runs/NAME/recipe.json     what it was told             runs/NAME/checkpoints/   where it can go on (checkpoint.py)
    runs/NAME/versions.json   on what it ran, the command  runs/NAME/metrics.json   the last iteration's numbers
    runs/NAME/log.jsonl       losses and metrics by step   runs/NAME/pictures/      labels beside predictions

Nothing here ever deletes or overwrites what another run left. Chapter 3; chapter 16 for several processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mlore_edu
from mlore_edu.atomic import write_atomically
from mlore_edu.errors import UserError
from mlore_edu.training import distributed
from mlore_edu.training.checkpoint import explain_disk_errors
from mlore_edu.training.recipe import Recipe, load_recipe

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "numba", "pillow", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, by its path."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def check(self, recipe: Recipe) -> bool:
        """Whether there is a run in this folder already, which then is one of this very recipe.

        Raises
        ------
        UserError
            If the folder holds something else, or another recipe's run.
        """
        anew = "choose another folder with --run FOLDER"
        if (self.path / "recipe.json").exists():
            if different := recipe.differences(load_recipe(self.path)):
                raise UserError(f"{self.path} holds a run with another {' and '.join(different)}; {anew}.")
            return True
        begun = {"lock", "versions.json", ".versions.json.draft", ".recipe.json.draft"}  # by a process killed there
        if self.path.is_dir() and {path.name for path in self.path.iterdir()} - begun:
            raise UserError(f"{self.path} is not empty and holds no run; {anew}.")
        return False

    def result(self, recipe: Recipe) -> dict[str, float] | None:
        """The metrics of a complete run of this recipe, None where there is none yet."""
        stored = self.read_metrics() if self.check(recipe) else None
        return dict(stored["metrics"]) if stored else None

    @contextlib.contextmanager
    def claimed(self, recipe: Recipe) -> Iterator[None]:
        """Hold the folder for one run of a recipe: made if need be, and locked against a second process.

        The lock goes with the process, however it ends: lockf's, unlike flock's, is not inherited by its loading
        processes, which outlive it by seconds. Of several processes of one run only the main one claims.

        Raises
        ------
        UserError
            If the folder is another run's, is in use, or cannot be written.
        """
        if distributed.rank() > 0:
            distributed.barrier()
            yield
            return
        with explain_disk_errors(f"the run folder {self.path}"):
            known = self.check(recipe)
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        with lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # POSIX allows either
                raise UserError(
                    f"another process is training in {self.path}; wait for it, or use another folder with --run FOLDER."
                ) from None
            if not known:
                with explain_disk_errors(f"the run folder {self.path}"):
                    write_atomically(self.path / "versions.json", json.dumps(versions(), indent=2).encode())
                    write_atomically(self.path / "recipe.json", recipe.to_json().encode())
            distributed.barrier()
            yield

    def read_metrics(self) -> dict[str, Any] | None:
        """The content of ``metrics.json``: iteration, metrics and details; None while the run is not complete."""
        try:
            stored: dict[str, Any] = json.loads((self.path / "metrics.json").read_text())
            if not (isinstance(stored, dict) and isinstance(stored.get("metrics"), dict)):
                raise ValueError("it holds no metrics")
            return stored
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / 'metrics.json'} cannot be read ({error}); move it away and run the same command again."
            ) from error

    def write_metrics(self, iteration: int, metrics: dict[str, float], details: dict[str, Any]) -> None:
        """Write ``metrics.json``, which marks the run as complete."""
        content = json.dumps({"iteration": iteration, "metrics": metrics, "details": to_plain(details)}, indent=2)
        with explain_disk_errors(f"the metrics to {self.path}", "the checkpoint is intact"):
            write_atomically(self.path / "metrics.json", content.encode())


class Log:
    """``log.jsonl``: one JSON object a line, in the order of iterations.

    Parameters
    ----------
    path
        The file; lines beyond ``iteration`` are taken back, because that part of the run is done again.
    iteration
        Where the run goes on.
    """

    def __init__(self, path: Path, iteration: int) -> None:
        self.path = path
        entries = [entry for entry in read_log(path) if entry["iteration"] <= iteration]
        self._metrics = {entry["iteration"]: entry["metrics"] for entry in entries if "metrics" in entry}
        with explain_disk_errors(f"the log {path}"):
            write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry, which names its ``"iteration"``."""
        with (
            explain_disk_errors(f"the log {self.path}", "the checkpoints are intact"),
            self.path.open("a") as file,
        ):
            file.write(json.dumps(entry) + "\n")
        if "metrics" in entry:
            self._metrics[entry["iteration"]] = entry["metrics"]

    def has_metrics(self, iteration: int) -> bool:
        """Whether an evaluation after that many iterations is in the log."""
        return iteration in self._metrics


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``log.jsonl``; a line cut off by a kill, or otherwise damaged, is left out.

    Each entry has ``iteration`` (steps done) and either ``loss``, ``losses`` (by task, unweighted), ``balance_loss``,
    ``gradient_norm`` (before clipping), ``learning_rate`` and ``images_per_second``, or ``metrics`` (by task).
    """
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict) and "iteration" in entry]


def to_plain(value: Any) -> Any:
    """Tensors, arrays and tuples as lists and numbers that JSON can hold."""
    if isinstance(value, dict):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    return value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def versions() -> dict[str, Any]:
    """What a result depends on beside the recipe: software, hardware, commit and command."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "mlore_edu": mlore_edu.__version__,
        "commit": commit.stdout.strip() or None,
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
