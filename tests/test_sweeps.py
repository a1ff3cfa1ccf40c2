"""The scripts of the sweeps and what they recorded agree; every command they would run is one of `mlore-edu`."""

import importlib
import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest

from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training.recipe import override
from mlore_edu.training.recipes import find_recipe
from mlore_edu.training.setup import make_model

RESULTS = Path(__file__).parents[1] / "book" / "results"
PAPERS = ["mlore", "taskexpert", "tif", "hybrids"]


def load(name):
    sys.path.insert(0, str(RESULTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture(params=PAPERS)
def paper(request):
    return request.param


@pytest.fixture
def script(paper):
    return load(f"make_{paper}_sweeps")


@pytest.fixture
def record(paper):
    return json.loads((RESULTS / f"{paper}_sweeps.json").read_text())


def configurations(script):
    return {c.key: c for rows in script.SWEEPS.values() for c in rows.values()}


def test_two_configurations_have_one_key_only_where_they_are_equal(script):
    known = configurations(script)
    for rows in script.SWEEPS.values():
        assert all(known[configuration.key] == configuration for configuration in rows.values())


def test_every_command_trains_a_network_with_the_options_of_its_configuration(script):
    for configuration in configurations(script).values():
        _, name, *options = shlex.split(configuration.command(seed=4))
        assert options[-2] == "--run"
        recipe = override(find_recipe(name), options[:-2])
        assert dict(recipe.model_options) == configuration.options
        assert (recipe.seed, recipe.iterations, recipe.root) == (4, 300, "data/dollhouse_64")
        make_model(recipe)  # refuses options that do not exist or do not go together


def test_the_record_has_the_scripts_sweeps(script, record):
    assert record["sweeps"] == {name: {row: c.key for row, c in rows.items()} for name, rows in script.SWEEPS.items()}


def test_a_recorded_run_is_what_its_command_says(script, record):
    known = configurations(script)
    for run in record["runs"]:
        assert run["command"] == "mlore-edu " + known[run["key"]].command(run["seed"])
        assert run["options"] == known[run["key"]].options
        flags = run.get("flags", "").split()
        names = flags[flags.index("--tasks") + 1 :] if "--tasks" in flags else DOLLHOUSE.names
        assert set(run["metrics"]) == set(names)
        assert all(map(math.isfinite, run["metrics"].values()))
        assert re.fullmatch("[0-9a-f]{12}", run["commit"])
        assert run.get("other_versions", {}).keys() <= {"pillow"}  # which only reads the scenes' PNGs


def test_all_runs_of_a_record_were_made_by_one_commit_and_none_twice(record):
    names = [(run["key"], run["seed"]) for run in record["runs"]]
    assert len(names) == len(set(names))
    assert len({run["commit"] for run in record["runs"]}) == 1


def test_recorded_gates_are_counts_over_all_images_and_keep_nine_of_fifteen_experts():
    record = json.loads((RESULTS / "mlore_routing.json").read_text())
    for run in record["runs"]:
        for module in run["modules"].values():
            assert [sum(counts) for counts in module["images_by_tasks"]] == [run["images"]] * 15
            assert [sum(counts) for counts in module["active_images"]] == [9 * run["images"]] * len(DOLLHOUSE)
            assert all(0 < sum(gates) <= 1.001 for gates in module["mean_gate"])


def test_writing_and_reading_a_record_changes_nothing(record, tmp_path):
    sweeps = load("sweeps")
    path = tmp_path / "record.json"
    sweeps.write(path, record)
    assert sweeps.read(path) == record
    assert sweeps.read(tmp_path / "none.json") == {"runs": []}
