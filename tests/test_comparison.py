"""Our numbers beside the papers': the right rows, the right differences, and what cannot be compared said in words."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_folders import write_layout

from mlore_edu import cli, comparison, published
from mlore_edu.comparison import (
    as_record,
    beside_the_papers,
    differences,
    gain_over,
    paper_rows,
    results_table,
    single_task_runs,
)
from mlore_edu.errors import UserError
from mlore_edu.evaluation import Evaluation
from mlore_edu.judging import Judgement, TrainingRecord
from mlore_edu.model import DECODERS, list_models
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TASK_SETS
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.run_folder import RunFolder

PRINTED = Path(published.__file__).parent / "published"
OURS = {"semseg": 81.0, "human_parts": 70.0, "saliency": 85.0, "normals": 14.0, "edge": 75.0, "depth": 0.5}


def judgement(data="pascal_context", model="mlore_vit_large", **changes):
    """A judgement by all of the papers' protocols, so that nothing about it is unlike them."""
    tasks = TASK_SETS[data]
    pascal = data == "pascal_context"
    training = TrainingRecord(40_000, 40_000, 4, (512, 512) if pascal else (448, 576))
    evaluation = Evaluation({name: OURS[name] for name in tasks.names}, {"edge": {"images": 2498 if pascal else 654}})
    judged = Judgement(
        *("runs/x", model, data, "data/none", tasks, 5105 if pascal else 654),
        *("pascal" if pascal else "nyud", "released", evaluation, training),
    )
    return replace(judged, **changes)


def printed(file, **which):
    """The cells of one row of a paper's table, read without the library."""
    with (PRINTED / file).open(encoding="utf-8") as lines:
        (row,) = (row for row in csv.DictReader(lines) if which.items() <= row.items())
    return {name: float(row[name]) for name in OURS if row.get(name, "-") != "-"}


# --- which rows --------------------------------------------------------------------------------------------------


def test_a_models_own_row_comes_first_then_its_backbone_then_its_decoder():
    rows = [(row.method, row.backbone) for row in paper_rows("pascal_context", "mlore_vit_large")]
    assert rows[0] == ("MLoRE", "ViT-L")
    others = [backbone for method, backbone in rows[1:]]
    assert others == ["ViT-L"] * 7 + ["HRNet18", "ViT-B", "ViT-S"]
    assert {("InvPT", "ViT-L"), ("TaskPrompter", "ViT-L"), ("TaskExpert", "ViT-L"), ("Baseline", "ViT-L")} < set(rows)
    assert all(method == "MLoRE" for method, backbone in rows if backbone != "ViT-L")


@pytest.mark.parametrize(
    ("data", "model", "file", "which"),
    [
        ("pascal_context", "mlore_vit_large", "mlore_table5.csv", {"method": "MLoRE"}),
        ("pascal_context", "mlore_vit_base", "mlore_table2.csv", {"setting": "+ SPE"}),
        ("pascal_context", "moe_vit_base", "mlore_table2.csv", {"setting": "Baseline + MoE"}),
        ("pascal_context", "mlore_vit_small", "mlore_table7.csv", {"method": "MLoRE"}),
        ("pascal_context", "mlore_hrnet18", "mlore_supplement_table7.csv", {"method": "MLoRE"}),
        ("pascal_context", "taskexpert_vit_base", "taskexpert_table2.csv", {"variant": "ViT-B"}),
        ("pascal_context", "baseline_vit_base", "mlore_table2.csv", {"setting": "Baseline"}),
        ("pascal_context", "tif_swin_base", "tif_table5.csv", {"method": "TIF", "backbone": "Swin-B"}),
        ("nyud_v2", "mlore_vit_large", "mlore_table6.csv", {"method": "MLoRE"}),
        (
            *("nyud_v2", "baseline_vit_large", "mlore_supplement_table6.csv"),
            {"dataset": "NYUD-v2", "method": "Baseline"},
        ),
        ("nyud_v2", "taskexpert_vit_large", "taskexpert_table5.csv", {"method": "TaskExpert"}),
        ("nyud_v2", "tif_hrnet18", "tif_table3.csv", {"method": "TIF", "backbone": "HRNet18"}),
        ("nyud_v2", "tif_swin_large", "tif_table4.csv", {"method": "TIF"}),
        ("nyud_v2", "tif_vit_base", "tif_table10.csv", {"method": "TIF", "backbone": "ViT-B"}),
    ],
)
def test_the_first_row_holds_what_the_models_paper_prints(data, model, file, which):
    first = paper_rows(data, model)[0]
    assert first.metrics == printed(file, **which)
    assert first.metrics.keys() == set(TASK_SETS[data].names)
    paper, number = file.removesuffix(".csv").split("_table")
    assert (first.paper, first.source) == (paper, published.table(paper, number).source)


def test_every_place_is_printed_and_no_row_of_a_main_table_is_left_out():
    for place in comparison._PLACES:
        rows = comparison._rows(place)
        assert rows
        assert place.methods is None or len(rows) == len(place.methods)
        for row in rows:
            assert row.metrics.keys() <= set(TASK_SETS[place.data].names)
            assert row.backbone
            assert "None" not in (row.method, row.backbone)
    assert len(comparison._rows(comparison._Place("mlore", 5, "pascal_context"))) == 10


@pytest.mark.parametrize("data", ["pascal_context", "nyud_v2"])
def test_any_model_gets_rows_and_none_twice(data):
    for model in [None, *list_models()]:
        rows = [(row.method, row.backbone) for row in paper_rows(data, model)]
        assert rows
        assert len(set(rows)) == len(rows)
    unknown = {row.method.partition(" (")[0] for row in paper_rows(data, None)}
    assert unknown <= set(comparison.METHODS.values())
    assert paper_rows(data, "moe_dinov3_base") != []
    assert set(comparison.METHODS) == set(DECODERS)
    assert paper_rows("dollhouse", "mlore_vit_nano") == []


# --- what the table says -----------------------------------------------------------------------------------------


def test_the_table_shows_every_task_with_unit_direction_and_difference():
    shown = beside_the_papers(judgement()).splitlines()
    names, units, ours, first = (line.split() for line in shown[2:6])
    assert names == list(PASCAL_CONTEXT.names)
    assert units == ["mIoU", "↑", "%", "mIoU", "↑", "%", "maxF", "↑", "%", "mErr", "↓", "°", "odsF", "↑", "%"]
    assert ours == ["this", "one", "81.00", "70.00", "85.00", "14.00", "75.00"]
    row = printed("mlore_table5.csv", method="MLoRE")
    cells = [f"{row[name]:.2f} {OURS[name] - row[name]:+.2f}" for name in PASCAL_CONTEXT.names]
    assert first == ["MLoRE,", "ViT-L", "[1]", *" ".join(cells).split()]
    assert "[1] Yang et al., CVPR 2024, Table 5" in shown
    assert not any("not alike" in line for line in shown)
    depth = beside_the_papers(judgement("nyud_v2"))
    assert "RMSE ↓ m" in depth
    assert "0.5076 -0.0076" in depth  # four digits, as the papers print metres


def test_only_the_tasks_that_were_judged_have_a_column():
    judged = judgement(tasks=PASCAL_CONTEXT.subset("normals"), evaluation=Evaluation({"normals": 14.0}, {}))
    shown = beside_the_papers(judged).splitlines()
    assert shown[2].split() == ["normals"]
    assert shown[-1] == "not alike: it learned 1 of the 5 tasks"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": 3}, "3 images, the papers' 5,105"),
        ({"saliency": "standard"}, "maxF is the standard one, MLoRE's and its forerunners' the released one"),
        ({"boundary": "pascal_99"}, "odsF is by the protocol pascal_99, the papers' by pascal"),
        (
            {"evaluation": Evaluation(dict.fromkeys(PASCAL_CONTEXT.names, 1.0), {"edge": {"images": 5105}})},
            "the papers' odsF is over 2,498 of the 5,105 images (--boundary-images)",
        ),
        (
            {"training": TrainingRecord(300, 40_000, 4, (512, 512))},
            "this is iteration 300 of 40,000, the papers' numbers are of the last",
        ),
        ({"training": TrainingRecord(9, 9, 2, (512, 512))}, "9 iterations of 2 images, the papers' 40,000 of 4"),
        ({"training": TrainingRecord(40_000, 40_000, 4, (64, 80))}, "images of 64×80, the papers' 512×512"),
        ({"training": None}, None),
        ({"model": "tif_hrnet18"}, "40,000 iterations of 4 images, the papers' 50,000 of 8"),
        ({"model": "tif_swin_base", "saliency": "standard", "training": None}, None),
    ],
)
def test_each_thing_that_is_not_alike_is_said_and_nothing_else(changes, expected):
    found = differences(judgement(**changes))
    assert len(found) == (expected is not None)
    assert expected is None or found[0].startswith(expected)


def test_dollhouse_has_no_paper_whatever_layout_its_files_have(tmp_path):
    judged = judgement(root=str(tmp_path))
    assert len(beside_the_papers(judged).splitlines()) > 5
    (tmp_path / "dataset.json").write_text("{}")
    expected = "no paper has numbers on Dollhouse, so there is nothing to put beside these"
    assert beside_the_papers(judged) == expected
    ours = Judgement(
        *("runs/x", "mlore_vit_nano", "dollhouse", "data", DOLLHOUSE, 100, "dollhouse", "standard"),
        Evaluation({name: OURS[name] for name in DOLLHOUSE.names}, {}),
    )
    assert beside_the_papers(ours) == expected
    assert (as_record(ours)["papers"], as_record(ours)["not_alike"]) == ([], [])


def test_the_record_keeps_the_protocol_the_papers_rows_and_the_versions():
    record = json.loads(json.dumps(as_record(judgement())))
    assert record["metrics"]["semseg"] == 81.0
    assert record["images"] == 5105
    assert record["protocols"]["saliency"] == "released"
    boundary = record["protocols"]["boundary"]
    assert (boundary["name"], boundary["max_distance"], len(boundary["thresholds"])) == ("pascal", 0.0075, 101)
    assert record["training"]["iteration"] == 40_000
    first = record["papers"][0]
    assert (first["method"], first["metrics"]["semseg"]) == ("MLoRE", 81.41)
    assert first["difference"]["semseg"] == pytest.approx(-0.41)
    assert first["difference"]["normals"] == pytest.approx(0.49)
    assert record["not_alike"] == []
    assert {"torch", "numba"} <= record["versions"]["packages"].keys()


# --- Δm over single-task runs ------------------------------------------------------------------------------------


def single(folder, task, metric, **changes):
    """The folder of a complete run of one task."""
    common = {"data": "nyud_v2", "saliency_variant": "released", "img_size": (448, 576)}
    recipe = Recipe(name=task, tasks=(task,), **{**common, **changes})
    run = folder / f"{task}_{metric}"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(recipe.to_json())
    if metric is not None:
        RunFolder(run).write_metrics(10, {task: metric}, {})
    return run


def test_the_gain_is_the_mean_of_the_relative_gains_over_the_single_task_runs(tmp_path):
    baseline = {"semseg": 54.0, "depth": 0.55, "normals": 13.0, "edge": 78.0}
    runs = [single(tmp_path, task, metric) for task, metric in baseline.items()]
    gains = [(81 - 54) / 54, -(0.5 - 0.55) / 0.55, -(14 - 13) / 13, (75 - 78) / 78]
    assert gain_over(single_task_runs(runs), judgement("nyud_v2")) == pytest.approx(100 * sum(gains) / 4)
    assert single_task_runs([]) == {}
    without_depth = judgement("nyud_v2", tasks=NYUD_V2.subset("semseg", "normals"))
    assert gain_over(single_task_runs(runs), without_depth) == pytest.approx(50 * (gains[0] + gains[2]))


def test_runs_that_are_no_baseline_are_named_in_one_sentence(tmp_path):
    depth = single(tmp_path, "depth", 0.5)
    with pytest.raises(UserError, match=r"depth_0.5 and .*depth_0.6 both learned depth; give --single-task one run"):
        single_task_runs([depth, single(tmp_path, "depth", 0.6)])
    with pytest.raises(UserError, match="normals_None is not complete yet; finish it"):
        single_task_runs([single(tmp_path, "normals", None)])
    (tmp_path / "all").mkdir()
    (tmp_path / "all/recipe.json").write_text(Recipe(name="x").to_json())
    with pytest.raises(UserError, match="all learned 6 tasks; give --single-task runs of one task each"):
        single_task_runs([tmp_path / "all"])
    with pytest.raises(UserError, match="needs a single-task run for every task; add one of semseg, normals, edge to"):
        gain_over(single_task_runs([depth]), judgement("nyud_v2"))
    with pytest.raises(UserError, match=r"depth_0.5 was trained on nyud_v2; give --single-task runs on pascal_context"):
        gain_over(single_task_runs([depth]), judgement())
    other = single(tmp_path, "edge", 70.0, boundary_protocol="dollhouse")
    with pytest.raises(UserError, match=r"edge_70.0 was judged by another protocol of edge; choose the same one"):
        gain_over(single_task_runs([other]), judgement("nyud_v2"))
    other = single(tmp_path, "saliency", 80.0, data="pascal_context")
    with pytest.raises(UserError, match=r"saliency_80.0 was judged by another protocol of saliency"):
        gain_over(single_task_runs([other]), judgement(saliency="standard"))


# --- the command line, on Dollhouse in the benchmarks' formats -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe", "model"),
    [
        ("pascal_context", "pascal_baseline_vit_base", "mlore_vit_nano"),
        ("nyud_v2", "nyud_baseline_vit_base", "tif_vit_nano"),
    ],
)
def test_a_run_is_evaluated_beside_the_papers(tmp_path, capsys, name, recipe, model):
    root, run, tasks = write_layout(tmp_path / "data", name), tmp_path / "run", TASK_SETS[name]
    (root / "dataset.json").unlink()  # without it nobody can tell these rooms from photographs
    words = f"--model {model} --no-pretrained --drop-path-rate 0 --img-size 80 96 --iterations 1 --batch-size 2"
    words = f"train {recipe} {words} --workers 0 --model-options channels 8 --pictures 0 --root {root} --run {run}"
    assert cli.main(words.split()) == 0
    listed = tmp_path / "one.txt"
    listed.write_text(sorted(path.stem for path in root.rglob("*.png") if path.stem.startswith("1"))[0])
    capsys.readouterr()
    words = f"evaluate {run} --json {tmp_path}/x.json --boundary-images {listed} --saliency standard"
    assert cli.main(words.split()) == 0
    shown, record = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert shown.startswith(results_table(tasks, record["metrics"]))
    assert "beside the papers' models" in shown
    assert record["papers"][0]["method"] == ("MLoRE" if name == "pascal_context" else "TIF")
    assert "not alike: 2 images, the papers' " in shown
    assert "images of 80×96, the papers' " in shown
    assert record["not_alike"] == shown.splitlines()[-1].removeprefix("not alike: ").split("; ")
    assert record["details"]["edge"]["images"] == 1
    words = f"evaluate {run} --single-task {run}"
    assert cli.main(words.split()) == 2
    assert f"{run} learned {len(tasks)} tasks" in capsys.readouterr().err


def test_a_gain_that_cannot_be_computed_costs_nothing_that_was_judged(tmp_path, capsys):
    root, run = write_layout(tmp_path / "data", "dollhouse"), tmp_path / "run"
    words = "train dollhouse_baseline_nano_64 --iterations 1 --batch-size 2 --workers 0 --tasks depth --pictures 0"
    assert cli.main([*words.split(), "--root", str(root), "--run", str(run)]) == 0
    capsys.readouterr()
    words = f"evaluate {run} --json {tmp_path}/x.json --single-task"
    assert cli.main([*words.split(), str(run)]) == 0
    assert "Δm over the single-task runs: +0.00 %" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["multitask_gain"] == 0
    (tmp_path / "x.json").unlink()
    assert cli.main([*words.split(), str(single(tmp_path, "normals", 13.0))]) == 2
    out, error = capsys.readouterr()
    assert "give --single-task runs on dollhouse" in error
    assert "Depth" in out
    assert json.loads((tmp_path / "x.json").read_text())["metrics"].keys() == {"depth"}
