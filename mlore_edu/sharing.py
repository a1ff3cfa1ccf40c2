"""A model as a folder that others can load: weights, how it was built, and a card that says what it is (chapter 19).

::

    FOLDER/model.safetensors    numbers with names; reading it runs no code
    FOLDER/config.json          what build_model was told, the tasks, whether the model is fused
    FOLDER/README.md            the card that the Hugging Face Hub shows

The same three files make a repository on the Hub: ``hf upload OWNER/NAME FOLDER``. (Its mixin for PyTorch classes
stores what a class was constructed with; ours is constructed from modules, which JSON cannot hold.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from mlore_edu import __version__
from mlore_edu.atomic import write_atomically
from mlore_edu.backbones import read_state_dict
from mlore_edu.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mlore_edu.decoders.mlore_fused import FusedMLoREModule
from mlore_edu.decoders.own import is_own
from mlore_edu.errors import UserError
from mlore_edu.model import MultiTaskModel, build_model
from mlore_edu.reparameterization import fuse
from mlore_edu.tasks import Task, TaskSet
from mlore_edu.training import checkpoint
from mlore_edu.training.checkpoint import WEIGHTS, explain_disk_errors
from mlore_edu.training.recipe import as_tuple, load_recipe
from mlore_edu.training.run_folder import RunFolder

CONFIG, CARD = "config.json", "README.md"
FORMAT = 1
"""Version of the folder's layout."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(model: MultiTaskModel, folder: str | Path, *, metrics: Mapping[str, float] | None = None) -> Path:
    """Write a model into a folder, from which :func:`from_pretrained` builds it again.

    Parameters
    ----------
    model
        Built by :func:`~mlore_edu.model.build_model`; fused or not.
    folder
        Made if need be; nothing in it is overwritten.
    metrics
        The number of each task on the validation split, for the card.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UserError
        If the model was put together by hand, the folder holds a model already, or cannot be written. Chapter 19.
    """
    config = describe(model)
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG, CARD):
        if (folder / name).exists():
            raise UserError(f"{folder} holds a {name} already; choose another folder, or move it away.")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    contents = {
        WEIGHTS: safetensors.torch.save(weights, {"format": "pt"}),
        CARD: model_card(model, metrics).encode(),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),  # last: where it is, the others are
    }
    with explain_disk_errors(f"the model to {folder}", option="--out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
    return folder


def describe(model: MultiTaskModel) -> dict[str, Any]:
    """What ``config.json`` holds: all that is needed to build the model again, but its weights.

    Raises
    ------
    UserError
        If the model was put together by hand, or parts of it are fused in different modes.
    """
    built = model.configuration
    if built is None:
        raise UserError("This model was put together by hand, so nobody could build it again; use build_model.")
    modes = {module.mode for module in model.modules() if isinstance(module, FusedMLoREModule)}
    if len(modes) > 1:
        raise UserError("This model is fused in two modes at once; fuse it with me.fuse(model, mode), and save that.")
    return {
        "format": FORMAT,
        "library": f"mlore_edu {__version__}",
        "model": built.name,
        "img_size": list(built.img_size),
        "options": dict(built.options),
        "fused": next(iter(modes), None),
        "task_set": built.tasks.name,
        "tasks": [asdict(task) for task in built.tasks],
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def from_pretrained(source: str | Path, *, revision: str | None = None) -> MultiTaskModel:
    """Load a model from a folder, a run, or the Hugging Face Hub.

    Nothing in a saved model is run as code. A run may name a decoder of your own (chapter 20), whose file is.

    Parameters
    ----------
    source
        A folder that :func:`save_pretrained` wrote; the folder of a training run, of which the last checkpoint is
        taken; or, where there is no such folder, ``"OWNER/NAME"`` on the Hub.
    revision
        Branch, tag or commit on the Hub.

    Returns
    -------
    MultiTaskModel
        On the CPU, in evaluation mode.

    Raises
    ------
    UserError
        If nothing is there, the Hub cannot be reached, or the files are damaged or do not fit. Chapter 19.
    """
    folder = Path(source)
    if not folder.is_dir():
        mistyped = folder.parent.is_dir() and folder.parent != Path()  # runs/typo is no name on the Hub
        if mistyped or not _HUB_ID.fullmatch(str(source)):
            raise UserError(f"There is no folder {source}; give that of a run or of a saved model, or OWNER/NAME.")
        config_file, weights_file = (_fetch(str(source), name, revision) for name in (CONFIG, WEIGHTS))
    elif (folder / "recipe.json").exists():
        return _from_run(folder)
    else:
        config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    model = _build(config_file)
    _load(model, read_state_dict(weights_file), weights_file)
    return model.eval()


def run_metrics(source: str | Path) -> dict[str, float] | None:
    """The metrics of a complete run; None where there is none."""
    stored = RunFolder(Path(source)).read_metrics() if Path(source).is_dir() else None
    return dict(stored["metrics"]) if stored else None


def _from_run(run: Path) -> MultiTaskModel:
    from mlore_edu.training.setup import make_model  # data loading comes with it

    recipe = load_recipe(run)
    last = checkpoint.latest(run / "checkpoints")
    if last is None:
        raise UserError(f"{run} holds no checkpoint yet; train it first with 'mlore-edu train {recipe.name}'.")
    weights, _ = checkpoint.load(last)
    model = make_model(recipe, for_training=False)
    _load(model, weights, last / WEIGHTS)
    return model.eval()


def _fetch(repository: str, name: str, revision: str | None) -> Path:
    """Fetch a file from the Hub, or find it in its cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # every layer below has its own exception for a missing network or name
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise UserError(
            f"There is no folder {repository}, and {name} could not be fetched from the Hugging Face Hub ({reason}); "
            "check the name, or connect to the network."
        ) from error


def _build(path: Path) -> MultiTaskModel:
    """The model that a ``config.json`` describes, with fresh weights."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise UserError(f"{path} was written by a newer version ({config['library']}); update mlore-edu.")
        tasks = tuple(Task(**{key: as_tuple(value) for key, value in task.items()}) for task in config["tasks"])
        options = {option: as_tuple(value) for option, value in config["options"].items()}
        img_size = (int(config["img_size"][0]), int(config["img_size"][1]))
        name, task_set, mode = str(config["model"]), TaskSet(str(config["task_set"]), tasks), config["fused"]
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {CONFIG}; give the folder of a run or of a saved model.") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} describes no model of this library ({reason}); save or fetch it again.") from error
    if unsafe := {"weights", "pretrained"} & set(options):  # a stranger's file names no file of ours
        raise UserError(f"{path} has an option {unsafe.pop()!r}, which no saved model has; fetch it again.")
    if is_own(name):
        raise UserError(
            f"{path} needs the decoder {name!r}, which is code of its author's, and nobody's code is run from here; "
            "build the model with build_model where that file is, and load its state dict."
        )
    model = build_model(name, tasks=task_set, img_size=img_size, **options).eval()
    return model if mode is None else fuse(model, mode)


def _load(model: MultiTaskModel, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())[:200]
        raise UserError(f"{path} does not fit its model ({reason}); save or fetch both files again.") from error


def model_card(model: MultiTaskModel, metrics: Mapping[str, float] | None = None) -> str:
    """The text of ``README.md``: what the model predicts, how well, how it is loaded, and whose data it learned from.

    Parameters
    ----------
    model
        Built by :func:`~mlore_edu.model.build_model`.
    metrics
        By task, in the tasks' units.
    """
    config, built = describe(model), model.configuration
    assert built is not None  # describe() has asked
    rows = [_row(task, metrics) for task in built.tasks]
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    fused = f", re-parameterised for inference ({config['fused']})" if config["fused"] else ""
    height, width = built.img_size
    return _CARD.format(
        name=built.name,
        data=built.tasks.name,
        fused=fused,
        millions=f"{millions:.3g}",
        size=f"{height} × {width}",
        rows="\n".join(rows),
        unmeasured="" if metrics else "\nIts predictions were not measured when this card was written.\n",
        licence=LICENCES.get(built.tasks.name, OTHER_DATA),
    )


def _row(task: Task, metrics: Mapping[str, float] | None) -> str:
    value = f"{metrics[task.name]:.3f} {task.unit}" if metrics and task.name in metrics else "not measured"
    return f"| {task.title} | {task.metric} ({'lower' if task.lower_is_better else 'higher'} is better) | {value} |"


LICENCES = {
    "Dollhouse": "Dollhouse is rendered by the library itself (Apache-2.0); weights trained on it alone carry no "
    "licence of others.",
    "PASCAL-Context": "The images of PASCAL VOC and the labels that others added to them have terms of their own; read "
    "them before you publish weights trained on them, or use such weights for money.",
    "NYUD-v2": "NYU Depth V2 has terms of its own; read them before you publish weights trained on it, or use such "
    "weights for money.",
}
"""What a card says about the data, by task set."""

OTHER_DATA = "Say here which data the model was trained on, and under which terms."

_CARD = """---
library_name: mlore-edu
license: other
tags: [multi-task-learning, dense-prediction, semantic-segmentation, depth-estimation, surface-normals]
---

# {name} for {data}

All tasks from one image in one pass{fused}: {millions} million numbers, images of {size} pixels.

| task | metric on the validation split | value |
|---|---|---|
{rows}
{unmeasured}
```python
import mlore_edu as me

model = me.from_pretrained("FOLDER_OR_OWNER/NAME")
answers = me.predict(model, "photo.jpg")  # classes, probabilities, unit normals, metres, at the photo's own size
```

Images are normalised by ImageNet's mean and standard deviation (`config.json`); `me.predict` does that, and fits any
image into the model's frame.

## Data and licence

{licence}
An encoder that began with published weights, and a decoder loaded from somebody else's checkpoint, carry their
licences too (the code of MLoRE's authors, with which their checkpoints come, is CC BY-NC). The library itself is
Apache-2.0.

Trained on one data set, the model knows that data set's rooms, streets and cameras: expect less of it elsewhere.
"""
