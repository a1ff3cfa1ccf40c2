"""TaskExpert as a model: placing of the modules, published sizes, every switch trained, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mlore_edu.complexity import count
from mlore_edu.decoders.base import MapShape, resize
from mlore_edu.decoders.taskexpert import TaskExpertDecoder
from mlore_edu.errors import UserError
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TaskSet

TASKS = DOLLHOUSE.subset("semseg", "depth")


def test_the_modules_of_a_vit_are_spread_evenly_along_its_depth() -> None:
    wanted = {3: [4, 8, 12], 6: [2, 4, 6, 8, 10, 12], 12: list(range(1, 13)), 5: [2, 5, 7, 10, 12], 1: [12]}
    for modules, blocks in wanted.items():
        with torch.device("meta"):
            model = build_model("taskexpert_vit_small", NYUD_V2, (32, 32), modules=modules)
        assert [output + 1 for output in model.backbone.outputs] == blocks
        assert len(model.decoder.modules_in_order) == modules
    with torch.device("meta"):
        large = build_model("taskexpert_vit_large", NYUD_V2, (32, 32))
    assert [output + 1 for output in large.backbone.outputs] == list(range(2, 25, 2))


def test_a_callers_blocks_come_before_the_presets() -> None:
    model = build_model("taskexpert_vit_nano_12", DOLLHOUSE, (16, 16), blocks=(1, 3, 12))
    assert len(model.decoder.modules_in_order) == 3
    with pytest.raises(UserError, match="modules is 6, but there are 3 maps for them; leave it out"):
        build_model("taskexpert_vit_nano_12", DOLLHOUSE, (16, 16), blocks=(1, 3, 12), modules=6)


def test_there_are_as_many_experts_as_tasks() -> None:
    for tasks, expected in ((PASCAL_CONTEXT, 5), (NYUD_V2, 4)):
        model = build_model("taskexpert_vit_nano", tasks, (16, 16))
        assert {module.count for module in model.decoder.modules_in_order} == {expected}


PUBLISHED = [
    ("vit_small", 12, 55, 204),
    ("vit_base", 3, 174, 597),
    ("vit_base", 6, 234, 659),
    ("vit_base", 12, 347, 782),
    ("vit_large", 12, 420, 622),
]


@pytest.mark.parametrize(("backbone", "modules", "millions", "billions"), PUBLISHED)
def test_parameters_and_flops_are_the_published_ones_within_three_percent(
    backbone: str, modules: int, millions: float, billions: float
) -> None:
    with torch.device("meta"):
        model = build_model(f"taskexpert_{backbone}", PASCAL_CONTEXT, (512, 512), modules=modules)
    cost = count(model, (512, 512))
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=0.03)
    assert cost.macs / 1e9 == pytest.approx(billions, rel=0.03)


LADDER = [
    {"mixture": False, "memory": False},
    {"gate": "linear", "memory": False},
    {"memory": False},
    {},
    {"modules": 3},
    {"modules": 6},
    {"active": 1},
    {"active": 2},
    {"active": 2, "renormalise": True},
    {"gate": "pointwise", "momentum_start": 0.5},
]


@pytest.mark.parametrize("options", LADDER, ids=str)
def test_every_switch_trains_every_parameter_and_the_loss_falls(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tasks = DOLLHOUSE.subset("depth", "normals")
    model = build_model("taskexpert_vit_nano_12", tasks, (32, 32), channels=8, **options)
    images = resize(torch.randn(4, 3, 4, 4), (32, 32))
    labels = {"depth": images[:, :1].abs(), "normals": torch.nn.functional.normalize(images, dim=1)}
    criterion, optimizer, losses = MultiTaskLoss(tasks), torch.optim.Adam(model.parameters(), lr=3e-3), []
    for step in range(15):
        loss = criterion(model(images).predictions, labels)[0]
        optimizer.zero_grad()
        loss.backward()
        if not step:
            assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("backbone", ["hrnet18", "swin_tiny", "vit_small", "dinov3_small", "vit_nano"])
@pytest.mark.parametrize("tasks", [NYUD_V2, NYUD_V2.subset("depth")], ids=lambda t: f"{len(t)}_tasks")
def test_every_family_of_backbones_carries_it(backbone: str, tasks: TaskSet) -> None:
    with torch.device("meta"):
        model = build_model(f"taskexpert_{backbone}", tasks, (64, 96)).eval()
        output = model(torch.empty(1, 3, 64, 96))
    assert {name: p.shape[-2:] for name, p in output.predictions.items()} == dict.fromkeys(tasks.names, (64, 96))


def test_its_heads_have_relu() -> None:
    torch.manual_seed(0)
    model = build_model("taskexpert_vit_nano", NYUD_V2, (16, 16)).eval()
    head, features = model.heads["depth"], torch.randn(1, 32, 8, 8)
    torch.testing.assert_close(head(features), head.predict(head.norm(head.mix(features)).relu()))


def test_it_can_be_exported_with_any_batch() -> None:
    torch.manual_seed(0)
    model = build_model("taskexpert_vit_nano", TASKS, (16, 16)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        images = torch.randn(size, 3, 16, 16)
        torch.testing.assert_close(exported(images).predictions, model(images).predictions, rtol=1e-4, atol=1e-5)


def test_torch_can_synchronise_every_batchnorm() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(TaskExpertDecoder(TASKS, [MapShape(5, 3, 4)] * 4, 6))
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


# ---- refusals

REFUSALS: dict[str, dict[str, Any]] = {
    r"experts is 0; give a whole number of at least 1\.": {"experts": 0},
    r"expert_width is 2\.5; give a whole number of at least 1\.": {"expert_width": 2.5},
    r"gate_width is True; give a whole number of at least 1\.": {"gate_width": True},
    r"gate is 'conv'; choose one of context, pointwise, linear\.": {"gate": "conv"},
    r"mixture is 'no'; give True or False\.": {"mixture": "no"},
    r"memory is 1; give True or False\.": {"memory": 1},
    r"renormalise is None; give True or False\.": {"renormalise": None},
    r"active is 3; give a number from 1 to 2, the experts, or leave it out\.": {"active": 3},
    r"active is 0; give a number from 1 to 2": {"active": 0},
    r"Without a mixture each task has one expert and no memory; give memory=False, no experts\.": {"mixture": False},
    r"Without a mixture each task has one expert": {"mixture": False, "memory": False, "experts": 3},
    r"momentum_start is nan; give a number\.": {"momentum_start": float("nan")},
    r"momentum_start is '1'; give a number\.": {"momentum_start": "1"},
    r"plain_maps is 4; give a number from 0 to 3\.": {"plain_maps": 4},
    r"plain_maps is -1; give a number from 0 to 3\.": {"plain_maps": -1},
    r"modules is 3, but there are 4 maps for them; leave it out\.": {"modules": 3},
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_wrong_option_is_refused_in_one_sentence_that_ends_in_the_remedy(message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskExpertDecoder(TASKS, [MapShape(5, 3, 4)] * 4, 6, **REFUSALS[message])


@pytest.mark.parametrize("modules", [0, 13, "6", 2.0])
def test_a_vit_has_at_most_one_module_for_each_layer(modules: object) -> None:
    with pytest.raises(UserError, match=r"give a number from 1 to 12, the layers of vit_nano_12\."):
        build_model("taskexpert_vit_nano_12", DOLLHOUSE, (16, 16), modules=modules)
