"""A recipe: every choice that decides what a training run learns, in one flat, printable, comparable record.

Two runs with equal recipes learn the same thing. So a recipe is frozen, is stored as JSON in the run's folder, and is
compared with the stored one before a run goes on. The command line shows each field as an option (``--lr 1e-3``).
Sources: TaskExpert Sec. 4, MLoRE Sec. 4.1 for the settings of the papers; chapters 3 and 16 for the reasons.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlore_edu.checks import check_inner_share
from mlore_edu.errors import UserError
from mlore_edu.tasks import TASK_SETS, TaskSet

Option = int | float | bool | str

FREE_FIELDS = frozenset(
    {
        "root",
        "hardware",
        "difficulty",
        "workers",
        "log_interval",
        "eval_interval",
        "checkpoint_interval",
        "tensorboard",
        "pictures",
    }
)
"""Fields that may change when a run goes on, because they do not change what it learns."""

MOST_WORKERS = 256
"""More loading processes than any machine has use for; each is a whole Python."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run; the texts below its fields are what ``mlore-edu train --help`` shows.

    Raises
    ------
    UserError
        If a value is out of its range, or a task is not in the data set.
    """

    name: str
    """Also the name of the run's folder, unless --run names another."""

    hardware: str = ""
    """What the recipe was made for; a note."""

    # The data: which set, where it lies, which of its tasks are learned, and at what size.
    data: Literal["dollhouse", "pascal_context", "nyud_v2"] = "dollhouse"
    """Data set; it decides which tasks there are."""
    root: str = "data/dollhouse"
    """Folder of the data set."""
    difficulty: Literal["easy", "medium", "full"] = "easy"
    """How hard Dollhouse is to be rendered, should it not be there yet."""
    tasks: tuple[str, ...] = ()
    """Tasks to learn; none named means all of the data set. One name gives a single-task baseline."""
    img_size: tuple[int, int] = (128, 128)
    """Height and width of a training crop, and of the padded validation image, in pixels."""
    augmentation: Literal["field", "flip", "none"] = "field"
    """'field': random scale, crop, flip and colour, as in all the papers; 'flip': mirror images only."""

    # The model: a name out of model.py, and what its decoder is told beyond its defaults.
    model: str = "baseline_vit_nano"
    """Decoder and encoder, as 'mlore-edu complexity' takes them; one of your own is named FILE.py:CLASS_vit_nano."""
    model_options: tuple[tuple[str, Option], ...] = ()
    """Pairs of a decoder option and its value, e.g. '--model-options channels 96'."""
    pretrained: bool = False
    """Start the encoder from timm's ImageNet weights (fetched once from the Hugging Face Hub)."""
    weights: str | None = None
    """File with the encoder's weights, for machines without a network."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the encoder: each residual branch is skipped with up to this probability."""

    # The loss: tasks speak in different units, so their losses need weights before they can be added.
    loss_weights: tuple[tuple[str, float], ...] = ()
    """Pairs of a task and its weight, replacing the field's (semseg 1, parts 2, saliency 5, normals 10, edge 50)."""
    edge_positive_weight: float = 0.95
    """Weight w of boundary pixels in the boundary loss; the rest weighs 1 - w. High values give thick boundaries."""

    # The optimiser. A batch is counted over all GPUs, so the same recipe is the same training on one GPU or eight.
    iterations: int = 1000
    """Optimiser steps in all."""
    batch_size: int = 16
    """Images per optimiser step, over all GPUs and accumulated parts together."""
    accumulation: int = 1
    """Split each batch into this many parts, run one after the other: less memory, and the same gradient up to what
    BatchNorm and the losses' means make of a part (chapter 16)."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The papers train with Adam; 'adamw' decays weights apart from the gradient."""
    lr: float = 2e-5
    """Learning rate at the start; it falls to zero along the polynomial (1 - i / iterations) ** poly_power."""
    poly_power: float = 0.9
    """Exponent of that polynomial; 1 is a straight line."""
    weight_decay: float = 1e-6
    """Pull of every weight towards zero."""
    momentum: float = 0.9
    """Only for SGD."""
    clip_norm: float | None = 10.0
    """Gradients longer than this (L2 norm over all parameters) are shortened to it; None leaves them alone."""
    seed: int = 0
    """Seeds the weights, the order of images, their augmentation and dropout."""

    # How the numbers are computed: faster, nearly the same result.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward pass; fp16 adds loss scaling, bf16 does not need it."""
    compile: bool = False
    """Let torch.compile fuse the model's kernels: a slow first step, faster ones after it."""
    channels_last: bool = False
    """Store images as (B, H, W, C), which convolutions prefer."""
    checkpointing: bool = False
    """Forget the encoder's and the decoder's inner values and compute them again on the way back: less memory, the same
    gradient, about a third more time."""
    fused_optimizer: bool = False
    """Update all weights in one kernel instead of one after the other; the same update."""
    ema: float = 0.0
    """Also keep a moving average of the weights, of which each step replaces 1 - ema, and judge that; 0: none."""
    augment_on_gpu: bool = False
    """The loading processes only read; the training process augments, on its device: for few cores and a fast GPU."""
    workers: int = 2
    """Processes that load and augment images beside the training process."""

    # When to look, and what to keep.
    log_interval: int = 10
    """Write losses, gradient norm and speed to log.jsonl every so many iterations."""
    eval_interval: int | None = None
    """Evaluate every so many iterations; None: only at the end. The result of a run is always its last iteration's."""
    checkpoint_interval: int = 200
    """A killed run loses at most this many iterations."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the package tensorboard)."""
    boundary_protocol: Literal["pascal", "nyud", "dollhouse"] | None = None
    """How boundaries are judged (chapter 2); None: as is the custom for the data set."""
    saliency_variant: Literal["standard", "released"] = "standard"
    """'released': the four-threshold variant behind the papers' published maxF (chapter 2)."""
    pictures: int = 8
    """Validation images drawn with their labels and predictions at the end."""

    def __post_init__(self) -> None:
        if self.data not in TASK_SETS:  # the command line checks this, a stored recipe may hold anything
            raise UserError(f"there is no data set {self.data!r}; choose one of {', '.join(TASK_SETS)}.")
        task_set = self.task_set  # names a task that the data set lacks
        for task_name, weight in self.loss_weights:
            if not 0 <= weight < math.inf:  # also catches nan
                raise UserError(f"the loss weight of {task_set[task_name].name} is {weight}; give at least 0.")
            task_set[task_name]
        for option, _ in self.model_options:
            if option in {field.name for field in fields(self)}:
                flag = "--" + option.replace("_", "-")
                raise UserError(f"{option} is a field of the recipe, no option of the model; give it as {flag}.")
        limits = {
            "iterations": 1, "batch_size": 1, "accumulation": 1, "workers": 0, "log_interval": 1,
            "checkpoint_interval": 1, "pictures": 0, "lr": 0, "weight_decay": 0, "poly_power": 0, "momentum": 0,
            "drop_path_rate": 0,
        }  # fmt: skip
        for field_name, least in limits.items():
            if not getattr(self, field_name) >= least:  # also catches nan
                raise UserError(f"{field_name} is {getattr(self, field_name)}; give at least {least}.")
        if self.workers > MOST_WORKERS:
            raise UserError(f"workers is {self.workers}; give at most {MOST_WORKERS}, about one per core.")
        if self.eval_interval is not None and self.eval_interval < 1:
            raise UserError(f"eval_interval is {self.eval_interval}; give at least 1, or None for the end only.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm is {self.clip_norm}; give a positive length, or None to leave gradients alone.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}.")
        if self.drop_path_rate >= 1:
            raise UserError(f"drop_path_rate is {self.drop_path_rate}; give a probability below 1.")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}; give a share below 1 such as 0.999, or 0 for no average.")
        check_inner_share(edge_positive_weight=self.edge_positive_weight)
        if min(self.img_size) < 16:
            raise UserError(f"img_size is {self.img_size[0]} x {self.img_size[1]}; give at least 16 16.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"a batch of {self.batch_size} cannot be split into {self.accumulation} equal parts; "
                "give an --accumulation that divides --batch-size."
            )

    @property
    def task_set(self) -> TaskSet:
        """The tasks this recipe learns, in the data set's order."""
        everything = TASK_SETS[self.data]
        return everything.subset(*self.tasks) if self.tasks else everything

    def learning_rate(self, iteration: int) -> float:
        """Learning rate of a step (0 is the first): ``lr * (1 - iteration / iterations) ** poly_power``."""
        return float(self.lr * (1 - iteration / self.iterations) ** self.poly_power)

    @property
    def data_command(self) -> str:
        """The command that renders the Dollhouse this recipe is made for."""
        height, width = self.img_size
        size = f"{height}" if height == width else f"{height} {width}"
        return f"mlore-edu dollhouse --root {self.root} --size {size} --difficulty {self.difficulty}"

    def to_json(self) -> str:
        """The recipe as JSON text, one field per line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that :meth:`to_json` wrote; equal to the original.

        Raises
        ------
        UserError
            If the text is not JSON, or holds a field that this version does not know.
        """
        try:
            stored = json.loads(text)
            return cls(**{name: as_tuple(value) for name, value in stored.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"the stored recipe cannot be read ({error}); it was damaged or made by another version: "
                "start a new run with --run FOLDER."
            ) from error

    def differences(self, other: Recipe) -> list[str]:
        """Names of the fields that decide what is learned and differ from the other recipe."""
        names = [field.name for field in fields(self) if field.name not in FREE_FIELDS]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def as_tuple(value: Any) -> Any:
    """JSON knows no tuples: turn its lists back into them."""
    return tuple(as_tuple(part) for part in value) if isinstance(value, list) else value


def override(recipe: Recipe, arguments: Sequence[str]) -> Recipe:
    """The recipe with fields replaced by command-line options such as ``["--lr", "1e-3", "--tasks", "depth"]``.

    Raises
    ------
    UserError
        If an option is no field of a recipe, or a value does not fit its field.
    """
    import tyro  # here, because only the command line needs it

    for option in _options(arguments):
        _check_option(option[0])
    parse: Callable[..., Recipe] = partial(
        tyro.cli, Recipe, default=recipe, description=f"Train the recipe {recipe.name}."
    )
    if {"-h", "--help"} & set(arguments):
        return parse(args=["--help"], prog=f"mlore-edu train {recipe.name}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's boxed report; ours is one sentence
            return parse(args=list(arguments))
    except SystemExit:
        wrong = next(filter(partial(_is_rejected, parse), _options(arguments)), list(arguments))
    raise UserError(
        f"'{' '.join(wrong)}' does not fit; 'mlore-edu train {recipe.name} --help' says what {wrong[0]} takes."
    )


def _is_rejected(parse: Callable[..., Recipe], option: list[str]) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parse(args=option)
    except SystemExit:
        return True
    except UserError:  # alone it breaks a rule that it keeps together with the other options
        return False
    return False


def _options(arguments: Sequence[str]) -> list[list[str]]:
    """Cut the command line into options with their values, so that a mistake can be put down to one of them."""
    groups: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(argument)
    return groups


def _check_option(option: str) -> None:
    known = [field.name.replace("_", "-") for field in fields(Recipe)]
    name = option.split("=")[0].removeprefix("--").replace("_", "-")
    if name.removeprefix("no-") not in [*known, "help", "-h"] or not option.startswith("-"):
        hint = did_you_mean(name, known, prefix="--")
        raise UserError(f"a recipe has no field {option!r}; {hint}'mlore-edu train RECIPE --help' lists all.")


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The question that offers what a user may have meant, or nothing where nothing is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(prefix + match for match in close)}? " if close else ""


def load_recipe(run: Path) -> Recipe:
    """The recipe stored in a run folder.

    Raises
    ------
    UserError
        If the folder holds none.
    """
    try:
        return Recipe.from_json((run / "recipe.json").read_text())
    except OSError as error:
        raise UserError(f"{run} holds no recipe.json ({error.strerror}); give the folder of a run.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{run / 'recipe.json'} is damaged ({error}); start a new run with --run FOLDER.") from error
