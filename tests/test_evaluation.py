"""Evaluation: decoded predictions, metrics of a whole data set, pictures, and the same numbers when asked again."""

import dataclasses
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from benchmark_folders import write_layout
from PIL import Image
from torch import nn
from training_fakes import RECIPE, Noise, make_model, run

from mlore_edu import cli
from mlore_edu.data.loaders import make_loader
from mlore_edu.errors import UserError
from mlore_edu.evaluation import (
    PROTOCOLS,
    constant_predictor_scores,
    decode,
    draw,
    evaluate,
    recipe_meters,
)
from mlore_edu.judging import Choices, judge_run, only_listed
from mlore_edu.metrics import NYUD_BOUNDARY, DepthRMSE, make_meters
from mlore_edu.model import ModelOutput
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training import setup


class Oracle(nn.Module):
    """Knows the labels of a batch by heart, and answers with raw predictions that decode to them."""

    def __init__(self, dataset, tasks=DOLLHOUSE):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.answers = [
            (sample["image"], self.raw(sample, tasks)) for sample in map(dataset.__getitem__, range(len(dataset)))
        ]

    def raw(self, sample, tasks):
        answers = {}
        for task in tasks:
            target = sample[task.name]
            if task.loss in ("cross_entropy", "balanced_cross_entropy"):
                hot = nn.functional.one_hot(target.where(target < task.channels, 0), task.channels)
                answers[task.name] = 20.0 * hot.permute(2, 0, 1)
            else:
                answers[task.name] = (target - 0.5) * 40 if task.name == "edge" else target * 1.0
        return answers

    def forward(self, images):
        found = [next(raw for known, raw in self.answers if torch.equal(known, image)) for image in images]
        predictions = {name: torch.stack([raw[name] for raw in found]) * self.scale for name in found[0]}
        return ModelOutput(predictions, torch.zeros(()), {})


def test_decoding_follows_the_definition_of_each_task():
    torch.manual_seed(0)
    raw = {task.name: torch.randn(2, task.channels, 5, 4) for task in DOLLHOUSE}
    decoded = decode(raw, DOLLHOUSE)
    for b, y, x in np.ndindex(2, 5, 4):
        pixel = {name: tensor[b, :, y, x].double().numpy() for name, tensor in raw.items()}
        assert decoded["semseg"][b, y, x] == pixel["semseg"].argmax()
        assert decoded["human_parts"][b, y, x] == pixel["human_parts"].argmax()
        odds = np.exp(pixel["saliency"])
        assert float(decoded["saliency"][b, y, x]) == pytest.approx(odds[1] / odds.sum(), rel=1e-5)
        assert float(decoded["edge"][b, y, x]) == pytest.approx(1 / (1 + np.exp(-pixel["edge"][0])), rel=1e-5)
        length = np.linalg.norm(pixel["normals"])
        np.testing.assert_allclose(decoded["normals"][b, :, y, x], pixel["normals"] / length, rtol=1e-5)
        assert float(decoded["depth"][b, 0, y, x]) == pytest.approx(pixel["depth"][0])


def test_decoding_half_precision_gives_single_precision():
    raw = {task.name: torch.randn(1, task.channels, 2, 2).bfloat16() for task in DOLLHOUSE}
    for name, tensor in decode(raw, DOLLHOUSE).items():
        assert tensor.dtype == (torch.int64 if name in ("semseg", "human_parts") else torch.float32)


def test_a_model_that_knows_the_labels_gets_the_best_score_of_every_metric():
    dataset = Noise(3, train=False)
    result = evaluate(Oracle(dataset), make_loader(dataset, 2, train=False), DOLLHOUSE, progress=False)
    assert result.metrics == pytest.approx(
        {"semseg": 100, "human_parts": 100, "saliency": 100, "normals": 0, "depth": 0, "edge": 100}, abs=0.05
    )
    assert result.details.keys() == result.metrics.keys()


def test_pixels_that_are_ignored_do_not_count_whatever_is_predicted_there():
    dataset = Noise(2, train=False)
    oracle = Oracle(dataset)
    batches = [dict(batch) for batch in make_loader(dataset, 1, train=False)]
    for batch in batches:
        for name, value in (("semseg", 255), ("human_parts", 255), ("saliency", 255), ("edge", 255), ("depth", 0)):
            batch[name] = batch[name].clone()
            batch[name][..., :8] = value
        batch["normals"] = batch["normals"].clone()
        batch["normals"][..., :8] = 0
    for _, raw in oracle.answers:
        for tensor in raw.values():
            tensor[..., :8] = torch.randn(())
    result = evaluate(oracle, batches, DOLLHOUSE, progress=False)
    assert result.metrics == pytest.approx(
        {"semseg": 100, "human_parts": 100, "saliency": 100, "normals": 0, "depth": 0, "edge": 100}, abs=0.05
    )


def test_scores_are_pooled_over_the_data_set_and_do_not_depend_on_the_batch_size():
    dataset = Noise(3, train=False)
    model = make_model(RECIPE)
    results = [
        evaluate(model, make_loader(dataset, size, train=False), DOLLHOUSE, progress=False).metrics
        for size in (1, 2, 3)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert results[2] == pytest.approx(results[0], rel=1e-4)
    error = torch.cat(
        [model.eval()(sample["image"][None]).predictions["depth"] - sample["depth"] for sample in dataset]
    )
    assert results[0]["depth"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_the_model_as_it_was(training):
    model = make_model(RECIPE).train(training)
    model.backbone.eval()  # frozen, as one does with a pre-trained one
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, make_loader(Noise(2, train=False), 2, train=False), DOLLHOUSE, progress=False)
    assert model.training is training
    assert not any(module.training for module in model.backbone.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_several_processes_shares_add_up_to_the_whole(monkeypatch):
    """Each process judges every second image; gathering their meters is played by hand here."""
    dataset, model = Noise(3, train=False), make_model(RECIPE)
    shares = [make_loader(dataset, 1, train=False, rank=rank, world_size=2) for rank in range(2)]
    second = make_meters(DOLLHOUSE)
    evaluate(model, shares[1], DOLLHOUSE, meters=second, progress=False)
    others = iter(second.values())
    monkeypatch.setattr("mlore_edu.training.distributed.gather", lambda meter: [meter, next(others)])
    together = evaluate(model, shares[0], DOLLHOUSE, progress=False)
    monkeypatch.undo()
    alone = evaluate(model, make_loader(dataset, 1, train=False), DOLLHOUSE, progress=False)
    assert together.metrics == pytest.approx(alone.metrics, rel=1e-9)
    assert together.details["edge"]["images"] == 3


def test_only_listed_images_count_for_boundaries_and_all_of_them_for_the_rest():
    dataset, model = Noise(4, train=False), make_model(RECIPE)
    whole = evaluate(model, make_loader(dataset, 1, train=False), DOLLHOUSE, progress=False)
    few = [batch for batch in make_loader(dataset, 1, train=False) if batch["meta"][0]["id"] in ("noise1", "noise3")]
    edge = evaluate(model, few, DOLLHOUSE, progress=False).details["edge"]
    for size in (1, 3):
        loader = make_loader(dataset, size, train=False)
        found = evaluate(
            model, loader, DOLLHOUSE, progress=False, keep=partial(only_listed, listed={"noise3", "noise1"})
        )
        assert repr(found.details["edge"]) == repr(edge)
        assert edge["images"] == 2
        assert {**found.metrics, "edge": 0} == pytest.approx({**whole.metrics, "edge": 0}, rel=1e-4)


def test_a_recipe_chooses_the_variants_of_the_metrics():
    recipe = dataclasses.replace(RECIPE, boundary_protocol="nyud", saliency_variant="released")
    meters = recipe_meters(recipe)
    assert meters["edge"].protocol == NYUD_BOUNDARY == PROTOCOLS["nyud"]
    assert meters["saliency"].variant == "released"
    assert isinstance(meters["depth"], DepthRMSE)


def test_pictures_show_labels_above_predictions_for_images_spread_over_the_data_set(tmp_path):
    dataset = Noise(5, train=False)
    paths = draw(Oracle(dataset), dataset, DOLLHOUSE, tmp_path / "pictures", 3)
    assert [path.name for path in paths] == ["noise0.png", "noise2.png", "noise4.png"]
    picture = np.asarray(Image.open(paths[0]).convert("RGB")).astype(int)
    cell = (picture.shape[0] - 22 - 4) // 2  # titles on top, a gap between the rows
    label, prediction = picture[22 : 22 + cell, 22:], picture[22 + cell + 4 :, 22:]
    # An oracle's row differs from the labels' only by the rounding of probabilities and unit vectors to 8 bits.
    assert np.abs(label - prediction).max() <= 2
    assert draw(Oracle(dataset), dataset, DOLLHOUSE, tmp_path / "none", 0) == []


def test_the_best_constant_answers_are_what_the_training_labels_suggest():
    train_set, validation_set = Noise(4, train=False), Noise(3, train=False, first=100)
    scores = constant_predictor_scores(train_set, validation_set, DOLLHOUSE)
    depths = torch.cat([sample["depth"].flatten() for sample in train_set])
    truth = torch.cat([sample["depth"].flatten() for sample in validation_set])
    assert scores["depth"] == pytest.approx((truth - depths.mean()).square().mean().sqrt().item(), rel=1e-5)
    classes = torch.cat([sample["semseg"].flatten() for sample in train_set])
    answer = classes.bincount().argmax()
    shown = torch.cat([sample["semseg"].flatten() for sample in validation_set])
    union = [(shown == answer).float().mean().item() if label == answer else 0.0 for label in shown.unique()]
    present = len(union) + (answer not in shown)
    assert scores["semseg"] == pytest.approx(100 * sum(union) / present, rel=1e-5)


def test_an_answer_for_each_place_is_perfect_where_every_image_is_the_same():
    same = Noise(1, train=False)
    scores = constant_predictor_scores(same, same, DOLLHOUSE, per_pixel=True)
    assert scores == pytest.approx(
        {"semseg": 100, "human_parts": 100, "saliency": 100, "normals": 0, "depth": 0, "edge": 100}, abs=0.05
    )
    anywhere = constant_predictor_scores(same, same, DOLLHOUSE)
    assert anywhere["depth"] > 0.5
    assert anywhere["semseg"] < 50


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run on noise, and evaluation pointed at the same noise."""
    validation_set = Noise(3, train=False, first=100)
    monkeypatch.setattr(setup, "make_validation_set", lambda recipe: validation_set.using(tasks=recipe.task_set))
    metrics, _ = run(tmp_path / "run", channels_last=True)
    return tmp_path / "run", metrics


def test_evaluating_a_run_again_gives_its_numbers_to_the_last_digit(finished):
    folder, metrics = finished
    result = judge_run(folder, Choices(progress=False))
    assert result.metrics == metrics == json.loads((folder / "metrics.json").read_text())["metrics"]


def test_evaluating_a_run_takes_another_protocol_and_another_root(finished, monkeypatch):
    folder, metrics = finished
    seen = []
    original = setup.make_validation_set
    monkeypatch.setattr(setup, "make_validation_set", lambda recipe: seen.append(recipe.root) or original(recipe))
    result = judge_run(folder, Choices(root="/elsewhere", boundary="nyud", progress=False))
    assert seen == ["/elsewhere"]
    assert result.metrics["edge"] != metrics["edge"]
    assert {**result.metrics, "edge": 0} == {**metrics, "edge": 0}


def test_a_folder_without_a_checkpoint_cannot_be_evaluated(tmp_path):
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    with pytest.raises(UserError, match="holds no checkpoint yet; train it first"):
        judge_run(tmp_path, Choices())


@pytest.mark.slow
def test_two_processes_share_the_images_of_a_run_and_of_its_predictions_and_find_the_same(tmp_path):
    root, here = write_layout(tmp_path / "data", "dollhouse"), str(tmp_path)
    words = "train dollhouse_baseline_nano_64 --iterations 1 --batch-size 2 --workers 0 --pictures 0"
    assert cli.main([*words.split(), "--root", str(root), "--run", f"{here}/run"]) == 0
    alone = json.loads((tmp_path / "run/metrics.json").read_text())
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "mlore_edu"]
    for words in (
        f"evaluate {here}/run --save-predictions {here}/p --json {here}/of_run.json",
        f"evaluate --predictions {here}/p --data dollhouse --root {root} --json {here}/of_files.json",
    ):
        done = subprocess.run([*launch, *words.split()], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("no paper has numbers") == 1
    of_run, of_files = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("of_run", "of_files"))
    assert of_run["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)  # other batches, other last digits
    assert of_run["details"]["edge"]["images"] == of_files["details"]["edge"]["images"] == 2
    saliency = of_files["metrics"].pop("saliency"), of_run["metrics"].pop("saliency")
    assert saliency[0] == pytest.approx(saliency[1], abs=1)
    assert of_files["metrics"] == of_run["metrics"]
