"""Checkpoints that are either whole or absent: what a run needs to go on exactly as if it had never stopped.

A run's ``checkpoints`` folder holds one folder per checkpoint, named by its iteration::

    checkpoints/000400/model.safetensors    weights and BatchNorm statistics: plain numbers, safe to share
    checkpoints/000400/training.pt          optimiser, loss scaler, random numbers, position in the data
    checkpoints/000400/checksums.json       SHA-256 of both

A checkpoint is written under another name, pushed to the disk, and only then renamed: renaming is one indivisible step,
so a power cut, a full disk or ``kill -9`` leaves the previous checkpoint as it was. Chapter 16.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mlore_edu import atomic
from mlore_edu.errors import UserError

WEIGHTS, TRAINING, CHECKSUMS = "model.safetensors", "training.pt", "checksums.json"


@contextlib.contextmanager
def explain_disk_errors(what: str, consequence: str = "", option: str = "--run") -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into one clear sentence.

    Parameters
    ----------
    what
        The thing being written, e.g. ``"the log runs/a/log.jsonl"``.
    consequence
        What is still safe, put before the remedy.
    option
        Option of the command line that names another place.

    Raises
    ------
    UserError
        In place of any ``OSError`` of the body.
    """
    remedies = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "free some of your quota and run the same command again",
        errno.EROFS: f"choose a folder on a writable disk with {option}",
        errno.EACCES: f"choose a folder that you may write to with {option}",
        errno.EPERM: f"choose a folder that you may write to with {option}",
    }
    try:
        yield
    except OSError as error:
        remedy = remedies.get(error.errno or 0, f"look after the disk, or choose another folder with {option}")
        reason = (error.strerror or str(error)).lower()
        safe = f"{consequence}; " if consequence else ""
        raise UserError(f"cannot write {what} ({reason}); {safe}{remedy}.") from error


def save(folder: Path, iteration: int, model_state: Mapping[str, Tensor], training_state: dict[str, Any]) -> Path:
    """Write a checkpoint; the one before it is kept in reserve and older ones are removed afterwards.

    Parameters
    ----------
    folder
        The run's ``checkpoints`` folder.
    iteration
        Optimiser steps done.
    model_state
        ``model.state_dict()``.
    training_state
        Tensors and plain Python values only, so that it can be loaded without executing code from the file.

    Returns
    -------
    Path
        The folder of the new checkpoint.

    Raises
    ------
    UserError
        If the disk is full or not writable; all earlier checkpoints are untouched then.
    """
    final = folder / f"{iteration:06d}"
    draft = folder / f".{final.name}.draft"
    previous = latest(folder)
    kept = f"the checkpoint of iteration {int(previous.name)} is intact" if previous else ""
    with explain_disk_errors(f"the checkpoint of iteration {iteration} to {folder}", kept):
        try:
            _write_files(draft, model_state, {"iteration": iteration, **training_state})
            os.rename(draft, final)
            _sync_folder(folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    for outdated in [path for path in _list(folder) if path != final][:-1]:
        shutil.rmtree(outdated, ignore_errors=True)
    return final


def _write_files(draft: Path, model_state: Mapping[str, Tensor], training_state: dict[str, Any]) -> None:
    shutil.rmtree(draft, ignore_errors=True)  # left behind by a process that was killed here
    draft.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model_state.items()}
    buffer = io.BytesIO()
    torch.save(training_state, buffer)
    contents = {WEIGHTS: safetensors.torch.save(weights), TRAINING: buffer.getvalue()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, content in {**contents, CHECKSUMS: json.dumps(sums).encode()}.items():
        atomic.write_durably(draft / name, content)
    _sync_folder(draft)


def _sync_folder(folder: Path) -> None:
    """Push a folder's list of names to the disk, on file systems that know how."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def _list(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most iterations in a ``checkpoints`` folder, if there is any."""
    found = _list(folder)
    return found[-1] if found else None


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back.

    Returns
    -------
    tuple of dict
        The model's state and the training state, as they were given to :func:`save`, plus ``"iteration"``.

    Raises
    ------
    UserError
        If a file is missing or its content is not what was written.
    """
    contents = {}
    for name in (CHECKSUMS, WEIGHTS, TRAINING):
        try:
            contents[name] = (checkpoint / name).read_bytes()
        except OSError as error:
            raise _damaged(checkpoint, name, (error.strerror or str(error)).lower()) from error
    try:
        sums = dict(json.loads(contents[CHECKSUMS]))
    except ValueError as error:
        raise _damaged(checkpoint, CHECKSUMS, "not JSON") from error
    for name in (WEIGHTS, TRAINING):
        if hashlib.sha256(contents[name]).hexdigest() != sums.get(name):
            raise _damaged(checkpoint, name, "its SHA-256 is not the one recorded")
    weights = safetensors.torch.load(contents[WEIGHTS])
    return weights, torch.load(io.BytesIO(contents[TRAINING]), map_location="cpu", weights_only=True)


def _damaged(checkpoint: Path, name: str, reason: str) -> UserError:
    earlier = [path for path in _list(checkpoint.parent) if int(path.name) < int(checkpoint.name)]
    if earlier:
        remedy = f"move the folder {checkpoint} away to go on from iteration {int(earlier[-1].name)}"
    else:
        remedy = "there is no earlier checkpoint: start anew with --run FOLDER"
    return UserError(f"the checkpoint file {checkpoint / name} is damaged ({reason}); {remedy}.")


def random_state() -> dict[str, Any]:
    """State of every random number generator (Python, NumPy, torch, CUDA), as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned; CUDA states only where as many GPUs are there again."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
