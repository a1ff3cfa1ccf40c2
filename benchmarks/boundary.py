"""Images per second of the boundary evaluation, against solving every threshold on its own; in one run.

    python benchmarks/boundary.py                                               # about two minutes
    python benchmarks/boundary.py --json book/results/boundary_benchmark.json

The maps, each at the size of a PASCAL-Context and of an NYUD-v2 image:

    network   what a network says of the boundaries of Dollhouse scenes (book/results/boundary_predictions.npz),
              enlarged as the field's networks enlarge their maps, with the scenes' labels at full size
    noise     ridges everywhere, as of an untrained network: what the matching takes longest for

The methods, which must all count the same:

    library    the matching repaired from threshold to threshold
    fresh      each thresholded map thinned and matched on its own, by the same compiled functions
    scipy      the same with SciPy's maximum matching; only on the network's maps, on noise it takes hours

Times are of the core that works, so that other work on the machine counts little; one more is wall-clock time with all
workers, and says how long the machine took as loaded as it was. The shares of the library's time are measured one by
one: suppression alone, and thinning as all thresholds without any true pixel, which leaves the matching nothing to do.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from measuring import resident
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from mlore_edu.atomic import write_atomically
from mlore_edu.data.dollhouse import scene
from mlore_edu.metrics import BOUNDARY_PROTOCOLS, NYUD_BOUNDARY, PASCAL_BOUNDARY, BoundaryF, BoundaryProtocol
from mlore_edu.metrics.boundary import ImageCounts, count_image, region_outlines, suppress
from mlore_edu.metrics.boundary_matching import match, match_thresholds, thin
from mlore_edu.training.run_folder import versions

PASCAL_IMAGES = 2498
RESULTS = Path(__file__).parents[1] / "book" / "results"
SIZES = {"pascal": ((375, 500), PASCAL_BOUNDARY), "nyud": ((425, 560), NYUD_BOUNDARY)}

Maps = tuple[np.ndarray, np.ndarray]
Solver = Callable[[np.ndarray, np.ndarray, float], int]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    images: int = 6
    """Images per row, 24 at most."""
    compared: int = 1
    """How many of them the slower methods count too."""
    workers: int = 2
    """Threads of the wall-clock time."""
    variants: int = 24
    """Scenes at 375×500 that every variant of the protocol judges."""
    json: Path | None = None
    """Write a record here."""


class Row(NamedTuple):
    """One row of the table."""

    kind: str
    protocol: str
    methods: tuple[str, ...]


ROWS = (
    Row("network", "pascal", ("library", "fresh", "scipy")),
    Row("network", "nyud", ("library", "fresh", "scipy")),
    Row("noise", "pascal", ("library", "fresh")),
    Row("noise", "nyud", ("library", "fresh")),
)


@lru_cache
def recorded() -> dict[str, Any]:
    """The record of the network's predictions, and the predictions, uint8 (N, side, side)."""
    probability = np.load(RESULTS / "boundary_predictions.npz")["probability"]
    return {**json.loads((RESULTS / "boundary_predictions.json").read_text()), "probability": probability}


def network_maps(number: int, height: int, width: int) -> Maps:
    """The network's boundary probability of a scene and the scene's boundaries, cut from the middle, each (H, W)."""
    record = recorded()
    small = torch.from_numpy(record["probability"][number]).double()[None, None] / 255
    side = small.shape[-1] * math.ceil(max(height, width) / small.shape[-1])
    large = F.interpolate(small, size=(side, side), mode="bilinear")[0, 0].numpy()
    target = scene(record["scenes"]["first seed"] + number, side, record["scenes"]["difficulty"]).edge
    top, left = (side - height) // 2, (side - width) // 2
    middle = slice(top, top + height), slice(left, left + width)
    return np.ascontiguousarray(large[middle]), target[middle].astype(np.float32)


def noise_maps(number: int, height: int, width: int) -> Maps:
    """Smooth noise as a prediction, and the boundaries of other smooth noise, each (H, W)."""
    rng = np.random.default_rng(number)
    rough = gaussian_filter(rng.standard_normal((height, width)), 1.0)
    regions = gaussian_filter(rng.standard_normal((height, width)), math.sqrt(height * width) / 25) > 0
    return 1 / (1 + np.exp(-10 * rough)), region_outlines(regions).astype(np.float32)


MAPS = {"network": network_maps, "noise": noise_maps}


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


def prepare(probability: np.ndarray, target: np.ndarray, protocol: BoundaryProtocol) -> tuple[Maps, float]:
    """Ridges and thinned truth, and how many pixels apart a pair may be."""
    truth = target == 1
    truth = thin(region_outlines(truth) if protocol.truth_is_regions else truth)
    return (suppress(probability, protocol), truth), protocol.max_distance * math.hypot(*truth.shape)


def fresh(
    probability: np.ndarray, target: np.ndarray, protocol: BoundaryProtocol, solver: Solver = compiled_pairs
) -> ImageCounts:
    """The same protocol as one would write it down: every threshold on its own."""
    (ridges, truth), reach = prepare(probability, target, protocol)
    counts = []
    for threshold in protocol.thresholds:
        predicted = thin(ridges > threshold)
        counts.append((predicted.sum(), solver(predicted, truth, reach)))
    predicted_counts, matched = np.array(counts).T
    return ImageCounts(predicted_counts, matched, int(truth.sum()))


METHODS = {"library": count_image, "fresh": fresh, "scipy": partial(fresh, solver=scipy_pairs)}


def core_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Time of this thread's core for a call, and what the call gave."""
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


def shares(images: list[Maps], protocol: BoundaryProtocol) -> dict[str, float]:
    """Core seconds an image of the library's steps; the matching is what the first two leave."""
    suppression = thinning = total = 0.0
    for probability, target in images:
        (ridges, truth), reach = prepare(probability, target, protocol)
        suppression += core_seconds(lambda p=probability: suppress(p, protocol))[0]
        nothing = np.zeros_like(truth)
        thinning += core_seconds(lambda r=ridges, n=nothing, d=reach: match_thresholds(r, n, protocol.thresholds, d))[0]
        total += core_seconds(lambda p=probability, t=target: count_image(p, t, protocol))[0]
    steps = {"suppression": suppression, "thinning": thinning, "matching": total - suppression - thinning}
    return {name: value / len(images) for name, value in {"total": total, **steps}.items()}


def compare(images: list[Maps], protocol: BoundaryProtocol, methods: tuple[str, ...]) -> dict[str, float]:
    """Core seconds an image of each method; all of them must count the same."""
    seconds = dict.fromkeys(methods, 0.0)
    for maps in images:
        counts = []
        for name in methods:
            spent, found = core_seconds(lambda n=name, m=maps: METHODS[n](*m, protocol))
            seconds[name] += spent
            counts.append(found)
        for other in counts[1:]:
            same = all(np.array_equal(mine, its) for mine, its in zip(counts[0], other))
            if not same:
                raise SystemExit("two methods count differently; mend one of them before their times are compared.")
    return {name: spent / len(images) for name, spent in seconds.items()}


def wall_clock(images: list[Maps], protocol: BoundaryProtocol, workers: int) -> tuple[float, float]:
    """Seconds an image by the clock with so many threads, and odsF."""
    meter = BoundaryF(protocol, workers=workers)
    predictions, targets = (torch.from_numpy(np.stack(maps)) for maps in zip(*images))
    start = time.perf_counter()
    meter.update(predictions, targets)
    score = meter.compute()
    return (time.perf_counter() - start) / len(images), score


def extra_memory(height: int, width: int, protocol: BoundaryProtocol) -> int:
    """Peak bytes of one image above those of the process before it; to be called in a process of its own."""
    few = replace(protocol, thresholds=protocol.thresholds[:2])  # the fullest maps take the most
    count_image(*noise_maps(1, 64, 64), few)  # compiled and imported
    image = noise_maps(0, height, width)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    count_image(*image, few)
    return max(0, resident("VmHWM") - before)


def measure(row: Row, options: Options) -> dict[str, Any]:
    """One row of the record."""
    (height, width), protocol = SIZES[row.protocol]
    images = [MAPS[row.kind](number, height, width) for number in range(options.images)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = pool.apply(extra_memory, (height, width, protocol))
    seconds, odsf = wall_clock(images, protocol, options.workers)
    steps = shares(images, protocol)
    return {
        **{"kind": row.kind, "protocol": row.protocol, "size": [height, width], "odsF": odsf},
        **{"core_seconds": steps, "compared": compare(images[: options.compared], protocol, row.methods)},
        **{"clock_seconds": seconds, "memory": memory},
        "minutes": {
            "two cores": PASCAL_IMAGES * steps["total"] / 2 / 60,
            "by the clock": PASCAL_IMAGES * seconds / 60,
        },
    }


def judge_variants(scenes: int) -> dict[str, dict[str, float]]:
    """What each variant of the protocol says of the network's maps: percent, and the best threshold."""
    images = [network_maps(number, *SIZES["pascal"][0]) for number in range(scenes)]
    predictions, targets = (torch.from_numpy(np.stack(maps)) for maps in zip(*images))
    found = {}
    for name, protocol in BOUNDARY_PROTOCOLS.items():
        meter = BoundaryF(protocol, workers=2)
        meter.update(predictions, targets)
        details = meter.details()
        found[name] = {key: details[key] for key in ("odsF", "oisF", "ap", "ods_threshold")}
    return found


def show(told: dict[str, Any]) -> str:
    """One row of the table."""
    steps, compared, minutes = told["core_seconds"], told["compared"], told["minutes"]
    times = [f"{compared[name] / compared['library']:.0f}×" if name in compared else "-" for name in ("fresh", "scipy")]
    parts = [f"{100 * steps[name] / steps['total']:.0f} %" for name in ("suppression", "thinning", "matching")]
    cells = [told["kind"], told["protocol"], "×".join(map(str, told["size"])), f"{told['odsF']:.1f}"]
    cells += [f"{1 / steps['total']:.1f}", *parts, *times, f"{1 / told['clock_seconds']:.1f}"]
    cells += [f"{minutes['two cores']:.1f}", f"{minutes['by the clock']:.1f}", f"{told['memory'] / 2**20:.0f}"]
    return f"| {' | '.join(cells)} |"


def main(options: Options) -> None:
    for method in METHODS.values():
        method(*noise_maps(0, 48, 48), PASCAL_BOUNDARY)  # compile before the clock runs
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(f"{options.images} images a row, {options.compared} of them by all methods; 101 thresholds.")
    print(f"{os.cpu_count()} cores, load {load}. Images per second of one core's time, its shares, and the other")
    print(f"methods' time in multiples; images per second by the clock with {options.workers} workers;")
    print(f"minutes for {PASCAL_IMAGES} images by two cores' time and by the clock; memory of one image in MiB.")
    print("| maps | protocol | size | odsF | images/s | suppression | thinning | matching | fresh | scipy ", end="")
    print("| by the clock | minutes | by the clock | memory |\n" + "|---" * 14 + "|")
    rows = []
    for row in ROWS:
        rows.append(measure(row, options))
        print(show(rows[-1]), flush=True)
    variants = judge_variants(options.variants)
    print(f"\nodsF of {options.variants} scenes at 375×500 by every variant of the protocol:")
    for name, told in variants.items():
        print(f"{name:22}{told['odsF']:6.1f}  (threshold {told['ods_threshold']}, oisF {told['oisF']:.1f})")
    if options.json:
        settings = {**asdict(options), "json": str(options.json)}
        record = {
            **versions(),
            "load": load,
            "options": settings,
            "images": PASCAL_IMAGES,
            "rows": rows,
            "variants": variants,
        }
        write_atomically(options.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
