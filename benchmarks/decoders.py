"""What the book's decoders cost at inference and in training, under one protocol.

    python benchmarks/decoders.py                 # the networks of the sweeps: vit_nano, 64 × 64, 8 images
    python benchmarks/decoders.py --quick         # the same, one round, 2 images
    python benchmarks/decoders.py --size base     # ViT-B, 512 × 512, one image: many minutes on a CPU
    python benchmarks/decoders.py --threads 1 --json book/results/decoders_benchmark.json

Each row is a whole network: backbone, decoder and heads. Times are the least of all turns, which the networks take one
after the other; on a CPU with --threads 1 the core's time, so that other work on the machine counts little. Memory is
what a pass takes above what is there before it, weights not among it: on a CPU the most resident memory of a process of
its own for every network, on a GPU the allocator's largest total. A training step is the forward pass in training mode
and the gradients of all parameters, without an optimiser. MACs are those of one image at inference.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from measuring import MIB, begin, peak_memory, peak_memory_on_gpu, seconds, write_record
from torch import Tensor, nn

import mlore_edu as me


class Network(NamedTuple):
    """A network by its decoder and options; ``fused``: in the form for inference, with precomposed kernels."""

    decoder: str
    options: dict[str, Any]
    fused: bool = False
    deep: bool = False
    """On the deeper small backbone, vit_nano_12, which gives TaskExpert its twelve modules."""


_SUM = {"mixture": False, "memory": False}
_PLAIN = {"fused_scales": 0, "distilled_scales": 0, "diffusion": "none"}
NETWORKS = {
    "baseline": Network("baseline", {}),
    "MoE": Network("moe", {"noise": False}),
    "MLoRE": Network("mlore", {}),
    "MLoRE, fused": Network("mlore", {}, fused=True),
    "MLoRE, released": Network("mlore", {"variant": "released"}),
    "MLoRE, released, fused": Network("mlore", {"variant": "released"}, fused=True),
    "TaskExpert's baseline": Network("taskexpert", _SUM, deep=True),
    "TaskExpert": Network("taskexpert", {}, deep=True),
    "TIF without its modules": Network("tif", _PLAIN),
    "TIF": Network("tif", {}),
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    size: Literal["nano", "base"] = "nano"
    """Dollhouse with vit_nano at 64 × 64, or PASCAL-Context with ViT-B at 512 × 512."""
    batch: int | None = None
    """Images; 8 for nano and 1 for base if not given."""
    rounds: int = 3
    """Turns that every network takes."""
    threads: int | None = None
    """On a CPU; torch's choice if not given."""
    quick: bool = False
    """One round of two images."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which to measure, by name."""
    json: Path | None = None
    """Write a record here."""

    def settle(self) -> Options:
        """Put in what was not given."""
        batch, rounds = (2, 1) if self.quick else (self.batch or (8 if self.size == "nano" else 1), self.rounds)
        return Options(**{**asdict(self), "batch": batch, "rounds": rounds})


def build(name: str, size: str) -> tuple[nn.Module, tuple[int, int]]:
    """The network of a row in evaluation mode, and (H, W) of its images."""
    network = NETWORKS[name]
    backbone = "vit_base" if size == "base" else "vit_nano_12" if network.deep else "vit_nano"
    tasks, side = (me.DOLLHOUSE, 64) if size == "nano" else (me.PASCAL_CONTEXT, 512)
    torch.manual_seed(0)
    model = me.build_model(f"{network.decoder}_{backbone}", tasks, (side, side), pretrained=False, **network.options)
    return (me.fuse(model.eval(), mode="precomposed") if network.fused else model.eval()), (side, side)


def prepare(name: str, training: bool, size: str, batch: int, device: str) -> Callable[[], None]:
    """A function that runs the network once."""
    model, sides = build(name, size)
    model = model.to(device).train(training)
    images = torch.randn(batch, 3, *sides, device=device)
    parameters = list(model.parameters())

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def train() -> None:
        out = model(images)
        loss: Tensor = sum((p.square().mean() for p in out.predictions.values()), out.balance_loss)
        torch.autograd.grad(loss, parameters, allow_unused=True)

    return train if training else infer


def warm_up() -> None:
    """Something small, after which libraries and threads are there."""
    prepare("baseline", True, "nano", 1, "cpu")()


def start(name: str, device: str, training: bool, options: Options) -> dict[str, Any]:
    """A row before it is measured."""
    with torch.device("meta"):
        model, sides = build(name, options.size)
    cost = me.count(model, sides)
    costs = {"parameters": cost.parameters, "macs": cost.macs}
    return {"network": name, "training": training, "device": device, **costs, "seconds": None, "memory": None}


def measure(training: bool, options: Options, device: str) -> list[dict[str, Any]]:
    """One row for every network that can be run so: fused ones are not trained."""
    names = [name for name in options.networks if not (training and NETWORKS[name].fused)]
    rows = [start(name, device, training, options) for name in names]
    if device == "cuda" and not torch.cuda.is_available():
        return rows
    assert options.batch is not None
    makers = {name: partial(prepare, name, training, options.size, options.batch) for name in names}
    runs = {name: make(device) for name, make in makers.items()}
    for turn in range(options.rounds + 1):  # the first is to warm up
        for row, run in zip(rows, runs.values(), strict=True):
            spent = seconds(run, device)
            row["seconds"] = min(spent, row["seconds"] or spent) if turn else None
    on_gpu = {name: peak_memory_on_gpu(run) for name, run in runs.items()} if device == "cuda" else {}
    runs.clear()
    gc.collect()
    for name, row in zip(names, rows, strict=True):
        here = partial(makers[name], "cpu")
        row["memory"] = on_gpu[name] if on_gpu else peak_memory(here, warm_up, options.threads)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios are to the first row."""
    first = rows[0]
    if first["seconds"] is None:
        return "not run"
    units = {
        "parameters": ("M", 1e6, 2),
        "macs": ("MACs/1e9", 1e9, 3),
        "seconds": ("s", 1, 3),
        "memory": ("MiB", MIB, 0),
    }
    lines = [f"{'network':26}" + "".join(f"{title:>10}{'ratio':>8}" for title, _, _ in units.values())]
    for row in rows:
        cells = f"{row['network']:26}"
        for key, (_, unit, digits) in units.items():
            ratio = f"{row[key] / first[key]:.2f}x" if first[key] else ""
            cells += f"{row[key] / unit:10.{digits}f}{ratio:>8}"
        lines.append(cells)
    return "\n".join(lines)


def main(options: Options) -> None:
    options = options.settle()
    load = begin(options.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: its rows are not run"
    print(f"CPU, {torch.get_num_threads()} threads, load {load}; {gpu}; torch {torch.__version__}")
    rows = []
    for training in (False, True):
        for device in ("cpu", "cuda"):
            new = measure(training, options, device)
            what = f"{options.size}, {options.batch} images, {'training' if training else 'inference'}, {device}"
            print(f"\n{what}\n{table(new)}", flush=True)
            rows += new
    write_record(options.json, options, load, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
