"""The benchmark of TIF's forms compares like with like, and its command runs from end to end."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tif.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("benchmark_of_tif", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark  # its dataclasses look themselves up there
spec.loader.exec_module(benchmark)

SIZES = {"height": 64, "width": 96, "backbone_width": 6, "high_width": 8, "low_width": 12}
TINY = benchmark.Options(**SIZES, batch=2, rounds=1, threads=1)
SAME = [part for part in benchmark.FORMS if part != "high scales"]


def both(part: str, training: bool = False):
    """The modules of a part's forms in float64, and their common input."""
    built = [benchmark.build(benchmark.Case(part, form, training), TINY) for form in benchmark.FORMS[part]]
    modules = [module.double() for module, _ in built]
    return modules, [[its.double().requires_grad_() for its in inputs] for _, inputs in built]


@pytest.mark.parametrize("part", SAME)
@pytest.mark.parametrize("training", [False, True])
def test_forms_that_should_agree_give_one_result_and_one_gradient_of_the_inputs(part: str, training: bool) -> None:
    found = []
    for module, inputs in zip(*both(part, training), strict=True):
        output = benchmark.results(module, inputs)
        found.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    assert found[0][0].std() > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_the_tasks_own_layers_have_the_gradients_of_the_batched_ones() -> None:
    """Every kind of layer: the naive gradients, task under task, are those of the library's one weight."""
    (naive, batched), inputs = both("tasks", training=True)
    for module, its in zip((naive, batched), inputs, strict=True):
        benchmark.results(module, its).square().sum().backward()

    def stacked(path: str) -> torch.Tensor:
        return torch.cat([task.get_parameter(path).grad for task in naive.tasks.values()])

    pairs = {
        "to_task.1.0.weight": "to_tasks.1.0.weight",
        "to_task.3.1.bias": "to_tasks.3.1.norm.bias",
        "distillers.0.query.weight": "distillers.2.query.weight",
        "distillers.1.feed_forward.1.bias": "distillers.3.feed_forward.expand.bias",
        "diffusers.0.value.weight": "diffusers.0.value.weight",
        "diffusers.1.feed_forward.3.weight": "diffusers.1.feed_forward.project.weight",
        "fuse.0.weight": "fuse.block.0.weight",
    }
    for of_tasks, of_all in pairs.items():
        gradient = batched.get_parameter(of_all).grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(stacked(of_tasks), gradient, rtol=1e-8, atol=1e-9)
    key = batched.get_parameter("distillers.2.key.weight").grad
    keys = [task.distillers[0].keys[n].weight.grad for task in naive.tasks.values() for n in range(4)]
    torch.testing.assert_close(torch.cat(keys), key, rtol=1e-8, atol=1e-9)


def test_the_naive_decoder_has_as_many_parameters_and_no_layer_of_the_library_behind_saff() -> None:
    (naive, batched), _ = both("tasks")
    assert sum(p.numel() for p in naive.parameters()) == sum(p.numel() for p in batched.parameters())
    kinds = {type(module).__module__ for module in naive.tasks.modules()}
    assert not any(kind.startswith("mlore_edu") for kind in kinds)


def test_affinities_enlarged_along_both_axes_are_those_of_enlarged_factors() -> None:
    """Against a loop: each row as a map between the asked tokens, then each column between the asking ones."""
    torch.manual_seed(0)
    matrix = torch.rand(1, 2, 6, 6, dtype=torch.float64)  # of 2 × 3 tokens
    expected = torch.empty(1, 2, 6, 24, dtype=torch.float64)
    for task in range(2):
        for row in range(6):
            small = matrix[:, task, row].reshape(1, 1, 2, 3)
            expected[:, task, row] = torch.nn.functional.interpolate(small, (4, 6), mode="bilinear").reshape(1, 24)
    large = torch.empty(1, 2, 24, 24, dtype=torch.float64)
    for task in range(2):
        for column in range(24):
            small = expected[:, task, :, column].reshape(1, 1, 2, 3)
            large[:, task, :, column] = torch.nn.functional.interpolate(small, (4, 6), mode="bilinear").reshape(1, 24)
    torch.testing.assert_close(benchmark.enlarged(matrix, (2, 3), (4, 6)), large)


def test_multiply_accumulates_of_attention_at_high_scales_grow_with_the_square_of_the_tokens() -> None:
    """What LTHD and SFD cost at scales 0 and 1, by hand: T tasks, N = T maps, feed-forward networks twice as wide."""
    macs = {
        f: benchmark.multiply_accumulates(benchmark.Case("high scales", f, False), TINY)
        for f in ("neither", "diffusion", "attention")
    }
    tasks, high, low, batch = 4, 8, 12, 2
    n = [16 * 24, 8 * 12, 4 * 6]
    square = tasks * high**2
    attention = sum((1 + tasks + 4) * square * m + 2 * tasks * m**2 * high for m in n[:2])
    diffusion = sum(5 * square * n[2] + tasks * n[2] ** 2 * (2 * low + high) + 18 * square * m for m in n[:2])
    assert macs["attention"] - macs["neither"] == batch * attention
    assert macs["diffusion"] - macs["neither"] == batch * diffusion


def test_a_row_of_a_machine_without_gpu_says_that_it_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = benchmark.measure("tasks", False, TINY, "cuda")
    assert [row["form"] for row in rows] == ["naive", "batched"]
    assert all(row["seconds"] is None and row["memory"] is None and row["macs"] > 0 for row in rows)
    assert benchmark.table(rows) == "not run"


@pytest.mark.slow
def test_the_command_writes_a_record_of_every_part_and_form(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    sizes = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(SCRIPT), *sizes, "--rounds", "1", "--threads", "1", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tasks, 1 × 64 × 96, training, cpu" in result.stdout
    record = json.loads(path.read_text())
    assert {"commit", "processor", "threads", "packages", "options"} <= record.keys()
    assert [(row["part"], row["training"], row["device"], row["form"]) for row in record["rows"]] == [
        (part, training, device, form)
        for part, forms in benchmark.FORMS.items()
        for training in (False, True)
        for device in ("cpu", "cuda")
        for form in forms
    ]
    assert all(row["seconds"] > 0 for row in record["rows"] if row["device"] == "cpu")
