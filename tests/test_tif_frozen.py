"""The script behind chapter 13's frozen networks does what it says, and its record is what it would make."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

import mlore_edu as me

RESULTS = Path(__file__).parents[1] / "book" / "results"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RESULTS))
    try:
        return importlib.import_module("make_tif_frozen")
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture
def batch(script):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 64, 64, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(16, 3, 64, 64, generator=generator), dim=1)
    classes = torch.randint(15, (16, 64, 64), generator=generator)
    return {"image": images, "semseg": classes, script.TASK: normals}


def shared_start(script):
    torch.manual_seed(7)
    model = me.build_model(
        "tif_vit_nano", script.TASKS, (64, 64), fused_scales=0, diffusion="none", high_width=script.NARROW
    )
    return script.shared_part(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("distillation", ["self", "cross"])
def test_training_leaves_the_shared_part_alone_and_crosses_only_by_attention(script, batch, distillation, monkeypatch):
    monkeypatch.setattr(script, "STEPS", 2)
    state, found = shared_start(script), []
    for weight in (10.0, 1000.0):
        arm = script.Arm(distillation, "true", weight)
        model = script.network(arm, 0, state)
        script.train(model, arm, 0, batch)
        now = script.shared_part(model.state_dict())
        assert set(now) == set(state)
        assert all(torch.equal(now[name], value) for name, value in state.items())
        with torch.no_grad():
            found.append(model.eval()(batch["image"][:2]).predictions["semseg"])
    assert torch.equal(*found) == (distillation == "self")


def test_a_network_starts_from_its_seed_and_shares_what_it_is_given(script):
    state = shared_start(script)
    one, same, other = (script.network(script.ARMS[2], seed, state).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["decoder.fuse.block.0.weight"], other["decoder.fuse.block.0.weight"])
    assert all(torch.equal(one[name], value) for name, value in state.items())


def test_the_record_has_every_arm_with_every_seed(script):
    record = json.loads((RESULTS / "tif_frozen.json").read_text())
    seeds = range(int(record["command"].split()[-1]))
    wanted = [{**vars(arm), "seed": seed} for seed in seeds for arm in script.ARMS]
    assert [{name: run[name] for name in wanted[0]} for run in record["runs"]] == wanted
    assert all(set(run["metrics"]) == {"semseg", script.TASK} for run in record["runs"])
    assert record["shared part"] == f"mlore-edu {script.ALONE.command(0)}"
