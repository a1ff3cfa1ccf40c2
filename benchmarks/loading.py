"""How many images a core reads and augments per second, PASCAL-Context with and without derived labels, and NYUD-v2.

Run ``python benchmarks/loading.py`` (a minute or two); it renders Dollhouse in the real formats and sizes (375×500
and 425×560) into a temporary folder, or reads your own data with ``--pascal FOLDER --nyud FOLDER``. Times are
processor time of one thread, so that a busy machine does not spoil them.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.derived import DerivedLabels
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.dollhouse_layouts import Layout
from mlore_edu.data.loaders import draw_generator
from mlore_edu.data.nyud_v2 import NYUDv2
from mlore_edu.data.pascal_context import PASCALContext
from mlore_edu.data.preparation import prepare
from mlore_edu.data.transforms import train_transform


def milliseconds(act: Callable[[int], object], count: int) -> float:
    """Processor time per call of ``act(0) … act(count − 1)``, the fastest of three rounds."""
    act(0)
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for index in range(count):
            act(index)
        rounds.append(1000 * (time.process_time() - start) / count)
    return min(rounds)


def measure(dataset: LabelledImages, crop: tuple[int, int], count: int) -> tuple[float, float]:
    """Milliseconds per image: reading alone, and reading with the field's augmentation."""
    augmented = dataset.using(transform=train_transform(crop))
    count = min(count, len(dataset))
    read = milliseconds(dataset.load, count)
    return read, milliseconds(lambda index: augmented.draw(index, draw_generator(0, index)), count)


def rendered(place: Path, layout: Layout, size: tuple[int, int], count: int) -> Path:
    """Dollhouse in a benchmark's formats and its images' usual size."""
    write_dollhouse(place / layout, layout=layout, size=size, difficulty="full", train=count, val=1, progress=False)
    return place / layout


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pascal", type=Path, help="your prepared PASCALContext")
    parser.add_argument("--nyud", type=Path, help="your prepared NYUDv2")
    parser.add_argument("--count", type=int, default=12, help="images (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pascal = options.pascal or rendered(Path(folder), "pascal_context", (375, 500), options.count)
        nyud = options.nyud or rendered(Path(folder), "nyud_v2", (425, 560), options.count)
        derived = PASCALContext(pascal, "train")
        direct = PASCALContext(pascal, "train")
        direct.derived = DerivedLabels(None)
        if options.pascal is None:
            prepare("pascal_context", pascal, progress=False)
        print(f"{platform.machine()}, one thread, load average {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
        print(f"{'':<34}{'reading':>12}{'+ augmenting':>14}{'images/s and core':>20}")
        for name, dataset, crop in (
            ("PASCAL-Context, labels derived now", direct, (512, 512)),
            ("PASCAL-Context, labels kept", derived, (512, 512)),
            ("NYUD-v2", NYUDv2(nyud, "train"), (448, 576)),
        ):
            read, drawn = measure(dataset, crop, options.count)
            print(f"{name:<34}{read:>9.1f} ms{drawn:>11.1f} ms{1000 / drawn:>20.1f}")


if __name__ == "__main__":
    main()
