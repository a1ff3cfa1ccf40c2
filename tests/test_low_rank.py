"""Low-rank experts against a loop over samples, tasks and experts; what their two forms cost, counted by torch."""

from __future__ import annotations

import naive_mlore as naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mlore_edu.decoders.low_rank import LowRankConv2d, LowRankExperts, TaskExperts

SHAPES = {  # ranks, channels, batch, tasks, height, width
    "a few experts of different rank": ((1, 2, 4), 4, 2, 3, 5, 4),
    "one expert": ((3,), 4, 2, 2, 3, 3),
    "equal ranks": ((2, 2, 2, 2), 4, 1, 2, 4, 3),
    "ranks above the width": ((5, 9), 3, 2, 1, 3, 5),
    "one image, one task": ((1, 3), 4, 1, 1, 6, 2),
    "maps smaller than the kernel": ((2, 1), 3, 3, 2, 1, 2),
}
PAPER_RANKS = tuple(range(16, 129, 8))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(channels: int, ranks: tuple[int, ...], seed: int = 0) -> LowRankExperts:
    """Experts whose biases are not zero, as they are at the start."""
    torch.manual_seed(seed)
    experts = LowRankExperts(channels, ranks).double()
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return experts


def sparse_gates(batch: int, tasks: int, experts: int, seed: int = 0) -> Tensor:
    """Gates of which about a third are zero, as of experts that are not active."""
    gates = draw(batch, tasks, experts, seed=seed).softmax(-1)
    return gates * (draw(batch, tasks, experts, seed=seed + 1) > -0.4)


@pytest.mark.parametrize("name", SHAPES)
def test_concatenated_merged_and_the_loop_agree_in_values_and_in_every_gradient(name: str) -> None:
    ranks, channels, batch, tasks, height, width = SHAPES[name]
    experts = make(channels, ranks)
    features = draw(batch, tasks, channels, height, width).requires_grad_()
    gates = sparse_gates(batch, tasks, len(ranks)).requires_grad_()
    leaves, slope = [features, gates, *experts.parameters()], draw(*features.shape, seed=5)
    expected = naive.mixture(experts, features, gates)
    expected_gradients = torch.autograd.grad((expected * slope).sum(), leaves)
    for form in (experts.concatenated, experts.merged, experts):
        ours = form(features, gates)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
        gradients = torch.autograd.grad((ours * slope).sum(), leaves)
        for a, b in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_each_kernel_of_kernels_is_one_expert() -> None:
    experts, x = make(4, (1, 3, 2)), draw(4, 5, 3)
    weights, biases = experts.kernels()
    assert weights.shape == (3, 4, 4, 3, 3)
    for n in range(3):
        torch.testing.assert_close(naive.convolve(x, weights[n], biases[n]), naive.expert(experts, n, x))
        assert torch.linalg.matrix_rank(weights[n].flatten(1)) == min(experts.ranks[n], 4)


@settings(max_examples=25, deadline=None)
@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5), data=st.data(), seed=st.integers(0, 10**6))
def test_permuting_the_experts_with_their_gates_changes_nothing(
    ranks: list[int], data: st.DataObject, seed: int
) -> None:
    order = data.draw(st.permutations(range(len(ranks))))
    first, second = make(3, tuple(ranks), seed), make(3, tuple(ranks[n] for n in order), seed)
    blocks = [torch.arange(sum(ranks[:n]), sum(ranks[: n + 1])) for n in range(len(ranks))]
    rows = torch.cat([blocks[n] for n in order])
    with torch.no_grad():
        second.down.weight.copy_(first.down.weight[rows])
        second.down.bias.copy_(first.down.bias[rows])
        second.up_weight.copy_(first.up_weight[:, rows])
        second.up_bias.copy_(first.up_bias[order])
    features, gates = draw(2, 2, 3, 3, 4, seed=seed), sparse_gates(2, 2, len(ranks), seed)
    for form in ("concatenated", "merged"):
        torch.testing.assert_close(
            getattr(second, form)(features, gates[..., order]), getattr(first, form)(features, gates)
        )


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-2, 2), b=st.floats(-2, 2), form=st.sampled_from(["concatenated", "merged"]))
def test_the_mixture_is_linear_in_the_gates_and_affine_in_the_features(a: float, b: float, form: str) -> None:
    experts = make(3, (1, 2))
    mix = getattr(experts, form)
    features, gates = [draw(2, 2, 3, 3, 4, seed=s) for s in (0, 1)], [draw(2, 2, 2, seed=s) for s in (2, 3)]
    in_gates = a * mix(features[0], gates[0]) + b * mix(features[0], gates[1])
    torch.testing.assert_close(mix(features[0], a * gates[0] + b * gates[1]), in_gates, rtol=1e-9, atol=1e-9)
    in_features = a * mix(features[0], gates[0]) + (1 - a) * mix(features[1], gates[0])
    torch.testing.assert_close(
        mix(a * features[0] + (1 - a) * features[1], gates[0]), in_features, rtol=1e-9, atol=1e-9
    )


def test_an_expert_that_nobody_activates_answers_nothing_and_gets_a_gradient_of_zeros_not_none() -> None:
    for form in ("concatenated", "merged"):
        experts, gates = make(3, (2, 3)), torch.tensor([0.0, 0.6], dtype=torch.float64).expand(2, 2, 2)
        getattr(experts, form)(draw(2, 2, 3, 3, 3), gates).square().sum().backward()
        for gradient, of_first, of_second in (
            (experts.down.weight.grad, slice(0, 2), slice(2, 5)),
            (experts.up_weight.grad.T, slice(0, 2), slice(2, 5)),
            (experts.up_bias.grad, slice(0, 1), slice(1, 2)),
        ):
            assert not gradient[of_first].any()
            assert gradient[of_second].any()


@pytest.mark.parametrize("form", ["concatenated", "merged"])
def test_half_precision_weights_take_the_routers_float32_gates(form: str) -> None:
    experts = make(4, (1, 3)).bfloat16()
    features, gates = draw(2, 2, 4, 3, 3).bfloat16(), sparse_gates(2, 2, 2).float()
    output = getattr(experts, form)(features, gates)
    assert output.dtype == torch.bfloat16
    exact = naive.mixture(experts.double(), features.double(), gates.double())
    torch.testing.assert_close(output.double(), exact, rtol=0.05, atol=0.05)


# ---- which form, and what it costs


def counted(experts: LowRankExperts, form: str, batch: int, tasks: int, side: int) -> int:
    """Multiply-accumulates as torch counts them, without computing anything."""
    features = torch.empty(batch, tasks, experts.channels, side, side, device="meta")
    gates = torch.empty(batch, tasks, len(experts.ranks), device="meta")
    with FlopCounterMode(display=False) as counter:
        getattr(experts.to("meta"), form)(features, gates)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("ranks", "channels"), [((1, 2, 4), 4), ((3,), 5), (PAPER_RANKS, 64)])
@pytest.mark.parametrize(("batch", "tasks", "side"), [(1, 1, 3), (2, 3, 4), (1, 5, 16)])
def test_the_costs_are_what_torch_counts_but_for_the_biases(
    ranks: tuple[int, ...], channels: int, batch: int, tasks: int, side: int
) -> None:
    experts, pairs = LowRankExperts(channels, ranks), batch * tasks
    costs = experts.costs(batch, tasks, side**2)
    mixed_biases = pairs * len(ranks) * channels  # one product gates × biases in either form
    composed_biases = sum(ranks) * channels  # 1×1 convolutions applied to the 3×3 ones' biases, once
    assert counted(experts, "concatenated", batch, tasks, side) == costs["concatenated"][0] + mixed_biases
    assert counted(experts, "merged", batch, tasks, side) == costs["merged"][0] + mixed_biases + composed_biases


@pytest.mark.parametrize("form", ["concatenated", "merged"])
def test_the_numbers_held_are_what_autograd_saves_beyond_the_input_and_the_parameters(form: str) -> None:
    experts, batch, tasks, side = LowRankExperts(8, (1, 2, 4)), 2, 3, 5
    features = torch.randn(batch, tasks, 8, side, side, requires_grad=True)
    gates = torch.rand(batch, tasks, 3, requires_grad=True)
    known = {x.untyped_storage().data_ptr() for x in (features, gates, *experts.parameters(), *experts.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = getattr(experts, form)(features, gates)
    held, bound = sum(saved.values()), experts.costs(batch, tasks, side**2)[form][1]
    assert output.shape == features.shape
    small = batch * tasks * sum(experts.ranks) + 4 * batch * tasks * 8  # gates per rank, biases
    assert bound <= held <= bound + small


def test_the_costs_equal_a_count_by_hand_at_the_papers_size() -> None:
    """ViT-B, released: C = 640, ranks 16 to 128, 32 × 32 tokens, 5 tasks, one image."""
    costs = LowRankExperts(640, PAPER_RANKS).to("meta").costs(1, 5, 32 * 32)
    assert sum(PAPER_RANKS) == 1080
    by_hand = 5 * 1024 * sum(9 * 640 * r + r * 640 for r in PAPER_RANKS)
    assert costs["concatenated"] == (by_hand, 2 * 5 * 1024 * 1080)
    compose = sum(640 * r * 640 * 9 for r in PAPER_RANKS)
    mix, convolve = 5 * 15 * 640 * 640 * 9, 5 * 1024 * 640 * 640 * 9
    assert costs["merged"] == (compose + mix + convolve, (15 + 5) * 640 * 640 * 9)
    assert costs["merged"][0] < costs["concatenated"][0]
    assert costs["merged"][1] > costs["concatenated"][1]


@pytest.mark.parametrize(
    ("ranks", "channels", "batch", "side", "expected"),
    [
        ((2, 2), 8, 1, 4, "concatenated"),  # low ranks: composing and mixing kernels is not worth it
        ((40, 40, 40), 4, 1, 32, "merged"),  # ranks far above the width, many tokens
        (PAPER_RANKS, 64, 1, 8, "concatenated"),  # too few tokens to pay for the kernels
        (PAPER_RANKS, 64, 1, 64, "merged"),
        (PAPER_RANKS, 640, 4, 32, "concatenated"),  # merged needs fewer operations, but holds more
    ],
)
def test_auto_takes_the_merged_form_only_where_it_costs_less_in_both(
    monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...], channels: int, batch: int, side: int, expected: str
) -> None:
    taken: list[str] = []
    for form in ("concatenated", "merged"):
        monkeypatch.setattr(LowRankExperts, form, lambda *_, form=form: taken.append(form))
    experts = LowRankExperts(channels, ranks).to("meta")
    features = torch.empty(batch, 5, channels, side, side, device="meta")
    gates = torch.empty(batch, 5, len(ranks), device="meta")
    experts(features, gates)
    costs = experts.costs(batch, 5, side**2)
    cheaper = all(a < b for a, b in zip(costs["merged"], costs["concatenated"], strict=True))
    assert taken == [expected] == ["merged" if cheaper else "concatenated"]
    for form in ("merged", "concatenated"):
        experts.form = form
        experts(features, gates)
        assert taken.pop() == form


# ---- how they start, and the two other low-rank layers


def test_experts_start_as_separate_kaiming_convolutions_with_zero_biases() -> None:
    torch.manual_seed(0)
    experts = LowRankExperts(32, (4, 16, 64))
    assert not experts.up_bias.any()
    assert not experts.down.bias.any()
    bounds = zip(experts.up_weight.split([4, 16, 64], dim=1), experts.down.weight.split([4, 16, 64]), strict=True)
    for rank, (up, down) in zip((4, 16, 64), bounds, strict=True):
        for weight, fan_in in ((up, rank), (down, 9 * 32)):
            reference = nn.Conv2d(fan_in, 64, 1).weight  # torch's default is Kaiming-uniform with a = sqrt(5)
            assert weight.abs().max() <= fan_in**-0.5
            assert weight.std().item() == pytest.approx(reference.std().item(), rel=0.15)


def test_the_low_rank_generic_path_is_a_3x3_and_then_a_1x1_convolution() -> None:
    layer, x = LowRankConv2d(4, 2).double(), draw(2, 4, 3, 5)
    expected = [
        naive.convolve(naive.convolve(m, layer.down.weight, layer.down.bias), layer.up.weight, layer.up.bias) for m in x
    ]
    torch.testing.assert_close(layer(x), torch.stack(expected))


@pytest.mark.parametrize(("tasks", "batch"), [(3, 2), (1, 1)])
def test_the_task_experts_and_their_gradients_equal_a_pair_of_convolutions_per_task(tasks: int, batch: int) -> None:
    layer = TaskExperts(tasks, 4, 2).double()
    assert not layer.down.bias.any()
    assert not layer.up.bias.any()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * draw(*parameter.shape))
    x = draw(batch, tasks, 4, 5, 3).requires_grad_()
    rows = [
        torch.stack([naive.per_task(layer.up, naive.per_task(layer.down, m[t], t), t) for t in range(tasks)]) for m in x
    ]
    ours, theirs, slope = layer(x), torch.stack(rows), draw(batch, tasks, 4, 5, 3, seed=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    leaves = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((output * slope).sum(), leaves) for output in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
