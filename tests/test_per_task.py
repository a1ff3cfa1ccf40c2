"""Layers that hold one set of weights per task, against T separate layers of torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlore_edu.decoders.base import resize
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d, PerTaskLayerNorm, resize_tasks


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def separate_convolutions(grouped: PerTaskConv2d) -> list[nn.Conv2d]:
    """T convolutions of torch with the grouped one's numbers, the t-th with its t-th block of rows."""
    size = grouped.kernel_size[0]
    alone = []
    for t in range(grouped.tasks):
        rows = grouped.weight.detach().unflatten(0, (grouped.tasks, -1))[t]
        conv = nn.Conv2d(rows.shape[1], rows.shape[0], size, padding=size // 2, bias=grouped.bias is not None).double()
        conv.weight.data.copy_(rows)
        if grouped.bias is not None:
            conv.bias.data.copy_(grouped.bias.detach().unflatten(0, (grouped.tasks, -1))[t])
        alone.append(conv)
    return alone


@pytest.mark.parametrize("shared", [False, True], ids=["own features", "shared features"])
@pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without bias"])
@pytest.mark.parametrize(("tasks", "size"), [(3, 1), (3, 3), (1, 3), (2, 5)])
def test_the_grouped_convolution_and_its_gradients_equal_those_of_separate_convolutions(
    tasks: int, size: int, bias: bool, shared: bool
) -> None:
    torch.manual_seed(0)
    grouped = PerTaskConv2d(tasks, 4, 2, size, bias=bias).double()
    alone = separate_convolutions(grouped)
    features = (draw(2, 4, 3, 5) if shared else draw(2, tasks, 4, 3, 5)).requires_grad_()
    ours = grouped(features)
    theirs = torch.stack([conv(features if shared else features[:, t]) for t, conv in enumerate(alone)], dim=1)
    assert ours.shape == (2, tasks, 2, 3, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    slope = draw(*ours.shape, seed=1)
    names = [name for name, _ in alone[0].named_parameters()]
    ours_by_name = dict(grouped.named_parameters())
    ours_gradients = torch.autograd.grad((ours * slope).sum(), [features, *(ours_by_name[n] for n in names)])
    leaves = [features, *(conv.get_parameter(name) for name in names for conv in alone)]
    first, *others = torch.autograd.grad((theirs * slope).sum(), leaves)
    torch.testing.assert_close(ours_gradients[0], first, rtol=1e-12, atol=1e-12)
    for index, gradient in enumerate(ours_gradients[1:]):
        expected = torch.cat(others[index * tasks : (index + 1) * tasks])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_every_tasks_weights_start_in_the_range_of_a_convolution_of_its_own(size: int) -> None:
    torch.manual_seed(0)
    for parameter, reference in zip(
        PerTaskConv2d(8, 16, 64, size).parameters(), nn.Conv2d(16, 64, size).parameters(), strict=True
    ):
        bound = (16 * size**2) ** -0.5  # Kaiming-uniform with a = sqrt(5)
        for of_task in parameter.unflatten(0, (8, -1)):
            assert of_task.shape == reference.shape
            assert 0.9 * bound < of_task.abs().max() <= bound
            assert of_task.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 5), data=st.data())
def test_permuting_the_tasks_and_their_weights_permutes_the_outputs(seed: int, tasks: int, data) -> None:
    order = data.draw(st.permutations(range(tasks)))
    torch.manual_seed(seed)
    first, second = PerTaskConv2d(tasks, 3, 2, 3).double(), PerTaskConv2d(tasks, 3, 2, 3).double()
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            b.copy_(a.unflatten(0, (tasks, -1))[order].flatten(0, 1))
    features = draw(2, tasks, 3, 4, 3, seed=seed)
    torch.testing.assert_close(second(features[:, order]), first(features)[:, order])


def test_a_task_neither_reads_nor_teaches_another() -> None:
    conv = PerTaskConv2d(3, 2, 2, 3).double()
    features = draw(2, 3, 2, 4, 4).requires_grad_()
    conv(features)[:, 1].square().sum().backward()
    for gradient in (features.grad.transpose(0, 1), *(p.grad.unflatten(0, (3, -1)) for p in conv.parameters())):
        assert [bool(of_task.any()) for of_task in gradient] == [False, True, False]


@pytest.mark.parametrize(("tasks", "batch"), [(3, 2), (1, 3), (2, 1)])
def test_the_wide_batchnorm_equals_separate_ones_in_training_and_evaluation_with_the_same_statistics(
    tasks: int, batch: int
) -> None:
    wide = PerTaskBatchNorm2d(tasks, 4).double()
    alone = [nn.BatchNorm2d(4).double() for _ in range(tasks)]
    scale, shift = draw(tasks, 4, seed=1), draw(tasks, 4, seed=2)
    with torch.no_grad():
        wide.norm.weight.copy_(scale.flatten())
        wide.norm.bias.copy_(shift.flatten())
        for norm, w, b in zip(alone, scale, shift, strict=True):
            norm.weight.copy_(w)
            norm.bias.copy_(b)
    for step in range(3):
        features = (3 * draw(batch, tasks, 4, 3, 5, seed=step) + 1).requires_grad_()
        ours, theirs = wide(features), torch.stack([norm(features[:, t]) for t, norm in enumerate(alone)], 1)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        slope = draw(*ours.shape, seed=9)
        gradients = [torch.autograd.grad((x * slope).sum(), features)[0] for x in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(wide.norm, name), torch.cat([getattr(norm, name) for norm in alone]))
    for norm in (wide, *alone):
        norm.eval()
    features = draw(1, tasks, 4, 2, 2, seed=7)
    expected = torch.stack([norm(features[:, t]) for t, norm in enumerate(alone)], 1)
    torch.testing.assert_close(wide(features), expected, rtol=1e-12, atol=1e-12)


def test_torch_turns_the_batchnorm_into_a_synchronised_one() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(PerTaskBatchNorm2d(2, 3)))
    assert isinstance(converted[0].norm, nn.SyncBatchNorm)


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_layernorm_equals_separate_ones_over_the_channels_of_every_pixel(tasks: int) -> None:
    ours = PerTaskLayerNorm(tasks, 6).double()
    assert bool((ours.weight == 1).all() and (ours.bias == 0).all())
    with torch.no_grad():
        ours.weight.copy_(draw(tasks, 6, seed=1))
        ours.bias.copy_(draw(tasks, 6, seed=2))
    features = (2 * draw(2, tasks, 6, 3, 4) - 1).requires_grad_()
    parts = []
    for t in range(tasks):
        norm = nn.LayerNorm(6).double()
        norm.weight, norm.bias = nn.Parameter(ours.weight[t]), nn.Parameter(ours.bias[t])
        parts.append(norm(features[:, t].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    theirs = torch.stack(parts, 1)
    torch.testing.assert_close(ours(features), theirs, rtol=1e-12, atol=1e-12)
    slope = draw(*theirs.shape, seed=3)
    gradients = [torch.autograd.grad((x * slope).sum(), features)[0] for x in (ours(features), theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_resizing_all_tasks_equals_resizing_each_and_leaves_alone_what_has_the_size() -> None:
    features = draw(2, 3, 4, 3, 5)
    larger = resize_tasks(features, (6, 7))
    torch.testing.assert_close(larger, torch.stack([resize(features[:, t], (6, 7)) for t in range(3)], 1))
    assert resize_tasks(features, (3, 5)) is features
