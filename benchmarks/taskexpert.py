"""What TaskExpert's assembly costs: computed at once, and as loops over experts and tasks. Time and memory in one run.

    python benchmarks/taskexpert.py               # one module of ViT-B at 512 × 512: a few minutes
    python benchmarks/taskexpert.py --quick       # small sizes, a few seconds
    python benchmarks/taskexpert.py --json book/results/taskexpert_benchmark.json

The forms, all with the same numbers as result:

    naive       every expert and every task's gate on its own; two loops add the experts' answers, gate by gate
    broadcast   experts and gates at once; the weighted answers (B, T, K, D, H, W) are made, then summed
    batched     the library's: experts and gates at once, and one einsum

Times are the least of all turns; on a CPU with --threads 1 the core's time, so that other work on the machine counts
little. Memory is what a pass takes above what is there before it: on a CPU the most resident memory of a process of
its own for every form, on a GPU the allocator's largest total. A training step is the forward pass in training mode
and the gradients of all parameters and of the inputs, without an optimiser.
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
from torch import Tensor
from torch.nn import functional as F

from mlore_edu.decoders.taskexpert import Assembled, MMoEModule, choose

FORMS = ("naive", "broadcast", "batched")


@dataclass(frozen=True)
class Options:
    """What to measure. Sizes that are not given are those of ViT-B on PASCAL-Context."""

    width: int = 768
    """E, the backbone's."""
    channels: int = 768
    """D, a task's features'."""
    expert_width: int = 768
    """e, an expert's hidden layer's."""
    gate_width: int = 288
    """h, a gate's hidden layers'."""
    tasks: int = 5
    """And as many experts."""
    tokens: int = 32
    """Along each side."""
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
        small = {"width": 64, "channels": 64, "expert_width": 64, "gate_width": 16, "tokens": 16, "rounds": 2}
        return Options(**{**asdict(self), **(small if self.quick else {})})


class Case(NamedTuple):
    """One row of the tables."""

    form: str
    training: bool


class NaiveModule(MMoEModule):
    """The equations as they are written, of the same parameters."""

    def forward(self, features: Tensor, memory: Tensor | None) -> Assembled:
        assert memory is not None
        answers = [self._expert(features, k) for k in range(self.count)]  # K of (B, D, H, W)
        gates, decoded, written = [], [], []
        for task, alpha in enumerate(self.momentum):
            weights = self._gate(features, task).softmax(dim=1)  # (B, K + 1, H, W)
            total = weights[:, self.count :] * memory[:, task]
            for k, answer in enumerate(answers):
                total = total + weights[:, k : k + 1] * answer
            gates.append(weights)
            decoded.append(total)
            written.append(total + alpha * memory[:, task])
        return Assembled(torch.stack(decoded, 1), torch.stack(written, 1), torch.stack(gates, 1))

    def _expert(self, features: Tensor, k: int) -> Tensor:
        norm = self.experts.norm.norm
        hidden = F.conv2d(features, *self._part(self.experts.expand, k, self.count))
        mean, var, weight, bias = (
            getattr(norm, name).chunk(self.count)[k] for name in ("running_mean", "running_var", "weight", "bias")
        )
        hidden = F.batch_norm(hidden, mean, var, weight, bias, self.training).relu()
        return F.conv2d(hidden, *self._part(self.experts.project, k, self.count))

    def _gate(self, features: Tensor, task: int) -> Tensor:
        for number, layer in enumerate(self.gates.layers):
            features = features.relu() if number else features
            features = F.conv2d(features, *self._part(layer, task, len(self.momentum)), padding=layer.padding)
        return features

    @staticmethod
    def _part(layer: Any, index: int, parts: int) -> tuple[Tensor, Tensor]:
        return layer.weight.chunk(parts)[index], layer.bias.chunk(parts)[index]


class BroadcastModule(MMoEModule):
    """Every expert's answer is weighted for every task before any are added."""

    def forward(self, features: Tensor, memory: Tensor | None) -> Assembled:
        assert memory is not None
        gates, answers = choose(self.gates(features)), self.experts(features)  # (B, T, K + 1, H, W), (B, K, D, H, W)
        weighed = gates[:, :, : self.count, None] * answers[:, None]  # (B, T, K, D, H, W)
        decoded = weighed.sum(dim=2) + gates[:, :, self.count :] * memory  # (B, T, D, H, W)
        return Assembled(decoded, decoded + self.momentum[:, None, None, None] * memory, gates)


CLASSES = {"naive": NaiveModule, "broadcast": BroadcastModule, "batched": MMoEModule}


def build(case: Case, options: Options) -> tuple[MMoEModule, Tensor, Tensor]:
    """The module of a case, with a map of the backbone and a memory."""
    torch.manual_seed(0)
    settings = {"experts": options.tasks, "expert_width": options.expert_width, "gate_width": options.gate_width}
    module = CLASSES[case.form](options.tasks, options.width, options.channels, momentum=0.9, **settings)
    features = torch.randn(options.batch, options.width, options.tokens, options.tokens)
    memory = torch.randn(options.batch, options.tasks, options.channels, options.tokens, options.tokens)
    return module.train(case.training), features, memory


def prepare(case: Case, options: Options, device: str) -> Callable[[], Tensor]:
    """A function that runs the case once; it returns the memory in one row, or the loss."""
    with torch.device(device):
        module, features, memory = build(case, options)

    def infer() -> Tensor:
        with torch.inference_mode():
            return module(features, memory).memory.flatten()

    def train() -> Tensor:
        inputs = [features.requires_grad_(), memory.requires_grad_(), *module.parameters()]
        loss = module(features, memory).memory.square().mean()
        torch.autograd.grad(loss, inputs)
        return loss.detach()

    return train if case.training else infer


def run_once(case: Case, options: Options) -> None:
    prepare(case, options, "cpu")()


def measure(training: bool, options: Options, device: str) -> list[dict[str, Any]]:
    """One row for every form; they take turns."""
    cases = [Case(form, training) for form in FORMS]
    runs = {case: prepare(case, options, device) for case in cases}
    agree([run() for run in runs.values()])
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(options.rounds):
        for case, run in runs.items():
            least[case] = min(least[case], seconds(run, device))
    on_gpu = {case: peak_memory_on_gpu(run) for case, run in runs.items()} if device == "cuda" else {}
    runs.clear()
    gc.collect()
    rows = []
    for case in cases:
        small = partial(run_once, case, Options(quick=True).settle())
        memory = on_gpu or {case: peak_memory(partial(prepare, case, options, "cpu"), small, options.threads)}
        rows.append({**case._asdict(), "seconds": least[case], "memory": memory[case]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios are to the naive form."""
    lines, naive = [f"{'form':12}{'seconds':>9}{'to naive':>10}{'MiB':>8}{'to naive':>10}"], rows[0]
    for row in rows:
        memory = f"{row['memory'] / MIB:8.0f}{row['memory'] / naive['memory']:9.2f}x" if naive["memory"] else ""
        lines.append(f"{row['form']:12}{row['seconds']:9.3f}{row['seconds'] / naive['seconds']:9.2f}x{memory}")
    return "\n".join(lines)


def main(options: Options) -> None:
    options = options.settle()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = begin(options.threads)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, load {load}, torch {torch.__version__}")
    rows = []
    for training in (False, True):
        size = f"{options.tokens} × {options.tokens} tokens, {options.tasks} tasks and experts, batch {options.batch}"
        print(f"\none module, D = {options.channels}, {size}: {'training step' if training else 'inference'}")
        new = measure(training, options, device)
        print(table(new), flush=True)
        rows += new
    write_record(options.json, options, load, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
