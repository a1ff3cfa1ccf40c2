"""Measure what a released MLoRE module costs in four forms, and write mlore_price.json (chapter 8).

    OMP_NUM_THREADS=1 python book/results/make_mlore_price.py

One module of the released ViT-B model (width 640, five tasks, fifteen experts), random weights, on
the CPU: time and largest memory of a forward pass for several numbers of tokens and images. The
forms take turns, and a time is the least of all turns. It is the processor time of the one thread,
so that other programs disturb it little. About four minutes on a free core.
"""

import ctypes
import gc
import os
import time
from pathlib import Path

import torch
from record import write
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_options import MLoREOptions
from mlore_edu.reparameterization import fuse
from mlore_edu.training.run_folder import versions

WIDTH, TASKS, RANKS = 640, 5, tuple(range(16, 129, 8))
SIDES = (8, 12, 16, 20, 24, 32, 48)  # tokens along each side, for one image
BATCHES = (1, 2, 4, 8)  # images, at 16 × 16 tokens
TURNS = 3
OPTIONS = MLoREOptions(
    released=True,
    ranks=RANKS,
    k=9,
    task_rank=64,
    router="basic",
    form="concatenated",
)


class Separate(torch.nn.Module):
    """The experts one by one: a stack of N outputs, then their weighted sum."""

    def __init__(self, experts):
        super().__init__()
        self.experts = experts

    def forward(self, features, gates):
        experts, shared = self.experts, features.flatten(0, 1)  # (B*T, C, H, W)
        parts = zip(
            experts.down.weight.split(experts.ranks),
            experts.down.bias.split(experts.ranks),
            experts.up_weight.split(experts.ranks, dim=1),
            experts.up_bias,
        )
        outputs = []
        for down, down_bias, up, up_bias in parts:
            hidden = torch.conv2d(shared, down, down_bias, padding=1)
            outputs.append(torch.conv2d(hidden, up[..., None, None], up_bias))
        stack = torch.stack(outputs, dim=1)  # (B*T, N, C, H, W)
        mixed = torch.einsum("pn,pnchw->pchw", gates.flatten(0, 1), stack)
        return mixed.view_as(features)  # (B, T, C, H, W)


def forms() -> dict[str, torch.nn.Module]:
    """The same module in four forms."""
    torch.manual_seed(0)
    module = MLoREModule(TASKS, WIDTH, 1, OPTIONS, nonlinear=True).eval()
    separate = MLoREModule(TASKS, WIDTH, 1, OPTIONS, nonlinear=True).eval()
    separate.load_state_dict(module.state_dict())
    separate.experts = Separate(separate.experts)
    return {
        "separate": separate,
        "concatenated": module,
        "on_the_fly": fuse(module, "on_the_fly"),
        "precomposed": fuse(module, "precomposed"),
    }


def resident(key: str) -> int:
    """VmRSS or VmHWM (the largest so far) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(
        int(line.split()[1]) * 1024 for line in lines if line.startswith(key)
    )


def pass_once(module: torch.nn.Module, features: torch.Tensor) -> tuple[float, int]:
    """Seconds of a pass, and bytes of memory that it takes at most above what was there."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = resident("VmRSS"), time.thread_time()
    module(features)
    return time.thread_time() - start, resident("VmHWM") - before


def product_rate(side: int = 2048) -> float:
    """Multiply-accumulates a second of a plain matrix product."""
    a = torch.randn(side, side)
    start = time.thread_time()
    a @ a
    return side**3 / (time.thread_time() - start)


def macs(module: torch.nn.Module, features: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(features)
    return counter.get_total_flops() // 2


def measure(modules: dict, batch: int, side: int) -> list[dict]:
    features = torch.randn(batch, TASKS, WIDTH, side, side)
    results = [module(features).features for module in modules.values()]
    for result in results:  # all forms must agree
        assert (result - results[0]).abs().max() < 1e-4 * results[0].abs().max()
    del results, result
    seconds = {name: float("inf") for name in modules}
    memory = dict.fromkeys(modules, 0)
    for _ in range(TURNS):
        for name, module in modules.items():
            elapsed, taken = pass_once(module, features)
            seconds[name] = min(seconds[name], elapsed)
            memory[name] = max(memory[name], taken)
    rows = []
    for name, module in modules.items():
        row = {"form": name, "batch": batch, "tokens": side**2}
        row |= {"seconds": round(seconds[name], 5), "macs": macs(module, features)}
        row["mebibytes"] = round(memory[name] / 2**20, 1)
        rows.append(row)
        print(row, flush=True)
    return rows


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)  # the time measured is that of one thread
    made_with = versions()
    modules = forms()
    sizes = [(1, side) for side in SIDES] + [(n, 16) for n in BATCHES if n > 1]
    rows, rates = [], []
    for size in sizes:
        rows += measure(modules, *size)
        rates += [product_rate() for _ in range(3)]
    write(
        "mlore_price",
        {
            "command": "OMP_NUM_THREADS=1 python book/results/make_mlore_price.py",
            "commit": made_with["commit"],
            "hardware": {
                key: made_with[key]
                for key in ("processor", "cores", "threads", "gpus")
            },
            "load": round(os.getloadavg()[0], 1),
            "versions": {"python": made_with["python"], **made_with["packages"]},
            "seed": 0,
            "width": WIDTH,
            "tasks": TASKS,
            "ranks": RANKS,
            "product_rate": round(max(rates)),
            "stored": {
                name: sum(p.numel() for p in module.parameters())
                for name, module in modules.items()
            },
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
