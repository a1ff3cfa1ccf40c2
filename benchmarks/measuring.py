"""Time and memory of one call, and the record of it, for the benchmarks."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlore_edu.atomic import write_atomically
from mlore_edu.training.run_folder import versions

MIB = 2**20


def begin(threads: int | None) -> float | None:
    """Set the number of threads, and exact products on a GPU too; the machine's load, where it can be known."""
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.backends.fp32_precision = "ieee"
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def write_record(path: Path | None, options: Any, load: float | None, **measured: Any) -> None:
    """Write what was measured, with what and how, where a record is wanted; options are a dataclass."""
    if path:
        record = {**versions(), "load": load, "options": {**asdict(options), "json": str(path)}, **measured}
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def agree(results: Sequence[Tensor]) -> None:
    """All forms must give the same result; the first is what the others are held against."""
    for result in results:
        if not (result - results[0]).abs().max() <= 1e-3 * results[0].abs().max():  # not: nan differs too
            raise SystemExit("two forms give different results; mend one of them before their costs are compared.")


def seconds(run: Callable[[], Any], device: str) -> float:
    """Time of one call, until a GPU is done with it."""
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    finish = torch.cuda.synchronize if device == "cuda" else bool
    gc.collect()
    finish()
    start = clock()
    run()
    finish()
    return clock() - start


def resident(key: str) -> int:
    """VmRSS or VmHWM (the largest so far) of this process in bytes; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def extra_resident(make: Callable[[], Callable[[], Any]], warm_up: Callable[[], Any], threads: int | None) -> int:
    """Peak memory of one call above that of the process before it; to be called in a process of its own."""
    torch.set_num_threads(threads or torch.get_num_threads())
    run = make()
    warm_up()  # libraries and threads are there
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, so that a pass must ask for it again
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    run()
    return max(0, resident("VmHWM") - before)


def peak_memory(make: Callable[[], Callable[[], Any]], warm_up: Callable[[], Any], threads: int | None = None) -> int:
    """Bytes that one call takes at most on a CPU, found in a process of its own; 0 where that cannot be known.

    ``make`` builds what is called, and ``warm_up`` something small of its kind; both must be picklable.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["timm", "mlore_edu.model", "mlore_edu.training.run_folder"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(extra_resident, (make, warm_up, threads))


def peak_memory_on_gpu(run: Callable[[], Any]) -> int:
    """Bytes that one call takes at most from the allocator."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before
