"""The benchmark of loading compares the same batches, and its command runs from end to end."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from benchmark_folders import write_layout
from torch.utils.flop_counter import FlopCounterMode

import mlore_edu as me
from mlore_edu.data.device_batches import StoredBatch
from mlore_edu.data.loaders import collate
from mlore_edu.data.preparation import prepare
from mlore_edu.data.transforms import train_transform

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "loading.py"
spec = importlib.util.spec_from_file_location("benchmark_of_loading", SCRIPT)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)

SIZE = (64, 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    for layout in ("pascal_context", "nyud_v2"):
        write_layout(place / layout, layout)
    prepare("pascal_context", place / "pascal_context", progress=False)
    return place


@pytest.fixture
def pascal(folders):
    dataset = benchmark.PASCALContext(folders / "pascal_context", "train", None, train_transform(SIZE))
    return benchmark.Source("pascal_context", dataset, SIZE, 4998)


def test_the_ways_load_the_same_images(pascal, tmp_path):
    ways = benchmark.ways(pascal, 3, tmp_path)
    derived, kept, stored = (ways[way](1) for way in (benchmark.DERIVING, benchmark.AUGMENTING, benchmark.READING))
    assert [meta["id"] for meta in kept["meta"]] == [pascal.dataset.ids[index] for index in (1, 2, 0, 1)]
    for name in kept.keys() - {"meta"}:
        assert torch.equal(derived[name], kept[name])
    read = stored.on(torch.device("cpu"))
    draws = zip(read, (1, 2, 0, 1), strict=True)
    finished = collate([pascal.dataset.transform(sample, benchmark.draw_generator(0, draw)) for sample, draw in draws])
    for name in kept.keys() - {"meta"}:
        assert torch.equal(finished[name], kept[name])
    bytes_of_each = [StoredBatch.of([pascal.dataset.load(index)]).content for index in (1, 2, 0, 1)]
    assert torch.equal(ways[benchmark.DECODED](1), torch.cat(bytes_of_each))


def test_a_training_step_takes_six_operations_for_each_multiply_accumulate(pascal):
    """Counted by running both ways of a training step, instead of the forward pass alone times three."""
    with torch.device("meta"):
        model = me.build_model("baseline_vit_small", me.PASCAL_CONTEXT, (512, 512)).train()
        with FlopCounterMode(display=False) as counter:
            sum(map(torch.sum, model(torch.empty(2, 3, 512, 512)).predictions.values())).backward()
    per_image = counter.get_total_flops() / 2
    macs = benchmark.macs("baseline_vit_small", pascal._replace(crop=(512, 512)))
    assert benchmark.needed(macs, 1.0) == pytest.approx(1e12 / per_image, rel=0.02)


def test_times_are_the_least_of_rounds_in_which_the_acts_take_turns():
    called = []
    acts = {name: lambda index, name=name: called.append((name, index)) for name in "ab"}
    found = benchmark.milliseconds(acts, calls=2, rounds=2)
    turn = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert called == [("a", 0), ("b", 0), *turn, *turn]
    assert all(0 <= value < math.inf for value in found.values())


def test_steps_and_augmentation_are_timed_on_a_device_by_running_them(pascal):
    device = torch.device("cpu")
    assert benchmark.trained("baseline_vit_nano", pascal, device, calls=1) > 0
    assert benchmark.augmented_on(pascal, device, calls=1) > 0


def test_the_command_prints_its_tables_and_writes_a_record(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "MODELS", ("baseline_vit_nano",))
    threads, file = torch.get_num_threads(), tmp_path / "record.json"
    paths = {"pascal": folders / "pascal_context", "nyud": folders / "nyud_v2", "json": file}
    benchmark.main(benchmark.Options(**paths, rounds=1, tflops=(7.0,)))
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    record = json.loads(file.read_text())
    assert record["commit"]
    for name, tasks in (("pascal_context", me.PASCAL_CONTEXT), ("nyud_v2", me.NYUD_V2)):
        loading, training = record["data"][name]["loading"], record["data"][name]["training"]
        assert (benchmark.DERIVING in loading["images_per_second_and_core"]) == (name == "pascal_context")
        assert set(loading["milliseconds_reading"]) == {"image", *tasks.names}
        assert list(loading["milliseconds_augmenting"])[:4] == [
            "RandomScale", "RandomCrop", "RandomFlip", "PhotometricDistortion"
        ]  # fmt: skip
        its = training["baseline_vit_nano"]
        wanted = its["images_per_second_at_tflops"]["7"]
        cores = wanted / loading["images_per_second_and_core"][benchmark.AUGMENTING]
        row = next(line for line in printed.splitlines() if f"{its['macs'] / 1e9:.0f} GMACs, at 7 TFLOP/s" in line)
        assert row.split()[-3:-1] == [f"{wanted:.0f}", f"{cores:.1f}"]


def test_rendered_data_have_the_sizes_of_the_field(tmp_path):
    root = benchmark.rendered(tmp_path, "nyud_v2", (64, 80), 1)
    assert benchmark.NYUDv2(root, "train")[0]["image"].shape == (3, 64, 80)
