"""Every row of every table of the four papers has its place, with our number or a reason."""

import csv
import json
from pathlib import Path

import pytest
import torch

import mlore_edu as me
from mlore_edu import published, scorecard, side_by_side

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "book" / "results"
COUNTS = json.loads((RESULTS / "counts.json").read_text())["models"]
RUNS = scorecard.read_runs(RESULTS)
ENTRIES = list(csv.DictReader((ROOT / "mlore_edu" / "published" / "ours.csv").read_text().splitlines()))
OWN = {"MLoRE", "TaskExpert", "TIF", "Baseline"}
OVERVIEW = {key: side_by_side.places(published.table(*key), RUNS, COUNTS) for key in published.tables()}


def test_no_row_is_missing_and_each_says_why_its_accuracies_were_not_run():
    for (paper, number), places in OVERVIEW.items():
        table = published.table(paper, number)
        assert [place.row for place in places] == list(table.rows)
        assert {place.reason for place in places} <= set(side_by_side.REASONS.values())
        assert all(place.label for place in places)
    assert sum(map(len, OVERVIEW.values())) == 192


def test_the_rows_left_to_others_are_methods_that_are_none_of_ours():
    listed = {(e["paper"], e["table"], int(e["row"])) for e in ENTRIES}
    for paper, number in published.tables():
        for place, row in enumerate(published.table(paper, number).rows, start=1):
            if (paper, str(number), place) not in listed:
                assert row["method"] not in OWN, (paper, number, place)


def test_every_entry_names_a_row_a_recorded_network_and_a_count_that_exist():
    places = [(e["paper"], e["table"], e["row"]) for e in ENTRIES]
    assert len(set(places)) == len(places)
    for entry in ENTRIES:
        number = int(entry["table"]) if entry["table"].isdigit() else entry["table"]
        assert 1 <= int(entry["row"]) <= len(published.table(entry["paper"], number).rows)
        assert not entry["counted"] or entry["counted"] in COUNTS
        assert bool(entry["sweep"]) == bool(entry["ours"])
        assert not entry["sweep"] or RUNS[entry["sweep"], entry["ours"]]


@pytest.mark.parametrize(
    ("paper", "number", "pairs"),
    [
        ("mlore", 2, {"+ GC": "+ GC", "Baseline + LoRE": "Baseline + LoRE"}),
        ("mlore", 3, {"min_rank 128, max_rank 128": "16/16", "min_rank 16, max_rank 16": "2/2"}),
        ("mlore", 4, {"w/o sample-dep": "w/o sample-dep"}),
        ("mlore_supplement", 3, {f"experts {n}": str(n) for n in (0, 5, 10, 15, 20)}),
        ("mlore_supplement", 4, {f"active {k}": str(k) for k in (3, 6, 9, 12, 15)}),
        ("mlore_supplement", 5, {"Baseline + MoE, balance_loss no": "MoE, no balance"}),
        ("mlore_supplement", 5, {"MLoRE, balance_loss yes": "MLoRE"}),
        ("taskexpert", 1, {"w/ MoE+CG": "w/ MoE+CG"}),
        ("tif", 1, {"block 2, interaction no": "w/o depth, normals"}),
        ("tif", 9, {"W/2 SAFF": "W/2 SAFF", "W/O SAFF": "W/O SAFF"}),
    ],
)  # fmt: skip
def test_a_row_and_its_counterpart_are_the_same_choice(paper, number, pairs):
    found = {place.label: place.counterpart.split(": ", 1)[1] for place in OVERVIEW[paper, number] if place.counterpart}
    assert pairs.items() <= found.items()


def test_counts_of_the_papers_own_networks_are_within_four_percent_of_the_printed():
    off = {
        (paper, number, place.label, name): ours / place.row[name] - 1
        for (paper, number), places in OVERVIEW.items()
        for place in places
        for name, ours in place.counted.items()
    }
    quoted = {key: value for key, value in off.items() if key[0] == "tif" and "TaskExpert" in key[2]}
    assert len(off) > 60
    assert all(abs(value) < 0.04 for key, value in off.items() if key not in quoted)
    assert sorted(round(value, 2) for value in quoted.values()) == [0.02, 0.19]  # TIF prints TaskPrompter's numbers


@pytest.mark.parametrize(
    ("name", "model", "tasks", "size"),
    [
        ("taskexpert, ViT-S", "taskexpert_vit_small", me.PASCAL_CONTEXT, (512, 512)),
        ("tif, HRNet18", "tif_hrnet18", me.NYUD_V2, (448, 576)),
    ],
)
def test_the_recorded_counts_are_those_of_the_library_as_it_is(name, model, tasks, size):
    with torch.device("meta"):
        network = me.build_model(model, tasks, size)
    counted = me.count(network, size)
    assert COUNTS[name]["parameters"] == pytest.approx(counted.parameters / 1e6, abs=0.01)
    assert COUNTS[name]["flops"] == pytest.approx(counted.macs / 1e9, abs=0.01)


def test_the_markdown_of_a_table_has_all_its_rows_and_sets_what_is_ours_in_bold():
    table = published.table("mlore", 2)
    head, rule, *lines = side_by_side.markdown(table, OVERVIEW["mlore", 2]).splitlines()
    assert len(lines) == len(table.rows)
    assert {line.count("|") for line in (head, rule, *lines)} == {11}
    assert "259 = **259.1**" in lines[-1]
    assert "%**" in lines[0]
    assert "8367, not run" in side_by_side.markdown(published.table("taskexpert", 2), OVERVIEW["taskexpert", 2])


def test_the_reasons_name_every_row_once():
    its = OVERVIEW["mlore", 5]
    said = side_by_side.why_not(its)
    assert all(place.label.replace("*", r"\*") in said for place in its)
    assert len(said.splitlines()) == 2
    assert side_by_side.why_not(OVERVIEW["mlore", 2]).startswith("All rows: not run")


def test_dollhouse_gains_are_means_over_seeds():
    place = OVERVIEW["mlore", 2][0]
    its = RUNS["mlore/table2", "Baseline"]
    assert place.seeds == len(its)
    assert place.dollhouse["semseg"] == pytest.approx(sum(run["semseg"] for run in its.values()) / len(its))
