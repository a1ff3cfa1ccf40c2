"""Images per second of the boundary evaluation: ``python benchmarks/boundary.py``.

Compares, in one run and image by image in turn, the library (matching repaired from threshold to threshold, compiled)
with a straightforward solution (each thresholded map thinned and matched afresh, by the same compiled search or, with
``--scipy``, by SciPy's). Both must count the same.
The images are synthetic: contours of random regions, predicted with displacement, gaps, false contours and noise.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from mlore_edu.metrics import NYUD_BOUNDARY, PASCAL_BOUNDARY, BoundaryF, BoundaryProtocol
from mlore_edu.metrics.boundary import ImageCounts, count_image, region_outlines, suppress
from mlore_edu.metrics.boundary_matching import match, thin

PASCAL_IMAGES = 2498

Solver = Callable[[np.ndarray, np.ndarray, float], int]


@dataclass
class Options:
    """What to measure."""

    images: int = 4
    """Images per row of the table."""
    compared: int = 1
    """How many of them the straightforward solution counts too (much slower)."""
    scipy: bool = False
    """Let SciPy match in the straightforward solution: on some maps of 375×500 one matching takes it minutes."""
    workers: int = 2
    """Threads in the last column."""


def contours(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Outlines of random regions whose size goes with that of the image."""
    scale = math.sqrt(height * width)
    field = sum(gaussian_filter(rng.standard_normal((height, width)), scale / k) * (scale / k) for k in (12, 25))
    return region_outlines(np.digitize(field, np.quantile(field, [0.25, 0.5, 0.75])))


def synthetic(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction from 0 to 1 and a target, each (H, W)."""
    rng = np.random.default_rng(seed)
    target, false = contours(rng, height, width), contours(rng, height, width)
    unsteady = gaussian_filter(rng.random((2, height, width)), (0, 6, 6)) * 4 - 1.2  # strength along the contours
    shift = rng.integers(-2, 3, 2)
    found = gaussian_filter(np.roll(target, shift, (0, 1)).astype(float), 1.5) * 3 * unsteady[0]
    invented = gaussian_filter(false.astype(float), 1.5) * 1.5 * unsteady[1]
    noise = 0.2 * gaussian_filter(rng.random((height, width)), 1)
    return np.clip(np.maximum(found, invented) + noise, 0, 1), target.astype(np.float32)


def compiled_pairs(predicted: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """Pairs of a maximum matching, by the library's search from an empty matching."""
    return len(match(predicted, truth, reach))


def scipy_pairs(predicted: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """Pairs of a maximum matching, by SciPy's Hopcroft-Karp."""
    if not predicted.any() or not truth.any():
        return 0
    ends = [np.argwhere(predicted), np.argwhere(truth)]
    near = KDTree(ends[0]).sparse_distance_matrix(KDTree(ends[1]), reach, output_type="ndarray")
    graph = csr_matrix((np.ones(len(near), dtype=bool), (near["i"], near["j"])), (len(ends[0]), len(ends[1])))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def straightforward(
    probability: np.ndarray, target: np.ndarray, protocol: BoundaryProtocol, solver: Solver = compiled_pairs
) -> ImageCounts:
    """The same protocol as one would write it down: every threshold on its own."""
    ridges = suppress(probability, protocol)
    truth = target == 1
    truth = thin(region_outlines(truth) if protocol.truth_is_regions else truth)
    reach = protocol.max_distance * math.hypot(*truth.shape)
    counts = []
    for threshold in protocol.thresholds:
        predicted = thin(ridges > threshold)
        counts.append((predicted.sum(), solver(predicted, truth, reach)))
    predicted_counts, matched = np.array(counts).T
    return ImageCounts(predicted_counts, matched, int(truth.sum()))


METHODS = {
    "library": count_image,
    "straightforward": straightforward,
    "scipy": partial(straightforward, solver=scipy_pairs),
}


def memory(key: str) -> int:
    """Read VmRSS or VmHWM (the largest so far) of this process in MiB; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(key)), 0)


def extra_memory(method: str, height: int, width: int, protocol: BoundaryProtocol) -> int:
    """Peak memory of one image above that of the process before it, in MiB; to be called in a process of its own."""
    few = replace(protocol, thresholds=protocol.thresholds[:2])  # the fullest maps take the most
    METHODS[method](*synthetic(1, 64, 64), few)  # compiled and imported
    image = synthetic(0, height, width)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    METHODS[method](*image, few)
    return max(0, memory("VmHWM") - before)


def measure(height: int, width: int, protocol: BoundaryProtocol, options: Options) -> str:
    """One row of the table."""
    images = [synthetic(seed, height, width) for seed in range(options.images)]
    names = "library", "scipy" if options.scipy else "straightforward"
    seconds = dict.fromkeys(names, 0.0)
    for probability, target in images[: options.compared]:
        counts = {}
        for name in names:
            start = time.thread_time()  # of the core, so that other work on the machine does not count
            counts[name] = METHODS[name](probability, target, protocol)
            seconds[name] += time.thread_time() - start
        for mine, others in zip(*counts.values()):
            assert np.array_equal(mine, others), "the two solutions count differently"
    threaded = BoundaryF(protocol, workers=options.workers)
    predictions, targets = (torch.tensor(np.stack(maps)) for maps in zip(*images))
    start = time.perf_counter()
    threaded.update(predictions, targets)
    score = threaded.compute()
    with_workers = time.perf_counter() - start
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        extra = [pool.apply(extra_memory, (name, height, width, protocol)) for name in names]
    library, plain = (options.compared / seconds[name] for name in names)
    minutes = PASCAL_IMAGES / (options.images / with_workers) / 60
    return (
        f"| {height}×{width} | {protocol.max_distance} | {score:.1f} | {library:.1f} | {plain:.2f} "
        f"| {library / plain:.0f}× | {options.images / with_workers:.1f} | {minutes:.1f} | {extra[0]} / {extra[1]} |"
    )


def main(options: Options) -> None:
    for method in METHODS.values():
        method(*synthetic(0, 64, 64), PASCAL_BOUNDARY)  # compile before the clock runs
    print(f"{options.images} images a row ({options.compared} of them with both solutions), 101 thresholds.")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.")
    print("Images per second of one core's time, then of wall-clock time with workers; memory of one image, MiB.")
    print("| size | max_distance | odsF | library | straightforward | ratio ", end="")
    print(f"| {options.workers} workers | minutes for {PASCAL_IMAGES} | memory library / straightforward |")
    print("|---" * 9 + "|")
    for size, protocol in (((128, 128), PASCAL_BOUNDARY), ((375, 500), PASCAL_BOUNDARY), ((425, 560), NYUD_BOUNDARY)):
        print(measure(*size, protocol, options), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
