"""A model without Python: torch's ExportedProgram and ONNX, written only where they agree with the model (chapter 19).

Both are made from one trace, in which the number of images stays a symbol B. Two of its steps ONNX does not know, and
they are put into other words (:data:`IN_OTHER_WORDS`):

* A stable sort. ONNX has only TopK, whose ties go to the lower index: that is the same.
* A convolution of B·T groups, which is how a fused MLoRE gives every image its own kernel. ONNX's Conv has a fixed
  number of groups; written as one matrix product per group it has none.

An exported model takes normalised images ``(B, 3, H, W)`` named ``images`` and gives raw predictions named after the
tasks; what it needs to be used (:func:`~mlore_edu.sharing.describe`) travels inside it as JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mlore_edu.errors import UserError
from mlore_edu.model import MultiTaskModel
from mlore_edu.modes import evaluation_mode
from mlore_edu.sharing import describe
from mlore_edu.training.checkpoint import explain_disk_errors

Format: TypeAlias = Literal["torch", "onnx"]
Run: TypeAlias = Callable[[Tensor], Mapping[str, Tensor]]
"""An exported model, loaded again: from images to raw predictions by task."""

SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
METADATA = "mlore_edu"
"""Name under which the description is stored in the file."""

BATCHES = (1, 3)
"""Numbers of images for which an exported model is compared with the model itself."""
TOLERANCE = 1e-4
"""Largest difference that is let through, as a share of the largest value of a task's prediction."""

_LARGEST_FILE = 1_500_000_000
"""Bytes of weights above which ONNX keeps them in a second file: its format ends at 2 GiB."""


class DisagreementError(UserError):
    """The exported model does not give what the model gives."""


def export_model(
    model: MultiTaskModel, path: str | Path, kind: Format | None = None, *, batches: tuple[int, ...] = BATCHES
) -> dict[int, dict[str, float]]:
    """Write a model as a file that runs without this library, after comparing the two.

    Parameters
    ----------
    model
        Fused or not; exported as in evaluation, in single precision, and not changed.
    path
        The file; it must not be there yet. An ONNX model of more than 1.5 GB has a second one beside it.
    kind
        ``"torch"``, to be run by ``torch.export.load(path).module()``, or ``"onnx"``; None: as the path ends.
    batches
        Numbers of images to compare with.

    Returns
    -------
    dict
        By number of images and task: the largest difference, as a share of the prediction's largest value.

    Raises
    ------
    UserError
        If a package is missing, the file is there, or cannot be written; :class:`DisagreementError` if a difference is
        above :data:`TOLERANCE`. Nothing is written then. Chapter 19.
    """
    path = Path(path)
    kind = kind or next((known for known, suffix in SUFFIXES.items() if path.suffix == suffix), None)
    if kind is None:
        raise UserError(f"{path} ends neither in .pt2 nor in .onnx; give one of these, or the kind.")
    check_packages(kind)
    for place in (path, _weights_of(path)):
        if place.exists():
            raise UserError(f"{place} is there already; move it away, or choose another path.")
    device = next(model.parameters()).device
    with (
        evaluation_mode(model.cpu()),
        torch.no_grad(),  # unlike inference mode, tracing works in it
        explain_disk_errors(f"the exported model to {path}", option="--out"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as draft:
                run = WRITERS[kind](model, Path(draft) / path.name)
                differences = {batch: compare(model, run, batch) for batch in batches}
                check_agreement(differences)
                for file in sorted(Path(draft).iterdir(), reverse=True):  # the second file first
                    file.rename(path.parent / file.name)
        finally:
            model.to(device)
    return differences


def check_packages(kind: Format) -> None:
    """Ask for the packages that a kind of export needs.

    Raises
    ------
    UserError
        Naming those that are not installed.
    """
    needed = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f"Writing ONNX needs more packages; install them with 'pip install {' '.join(missing)}'.")


class _Predictions(nn.Module):
    """A model that returns nothing but its predictions."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        predictions: dict[str, Tensor] = self.model(images).predictions
        return predictions


def trace(model: MultiTaskModel) -> ExportedProgram:
    """Record what a model computes, for any number of images.

    Parameters
    ----------
    model
        In evaluation mode.

    Returns
    -------
    ExportedProgram
        From ``images`` (B, 3, H, W) to a dictionary of raw predictions by task.
    """
    images = torch.zeros(2, 3, *model.img_size)  # not one: torch takes a single one for a constant
    with torch.no_grad(), _quiet():
        return torch.export.export(_Predictions(model), (images,), dynamic_shapes={"images": {0: Dim("batch")}})


def _write_torch(model: MultiTaskModel, path: Path) -> Run:
    content = io.BytesIO()
    with _quiet():
        torch.export.save(trace(model), content, extra_files={METADATA: _description(model)})
    path.write_bytes(content.getvalue())
    del content
    return torch.export.load(path).module()


def _write_onnx(model: MultiTaskModel, path: Path) -> Run:
    names = tuple(model.heads)
    with _quiet():
        program = torch.onnx.export(
            trace(model).run_decompositions(IN_OTHER_WORDS),
            input_names=["images"],
            output_names=names,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props[METADATA] = _description(model)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        program.save(str(path), external_data=size > _LARGEST_FILE)
    return onnx_runner(path)


WRITERS: dict[Format, Callable[[MultiTaskModel, Path], Run]] = {"torch": _write_torch, "onnx": _write_onnx}
"""Write a model to a path, and load it back, by kind."""


def onnx_runner(path: Path) -> Run:
    """Load an ONNX file into onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": images.numpy()})), strict=True))

    return run


def _description(model: MultiTaskModel) -> str:
    return json.dumps(describe(model))


def _weights_of(path: Path) -> Path:
    """Where ONNX puts weights that are too many for one file."""
    return path.with_name(f"{path.name}.data")


def compare(model: MultiTaskModel, run: Run, batch: int) -> dict[str, float]:
    """Run a model and its exported form on the same images, drawn from a normal distribution with a fixed seed.

    Parameters
    ----------
    model, run
        The two; the model in evaluation mode and on the CPU.
    batch
        Number of images.

    Returns
    -------
    dict
        By task: the largest difference over the largest value of the model's prediction.
    """
    images = torch.randn(batch, 3, *model.img_size, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected, found = model(images).predictions, run(images)
    return {name: _difference(value, found[name]) for name, value in expected.items()}


def _difference(expected: Tensor, found: Tensor) -> float:
    if found.shape != expected.shape:
        return torch.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))


def check_agreement(differences: Mapping[int, Mapping[str, float]]) -> None:
    """Refuse differences above :data:`TOLERANCE`.

    Raises
    ------
    DisagreementError
        Naming the largest one.
    """
    listed = [(value, task, batch) for batch, tasks in differences.items() for task, value in tasks.items()]
    wrong = [entry for entry in listed if not entry[0] <= TOLERANCE]  # also catches nan
    if wrong:
        value, task, batch = max(wrong)
        raise DisagreementError(
            f"the exported model differs from the model by {value:.1e} of the largest {task} at {batch} images, more "
            f"than {TOLERANCE:.0e}, so it was not written; export another format, or report it with the model's name."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes on their own inner workings from the reader."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _argsort_by_top_k(values: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """A stable argsort as TopK of all values, which in ONNX gives of equal values that of lower index first."""
    return torch.topk(values, values.shape[dim], dim, largest=descending, sorted=True).indices


def _convolve_by_product(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Any:
    """A convolution of a number of groups that depends on the batch, as one matrix product per group."""
    if isinstance(groups, int):
        return NotImplemented  # an ordinary convolution stays as it is
    height, width = images.shape[-2:]
    places = weight.shape[-2] * weight.shape[-1]  # k*k
    # A kernel that is 1 at one place moves the image by it; one of each gives every pixel its k*k neighbours.
    pick = torch.eye(places, dtype=weight.dtype).view(places, 1, *weight.shape[-2:])
    columns = F.conv2d(images.view(-1, 1, height, width), pick, padding=padding)  # (G*C, k*k, H, W)
    columns = columns.view(groups, -1, height * width)  # (G, C*k*k, H*W)
    kernels = weight.view(groups, -1, columns.shape[1])  # (G, C', C*k*k)
    output = (kernels @ columns).view(1, -1, height, width)  # (1, G*C', H, W)
    return output if bias is None else output + bias[:, None, None]


IN_OTHER_WORDS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.argsort.stable: _argsort_by_top_k,
    torch.ops.aten.conv2d.default: _convolve_by_product,
}
"""Operations that ONNX does not have, in words that it has."""
