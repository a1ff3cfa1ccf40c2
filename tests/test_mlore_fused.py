"""The inference form of MLoRE gives what the model gives, in every variant, and costs what its page says."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mlore_edu as me
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_fused import FusedMLoREModule, fuse_module
from mlore_edu.decoders.mlore_options import MLoREOptions
from mlore_edu.errors import UserError
from mlore_edu.reparameterization import choose_mode, fuse

MODES = ("precomposed", "on_the_fly")
FULL = MLoREOptions(ranks=(1, 3, 2, 4), k=2, task_rank=2)
OPTIONS = {
    "all paths": FULL,
    "all paths, released": replace(FULL, released=True),
    "released, gates of k logits": replace(FULL, released=True, softmax_first=False),
    "one expert": replace(FULL, ranks=(3,), k=1),
    "every expert active": replace(FULL, k=4),
    "no noise": replace(FULL, noise=False),
    "no generic path": replace(FULL, generic=False),
    "no generic path, released": replace(FULL, generic=False, released=True),
    "low-rank generic path": replace(FULL, generic_rank=2),
    "low-rank generic path, released": replace(FULL, generic_rank=2, released=True),
    "no task experts": replace(FULL, task_experts=False),
    "no task experts, released": replace(FULL, task_experts=False, released=True),
    "no shared experts": replace(FULL, ranks=()),
    "no shared experts, released": replace(FULL, ranks=(), released=True),
    "shared experts alone": replace(FULL, generic=False, task_experts=False),
    "generic path alone": replace(FULL, ranks=(), task_experts=False),
    "generic path alone, released": replace(FULL, ranks=(), task_experts=False, released=True),
    "task experts alone": replace(FULL, ranks=(), generic=False),
    "gates that do not see the image": replace(FULL, router="static"),
}


def randomise(model, seed=0):
    """Give biases and BatchNorms values that a mistake in folding would not survive."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 10 ** -float(torch.randint(1, 6, (), generator=generator))
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.05, 3, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(generator=generator)
    return model.eval()


def module_of(options, *, tasks=3, channels=4, size=(5, 3), nonlinear=True, seed=0):
    torch.manual_seed(seed)
    tokens = size[0] * size[1]
    module = MLoREModule(tasks, channels, tokens, options, nonlinear=nonlinear).double()
    if module.experts is not None:
        nn.init.normal_(module.experts.up_bias)
    return randomise(module, seed)


def difference(ours, reference):
    return float((ours - reference).detach().abs().max() / reference.detach().abs().max())


def assert_same_outputs(ours, reference):
    assert difference(ours.features, reference.features) < 1e-10
    assert (ours.gates is None) == (reference.gates is None)
    if reference.gates is not None:
        assert difference(ours.gates, reference.gates) < 1e-10
    torch.testing.assert_close(ours.balance_loss, reference.balance_loss, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nonlinear", [True, False], ids=["with block", "without block"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_fused_module_gives_the_outputs_of_the_module(name, nonlinear, mode):
    module = module_of(OPTIONS[name], nonlinear=nonlinear)
    features = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        assert_same_outputs(fuse_module(module, mode)(features), module(features))
        shared = features[:, 0]  # (B, C, H, W): what the first module of a scale gets
        assert_same_outputs(fuse_module(module, mode)(shared), module(shared))


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 5),
    tasks=st.integers(1, 4),
    channels=st.integers(1, 6),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    data=st.data(),
)
def test_it_holds_for_any_size_batch_rank_and_number_of_active_experts(samples, tasks, channels, size, ranks, data):
    options = replace(
        FULL,
        ranks=tuple(ranks),
        k=data.draw(st.integers(1, len(ranks))),
        released=data.draw(st.booleans()),
        task_rank=data.draw(st.integers(1, 3)),
        softmax_first=data.draw(st.booleans()),
    )
    module = module_of(options, tasks=tasks, channels=channels, size=size, seed=data.draw(st.integers(0, 99)))
    features = torch.randn(samples, tasks, channels, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_same_outputs(fuse_module(module, data.draw(st.sampled_from(MODES)))(features), module(features))


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_is_that_of_equations_3_to_6_written_as_loops(mode):
    module = module_of(replace(FULL, released=True))
    gates, task_scale = torch.rand(2, 3, 4, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    weight, bias = fuse_module(module, mode).convolution(gates, task_scale)
    experts, own, norm, outer = module.experts, module.task_experts, module.norm.norm, module.nonlinear.norm.norm
    slices = [slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 10)]  # ranks 1, 3, 2, 4
    for sample in range(2):
        for task in range(3):
            rows, its = slice(4 * task, 4 * task + 4), slice(2 * task, 2 * task + 2)
            sigma, outer_sigma = ((n.running_var[rows] + n.eps).sqrt() for n in (norm, outer))
            kernel, shift = torch.zeros(4, 4, 3, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
            for gate, part, up_bias in zip(gates[sample, task], slices, experts.up_bias, strict=True):
                up = experts.up_weight[:, part]
                kernel += gate * torch.einsum("or,rikl->oikl", up, experts.down.weight[part])
                shift += gate * (up @ experts.down.bias[part] + up_bias)
            kernel *= (norm.weight[rows] / sigma)[:, None, None, None]  # Eq. 3
            shift = norm.weight[rows] / sigma * (shift - norm.running_mean[rows]) + norm.bias[rows]  # Eq. 4
            up, scale = own.up.weight[rows, :, 0, 0], task_scale[sample, task]
            kernel += module.generic.weight + scale * torch.einsum("or,rikl->oikl", up, own.down.weight[its])  # Eq. 5
            shift += module.generic.bias + scale * (up @ own.down.bias[its] + own.up.bias[rows])  # Eq. 6
            kernel *= (outer.weight[rows] / outer_sigma)[:, None, None, None]
            shift = outer.weight[rows] / outer_sigma * (shift - outer.running_mean[rows]) + outer.bias[rows]
            assert difference(weight[sample, task], kernel) < 1e-12
            assert difference(bias[sample, task], shift) < 1e-12


def test_every_path_matters_in_the_comparison():
    module = module_of(FULL)
    features = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        truth = module(features).features
        for path in ("generic.weight", "experts.up_weight", "experts.up_bias", "experts.down.bias", "norm.norm.bias"):
            changed = copy.deepcopy(module)
            changed.get_parameter(path).zero_()
            assert difference(fuse_module(changed, "on_the_fly")(features).features, truth) > 1e-3


def model_of(size=(64, 64), **options):
    torch.manual_seed(0)
    return randomise(me.build_model("mlore_vit_nano", me.DOLLHOUSE, img_size=size, **options).double())


def largest_difference(ours, reference):
    assert ours.routing.keys() == reference.routing.keys()
    pairs = [(ours.predictions[name], truth) for name, truth in reference.predictions.items()]
    pairs += [(ours.routing[name], truth) for name, truth in reference.routing.items()]
    return max(difference(mine, truth) for mine, truth in pairs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "released", "k": 15},
        {"modules": 1, "k": 1},
        {"modules": 3, "variant": "released", "softmax_first": False},
        {"experts": 0},
        {"experts": 0, "task_experts": False, "generic_rank": 3, "stop_gradient": False},
    ],
    ids=str,
)
def test_a_fused_model_predicts_what_the_model_predicts(options, mode):
    model = model_of(size=(40, 56), **options)
    fused, images = fuse(model, mode), torch.randn(3, 3, 40, 56, dtype=torch.float64)
    assert not any(isinstance(module, MLoREModule) for module in fused.modules())
    with torch.no_grad():
        reference = model(images)
        assert largest_difference(fused(images), reference) < 1e-10


def test_timm_fuses_the_model_too():
    model, images = model_of(variant="released"), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused = reparameterize_model(model)
    assert any(isinstance(module, FusedMLoREModule) for module in fused.modules())
    assert not any(isinstance(module, FusedMLoREModule) for module in model.modules())
    with torch.no_grad():
        assert largest_difference(fused(images), model(images)) < 1e-10


def test_fusing_shares_no_memory_and_leaves_the_module_as_it_was():
    module = module_of(FULL)
    before = copy.deepcopy(module.state_dict())
    for mode in MODES:
        fused = fuse_module(module, mode)
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.data.zero_()
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_fused_module_learns_nothing():
    assert not any(parameter.requires_grad for parameter in fuse_module(module_of(FULL)).parameters())


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
def test_what_the_modes_store_is_what_the_page_says(released):
    module = module_of(replace(FULL, released=released), channels=8)
    precomposed, on_the_fly = (fuse_module(module, mode) for mode in MODES)
    width, tasks, experts, ranks, task_rank = 8, 3, 4, 10, 2
    experts_part = experts * (9 * width**2 + width), (10 * width + 1) * ranks + experts * width
    task_part = tasks * (9 * width**2 + width), tasks * ((10 * width + 1) * task_rank + width)
    for fused, own, shared in zip((precomposed, on_the_fly), task_part, experts_part, strict=True):
        assert numbers(fused.task_experts) == own
        assert numbers(fused.experts) == shared + tasks * width  # and the scale of the BatchNorm
        assert numbers(fused.generic) == numbers(module.generic)
    assert numbers(on_the_fly) <= numbers(module)


def macs(model, features):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(features)
    return counter.get_total_flops() // 2


@settings(max_examples=12, deadline=None)
@given(
    samples=st.integers(1, 3),
    tasks=st.integers(1, 3),
    channels=st.integers(1, 12),
    side=st.integers(1, 6),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_mixing_on_the_fly_costs_less_than_not_fusing_where_tokens_exceed_nine_tenths_of_the_width(
    samples, tasks, channels, side, ranks
):
    options = MLoREOptions(ranks=tuple(ranks), k=1, task_experts=False, form="concatenated")
    module = module_of(options, tasks=tasks, channels=channels, size=(side, side)).to("meta")
    features = torch.empty(samples, tasks, channels, side, side, dtype=torch.float64, device="meta")
    pairs, rank, count = samples * tasks, sum(ranks), len(ranks)
    unfused = macs(module, features)
    on_the_fly = pairs * 9 * channels**2 * rank
    precomposed = pairs * 9 * channels**2 * count
    concatenated = pairs * 10 * channels * rank * side**2
    assert macs(fuse_module(module, "on_the_fly"), features) - unfused == on_the_fly - concatenated
    assert macs(fuse_module(module, "precomposed"), features) - unfused == precomposed - concatenated
    assert (on_the_fly < concatenated) == (side**2 > 0.9 * channels)


def test_the_mode_is_chosen_for_the_whole_model():
    nano = model_of()
    assert choose_mode(nano) == "precomposed"
    assert numbers(fuse(nano)) <= 2 * numbers(nano)
    with torch.device("meta"):
        large = me.build_model("mlore_vit_base", me.PASCAL_CONTEXT, img_size=(512, 512), variant="released")
    assert choose_mode(large.eval()) == "on_the_fly"
    assert {m.mode for m in fuse(large).modules() if isinstance(m, FusedMLoREModule)} == {"on_the_fly"}


def test_what_cannot_be_fused_is_said_in_one_sentence():
    module = module_of(FULL)
    with pytest.raises(UserError, match="no mode 'fast'; choose one of"):
        module.fuse("fast")
    with pytest.raises(UserError, match=r"training mode.*eval"):
        module.train().fuse()
    experts = model_of(experts_kind="conv", experts=2)
    for mode in (None, *MODES):
        with pytest.raises(UserError, match=r"activation.*experts_kind='low_rank'"):
            fuse(experts, mode)
    with pytest.raises(UserError, match="nothing to fuse"):
        fuse(me.build_model("moe_vit_nano", me.DOLLHOUSE, img_size=(64, 64), experts=2).eval())
    with pytest.raises(UserError, match="nothing to fuse"):
        fuse(fuse(model_of()))


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_as_good_fused_as_not(mode):
    module = module_of(FULL, channels=16, size=(8, 8)).float()
    features = torch.randn(2, 3, 16, 8, 8)
    fused = fuse_module(module, mode)
    with torch.no_grad():
        exact = module(features).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            unfused, automatic = module(features).features, fused(features).features
        whole = fused.bfloat16()(features.bfloat16()).features
    usual = difference(unfused, exact)
    assert 1e-4 < usual < 0.05
    assert difference(automatic, exact) < 3 * usual
    assert difference(whole, exact) < 5 * usual


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "mode"), [("paper", "on_the_fly"), ("released", "precomposed")])
def test_torch_export_takes_the_fused_model_with_any_batch(variant, mode):
    fused = fuse(model_of(variant=variant).float(), mode)
    images = torch.randn(5, 3, 64, 64)
    program = torch.export.export(fused, (images[:3],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        for samples in (1, 2, 5):
            assert largest_difference(program(images[:samples]), fused(images[:samples])) < 1e-5


@pytest.mark.slow
def test_torch_compile_traces_the_fused_model_in_one_graph_for_any_batch():
    fused = fuse(model_of(variant="released", modules=1).float(), "on_the_fly")
    images, graphs = torch.randn(5, 3, 64, 64), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(fused, dynamic=True, fullgraph=True, backend=backend)
    with torch.no_grad():
        for samples in (4, 5):  # not 3: dynamo would take it for the number of colours
            assert largest_difference(compiled(images[:samples]), fused(images[:samples])) < 1e-5
    assert len(graphs) == 1
