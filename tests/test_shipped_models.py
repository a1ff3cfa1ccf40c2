"""The networks that come with the book are what is said of them (chapter 18); all their scenes: --verify."""

import json
import shlex

import pytest

from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training.recipe import Recipe, override
from mlore_edu.training.recipes import find_recipe
from tests.test_sweeps import load

shipped = load("make_shipped_models")
NAMES = tuple(shipped.COMMANDS)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_network_scores_on_a_few_scenes_what_is_recorded(name):
    found = shipped.scores(shipped.load(name), shipped.FEW)
    assert not shipped.differences(found, shipped.recorded(name)["metrics_of_few"])


def test_another_network_would_be_noticed():
    wanted = shipped.recorded("mlore")["metrics_of_few"]
    for task in DOLLHOUSE:
        off = wanted | {task.name: wanted[task.name] + 2 * shipped.TOLERANCE[task.metric]}
        assert set(shipped.differences(off, wanted)) == {task.name}
        assert set(shipped.differences(wanted | {task.name: float("nan")}, wanted)) == {task.name}
    model = shipped.load("mlore")
    model.heads["depth"].predict.bias.data += 0.01  # a centimetre
    assert "depth" in shipped.differences(shipped.scores(model, shipped.FEW), wanted)


def test_all_weights_together_take_at_most_eight_megabytes():
    files = [shipped.MODELS / name / "model.safetensors" for name in NAMES]
    assert sum(file.stat().st_size for file in files) <= 8e6


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_the_command_that_makes_it_again(name):
    told = shipped.recorded(name)
    assert told["command"] == f"mlore-edu {shipped.command(name)}"
    _, recipe_name, *arguments = shlex.split(shipped.command(name))
    wanted = override(find_recipe(recipe_name), arguments[: arguments.index("--run")])
    assert not Recipe.from_json(json.dumps(told["recipe"])).differences(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_costs_nothing_that_could_be_seen(name):
    told = shipped.recorded(name)
    for task in DOLLHOUSE:
        assert told["metrics"][task.name] == pytest.approx(told["of_the_run"][task.name], rel=5e-3), task.name
