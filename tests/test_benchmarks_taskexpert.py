"""The benchmark of TaskExpert's forms compares like with like, and its command runs from end to end."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "taskexpert.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("benchmark_of_taskexpert", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark  # its dataclasses look themselves up there
spec.loader.exec_module(benchmark)

TINY = benchmark.Options(
    width=6, channels=8, expert_width=4, gate_width=3, tasks=3, tokens=4, batch=2, rounds=1, threads=1
)


@pytest.mark.parametrize("training", [False, True])
def test_all_forms_give_one_result_and_one_gradient(training: bool) -> None:
    found = []
    for form in benchmark.FORMS:
        module, features, memory = benchmark.build(benchmark.Case(form, training), TINY)
        features, memory = features.double().requires_grad_(), memory.double().requires_grad_()
        output = module.double()(features, memory)
        inputs = [features, memory, *module.parameters()]
        found.append([*output, *torch.autograd.grad(output.memory.square().sum(), inputs)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-11)


def test_a_pass_runs_with_and_without_training() -> None:
    for training in (False, True):
        cases = [benchmark.Case(form, training) for form in benchmark.FORMS]
        benchmark.agree([benchmark.prepare(case, TINY, "cpu")() for case in cases])


@pytest.mark.slow
def test_the_command_writes_a_record_in_which_making_all_weighted_answers_takes_most(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    options = ["--width", "8", "--channels", "64", "--expert-width", "8", "--gate-width", "4", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), *options, "--tokens", "48", "--threads", "1", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "one module, D = 64, 48 × 48 tokens, 5 tasks and experts, batch 1: training step" in result.stdout
    record = json.loads(path.read_text())
    assert {"commit", "processor", "threads", "packages", "options"} <= record.keys()
    assert [(row["form"], row["training"]) for row in record["rows"]] == [
        (form, training) for training in (False, True) for form in benchmark.FORMS
    ]
    memory = {(row["form"], row["training"]): row["memory"] for row in record["rows"]}
    if memory["naive", False]:  # known where there is a /proc
        assert memory["broadcast", False] > 1.2 * memory["batched", False]
