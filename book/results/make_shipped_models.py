"""Train the four networks that come with the book, and store them in book/models (chapter 18).

    python book/results/make_shipped_models.py
    python book/results/make_shipped_models.py --verify

The first command renders data/dollhouse where it is not there, trains what is not trained in runs/shipped, one thread a
run, and writes for each network a folder

    book/models/NAME/model.safetensors   its weights, in half precision
    book/models/NAME/config.json         what me.from_pretrained needs
    book/models/NAME/metrics.json        how it was trained, and what the stored file scores

The second loads the stored files and nothing else, scores them again on the same scenes, which it renders itself, and
ends with an error where a number is not the recorded one.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from record import HERE, record

import mlore_edu as me
from mlore_edu.cli import main as mlore_edu
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, DollhouseScenes
from mlore_edu.data.loaders import make_loader
from mlore_edu.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform
from mlore_edu.evaluation import evaluate
from mlore_edu.training import checkpoint
from mlore_edu.training.recipe import load_recipe

ROOT = HERE.parents[1]
MODELS = HERE.parent / "models"
SIDE = 128
SCENES, FEW = 100, 6
"""Validation scenes that the metrics are of: all, and as many as a test has time for."""

COMMANDS = {
    # the released variant leaves the baseline behind in mlore_sweeps.json, the one of the paper's text does not
    # (chapter 9), and the matrices that the supplement prints are of a network of that kind
    "mlore": "dollhouse_mlore_nano --iterations 300 --model-options variant released",
    # narrower than the recipe's, so that all four fit into 8 MB; chapter 11 found no harm in that
    "taskexpert": "dollhouse_taskexpert_nano --iterations 300 --model-options expert_width 16 gate_width 4",
    # its steps take twice as long
    "tif": "dollhouse_tif_nano --iterations 200",
    "baseline": "dollhouse_baseline_nano --iterations 300",
}
"""What `mlore-edu train` is told, by name."""

TOLERANCE = {"mIoU": 0.1, "maxF": 0.01, "odsF": 0.1, "mErr": 0.001, "RMSE": 0.0002}
"""By metric, in its own unit. Other processors add in another order, which moves answers in their sixth digit. Means over
all pixels do not notice; but a single pixel that falls to another class, or over a threshold, moves the mIoU of a few
scenes by a tenth where its class has fifty pixels."""


def run_of(name: str) -> Path:
    """The folder of its training."""
    return Path("runs", "shipped", name)


def command(name: str) -> str:
    """The command of its training."""
    return f"train {COMMANDS[name]} --workers 0 --pictures 0 --run {run_of(name)}"


def train(name: str) -> None:
    """One run; one that is finished is left alone, one that was interrupted goes on."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = mlore_edu(shlex.split(command(name)))
    if code:
        raise SystemExit(
            f"mlore-edu {command(name)} failed: {said.getvalue()[-500:]}"
        )


def store(name: str, run: Path) -> None:
    """Write weights and configuration, in the layout of a saved model (chapter 19)."""
    recipe = load_recipe(run)
    weights, _ = checkpoint.load(checkpoint.latest(run / "checkpoints"))
    halved = {
        key: w.half() if w.is_floating_point() else w for key, w in weights.items()
    }
    assert all(w.isfinite().all() for w in halved.values()), f"{name} overflows"
    config = {
        "format": 1,
        "library": f"mlore_edu {me.__version__}",
        "model": recipe.model,
        "img_size": list(recipe.img_size),
        "options": dict(recipe.model_options),
        "fused": None,
        "task_set": recipe.task_set.name,
        "tasks": [asdict(task) for task in recipe.task_set],
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        halved, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load(name: str) -> torch.nn.Module:
    """A stored network, in single precision and evaluation mode."""
    return me.from_pretrained(MODELS / name)


def scores(model: torch.nn.Module, scenes: int) -> dict[str, float]:
    """Metrics on the first validation scenes, rendered here."""
    data = DollhouseScenes(
        scenes, SIDE, "easy", VALIDATION_SEEDS, transform=eval_transform(SIDE)
    )
    loader = make_loader(data, min(scenes, 20), train=False)
    metrics = evaluate(model, loader, me.DOLLHOUSE, progress=False).metrics
    return {task: round(value, 4) for task, value in metrics.items()}


def recorded(name: str) -> dict:
    """What metrics.json says of a stored network."""
    return json.loads((MODELS / name / "metrics.json").read_text())


def differences(
    found: dict[str, float], wanted: dict[str, float]
) -> dict[str, float]:
    """Of those metrics that are further from the recorded ones than the tolerance."""
    off = {task: found[task] - wanted[task] for task in wanted}
    return {
        task: d
        for task, d in off.items()
        if not abs(d) <= TOLERANCE[me.DOLLHOUSE[task].metric]
    }


def make(name: str) -> None:
    """Train, store, and record what the stored file scores."""
    train(name)
    store(name, run_of(name))
    model, told = load(name), record(run_of(name))
    told["command"] = f"mlore-edu {command(name)}"
    told["curve"]["losses"] = {  # every 30th step is enough to see it fall
        task: values[2::3] for task, values in told["curve"]["losses"].items()
    }
    told["curve"]["iteration"] = told["curve"]["iteration"][2::3]
    told["of_the_run"] = {
        task: round(value, 4) for task, value in told.pop("metrics").items()
    }
    told["parameters"] = sum(p.numel() for p in model.parameters())
    told["metrics"] = scores(model, SCENES)
    told["metrics_of_few"] = scores(model, FEW)
    path = MODELS / name / "metrics.json"
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(name, told["metrics"], flush=True)


def verify() -> None:
    """Score all stored networks again."""
    for name in COMMANDS:
        wanted = recorded(name)["metrics"]
        found = scores(load(name), SCENES)
        off = differences(found, wanted)
        print(name, found, "differs" if off else "as recorded", flush=True)
        if off:
            raise SystemExit(f"{name}: {off} away from what is recorded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--verify", action="store_true", help="score the stored files again"
    )
    parser.add_argument("names", nargs="*", default=list(COMMANDS), help="which")
    choice = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if choice.verify:
        return verify()
    if not Path("data/dollhouse").exists() and mlore_edu(
        shlex.split(f"dollhouse --root data/dollhouse --size {SIDE}")
    ):
        raise SystemExit(2)
    for name in choice.names:
        make(name)
    return None


if __name__ == "__main__":
    main()
