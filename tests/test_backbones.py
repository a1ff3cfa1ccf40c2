"""Every backbone gives the maps it promises, loads weights of other sizes, and says what is wrong with a bad file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import mlore_edu.backbones as backbones
from mlore_edu.backbones import BACKBONES, NanoViT, TimmBackbone, build_backbone, read_state_dict
from mlore_edu.errors import UserError

WIDTHS = {"small": 384, "base": 768, "large": 1024}
PYRAMIDS = {"swin_tiny": 27.52, "swin_small": 48.84, "swin_base": 86.88, "swin_large": 195.20, "hrnet18": 3.861}
"""Millions of parameters of the published models without their classifiers."""


def vit_parameters(width: int, depth: int, tokens: int, patch: int = 16) -> int:
    """Parameters of a ViT without class token, by hand."""
    patches = 3 * patch**2 * width + width
    block = 4 * (width**2 + width) + 2 * 4 * width**2 + 5 * width + 2 * 2 * width  # attention, MLP, two LayerNorms
    return patches + tokens * width + depth * block + 2 * width


def expected_channels(name: str) -> tuple[int, ...]:
    family, _, size = name.partition("_")
    if family in ("vit", "dinov2", "dinov3"):
        return (WIDTHS[size],) * 4
    first = {"swin_tiny": 96, "swin_small": 96, "swin_base": 128, "swin_large": 192, "hrnet18": 18}[name]
    return tuple(first * 2**level for level in range(4))


def marked_slow_if_large(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow) if name.endswith(("base", "large")) else name


@pytest.mark.parametrize("name", [marked_slow_if_large(name) for name in BACKBONES if "nano" not in name])
def test_every_backbone_gives_four_maps_of_the_promised_shapes(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, (64, 96), drop_path_rate=0.1)
        maps = backbone(torch.empty(2, 3, 64, 96))
    strides = (16,) * 4 if len(set(expected_channels(name))) == 1 else (4, 8, 16, 32)
    assert backbone.channels == expected_channels(name)
    assert backbone.strides == strides
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(expected_channels(name), strides, strict=True)
    ]


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (40, 24), (128, 160)])
def test_the_nano_backbone_gives_its_stem_and_three_token_maps(size: tuple[int, int]) -> None:
    backbone = build_backbone("vit_nano", size)
    shapes = [tuple(m.shape) for m in backbone(torch.randn(2, 3, *size))]
    assert shapes == [(2, c, size[0] // s, size[1] // s) for c, s in zip(backbone.channels, (2, 8, 8, 8), strict=True)]


def parameters_of(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_backbone(name, (512, 512)).parameters())


@pytest.mark.parametrize(("name", "millions"), PYRAMIDS.items())
def test_parameter_counts_of_the_pyramids_are_the_published_ones(name: str, millions: float) -> None:
    assert parameters_of(name) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("size", "width", "depth"), [("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)])
def test_parameter_counts_of_the_vits_follow_the_formula(size: str, width: int, depth: int) -> None:
    assert parameters_of(f"vit_{size}") == vit_parameters(width, depth, 32 * 32)
    more = width + width + 2 * depth * width  # class token, its position, and the scales of DINOv2's layers
    assert parameters_of(f"dinov2_{size}") == vit_parameters(width, depth, 32 * 32, patch=14) + more


@pytest.mark.parametrize("name", ["vit_nano", "vit_nano_12", "dinov2_small", "dinov3_small", "swin_tiny", "hrnet18"])
def test_every_parameter_takes_part_so_that_several_processes_can_train(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, (64, 64))
    sum(m.square().sum() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


@pytest.fixture(scope="module")
def vit() -> TimmBackbone:
    torch.manual_seed(0)
    backbone = build_backbone("vit_small", (32, 48))
    assert isinstance(backbone, TimmBackbone)
    return backbone.eval()


def test_a_vit_gives_its_tokens_after_blocks_3_6_9_and_12_the_last_normalised(vit: TimmBackbone) -> None:
    images, net = torch.randn(2, 3, 32, 48), vit.net
    tokens = net.patch_embed(images) + net.pos_embed
    for index, block in enumerate(net.blocks):
        tokens = block(tokens)
        if index + 1 in (3, 6, 9, 12):
            last = net.norm(tokens) if index + 1 == 12 else tokens
            expected = torch.stack([last[:, row * 3 : row * 3 + 3] for row in range(2)], dim=1).movedim(-1, 1)
            torch.testing.assert_close(vit(images)[index // 3], expected)


def test_a_vit_has_no_class_token_and_one_position_per_token(vit: TimmBackbone) -> None:
    assert vit.net.cls_token is None
    assert vit.net.pos_embed.shape == (1, 2 * 3, 384)


def test_a_large_vit_gives_features_after_blocks_6_12_18_and_24() -> None:
    with torch.device("meta"):
        backbone = build_backbone("vit_large", (32, 32))
    assert isinstance(backbone, TimmBackbone)
    assert backbone.outputs == [5, 11, 17, 23]


def test_other_blocks_can_be_chosen() -> None:
    torch.manual_seed(0)
    every = build_backbone("vit_small", (32, 32), blocks=range(1, 13)).eval()
    second = build_backbone("vit_small", (32, 32), blocks=range(2, 13, 2)).eval()
    second.load_state_dict(every.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert second.channels == (384,) * 6
    for one, other in zip(every(images)[1::2], second(images), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wrong", [(), (3, 6), (0, 12), (6, 3, 12), (6, 6, 12), (12, 24)])
def test_blocks_that_cannot_be_are_refused(wrong: tuple[int, ...]) -> None:
    with torch.device("meta"), pytest.raises(UserError, match="the last of them 12"):
        build_backbone("vit_small", (32, 32), blocks=wrong)


def test_a_nano_vit_keeps_its_stem_before_the_chosen_blocks() -> None:
    torch.manual_seed(0)
    every = build_backbone("vit_nano_12", (16, 24), blocks=range(1, 13)).eval()
    thirds = build_backbone("vit_nano_12", (16, 24)).eval()
    thirds.load_state_dict(every.state_dict())
    images = torch.randn(2, 3, 16, 24)
    assert (len(every.channels), every.channels[:2], every.strides[:2]) == (13, (32, 96), (2, 8))
    maps = every(images)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 16 // s, 24 // s) for c, s in zip(every.channels, every.strides, strict=True)
    ]
    for index, map_ in zip((0, 4, 8, 12), thirds(images), strict=True):
        assert torch.equal(map_, maps[index])


def test_a_pyramid_has_no_choice_of_blocks() -> None:
    with torch.device("meta"), pytest.raises(UserError, match="leave out blocks"):
        build_backbone("swin_tiny", (32, 32), blocks=(2, 12))


def test_dinov2_sees_the_image_at_fourteen_sixteenths_so_that_tokens_cover_sixteen_pixels() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("dinov2_small", (64, 96)).eval()
    assert isinstance(backbone, TimmBackbone)
    images = torch.randn(1, 3, 64, 96)
    small = torch.nn.functional.interpolate(images, (56, 84), mode="bilinear", align_corners=False)
    tokens = backbone.net.forward_features(small)[:, 1:]  # without the class token
    torch.testing.assert_close(backbone(images)[3].flatten(2).transpose(1, 2), tokens)


def test_swin_gives_timms_four_stages_the_last_normalised() -> None:
    torch.manual_seed(0)
    backbone, reference = (
        build_backbone("swin_tiny", (64, 96)).eval(),
        timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), num_classes=0),
    )
    reference.load_state_dict(backbone.net.state_dict())
    images = torch.randn(1, 3, 64, 96)
    last, stages = reference.eval().forward_intermediates(images, output_fmt="NCHW")
    for ours, theirs in zip(backbone(images), [*stages[:3], last.permute(0, 3, 1, 2)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_drop_path_grows_to_the_given_rate_at_the_last_block() -> None:
    with torch.device("meta"):
        rates = [block.drop_path1 for block in build_backbone("vit_small", (32, 32), drop_path_rate=0.15).net.blocks]
    assert isinstance(rates[0], nn.Identity)
    assert rates[-1].drop_prob == pytest.approx(0.15)
    assert build_backbone("vit_nano", (32, 32), drop_path_rate=0.2).blocks[-1].drop_path1.drop_prob == 0.2


def test_recomputing_activations_changes_no_gradient(vit: TimmBackbone) -> None:
    images = torch.randn(1, 3, 32, 48)
    weight = vit.net.patch_embed.proj.weight
    (plain,) = torch.autograd.grad(sum(m.square().sum() for m in vit(images)), weight)
    vit.net.set_grad_checkpointing()
    (recomputed,) = torch.autograd.grad(sum(m.square().sum() for m in vit(images)), weight)
    vit.net.set_grad_checkpointing(False)
    torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_small", (500, 512), "multiples of 16, not (500, 512); use (496, 512)"),
        ("dinov2_small", (448, 570), "multiples of 16, not (448, 570); use (448, 576)"),
        ("swin_tiny", (48, 64), "multiples of 32, not (48, 64); use (64, 64)"),
        ("hrnet18", (425, 560), "multiples of 32, not (425, 560); use (416, 576)"),
        ("vit_nano", (0, 64), "multiples of 8, not (0, 64); use (8, 64)"),
    ],
)
def test_an_image_size_that_does_not_divide_is_refused_with_one_that_does(
    name: str, size: tuple[int, int], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_backbone(name, size)
    assert words in str(caught.value)


def test_an_unknown_backbone_is_answered_with_close_names() -> None:
    with pytest.raises(UserError, match="vit_base"):
        build_backbone("vit_bse", (64, 64))


# weights


def released(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """The same weights as timm publishes them: class token, classifier, position rows of ``grid`` after one more."""
    rows = torch.randn(1, 1 + grid[0] * grid[1], state["pos_embed"].shape[2])
    more = {"cls_token": torch.randn(1, 1, 384), "head.weight": torch.randn(10, 384), "head.bias": torch.randn(10)}
    return state | more | {"pos_embed": rows}


def test_weights_with_a_class_token_load_and_lose_its_row(vit: TimmBackbone, tmp_path: Path) -> None:
    state = released(vit.net.state_dict(), (2, 3))
    save_file(state, tmp_path / "vit.safetensors")
    loaded = build_backbone("vit_small", (32, 48), weights=tmp_path / "vit.safetensors")
    assert torch.equal(loaded.net.pos_embed, state["pos_embed"][:, 1:])
    assert torch.equal(loaded.net.blocks[7].attn.qkv.weight, vit.net.blocks[7].attn.qkv.weight)


def test_a_position_embedding_is_resized_as_a_picture_is(vit: TimmBackbone, tmp_path: Path) -> None:
    state = released(vit.net.state_dict(), (4, 4))
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "vit.pth")
    loaded = build_backbone("vit_small", (128, 96), weights=tmp_path / "vit.pth")
    picture = state["pos_embed"][:, 1:].view(1, 4, 4, 384).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(picture, (8, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(loaded.net.pos_embed, expected.flatten(2).transpose(1, 2))


def test_the_nano_model_loads_at_another_size_too(tmp_path: Path) -> None:
    small = build_backbone("vit_nano", (32, 32))
    torch.save(small.state_dict(), tmp_path / "nano.pth")
    large = build_backbone("vit_nano", (64, 96), weights=tmp_path / "nano.pth")
    assert isinstance(large, NanoViT)
    assert large.pos_embed.shape == (1, 8 * 12, small.channels[3])
    assert torch.equal(large.blocks[0].attn.qkv.weight, small.blocks[0].attn.qkv.weight)


def test_dinov2_keeps_its_class_token_and_the_row_that_belongs_to_it(tmp_path: Path) -> None:
    source = build_backbone("dinov2_small", (64, 64)).net.state_dict()
    torch.save(source, tmp_path / "dino.pth")
    loaded = build_backbone("dinov2_small", (32, 64), weights=tmp_path / "dino.pth")
    assert loaded.net.pos_embed.shape == (1, 1 + 2 * 4, 384)
    assert torch.equal(loaded.net.pos_embed[:, 0], source["pos_embed"][:, 0])


def test_classifiers_of_published_pyramids_are_passed_over(tmp_path: Path) -> None:
    torch.save(timm.create_model("hrnet_w18_small_v2").state_dict(), tmp_path / "hrnet.pth")
    build_backbone("hrnet18", (64, 64), weights=tmp_path / "hrnet.pth")


def test_weights_that_do_not_fit_are_described_in_words(vit: TimmBackbone, tmp_path: Path) -> None:
    state = dict(vit.net.state_dict())
    state["stranger"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(7)
    del state["norm.bias"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError) as caught:
        build_backbone("vit_small", (32, 48), weights=tmp_path / "bad.pth")
    for words in ("missing: norm.bias", "not expected: stranger", "of another shape: norm.weight", "bad.pth"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match=r"and .* more"):
        build_backbone("hrnet18", (64, 64), weights=tmp_path / "bad.pth")


def test_a_position_embedding_of_no_square_grid_is_refused(vit: TimmBackbone, tmp_path: Path) -> None:
    torch.save(vit.net.state_dict() | {"pos_embed": torch.zeros(1, 23, 384)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="23 rows"):
        build_backbone("vit_small", (32, 48), weights=tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=200))
def test_a_damaged_file_is_refused_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|no state dict"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"weight": torch.randn(64, 64)}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="is damaged"):
        read_state_dict(path)


def test_a_missing_file_and_a_file_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        read_state_dict(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no state dict"):
        read_state_dict(tmp_path / "other.pth")


def test_without_a_network_pretrained_weights_point_to_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, pretrained: bool = False, **kwargs: object) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host\nsecond line")
        return original(*args, **kwargs)

    original = backbones.timm.create_model
    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(UserError, match=r"no route to host\).*--weights FILE"):
        build_backbone("hrnet18", (64, 64), pretrained=True)


def test_pretrained_weights_go_through_the_same_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    published = backbones.timm.create_model("vit_small_patch16_384", img_size=64)

    def online(*args: object, pretrained: bool = False, **kwargs: object) -> nn.Module:
        return published if pretrained else original(*args, **kwargs)

    original = backbones.timm.create_model
    monkeypatch.setattr(backbones.timm, "create_model", online)
    backbone = build_backbone("vit_small", (64, 64), pretrained=True)
    assert torch.equal(backbone.net.pos_embed, published.pos_embed[:, 1:])


def test_the_nano_model_has_no_pretrained_weights() -> None:
    with pytest.raises(UserError, match="leave out pretrained"):
        build_backbone("vit_nano", (64, 64), pretrained=True)
