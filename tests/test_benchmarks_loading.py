"""The benchmark of loading compares the same labels and its command runs from end to end."""

import importlib.util
import re
import sys
from pathlib import Path

import torch
from benchmark_folders import write_layout

from mlore_edu.data.preparation import prepare

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "loading.py"
spec = importlib.util.spec_from_file_location("benchmark_of_loading", SCRIPT)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)


def test_the_command_prints_one_line_for_each_way_of_reading(tmp_path, capsys):
    pascal = write_layout(tmp_path / "PASCALContext", "pascal_context")
    nyud = write_layout(tmp_path / "NYUDv2", "nyud_v2")
    prepare("pascal_context", pascal, progress=False)
    threads = torch.get_num_threads()
    benchmark.main(["--pascal", str(pascal), "--nyud", str(nyud), "--count", "2"])
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()[2:]
    for line, title in zip(lines, ("PASCAL-Context, labels derived now", "PASCAL-Context, labels kept", "NYUD-v2")):
        assert re.fullmatch(rf"{title} +[\d.]+ ms +[\d.]+ ms +[\d.]+", line)


def test_rendered_data_have_the_sizes_of_the_field(tmp_path):
    root = benchmark.rendered(tmp_path, "nyud_v2", (64, 80), 1)
    assert benchmark.NYUDv2(root, "train")[0]["image"].shape == (3, 64, 80)
