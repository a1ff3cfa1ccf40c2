"""Routers against a loop over samples and tasks read from Sec. 3.3, and the laws each kind obeys."""

from __future__ import annotations

from typing import get_args

import naive_mlore as naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlore_edu.decoders.routers import Router, RouterKind
from mlore_edu.errors import UserError

KINDS = get_args(RouterKind)
ACTIVATIONS = pytest.mark.parametrize("activation", [False, True], ids=["as printed", "as released"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(kind: RouterKind, activation: bool, *, tasks: int = 3, channels: int = 8, tokens: int = 12, seed: int = 0):
    """A router of 5 outputs with no parameter at a special value, such as LayerNorm's ones."""
    torch.manual_seed(seed)
    router = Router(tasks, channels, tokens, 5, kind=kind, activation=activation).double()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return router


@ACTIVATIONS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "tasks", "size"), [(2, 3, (3, 4)), (1, 1, (5, 1))])
def test_every_kind_of_router_and_its_gradients_equal_a_loop_over_samples_and_tasks(
    kind: RouterKind, activation: bool, batch: int, tasks: int, size: tuple[int, int]
) -> None:
    router = make(kind, activation, tasks=tasks, tokens=size[0] * size[1])
    features = draw(batch, tasks, 8, *size).requires_grad_()
    ours = router(features)
    rows = [torch.stack([naive.route(router, x[t], t, activation) for t in range(tasks)]) for x in features]
    theirs = torch.stack(rows)
    assert ours.shape == (batch, tasks, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    leaves, slope = [*router.parameters(), features], draw(*ours.shape, seed=1)
    gradients = [torch.autograd.grad((x * slope).sum(), leaves, allow_unused=True) for x in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["both", "basic", "position"])
def test_the_router_as_printed_is_one_affine_map_and_with_activations_it_is_not(kind: RouterKind) -> None:
    a, b = draw(2, 3, 8, 3, 4), draw(2, 3, 8, 3, 4, seed=1)
    for activation in (False, True):
        router = make(kind, activation)
        gap = router(0.3 * a + 0.7 * b) - (0.3 * router(a) + 0.7 * router(b))
        assert (gap.abs().max() < 1e-12) is not activation


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(12)), activation=st.booleans())
def test_the_basic_branch_cannot_tell_where_anything_is_and_the_position_branch_can(
    order: list[int], activation: bool
) -> None:
    features = draw(2, 3, 8, 3, 4)
    moved = features.flatten(3)[..., order].unflatten(3, (3, 4))
    basic = make("basic", activation)
    torch.testing.assert_close(basic(moved), basic(features), rtol=1e-10, atol=1e-12)
    position = make("position", activation)
    assert torch.equal(position(moved), position(features)) == (order == sorted(order))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(3)), kind=st.sampled_from(KINDS), activation=st.booleans())
def test_permuting_tasks_with_their_weights_permutes_the_outputs(
    order: list[int], kind: RouterKind, activation: bool
) -> None:
    router, other = make(kind, activation), make(kind, activation)
    with torch.no_grad():
        for a, b in zip(router.parameters(), other.parameters(), strict=True):
            b.copy_(a.unflatten(0, (3, -1))[order].flatten(0, 1))
    features = draw(2, 3, 8, 3, 4)
    torch.testing.assert_close(other(features[:, order]), router(features)[:, order])


@ACTIVATIONS
def test_the_static_router_says_the_same_of_every_image_at_any_size_and_differs_between_tasks(activation: bool) -> None:
    router = make("static", activation)
    first, second = router(draw(2, 3, 8, 3, 4)), router(draw(4, 3, 8, 7, 5, seed=1))
    assert (first == second[:1]).all()
    assert not torch.equal(first[0, 0], first[0, 1])
    first.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in router.parameters())


@pytest.mark.parametrize("kind", ["both", "basic", "position"])
@ACTIVATIONS
def test_every_parameter_learns(kind: RouterKind, activation: bool) -> None:
    router = make(kind, activation)
    router(draw(2, 3, 8, 3, 4)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in router.parameters())


def test_each_branch_gives_a_quarter_of_the_channels_and_at_least_one() -> None:
    for channels, hidden in ((452, 113), (8, 2), (3, 1)):
        router = Router(2, channels, 6, 5, kind="both", activation=True)
        assert router.branches["basic"].second.weight.shape == (2 * hidden, hidden, 1, 1)
        assert router.branches["position"].project.weight.shape == (2 * hidden, channels, 1, 1)
        assert router.predict.weight.shape == (2 * 5, 2 * hidden, 1, 1)


def test_the_weights_over_places_start_in_the_range_of_torchs_linear_layer() -> None:
    torch.manual_seed(0)
    weight = Router(4, 8, 400, 5, kind="position", activation=False).branches["position"].weight
    reference = nn.Linear(400, 1).weight
    assert weight.abs().max() <= 1 / 20
    assert weight.std().item() == pytest.approx(reference.std().item(), rel=0.1)


def test_an_unknown_kind_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"There is no router 'mean'; choose one of both, basic, position, static\."):
        Router(2, 8, 6, 5, kind="mean", activation=False)
