"""TIF against its equations: one task after the other, its affinities as matrices; gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.pyramid import align
from mlore_edu.decoders.tif import (
    Affinity,
    FeedForward,
    LowToHighDiffusion,
    ScaleAttentiveFusion,
    SelfFeatureDistillation,
    TIFDecoder,
)
from mlore_edu.tasks import DOLLHOUSE
from tests.naive_mlore import convolve

SHAPES = [MapShape(3, 16, 24), MapShape(4, 8, 12), MapShape(5, 4, 6), MapShape(6, 2, 3)]

# ---- the equations, task by task; of the library only the parameters are used


def rows(parameter: Tensor, index: int, groups: int) -> Tensor:
    """The ``index``-th of ``groups`` equal parts."""
    size = len(parameter) // groups
    return parameter[index * size : (index + 1) * size]


def tokens(features: Tensor) -> Tensor:
    """Pixels row by row: ``(C, H, W)`` to ``(n, C)``."""
    return torch.stack([features[:, i, j] for i in range(features.shape[1]) for j in range(features.shape[2])])


def as_map(rows_of_tokens: Tensor, like: Tensor) -> Tensor:
    """Back again: ``(n, C)`` to ``(C, H, W)``."""
    return rows_of_tokens.T.reshape(-1, *like.shape[1:])


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm of one token ``(C,)``."""
    return (x - x.mean()) / (((x - x.mean()) ** 2).mean() + eps).sqrt() * weight + bias


def softmax(scores: Tensor) -> Tensor:
    exponentials = (scores - scores.max()).exp()
    return exponentials / exponentials.sum()


def enlargement(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bilinear enlargement as a matrix ``(new n, old n)``: its columns are the enlarged unit maps."""
    units = torch.eye(old[0] * old[1], dtype=torch.float64).unflatten(1, (1, *old))  # (old n, 1, h, w)
    return F.interpolate(units, size=new, mode="bilinear", align_corners=False).flatten(1).T


def naive_feed_forward(module: FeedForward, x: Tensor, task: int, tasks: int) -> Tensor:
    """FFN of one task's tokens ``(n, C)``."""
    first = [rows(p, task, tasks) for p in (module.expand.weight, module.expand.bias)]
    last = [rows(p, task, tasks) for p in (module.project.weight, module.project.bias)]
    hidden = []
    for token in x:
        h = first[0].flatten(1) @ normalise(token, module.norm.weight[task], module.norm.bias[task]) + first[1]
        hidden.append(last[0].flatten(1) @ (h * 0.5 * (1 + torch.erf(h / 2**0.5))) + last[1])
    return torch.stack(hidden)


def naive_distillation(module: SelfFeatureDistillation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 6 to 10 for one sample ``(T, C, H, W)``: refined features, and the affinity matrices ``(T, n, n)``."""
    tasks, channels = x.shape[:2]
    flat = [
        torch.stack([normalise(token, module.flat.weight[t], module.flat.bias[t]) for token in tokens(x[t])])
        for t in range(tasks)
    ]
    refined, matrices = [], []
    for t in range(tasks):
        keys = torch.zeros_like(flat[t])
        if module.cross:
            for source in range(tasks):
                keys = keys + flat[source] @ rows(module.key.weight, source, tasks).flatten(1).T
        else:
            for n in range(module.maps):  # Eq. 6
                keys = keys + flat[t] @ rows(rows(module.key.weight, t, tasks), n, module.maps).flatten(1).T
        query = flat[0 if module.query_of_first else t] @ rows(module.query.weight, t, tasks).flatten(1).T  # Eq. 7
        matrix = query @ keys.T * (module.scale if module.scale == 1 else 1 / channels**0.5)  # Eq. 8
        weights = torch.stack([softmax(row) for row in matrix])
        out = weights @ keys + tokens(x[t])  # Eq. 9
        out = naive_feed_forward(module.feed_forward, out, t, tasks) + out  # Eq. 10
        refined.append(as_map(out, x[t]))
        matrices.append(matrix)
    return torch.stack(refined), torch.stack(matrices)


def naive_fuse(module: nn.Module, maps: list[Tensor], task: int, tasks: int) -> Tensor:
    """FeatureFuse in evaluation mode for one task's maps ``(C_i, H_i, W_i)``."""
    conv, norm = module.block[0], module.block[1].norm
    size = max(tuple(m.shape[1:]) for m in maps)
    large = [as_map(enlargement(m.shape[1:], size) @ tokens(m), torch.zeros(1, *size)) for m in maps]
    out = convolve(torch.cat(large), rows(conv.weight, task, tasks), None)
    mean, var, weight, bias = (
        rows(p, task, tasks)[:, None, None] for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return ((out - mean) / (var + norm.eps).sqrt() * weight + bias).clamp_min(0)


def naive_diffusion(module: LowToHighDiffusion, x: Tensor, matrices: Tensor, low: tuple[int, int]) -> Tensor:
    """Eqs. 12 and 13 for one sample ``(T, C, H, W)`` and the matrices of Eq. 11 between ``low`` tokens."""
    tasks, out = len(x), []
    height, width = x.shape[2] // low[0], x.shape[3] // low[1]
    for t in range(tasks):
        pooled = torch.stack(
            [
                x[t, :, i * height : (i + 1) * height, j * width : (j + 1) * width].mean((1, 2))
                for i in range(low[0])
                for j in range(low[1])
            ]
        )  # (n, C)
        values = pooled @ rows(module.value.weight, t, tasks).flatten(1).T
        weights = torch.stack([softmax(row) for row in matrices[t]])
        diffused = (values.T @ weights).T if module.scatters else weights @ values  # Eq. 12
        diffused = naive_feed_forward(module.feed_forward, diffused, t, tasks)
        out.append(naive_fuse(module.fuse, [x[t], as_map(diffused, torch.zeros(1, *low))], t, tasks))  # Eq. 13
    return torch.stack(out)


def naive_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm in evaluation mode of a map ``(C, H, W)``."""
    mean, var, weight, bias = (p[:, None, None] for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def naive_fusion(module: ScaleAttentiveFusion, scales: list[Tensor]) -> Tensor:
    """Eqs. 2 to 5 in evaluation mode for one sample's scales ``(C_i, H_i, W_i)``."""
    conv, norm = module.reduce
    own = convolve(scales[module.scale], conv.weight, None)
    own = naive_norm(norm, own)
    if not module.fused:
        return own
    size, others = own.shape[1:], []
    for index, scale in enumerate(scales):
        if index < module.scale:
            k = scale.shape[1] // size[0]
            others.append(scale.unflatten(2, (-1, k)).unflatten(1, (-1, k)).mean((2, 4)))
        elif index > module.scale:
            others.append(as_map(enlargement(scale.shape[1:], size) @ tokens(scale), own))
    aligned = convolve(torch.cat(others), module.gather.weight, module.gather.bias)  # Eq. 2
    if isinstance(module.norm, nn.BatchNorm2d):
        aligned = naive_norm(module.norm, aligned)
    hidden = convolve(torch.cat([own, aligned]), module.fuse[0].weight, module.fuse[0].bias)
    if isinstance(module.fuse[1], nn.Sequential):
        hidden = naive_norm(module.fuse[1][0], hidden)
    hidden = hidden.clamp_min(0)
    fused = convolve(hidden, module.fuse[2].weight, module.fuse[2].bias) + own  # Eq. 3
    pairs = zip(fused, module.spatial.weight, module.spatial.bias)
    spatial = torch.cat([convolve(c[None], w[None], b[None]) for c, w, b in pairs]).clamp_min(0)  # Eq. 4
    return convolve(spatial, module.mix.weight, module.mix.bias)  # Eq. 5


def randomised(module: nn.Module) -> Any:
    """In float64 and evaluation mode, with no parameter at 0 or 1."""
    module = module.double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2)
    return module


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


def assert_same(fast: Tensor, naive: Tensor, inputs: list[Tensor]) -> None:
    """Values, and what the inputs and parameters are told to change."""
    torch.testing.assert_close(fast, naive, rtol=1e-9, atol=1e-9)
    for got, wanted in zip(gradients(fast, inputs), gradients(naive, inputs)):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# ---- modules


@pytest.mark.parametrize("scale", range(4))
@pytest.mark.parametrize(("fused", "norm"), [(True, False), (True, True), (False, False)])
def test_a_fused_scale_is_what_equations_2_to_5_say(scale: int, fused: bool, norm: bool) -> None:
    module = randomised(ScaleAttentiveFusion(SHAPES, scale, 4, fused, norm))
    scales = [random(2, *shape) for shape in SHAPES]
    naive = torch.stack([naive_fusion(module, [s[b] for s in scales]) for b in range(2)])
    wanted = [*(scales if fused else [scales[scale]]), *module.parameters()]
    assert_same(module(scales), naive, wanted)


SELF = [
    {"key_maps": 3},
    {"key_maps": 1},
    {"key_maps": 3, "distillation": "cross"},
    {"key_maps": 3, "query": "first"},
    {"key_maps": 3, "scaled": False},
]


@pytest.mark.parametrize("options", SELF, ids=str)
def test_distillation_is_what_equations_6_to_10_say(options: dict[str, Any]) -> None:
    module = randomised(SelfFeatureDistillation(3, 4, **options))
    x = random(2, 3, 4, 2, 3)
    refined, affinity = module(x)
    naive = [naive_distillation(module, sample) for sample in x]
    torch.testing.assert_close(affinity.matrix(), torch.stack([matrix for _, matrix in naive]))
    assert_same(refined, torch.stack([features for features, _ in naive]), [x, *module.parameters()])


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_distillation_of_any_size(batch: int, tasks: int, channels: int, height: int, width: int, maps: int) -> None:
    module = randomised(SelfFeatureDistillation(tasks, channels, key_maps=maps))
    x = torch.randn(batch, tasks, channels, height, width, dtype=torch.float64)
    naive = torch.stack([naive_distillation(module, sample)[0] for sample in x])
    torch.testing.assert_close(module(x)[0], naive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("diffusion", ["gather", "scatter"])
@pytest.mark.parametrize("given_scales", [(3,), (2, 3)])
def test_diffusion_is_what_equations_11_to_13_say(diffusion: Any, given_scales: tuple[int, ...]) -> None:
    module = randomised(LowToHighDiffusion(3, 4, diffusion))
    x, low = random(2, 3, 4, 8, 12), (4, 6)
    factors = {3: [random(2, 3, 5, 2, 3) for _ in "QK"], 2: [random(2, 3, 4, 4, 6) for _ in "QK"]}
    up = enlargement((2, 3), low)
    matrices = up @ Affinity(*factors[3]).matrix() @ up.T  # f_up: both axes of tokens
    affinity = Affinity(*factors[3]).resized(low)
    if 2 in given_scales:
        matrices = matrices + Affinity(*factors[2]).matrix()  # Eq. 11
        affinity = affinity.plus(Affinity(*factors[2]))
    torch.testing.assert_close(affinity.matrix(), matrices)
    naive = torch.stack([naive_diffusion(module, sample, m, low) for sample, m in zip(x, matrices)])
    used = [x, *module.parameters(), *(f for scale in given_scales for f in factors[scale])]
    assert_same(module(x, affinity), naive, used)


# ---- laws


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_gathering_keeps_a_constant_map_and_scattering_only_its_sum(h: int, w: int, tasks: int, channels: int) -> None:
    affinity = Affinity(*(torch.randn(1, tasks, channels, h, w, dtype=torch.float64) for _ in "QK"))
    constant = torch.ones(1, tasks, 1, h, w, dtype=torch.float64)
    torch.testing.assert_close(affinity.gather(constant), constant)
    torch.testing.assert_close(affinity.scatter(constant).sum((3, 4)), constant.sum((3, 4)))


def test_a_sum_of_linear_maps_is_one_linear_map() -> None:
    many = randomised(SelfFeatureDistillation(2, 4, key_maps=3))
    one = SelfFeatureDistillation(2, 4, key_maps=1).double()
    summed = many.key.weight.unflatten(0, (2, 3, 4)).sum(1).flatten(0, 1)
    one.load_state_dict(many.state_dict() | {"key.weight": summed})
    x = torch.randn(1, 2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(one(x)[0], many(x)[0])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_alignment_keeps_a_constant_map_and_reducing_keeps_the_mean(h: int, w: int, height: int, width: int) -> None:
    constant = torch.full((1, 2, 3, h, w), 0.7, dtype=torch.float64)
    assert align(constant, (height, width)).shape == (1, 2, 3, height, width)
    torch.testing.assert_close(align(constant, (height, width)), constant.new_full((1, 2, 3, height, width), 0.7))
    large = torch.randn(1, 3, 2 * h, 2 * w, dtype=torch.float64)
    torch.testing.assert_close(align(large, (h, w)).mean((2, 3)), large.mean((2, 3)))


# ---- the whole decoder

WHOLE: dict[str, dict[str, Any]] = {
    "full": {},
    "nothing": {"fused_scales": 0, "distilled_scales": 0, "diffusion": "none"},
    "one distilled": {"distilled_scales": 1},
    "three distilled": {"distilled_scales": 3},
    "all distilled": {"distilled_scales": 4, "diffusion": "none"},
    "two fused": {"fused_scales": 2},
    "cross": {"distillation": "cross"},
    "as printed": {"query": "first", "scaled": False, "diffusion": "scatter"},
}


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_the_decoder_is_its_modules_in_the_order_of_the_paper(options: dict[str, Any]) -> None:
    tasks = DOLLHOUSE.subset("semseg", "depth", "edge")
    decoder = randomised(TIFDecoder(tasks, SHAPES, 5, high_width=3, low_width=4, **options))
    maps = [random(1, *shape) for shape in SHAPES]
    shared = [naive_fusion(fusion, [m[0] for m in maps]) for fusion in decoder.fusions]
    of_tasks = [
        torch.stack([naive_fuse(_Block(block), [x], t, 3) for t in range(3)])
        for block, x in zip(decoder.to_tasks, shared)
    ]
    refined, matrices = list(of_tasks), {}
    for name, module in decoder.distillers.items():
        refined[int(name)], matrices[int(name)] = naive_distillation(module, of_tasks[int(name)])
    if decoder.diffusers:
        up = enlargement((2, 3), (4, 6))
        total = up @ matrices[3] @ up.T + matrices.get(2, 0)
        for name, module in decoder.diffusers.items():
            refined[int(name)] = naive_diffusion(module, of_tasks[int(name)], total, (4, 6))
    naive = torch.stack([naive_fuse(decoder.fuse, [r[t] for r in refined], t, 3) for t in range(3)])
    output = decoder(maps)
    assert list(output.features) == list(tasks.names)
    assert output.balance_loss == 0
    fast = torch.stack([output.features[name][0] for name in tasks.names])
    assert_same(fast, naive, [*maps, *decoder.parameters()])


class _Block(nn.Module):
    """A block without a FeatureFuse around it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block


@pytest.mark.parametrize("distillation", ["self", "cross"])
def test_only_with_cross_distillation_a_task_changes_the_decoder_of_another(distillation: Any) -> None:
    decoder = randomised(TIFDecoder(DOLLHOUSE.subset("semseg", "normals"), SHAPES, 4, distillation=distillation))
    maps = [random(1, *shape) for shape in SHAPES]
    features = decoder(maps).features["normals"]
    weight = decoder.to_tasks[2][0].weight
    of_semseg = rows(torch.autograd.grad(features.square().sum(), weight)[0], 0, 2)
    assert (of_semseg.abs().max() > 0) == (distillation == "cross")


def test_one_task_and_one_token_are_no_special_case() -> None:
    shapes = [MapShape(3, 8, 8), MapShape(3, 4, 4), MapShape(3, 2, 2), MapShape(3, 1, 1)]
    decoder = TIFDecoder(DOLLHOUSE.subset("depth"), shapes, 4).eval()
    output = decoder([torch.randn(1, *shape) for shape in shapes])
    assert output.features["depth"].shape == (1, 4, 8, 8)
    assert output.features["depth"].isfinite().all()
