"""How many images a core loads, beside how many a training step consumes: how many cores does a GPU need?

    python benchmarks/loading.py                                   # renders Dollhouse in the real formats; 2 minutes
    python benchmarks/loading.py --pascal FOLDER --nyud FOLDER     # your own data, prepared
    python benchmarks/loading.py --json book/results/loading.json

The ways of loading a batch of 4 images of 375 × 500 (PASCAL-Context) or 425 × 560 (NYUD-v2):

    deriving and augmenting     labels that follow from others are derived again every time (PASCAL-Context only)
    augmenting                  the ordinary loader's processes: read, augment, stack
    reading                     what is left to them with --augment-on-gpu: read, put into one message
    decoded before              what would be left if every sample lay on the disk decoded: copied from the page cache.
                                Not built: it stands here to show what it would gain, and what room it would take

Times are processor time of one thread, the least of all rounds, so that a busy machine does not spoil them. Rendered
pictures are as large as the real ones; their JPEG files are smoother, and faster to decode, than photographs.

A training step needs 6 floating-point operations for every multiply-accumulate of the forward pass: 2 for the product
and its sum, and twice as much again for the way back. With what a GPU sustains (an assumption, --tflops: about a third
of the peak of bf16 for an A100 and for an H100 or H200) that gives images per second, and so the cores. Where there is
a CUDA GPU, steps are also run and timed, and so is augmentation on it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro

from mlore_edu.atomic import write_atomically
from mlore_edu.complexity import count
from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.derived import DerivedLabels
from mlore_edu.data.device_batches import StoredBatch
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.dollhouse_layouts import Layout
from mlore_edu.data.loaders import DeviceAugmentation, collate, draw_generator, make_loader
from mlore_edu.data.nyud_v2 import NYUDv2
from mlore_edu.data.pascal_context import PASCALContext
from mlore_edu.data.preparation import prepare
from mlore_edu.data.transforms import Pipeline, train_transform
from mlore_edu.model import build_model
from mlore_edu.tasks import TASK_SETS
from mlore_edu.training.engine import Training
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.run_folder import versions
from mlore_edu.training.setup import make_model

BATCH = 4
MODELS = ("mlore_vit_base", "baseline_vit_base")
DERIVING, AUGMENTING, READING, DECODED = "deriving and augmenting", "augmenting", "reading", "decoded before"
Acts = Mapping[str, Callable[[int], object]]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pascal: Path | None = None
    """Your prepared PASCALContext; rendered if not given."""
    nyud: Path | None = None
    """Your prepared NYUDv2; rendered if not given."""
    count: int = 16
    """Images of each."""
    rounds: int = 5
    """Turns that every way takes."""
    tflops: tuple[float, ...] = (100.0, 300.0)
    """Floating-point operations, in 10¹² a second, that a GPU is assumed to sustain while it trains."""
    json: Path | None = None
    """Write a record here."""


class Source(NamedTuple):
    """A data set that is loaded: its name in recipes, its training crop, and the training images of the real one."""

    name: Literal["pascal_context", "nyud_v2"]
    dataset: PASCALContext | NYUDv2
    crop: tuple[int, int]
    images: int


# --- what a core loads -----------------------------------------------------------------------------------------------


def milliseconds(acts: Acts, calls: int, rounds: int) -> dict[str, float]:
    """Processor time per call of ``act(0) … act(calls − 1)``, the least of the rounds, in which the acts take turns."""
    least = dict.fromkeys(acts, float("inf"))
    for act in acts.values():
        act(0)  # warms up
    for _ in range(rounds):
        for name, act in acts.items():
            start = time.process_time()
            for index in range(calls):
                act(index)
            least[name] = min(least[name], 1000 * (time.process_time() - start) / calls)
    return least


def ways(source: Source, count: int, folder: Path) -> Acts:
    """Every way of loading one batch, by its number."""

    def numbers(batch: int) -> list[int]:
        return [(batch * BATCH + offset) % count for offset in range(BATCH)]

    def augmenting(dataset: LabelledImages, batch: int) -> object:
        return collate([dataset.draw(index, draw_generator(0, index)) for index in numbers(batch)])

    def reading(batch: int) -> object:
        return StoredBatch.of([source.dataset.load(index) for index in numbers(batch)])

    files = [folder / f"{source.name}_{index}" for index in range(count)]
    for index, file in enumerate(files):
        StoredBatch.of([source.dataset.load(index)]).content.numpy().tofile(file)

    def decoded(batch: int) -> object:
        samples = [torch.from_numpy(np.fromfile(files[index], np.uint8)) for index in numbers(batch)]
        return torch.cat(samples)

    acts: dict[str, Callable[[int], object]] = {}
    if isinstance(source.dataset, PASCALContext):
        acts[DERIVING] = partial(augmenting, without_derived(source.dataset))
    return {**acts, AUGMENTING: partial(augmenting, source.dataset), READING: reading, DECODED: decoded}


def without_derived(dataset: PASCALContext) -> PASCALContext:
    """The data set that does not look for derived labels."""
    direct = dataset.using()
    direct.derived = DerivedLabels(None)
    return direct


def shares_of_reading(source: Source, count: int, rounds: int) -> dict[str, float]:
    """Milliseconds that the image and each label of a sample take to read."""
    data, tasks = source.dataset, source.dataset.tasks
    acts: dict[str, Callable[[int], object]] = {"image": lambda index: data.picture(data.ids[index])}
    acts.update({name: data.using(tasks=tasks.subset(name)).load for name in tasks.names})
    found = milliseconds(acts, count, rounds)
    return {name: time if name == "image" else max(0.0, time - found["image"]) for name, time in found.items()}


def shares_of_augmenting(source: Source, count: int, rounds: int) -> dict[str, float]:
    """Milliseconds that each step of the transform takes."""
    transform = source.dataset.transform
    assert isinstance(transform, Pipeline)
    least = {type(step).__name__: float("inf") for step in transform.steps}
    for _ in range(rounds):
        spent = dict.fromkeys(least, 0.0)
        for index in range(count):
            sample, generator = source.dataset.load(index), draw_generator(0, index)
            for step in transform.steps:
                start = time.process_time()
                sample = step(sample, generator)
                spent[type(step).__name__] += 1000 * (time.process_time() - start) / count
        least = {name: min(least[name], spent[name]) for name in least}
    return least


def calls_alone(source: Source, count: int, rounds: int) -> float:
    """Milliseconds that augmenting takes on 8 × 8 pixels: its calls, which a training process makes for a GPU too."""
    sample = source.dataset.load(0)
    for name, value in sample.items():
        if isinstance(value, torch.Tensor):
            sample[name] = value.as_subclass(torch.Tensor)[..., :16, :16].as_subclass(type(value))
    transform = train_transform((8, 8))
    acts = {"calls": lambda index: transform(sample, draw_generator(0, index))}
    return milliseconds(acts, 10 * count, rounds)["calls"]


def loaded(source: Source, options: Options) -> dict[str, Any]:
    """All about loading one data set."""
    images = min(options.count, len(source.dataset)) // BATCH * BATCH or len(source.dataset)
    with tempfile.TemporaryDirectory() as folder:
        per_batch = milliseconds(ways(source, images, Path(folder)), -(-images // BATCH), options.rounds)
    sample = StoredBatch.of([source.dataset.load(0)])
    return {
        "images_per_second_and_core": {way: 1000 * BATCH / time for way, time in per_batch.items()},
        "milliseconds_reading": shares_of_reading(source, images, options.rounds),
        "milliseconds_augmenting": shares_of_augmenting(source, images, options.rounds),
        "milliseconds_of_calls_alone": calls_alone(source, images, options.rounds),
        "decoded_megabytes_per_image": sample.content.nbytes / 1e6,
        "decoded_gigabytes": sample.content.nbytes * source.images / 1e9,
    }


# --- what a training step consumes -----------------------------------------------------------------------------------


def macs(model: str, source: Source) -> int:
    """Multiply-accumulates of the forward pass on one image."""
    with torch.device("meta"):
        return count(build_model(model, TASK_SETS[source.name], source.crop), source.crop).macs


def needed(macs_of_model: int, tflops: float) -> float:
    """Images per second that a training step consumes at so many 10¹² operations a second."""
    return tflops * 1e12 / (6 * macs_of_model)


def synchronised() -> float:
    """The time now, when a GPU is done with all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def images_per_second(act: Callable[[], object], calls: int = 20) -> float:
    """Images that a call on a batch gets done per second, after some calls that warm up."""
    for _ in range(3):
        act()
    start = synchronised()
    for _ in range(calls):
        act()
    return BATCH * calls / (synchronised() - start)


def trained(model: str, source: Source, device: torch.device, calls: int = 20) -> float:
    """Images per second of real training steps in bf16, the batch being there already."""
    recipe = Recipe("loading", data=source.name, model=model, img_size=source.crop, batch_size=BATCH, precision="bf16")
    training = Training(make_model(recipe), recipe, device)
    batch = next(iter(make_loader(source.dataset, BATCH, train=True, device=device)))
    return images_per_second(lambda: training.step(batch), calls)


def augmented_on(source: Source, device: torch.device, calls: int = 20) -> float:
    """Images per second that a device augments, one batch after the other, the way to it included."""
    assert source.dataset.transform is not None
    augmentation = DeviceAugmentation(source.dataset.transform, 0, device)
    samples = [{**source.dataset.load(index % len(source.dataset)), "draw": index} for index in range(BATCH)]
    stored = StoredBatch.of(samples)
    return images_per_second(lambda: augmentation(stored.pin_memory() if device.type == "cuda" else stored), calls)


def consumed(source: Source, options: Options) -> dict[str, Any]:
    """What every model needs: by arithmetic, and on a CUDA machine measured."""
    found: dict[str, Any] = {}
    for model in MODELS:
        its = macs(model, source)
        by_assumption = {f"{tflops:g}": needed(its, tflops) for tflops in options.tflops}
        found[model] = {"macs": its, "images_per_second_at_tflops": by_assumption}
        if torch.cuda.is_available():
            found[model]["images_per_second_measured"] = trained(model, source, torch.device("cuda"))
    return found


# --- the command -----------------------------------------------------------------------------------------------------


def rendered(place: Path, layout: Layout, size: tuple[int, int], count: int) -> Path:
    """Dollhouse in a benchmark's formats and its images' usual size."""
    write_dollhouse(place / layout, layout=layout, size=size, difficulty="full", train=count, val=1, progress=False)
    return place / layout


def sources(options: Options, folder: Path) -> list[Source]:
    """Both data sets with their augmentation; those that are not given are rendered."""
    pascal = options.pascal or rendered(folder, "pascal_context", (375, 500), options.count)
    nyud = options.nyud or rendered(folder, "nyud_v2", (425, 560), options.count)
    if options.pascal is None:
        prepare("pascal_context", pascal, progress=False)
    return [
        Source("pascal_context", PASCALContext(pascal, "train", None, train_transform((512, 512))), (512, 512), 4998),
        Source("nyud_v2", NYUDv2(nyud, "train", None, train_transform((448, 576))), (448, 576), 795),
    ]


def show(source: Source, load: dict[str, Any], use: dict[str, Any]) -> None:
    """The tables of one data set."""
    rates = load["images_per_second_and_core"]
    print(f"\n{source.dataset.offers.name}, crops of {source.crop[0]} × {source.crop[1]}")
    print(f"  {'a core':<48}{'images/s':>10}{'ratio':>8}")
    for way, rate in rates.items():
        print(f"  {way:<48}{rate:>10.0f}{rate / rates[AUGMENTING]:>8.2f}")
    if "images_per_second_augmented_on_gpu" in load:
        print(f"  {'the GPU, augmenting alone':<48}{load['images_per_second_augmented_on_gpu']:>10.0f}")
    for title in (READING, AUGMENTING):
        shares = load[f"milliseconds_{title}"]
        parts = ", ".join(f"{name} {share:.1f}" for name, share in shares.items())
        print(f"  {title}, {sum(shares.values()):.1f} ms an image: {parts}")
    print(f"  the calls of augmenting, on 8 × 8 pixels: {load['milliseconds_of_calls_alone']:.1f} ms")
    size, room = load["decoded_megabytes_per_image"], load["decoded_gigabytes"]
    print(f"  {DECODED}: {size:.1f} MB an image, {room:.1f} GB in all")
    print(f"  {'a training step':<48}{'images/s':>10}{'cores ' + AUGMENTING:>18}{'cores ' + READING:>16}")
    for model, its in use.items():
        wanted = {f"at {tflops} TFLOP/s": rate for tflops, rate in its["images_per_second_at_tflops"].items()}
        if "images_per_second_measured" in its:
            wanted["measured"] = its["images_per_second_measured"]
        for how, rate in wanted.items():
            title = f"{model}, {its['macs'] / 1e9:.0f} GMACs, {how}"
            print(f"  {title:<48}{rate:>10.0f}{rate / rates[AUGMENTING]:>18.1f}{rate / rates[READING]:>16.1f}")


def main(options: Options) -> None:
    torch.set_num_threads(1)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: training steps are not run"
    print(f"one thread, load {load}; {gpu}; torch {torch.__version__}")
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in sources(options, Path(folder)):
            loading = loaded(source, options)
            if torch.cuda.is_available():
                loading["images_per_second_augmented_on_gpu"] = augmented_on(source, torch.device("cuda"))
            use = consumed(source, options)
            show(source, loading, use)
            record[source.name] = {"loading": loading, "training": use}
    if options.json:
        about = {**versions(), "load": load, "options": {name: str(value) for name, value in asdict(options).items()}}
        write_atomically(options.json, (json.dumps({**about, "data": record}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
