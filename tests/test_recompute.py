"""Activation checkpointing changes what is remembered, never what is learned."""

import copy

import pytest
import torch
from torch import nn
from training_fakes import RECIPE, Noise, make_model, run

from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training.engine import Training
from mlore_edu.training.recompute import checkpoint_activations

CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gradients(model, images=IMAGES):
    """Gradients of a sum of squares, after a pass that draws the same random numbers each time."""
    torch.manual_seed(7)
    output = model(images)
    (sum(prediction.square().mean() for prediction in output.predictions.values()) + output.balance_loss).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def bytes_kept(model, images=IMAGES):
    """Bytes of the tensors that a forward pass keeps for the way back, parameters left out."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def remember(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        output = model(images)  # alive until the bytes are counted
    return sum(kept.values()) if output else 0


@pytest.mark.parametrize("decoder", ["baseline", "moe", "mlore", "taskexpert", "tif"])
def test_gradients_and_running_statistics_are_those_without_and_less_is_kept(decoder):
    """Drop path and the routers' noise draw the same random numbers in both passes; BatchNorm counts a batch once."""
    torch.manual_seed(0)
    plain = build_model(f"{decoder}_vit_nano", DOLLHOUSE, (32, 32), drop_path_rate=0.3).train()
    frugal = copy.deepcopy(plain)
    units = checkpoint_activations(frugal)
    assert any(name.startswith("backbone.blocks.") for name in units)
    assert any(name.startswith("decoder.") for name in units)
    assert sum(name.startswith("heads.") for name in units) == len(DOLLHOUSE)
    expected, found = gradients(plain), gradients(frugal)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)
    for (name, kept), other in zip(frugal.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(kept, other, rtol=0, atol=0, msg=name)
    assert bytes_kept(frugal) < 0.6 * bytes_kept(plain)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_small", "swin_tiny", "hrnet18"])
def test_timms_networks_recompute_their_blocks_where_timm_can(backbone):
    torch.manual_seed(0)
    size = (64, 64)
    plain = build_model(f"baseline_{backbone}", DOLLHOUSE.subset("depth"), size, channels=8).train()
    frugal = copy.deepcopy(plain)
    units = checkpoint_activations(frugal)
    assert ("backbone.net" in units) == (backbone != "hrnet18")
    images = torch.randn(2, 3, *size)
    expected, found = gradients(plain, images), gradients(frugal, images)
    for name in expected:
        if expected[name] is not None:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
    if backbone != "hrnet18":
        assert bytes_kept(frugal.backbone, images) < 0.6 * bytes_kept(plain.backbone, images)


def test_a_copy_of_a_frugal_model_works_on_its_own_weights():
    """A moving average of the weights is such a copy."""
    model = build_model("tif_vit_nano", DOLLHOUSE, (32, 32)).train()
    checkpoint_activations(model)
    twin = copy.deepcopy(model)
    before = model.eval()(IMAGES).predictions["depth"]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(IMAGES).predictions["depth"], before)
    assert not torch.equal(twin.eval()(IMAGES).predictions["depth"], before)


def test_a_frugal_run_learns_what_a_plain_one_learns(tmp_path):
    plain = run(tmp_path / "plain")
    frugal = run(tmp_path / "frugal", checkpointing=True)
    assert frugal[0] == plain[0]
    for name, tensor in plain[1].state_dict().items():
        assert torch.equal(frugal[1].state_dict()[name], tensor), name


@pytest.mark.slow
def test_compiled_too_a_batch_counts_once(monkeypatch):
    """torch.compile lays out the second pass itself, with its own backend for tests in the place of Inductor's."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="aot_eager"))
    batches = {}
    for name, changes in {"plain": {}, "frugal": {"checkpointing": True}}.items():
        recipe = RECIPE.__class__(**{**RECIPE.__dict__, "compile": True, "drop_path_rate": 0.0, **changes})
        training = Training(make_model(recipe), recipe, CPU)
        for batch, _ in zip(training.loader(Noise()), range(2)):
            training.step(batch)
        batches[name] = {key: value for key, value in training.model.state_dict().items() if "running" in key}
    for key, value in batches["plain"].items():
        torch.testing.assert_close(batches["frugal"][key], value, msg=key)


def test_a_model_without_lists_of_modules_has_no_units():
    assert checkpoint_activations(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []
