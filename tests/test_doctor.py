"""The doctor says what is there, what is not, and what to do next; it never fails for what is missing."""

import os
import shutil

import pytest
import torch
from benchmark_folders import write_layout
from training_fakes import RECIPE, run

from mlore_edu import cli
from mlore_edu.data.derived import derived_folder
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.preparation import prepare
from mlore_edu.doctor import report
from mlore_edu.training.recipes import RECIPES


def line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_an_empty_folder_is_told_to_render_dollhouse_first(tmp_path):
    text = report(tmp_path)
    assert line(text, "next") == "next  mlore-edu dollhouse --root data/dollhouse"
    for root, data in {(recipe.root, recipe.data) for recipe in RECIPES.values()}:
        fetch = "" if data == "dollhouse" else f"; next: python data_scripts/{data}.py fetch"
        assert line(text, f"data  {root}:") == f"data  {root}: not there{fetch}"
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_described_as_it_is(tmp_path):
    text = report(tmp_path)
    assert f"torch {torch.__version__.split('+')[0]}" in line(text, "software")
    assert ("none" in line(text, "GPU")) == (not torch.cuda.is_available())
    assert f"{len(os.sched_getaffinity(0))} cores" in line(text, "CPU")
    free = shutil.disk_usage(tmp_path).free / 2**30
    assert abs(float(line(text, "disk").split()[1]) - free) < 5


def test_data_that_is_there_is_counted_and_training_comes_next(tmp_path):
    write_dollhouse(tmp_path / "data/dollhouse", size=64, difficulty="easy", train=2, val=1, progress=False)
    text = report(tmp_path)
    assert line(text, "data  data/dollhouse:") == "data  data/dollhouse: 2 training and 1 validation images"
    assert line(text, "next") == "next  mlore-edu train dollhouse_baseline_nano"


def test_a_benchmark_is_followed_from_its_archive_to_its_verification(tmp_path):
    pascal, nyud = "data  data/PASCALContext:", "data  data/NYUDv2:"
    (tmp_path / "data/archives").mkdir(parents=True)
    (tmp_path / "data/archives/NYUDv2-ASTMT.tgz").write_bytes(b"")
    assert line(report(tmp_path), nyud).endswith(
        "not there, but its archive data/archives/NYUDv2-ASTMT.tgz is; "
        "next: python data_scripts/nyud_v2.py prepare --archive data/archives/NYUDv2-ASTMT.tgz"
    )
    write_layout(tmp_path / "data/NYUDv2", "nyud_v2")
    write_layout(tmp_path / "data/PASCALContext", "pascal_context")
    text, counts = report(tmp_path), "3 training and 2 validation images"
    assert line(text, nyud) == (
        f"{nyud} {counts} of the ATRC build; python data_scripts/nyud_v2.py verify checks every file"
    )
    assert line(text, pascal) == (
        f"{pascal} {counts}; next: python data_scripts/pascal_context.py prepare, "
        "which derives labels once instead of while training"
    )
    prepare("pascal_context", tmp_path / "data/PASCALContext", progress=False)
    assert line(report(tmp_path), pascal) == (
        f"{pascal} {counts}, labels derived; python data_scripts/pascal_context.py verify checks every file"
    )
    next(derived_folder(tmp_path / "data/PASCALContext").rglob("human_parts/*.png")).unlink()
    assert "next: python data_scripts/pascal_context.py prepare" in line(report(tmp_path), pascal)


def test_a_folder_that_is_not_the_data_set_is_reported_in_words(tmp_path):
    (tmp_path / "data/dollhouse").mkdir(parents=True)
    assert "not usable: " in line(report(tmp_path), "data  data/dollhouse:")


@pytest.mark.parametrize("complete", [True, False])
def test_every_run_is_listed_with_how_far_it_got(tmp_path, complete):
    folder = tmp_path / "runs/noise"
    run(folder, tasks=("depth",), iterations=1)
    if not complete:
        (folder / "metrics.json").unlink()
    expected = "complete, 1 iterations" if complete else "at iteration 1 of 1; train again to go on"
    assert line(report(tmp_path), "run ") == f"run   runs/noise: {expected}"


def test_a_damaged_run_is_listed_and_does_not_stop_the_report(tmp_path):
    folder = tmp_path / "runs/noise"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{")
    assert "not readable: the stored recipe cannot be read" in line(report(tmp_path), "run ")


def test_after_the_first_run_the_doctor_points_further(tmp_path):
    nano = RECIPES["dollhouse_baseline_nano"]
    (tmp_path / nano.root).mkdir(parents=True)
    folder = tmp_path / "runs" / nano.name
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(RECIPE.to_json())
    (folder / "metrics.json").write_text('{"iteration": 5, "metrics": {}}')
    assert "mlore-edu recipes" in line(report(tmp_path), "next")


def test_the_command_prints_the_report_and_succeeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("software  Python")
