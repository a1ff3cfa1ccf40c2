"""The full-width experts and their decoder against loops over samples, tasks and experts, read off Eq. 1."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlore_edu.complexity import count
from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.moe import ConvExperts, MoEDecoder, importance_loss, load_loss, noisy_top_k
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2

PYRAMID = [MapShape(3, 8, 12), MapShape(6, 4, 6), MapShape(12, 2, 3), MapShape(24, 1, 2)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- the experts


def experts_one_by_one(experts: ConvExperts, feature: Tensor) -> list[Tensor]:
    """Each expert on one feature (C, H, W), from its own kernels."""
    c, answers = experts.channels, []
    for n in range(experts.experts):
        own = slice(n * c, (n + 1) * c)
        padding = experts.spatial.kernel_size[0] // 2
        hidden = F.conv2d(feature[None], experts.spatial.weight[own], experts.spatial.bias[own], padding=padding)
        answers.append(F.conv2d(F.relu(hidden), experts.pointwise.weight[own], experts.pointwise.bias[own])[0])
    return answers


def mix_naively(experts: ConvExperts, features: Tensor, gates: Tensor) -> Tensor:
    """Eq. 1, one sample, one task and one expert after the other; features (B, T, C, H, W)."""
    rows = []
    for b in range(len(features)):
        for t in range(features.shape[1]):
            answers = experts_one_by_one(experts, features[b, t])
            rows.append(sum(gates[b, t, n] * answers[n] for n in range(experts.experts)))
    return torch.stack(rows).unflatten(0, features.shape[:2])


def make_experts(channels: int = 3, experts: int = 4, kernel_size: int = 3) -> ConvExperts:
    torch.manual_seed(0)
    return ConvExperts(channels, experts, kernel_size).double()


@pytest.mark.parametrize(("batch", "tasks", "n", "k", "kernel"), [(2, 3, 4, 2, 3), (1, 1, 1, 1, 3), (3, 2, 5, 5, 1)])
def test_every_sample_and_task_gets_its_own_sum_of_experts_with_equal_gradients(
    batch: int, tasks: int, n: int, k: int, kernel: int
) -> None:
    experts = make_experts(experts=n, kernel_size=kernel)
    features = draw(batch, tasks, 3, 4, 5).requires_grad_()
    gates = noisy_top_k(draw(batch, tasks, n), None, k, softmax_first=True, training=False).gates.requires_grad_()
    ours, naive = experts(features, gates, k), mix_naively(experts, features, gates)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    leaves = [features, *experts.parameters()]
    goal = draw(*ours.shape, seed=5)
    for a, b in zip(
        torch.autograd.grad((ours * goal).sum(), [*leaves, gates]),
        torch.autograd.grad((naive * goal).sum(), [*leaves, gates]),
        strict=True,
    ):
        if a.shape == gates.shape:  # experts that do not run give no gradient to their gates
            b = b * (gates > 0)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_on_a_shared_feature_the_experts_run_once_and_equal_the_loop_with_gradients() -> None:
    experts = make_experts()
    feature, gates = draw(2, 3, 4, 5).requires_grad_(), draw(2, 6, 4, seed=1).requires_grad_()
    ours = experts.shared(feature, gates)
    naive = mix_naively(experts, feature[:, None].expand(-1, 6, -1, -1, -1), gates)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    leaves = [feature, gates, *experts.parameters()]
    for a, b in zip(torch.autograd.grad(ours.sin().sum(), leaves), torch.autograd.grad(naive.sin().sum(), leaves)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_renaming_the_experts_and_their_gates_alike_changes_nothing() -> None:
    experts, permuted = make_experts(), make_experts()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for name, parameter in experts.named_parameters():
            shuffled = parameter.unflatten(0, (4, 3))[order].flatten(0, 1)
            permuted.get_parameter(name).copy_(shuffled)
    features = draw(2, 3, 3, 4, 5)
    gates = noisy_top_k(draw(2, 3, 4), None, 2, softmax_first=False, training=False).gates
    torch.testing.assert_close(experts(features, gates, 2), permuted(features, gates[..., order], 2))
    torch.testing.assert_close(
        experts.shared(features[:, 0], gates), permuted.shared(features[:, 0], gates[..., order])
    )


def test_an_expert_that_no_task_chose_has_no_say_and_gets_no_gradient() -> None:
    experts = make_experts()
    gates = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0.2, 0.8, 0]]], dtype=torch.float64)
    experts(draw(1, 2, 3, 4, 5), gates, 2).sum().backward()
    assert experts.spatial.weight.grad is not None
    per_expert = experts.spatial.weight.grad.unflatten(0, (4, 3)).abs().flatten(1).amax(1)
    assert (per_expert > 0).tolist() == [True, True, True, False]


def test_a_gate_that_underflowed_to_zero_leaves_the_sum_right() -> None:
    experts = make_experts()
    gates = torch.tensor([[[1.0, 0, 0, 0]]], dtype=torch.float64)
    features = draw(1, 1, 3, 4, 5)
    torch.testing.assert_close(experts(features, gates, 3), mix_naively(experts, features, gates))


class Calls(nn.Module):
    """Experts as a model of one image, so that complexity.count can see them."""

    def __init__(self, tasks: int, k: int | None) -> None:
        super().__init__()
        self.experts, self.tasks, self.k = ConvExperts(3, 6), tasks, k

    def forward(self, images: Tensor) -> Tensor:
        gates = images.new_zeros(len(images), self.tasks, 6)
        if self.k is None:
            return self.experts.shared(images, gates)
        return self.experts(images[:, None].expand(-1, self.tasks, -1, -1, -1), gates, self.k)


@pytest.mark.parametrize(("tasks", "k"), [(1, 1), (5, 1), (5, 4), (2, 6)])
def test_sparse_experts_are_counted_once_per_task_and_active_expert(tasks: int, k: int) -> None:
    one_expert = 8 * 10 * (9 * 3 * 3 + 3 * 3)
    mixing_kernels = tasks * k * (3 * 3 + 3)  # gates times 1x1 kernels and biases, a batched product
    macs = count(Calls(tasks, k), (8, 10)).macs
    assert tasks * k * one_expert <= macs <= tasks * k * one_expert + mixing_kernels


def test_shared_experts_are_counted_once_each_however_many_tasks_there_are() -> None:
    one_expert = 8 * 10 * (9 * 3 * 3 + 3 * 3)
    for tasks in (1, 5):
        assert count(Calls(tasks, None), (8, 10)).macs == 6 * one_expert + tasks * 6 * 3 * 80  # + Eq. 1's sum


def test_options_that_make_no_experts_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="kernel_size is 2; give an odd number"):
        ConvExperts(3, 4, 2)
    with pytest.raises(UserError, match="experts is 0; give a whole number of at least 1"):
        ConvExperts(3, 0)
    with pytest.raises(UserError, match="k is 5; give a whole number from 1 to 4"):
        make_experts()(draw(1, 1, 3, 4, 5), torch.zeros(1, 1, 4), 5)


# ---- the decoder


def make_decoder(batch: int = 2, tasks=DOLLHOUSE, shapes: list[MapShape] = PYRAMID, **options: object):
    torch.manual_seed(0)
    decoder = MoEDecoder(tasks, shapes, channels=5, **options).double()
    return decoder, [draw(batch, *shape, seed=i) for i, shape in enumerate(shapes)]


def decode_naively(decoder: MoEDecoder, maps: list[Tensor], task: int) -> Tensor:
    """Section 3.2 read literally in evaluation mode: concatenate the scales, then one matrix 4C -> C."""
    tasks, channels, parts, kernels = len(decoder.task_names), decoder.channels, [], []
    size = max(tuple(feature_map.shape[-2:]) for feature_map in maps)
    for feature_map, scale in zip(maps, decoder.scales, strict=True):
        features = scale.project(feature_map)
        routed = scale.routers(features.mean((2, 3))).view(len(features), tasks, -1)[:, task]
        logits = routed[:, : scale.experts.experts]
        kept = logits.topk(decoder.k).indices
        gates = torch.zeros_like(logits).scatter(1, kept, logits.gather(1, kept).softmax(-1))
        mixed = mix_naively(scale.experts, features[:, None], gates[:, None])[:, 0]
        parts.append(F.interpolate(mixed, size, mode="bilinear", align_corners=False))
        kernels.append(scale.to_sum.weight[task * channels : (task + 1) * channels])
    bias = decoder.scales[0].to_sum.bias[task * channels : (task + 1) * channels]
    return F.conv2d(torch.cat(parts, 1), torch.cat(kernels, 1), bias)


@pytest.mark.parametrize("shapes", [PYRAMID, [MapShape(6, 3, 4)] * 4], ids=["pyramid", "equal maps"])
def test_the_decoder_equals_the_section_read_literally_with_gradients(shapes: list[MapShape]) -> None:
    decoder, maps = make_decoder(shapes=shapes, experts=4, k=2)
    features = decoder.eval()(maps).features
    assert tuple(features) == DOLLHOUSE.names
    naive = [decode_naively(decoder, maps, task) for task in range(len(DOLLHOUSE))]
    for ours, theirs in zip(features.values(), naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    leaves = list(decoder.parameters())
    ours = torch.autograd.grad(sum(f.sin().sum() for f in features.values()), leaves)
    theirs = torch.autograd.grad(sum(f.sin().sum() for f in naive), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_routing_names_scales_and_modules_and_every_row_has_k_gates_that_sum_to_one() -> None:
    decoder, maps = make_decoder(experts=5, k=3)
    routing = decoder(maps).routing
    assert list(routing) == [f"scale {s}, module 1" for s in (1, 2, 3, 4)]
    for gates in routing.values():
        assert gates.shape == (2, 6, 5)
        assert ((gates > 0).sum(-1) == 3).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(2, 6, dtype=torch.float64))


def test_every_parameter_takes_part_in_every_step_so_that_ddp_need_not_search() -> None:
    for options in ({}, {"experts": 1}, {"k": 15}, {"noise": False}):
        decoder, maps = make_decoder(**options)
        output = decoder(maps)
        (sum(f.sum() for f in output.features.values()) + output.balance_loss).backward()
        assert all(parameter.grad is not None for parameter in decoder.parameters()), options


@pytest.mark.parametrize("noise", [True, False])
def test_the_balance_loss_alone_reaches_every_router_with_finite_gradients(noise: bool) -> None:
    decoder, maps = make_decoder(experts=6, k=2, noise=noise)
    decoder(maps).balance_loss.backward()
    for scale in decoder.scales:
        gradient = scale.routers.weight.grad
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_the_balance_loss_is_the_weighted_sum_over_scales_and_zero_weight_gives_zero() -> None:
    def loss(weight: float) -> Tensor:
        decoder, maps = make_decoder(experts=6, k=2, balance_weight=weight, noise=False)
        output = decoder(maps)
        by_scale = [importance_loss(g) + load_loss((g > 0).double()) for g in output.routing.values()]
        torch.testing.assert_close(output.balance_loss, weight * sum(by_scale))
        return output.balance_loss

    assert loss(0.0).item() == 0
    torch.testing.assert_close(3 * loss(0.1), loss(0.3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"experts": 1}, {"experts": 2, "k": 1}, {"experts": 3, "k": 3}])
def test_one_expert_one_task_one_image_and_evaluation_divide_nothing_by_zero(training: bool, options: dict) -> None:
    decoder, maps = make_decoder(batch=1, tasks=NYUD_V2.subset("depth"), **options)
    output = decoder.train(training)(maps)
    assert output.balance_loss.isfinite()
    assert output.balance_loss >= 0
    assert output.features["depth"].shape == (1, 5, 8, 12)
    (output.features["depth"].sum() + output.balance_loss).backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)
    if options["experts"] == options.get("k", 1):
        assert output.balance_loss.item() == pytest.approx(0, abs=0.05)


def test_evaluation_repeats_itself_and_one_image_is_answered_alike_alone_and_in_a_batch() -> None:
    decoder, maps = make_decoder(batch=3, experts=5)
    decoder.eval()
    together, alone = decoder(maps).features, decoder([m[1:2] for m in maps]).features
    for name, features in together.items():
        torch.testing.assert_close(features[1:2], alone[name])


def test_sixty_per_cent_of_the_experts_are_active_if_nothing_is_said() -> None:
    assert [make_decoder(experts=n)[0].k for n in (1, 2, 5, 10, 15)] == [1, 1, 3, 6, 9]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"experts": 0}, "experts is 0; give a whole number of at least 1."),
        ({"k": 16}, "k is 16; give a whole number from 1 to 15, the number of experts."),
        ({"balance_weight": -1.0}, "balance_weight is -1.0; give a number of at least 0."),
        ({"balance_weight": math.nan}, "balance_weight is nan; give a number of at least 0."),
        ({"balance_weight": True}, "balance_weight is True; give a number of at least 0."),
        ({"noise": "no"}, "noise is 'no'; give True or False."),
        ({"balance_weight": "much"}, "balance_weight is 'much'; give a number of at least 0."),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_decoder(**options)
    assert str(caught.value) == sentence
