"""The losses against loops over pixels, in float64, with their gradients and their edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlore_edu.errors import UserError
from mlore_edu.losses import (
    MultiTaskLoss,
    balanced_cross_entropy,
    cross_entropy,
    depth_l1,
    normals_l1,
    weighted_bce,
)
from mlore_edu.tasks import DOLLHOUSE, NYUD_V2, PASCAL_CONTEXT, TaskSet

CHANNELS = {task.name: task.channels for task in DOLLHOUSE}
FUNCTIONS = {
    "semseg": cross_entropy,
    "saliency": balanced_cross_entropy,
    "edge": weighted_bce,
    "normals": normals_l1,
    "depth": depth_l1,
}


def make_target(name: str, batch: int = 2, size: tuple[int, int] = (3, 5), seed: int = 0) -> Tensor:
    """A random label in which about a third of the pixels is ignored."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, *size)
    ignored = torch.rand(shape, generator=random) < 0.33
    if name in ("semseg", "human_parts", "saliency"):
        return torch.randint(CHANNELS[name], shape, generator=random).masked_fill(ignored, 255)
    if name == "edge":
        return torch.randint(2, shape, generator=random).float().masked_fill(ignored, 255)[:, None]
    if name == "normals":
        vectors = torch.randn(batch, 3, *size, generator=random)
        return torch.nn.functional.normalize(vectors, dim=1).masked_fill(ignored[:, None], 0.0)
    return (torch.rand(shape, generator=random) * 8 + 0.5).masked_fill(ignored, 0.0)[:, None]


def ignore_all(name: str, target: Tensor) -> Tensor:
    return torch.full_like(target, 0 if name in ("normals", "depth") else 255)


def make_prediction(name: str, batch: int = 2, size: tuple[int, int] = (3, 5), seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS[name], *size, generator=random, dtype=torch.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


def loop_over_pixels(name: str, prediction: Tensor, target: Tensor) -> float:
    """The equations of the docstrings, one pixel at a time."""
    p, t = prediction.numpy(), target.numpy().astype(np.float64)
    pixels = [(b, y, x) for b in range(p.shape[0]) for y in range(p.shape[2]) for x in range(p.shape[3])]
    terms = []
    for b, y, x in pixels:
        guess = p[b, :, y, x]
        if name in ("semseg", "saliency"):
            if t[b, y, x] != 255:
                terms.append((-log_softmax(guess)[int(t[b, y, x])], int(t[b, y, x])))
        elif name == "edge":
            if t[b, 0, y, x] != 255:
                chance = 1 / (1 + math.exp(-guess[0]))
                terms.append((-0.95 * math.log(chance) if t[b, 0, y, x] == 1 else -0.05 * math.log(1 - chance), 0))
        elif name == "normals":
            if np.any(t[b, :, y, x]):
                terms.append((np.abs(guess / np.linalg.norm(guess) - t[b, :, y, x]).sum(), 0))
        elif t[b, 0, y, x] > 0:
            terms.append((abs(guess[0] - t[b, 0, y, x]), 0))
    if name != "saliency":
        return sum(value for value, _ in terms) / len(terms)
    salient = sum(label for _, label in terms)
    weights = ((salient / len(terms)), (len(terms) - salient) / len(terms))
    return sum(weights[label] * value for value, label in terms) / len(terms)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("batch", "size"), [(2, (3, 5)), (1, (1, 7)), (3, (4, 4))])
def test_each_loss_equals_a_loop_over_pixels(name: str, batch: int, size: tuple[int, int]) -> None:
    prediction, target = make_prediction(name, batch, size), make_target(name, batch, size)
    assert FUNCTIONS[name](prediction, target).item() == pytest.approx(
        loop_over_pixels(name, prediction, target), rel=1e-7
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_equal_finite_differences(name: str) -> None:
    prediction, target = make_prediction(name).requires_grad_(), make_target(name)
    if target.is_floating_point():
        target = target.double()
    assert torch.autograd.gradcheck(lambda p: FUNCTIONS[name](p, target), prediction)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_no_pixel_counts_the_loss_is_zero_and_its_gradient_zero_not_absent(name: str) -> None:
    prediction = make_prediction(name).requires_grad_()
    loss = FUNCTIONS[name](prediction, ignore_all(name, make_target(name)))
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(gradient, torch.zeros_like(prediction))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=15, deadline=None)
@given(noise=st.floats(-1e4, 1e4), seed=st.integers(0, 2**16))
def test_predictions_at_ignored_pixels_change_nothing(name: str, noise: float, seed: int) -> None:
    prediction, target = make_prediction(name, seed=seed), make_target(name, seed=seed)
    ignored = {"normals": (target == 0).all(1, keepdim=True), "depth": target == 0}.get(name, target == 255)
    ignored = ignored if ignored.dim() == 4 else ignored[:, None]
    changed = torch.where(ignored, prediction + noise, prediction)
    assert torch.equal(FUNCTIONS[name](changed, target), FUNCTIONS[name](prediction, target))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_perfect_prediction_costs_nothing(name: str) -> None:
    target = make_target(name)
    sure = 1e4
    if name in ("semseg", "saliency"):
        classes = torch.nn.functional.one_hot(target.clamp(max=CHANNELS[name] - 1), CHANNELS[name])
        prediction = classes.permute(0, 3, 1, 2) * sure
    else:
        prediction = {"edge": (target * 2 - 1) * sure, "normals": target * 7.0, "depth": target}[name]
    assert FUNCTIONS[name](prediction.double(), target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 7, 21, 40])
def test_equal_logits_cost_the_logarithm_of_the_number_of_classes(classes: int) -> None:
    target = torch.randint(classes, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    assert cross_entropy(torch.zeros(2, classes, 8, 8), target).item() == pytest.approx(math.log(classes), rel=1e-6)


@pytest.mark.parametrize("salient", [0, 1, 25, 50, 100])
def test_balanced_cross_entropy_at_equal_logits_follows_the_class_shares(salient: int) -> None:
    target = (torch.arange(100) < salient).long().view(1, 10, 10)
    expected = 2 * salient * (100 - salient) / 100**2 * math.log(2)
    assert balanced_cross_entropy(torch.zeros(1, 2, 10, 10), target).item() == pytest.approx(expected, rel=1e-6)


def test_in_balanced_cross_entropy_both_classes_push_equally_hard_however_rare_one_is() -> None:
    target = (torch.arange(100) < 3).long().view(1, 10, 10)
    logits = torch.zeros(1, 2, 10, 10, requires_grad=True)
    (gradient,) = torch.autograd.grad(balanced_cross_entropy(logits, target), logits)
    pushes = gradient[:, 1]  # on the logit of "salient"
    assert pushes[target == 1].sum().item() == pytest.approx(-pushes[target == 0].sum().item(), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_weighted_bce_at_zero_logits_is_ln_2_times_the_mean_weight(weight: float) -> None:
    target = (torch.arange(50) < 5).float().view(1, 1, 5, 10)
    expected = math.log(2) * (weight * 5 + (1 - weight) * 45) / 50
    assert weighted_bce(torch.zeros(1, 1, 5, 10), target, weight).item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(length=st.floats(0.01, 1e4))
def test_the_length_of_a_predicted_normal_does_not_matter(length: float) -> None:
    prediction, target = make_prediction("normals"), make_target("normals")
    prediction = prediction / prediction.norm(dim=1, keepdim=True)
    assert normals_l1(prediction * length, target).item() == pytest.approx(normals_l1(prediction, target).item(), 1e-9)


def test_a_normal_of_length_zero_has_a_finite_gradient() -> None:
    prediction = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normals_l1(prediction, make_target("normals", 1, (2, 2), seed=3)).backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().max() <= 1e3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_predictions_are_computed_in_float32_under_autocast(name: str) -> None:
    prediction = make_prediction(name).to(torch.bfloat16)
    target = make_target(name)
    tasks = DOLLHOUSE.subset(name)
    with torch.autocast("cpu", torch.bfloat16):
        total, by_task = MultiTaskLoss(tasks)({name: prediction}, {name: target})
    assert total.dtype == by_task[name].dtype == torch.float32
    assert torch.equal(by_task[name], FUNCTIONS[name](prediction.float(), target))


def everything(tasks: TaskSet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    predictions = {task.name: make_prediction(task.name) for task in DOLLHOUSE if task.name in tasks}
    return predictions, {task.name: make_target(task.name) for task in tasks}


def test_the_sum_weighs_each_task_and_reports_it_unweighted() -> None:
    predictions, targets = everything(DOLLHOUSE)
    total, by_task = MultiTaskLoss(DOLLHOUSE)(predictions, targets)
    assert tuple(by_task) == DOLLHOUSE.names
    assert by_task["edge"].item() == pytest.approx(weighted_bce(predictions["edge"], targets["edge"], 0.95).item())
    assert total.item() == pytest.approx(sum(by_task[task.name].item() * task.loss_weight for task in DOLLHOUSE))


def test_the_weights_are_those_of_the_papers_and_can_be_replaced() -> None:
    papers = {"semseg": 1, "human_parts": 2, "saliency": 5, "normals": 10, "edge": 50, "depth": 1}
    for tasks in (PASCAL_CONTEXT, NYUD_V2, DOLLHOUSE):
        assert MultiTaskLoss(tasks).loss_weights == {name: papers[name] for name in tasks.names}
    assert MultiTaskLoss(NYUD_V2, {"depth": 3.0}).loss_weights["depth"] == 3.0


def test_the_boundary_weight_is_handed_on() -> None:
    predictions, targets = everything(DOLLHOUSE.subset("edge"))
    _, by_task = MultiTaskLoss(DOLLHOUSE.subset("edge"), edge_positive_weight=0.6)(predictions, targets)
    assert by_task["edge"].item() == pytest.approx(weighted_bce(predictions["edge"], targets["edge"], 0.6).item())


def test_a_batch_without_any_valid_pixel_trains_nothing_and_breaks_nothing() -> None:
    predictions, targets = everything(DOLLHOUSE)
    leaves = {name: p.requires_grad_() for name, p in predictions.items()}
    total, _ = MultiTaskLoss(DOLLHOUSE)(leaves, {name: ignore_all(name, t) for name, t in targets.items()})
    total.backward()
    assert total.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in leaves.values())


def test_what_a_user_can_get_wrong_is_said_in_one_sentence() -> None:
    predictions, targets = everything(DOLLHOUSE)
    loss = MultiTaskLoss(DOLLHOUSE)
    with pytest.raises(UserError, match="predicts no 'depth'"):
        loss({name: p for name, p in predictions.items() if name != "depth"}, targets)
    with pytest.raises(UserError, match="no 'edge' label"):
        loss(predictions, {name: t for name, t in targets.items() if name != "edge"})
    with pytest.raises(UserError, match=r"\(3, 5\) and its label \(2, 5\)"):
        loss(predictions, targets | {"depth": targets["depth"][:, :, :2]})
    with pytest.raises(UserError, match="no task 'dept'"):
        MultiTaskLoss(DOLLHOUSE, {"dept": 1.0})
    for weight in (95, 1.0, 0.0, float("nan")):  # at 0 or 1 one of the two classes would teach nothing
        with pytest.raises(UserError, match=f"edge_positive_weight is {weight}; give a number between 0 and 1"):
            MultiTaskLoss(DOLLHOUSE, edge_positive_weight=weight)
