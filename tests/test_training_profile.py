"""The step that chapter 16 takes apart is the ordinary step, and its record is what the script would find."""

import copy
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
        return importlib.import_module("make_training_profile")
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture(scope="module")
def record():
    return json.loads((RESULTS / "training_profile.json").read_text())


@pytest.mark.parametrize("decoder", ["baseline", "mlore", "taskexpert"])
def test_a_step_taken_apart_learns_what_a_whole_one_learns(script, decoder):
    torch.manual_seed(0)
    tasks, loss = me.DOLLHOUSE, me.MultiTaskLoss(me.DOLLHOUSE)
    apart = me.build_model(f"{decoder}_vit_nano", tasks, (32, 32)).train()
    whole = copy.deepcopy(apart)
    images = torch.randn(2, 3, 32, 32)
    batch = {"image": images, **{task.name: torch.ones(2, task.channels, 32, 32) for task in tasks}}
    for name in ("semseg", "human_parts", "saliency"):
        batch[name] = torch.ones(2, 32, 32, dtype=torch.long)
    torch.manual_seed(1)  # the routers' noise
    times = script.one_step(apart, loss, torch.optim.SGD(apart.parameters(), 0.1), batch)
    assert min(times.values()) >= 0
    torch.manual_seed(1)
    output = whole(images)
    (loss(output.predictions, batch)[0] + output.balance_loss).backward()
    torch.nn.utils.clip_grad_norm_(whole.parameters(), 10.0)
    torch.optim.SGD(whole.parameters(), 0.1).step()
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(apart.state_dict()[name], weight, msg=name)


def test_views_ask_a_device_for_nothing(script):
    with script.Calls() as calls:
        (torch.ones(2, 3).t().reshape(6)[1:].view(5) + 1).sum()
    assert calls.count == 4  # ones, the copy that reshape makes, +, sum


def test_the_recorded_shares_are_shares(record):
    assert sum(record["step"]["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert set(record["budgets"]) <= set(record["models"])


@pytest.mark.slow
def test_the_recorded_counts_are_todays(script, record):
    name = "pascal_baseline_vit_small"
    assert script.macs_by_part(name) == record["models"][name]["macs"]
    assert script.calls_of_a_step(name) == record["models"][name]["calls"]
