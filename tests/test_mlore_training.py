"""Mixtures in training: in half precision, compiled, and on two processes that average their gradients; exported."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_fakes import RECIPE, Noise, make_model

from mlore_edu.data.loaders import Batch
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.decoders.mlore_options import MLoREOptions
from mlore_edu.losses import MultiTaskLoss
from mlore_edu.model import ModelOutput, MultiTaskModel
from mlore_edu.training import checkpoint
from mlore_edu.training.engine import Training
from mlore_edu.training.recipe import Recipe

MODELS = {
    "paper": ("mlore_vit_nano", (("variant", "paper"),)),
    "released": ("mlore_vit_nano", (("variant", "released"),)),
    "moe": ("moe_vit_nano", (("experts", 5),)),
}
SGD = dataclasses.replace(
    RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1e-3, poly_power=0.0, clip_norm=None, drop_path_rate=0.0
)
CPU = torch.device("cpu")


def recipe_of(name: str, *options: tuple[str, object]) -> Recipe:
    model, own = MODELS[name]
    return dataclasses.replace(SGD, model=model, model_options=(("channels", 16), *own, *options))


def batch_of(recipe: Recipe, first: int = 0) -> Batch:
    scenes = Noise(4, recipe.task_set, first=first)
    samples = [scenes[index] for index in range(4)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", *recipe.task_set.names)}
    return {**batch, "meta": [sample["meta"] for sample in samples]}


def gradients(model: MultiTaskModel, recipe: Recipe, half: bool) -> tuple[float, dict[str, torch.Tensor | None]]:
    """The loss of one training step, balance loss included, and every parameter's gradient."""
    batch, loss = batch_of(recipe), MultiTaskLoss(recipe.task_set)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = model.train()(batch["image"])
        total = loss(output.predictions, batch)[0] + output.balance_loss
    total.backward()
    return total.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def difference(gradient: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Length of the difference of two gradients, all parameters together, relative to the second."""
    ours, theirs = (torch.cat([part.flatten().double() for part in g.values()]) for g in (gradient, reference))
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_every_parameter_has_a_finite_gradient_after_every_step(name, half):
    """One with no gradient at all would stop DDP, which waits for it."""
    recipe = recipe_of(name)
    torch.manual_seed(0)
    loss, found = gradients(make_model(recipe), recipe, half)
    assert torch.isfinite(torch.tensor(loss))
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert [name for name, gradient in found.items() if not gradient.isfinite().all()] == []


def answers(
    model: MultiTaskModel, *, half: bool = False, forward: Callable[[torch.Tensor], ModelOutput] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Predictions, and the gradients of a random linear function of them and of the balance loss.

    (The gradient of the training losses is a small difference of large terms at the start: rounding nothing but the
    weights to bf16 changes the baseline's by 0.9 of its length, in fp32. It would say nothing about a decoder.)
    """
    generator = torch.Generator().manual_seed(0)
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = (model if forward is None else forward)(torch.randn(4, 3, *model.img_size, generator=generator))
    total = output.balance_loss
    for prediction in output.predictions.values():
        assert prediction.dtype == torch.float32
        total = total + (prediction * torch.randn(prediction.shape, generator=generator)).mean()
    total.backward()
    return output.predictions, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_bf16_is_the_step_in_fp32_up_to_rounding(name):
    """The measure is a model in fp32 whose weights alone were rounded to bf16.

    Autocast rounds weights, activations and what flows back, three roundings of one size, which add up like 3**0.5;
    4 times the effect of the weights' leaves room. All experts are active, without noise: half precision may well
    choose others among nearly equal ones.
    """
    model = make_model(recipe_of(name, ("k", 5 if name == "moe" else 15), ("noise", False)))
    exact, half = answers(model), answers(model, half=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for found, expected, with_rounded_weights in zip(half, exact, answers(model)):
        assert difference(with_rounded_weights, expected) < 0.05
        assert 0 < difference(found, expected) < 4 * difference(with_rounded_weights, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_torch_compile_reads_the_whole_model_as_one_graph_that_trains_alike(name):
    """All but the code generation, which would take minutes for a whole model."""
    smaller = () if name == "moe" else (("modules", 1), ("experts", 3))
    model = make_model(recipe_of(name, ("noise", False), *smaller))
    plain = answers(model)
    traced = answers(model, forward=torch.compile(model, backend="eager", fullgraph=True))
    for found, expected in zip(traced, plain):
        assert difference(found, expected) < 1e-4


@pytest.mark.slow
def test_a_compiled_step_of_one_module_is_the_plain_step():
    options = MLoREOptions(released=True, ranks=(2, 4, 6), k=2, task_rank=4, noise=False)
    torch.manual_seed(0)
    module, features = MLoREModule(2, 8, 16, options, nonlinear=True), torch.randn(3, 8, 4, 4)
    results = []
    for forward in (module, torch.compile(module, fullgraph=True)):
        module.zero_grad()
        output = forward(features)
        (output.features.square().sum() + output.balance_loss).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
        results.append(({"features": output.features.detach()}, gradients))
    for expected, found in zip(*results):
        assert difference(found, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("released", [False, True])
def test_an_unfused_module_is_exported_for_any_batch(released):
    """The form of the experts that is chosen by itself depends on the batch, so an exported model leaves the choice."""
    options = MLoREOptions(released=released, ranks=(2, 4, 6), k=2, task_rank=4)
    module = MLoREModule(2, 8, 16, options, nonlinear=True).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    exported = torch.export.export(module, (torch.randn(2, 8, 4, 4),), dynamic_shapes={"features": {0: batch}})
    for samples in (1, 300):
        features = torch.randn(samples, 8, 4, 4)
        torch.testing.assert_close(exported.module()(features).features, module(features).features)


PROCESS = """
    import os, sys, torch
    import test_mlore_training as test
    from mlore_edu.training import distributed
    distributed.start()
    for name in test.MODELS:
        after = test.two_steps(name, distributed.rank())
        torch.save(after, f"{sys.argv[1]}/{name}{distributed.rank()}.pt")
    distributed.stop()
"""


def two_steps(name: str, rank: int) -> list[dict[str, torch.Tensor]]:
    """The parameters after each of two steps of the process with this rank, on data of its own."""
    recipe = recipe_of(name)
    training, weights = Training(make_model(recipe), recipe, CPU), []
    checkpoint.seed_everything(rank)  # the noise of the gates
    for step in range(2):
        training.step(batch_of(recipe, first=10 * step + 100 * rank))
        weights.append({key: value.detach().clone() for key, value in training.model.named_parameters()})
    return weights


@pytest.mark.slow
def test_two_processes_with_noise_of_their_own_stay_one_model_and_need_not_search_for_unused_parameters(tmp_path):
    """DDP would wait forever for a parameter without a gradient. What they learn: test_distributed_training.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path)],
            env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for name in MODELS:
        together = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in "01"]
        for first, second in zip(*together, strict=True):
            assert all(torch.equal(first[key], second[key]) for key in first)
