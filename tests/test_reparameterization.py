"""Every rule of re-parameterisation equals the convolutions it replaces, borders and gradients included."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlore_edu.errors import UserError
from mlore_edu.reparameterization import (
    add,
    batchnorm_as_scale_and_shift,
    choose_mode,
    compose,
    dynamic_conv,
    fold_batchnorm,
    fuse,
    mix,
    mix_low_rank,
    scale_channels,
)

SHAPES = {"height": st.integers(1, 7), "width": st.integers(1, 7), "seed": st.integers(0, 999)}
FEW = settings(max_examples=25, deadline=None)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def conv(features, weight, bias):
    return F.conv2d(features, weight, bias, padding=weight.shape[-1] // 2)


def assert_equal(ours, reference):
    """Equal up to the rounding of float64, relative to the largest value."""
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-12 * reference.abs().max().clamp_min(1e-300)


def random_norm(channels, seed=0, eps=1e-5):
    norm = nn.BatchNorm2d(channels, eps=eps).double().eval()
    for index, tensor in enumerate((norm.weight.data, norm.bias.data, norm.running_mean)):
        tensor.copy_(random(channels, seed=seed + index))
    norm.running_var.copy_(random(channels, seed=seed + 3).square())
    return norm


@FEW
@given(size=st.sampled_from([1, 3, 5]), rank=st.integers(1, 5), **SHAPES)
def test_a_convolution_and_the_1x1_after_it_compose_to_one_borders_included(size, rank, height, width, seed):
    features = random(2, 3, height, width, seed=seed)
    first = random(rank, 3, size, size, seed=seed + 1), random(rank, seed=seed + 2)
    second = random(4, rank, seed=seed + 3), random(4, seed=seed + 4)
    weight, bias = compose(*first, *second)
    assert_equal(conv(features, weight, bias), conv(conv(features, *first), second[0][..., None, None], second[1]))


def test_many_pairs_compose_at_once():
    first, second = (random(2, 5, 3, 4, 3, 3), random(2, 5, 3)), (random(2, 5, 6, 3, seed=1), random(2, 5, 6))
    weights, biases = compose(*first, *second)
    for i in range(2):
        for j in range(5):
            weight, bias = compose(first[0][i, j], first[1][i, j], second[0][i, j], second[1][i, j])
            assert_equal(weights[i, j], weight)
            assert_equal(biases[i, j], bias)


def one_by_one_then_three_by_three(bias):
    """The other order: what is computed, and what the composed kernel would give."""
    features, first, second = random(1, 3, 6, 7), random(4, 3, 1, 1, seed=1), random(5, 4, 3, 3, seed=2)
    truth = conv(conv(features, first, bias), second, None)
    weight = torch.einsum("omkl,mi->oikl", second, first[..., 0, 0])
    shift = second.sum((-2, -1)) @ bias
    return truth, conv(features, weight, shift)


def test_the_other_order_composes_only_inside_the_map_where_the_1x1_has_a_bias():
    truth, composed = one_by_one_then_three_by_three(random(4, seed=3))
    assert_equal(composed[..., 1:-1, 1:-1], truth[..., 1:-1, 1:-1])
    frame = torch.ones(6, 7, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert bool(((composed - truth).abs() > 1e-3)[..., frame].all())


def test_the_other_order_composes_everywhere_where_the_1x1_has_no_bias():
    truth, composed = one_by_one_then_three_by_three(torch.zeros(4, dtype=torch.float64))
    assert_equal(composed, truth)


def test_a_scale_per_channel_moves_into_the_convolution():
    features, weight, bias, scale = random(2, 3, 5, 4), random(4, 3, 3, 3), random(4), random(4, seed=1)
    assert_equal(
        conv(features, *scale_channels(weight, bias, scale)), conv(features, weight, bias) * scale[:, None, None]
    )


def test_convolutions_of_one_input_add():
    features, convolutions = random(2, 3, 5, 4), [(random(4, 3, 3, 3, seed=s), random(4, seed=s + 9)) for s in range(3)]
    assert_equal(conv(features, *add(*convolutions)), sum(conv(features, *c) for c in convolutions))
    assert add(convolutions[0])[0] is convolutions[0][0]


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
def test_a_batchnorm_folds_into_the_convolution_before_it_with_its_epsilon(eps):
    features, weight, bias = random(2, 3, 5, 4), random(4, 3, 3, 3), random(4)
    norm = random_norm(4, eps=eps)
    assert_equal(conv(features, *fold_batchnorm(weight, bias, norm)), norm(conv(features, weight, bias)))


def test_without_epsilon_as_the_paper_prints_it_the_fold_is_off():
    norm = random_norm(4)
    norm.running_var.fill_(1e-4)
    scale, _ = batchnorm_as_scale_and_shift(norm)
    printed = norm.weight / norm.running_var.sqrt()
    torch.testing.assert_close(printed / scale, torch.full_like(scale, (1 + 1e-5 / 1e-4) ** 0.5))


def test_a_batchnorm_without_weights_folds_too():
    norm = nn.BatchNorm2d(4, affine=False).double().eval()
    norm.running_mean.copy_(random(4))
    norm.running_var.copy_(random(4).square())
    features = random(2, 4, 3, 3)
    scale, shift = batchnorm_as_scale_and_shift(norm)
    assert_equal(features * scale[:, None, None] + shift[:, None, None], norm(features))


def test_a_batchnorm_without_running_statistics_is_refused():
    with pytest.raises(UserError, match=r"running statistics.*track_running_stats=True"):
        fold_batchnorm(random(4, 3, 3, 3), random(4), nn.BatchNorm2d(4, track_running_stats=False))


def test_gates_mix_kernels_as_they_mix_the_experts_outputs():
    features, gates = random(2, 3, 5, 4), random(2, 3, 6, seed=1)
    kernels, biases = random(6, 4, 3, 3, 3), random(6, 4)
    kernel, bias = mix(gates, kernels), mix(gates, biases)
    for sample in range(2):
        for task in range(3):
            outputs = [conv(features[sample], kernels[n], biases[n]) for n in range(6)]
            expected = sum(gate * output for gate, output in zip(gates[sample, task], outputs, strict=True))
            assert_equal(conv(features[sample], kernel[sample, task], bias[sample, task]), expected)


@FEW
@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4), size=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_mixing_low_rank_factors_equals_mixing_the_composed_experts(ranks, size, seed):
    total, gates = sum(ranks), random(2, 3, len(ranks), seed=seed)
    up, up_bias = random(4, total, seed=seed + 1), random(len(ranks), 4, seed=seed + 2)
    down, down_bias = random(total, 5, size, size, seed=seed + 3), random(total, seed=seed + 4)
    parts = (tensor.split(ranks) for tensor in (down, down_bias, up.T))
    experts = [compose(d, d_bias, u.T, u_bias) for d, d_bias, u, u_bias in zip(*parts, up_bias, strict=True)]
    weights, biases = zip(*experts, strict=True)
    gate_of_rank = gates.repeat_interleave(torch.tensor(ranks), dim=-1)
    kernel, bias = mix_low_rank(gate_of_rank, up, down, down_bias)
    assert_equal(kernel, mix(gates, torch.stack(weights)))
    assert_equal(bias + mix(gates, up_bias), mix(gates, torch.stack(biases)))


def test_the_upper_factors_may_differ_between_tasks():
    gate_of_rank, up, down, down_bias = random(2, 3, 6), random(3, 4, 6, seed=1), random(6, 5, 3, 3), random(6)
    kernel, bias = mix_low_rank(gate_of_rank, up, down, down_bias)
    for task in range(3):
        weight, shift = mix_low_rank(gate_of_rank[:, task], up[task], down, down_bias)
        assert_equal(kernel[:, task], weight)
        assert_equal(bias[:, task], shift)


@FEW
@given(
    samples=st.integers(1, 4),
    tasks=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.sampled_from([1, 3, 5]),
    **SHAPES,
)
def test_every_sample_and_task_is_convolved_with_its_own_kernel(samples, tasks, channels, size, height, width, seed):
    inside, outside = channels
    features = random(samples, tasks, inside, height, width, seed=seed)
    kernels, biases = random(samples, tasks, outside, inside, size, size, seed=seed), random(samples, tasks, outside)
    output = dynamic_conv(features, kernels, biases)
    assert output.shape == (samples, tasks, outside, height, width)
    for sample in range(samples):
        for task in range(tasks):
            expected = conv(features[sample, task], kernels[sample, task], biases[sample, task])
            assert_equal(output[sample, task], expected)


def test_features_need_not_be_contiguous():
    features, kernels, biases = random(2, 3, 5, 4, 4), random(2, 3, 4, 4, 3, 3), random(2, 3, 4)
    turned = features.transpose(-1, 2)
    assert_equal(dynamic_conv(turned, kernels, biases), dynamic_conv(turned.contiguous(), kernels, biases))


def test_a_kernel_of_even_size_is_refused():
    with pytest.raises(UserError, match=r"size 2.*odd"):
        dynamic_conv(random(1, 1, 2, 4, 4), random(1, 1, 2, 2, 2, 2), random(1, 1, 2))


def test_all_rules_are_differentiable():
    def forward(features, gates, down, down_bias, up, up_bias, scale):
        kernel, bias = mix_low_rank(gates.repeat_interleave(2, dim=-1), up, down, down_bias)
        kernel, bias = scale_channels(kernel, bias + mix(gates, up_bias), scale)
        one, its_bias = compose(down[:2], down_bias[:2], up[:, :2], up_bias[0])
        return dynamic_conv(features, *add((kernel, bias), (one, its_bias)))

    shapes = (2, 2, 3, 3, 2), (2, 2, 2), (4, 3, 3, 3), (4,), (2, 4), (2, 2), (2,)
    arguments = [random(*shape, seed=index).requires_grad_() for index, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(forward, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_floating_dtype_is_kept_even_where_gates_are_wider(dtype):
    gates = random(2, 3, 4).float()
    kernels, biases = random(4, 5, 3, 3, 3).to(dtype), random(4, 5).to(dtype)
    features = random(2, 3, 3, 4, 4).to(dtype)
    output = dynamic_conv(features, mix(gates, kernels), mix(gates, biases))
    low_rank, _ = mix_low_rank(gates, random(5, 4).to(dtype), kernels[:, 0], biases[:, 0])
    assert output.dtype == low_rank.dtype == dtype
    exact = dynamic_conv(features.double(), mix(gates, kernels.double()), mix(gates, biases.double()))
    assert (output - exact).abs().max() <= 30 * torch.finfo(dtype).eps * exact.abs().max()


class Pair(nn.Module):
    """Two 3×3 convolutions in parallel, which fuse to one; precomposed, they take up more than they need."""

    def __init__(self, channels=2, waste=0):
        super().__init__()
        self.left, self.right = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.waste = waste

    def forward(self, features):
        return self.left(features) + self.right(features)

    def fuse(self, mode=None):
        fused = copy.deepcopy(self.left)
        pairs = ((c.weight.detach(), c.bias.detach()) for c in (self.left, self.right))
        fused.weight.data, fused.bias.data = add(*pairs)
        fused.mode = mode
        if mode == "precomposed":
            fused.spare = nn.Parameter(fused.weight.new_zeros(self.waste))
        return fused


def test_fusing_replaces_what_can_be_fused_and_leaves_the_model_as_it_was():
    model = nn.Sequential(Pair(), nn.BatchNorm2d(2), nn.Sequential(nn.GELU(), Pair())).double().eval()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, "on_the_fly")
    features = random(2, 2, 5, 4)
    assert_equal(fused(features), model(features))
    assert [type(module).__name__ for module in (fused[0], fused[1], fused[2][1])] == [
        "Conv2d",
        "BatchNorm2d",
        "Conv2d",
    ]
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not fused.training


def test_a_module_that_is_the_whole_model_is_fused():
    assert type(fuse(Pair().eval(), "precomposed")) is nn.Conv2d


def test_the_mode_not_named_is_precomposed_as_long_as_that_at_most_doubles_the_model():
    rest = nn.Linear(9, 10)  # 100 parameters beside the 76 of a Pair, of which fusing keeps 38
    for waste, expected in ((176 + 38, "precomposed"), (176 + 39, "on_the_fly")):
        model = nn.Sequential(Pair(waste=waste), rest).eval()
        assert choose_mode(model) == expected
        assert fuse(model)[0].mode == expected


def test_what_cannot_be_fused_is_said_in_one_sentence():
    with pytest.raises(UserError, match=r"training mode.*model\.eval\(\)"):
        fuse(Pair())
    with pytest.raises(UserError, match=r"training mode"):
        fuse(nn.Sequential(Pair().eval(), nn.BatchNorm2d(2)).train(False).append(nn.Dropout()))
    with pytest.raises(UserError, match="no mode 'fast'; choose one of precomposed, on_the_fly"):
        fuse(Pair().eval(), "fast")
    for mode in (None, "precomposed"):
        with pytest.raises(UserError, match=r"nothing to fuse; .*mlore"):
            fuse(nn.Conv2d(2, 2, 3).eval(), mode)
