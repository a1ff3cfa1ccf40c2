"""What a GPU makes of the recipes: speed and memory with each option, and Dollhouse learned at full resolution.

    python benchmarks/training.py                    # on a CUDA GPU: all of it, about an hour on an H200 (not run yet)
    python benchmarks/training.py --train --steps 20 # only the speed, a few minutes (--speed: only the learning)

On a machine without CUDA the same code measures the chapters' smallest model, and trains nothing unless asked.

Speed: MLoRE with ViT-B and ViT-L at 512×512, batch 4, with every setting of SETTINGS, one after the other: steps and
images per second in the median step, peak memory, how busy the GPU was, the share of its arithmetic that was used, and
hours for the recipe's iterations. Learning: every decoder on Dollhouse at 512×512; a run that was stopped goes on.
Records: book/results/gpu_speed_RECIPE.json and gpu_training_RECIPE.json, which chapter 16 shows; where a command may
only take minutes, name one recipe a call. The loop is the library's own.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import tyro

from mlore_edu.atomic import write_atomically
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.training.budget import stored_budget
from mlore_edu.training.distributed import default_device
from mlore_edu.training.engine import Training, train
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.recipes import find_recipe
from mlore_edu.training.rehearsal import blank_batch
from mlore_edu.training.run_folder import versions
from mlore_edu.training.setup import make_model

RESULTS = Path(__file__).parents[1] / "book" / "results"
sys.path.append(str(RESULTS))
from record import record  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "bf16, checkpointing": {"precision": "bf16", "checkpointing": True},
    "bf16, fused optimiser": {"precision": "bf16", "fused_optimizer": True},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, compile": {"precision": "bf16", "compile": True},
    "bf16, channels_last, compile, fused": {
        **{"precision": "bf16", "channels_last": True, "compile": True, "fused_optimizer": True}
    },
}
"""What a recipe may be told about how its numbers are computed; the first is what the others are compared with."""

ON_A_GPU = ("pascal_mlore_vit_base", "pascal_mlore_vit_large")
LEARNED = tuple(f"dollhouse_{decoder}_vit_small_512" for decoder in ("baseline", "mlore", "taskexpert", "tif"))
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Options:
    """What is measured, for how long, and where the records go."""

    speed: tuple[str, ...] = ON_A_GPU if CUDA else ("dollhouse_baseline_nano_64",)
    """Recipes whose speed is measured; none: --speed."""
    train: tuple[str, ...] = LEARNED if CUDA else ()
    """Recipes that are trained; none: --train."""
    steps: int = 30
    """Steps that are timed, after five that are not."""
    iterations: int = 3000
    """Steps of each run that is trained; the recipes' own 20,000 are the better part of a day for all of them."""
    scenes: int = 1000
    """Scenes to learn from, and a tenth as many to judge by, rendered if they are not there."""
    runs: Path = Path("runs/gpu")
    """Where the runs are."""
    out: Path | None = RESULTS if CUDA else None
    """Folder of the records; none are written without."""


@contextmanager
def watched_gpu(device: torch.device) -> Iterator[list[float]]:
    """The share of time in which the GPU did anything, in percent, filled in at the end; empty where nothing tells."""
    shares: list[float] = []
    with suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        watcher = subprocess.Popen([*query, "-i", str(device.index or 0)], stdout=subprocess.PIPE, text=True)
        try:
            yield shares
        finally:
            watcher.terminate()
            lines, _ = watcher.communicate()
            shares += [float(line) for line in lines.split() if line.strip().isdigit()]
        return
    yield shares


def random_batch(recipe: Recipe) -> dict[str, Any]:
    """Images and labels of the right shapes, by chance: what a step costs does not depend on what they show."""
    torch.manual_seed(recipe.seed)
    batch: dict[str, Any] = blank_batch(recipe)
    for name, value in batch.items():
        classes = recipe.task_set[name].channels if name in recipe.task_set else 0
        batch[name] = torch.randint_like(value, classes) if value.dtype == torch.long else torch.rand_like(value)
    return {**batch, "meta": [{"id": f"chance {number}"} for number in range(recipe.batch_size)]}


def measure(recipe: Recipe, steps: int, device: torch.device) -> dict[str, Any]:
    """Train one setting for a few steps on one batch."""
    on_cuda = device.type == "cuda"
    training = Training(make_model(recipe), recipe, device)
    batch = random_batch(recipe)
    start = time.perf_counter()
    training.step(batch)  # ends with the losses as numbers, so a GPU has finished too
    first = time.perf_counter() - start
    for _ in range(4):
        training.step(batch)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    with watched_gpu(device) as shares:
        for _ in range(steps):
            start = time.perf_counter()
            training.step(batch)
            seconds.append(time.perf_counter() - start)
    each = median(seconds)
    budget = stored_budget(find_recipe(recipe.name))
    return {
        "first_step_seconds": first,
        "steps_per_second": 1 / each,
        "images_per_second": recipe.batch_size / each,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_cuda else None,
        "busy_percent": mean(shares) if shares else None,
        "tflops": 6 * budget.macs / each / 1e12 if budget else None,  # there and back, two operations each
        "hours": each * find_recipe(recipe.name).iterations / 3600,
    }


def measure_all(name: str, steps: int, device: torch.device) -> dict[str, Any]:
    """Every setting of one recipe; one that the machine cannot do is told by its reason."""
    rows: dict[str, Any] = {}
    for setting, changes in SETTINGS.items():
        recipe = replace(find_recipe(name), pretrained=False, precision="fp32", channels_last=False, **{"workers": 0})
        try:
            if device.type == "cpu" and changes.get("precision") == "fp16":
                rows[setting] = {"not_run": "fp16 is for GPUs"}
            else:
                rows[setting] = measure(replace(recipe, **changes), steps, device)
        except torch.OutOfMemoryError:
            rows[setting] = {"not_run": "the GPU's memory is too small"}
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(line(setting, rows[setting], rows["fp32"]), flush=True)
    return rows


def line(setting: str, row: dict[str, Any], plain: dict[str, Any]) -> str:
    """One row of the table, speeds beside those of plain fp32."""
    if "not_run" in row:
        return f"{setting:36} not run: {row['not_run']}"

    def show(key: str, digits: int) -> str:
        return "-" if row[key] is None else f"{row[key]:.{digits}f}"

    ratio = row["steps_per_second"] / plain["steps_per_second"] if "steps_per_second" in plain else float("nan")
    numbers = (
        f"{row['steps_per_second']:8.2f} {row['images_per_second']:8.1f} {ratio:6.2f}× {show('peak_gib', 1):>6}"
        f" {show('busy_percent', 0):>6} {show('tflops', 1):>8} {row['hours']:7.2f} {row['first_step_seconds']:8.1f}"
    )
    return f"{setting:36} {numbers}"


def learn(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Train a recipe to its end, or go on with it, and return its record."""
    if not Path(recipe.root).exists():
        few = max(1, options.scenes // 10)
        pictures = {"size": recipe.img_size, "difficulty": recipe.difficulty}
        write_dollhouse(recipe.root, train=options.scenes, val=few, workers=os.cpu_count() or 1, **pictures)
    interval = max(1, options.iterations // 10)
    recipe = replace(recipe, iterations=options.iterations, checkpoint_interval=interval, eval_interval=None)
    folder = options.runs / recipe.name
    train(recipe, folder)
    return record(folder)


def write(out: Path | None, name: str, content: dict[str, Any]) -> None:
    if out:
        write_atomically(out / name, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {out / name}")


def main(options: Options) -> None:
    device = default_device()
    where = torch.cuda.get_device_name(device) if CUDA else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}", flush=True)
    for name in options.speed:
        recipe = find_recipe(name)
        print(f"\n{name}: {recipe.model}, {recipe.img_size[0]}×{recipe.img_size[1]}, batch {recipe.batch_size}")
        print(f"{'':36} {'steps/s':>8} {'images/s':>8} {'speed':>7} {'GiB':>6} {'busy %':>6} {'Tflop/s':>8}", end="")
        print(f" {'hours':>7} {'first s':>8}", flush=True)
        rows = measure_all(name, options.steps, device)
        words = {key: str(value) for key, value in asdict(options).items()}
        content = {**versions(), "options": words, "recipe": asdict(recipe), "settings": rows}
        write(options.out, f"gpu_speed_{name}.json", content)
    for name in options.train:
        write(options.out, f"gpu_training_{name}.json", learn(find_recipe(name), options))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
