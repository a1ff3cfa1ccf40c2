"""The commands for those who use a model: ``mlore-edu predict``, ``export`` and ``demo`` (chapter 19)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlore_edu.errors import UserError

if TYPE_CHECKING:
    from mlore_edu.cli import Parser
    from mlore_edu.model import MultiTaskModel
    from mlore_edu.prediction_files import Outcome
    from mlore_edu.tasks import TaskSet

MODEL_HELP = "folder of a run or of a saved model, or OWNER/NAME on the Hugging Face Hub"
FORMATS = {"safetensors": "", "torch": ".pt2", "onnx": ".onnx"}
"""What ``export`` writes, and how its name ends; safetensors is a folder."""


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the three commands to those of ``mlore-edu``."""
    predict = commands.add_parser("predict", help="answer all tasks for images of your own, folders of them, or films")
    predict.add_argument("model", metavar="RUN", help=MODEL_HELP)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image, a folder of them, or a film")
    predict.add_argument("--out", type=Path, help="a new folder for the pictures (predictions/NAME)")
    predict.add_argument("--arrays", action="store_true", help="also write every answer, as TASK/ID.png or .npy")
    predict.add_argument("--enlarge", action="store_true", help="enlarge small images instead of padding them")
    predict.add_argument("--focal-ratio", type=float, metavar="R", help="the camera's focal length over the training's")
    predict.add_argument("--every", type=int, default=1, metavar="N", help="of a film, one of N pictures (%(default)s)")
    predict.add_argument("--fuse", action="store_true", help="in the re-parameterised form (MLoRE only)")
    predict.set_defaults(run_command=_predict)

    export = commands.add_parser("export", help="write a model to share it, or to run it without this library")
    export.add_argument("model", metavar="RUN", help=MODEL_HELP)
    export.add_argument("--format", choices=list(FORMATS), default="safetensors", help="(%(default)s)")
    export.add_argument("--out", type=Path, help="a new file, or folder for safetensors (exports/NAME)")
    export.add_argument("--fuse", action="store_true", help="in the re-parameterised form (MLoRE only)")
    export.set_defaults(run_command=_export)

    demo = commands.add_parser("demo", help="a page in the browser: give it a photograph, see every answer")
    demo.add_argument("model", metavar="RUN", help=MODEL_HELP)
    demo.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    demo.add_argument("--fuse", action="store_true", help="in the re-parameterised form (MLoRE only)")
    demo.set_defaults(run_command=_demo)


def _model(options: argparse.Namespace) -> MultiTaskModel:
    from mlore_edu.reparameterization import fuse
    from mlore_edu.sharing import from_pretrained

    model = from_pretrained(options.model)
    return fuse(model) if options.fuse else model


def _predict(options: argparse.Namespace) -> None:
    from mlore_edu.prediction_files import predict_files
    from mlore_edu.training.distributed import default_device

    out = options.out or Path("predictions") / options.images[0].resolve().stem
    model = _model(options).to(default_device())
    choices = {name: getattr(options, name) for name in ("arrays", "every", "enlarge", "focal_ratio")}
    outcome = predict_files(model, options.images, out, **choices)
    if outcome.failures:
        raise UserError(_failures(outcome, out))
    print(f"{_count(len(outcome.written), 'image')} predicted; pictures{' and arrays' * options.arrays} are in {out}")


def _failures(outcome: Outcome, out: Path) -> str:
    """What went wrong: the sentence itself for one, or a list of them."""
    sentences = list(outcome.failures.values())
    if not outcome.written and len(sentences) == 1:
        return sentences[0]
    listed = "\n".join(f"  {sentence}" for sentence in sentences)
    done = f"the {_count(len(outcome.written), 'image')} predicted are in {out}"
    return f"{_count(len(sentences), 'file')} could not be predicted; {done}:\n{listed}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _export(options: argparse.Namespace) -> None:
    from mlore_edu.sharing import run_metrics, save_pretrained

    suffix = FORMATS[options.format]
    name = Path(options.model).resolve().name + ("-fused" if options.fuse else "")
    out = options.out or Path("exports") / f"{name}{suffix}"
    model = _model(options)
    if options.format == "safetensors":
        save_pretrained(model, out, metrics=run_metrics(options.model))
        print(f"{out} holds the model; me.from_pretrained(\"{out}\") loads it, 'hf upload OWNER/NAME {out}' shares it")
        return
    from mlore_edu.export import export_model
    from mlore_edu.prediction import tasks_of

    differences = export_model(model, out, "torch" if options.format == "torch" else "onnx")
    print(difference_table(tasks_of(model), differences))
    height, width = model.img_size
    print(f"{out} takes normalised images (B, 3, {height}, {width}), and is {out.stat().st_size / 1e6:.1f} MB large")


def difference_table(tasks: TaskSet, differences: Mapping[int, Mapping[str, float]]) -> str:
    """Lay out what :func:`~mlore_edu.export.export_model` found, one task a line."""
    from mlore_edu.export import TOLERANCE

    width = max(len(task.title) for task in tasks)
    lines = [f"largest difference from the model, as a share of its largest value (let through: {TOLERANCE:.0e})"]
    lines.append(" " * width + "".join(f"{_count(batch, 'image'):>11}" for batch in differences))
    for task in tasks:
        lines.append(f"{task.title:<{width}}" + "".join(f"{found[task.name]:11.1e}" for found in differences.values()))
    return "\n".join(lines)


def _demo(options: argparse.Namespace) -> None:
    from mlore_edu.demo import page
    from mlore_edu.training.distributed import default_device

    try:
        page(_model(options).to(default_device())).launch(server_port=options.port)
    except OSError as error:
        raise UserError(f"Port {options.port} cannot be used ({error}); choose another with --port.") from error
