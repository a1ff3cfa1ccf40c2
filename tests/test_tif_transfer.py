"""The records of chapter 13: labels of another room on purpose, and what a trained TIF's tasks attend to."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mlore_edu as me
from mlore_edu.data.dollhouse_files import DollhouseFolder, write_dollhouse
from mlore_edu.training.recipe import override
from mlore_edu.training.recipes import find_recipe
from mlore_edu.training.setup import make_model

RESULTS = Path(__file__).parents[1] / "book" / "results"


def load(name):
    sys.path.insert(0, str(RESULTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture(scope="module")
def script():
    return load("make_tif_transfer")


@pytest.fixture(scope="module")
def record():
    return json.loads((RESULTS / "tif_transfer.json").read_text())


@pytest.fixture(scope="module")
def inside():
    return np.load(RESULTS / "tif_distillation.npz")


def configurations(script):
    return {c.key: c for rows in script.SWEEPS.values() for c in rows.values()}


def test_every_command_trains_the_network_and_the_labels_of_its_configuration(script):
    for configuration in configurations(script).values():
        _, name, *options = shlex.split(configuration.command(seed=4))
        recipe = override(find_recipe(name), options[:-2])
        assert dict(recipe.model_options) == configuration.options
        assert recipe.iterations == (150 if "high_width" in configuration.options else 300)
        assert recipe.root == ("data/dollhouse_64_shuffled" if "shuffled" in configuration.key else "data/dollhouse_64")
        make_model(recipe)  # refuses options that do not exist or do not go together


def test_the_four_networks_of_a_design_differ_in_attention_and_normals_alone(script):
    for rows in script.SWEEPS.values():
        for row, configuration in rows.items():
            kind, _, labels = row.partition(", ")
            assert (configuration.options.get("distillation") == "cross") == (kind == "cross")
            assert ("shuffled" in configuration.flags) == (labels == "another room")
    assert len(configurations(script)) == 13


def test_the_record_holds_what_its_commands_say_from_one_commit_none_twice(script, record):
    known = configurations(script)
    assert record["sweeps"] == {name: {row: c.key for row, c in rows.items()} for name, rows in script.SWEEPS.items()}
    for run in record["runs"]:
        configuration = known[run["key"]]
        assert run["command"] == "mlore-edu " + configuration.command(run["seed"])
        assert ("normals" in run["metrics"]) == ("exchanged" in run)
    names = [(run["key"], run["seed"]) for run in record["runs"]]
    assert len(set(names)) == len(names)
    assert len({run["commit"] for run in record["runs"]}) == 1
    assert re.fullmatch("[0-9a-f]{12}", record["runs"][0]["commit"])


def test_within_a_task_an_exchange_of_the_others_features_changes_nothing(record):
    pairs = [run for run in record["runs"] if "exchanged" in run]
    for run in pairs:
        kept = run["exchanged"] == run["metrics"]["semseg"]
        assert kept or run["options"].get("distillation") == "cross"
    assert any(run["exchanged"] != run["metrics"]["semseg"] for run in pairs)


def test_a_shuffled_copy_has_the_next_scenes_labels_in_training_and_its_own_in_validation(script, tmp_path):
    source, target = tmp_path / "doll", tmp_path / "shuffled"
    write_dollhouse(source, size=64, train=3, val=2, progress=False)
    script.shuffle_labels(source, target, "normals")
    for split in ("train", "val"):
        true, copy = (DollhouseFolder(root, split) for root in (source, target))
        for index in range(len(true)):
            other = (index + 1) % 3 if split == "train" else index
            assert torch.equal(copy.load(index)["normals"], true.load(other)["normals"])
            for name in ("image", "semseg", "depth"):
                assert torch.equal(copy.load(index)[name], true.load(index)[name])


def test_a_shuffled_copys_checksums_are_those_of_its_files(script, tmp_path):
    source, target = tmp_path / "doll", tmp_path / "shuffled"
    before = write_dollhouse(source, size=64, train=2, val=1, progress=False)
    script.shuffle_labels(source, target, "normals")
    sums = (target / "SHA256SUMS").read_bytes()
    assert write_dollhouse(target, size=64, train=2, val=1, progress=False) != before  # nothing is rendered again
    assert (target / "SHA256SUMS").read_bytes() == sums


def test_exchanged_features_reach_segmentation_through_attention_across_tasks_alone(script):
    samples = {"image": torch.randn(3, 3, 64, 64), "semseg": torch.randint(15, (3, 64, 64))}
    pair = me.DOLLHOUSE.subset("semseg", "normals")
    found = {}
    for kind in ("self", "cross"):
        for name in ("own", "exchanged"):
            torch.manual_seed(0)
            model = me.build_model("tif_vit_nano", pair, (64, 64), diffusion="none", distillation=kind).eval()
            if name == "exchanged":
                script.exchanged(model, samples)  # leaves its hooks on the model
            with torch.no_grad():
                found[kind, name] = model(samples["image"]).predictions["semseg"]
    assert torch.equal(found["self", "own"], found["self", "exchanged"])
    assert not torch.allclose(found["cross", "own"], found["cross", "exchanged"])


def test_attention_distance_is_how_much_would_have_to_be_moved():
    apart = load("make_tif_distillation").apart
    attention = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])[None]  # (1, 2, 2, 2)
    assert apart(attention).tolist() == [[[0.0, 0.5], [0.5, 0.0]]]


@pytest.mark.parametrize("scale", [2, 3])
def test_the_recorded_attention_of_every_token_sums_to_one(inside, scale):
    rows = inside[f"attention_{scale}"].astype(float)
    tokens = 64 if scale == 2 else 16
    assert rows.shape == (4, 6, tokens, tokens)
    np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=5e-3)  # stored in half precision
    shares = inside[f"apart_{scale}"]
    assert shares.shape == (100, 6, 6)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert not np.diagonal(shares, axis1=1, axis2=2).any()
