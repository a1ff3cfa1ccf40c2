"""The baseline decoder against a loop over tasks and scales, and the resize that every decoder uses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlore_edu.decoders.base import MapShape, resize
from mlore_edu.decoders.baseline import BaselineDecoder
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, TaskSet

SHAPES = {
    "a ViT's four equal maps": [MapShape(6, 4, 5)] * 4,
    "a pyramid": [MapShape(3, 16, 24), MapShape(6, 8, 12), MapShape(12, 4, 6), MapShape(24, 2, 3)],
    "the nano model's maps": [MapShape(4, 12, 12), *[MapShape(6, 3, 3)] * 3],
    "odd sizes": [MapShape(2, 7, 5), MapShape(3, 3, 3), MapShape(5, 1, 2)],
}


def make(shapes: list[MapShape], tasks: TaskSet = DOLLHOUSE, batch: int = 2, shared: bool = False):
    torch.manual_seed(0)
    decoder = BaselineDecoder(tasks, shapes, channels=5, shared=shared).double()
    return decoder, [torch.randn(batch, *shape, dtype=torch.float64) for shape in shapes]


def loop_over_tasks_and_scales(decoder: BaselineDecoder, maps: list[Tensor], task: int) -> Tensor:
    """Resize every map first, then multiply it with the task's own matrix: MLoRE's baseline read literally."""
    size = max(tuple(feature_map.shape[-2:]) for feature_map in maps)
    total = torch.zeros(())
    for feature_map, projection in zip(maps, decoder.projections, strict=True):
        own = slice(task * decoder.channels, (task + 1) * decoder.channels)
        matrix, bias = projection.weight[own, :, 0, 0], projection.bias[own]
        large = torch.nn.functional.interpolate(feature_map, size, mode="bilinear", align_corners=False)
        total = total + torch.einsum("oc,bchw->bohw", matrix, large) + bias[:, None, None]
    return total


@pytest.mark.parametrize("name", SHAPES)
def test_the_batched_decoder_equals_one_linear_map_per_task_and_scale_on_resized_maps(name: str) -> None:
    decoder, maps = make(SHAPES[name])
    output = decoder(maps)
    assert tuple(output.features) == DOLLHOUSE.names
    for index, features in enumerate(output.features.values()):
        torch.testing.assert_close(features, loop_over_tasks_and_scales(decoder, maps, index), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_those_of_the_loop(name: str) -> None:
    decoder, maps = make(SHAPES[name], NYUD_V2)
    leaves = [*decoder.parameters(), *(feature_map.requires_grad_() for feature_map in maps)]
    ours = sum((features**2).sum() * (t + 1) for t, features in enumerate(decoder(maps).features.values()))
    naive = sum((loop_over_tasks_and_scales(decoder, maps, t) ** 2).sum() * (t + 1) for t in range(len(NYUD_V2)))
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(naive, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_one_task_and_one_image_work() -> None:
    decoder, maps = make(SHAPES["a pyramid"], NYUD_V2.subset("depth"), batch=1)
    assert {name: tuple(f.shape) for name, f in decoder(maps).features.items()} == {"depth": (1, 5, 16, 24)}


def test_tasks_have_features_of_their_own_unless_shared() -> None:
    decoder, maps = make(SHAPES["a pyramid"])
    features = list(decoder(maps).features.values())
    assert not torch.equal(features[0], features[1])
    shared, maps = make(SHAPES["a pyramid"], shared=True)
    features = list(shared(maps).features.values())
    assert len(features) == 6
    assert all(torch.equal(features[0], other) for other in features)
    assert 6 * sum(p.numel() for p in shared.parameters()) == sum(p.numel() for p in decoder.parameters())


def test_the_baseline_routes_nothing_and_balances_nothing() -> None:
    decoder, maps = make(SHAPES["a pyramid"])
    output = decoder(maps)
    assert output.routing == {}
    assert output.balance_loss.shape == ()
    assert output.balance_loss.item() == 0


def test_a_map_that_has_the_size_already_is_not_copied() -> None:
    maps = torch.randn(1, 2, 3, 4)
    assert resize(maps, (3, 4)) is maps


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), zoom=st.integers(2, 5), slope=st.floats(-3, 3))
def test_enlarging_keeps_constants_and_inside_the_border_keeps_a_ramp_over_the_image(
    height: int, width: int, zoom: int, slope: float
) -> None:
    def ramp(w: int) -> Tensor:
        """Value at the centres of w pixels that cover [0, 1]."""
        return slope * (torch.arange(w, dtype=torch.float64) + 0.5) / w

    coarse = torch.stack([torch.ones(height, width, dtype=torch.float64), ramp(width).expand(height, width)])[None]
    fine = resize(coarse, (height * zoom, width * zoom))
    torch.testing.assert_close(fine[:, 0], torch.ones_like(fine[:, 0]))
    inside = slice(zoom, width * zoom - zoom)
    torch.testing.assert_close(fine[0, 1, 0, inside], ramp(width * zoom)[inside])
