"""The command that measures and trains on a GPU, run on the CPU at its smallest."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("benchmark_training", ROOT / "benchmarks" / "training.py")
assert SPEC is not None
assert SPEC.loader is not None
benchmark = sys.modules["benchmark_training"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

SMALLEST = "dollhouse_baseline_nano_64"
CPU = torch.device("cpu")


@pytest.mark.slow
def test_it_measures_trains_and_records_and_goes_on_with_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = {name: changes for name, changes in benchmark.SETTINGS.items() if "compile" not in changes}
    monkeypatch.setattr(benchmark, "SETTINGS", quick)
    options = {"speed": (SMALLEST,), "train": (SMALLEST,), "out": tmp_path, "runs": tmp_path / "runs"}
    benchmark.main(benchmark.Options(**options, steps=2, iterations=2, scenes=10))
    speed = json.loads((tmp_path / f"gpu_speed_{SMALLEST}.json").read_text())
    assert list(speed["settings"]) == list(quick)
    assert speed["recipe"]["name"] == SMALLEST
    assert speed["packages"]["torch"]
    assert speed["settings"]["fp16"] == {"not_run": "fp16 is for GPUs"}
    assert all(row["steps_per_second"] > 0 for name, row in speed["settings"].items() if name != "fp16")
    learned = json.loads((tmp_path / f"gpu_training_{SMALLEST}.json").read_text())
    assert learned["recipe"]["iterations"] == 2
    assert learned["metrics"].keys() == learned["curve"]["losses"].keys()
    assert "not run: fp16 is for GPUs" in capsys.readouterr().out
    log = tmp_path / "runs" / SMALLEST / "log.jsonl"
    before = log.read_text()
    benchmark.main(benchmark.Options(**{**options, "speed": ()}, steps=2, iterations=2, scenes=10))
    assert log.read_text() == before  # it was there already
    assert json.loads((tmp_path / f"gpu_training_{SMALLEST}.json").read_text()) == learned


def test_a_batch_by_chance_has_the_classes_of_its_tasks():
    recipe = benchmark.find_recipe(SMALLEST)
    batch = benchmark.random_batch(recipe)
    assert batch["image"].shape == (8, 3, 64, 64)
    for name in ("semseg", "human_parts", "saliency"):
        assert batch[name].unique().tolist() == list(range(recipe.task_set[name].channels))
    assert len(batch["meta"]) == 8


def test_too_little_memory_is_a_row_of_the_table_and_not_the_end(monkeypatch, capsys):
    def too_large(recipe, steps, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(benchmark, "measure", too_large)
    rows = benchmark.measure_all(SMALLEST, 1, torch.device("cpu"))
    assert rows["bf16"] == {"not_run": "the GPU's memory is too small"}
    assert capsys.readouterr().out.count("not run") == len(benchmark.SETTINGS)  # fp16, which a CPU cannot, among them


def test_how_busy_the_gpu_was_is_read_from_its_own_tool_where_there_is_one(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '90\\n100\\n[N/A]\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with benchmark.watched_gpu(CPU) as shares:
        time.sleep(0.5)  # for the tool to speak
    assert shares == [90.0, 100.0]
    monkeypatch.setenv("PATH", "")
    with benchmark.watched_gpu(CPU) as shares:
        pass
    assert shares == []
