"""What the tests of training share: a data set of noise, a tiny recipe, ways to disturb a run and to compare two."""

import dataclasses
import os
import signal
from pathlib import Path

import torch
from torchvision import tv_tensors

from mlore_edu.data.datasets import LabelledImages
from mlore_edu.data.tensors import ClassMap, Depth, Normals
from mlore_edu.data.transforms import eval_transform, train_transform
from mlore_edu.model import build_model
from mlore_edu.tasks import DOLLHOUSE
from mlore_edu.training import checkpoint
from mlore_edu.training.engine import fit
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.run_folder import read_log

SIZE = 32
RECIPE = Recipe(
    name="noise",
    img_size=(SIZE, SIZE),
    augmentation="flip",
    model_options=(("channels", 8),),
    optimizer="adamw",
    lr=1e-2,
    iterations=5,
    batch_size=2,
    drop_path_rate=0.5,  # draws random numbers in every step, as resuming must reproduce
    workers=0,
    log_interval=1,
    checkpoint_interval=2,
    pictures=1,
)


class Noise(LabelledImages):
    """Images of noise with smooth labels that they have nothing to do with; ``on_load`` is told every index."""

    offers = DOLLHOUSE

    def __init__(self, count=4, tasks=DOLLHOUSE, train=True, on_load=None, first=0):
        transform = train_transform(SIZE, scale=(1, 1), photometric=False) if train else eval_transform(SIZE)
        super().__init__([f"noise{first + index}" for index in range(count)], tasks, transform)
        self.first, self.on_load = first, on_load

    def load(self, index):
        if self.on_load:
            self.on_load(index)
        generator = torch.Generator().manual_seed(self.first + index)
        blocks = torch.randint(0, 6, (1, 1, 4, 4), generator=generator).float()
        classes = torch.nn.functional.interpolate(blocks, (SIZE, SIZE))[0, 0].long()
        edge = torch.zeros(SIZE, SIZE, dtype=torch.long)
        edge[SIZE // 2] = 1
        normals = torch.nn.functional.normalize(torch.randn(3, 1, 1, generator=generator), dim=0).expand(3, SIZE, SIZE)
        sample = {
            "image": tv_tensors.Image(torch.randint(0, 256, (3, SIZE, SIZE), generator=generator).byte()),
            "semseg": ClassMap(classes),
            "human_parts": ClassMap(classes),
            "saliency": ClassMap((classes > 3).long()),
            "normals": Normals(normals.clone()),
            "depth": Depth(1 + classes[None].float()),
            "edge": ClassMap(edge),
            "meta": {"id": self.ids[index], "size": (SIZE, SIZE)},
        }
        return {name: sample[name] for name in ("image", *self.tasks.names, "meta")}


def make_model(recipe):
    torch.manual_seed(recipe.seed)
    options = {"drop_path_rate": recipe.drop_path_rate, **dict(recipe.model_options)}
    return build_model(recipe.model, recipe.task_set, recipe.img_size, **options)


def run(folder, recipe=RECIPE, model=None, on_load=None, on_validation=None, **changes):
    """Train on noise; returns the metrics and the model."""
    recipe = dataclasses.replace(recipe, **changes)
    model = model or make_model(recipe)
    train_set = Noise(tasks=recipe.task_set, on_load=on_load)
    validation_set = Noise(3, recipe.task_set, train=False, on_load=on_validation, first=100)
    return fit(model, train_set, validation_set, recipe, Path(folder), progress=False), model


class Countdown:
    """Calls a function at the n-th call of itself."""

    def __init__(self, calls, action):
        self.calls, self.action = calls, action

    def __call__(self, *_):
        self.calls -= 1
        if self.calls == 0:
            self.action()


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def same_log(first, second):
    """Logs are equal but for the speed."""
    logs = [
        [{**entry, "images_per_second": 0} for entry in read_log(Path(path) / "log.jsonl")] for path in (first, second)
    ]
    return logs[0] == logs[1]


def same_values(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_values, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_values(first[key], second[key]) for key in first)
    return first == second


def assert_same_run(first, second):
    """Weights, optimiser, random numbers, log and metrics of two complete runs agree to the last bit."""
    (weights, state), (other_weights, other_state) = (
        checkpoint.load(checkpoint.latest(Path(folder) / "checkpoints")) for folder in (first, second)
    )
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert same_values(state, other_state)
    assert same_log(first, second)
    assert (Path(first) / "metrics.json").read_bytes() == (Path(second) / "metrics.json").read_bytes()
