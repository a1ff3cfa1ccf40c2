"""What TIF's ways of computing cost: tasks at once, diffusion for attention, two factors for a matrix; in one run.

    python benchmarks/tif.py               # Swin-T on NYUD-v2, one image of 448 × 576: some minutes
    python benchmarks/tif.py --quick       # small sizes, some seconds
    python benchmarks/tif.py --threads 1 --json book/results/tif_benchmark.json

The parts, and their forms:

    tasks            the decoder; naive: every task has PyTorch's ordinary layers and runs after the one before it;
                     batched: the library's. The same numbers
    high scales      the decoder; neither: scales 0 and 1 stay as SAFF left them; diffusion: with LTHD; attention: with
                     SFD at all four scales. Different numbers
    Eqs. 11 and 12   what LTHD gathers; matrix: the affinities of scales 2 and 3, the latter enlarged along both token
                     axes, added, put through a softmax; factors: the library's. The same numbers
    scale 1          what SFD would gather at a high scale; matrix, factors. The same numbers

Times are the least of all turns; on a CPU with --threads 1 the core's time, so that other work on the machine counts
little. Memory is what a pass takes above what is there before it: on a CPU the most resident memory of a process of
its own for every form, on a GPU the allocator's largest total. A training step is the forward pass in training mode
and the gradients of all parameters and of the inputs, without an optimiser. MACs are those of
one inference, of convolutions and matrix products alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from measuring import MIB, agree, begin, peak_memory, peak_memory_on_gpu, seconds, write_record
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.decoders.base import DecoderOutput, MapShape, resize
from mlore_edu.decoders.pyramid import align
from mlore_edu.decoders.tif import Affinity, FeedForward, LowToHighDiffusion, SelfFeatureDistillation, TIFDecoder
from mlore_edu.tasks import NYUD_V2

FORMS = {
    "tasks": ("naive", "batched"),
    "high scales": ("neither", "diffusion", "attention"),
    "Eqs. 11 and 12": ("matrix", "factors"),
    "scale 1": ("matrix", "factors"),
}
SWITCHES: dict[str, dict[str, Any]] = {
    "neither": {"diffusion": "none"},
    "attention": {"diffusion": "none", "distilled_scales": 4},
}


@dataclass(frozen=True)
class Options:
    """What to measure. Sizes that are not given are those of Swin-T on NYUD-v2, with its four tasks."""

    height: int = 448
    """Of the image, in pixels; a multiple of 32."""
    width: int = 576
    backbone_width: int = 96
    """Channels of the backbone's first map; they double from scale to scale."""
    high_width: int = 88
    """C at scales 0 and 1, and D."""
    low_width: int = 96
    """C at scales 2 and 3."""
    batch: int = 1
    rounds: int = 3
    """Turns that every form takes."""
    threads: int | None = None
    """On a CPU; torch's choice if not given."""
    quick: bool = False
    """Small sizes in place of those above."""
    json: Path | None = None
    """Write a record here."""

    def settle(self) -> Options:
        """Put in the small sizes where asked to."""
        small = {"height": 64, "width": 96, "backbone_width": 8, "high_width": 8, "low_width": 12, "rounds": 2}
        return Options(**{**asdict(self), **(small if self.quick else {})})

    def shape(self, scale: int, channels: int) -> MapShape:
        """Shape of a map at one of the four scales."""
        return MapShape(channels, self.height // (4 << scale), self.width // (4 << scale))


class Case(NamedTuple):
    """One row of the tables."""

    part: str
    form: str
    training: bool


# --- every task with layers of its own -------------------------------------------------------------------------------


def conv_of(batched: nn.Conv2d, index: int, parts: int) -> nn.Conv2d:
    """One of several convolutions whose weights lie one under the other."""
    weight = batched.weight.chunk(parts)[index]
    conv = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2:], padding=batched.padding, bias=False)
    conv.weight = nn.Parameter(weight.detach().clone())
    if batched.bias is not None:
        conv.bias = nn.Parameter(batched.bias.chunk(parts)[index].detach().clone())
    return conv


def block_of(batched: nn.Sequential, task: int) -> nn.Sequential:
    """A task's convolution, BatchNorm (fresh, as that of the batched decoder is) and ReLU."""
    tasks = batched[0].tasks
    return nn.Sequential(conv_of(batched[0], task, tasks), nn.BatchNorm2d(batched[0].out_channels // tasks), nn.ReLU())


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(B, C, H, W)``."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)


def feed_forward_of(batched: FeedForward, task: int) -> nn.Sequential:
    expand, project = (conv_of(layer, task, layer.tasks) for layer in (batched.expand, batched.project))
    return nn.Sequential(ChannelNorm(expand.in_channels), expand, nn.GELU(), project)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax(QᵀK) V of maps ``(B, C, h, w)``, by the same kernel as the library's."""
    tokens = [part.flatten(2).mT[:, None].contiguous() for part in (queries, keys, values)]  # (B, 1, n, C)
    mean = F.scaled_dot_product_attention(tokens[0], tokens[1], tokens[2], scale=1.0)[:, 0]  # (B, n, C)
    return mean.mT.unflatten(2, values.shape[2:])  # (B, C, h, w)


class TaskDistillation(nn.Module):
    """SFD of one task, the N maps of Eq. 6 one by one."""

    def __init__(self, batched: SelfFeatureDistillation, task: int) -> None:
        super().__init__()
        tasks, maps = batched.query.tasks, batched.maps
        self.scale = batched.scale
        self.query = conv_of(batched.query, task, tasks)
        self.keys = nn.ModuleList(conv_of(batched.key, task * maps + each, tasks * maps) for each in range(maps))
        self.norm = ChannelNorm(self.query.in_channels)
        self.feed_forward = feed_forward_of(batched.feed_forward, task)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = self.norm(features)
        queries, keys = self.query(flat) * self.scale, sum(key(flat) for key in self.keys)
        refined = attend(queries, keys, keys) + features
        return self.feed_forward(refined) + refined, queries, keys


class TaskDiffusion(nn.Module):
    """LTHD of one task."""

    def __init__(self, batched: LowToHighDiffusion, task: int) -> None:
        super().__init__()
        self.value = conv_of(batched.value, task, batched.value.tasks)
        self.feed_forward = feed_forward_of(batched.feed_forward, task)
        self.fuse = block_of(batched.fuse.block, task)

    def forward(self, features: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        values = self.value(align(features, queries.shape[-2:]))
        diffused = self.feed_forward(attend(queries, keys, values))
        return self.fuse(torch.cat([features, resize(diffused, features.shape[-2:])], dim=1))


class TaskDecoder(nn.Module):
    """All that one task has behind SAFF."""

    def __init__(self, batched: TIFDecoder, task: int) -> None:
        super().__init__()
        self.to_task = nn.ModuleList(block_of(block, task) for block in batched.to_tasks)
        self.distillers = nn.ModuleList(TaskDistillation(its, task) for its in batched.distillers.values())
        self.diffusers = nn.ModuleList(TaskDiffusion(its, task) for its in batched.diffusers.values())
        self.fuse = block_of(batched.fuse.block, task)

    def forward(self, shared: list[Tensor]) -> Tensor:
        own = [block(scale) for block, scale in zip(self.to_task, shared, strict=True)]
        low, queries, keys = zip(*(distil(x) for distil, x in zip(self.distillers, own[2:], strict=True)), strict=True)
        size = own[2].shape[-2:]
        asking, asked = (torch.cat([resize(its[1], size), its[0]], dim=1) for its in (queries, keys))
        high = [diffuse(x, asking, asked) for diffuse, x in zip(self.diffusers, own[:2], strict=True)]
        return self.fuse(torch.cat([resize(x, own[0].shape[-2:]) for x in (*high, *low)], dim=1))


class NaiveDecoder(nn.Module):
    """TIF's decoder with the weights of another, one task after the other."""

    def __init__(self, batched: TIFDecoder) -> None:
        super().__init__()
        self.fusions = batched.fusions
        self.tasks = nn.ModuleDict({name: TaskDecoder(batched, task) for task, name in enumerate(batched.task_names)})

    def forward(self, maps: list[Tensor]) -> DecoderOutput:
        shared = [fusion(maps) for fusion in self.fusions]
        features = {name: task(shared) for name, task in self.tasks.items()}
        return DecoderOutput(features, maps[0].new_zeros(()), {})


# --- affinities as matrices, and as factors --------------------------------------------------------------------------


class Gather(nn.Module):
    """Values, gathered by affinities that come as queries and keys of one scale, or of two."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, inputs: list[Tensor]) -> Tensor:
        values, *factors = inputs
        own, *below = [Affinity(*pair) for pair in zip(factors[::2], factors[1::2], strict=True)]
        size = values.shape[-2:]
        if self.form == "factors":
            for other in below:
                own = own.plus(other.resized(size))
            return own.gather(values)
        matrix = own.matrix()  # (B, T, n, n)
        for other in below:
            matrix = matrix + enlarged(other.matrix(), other.keys.shape[-2:], size)
        return (matrix.softmax(dim=-1) @ values.flatten(3).mT).mT.unflatten(3, size)


def enlarged(matrix: Tensor, size: tuple[int, int], larger: tuple[int, int]) -> Tensor:
    """Affinities ``(B, T, n, n)`` between the tokens of ``size`` as ``(B, T, N, N)`` between those of ``larger``."""
    for _ in range(2):  # the columns' tokens; then, transposed, the rows'
        maps = resize(matrix.flatten(0, 1).unflatten(2, size), larger)  # (B*T, rows, *larger)
        matrix = maps.flatten(2).unflatten(0, matrix.shape[:2]).mT
    return matrix


# --- what is measured ------------------------------------------------------------------------------------------------


def build(case: Case, options: Options) -> tuple[nn.Module, list[Tensor]]:
    """The module of a case, and its input."""
    torch.manual_seed(0)
    high, low, tasks = options.high_width, options.low_width, len(NYUD_V2)
    if case.part in ("tasks", "high scales"):
        maps = [options.shape(scale, options.backbone_width << scale) for scale in range(4)]
        widths = {"high_width": high, "low_width": low}
        module: nn.Module = TIFDecoder(NYUD_V2, maps, high, **widths, **SWITCHES.get(case.form, {}))
        module = NaiveDecoder(module) if case.form == "naive" else module
        torch.manual_seed(1)  # the naive decoder has drawn weights of its own
        inputs = [torch.randn(options.batch, *shape) for shape in maps]
    else:
        ways = [(1, high)] if case.part == "scale 1" else [(2, low), (3, low)]
        sizes = [(ways[0][0], high), *(way for way in ways for _ in "qk")]
        module, inputs = Gather(case.form), [torch.randn(options.batch, tasks, *options.shape(*its)) for its in sizes]
        inputs[1::2] = [queries * queries.shape[2] ** -0.5 for queries in inputs[1::2]]
    return module.train(case.training), inputs


def results(module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """All that a module makes, as one row: ``(B, …)``."""
    output = module(inputs)
    return torch.stack(list(output.features.values())) if isinstance(output, DecoderOutput) else output


def prepare(case: Case, options: Options, device: str) -> Callable[[], Tensor]:
    """A function that runs the case once; it returns the result, or the loss."""
    with torch.device(device):
        module, inputs = build(case, options)

    def infer() -> Tensor:
        with torch.inference_mode():
            return results(module, inputs)

    def train() -> Tensor:
        variables = [*(its.requires_grad_() for its in inputs), *module.parameters()]
        loss = results(module, inputs).square().mean()
        torch.autograd.grad(loss, variables)
        return loss.detach()

    return train if case.training else infer


def multiply_accumulates(case: Case, options: Options) -> int:
    """Of one inference; nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        prepare(case._replace(training=False), options, "meta")()
    return counter.get_total_flops() // 2


def run_once(case: Case, options: Options) -> None:
    prepare(case, options, "cpu")()


def not_run(case: Case, options: Options, device: str) -> dict[str, Any]:
    """A row before it is measured."""
    macs = multiply_accumulates(case, options)
    return {**case._asdict(), "device": device, "macs": macs, "seconds": None, "memory": None}


def measure(part: str, training: bool, options: Options, device: str) -> list[dict[str, Any]]:
    """One row for every form of a part; they take turns."""
    cases = [Case(part, form, training) for form in FORMS[part]]
    rows = [not_run(case, options, device) for case in cases]
    if device == "cuda" and not torch.cuda.is_available():
        return rows
    runs = {case: prepare(case, options, device) for case in cases}
    if part != "high scales":
        agree([run() for run in runs.values()])
    for _ in range(options.rounds):
        for row, run in zip(rows, runs.values(), strict=True):
            spent = seconds(run, device)
            row["seconds"] = min(spent, row["seconds"] or spent)
    on_gpu = {case: peak_memory_on_gpu(run) for case, run in runs.items()} if device == "cuda" else {}
    runs.clear()
    gc.collect()
    for case, row in zip(cases, rows, strict=True):
        small = partial(run_once, case, Options(quick=True).settle())
        make = partial(prepare, case, options, "cpu")
        row["memory"] = on_gpu[case] if on_gpu else peak_memory(make, small, options.threads)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios are to the first form."""
    first = rows[0]
    if first["seconds"] is None:
        return "not run"
    lines = [f"{'form':12}{'MACs/1e9':>10}{'ratio':>9}{'seconds':>10}{'ratio':>9}{'MiB':>10}{'ratio':>9}"]
    for row in rows:
        cells = f"{row['form']:12}"
        for key, unit, digits in (("macs", 1e9, 2), ("seconds", 1, 3), ("memory", MIB, 0)):
            ratio = f"{row[key] / first[key]:.2f}x" if first[key] else ""
            cells += f"{row[key] / unit:10.{digits}f}{ratio:>9}"
        lines.append(cells)
    return "\n".join(lines)


def main(options: Options) -> None:
    options = options.settle()
    load = begin(options.threads)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: its rows are not run"
    print(f"CPU, {torch.get_num_threads()} threads, load {load}; {gpu}; torch {torch.__version__}")
    rows = []
    for part in FORMS:
        for training in (False, True):
            for device in ("cpu", "cuda"):
                new = measure(part, training, options, device)
                size = (
                    f"{options.batch} × {options.height} × {options.width}, {'training' if training else 'inference'}"
                )
                print(f"\n{part}, {size}, {device}\n{table(new)}", flush=True)
                rows += new
    write_record(options.json, options, load, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
