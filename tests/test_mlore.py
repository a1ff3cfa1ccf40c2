"""MLoRE's module and decoder against Eq. 2 read one sample, one task and one expert at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive_mlore as naive
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.mlore import MLoREDecoder, MLoREModule
from mlore_edu.decoders.mlore_options import MLoREOptions
from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, TaskSet

TWO_TASKS = DOLLHOUSE.subset("semseg", "depth")
SHAPES = {
    "a ViT's equal maps": [MapShape(6, 3, 4)] * 2,
    "HRNet's pyramid": [MapShape(2, 8, 12), MapShape(3, 4, 6), MapShape(4, 2, 3), MapShape(5, 1, 2)],
    "odd sizes": [MapShape(3, 7, 5), MapShape(2, 3, 3)],
    "one map": [MapShape(4, 3, 3)],
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unsettle(model: nn.Module) -> None:
    """Move every parameter and running statistic away from its special starting value (zeros, ones)."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))


def make_module(tasks: int = 2, *, nonlinear: bool = False, **options: Any) -> MLoREModule:
    torch.manual_seed(0)
    defaults = {"ranks": (1, 2, 4), "k": 2, "task_rank": 2}
    module = MLoREModule(tasks, 8, 12, MLoREOptions(**(defaults | options)), nonlinear=nonlinear).double()
    unsettle(module)
    return module


def make_decoder(shapes: list[MapShape] | None = None, tasks: TaskSet = TWO_TASKS, **options: Any) -> MLoREDecoder:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"experts": 3, "min_rank": 1, "max_rank": 3, "task_rank": 2, "balance_weight": 0.1}
    decoder = MLoREDecoder(tasks, shapes or SHAPES["a ViT's equal maps"], 4, **(defaults | options)).double()
    unsettle(decoder)
    return decoder


def make_maps(shapes: list[MapShape] | None = None, batch: int = 2, seed: int = 0) -> list[Tensor]:
    return [draw(batch, *shape, seed=seed + i) for i, shape in enumerate(shapes or SHAPES["a ViT's equal maps"])]


def compare(ours: list[Tensor], theirs: list[Tensor], rtol: float = 1e-9) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-9)


# ---- Eq. 2, one module


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("shared", [True, False], ids=["first module", "second module"])
@pytest.mark.parametrize("nonlinear", [False, True], ids=["linear", "non-linear block"])
@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
def test_the_module_and_all_its_gradients_equal_equation_2(
    released: bool, nonlinear: bool, shared: bool, training: bool
) -> None:
    module = make_module(released=released, nonlinear=nonlinear).train(training)
    features = (draw(2, 8, 3, 4) if shared else draw(2, 2, 8, 3, 4)).requires_grad_()
    noise = None
    if training:
        torch.manual_seed(3)
        noise = torch.randn(2, 2, 3, dtype=torch.float64)
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers()}
    expected, expected_gates = naive.module(module, features, noise)
    torch.manual_seed(3)
    output = module(features)
    assert output.features.shape == (2, 2, 8, 3, 4)
    compare([output.features, output.gates], [expected, expected_gates], rtol=1e-10)

    leaves, slope = [features, *module.parameters()], draw(*expected.shape, seed=4)
    unused = {"allow_unused": True, "materialize_grads": True}  # in evaluation the noise's scale has no part
    ours = torch.autograd.grad((output.features * slope).sum(), leaves, **unused)
    theirs = torch.autograd.grad((expected * slope).sum(), leaves, **unused)
    compare(list(ours), list(theirs), rtol=1e-8)
    moved = any(not torch.equal(buffer, statistics[name]) for name, buffer in module.named_buffers())
    assert moved is training


def test_the_balance_loss_of_the_paper_adds_importance_and_load_and_the_released_one_is_importance_alone() -> None:
    for released in (False, True):
        output = make_module(released=released, noise=False).train()(draw(4, 8, 3, 4))
        importance = naive.cv_squared(output.gates.sum((0, 1)))
        load = naive.cv_squared((output.gates > 0).double().sum((0, 1)))  # without noise: how often each is active
        expected = importance if released else importance + load
        torch.testing.assert_close(output.balance_loss, expected, rtol=1e-10, atol=0)
        assert load > 0


@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
def test_the_stopped_gradient_is_exactly_the_generic_paths_share_of_what_reaches_the_features_below(
    released: bool,
) -> None:
    """What the generic weights learn is the same with and without; what lies below loses one summand and no other."""
    features, slope = draw(2, 8, 3, 4).requires_grad_(), draw(2, 2, 8, 3, 4, seed=1)
    gradients = {}
    for stop in (True, False):
        module = make_module(released=released, stop_gradient=stop).eval()
        below = [features, module.project.weight, module.project.bias]
        loss = (module(features).features * slope).sum()
        gradients[stop] = torch.autograd.grad(loss, [*below, *module.generic.parameters()], retain_graph=True)
        rest = [p for name, p in module.named_parameters() if not name.startswith(("project", "generic"))]
        gradients[stop, "rest"] = torch.autograd.grad(loss, rest, allow_unused=True, materialize_grads=True)
    projected = module.project(features)
    generic = torch.unflatten(module.generic(projected.flatten(0, 1)), 0, (2, 2))
    share = torch.autograd.grad((generic * slope).sum(), below)
    compare([a - b for a, b in zip(gradients[False][:3], gradients[True][:3], strict=True)], list(share))
    compare(list(gradients[False][3:]), list(gradients[True][3:]))  # the generic path's own weight and bias
    compare(list(gradients[False, "rest"]), list(gradients[True, "rest"]))
    assert all(gradient.abs().max() > 1e-3 for gradient in share)


def test_each_path_is_a_summand_of_its_own() -> None:
    """Without BatchNorm's help: the output with all three paths is the sum of those with one, but for nothing."""
    everything = make_module().eval()
    features = draw(2, 8, 3, 4)
    total = torch.zeros(2, 2, 8, 3, 4, dtype=torch.float64)
    for path in ("generic", "task_experts", "ranks"):
        only = {"generic": False, "task_experts": False, "ranks": (), path: path != "ranks" or (1, 2, 4)}
        module = make_module(**only).eval()
        own = module.state_dict()
        module.load_state_dict({name: tensor for name, tensor in everything.state_dict().items() if name in own})
        total = total + module(features).features
    torch.testing.assert_close(total, everything(features).features, rtol=1e-11, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(3)), released=st.booleans())
def test_permuting_the_experts_with_their_rows_of_the_router_changes_nothing(order: list[int], released: bool) -> None:
    first, second = (make_module(released=released, ranks=(2, 2, 2), noise=False).eval() for _ in range(2))
    rows = torch.cat([torch.tensor([2 * n, 2 * n + 1]) for n in order])
    logits = torch.tensor([*order, 3] if released else order)  # the last output scales the task path
    with torch.no_grad():
        second.experts.down.weight.copy_(first.experts.down.weight[rows])
        second.experts.down.bias.copy_(first.experts.down.bias[rows])
        second.experts.up_weight.copy_(first.experts.up_weight[:, rows])
        second.experts.up_bias.copy_(first.experts.up_bias[order])
        for a, b in zip(first.router.predict.parameters(), second.router.predict.parameters(), strict=True):
            b.copy_(a.unflatten(0, (2, -1))[:, logits].flatten(0, 1))
    features = draw(2, 8, 3, 4)
    a, b = first(features), second(features)
    torch.testing.assert_close(a.features, b.features)
    torch.testing.assert_close(a.gates[..., order], b.gates)
    torch.testing.assert_close(a.balance_loss, b.balance_loss)


# ---- the decoder

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "variant": st.sampled_from(["paper", "released"]),
        "modules": st.integers(1, 3),
        "experts": st.sampled_from([0, 1, 2, 4]),
        "max_rank": st.integers(1, 5),
        "k": st.integers(1, 4),
        "experts_kind": st.sampled_from(["low_rank", "conv"]),
        "task_rank": st.integers(1, 4),
        "generic": st.booleans(),
        "generic_rank": st.integers(1, 3),
        "task_experts": st.booleans(),
        "stop_gradient": st.booleans(),
        "router": st.sampled_from(["both", "basic", "position", "static"]),
        "softmax_first": st.booleans(),
        "noise": st.booleans(),
        "form": st.sampled_from(["auto", "concatenated", "merged"]),
        "plain_maps": st.integers(0, 1),
    },
)


def repair(options: dict[str, Any], maps: int) -> dict[str, Any]:
    """Turn options drawn at random into options that go together."""
    options = {"experts": 3, **options}
    options["k"] = min(options.get("k", 2), max(options["experts"], 1))
    if not options.get("generic", True):
        options.pop("generic_rank", None)
    if not options["experts"] and not options.get("task_experts", True):
        options |= {"generic": True, "stop_gradient": False}
    return options | {"plain_maps": min(options.get("plain_maps", 0), maps - 1)}


def check_one_step(shapes: list[MapShape], tasks: TaskSet, batch: int, options: dict[str, Any]) -> None:
    """The decoder equals the equations in training, and every parameter gets a gradient.

    DistributedDataParallel stops at a parameter that got none.
    """
    decoder, maps = make_decoder(shapes, tasks, **options).train(), make_maps(shapes, batch)
    for feature_map in maps:
        feature_map.requires_grad_()
    torch.manual_seed(2)
    output = decoder(maps)
    torch.manual_seed(2)
    draws = {}
    if options.get("noise", True):
        draws = {key: torch.randn_like(gates) for key, gates in output.routing.items()}
    expected, routing = naive.decoder(decoder, maps, options.get("variant") == "released", draws)
    assert list(output.features) == list(tasks.names)
    compare([torch.stack(list(output.features.values()), 1)], [expected], rtol=1e-7)
    assert list(output.routing) == list(routing)
    compare(list(output.routing.values()), list(routing.values()))

    (sum(x.square().sum() for x in output.features.values()) + output.balance_loss).backward()
    missing = [key for key, parameter in decoder.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(feature_map.grad is not None for feature_map in maps)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"experts": 0},
        {"experts": 0, "task_experts": False, "stop_gradient": False},
        {"experts": 0, "generic": False},
        {"experts": 1, "k": 1},
        {"experts": 20, "max_rank": 40},
        {"k": 3},
        {"k": 1, "softmax_first": False},
        {"experts_kind": "conv", "generic": False, "task_experts": False},
        {"generic_rank": 2, "stop_gradient": False},
        {"task_experts": False, "noise": False},
        {"router": "basic"},
        {"router": "position"},
        {"router": "static"},
        {"modules": 3, "plain_maps": 1},
        {"modules": 1, "form": "merged"},
    ],
    ids=lambda options: ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults",
)
def test_with_each_option_the_decoder_equals_the_equations_and_every_parameter_gets_a_gradient(
    options: dict[str, Any], variant: str
) -> None:
    check_one_step(SHAPES["a ViT's equal maps"], TWO_TASKS, 2, {"variant": variant, **options})


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", SHAPES)
def test_one_task_and_one_image_train_on_maps_of_any_shape(name: str, variant: str) -> None:
    check_one_step(SHAPES[name], TWO_TASKS.subset("depth"), 1, {"variant": variant})


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options=OPTIONS, name=st.sampled_from(sorted(SHAPES)), batch=st.integers(1, 2), one_task=st.booleans())
def test_any_options_together_equal_the_equations_and_leave_no_parameter_without_a_gradient(
    options: dict[str, Any], name: str, batch: int, one_task: bool
) -> None:
    tasks = TWO_TASKS.subset("depth") if one_task else TWO_TASKS
    check_one_step(SHAPES[name], tasks, batch, repair(options, len(SHAPES[name])))


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", SHAPES)
def test_all_gradients_of_the_decoder_equal_those_of_the_equations(name: str, variant: str) -> None:
    shapes = SHAPES[name]
    decoder, maps = make_decoder(shapes, variant=variant).eval(), make_maps(shapes)
    leaves = [*(feature_map.requires_grad_() for feature_map in maps), *decoder.parameters()]
    ours = torch.stack(list(decoder(maps).features.values()), 1)
    theirs, _ = naive.decoder(decoder, maps, variant == "released", {})
    slope = draw(*ours.shape, seed=9)
    gradients = [
        torch.autograd.grad((x * slope).sum(), leaves, allow_unused=True, materialize_grads=True)
        for x in (ours, theirs)
    ]
    compare(*map(list, gradients), rtol=1e-7)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_evaluation_is_deterministic_and_noise_is_drawn_in_training_only_and_only_where_wanted(variant: str) -> None:
    maps = make_maps()
    for training, noise in ((False, True), (True, False), (True, True)):
        decoder = make_decoder(variant=variant, noise=noise).train(training)
        first, second = (next(iter(decoder(maps).routing.values())) for _ in range(2))
        assert torch.equal(first, second) is not (training and noise)


@pytest.mark.parametrize("experts", [0, 1, 5, 20])
@pytest.mark.parametrize("modules", [1, 2, 3])
def test_gates_are_named_by_scale_and_module_and_exactly_k_of_them_are_not_zero(experts: int, modules: int) -> None:
    decoder, maps = make_decoder(experts=experts, modules=modules, max_rank=20, plain_maps=1).eval(), make_maps()
    routing = decoder(maps).routing
    assert list(routing) == ([f"scale 2, module {m}" for m in range(1, modules + 1)] if experts else [])
    for gates in routing.values():
        assert gates.shape == (2, 2, experts)
        assert ((gates > 0).sum(-1) == max(1, round(0.6 * experts))).all()


def test_the_balance_loss_is_summed_over_scales_and_modules_and_weighted_once() -> None:
    maps = make_maps()
    losses = []
    for weight in (0.0, 0.1, 0.2):
        decoder = make_decoder(balance_weight=weight, noise=False)
        seen: list[Tensor] = []
        for module in decoder.modules():
            if isinstance(module, MLoREModule):
                module.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1].balance_loss))
        losses.append(decoder(maps).balance_loss)
        assert len(seen) == 4
        torch.testing.assert_close(losses[-1], weight * sum(seen))
    assert losses[0] == 0 < losses[1] < losses[2]
    assert make_decoder(experts=0)(maps).balance_loss == 0


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(["semseg", "depth", "edge"]), variant=st.sampled_from(["paper", "released"]))
def test_permuting_the_tasks_with_their_weights_permutes_the_outputs(order: list[str], variant: str) -> None:
    names = ("semseg", "depth", "edge")
    sets = [replace(DOLLHOUSE, tasks=tuple(DOLLHOUSE[name] for name in some)) for some in (names, order)]
    first, second = (make_decoder(tasks=tasks, variant=variant).eval() for tasks in sets)
    assert (first.task_names, second.task_names) == (names, tuple(order))
    blocks = [first.task_names.index(name) for name in second.task_names]
    shared = {"narrow", "generic", "experts"}
    with torch.no_grad():
        for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
            if shared.isdisjoint(name.split(".")) and a.dim():
                a = a.unflatten(0, (3, -1))[blocks].flatten(0, 1)
            b.copy_(a)
    maps = make_maps()
    a, b = first(maps), second(maps)
    for name in names:
        torch.testing.assert_close(a.features[name], b.features[name])
    for key, gates in a.routing.items():
        torch.testing.assert_close(gates[:, blocks], b.routing[key])


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_in_half_precision_and_under_autocast_the_whole_model_stays_near_float32(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model("mlore_vit_nano", NYUD_V2, img_size=(32, 32), variant=variant, channels=8, experts=3)
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = model(images).predictions
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(images).predictions
        half = model.bfloat16()(images.bfloat16()).predictions
    for name in exact:
        for other in (cast[name], half[name]):
            assert other.dtype == torch.float32
            assert (other - exact[name]).abs().mean() < 0.1 * exact[name].abs().mean() + 0.01


def test_the_options_of_a_module_are_plain_values_that_can_be_replaced() -> None:
    options = MLoREOptions(ranks=(1, 2), k=1)
    assert replace(options, released=True).released
    assert MLoREModule(2, 4, 6, replace(options, task_experts=False), nonlinear=False).task_experts is None
