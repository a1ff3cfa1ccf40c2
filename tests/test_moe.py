"""Choosing k experts, their load and their balance, against Monte-Carlo counts, the formulas and laws of a choice."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlore_edu.decoders.moe import (
    SMALLEST_NOISE,
    cv_squared,
    importance_loss,
    load_loss,
    noisy_top_k,
    top_k_mask,
)
from mlore_edu.errors import UserError

# ---- which k


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=4), k=st.integers(1, 7))
def test_exactly_k_are_chosen_none_left_out_is_larger_and_of_equals_the_lower_index_wins(
    rows: list[list[int]], k: int
) -> None:
    mask = top_k_mask(torch.tensor(rows, dtype=torch.float32), k)
    for row, chosen in zip(rows, mask.tolist(), strict=True):
        best = sorted(range(7), key=lambda n: (-row[n], n))[:k]
        assert [n for n in range(7) if chosen[n]] == sorted(best)


def test_all_equal_scores_choose_the_first_k_and_one_expert_is_always_chosen() -> None:
    assert top_k_mask(torch.zeros(2, 40), 3).nonzero()[:, 1].tolist() == [0, 1, 2] * 2
    assert top_k_mask(torch.randn(5, 1), 1).all()


@pytest.mark.parametrize("k", [0, 4, -1, 1.0, True, "2"])
def test_a_k_that_is_not_from_1_to_n_is_refused_in_one_sentence(k: object) -> None:
    with pytest.raises(UserError, match=r"k is .*; give a whole number from 1 to 3, the number of experts\."):
        top_k_mask(torch.zeros(3), k)


# ---- gates


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), experts=st.integers(1, 8), data=st.data())
def test_shazeers_gates_sum_to_one_and_mlores_are_the_softmax_over_all_with_the_rest_struck_out(
    seed: int, experts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    logits = draw(3, 2, experts, seed=seed)
    first = noisy_top_k(logits, None, k, softmax_first=True, training=True).gates
    last = noisy_top_k(logits, None, k, softmax_first=False, training=True).gates
    chosen = top_k_mask(logits, k)
    torch.testing.assert_close(last.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(first[chosen], logits.softmax(-1)[chosen])
    assert (first[~chosen] == 0).all()
    assert (last[~chosen] == 0).all()
    torch.testing.assert_close(first / first.sum(-1, keepdim=True), last)  # they differ by one factor per row
    assert (first.sum(-1) <= 1 + 1e-12).all()


def test_with_all_experts_active_both_orders_are_the_plain_softmax_and_the_load_is_one() -> None:
    logits, raw = draw(4, 6), draw(4, 6, seed=1)
    for order in (True, False):
        gating = noisy_top_k(logits, None, 6, softmax_first=order, training=True)
        torch.testing.assert_close(gating.gates, logits.softmax(-1))
        assert (noisy_top_k(logits, raw, 6, softmax_first=order, training=True).load == 1).all()


@pytest.mark.parametrize("order", [True, False])
def test_permuting_the_experts_permutes_gates_and_load(order: bool) -> None:
    logits, raw = draw(5, 7), draw(5, 7, seed=1)
    permutation = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    noise = torch.zeros_like(logits)  # the drawn noise must travel with its expert: draw none
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda _: noise)
        a = noisy_top_k(logits, raw, 3, softmax_first=order, training=True)
        b = noisy_top_k(logits[:, permutation], raw[:, permutation], 3, softmax_first=order, training=True)
    torch.testing.assert_close(a.gates[:, permutation], b.gates)
    torch.testing.assert_close(a.load[:, permutation], b.load)


def test_in_evaluation_or_without_a_noise_scale_nothing_is_random_and_the_load_is_the_choice_itself() -> None:
    logits, raw = draw(5, 7), draw(5, 7, seed=1)
    for raw_noise, training in ((raw, False), (None, True), (None, False)):
        a, b = (noisy_top_k(logits, raw_noise, 3, softmax_first=False, training=training) for _ in range(2))
        assert torch.equal(a.gates, b.gates)
        assert torch.equal(a.load, top_k_mask(logits, 3).double())
    noisy = [noisy_top_k(logits, raw, 3, softmax_first=False, training=True).gates for _ in range(2)]
    assert not torch.equal(*noisy)


def test_half_precision_logits_give_float32_gates() -> None:
    gating = noisy_top_k(draw(4, 5).bfloat16(), draw(4, 5).half(), 2, softmax_first=True, training=True)
    assert gating.gates.dtype == gating.load.dtype == torch.float32


def test_the_noise_has_the_standard_deviation_softplus_of_its_raw_value_and_never_less_than_the_floor() -> None:
    torch.manual_seed(0)
    raw = torch.tensor([-200.0, -1.0, 0.0, 2.0])
    logits = torch.zeros(4)
    many = 40_000
    # with k = N and the softmax over all, log gate_n - log gate_0 = noise_n - noise_0
    gates = noisy_top_k(logits.expand(many, 4), raw.expand(many, 4), 4, softmax_first=True, training=True).gates.log()
    found = (gates[:, 1:] - gates[:, :1]).std(dim=0)
    expected = (F.softplus(raw[1:]) ** 2 + SMALLEST_NOISE**2).sqrt()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


# ---- the load


def count_by_drawing(logits: Tensor, raw_noise: Tensor, noise: Tensor, k: int, draws: int) -> Tensor:
    """How often each expert is among the k when its own noise is drawn anew and the others' is kept."""
    scale, frequencies = F.softplus(raw_noise), torch.empty_like(logits)
    for n in range(len(logits)):
        noisy = (logits + noise * scale).expand(draws, -1).clone()
        noisy[:, n] = logits[n] + torch.randn(draws, dtype=torch.float64) * scale[n]
        frequencies[n] = top_k_mask(noisy, k)[:, n].double().mean()
    return frequencies


def load_of(logits: Tensor, raw_noise: Tensor, noise: Tensor, k: int) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda _: noise)
        return noisy_top_k(logits, raw_noise, k, softmax_first=True, training=True).load


def load_with_the_softmax_mistaken_for_a_logit(logits: Tensor, raw_noise: Tensor, noise: Tensor, k: int) -> Tensor:
    """The mistake of several public implementations: top-k of probabilities, whose bar then meets logits."""
    scale = F.softplus(raw_noise)
    probabilities = (logits + noise * scale).softmax(-1)
    top = probabilities.topk(k + 1).values
    inside = (logits - top[k]) / scale
    outside = (logits - top[k - 1]) / scale
    return torch.where(probabilities > top[k], torch.special.ndtr(inside), torch.special.ndtr(outside))


@pytest.mark.parametrize(("experts", "k"), [(2, 1), (5, 1), (5, 3), (8, 7), (15, 9)])
def test_the_load_is_the_frequency_of_being_chosen(experts: int, k: int) -> None:
    torch.manual_seed(0)
    draws = 20_000
    logits, raw, noise = draw(experts), draw(experts, seed=1), draw(experts, seed=2)
    counted = count_by_drawing(logits, raw, noise, k, draws)
    error = (load_of(logits, raw, noise, k) - counted).abs()
    assert error.max() < 4.5 * 0.5 / math.sqrt(draws)  # 4.5 standard errors of a frequency


def test_the_right_estimate_beats_the_one_that_compares_logits_with_probabilities() -> None:
    torch.manual_seed(0)
    right, wrong = [], []
    for seed in range(10):
        logits, raw, noise = (draw(8, seed=3 * seed + i) for i in range(3))
        counted = count_by_drawing(logits, raw, noise, 3, draws=2_000)
        right.append((load_of(logits, raw, noise, 3) - counted).abs().mean())
        wrong.append((load_with_the_softmax_mistaken_for_a_logit(logits, raw, noise, 3) - counted).abs().mean())
    assert max(right) < 0.5 / math.sqrt(2_000)  # one standard error of a count
    assert all(b > 2 * a for a, b in zip(right, wrong, strict=True))
    assert sum(wrong) > 20 * sum(right)


def test_the_load_does_not_know_which_order_the_softmax_was_taken_in() -> None:
    loads = []
    for order in (True, False):
        torch.manual_seed(0)
        loads.append(noisy_top_k(draw(4, 6), draw(4, 6, seed=1), 2, softmax_first=order, training=True).load)
    assert torch.equal(*loads)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5), raise_by=st.floats(0.01, 3))
def test_a_larger_logit_is_never_chosen_less_often(seed: int, k: int, raise_by: float) -> None:
    logits, raw, noise = (draw(6, seed=seed + i) for i in range(3))
    before = load_of(logits, raw, noise, k)
    raised = logits.clone()
    raised[2] += raise_by
    after = load_of(raised, raw, noise, k)
    assert ((before >= 0) & (before <= 1)).all()
    assert after[2] >= before[2]
    others = torch.arange(6) != 2
    assert (after[others] <= before[others] + 1e-12).all()


def test_the_gradient_of_the_load_is_that_of_the_normal_distribution_function() -> None:
    logits, raw, noise = draw(5).requires_grad_(), draw(5, seed=1).requires_grad_(), draw(5, seed=2)
    assert torch.autograd.gradcheck(lambda a, b: load_of(a, b, noise, 2), (logits, raw))


# ---- balance


def cv_squared_by_hand(values: list[float]) -> float:
    mean = sum(values) / len(values)
    if len(values) == 1 or mean == 0:
        return 0.0
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1) / mean**2


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_cv_squared_equals_the_formula_and_lies_between_0_and_n(values: list[float]) -> None:
    assume(sum(values) == 0 or sum(values) > 1e-9)
    found = cv_squared(torch.tensor(values, dtype=torch.float64)).item()
    assert found == pytest.approx(cv_squared_by_hand(values), rel=1e-9, abs=1e-12)
    assert 0 <= found <= len(values) + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-6, 1e6))
def test_cv_squared_knows_neither_the_unit_nor_the_order(seed: int, factor: float) -> None:
    values = draw(6, seed=seed).abs()
    torch.testing.assert_close(cv_squared(values * factor), cv_squared(values))
    torch.testing.assert_close(cv_squared(values.flip(0)), cv_squared(values))


@pytest.mark.parametrize("values", [[0.0], [3.0], [0.0, 0.0, 0.0], [2.0, 2.0], [0.0, 5.0]])
def test_cv_squared_and_its_gradient_are_finite_where_a_division_by_zero_lurks(values: list[float]) -> None:
    leaf = torch.tensor(values, requires_grad=True)
    found = cv_squared(leaf)
    found.backward()
    assert found.item() == pytest.approx(cv_squared_by_hand(values))
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_one_expert_that_does_everything_costs_n() -> None:
    assert cv_squared(torch.tensor([0.0, 0, 7, 0, 0])).item() == pytest.approx(5)


def test_importance_and_load_are_summed_over_samples_and_tasks_before_their_spread_is_measured() -> None:
    gating = noisy_top_k(draw(3, 4, 6), draw(3, 4, 6, seed=1), 2, softmax_first=True, training=True)
    for loss, values in ((importance_loss, gating.gates), (load_loss, gating.load)):
        sums = [0.0] * 6
        for b in range(3):
            for t in range(4):
                for n in range(6):
                    sums[n] += values[b, t, n].item()
        assert loss(values).item() == pytest.approx(cv_squared_by_hand(sums), rel=1e-10)
        assert loss(values.mean((0, 1))).item() == pytest.approx(loss(values).item(), rel=1e-10)


def test_the_balance_losses_pull_an_overused_expert_down_and_an_unused_one_up() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0, -3.0]]).expand(32, 4).clone().requires_grad_()
    raw = torch.zeros(32, 4, requires_grad=True)
    torch.manual_seed(0)
    gating = noisy_top_k(logits, raw, 2, softmax_first=False, training=True)
    (step,) = torch.autograd.grad(load_loss(gating.load) + importance_loss(gating.gates), logits)
    assert step[:, 0].sum() > 0  # descent lowers it
    assert step[:, 3].sum() < 0
