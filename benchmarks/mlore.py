"""What MLoRE costs in every form in which its experts can be computed: time, multiply-accumulates, memory.

    python benchmarks/mlore.py                    # one module and the whole ViT-B model at 512 × 512: 10 minutes
    python benchmarks/mlore.py --quick            # small sizes, a few seconds
    python benchmarks/mlore.py --json book/results/mlore_benchmark.json

The forms, all with the same numbers as result:

    naive          every expert on its own; a stack (B, T, N, C, H, W) of their outputs; a weighted sum
    concatenated   one 3×3 convolution to all ranks, a gate for every rank, one 1×1 convolution
    merged         the experts' kernels added first, weighted by the gates; gradients flow through the sum
    precomposed    fused with everything beside them; the experts are stored as full kernels
    on_the_fly     fused with everything beside them; the experts are stored as low-rank factors

All are measured in one run, turn by turn; a time is the least of all turns. It is wall-clock time, or with --threads 1
the core's time, so that other work on the machine counts little. Column "of product" compares MACs a second with those
of a plain matrix product, measured in the same turns with the same threads (convolutions have a library of their own
and may beat it). Memory is what a pass takes above what is there before it (model, input): on a CPU the most resident
memory of a process of its own for every form, with what the convolution library takes for itself; on a GPU the
allocator's largest total. A training step is the forward pass in training mode and the gradients of all parameters,
without an optimiser. On a GPU there are also rows for bf16 and torch.compile, and training steps of the whole model.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from measuring import MIB, agree, begin, peak_memory, peak_memory_on_gpu, seconds, write_record
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.decoders.low_rank import LowRankExperts
from mlore_edu.decoders.mlore import MLoREModule, ModuleOutput
from mlore_edu.decoders.mlore_options import MLoREOptions, active_experts, rank_schedule
from mlore_edu.model import ModelOutput, build_model
from mlore_edu.reparameterization import fuse
from mlore_edu.tasks import PASCAL_CONTEXT

TRAINED = ("naive", "concatenated", "merged")
FORMS = (*TRAINED, "precomposed", "on_the_fly")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What to measure. Widths and sizes that are not given are those of the released ViT-B model for PASCAL-Context."""

    channels: int = 640
    """Width C."""
    tokens: int = 32
    """Tokens along each side; the whole model's image is 16 times as large."""
    batch: int = 1
    tasks: int = 5
    """How many of PASCAL-Context's tasks, 1 to 5."""
    max_rank: int = 128
    """Of 15 experts; the lowest rank is 16 or this, whichever is less."""
    model: str = "mlore_vit_base"
    """The whole model; "none" to leave it out."""
    model_training: bool = False
    """Training steps of the whole model on a CPU too: minutes each, and some 10 GB."""
    rounds: int = 3
    """Turns that every case takes."""
    threads: int | None = None
    """On a CPU; torch's choice if not given."""
    quick: bool = False
    """Small sizes in place of all of the above but --batch, --tasks and --threads."""
    json: Path | None = None
    """Write a record here."""

    def settle(self) -> Options:
        """Put in the small sizes where asked to."""
        small = {"channels": 32, "tokens": 8, "max_rank": 8, "model": "mlore_vit_small", "rounds": 2}
        return Options(**{**asdict(self), **(small if self.quick else {})})


class Case(NamedTuple):
    """One row of the tables."""

    part: str  # "module" or "model"
    form: str
    training: bool
    precision: str = "fp32"
    compiled: bool = False


class NaiveExperts(nn.Module):
    """The experts as one would write Eq. 1 down: N outputs of full width, then their weighted sum."""

    def __init__(self, experts: LowRankExperts) -> None:
        super().__init__()
        self.low_rank = experts

    def forward(self, features: Tensor, gates: Tensor) -> Tensor:
        experts, shared = self.low_rank, features.flatten(0, 1)  # (B*T, C, H, W)
        downs = torch.split(experts.down.weight, experts.ranks)
        biases = torch.split(experts.down.bias, experts.ranks)
        ups = torch.split(experts.up_weight, experts.ranks, dim=1)
        outputs = []
        for down, bias, up, up_bias in zip(downs, biases, ups, experts.up_bias):
            hidden = nn.functional.conv2d(shared, down, bias, padding=1)
            outputs.append(nn.functional.conv2d(hidden, up[..., None, None], up_bias).unflatten(0, features.shape[:2]))
        stacked = torch.stack(outputs, dim=2)  # (B, T, N, C, H, W)
        return (stacked * gates.to(stacked.dtype)[..., None, None, None]).sum(dim=2)  # (B, T, C, H, W)


def build(case: Case, options: Options) -> tuple[nn.Module, Tensor]:
    """The module or the model of a case, in its form, with an input."""
    torch.manual_seed(0)
    if case.part == "model":
        tasks, size = PASCAL_CONTEXT.subset(*PASCAL_CONTEXT.names[: options.tasks]), (16 * options.tokens,) * 2
        network: nn.Module = build_model(
            options.model,
            tasks,
            size,
            channels=options.channels,
            variant="released",
            min_rank=min(16, options.max_rank),
            max_rank=options.max_rank,
        )
        inputs = torch.randn(options.batch, 3, *size)
    else:
        ranks = rank_schedule(15, min(16, options.max_rank), options.max_rank)
        settings = MLoREOptions(released=True, ranks=ranks, k=active_experts(15, None))
        network = MLoREModule(options.tasks, options.channels, options.tokens**2, settings, nonlinear=True)
        inputs = torch.randn(options.batch, options.channels, options.tokens, options.tokens)
    network = in_form(network, case.form).train(case.training)
    if not case.training:  # in training autocast chooses, operation by operation
        network, inputs = network.to(DTYPES[case.precision]), inputs.to(DTYPES[case.precision])
    return network, inputs


def in_form(network: nn.Module, form: str) -> nn.Module:
    """The same network with its experts computed in another way."""
    if form not in TRAINED:
        return fuse(network.eval(), form)
    for module in list(network.modules()):
        if isinstance(module, MLoREModule):
            module.experts.form = form
            module.experts = NaiveExperts(module.experts) if form == "naive" else module.experts
    return network


def prepare(case: Case, options: Options, device: str) -> Callable[[], Tensor]:
    """A function that runs the case once; it returns all features or predictions in one row."""
    with torch.device(device):
        network, inputs = build(case, options)
    forward = torch.compile(network) if case.compiled else network
    autocast = torch.autocast(device if device != "meta" else "cpu", DTYPES[case.precision], case.precision != "fp32")

    def infer() -> Tensor:
        with torch.inference_mode():
            return flat(forward(inputs))

    def train() -> Tensor:
        network.zero_grad(set_to_none=True)
        with autocast:
            output = forward(inputs)
            loss = flat(output).float().square().mean() + output.balance_loss
        loss.backward()
        return loss.detach()

    return train if case.training else infer


def flat(output: ModuleOutput | ModelOutput) -> Tensor:
    """Everything that was computed, as one row."""
    if isinstance(output, ModelOutput):
        return torch.cat([prediction.flatten() for prediction in output.predictions.values()])
    return output.features.flatten()


def backward_flops(
    gradient: torch.Size, _input: torch.Size, weight: torch.Size, *rest: Any, out_shape: Any = None
) -> int:
    """Of a convolution: as much as forward for each gradient. (FlopCounterMode counts groups many times over.)"""
    input_and_weight = rest[-1][:2]
    return 2 * gradient[0] * prod(gradient[2:]) * prod(weight) * sum(input_and_weight)


def multiply_accumulates(case: Case, options: Options) -> int:
    """MACs of one pass, backward included in training; counted without computing."""
    run = prepare(case._replace(precision="fp32", compiled=False), options, "meta")
    backward = {torch.ops.aten.convolution_backward: backward_flops}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        run()
    return counter.get_total_flops() // 2


def products(options: Options, device: str, precision: str) -> dict[int, Callable[[], Tensor]]:
    """Plain matrix products of several sizes, by their MACs."""
    sides = (512,) if options.channels < 128 else (2048, 3072) if device == "cpu" else (4096, 8192)
    pairs = {n: torch.randn(2, n, n, device=device, dtype=DTYPES[precision]) for n in sides}
    return {n**3: (lambda pair=pair: pair[0] @ pair[1]) for n, pair in pairs.items()}


def measure(cases: list[Case], options: Options, device: str) -> list[dict[str, Any]]:
    """One row for every case; all take turns, and the matrix products with them."""
    precisions = sorted({case.precision for case in cases})
    runs = {case: prepare(case, options, device) for case in cases}
    # Only inference as it is written: half precision and compiled code may differ.
    agree([run() for c, run in runs.items() if not (c.training or c.compiled) and c.precision == "fp32"])
    rates, least = dict.fromkeys(precisions, 0.0), dict.fromkeys(cases, float("inf"))
    for case, run in runs.items():
        if case.compiled or device == "cuda":
            run()  # compile, and choose algorithms
    for _ in range(options.rounds):
        for precision in precisions:
            for macs, product in products(options, device, precision).items():
                rates[precision] = max(rates[precision], *(macs / seconds(product, device) for _ in range(3)))
        for case, run in runs.items():
            least[case] = min(least[case], seconds(run, device))
    memory = {case: peak_memory_on_gpu(run) for case, run in runs.items()} if device == "cuda" else {}
    runs.clear()
    gc.collect()
    rows = []
    for case in cases:
        macs = multiply_accumulates(case, options)
        row = {**case._asdict(), "seconds": least[case], "macs": macs, "rate": macs / least[case]}
        row |= {"product_rate": rates[case.precision], "fraction": row["rate"] / rates[case.precision]}
        rows.append(row | {"memory": memory[case] if memory else resident_memory(case, options)})
    return rows


def resident_memory(case: Case, options: Options) -> int:
    """Bytes that one pass takes at most on a CPU."""
    small = partial(run_once, case._replace(part="module"), Options(quick=True).settle())
    return peak_memory(partial(prepare, case, options, "cpu"), small, options.threads)


def run_once(case: Case, options: Options) -> None:
    prepare(case, options, "cpu")()


def all_cases(part: str, training: bool, device: str) -> list[Case]:
    """Every form in which the part can run, under every setting that the device offers."""
    settings = [("fp32", False)]
    if device == "cuda":
        settings += [("fp32", True), ("bf16", False), ("bf16", True)]
    forms = TRAINED if training else FORMS
    return [Case(part, form, training, *setting) for setting in settings for form in forms]


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios are to the naive form under the same setting."""
    lines = [
        f"{'form':14}{'setting':16}{'seconds':>9}{'to naive':>9}{'MACs/1e9':>10}{'of product':>11}"
        f"{'MiB':>8}{'to naive':>9}"
    ]
    for row in rows:
        same = [other for other in rows if all(other[key] == row[key] for key in ("precision", "compiled"))]
        setting = row["precision"] + (", compiled" if row["compiled"] else "")
        memory = f"{row['memory'] / MIB:8.0f}{row['memory'] / same[0]['memory']:8.2f}x" if same[0]["memory"] else ""
        lines.append(
            f"{row['form']:14}{setting:16}{row['seconds']:9.3f}{row['seconds'] / same[0]['seconds']:8.2f}x"
            f"{row['macs'] / 1e9:10.1f}{row['fraction']:11.0%}{memory}"
        )
    return "\n".join(lines)


def main(options: Options) -> None:
    options = options.settle()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = begin(options.threads)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, load {load}, torch {torch.__version__}")
    size = f"{options.tokens} × {options.tokens} tokens, {options.tasks} tasks, batch {options.batch}"
    parts = [("module", False), ("module", True)]
    if options.model != "none":
        parts += [("model", False)] + [("model", True)] * (options.model_training or device == "cuda")
    rows = []
    for part, training in parts:
        what = f"{options.model}, {16 * options.tokens}² pixels" if part == "model" else "one module"
        print(f"\n{what}, C = {options.channels}, {size}: {'training step' if training else 'inference'}", flush=True)
        new = measure(all_cases(part, training, device), options, device)
        print(table(new))
        print(*(f"matrix product {p}: {r / 1e9:.1f}e9 MACs a second" for p, r in product_rates(new).items()), sep="\n")
        rows += new
    kind = "torch.cuda.max_memory_allocated" if device == "cuda" else "peak resident memory, one process a form"
    write_record(options.json, options, load, memory=kind, rows=rows)


def product_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of plain matrix products, by precision."""
    return {row["precision"]: row["product_rate"] for row in rows}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
