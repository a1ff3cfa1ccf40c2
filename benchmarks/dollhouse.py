"""How fast Dollhouse renders: images per second by size and difficulty, with one process and with two.

Run ``python benchmarks/dollhouse.py`` (about a minute); ``--quick`` renders fewer scenes.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

# each process stands for one core, so the linear algebra library must not start threads of its own
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mlore_edu.data.dollhouse import scene

GOAL = 60
"""Images per second at 128 x 128, full difficulty, two processes on two cores."""


def render(job: tuple[int, int, int, str]) -> float:
    """Render scenes ``first`` to ``first + count``; gives the seconds of processor time they took."""
    first, count, size, difficulty = job
    start = time.process_time()
    for seed in range(first, first + count):
        scene(seed, size, difficulty)
    return time.process_time() - start


def rate(size: int, difficulty: str, count: int, processes: int) -> tuple[float, float]:
    """(images per second of wall time, milliseconds of processor time per image)."""
    jobs = [(1000 * worker, count, size, difficulty) for worker in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(render, [(0, 2, size, difficulty)] * processes))  # start the workers before the clock
        start = time.perf_counter()
        busy = sum(pool.map(render, jobs))
        wall = time.perf_counter() - start
    return processes * count / wall, 1000 * busy / (processes * count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="render a fifth of the scenes")
    share = 5 if parser.parse_args().quick else 1
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{platform.machine()}, {os.cpu_count()} cores{load}, numpy {np.__version__}")
    print(f"{'size':>5} {'difficulty':>10} {'1 process':>12} {'2 processes':>12} {'core time':>12}")
    reached = free = 0.0
    for size, difficulty, count in ((64, "easy", 150), (128, "easy", 100), (128, "medium", 80), (128, "full", 150),
                                    (256, "full", 30), (512, "full", 8)):  # fmt: skip
        one, _ = rate(size, difficulty, max(count // share, 2), 1)
        two, cost = rate(size, difficulty, max(count // share, 2), 2)
        print(f"{size:>5} {difficulty:>10} {one:>8.1f} im/s {two:>8.1f} im/s {cost:>9.1f} ms")
        if (size, difficulty) == (128, "full"):
            reached, free = two, 2000 / cost
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB here
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    print(f"largest process: {peak:.0f} MiB")
    print(f"128, full, two processes: {reached:.0f} im/s, goal {GOAL}; by core time, on idle cores {free:.0f}")


if __name__ == "__main__":
    main()
