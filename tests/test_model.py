"""The whole model: shapes, parts against a reading step by step, export, and a user's mistakes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlore_edu.backbones import BACKBONES
from mlore_edu.decoders.base import resize
from mlore_edu.errors import UserError
from mlore_edu.heads import PredictionHead
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.model import DECODER_WIDTHS, MultiTaskModel, build_model, list_models
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TaskSet


def nano(tasks: TaskSet = DOLLHOUSE, size: tuple[int, int] = (32, 48), **options: object) -> MultiTaskModel:
    torch.manual_seed(0)
    return build_model("baseline_vit_nano", tasks, img_size=size, **options)


@pytest.mark.parametrize("tasks", [DOLLHOUSE, PASCAL_CONTEXT, NYUD_V2, NYUD_V2.subset("depth")], ids=lambda t: t.name)
@pytest.mark.parametrize(("batch", "size"), [(1, (64, 64)), (3, (40, 24))])
def test_every_task_is_predicted_at_the_images_size(tasks: TaskSet, batch: int, size: tuple[int, int]) -> None:
    output = nano(tasks, size).eval()(torch.randn(batch, 3, *size))
    assert {name: tuple(p.shape) for name, p in output.predictions.items()} == {
        task.name: (batch, task.channels, *size) for task in tasks
    }
    assert output.balance_loss.item() == 0
    assert output.routing == {}


@pytest.mark.parametrize("backbone", ["vit_small", "swin_tiny", "hrnet18", "dinov2_large", "dinov3_small"])
def test_every_family_of_backbones_carries_the_baseline(backbone: str) -> None:
    with torch.device("meta"):
        model = build_model(f"baseline_{backbone}", NYUD_V2, img_size=(448, 576))
        output = model(torch.empty(1, 3, 448, 576))
    assert model.decoder.channels == DECODER_WIDTHS[backbone]
    assert output.predictions["normals"].shape == (1, 3, 448, 576)


def test_the_vit_base_baseline_has_the_size_of_mlores_table_2() -> None:
    with torch.device("meta"):
        model = build_model("baseline_vit_base", PASCAL_CONTEXT, img_size=(512, 512))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(114.7, abs=0.1)


def test_the_model_is_backbone_then_decoder_then_head_then_a_resize() -> None:
    model, images = nano().double().eval(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    features = model.decoder(model.backbone(images)).features
    for name, prediction in model(images).predictions.items():
        coarse = model.heads[name](features[name])
        expected = torch.nn.functional.interpolate(coarse, (32, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(prediction, expected)


def test_a_head_upsamples_convolves_normalises_and_predicts() -> None:
    torch.manual_seed(0)
    head = PredictionHead(5, 3, (8, 12)).double().eval()
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    features = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    large = torch.nn.functional.interpolate(features, scale_factor=4, mode="bilinear", align_corners=False)
    padded = torch.nn.functional.pad(large, (1, 1, 1, 1))
    hidden = torch.zeros(2, 5, 8, 12, dtype=torch.float64) + head.mix.bias[:, None, None]
    for dy in range(3):
        for dx in range(3):
            window = padded[:, :, dy : dy + 8, dx : dx + 12]
            hidden += torch.einsum("oc,bchw->bohw", head.mix.weight[:, :, dy, dx], window)
    mean, variance = head.norm.running_mean[:, None, None], head.norm.running_var[:, None, None]
    hidden = (hidden - mean) / (variance + 1e-5).sqrt()
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = torch.einsum("oc,bchw->bohw", head.predict.weight[:, :, 0, 0], hidden)
    torch.testing.assert_close(head(features), expected + head.predict.bias[:, None, None])


def test_heads_start_as_the_released_model_does() -> None:
    torch.manual_seed(0)
    head = PredictionHead(128, 40, (8, 8))
    assert head.mix.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.predict.bias is not None
    assert head.predict.bias.std().item() == pytest.approx(0.02, rel=0.3)


def test_the_heads_stride_is_an_option() -> None:
    fine, coarse = nano(head_stride=1), nano(head_stride=8)
    assert fine.heads["depth"].size == (32, 48)
    assert coarse.heads["depth"].size == (4, 6)
    with torch.device("meta"):
        assert build_model("baseline_vit_small", DOLLHOUSE, img_size=(64, 96)).heads["edge"].size == (16, 24)


def test_decoder_options_are_handed_on() -> None:
    model = nano(channels=7, shared=True, drop_path_rate=0.1)
    assert model.decoder.channels == 7
    assert model.decoder.copies == 1
    assert model.backbone.blocks[-1].drop_path1.drop_prob == 0.1
    assert model(torch.randn(2, 3, 32, 48)).predictions["edge"].shape == (2, 1, 32, 48)


def test_a_step_of_training_lowers_the_loss_and_moves_every_parameter() -> None:
    model = nano(size=(32, 32)).train()
    images = resize(torch.randn(4, 3, 4, 4), (32, 32))
    targets = {
        **{task.name: torch.randint(task.channels, (4, 32, 32)) for task in DOLLHOUSE if task.channels > 3},
        "saliency": (images[:, 0] > 0).long(),
        "normals": torch.nn.functional.normalize(images, dim=1),
        "depth": images[:, :1].abs() + 1,
        "edge": (images[:, :1] > 1).float(),
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss, optimizer = MultiTaskLoss(DOLLHOUSE), torch.optim.Adam(model.parameters(), lr=4e-3)
    totals = []
    for _ in range(12):
        total, _ = loss(model(images).predictions, targets)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_batch_entries_do_not_see_each_other_in_evaluation() -> None:
    model, images = nano().double().eval(), torch.randn(3, 3, 32, 48, dtype=torch.float64)
    together = model(images).predictions
    for index in range(3):
        alone = model(images[index : index + 1]).predictions
        for name in together:
            torch.testing.assert_close(together[name][index], alone[name][0])


def test_channels_last_gives_the_same_predictions() -> None:
    model, images = nano().eval(), torch.randn(2, 3, 32, 48)
    plain = model(images).predictions
    model = model.to(memory_format=torch.channels_last)
    for name, prediction in model(images.contiguous(memory_format=torch.channels_last)).predictions.items():
        torch.testing.assert_close(prediction, plain[name], rtol=1e-4, atol=1e-4)


def test_predictions_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = nano()(torch.randn(2, 3, 32, 48))
    assert {p.dtype for p in output.predictions.values()} == {torch.float32}


@pytest.mark.slow
def test_the_model_exports_with_a_free_batch_size() -> None:
    model = nano().eval()
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=16)}}
    exported = torch.export.export(model, (torch.randn(2, 3, 32, 48),), dynamic_shapes=batch).module()
    images = torch.randn(5, 3, 32, 48)
    for name, prediction in model(images).predictions.items():
        torch.testing.assert_close(exported(images).predictions[name], prediction)


@pytest.mark.slow
def test_the_model_compiles_without_a_graph_break() -> None:
    model, images = nano().eval(), torch.randn(2, 3, 32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for name, prediction in model(images).predictions.items():
        torch.testing.assert_close(compiled(images).predictions[name], prediction)


def test_weights_survive_a_round_trip_and_the_same_seed_builds_the_same_model() -> None:
    one, other = nano(), nano()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    torch.manual_seed(1)
    fresh = build_model("baseline_vit_nano", DOLLHOUSE, img_size=(32, 48))
    fresh.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(fresh.eval()(images).predictions["depth"], one.eval()(images).predictions["depth"])


def test_every_listed_model_is_a_decoder_on_a_backbone() -> None:
    assert "baseline_vit_nano" in list_models()
    assert "baseline_dinov3_large" in list_models()
    assert set(DECODER_WIDTHS) == set(BACKBONES)


def test_what_a_user_can_get_wrong_is_said_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"close names are .*baseline_vit_nano"):
        build_model("basline_vit_nano", DOLLHOUSE)
    with pytest.raises(UserError, match="no model 'xyz'"):
        build_model("xyz", DOLLHOUSE)
    with pytest.raises(UserError, match="no option 'width'; its options are channels, shared"):
        build_model("baseline_vit_nano", DOLLHOUSE, img_size=(32, 32), width=3)
    with pytest.raises(UserError, match=r"built for images of \(32, 48\), not \(48, 32\)"):
        nano()(torch.randn(1, 3, 48, 32))
    with pytest.raises(UserError, match="multiples of 8"):
        nano(size=(30, 30))


def test_the_heads_of_a_model_are_ordinary_modules() -> None:
    assert isinstance(nano().heads, nn.ModuleDict)
    assert tuple(nano().heads) == DOLLHOUSE.names
