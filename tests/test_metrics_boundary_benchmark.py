"""The boundary benchmark compares like with like, and its records hold what the appendix says of them."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mlore_edu.metrics import BOUNDARY_PROTOCOLS, PASCAL_BOUNDARY

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "boundary.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("benchmark_of_boundary", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark  # its dataclasses look themselves up there
spec.loader.exec_module(benchmark)


@pytest.mark.parametrize("kind", ["network", "noise"])
@pytest.mark.parametrize("protocol", ["pascal", "nyud"])
def test_all_methods_count_the_same(kind, protocol):
    maps = benchmark.MAPS[kind](1, 60, 80)
    seconds = benchmark.compare([maps], BOUNDARY_PROTOCOLS[protocol], tuple(benchmark.METHODS))
    assert all(spent > 0 for spent in seconds.values())


def test_a_method_that_counts_differently_is_caught(monkeypatch):
    maps = benchmark.noise_maps(0, 40, 40)
    lazy = partial(benchmark.fresh, solver=lambda predicted, truth, reach: 0)
    monkeypatch.setitem(benchmark.METHODS, "lazy", lazy)
    with pytest.raises(SystemExit, match="count differently"):
        benchmark.compare([maps], PASCAL_BOUNDARY, ("library", "lazy"))


def test_the_networks_maps_are_enlarged_about_the_middle_of_the_scene():
    probability, target = benchmark.network_maps(0, 375, 500)
    assert probability.shape == target.shape == (375, 500)
    assert set(np.unique(target)) == {0, 1}
    on, off = probability[target == 1].mean(), probability[target == 0].mean()
    assert on > 1.5 * off
    moved = np.roll(probability, (9, 9), (0, 1))[target == 1].mean()
    assert on > 1.1 * moved  # the map lies where the scene is


def test_the_record_meets_the_goal_and_knows_all_variants():
    record = json.loads((ROOT / "book" / "results" / "boundary_benchmark.json").read_text())
    assert [tuple(row[key] for key in ("kind", "protocol")) for row in record["rows"]] == [
        (row.kind, row.protocol) for row in benchmark.ROWS
    ]
    for row in record["rows"]:
        assert row["minutes"]["two cores"] < 15
        assert row["minutes"]["two cores"] == pytest.approx(2498 * row["core_seconds"]["total"] / 2 / 60)
    assert list(record["variants"]) == list(BOUNDARY_PROTOCOLS)


def test_the_reference_never_finds_more_pairs_than_the_library():
    record = json.loads((ROOT / "book" / "results" / "boundary_reference.json").read_text())
    for group in record["groups"]:
        assert group["matching"]["reference has more"] == 0
        assert group["matching"]["pairs"]["reference"] <= group["matching"]["pairs"]["library"]
        assert abs(group["whole"]["odsF"]["library"] - group["whole"]["odsF"]["reference"]) < 0.2
