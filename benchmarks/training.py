"""How fast one training step is, and how much memory it takes, with each of the settings that a recipe offers.

    python benchmarks/training.py                                     # the chapters' model; fine on a CPU
    python benchmarks/training.py dollhouse_baseline_vit_small_512    # for a GPU

Every setting takes the same steps on the same batch, turn by turn, in one process; times are given as ratios to plain
fp32 and as images per second. The loop is the library's own (mlore_edu/training/engine.py).
"""

import resource
import sys
import time
from dataclasses import replace
from statistics import median

import torch

from mlore_edu.data.dollhouse_files import DollhouseScenes
from mlore_edu.data.transforms import train_transform
from mlore_edu.training.distributed import default_device
from mlore_edu.training.engine import Training
from mlore_edu.training.recipes import find_recipe
from mlore_edu.training.setup import make_model

SETTINGS = {
    "fp32": {},
    "fp32, channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, channels_last, compile": {"precision": "bf16", "channels_last": True, "compile": True},
    "fp16, channels_last": {"precision": "fp16", "channels_last": True},
}
ROUNDS, STEPS = 3, 5


def measure(trainings: dict[str, Training], batch: dict) -> dict[str, float]:
    """Seconds of a step in the median of the rounds; the settings take turns, so a noisy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for turn in range(ROUNDS + 1):  # the first warms up
        for name, training in trainings.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                training.step(batch)  # ends with the losses as numbers, so a GPU has finished too
            if turn:
                seconds[name].append((time.perf_counter() - start) / STEPS)
    return {name: median(values) for name, values in seconds.items()}


def peak(training: Training, batch: dict) -> str:
    """Largest memory of the GPU while one step runs; on a CPU only the whole process has one, which tells nothing."""
    if training.device.type == "cpu":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    training.step(batch)
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def main() -> None:
    device = default_device()
    recipe = find_recipe(sys.argv[1] if len(sys.argv) > 1 else "dollhouse_baseline_nano_64")
    recipe = replace(recipe, precision="fp32", channels_last=False, compile=False, workers=0, iterations=10_000)
    scenes = DollhouseScenes(recipe.batch_size, recipe.img_size, "easy", transform=train_transform(recipe.img_size))
    batch = next(iter(Training(make_model(recipe), recipe, device).loader(scenes)))
    trainings = {}
    for name, setting in SETTINGS.items():
        if device.type == "cpu" and "fp16" in name:
            continue  # no kernels
        chosen = replace(recipe, **setting)
        trainings[name] = Training(make_model(chosen), chosen, device)
    seconds = measure(trainings, batch)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{recipe.name}, batch {recipe.batch_size}, {where}, torch {torch.__version__}, at most {largest:.1f} GiB")
    print(f"{'setting':30} {'images/s':>9} {'speed':>7} {'peak':>10}")
    for name, training in trainings.items():
        rate, ratio = recipe.batch_size / seconds[name], seconds["fp32"] / seconds[name]
        print(f"{name:30} {rate:9.1f} {ratio:6.2f}x {peak(training, batch):>10}")


if __name__ == "__main__":
    main()
