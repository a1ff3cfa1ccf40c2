"""TaskExpert against its equations: one token, one task, one expert at a time; gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlore_edu.decoders.base import MapShape, resize
from mlore_edu.decoders.taskexpert import ExpertNetworks, MMoEModule, TaskExpertDecoder, TaskGates, choose
from mlore_edu.tasks import DOLLHOUSE, TaskSet
from tests.naive_mlore import convolve

# ---- the equations, read token by token; of the library only the parameters are used


def linear(vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One token ``(C,)`` through a 1×1 convolution's weight ``(C', C, 1, 1)``."""
    return weight.flatten(1) @ vector + bias


def rows(parameter: Tensor, index: int, groups: int) -> Tensor:
    """The ``index``-th of ``groups`` equal parts."""
    size = len(parameter) // groups
    return parameter[index * size : (index + 1) * size]


def naive_experts(experts: ExpertNetworks, x: Tensor, count: int, training: bool) -> Tensor:
    """Eq. 1 for every expert and token: ``(B, E, H, W)`` to ``(B, K, D, H, W)``."""
    batch, _, height, width = x.shape
    places = [(b, i, j) for b in range(batch) for i in range(height) for j in range(width)]
    norm, answers = experts.norm.norm, []
    for k in range(count):
        first = [rows(p, k, count) for p in (experts.expand.weight, experts.expand.bias)]
        last = [rows(p, k, count) for p in (experts.project.weight, experts.project.bias)]
        hidden = torch.stack([linear(x[b, :, i, j], *first) for b, i, j in places])  # (tokens, e)
        mean, var = rows(norm.running_mean, k, count), rows(norm.running_var, k, count)
        if training:
            mean, var = hidden.mean(0), ((hidden - hidden.mean(0)) ** 2).mean(0)
        hidden = (hidden - mean) / (var + norm.eps).sqrt() * rows(norm.weight, k, count) + rows(norm.bias, k, count)
        answer = torch.stack([linear(token.clamp_min(0), *last) for token in hidden])  # (tokens, D)
        answers.append(answer.T.reshape(-1, batch, height, width).transpose(0, 1))
    return torch.stack(answers, dim=1)


def naive_gates(gates: TaskGates, x: Tensor, tasks: int) -> Tensor:
    """CONV of Eq. 3 for every sample and task: ``(B, E, H, W)`` to ``(B, T, outputs, H, W)``."""
    logits = []
    for sample in x:
        for task in range(tasks):
            hidden = sample
            for number, layer in enumerate(gates.layers):
                hidden = hidden.clamp_min(0) if number else hidden
                hidden = convolve(hidden, rows(layer.weight, task, tasks), rows(layer.bias, task, tasks))
            logits.append(hidden)
    return torch.stack(logits).unflatten(0, (len(x), tasks))


def naive_assembly(
    gates: Tensor, answers: Tensor, memory: Tensor | None, active: int | None, renormalise: bool
) -> Tensor:
    """Eqs. 3 and 4, one token and task after the other."""
    batch, tasks, outputs, height, width = gates.shape
    decoded = torch.zeros(batch, tasks, answers.shape[2], height, width, dtype=answers.dtype)
    for b, t, i, j in torch.cartesian_prod(*map(torch.arange, (batch, tasks, height, width))).tolist():
        scores = gates[b, t, :, i, j]
        exponentials = (scores - scores.max()).exp()
        weights = exponentials / exponentials.sum()
        kept = sorted(range(outputs), key=lambda n, w=weights: -w[n].item())[: active or outputs]
        total = sum(weights[n] for n in kept) if renormalise else 1
        for n in kept:
            expert = answers[b, n, :, i, j] if n < answers.shape[1] else memory[b, t, :, i, j]
            decoded[b, t, :, i, j] += weights[n] / total * expert
    return decoded


def naive_module(module: MMoEModule, x: Tensor, memory: Tensor | None, tasks: int) -> tuple[Tensor, Tensor]:
    """Features and memory that leave a module."""
    answers = naive_experts(module.experts, x, module.count, module.training)
    if module.gates is None:
        decoded = answers
    else:
        reads = memory if module.momentum is not None else None
        logits = naive_gates(module.gates, x, tasks)
        decoded = naive_assembly(logits, answers, reads, module.active, module.renormalise)
    if memory is None:
        return decoded, decoded
    written = decoded.clone()
    for task in range(tasks):
        alpha = 1 if module.momentum is None else module.momentum[task]
        written[:, task] = decoded[:, task] + alpha * memory[:, task]  # Eq. 2
    return decoded, written


def make(tasks: int = 2, experts: int = 3, **options: Any) -> MMoEModule:
    torch.manual_seed(0)
    sizes = {"experts": experts, "expert_width": 4, "gate_width": 3, "momentum": 0.7} | options
    module = MMoEModule(tasks, 5, 6, **sizes).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        norm = module.experts.norm.norm
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return module


VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "first module": {"momentum": None},
    "no memory": {"memory": False},
    "baseline": {"memory": False, "mixture": False, "experts": 2},
    "pointwise gate": {"gate": "pointwise"},
    "linear gate": {"gate": "linear"},
    "top 1": {"active": 1},
    "top 2": {"active": 2},
    "top 2, renormalised": {"active": 2, "renormalise": True},
    "all of three and the memory": {"active": 4},
    "one expert": {"experts": 1},
    "one expert, no memory": {"experts": 1, "memory": False},
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_module_is_its_equations_gradients_too(variant: str, training: bool) -> None:
    module = make(**VARIANTS[variant]).train(training)
    features = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    memory = None if variant == "first module" else torch.randn(2, 2, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = [features, *([] if memory is None else [memory]), *module.parameters()]
    decoded, written = naive_module(module, features, memory, 2)
    weigh = torch.randn_like(written)
    expected = torch.autograd.grad((written * weigh).sum() + decoded.square().sum(), inputs, materialize_grads=True)
    output = module(features, memory)
    torch.testing.assert_close(output.decoded, decoded, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.memory, written, rtol=1e-10, atol=1e-10)
    loss = (output.memory * weigh).sum() + output.decoded.square().sum()
    for name, ours, theirs in zip(
        ["features", "memory", *(n for n, _ in module.named_parameters())][-len(inputs) :],
        torch.autograd.grad(loss, inputs, materialize_grads=True),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3),
    tasks=st.integers(1, 4),
    experts=st.integers(1, 4),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    data=st.data(),
)
def test_it_holds_for_any_number_of_samples_tasks_experts_and_tokens(
    batch: int, tasks: int, experts: int, size: tuple[int, int], data: st.DataObject
) -> None:
    active = data.draw(st.none() | st.integers(1, experts))
    module = make(tasks, experts, active=active).eval()
    features = torch.randn(batch, 5, *size, dtype=torch.float64)
    memory = torch.randn(batch, tasks, 6, *size, dtype=torch.float64)
    expected = naive_module(module, features, memory, tasks)
    output = module(features, memory)
    torch.testing.assert_close((output.decoded, output.memory), expected, rtol=1e-9, atol=1e-9)


# ---- gates


@settings(deadline=None)
@given(st.integers(1, 6), st.data())
def test_gates_are_shares_and_sparse_ones_the_largest_of_them(outputs: int, data: st.DataObject) -> None:
    active = data.draw(st.integers(1, outputs))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(2, 3, outputs, 2, 2, dtype=torch.float64)
    dense, sparse = choose(logits), choose(logits, active)
    torch.testing.assert_close(dense.sum(2), torch.ones(2, 3, 2, 2, dtype=torch.float64))
    assert ((sparse > 0).sum(2) == active).all()
    torch.testing.assert_close(sparse.sum(2), dense.topk(active, dim=2).values.sum(2))
    one = choose(logits, active, renormalise=True).sum(2)
    torch.testing.assert_close(one, torch.ones_like(one))


def receptive_field(kind: str) -> int:
    """Tokens along a row on which the gate of the middle one depends."""
    torch.manual_seed(0)
    gates = TaskGates(4, 2, 3, 8, kind).double()
    features = torch.randn(1, 4, 15, 15, dtype=torch.float64, requires_grad=True)
    gates(features)[0, :, :, 7, 7].square().sum().backward()
    return int(features.grad[0].abs().sum(0).any(0).sum())


def test_context_is_seven_tokens_wide_and_the_other_gates_see_one() -> None:
    assert [receptive_field(kind) for kind in ("context", "pointwise", "linear")] == [7, 1, 1]


def test_top_one_still_teaches_the_gate_unless_it_is_renormalised() -> None:
    for renormalise in (False, True):
        logits = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(choose(logits, 1, renormalise=renormalise).sum(), logits)
        assert (gradient.abs().max() > 1e-6) == (not renormalise)


# ---- the memory along the depth

TASKS = DOLLHOUSE.subset("semseg", "depth")


def decoder(tasks: TaskSet = TASKS, maps: int = 4, **options: Any) -> TaskExpertDecoder:
    torch.manual_seed(0)
    shapes = [MapShape(5, 3, 4)] * maps
    return TaskExpertDecoder(tasks, shapes, 6, expert_width=4, gate_width=3, **options).double()


def test_the_decoder_passes_the_memory_from_module_to_module() -> None:
    model = decoder().eval()
    maps = [torch.randn(2, 5, 3, 4, dtype=torch.float64) for _ in range(4)]
    memory = None
    for module, features in zip(model.modules_in_order, maps, strict=True):
        _, memory = naive_module(module, features, memory, 2)
    output = model(maps)
    for number, name in enumerate(TASKS.names):
        torch.testing.assert_close(output.features[name], memory[:, number], rtol=1e-9, atol=1e-9)
    assert output.balance_loss == 0
    assert {name: gates.shape[2] for name, gates in output.routing.items()} == {
        "module 1": 2,
        "module 2": 3,
        "module 3": 3,
        "module 4": 3,
    }


def test_the_memory_is_a_sum_over_layers_with_weights_that_multiply_along_the_depth() -> None:
    """M^L = sum over l of the l-th layer's assembled answers, times the product over later j of (alpha_j + G_j)."""
    model = decoder(momentum_start=0.6).eval()
    maps = [torch.randn(2, 5, 3, 4, dtype=torch.float64) for _ in range(4)]
    output, total = model(maps), 0
    gates = [output.routing[f"module {number}"] for number in (1, 2, 3, 4)]
    for layer, (module, features) in enumerate(zip(model.modules_in_order, maps, strict=True)):
        answers = module.experts(features)
        term = torch.einsum("btkhw,bkdhw->btdhw", gates[layer][:, :, :2], answers)
        for later in range(layer + 1, 4):
            term = term * (0.6 + gates[later][:, :, 2:])
        total = total + term
    torch.testing.assert_close(torch.stack(list(output.features.values()), dim=1), total)


def test_without_memory_the_features_of_the_layers_are_added() -> None:
    model = decoder(memory=False).eval()
    maps = [torch.randn(2, 5, 3, 4, dtype=torch.float64) for _ in range(4)]
    alone = [module(x, None).decoded for module, x in zip(model.modules_in_order, maps, strict=True)]
    torch.testing.assert_close(torch.stack(list(model(maps).features.values()), dim=1), sum(alone))
    assert not any(name.endswith("momentum") for name, _ in model.named_parameters())


def test_one_pass_leaves_nothing_behind_for_the_next() -> None:
    model = decoder().eval()
    maps = [torch.randn(2, 5, 3, 4, dtype=torch.float64) for _ in range(4)]
    first = model(maps).features["depth"]
    model([m + 1 for m in maps])
    assert torch.equal(model(maps).features["depth"], first)


def test_a_pyramid_is_read_from_the_coarsest_map_to_the_finest() -> None:
    torch.manual_seed(0)
    shapes = [MapShape(3, 8, 12), MapShape(4, 4, 6), MapShape(5, 2, 3)]
    model = TaskExpertDecoder(TASKS, shapes, 6).double().eval()
    maps = [torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]
    memory = None
    for module, features in zip(model.modules_in_order, reversed(maps), strict=True):
        if memory is not None:
            memory = resize(memory.flatten(0, 1), features.shape[-2:]).unflatten(0, (2, 2))
        memory = module(features, memory).memory
    torch.testing.assert_close(model(maps).features["semseg"], memory[:, 0])
    assert model(maps).features["semseg"].shape == (2, 6, 8, 12)


def test_a_plain_map_is_projected_for_each_task_and_added_last() -> None:
    shapes = [MapShape(3, 6, 8), MapShape(5, 3, 4), MapShape(5, 3, 4)]
    torch.manual_seed(0)
    model = TaskExpertDecoder(TASKS, shapes, 6, plain_maps=1).double().eval()
    maps = [torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]
    first, second = model.modules_in_order
    memory = second(maps[2], first(maps[1], None).memory).memory
    expected = resize(memory[:, 1], (6, 8)) + model.plain[0](maps[0])[:, 1]
    torch.testing.assert_close(model(maps).features["depth"], expected)
