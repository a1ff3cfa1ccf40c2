"""TIF as a model: four scales of any backbone, published sizes, every switch trained, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlore_edu.complexity import count
from mlore_edu.decoders.base import MapShape, resize
from mlore_edu.decoders.pyramid import SimpleFeaturePyramid
from mlore_edu.decoders.tif import Affinity, TIFDecoder
from mlore_edu.errors import UserError
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TaskSet

TASKS = DOLLHOUSE.subset("semseg", "depth")
SCALES = [MapShape(5, 16, 24), MapShape(5, 8, 12), MapShape(5, 4, 6), MapShape(5, 2, 3)]

# ---- four scales


def test_a_vits_maps_become_scales_of_which_the_third_keeps_its_size() -> None:
    pyramid = SimpleFeaturePyramid([MapShape(5, 4, 6)] * 4)
    scales = pyramid([torch.randn(2, 5, 4, 6) for _ in range(4)])
    assert [tuple(scale.shape[1:]) for scale in scales] == [tuple(shape) for shape in pyramid.shapes]
    assert [tuple(scale.shape) for scale in scales] == [(2, *shape) for shape in SCALES]


def test_a_pyramids_maps_pass_and_so_does_the_stem_of_the_small_vit() -> None:
    maps = [torch.randn(1, *shape) for shape in SCALES]
    pyramid = SimpleFeaturePyramid(SCALES)
    assert all(scale is feature_map for scale, feature_map in zip(pyramid(maps), maps))
    assert list(pyramid.parameters()) == []
    nano = build_model("tif_vit_nano", TASKS, (32, 32)).decoder.pyramid
    assert [type(step) for step in nano.steps] == [nn.Identity, nn.Sequential, nn.Identity, nn.MaxPool2d]


def test_an_odd_map_loses_its_last_row_in_the_lowest_scale() -> None:
    pyramid = SimpleFeaturePyramid([MapShape(2, 5, 7)] * 4)
    scales = pyramid([torch.randn(1, 2, 5, 7) for _ in range(4)])
    assert [tuple(scale.shape[2:]) for scale in scales] == [(20, 28), (10, 14), (5, 7), (2, 3)]


@pytest.mark.parametrize("backbone", ["hrnet18", "swin_tiny", "vit_small", "dinov3_small", "vit_nano", "vit_nano_12"])
@pytest.mark.parametrize("tasks", [NYUD_V2, NYUD_V2.subset("depth")], ids=lambda t: f"{len(t)}_tasks")
def test_every_family_of_backbones_carries_it(backbone: str, tasks: TaskSet) -> None:
    with torch.device("meta"):
        model = build_model(f"tif_{backbone}", tasks, (64, 96)).eval()
        output = model(torch.empty(1, 3, 64, 96))
    assert {name: p.shape[-2:] for name, p in output.predictions.items()} == dict.fromkeys(tasks.names, (64, 96))


# ---- what it costs

PUBLISHED: list[tuple[str, dict[str, Any], float, float | None]] = [
    ("hrnet18", {}, 5.27, 16.6),
    ("swin_tiny", {}, 32.91, 76.33),
    ("swin_tiny", {"diffusion": "none"}, 31.78, 62.49),
    ("swin_tiny", {"diffusion": "none", "distillation": "cross"}, 31.56, 62.89),
    ("swin_large", {}, 204.19, 274.27),
    ("vit_base", {}, 124, None),
]


@pytest.mark.parametrize(("backbone", "options", "millions", "billions"), PUBLISHED)
def test_parameters_and_flops_are_the_published_ones_within_three_percent(
    backbone: str, options: dict[str, Any], millions: float, billions: float | None
) -> None:
    with torch.device("meta"):
        model = build_model(f"tif_{backbone}", NYUD_V2, (448, 576), **options)
    cost = count(model, (448, 576))
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=0.03)
    if billions is not None:
        assert cost.macs / 1e9 == pytest.approx(billions, rel=0.03)


def test_self_distillation_has_the_parameters_more_that_table_8_prints() -> None:
    def parameters(distillation: str) -> int:
        with torch.device("meta"):
            model = build_model("tif_swin_tiny", NYUD_V2, (448, 576), diffusion="none", distillation=distillation)
        return sum(parameter.numel() for parameter in model.parameters())

    more = parameters("self") - parameters("cross")
    assert more == (4 - 1) * 96**2 * 4 * 2  # N - 1 maps more of C × C, for four tasks and two scales
    assert round(more / 1e6, 2) == round(31.78 - 31.56, 2)


def test_the_products_of_an_affinity_are_counted_as_attention() -> None:
    with torch.device("meta"):
        model = build_model("tif_vit_nano", TASKS, (64, 64), channels=32, high_width=16, low_width=32)
    cost = count(model, (64, 64))
    with torch.device("meta"):
        plain = build_model("tif_vit_nano", TASKS, (64, 64), distilled_scales=0, diffusion="none")
    of_backbone = count(plain, (64, 64))
    own = 2 * (64**2 + 16**2) * (32 + 32)  # tasks, tokens², C of keys and of values
    borrowed = 2 * 2 * 64**2 * (32 + 32 + 16)  # two high scales; queries of both low ones, values of the high one
    attention = cost.macs - cost.macs_without_attention
    assert attention - (of_backbone.macs - of_backbone.macs_without_attention) == own + borrowed


# ---- training

SWITCHES: list[dict[str, Any]] = [
    {},
    {"fused_scales": 0, "distilled_scales": 0, "diffusion": "none"},
    {"distilled_scales": 0, "diffusion": "none"},
    {"diffusion": "none"},
    {"diffusion": "none", "distillation": "cross"},
    {"distilled_scales": 1},
    {"distilled_scales": 4, "diffusion": "none"},
    {"fused_scales": 2},
    {"fused_scales": 0},
    {"fusion_norm": True},
    {"key_maps": 1},
    {"query": "first"},
    {"scaled": False},
    {"diffusion": "scatter"},
]


@pytest.mark.parametrize("options", SWITCHES, ids=str)
def test_every_switch_trains_every_parameter_and_the_loss_falls(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tasks = DOLLHOUSE.subset("depth", "normals")
    model = build_model("tif_vit_nano", tasks, (32, 32), channels=8, high_width=8, low_width=8, **options)
    images = resize(torch.randn(4, 3, 4, 4), (32, 32))
    labels = {"depth": images[:, :1].abs(), "normals": F.normalize(images, dim=1)}
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


def test_it_can_be_exported_with_any_batch() -> None:
    torch.manual_seed(0)
    model = build_model("tif_vit_nano", TASKS, (32, 32)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        images = torch.randn(size, 3, 32, 32)
        torch.testing.assert_close(exported(images).predictions, model(images).predictions, rtol=1e-4, atol=1e-5)


def test_torch_can_synchronise_every_batchnorm() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(TIFDecoder(TASKS, SCALES, 6))
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4 + 4 + 2 + 1  # one a scale in SAFF and in the way to the tasks, two in LTHD, the last fusion
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def test_under_bfloat16_the_affinities_of_a_real_size_stay_finite_and_near() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 1, 2, 96, 28, 36)
    exact = Affinity(queries / 96**0.5, keys).gather(values)
    low = Affinity((queries / 96**0.5).bfloat16(), keys.bfloat16()).gather(values.bfloat16())
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()


# ---- refusals

REFUSALS: dict[str, dict[str, Any]] = {
    r"high_width is 0; give a whole number of at least 1\.": {"high_width": 0},
    r"low_width is 2\.5; give a whole number of at least 1\.": {"low_width": 2.5},
    r"key_maps is True; give a whole number of at least 1\.": {"key_maps": True},
    r"ffn_ratio is '2'; give a whole number of at least 1\.": {"ffn_ratio": "2"},
    r"fused_scales is 5; give a number of scales from 0 to 4\.": {"fused_scales": 5},
    r"distilled_scales is -1; give a number of scales from 0 to 4\.": {"distilled_scales": -1},
    r"diffusion is True; choose one of gather, scatter, none\.": {"diffusion": True},
    r"distillation is 'both'; choose one of self, cross\.": {"distillation": "both"},
    r"query is 0; choose one of own, first\.": {"query": 0},
    r"scaled is 1; give True or False\.": {"scaled": 1},
    r"fusion_norm is 'yes'; give True or False\.": {"fusion_norm": "yes"},
    r"With distilled_scales=0 there is nothing to diffuse; give diffusion='none' too\.": {"distilled_scales": 0},
    r"With distilled_scales=4 there is nothing to diffuse; give diffusion='none' too\.": {"distilled_scales": 4},
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_wrong_option_is_refused_in_one_sentence_that_ends_in_the_remedy(message: str) -> None:
    with pytest.raises(UserError, match=message):
        TIFDecoder(TASKS, SCALES, 6, **REFUSALS[message])


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (SCALES[:3], r"TIF needs four maps, and the backbone gives 3; choose four blocks\."),
        ([MapShape(5, 1, 1)] * 4, r"A map of 1 × 1 cannot be halved for the last scale; use larger images\."),
        (
            [MapShape(5, 3, 3), *SCALES[1:]],
            r"TIF cannot make scale 0 of a map of 3 × 3; take another backbone\.",
        ),
    ],
)
def test_maps_that_are_no_four_scales_are_refused(maps: list[MapShape], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TIFDecoder(TASKS, maps, 6)


def test_a_models_name_and_a_recipes_name_lead_to_it() -> None:
    model = build_model("tif_vit_nano", PASCAL_CONTEXT, (32, 32), blocks=(1, 2, 3))
    assert isinstance(model.decoder, TIFDecoder)
    with pytest.raises(UserError, match="TIF needs four maps, and the backbone gives 3"):
        build_model("tif_vit_nano", PASCAL_CONTEXT, (32, 32), blocks=(1, 3))
