"""The benchmark of MLoRE's forms compares like with like, and its command runs from end to end."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "mlore.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("benchmark_of_mlore", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark  # its dataclasses look themselves up there
spec.loader.exec_module(benchmark)

TINY = benchmark.Options(channels=16, tokens=4, tasks=2, max_rank=4, model="mlore_vit_nano", batch=2, rounds=1)
FORMS = benchmark.FORMS


@pytest.mark.parametrize("part", ["module", "model"])
def test_all_forms_give_one_result(part):
    cases = [benchmark.Case(part, form, False) for form in FORMS]
    results = [benchmark.prepare(case, TINY, "cpu")() for case in cases]
    benchmark.agree(results)
    assert all(result.isfinite().all() for result in results)
    assert results[0].std() > 0


@pytest.mark.parametrize("off", [1.01, float("nan")])
def test_forms_that_differ_are_noticed(off):
    benchmark.agree([torch.ones(3), torch.ones(3) * 1.0001])
    with pytest.raises(SystemExit, match="two forms give different results"):
        benchmark.agree([torch.ones(3), torch.ones(3) * off])


def test_the_naive_form_has_the_gradients_of_the_library():
    found = []
    for form in benchmark.TRAINED:
        network, inputs = benchmark.build(benchmark.Case("module", form, True), TINY)
        network.double().eval()(inputs.double()).features.square().sum().backward()
        gradients = {name.replace("low_rank.", ""): p.grad for name, p in network.named_parameters()}
        found.append(dict(sorted((name, grad) for name, grad in gradients.items() if grad is not None)))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-10, atol=1e-12)


def test_the_forms_are_told_apart_by_their_costs():
    macs = {form: benchmark.multiply_accumulates(benchmark.Case("module", form, False), TINY) for form in FORMS}
    assert macs["naive"] - macs["concatenated"] == -2 * 2 * 15 * 16  # the gated biases
    assert macs["precomposed"] < macs["on_the_fly"] < macs["merged"]


@pytest.mark.parametrize("form", benchmark.TRAINED)
def test_the_backward_pass_costs_twice_the_forward_pass_but_for_the_generic_path(form):
    """Its gradient stops, so that none is computed towards its input; nor towards the module's input."""
    forward, step = (
        benchmark.multiply_accumulates(benchmark.Case("module", form, training), TINY) for training in (False, True)
    )
    pixels, width = 2 * 4 * 4, 16
    generic, project = 2 * 9 * width**2 * pixels, 2 * width**2 * pixels
    assert step == 3 * forward - generic - project


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_the_rows_for_a_gpu_run_where_there_is_none(training, monkeypatch):
    """In bf16, and as if compiled; only the numbers of a GPU's own allocator are left out."""
    monkeypatch.setattr(torch, "compile", lambda network: network)
    cases = benchmark.all_cases("module", training, "cuda")
    assert {(case.precision, case.compiled) for case in cases} == {
        ("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)
    }  # fmt: skip
    monkeypatch.setattr(benchmark, "resident_memory", lambda case, options: 2**20)
    rows = benchmark.measure(cases, TINY, "cpu")
    assert [row["form"] for row in rows] == [case.form for case in cases]
    assert all(row["seconds"] > 0 and row["fraction"] > 0 for row in rows)
    printed = benchmark.table(rows).splitlines()
    assert len(printed) == len(rows) + 1
    assert "bf16, compiled" in printed[-1]
    naive = [line for line in printed if line.startswith("naive")]
    assert len(naive) == 4
    assert all(line.count("1.00x") == 2 for line in naive)


@pytest.mark.slow
def test_the_command_writes_a_record_in_which_the_naive_form_takes_the_most_memory(tmp_path):
    path = tmp_path / "record.json"
    options = ["--channels", "64", "--tokens", "32", "--max-rank", "8", "--model", "none", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), *options, "--threads", "1", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "one module, C = 64, 32 × 32 tokens, 5 tasks, batch 1: training step" in result.stdout
    record = json.loads(path.read_text())
    rows = record["rows"]
    assert {"commit", "processor", "threads", "packages", "memory", "options"} <= record.keys()
    assert [(row["form"], row["training"]) for row in rows] == [
        *((form, False) for form in FORMS),
        *((form, True) for form in benchmark.TRAINED),
    ]
    if rows[0]["memory"]:  # known where there is a /proc
        memory = {(row["form"], row["training"]): row["memory"] for row in rows}
        assert memory["concatenated", False] < memory["naive", False] / 2
        assert memory["concatenated", True] < memory["naive", True] / 2
