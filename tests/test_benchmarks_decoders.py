"""The benchmark of all decoders measures whole networks that work, and says what it did not run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlore_edu.tasks import DOLLHOUSE

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "decoders.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("benchmark_of_decoders", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)

TINY = benchmark.Options(quick=True, threads=1).settle()


@pytest.mark.parametrize("name", benchmark.NETWORKS)
def test_every_network_answers_all_six_tasks(name: str) -> None:
    model, sides = benchmark.build(name, "nano")
    with torch.inference_mode():
        out = model(torch.zeros(1, 3, *sides))
    assert tuple(out.predictions) == DOLLHOUSE.names


def test_a_fused_network_needs_fewer_operations_and_gives_the_same_answers() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, fused = (benchmark.build(name, "nano")[0] for name in ("MLoRE", "MLoRE, fused"))
    with torch.inference_mode():
        for name, answer in plain(images).predictions.items():
            torch.testing.assert_close(fused(images).predictions[name], answer, rtol=1e-3, atol=1e-3)
    rows = {name: benchmark.start(name, "cpu", False, TINY) for name in ("MLoRE", "MLoRE, fused")}
    assert rows["MLoRE, fused"]["macs"] < rows["MLoRE"]["macs"]


def test_the_networks_are_those_of_the_recorded_sweeps() -> None:
    """By their sizes: the record of the sweeps stores the number of parameters of every run."""
    sizes = {
        run["key"]: run["parameters"]
        for paper in ("mlore", "taskexpert", "tif")
        for run in json.loads((ROOT / "book" / "results" / f"{paper}_sweeps.json").read_text())["runs"]
    }
    keys = {
        "baseline": "baseline",
        "MoE": "moe noise=False",
        "MLoRE": "mlore",
        "MLoRE, released": "mlore variant=released",
        "TaskExpert's baseline": "taskexpert memory=False mixture=False",
        "TaskExpert": "taskexpert",
        "TIF without its modules": "tif diffusion=none distilled_scales=0 fused_scales=0",
        "TIF": "tif",
    }
    for name, key in keys.items():
        model, _ = benchmark.build(name, "nano")
        assert sum(parameter.numel() for parameter in model.parameters()) == sizes[key], name


def test_a_row_of_a_machine_without_gpu_says_that_it_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = benchmark.measure(True, TINY, "cuda")
    assert [row["network"] for row in rows] == [n for n, its in benchmark.NETWORKS.items() if not its.fused]
    assert all(row["seconds"] is None and row["macs"] > 0 for row in rows)
    assert benchmark.table(rows) == "not run"


def test_the_record_of_the_book_has_every_network_and_was_made_by_the_command_it_names() -> None:
    record = json.loads((ROOT / "book" / "results" / "decoders_benchmark.json").read_text())
    assert record["command"].startswith("benchmarks/decoders.py --threads 1")
    for training in (False, True):
        rows = [row for row in record["rows"] if row["training"] == training and row["device"] == "cpu"]
        expected = [n for n, its in benchmark.NETWORKS.items() if not (training and its.fused)]
        assert [row["network"] for row in rows] == expected
        assert all(row["seconds"] > 0 and row["memory"] > 0 for row in rows)


@pytest.mark.slow
def test_the_command_writes_a_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    chosen = ["baseline", "MLoRE, fused"]
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", "--json", str(path), "--networks", *chosen]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nano, 2 images, training, cpu" in result.stdout
    rows = json.loads(path.read_text())["rows"]
    assert [row["network"] for row in rows if row["device"] == "cpu"] == [*chosen, "baseline"]
    assert all(row["seconds"] > 0 for row in rows if row["device"] == "cpu")
