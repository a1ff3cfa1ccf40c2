"""Parameters and multiply-accumulates against formulas worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.complexity import count
from mlore_edu.model import MultiTaskModel, build_model
from mlore_edu.tasks import DOLLHOUSE, PASCAL_CONTEXT


@pytest.fixture(scope="module")
def table_2() -> MultiTaskModel:
    with torch.device("meta"):
        return build_model("baseline_vit_base", PASCAL_CONTEXT, img_size=(512, 512))


def test_a_convolution_costs_its_kernel_at_every_output_pixel() -> None:
    for stride, groups in ((1, 1), (2, 1), (1, 3)):
        conv = nn.Conv2d(3, 12, 3, stride=stride, padding=1, groups=groups)
        cost = count(conv, (8, 10))
        assert cost.macs == 12 * (3 // groups) * 9 * (8 // stride) * (10 // stride)
        assert cost.parameters == 12 * (3 // groups) * 9 + 12
        assert cost.macs_without_attention == cost.macs


def test_a_linear_map_costs_its_matrix_at_every_row() -> None:
    assert count(nn.Linear(10, 4), (6, 10)).macs == 3 * 6 * 10 * 4


class Products(nn.Module):
    """Every way in which this library multiplies matrices, 3 × 6 by 6 × 4 or by a vector of 6, on its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.right, self.vector = name, nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

    def forward(self, image: Tensor) -> Tensor:
        left = image[0, :, 0, :6]  # (3, 6)
        return {
            "matrix": lambda: left @ self.right,
            "vector": lambda: left @ self.vector,
            "batched vector": lambda: left.expand(5, 3, 6) @ self.vector,
            "column": lambda: (left @ self.vector[:, None])[:, 0],
            "einsum": lambda: torch.einsum("ab,bc->ac", left, self.right),
            "einsum over a batch": lambda: torch.einsum("ab,ab->a", left, left),
            "product of entries": lambda: torch.einsum("ab,ab->ab", left, left),
        }[self.name]()


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("matrix", 3 * 6 * 4),
        ("vector", 3 * 6),
        ("batched vector", 5 * 3 * 6),
        ("column", 3 * 6),
        ("einsum", 3 * 6 * 4),
        ("einsum over a batch", 3 * 6),
        ("product of entries", 0),  # nothing is summed: such products are left out, as activations are
    ],
)
def test_a_product_costs_the_same_however_it_is_written(name: str, macs: int) -> None:
    assert count(Products(name), (8, 6)).macs == macs


class SelfAttention(nn.Module):
    """Attention of a row's pixels to each other, the rows as heads; then a matrix product that is no attention."""

    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(query=x, key=x, value=x)  # (1, 3, L, E)
        return attended @ attended.transpose(-1, -2)


def test_attention_costs_two_products_and_can_be_left_out_without_leaving_out_other_products() -> None:
    cost = count(SelfAttention(), (7, 5))
    assert cost.macs_without_attention == 3 * 7 * 7 * 5
    assert cost.macs - cost.macs_without_attention == 3 * 2 * 7 * 7 * 5


def test_the_vit_base_baseline_costs_what_mlores_table_2_says(table_2: MultiTaskModel) -> None:
    cost = count(table_2, (512, 512))
    assert cost.parameters / 1e6 == pytest.approx(114.7, abs=0.1)
    assert cost.in_units("2**30") == pytest.approx(390.5, abs=0.1)
    assert cost.in_units("1e9") == pytest.approx(390.52 * 2**30 / 1e9, abs=0.1)


def test_the_attention_of_vit_base_at_512_is_twelve_times_two_products(table_2: MultiTaskModel) -> None:
    cost = count(table_2, (512, 512))
    tokens, width = (512 // 16) ** 2, 768
    assert cost.macs - cost.macs_without_attention == 12 * 2 * tokens**2 * width
    assert cost.in_units("1e9") - cost.in_units("1e9", attention=False) == pytest.approx(19.3, abs=0.05)


def test_every_part_of_the_vit_base_baseline_follows_its_formula(table_2: MultiTaskModel) -> None:
    parts = count(table_2, (512, 512)).by_module
    tokens, width, channels, tasks = 32 * 32, 768, 640, 5
    predictions = 21 + 7 + 2 + 3 + 1
    blocks = 12 * (12 * width**2 * tokens + 2 * tokens**2 * width)
    assert parts["backbone"].macs == blocks + 3 * 16**2 * width * tokens
    assert parts["decoder"].macs == 4 * tasks * width * channels * tokens
    assert parts["decoder"].parameters == 4 * tasks * (width + 1) * channels
    assert parts["heads"].macs == 16 * tokens * (tasks * 9 * channels**2 + predictions * channels)


def test_parts_add_up_to_the_whole_and_lists_to_their_members(table_2: MultiTaskModel) -> None:
    cost = count(table_2, (512, 512))
    for attribute in ("parameters", "macs"):
        parts = {name: getattr(part, attribute) for name, part in cost.by_module.items()}
        assert sum(value for name, value in parts.items() if "." not in name) == getattr(cost, attribute)
        heads = [value for name, value in parts.items() if name.startswith("heads.") and name.count(".") == 1]
        assert len(heads) == 5
        assert sum(heads) == parts["heads"]


def test_window_attention_is_counted_within_its_windows() -> None:
    with torch.device("meta"):
        model = build_model("baseline_swin_tiny", PASCAL_CONTEXT, img_size=(224, 224))
    cost = count(model, (224, 224))
    by_stage = [blocks * 2 * (56 // 2**s) ** 2 * 49 * 96 * 2**s for s, blocks in enumerate((2, 2, 6, 2))]
    assert cost.macs - cost.macs_without_attention == sum(by_stage)


def test_counting_changes_neither_mode_nor_weights_nor_statistics() -> None:
    model = build_model("baseline_vit_nano", DOLLHOUSE, img_size=(32, 32)).train()
    model.heads["depth"].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count(model, (32, 32))
    assert model.training
    assert model.backbone.training
    assert not model.heads["depth"].norm.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_mode_is_restored_even_where_the_model_fails() -> None:
    model = build_model("baseline_vit_nano", DOLLHOUSE, img_size=(32, 32)).train()
    with pytest.raises(Exception, match="built for images"):
        count(model, (64, 64))
    assert all(module.training for module in model.modules())


def test_a_table_for_people_names_the_parts_both_units_and_the_convention(table_2: MultiTaskModel) -> None:
    cost = count(table_2, (512, 512))
    lines = cost.format().splitlines()
    assert lines[0].split("  ")[0] == "one image of 512 × 512"
    assert lines[0].endswith("parameters    MACs / 1e9  MACs / 2**30")
    assert lines[1].split() == ["backbone", "86.43", "M", "106.9", "99.56"]
    assert lines[4].split() == ["all", "114.7", "M", "419.3", "390.5"]
    assert "without attention products" in lines[5]
    assert len({len(line) for line in lines}) == 1
    assert "heads.semseg" in cost.format(depth=2)
    assert "heads.semseg" not in cost.format()
