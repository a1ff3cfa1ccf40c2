"""Our numbers beside the papers': which printed rows are comparable, and what about them is not (chapter 17).

Every number of a paper comes out of :mod:`mlore_edu.published`; only where the rows of a model stand is said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlore_edu import published
from mlore_edu.errors import UserError
from mlore_edu.tasks import TASK_SETS, Task, TaskSet

if TYPE_CHECKING:
    from mlore_edu.judging import Judgement
    from mlore_edu.training.recipe import Recipe

METHODS = {
    "baseline": "Baseline",
    "moe": "Baseline + MoE",
    "mlore": "MLoRE",
    "taskexpert": "TaskExpert",
    "tif": "TIF",
}
"""What the papers call this book's decoders."""

_SIZES = {"tiny": "T", "small": "S", "base": "B", "large": "L"}
PRINTED_BACKBONES = {
    **{f"vit_{name}": f"ViT-{letter}" for name, letter in _SIZES.items()},
    **{f"swin_{name}": f"Swin-{letter}" for name, letter in _SIZES.items()},
    "hrnet18": "HRNet18",
}
"""What they call this book's backbones; the others are in no table."""

ODS_IMAGES = 2_498
"""Images of PASCAL-Context's 5,105 that the papers' odsF is measured on."""


@dataclass(frozen=True)
class _Place:
    """Where rows to compare with are printed: a table, and what it leaves to the caption or calls otherwise."""

    paper: str
    number: int
    data: str
    backbone: str | None = None
    methods: Mapping[str, str] | None = None
    where: tuple[str, str] | None = None


_BASELINE = {"Baseline": "Baseline"}
_PLACES = (
    _Place("mlore_supplement", 7, "pascal_context", "HRNet18"),
    _Place("mlore", 5, "pascal_context"),
    _Place("mlore_supplement", 6, "pascal_context", "ViT-L", _BASELINE, ("dataset", "PASCAL-Context")),
    _Place("mlore", 2, "pascal_context", "ViT-B", {**_BASELINE, "Baseline + MoE": "Baseline + MoE", "+ SPE": "MLoRE"}),
    _Place("mlore", 7, "pascal_context", "ViT-S"),
    _Place("taskexpert", 2, "pascal_context", methods={"ViT-S": "TaskExpert", "ViT-B": "TaskExpert"}),
    _Place("taskexpert", 1, "pascal_context", "ViT-B", {"Baseline": "Baseline (TaskExpert's)"}),
    _Place("tif", 5, "pascal_context"),
    _Place("mlore", 6, "nyud_v2"),
    _Place("mlore_supplement", 6, "nyud_v2", "ViT-L", _BASELINE, ("dataset", "NYUD-v2")),
    _Place("taskexpert", 5, "nyud_v2"),
    _Place("tif", 3, "nyud_v2"),
    _Place("tif", 4, "nyud_v2"),
    _Place("tif", 10, "nyud_v2"),
)


@dataclass(frozen=True)
class PaperRow:
    """One model's printed numbers.

    Parameters
    ----------
    method, backbone
        As the paper calls them.
    paper, source
        Which paper prints them, and where.
    metrics
        By task.
    """

    method: str
    backbone: str
    paper: str
    source: str
    metrics: Mapping[str, float]


class SingleTask(NamedTuple):
    """A complete run of one task: its folder, its recipe, and the number it ended with."""

    run: Path
    recipe: Recipe
    metric: float


def paper_rows(data: str, model: str | None = None) -> list[PaperRow]:
    """The printed rows that a model is comparable with, the most alike first.

    Parameters
    ----------
    data
        ``"pascal_context"``, ``"nyud_v2"`` or ``"dollhouse"``, which no paper has numbers on.
    model
        ``<decoder>_<backbone>``. Its rows are those of the same decoder and backbone, then of other methods on the
        same backbone, then of the same decoder on others. Where it is not known, or no paper has any of the two: the
        rows of this book's decoders.

    Returns
    -------
    list of PaperRow
        A method on a backbone is there once: as its own paper prints it where ``model`` is of that paper, else as in
        the first table that has it.
    """
    decoder, _, backbone = (model or "").partition("_")
    places = [place for place in _PLACES if place.data == data]
    places.sort(key=lambda place: place.paper.split("_")[0] != decoder)
    rows: dict[tuple[str, str], PaperRow] = {}
    for row in (row for place in places for row in _rows(place)):
        rows.setdefault((row.method, row.backbone), row)
    ranked = []
    for row in rows.values():
        same_method = row.method.partition(" (")[0] == METHODS.get(decoder)
        same_backbone = row.backbone == PRINTED_BACKBONES.get(backbone)
        ranked.append((0 if same_method and same_backbone else 1 if same_backbone else 2 if same_method else 3, row))
    alike = [row for rank in (0, 1, 2) for its, row in ranked if its == rank]
    return alike or [
        row for method in METHODS.values() for row in rows.values() if row.method.partition(" (")[0] == method
    ]


def _rows(place: _Place) -> list[PaperRow]:
    table = published.table(place.paper, place.number)
    title = next(column.name for column in table.columns if column.name in ("method", "setting", "variant", "model"))
    tasks = [name for name in TASK_SETS[place.data].names if name in {column.name for column in table.columns}]
    rows = []
    for row in table.rows:
        name = str(row[title])
        if (place.methods and name not in place.methods) or (place.where and row[place.where[0]] != place.where[1]):
            continue
        metrics = {task: value for task in tasks if isinstance(value := row[task], float)}
        method = place.methods[name] if place.methods else name
        rows.append(PaperRow(method, place.backbone or str(row["backbone"]), place.paper, table.source, metrics))
    return rows


def differences(judged: Judgement) -> list[str]:
    """What is not alike between a judgement and the papers' numbers on the same data, in words."""
    from mlore_edu.data.catalogue import BENCHMARKS
    from mlore_edu.judging import CUSTOM
    from mlore_edu.saved_predictions import FRAMES

    found = []
    all_images = BENCHMARKS[judged.data].counts["val"]
    if judged.images != all_images:
        found.append(f"{judged.images} images, the papers' {all_images:,}")
    of_mlore = any(row.paper != "tif" for row in paper_rows(judged.data, judged.model))
    if "saliency" in judged.tasks and judged.saliency == "standard" and of_mlore:
        found.append("maxF is the standard one, MLoRE's and its forerunners' the released one (--saliency released)")
    if "edge" in judged.tasks:
        if judged.data == "pascal_context" and judged.evaluation.details["edge"]["images"] != ODS_IMAGES:
            found.append(f"the papers' odsF is over {ODS_IMAGES:,} of the {all_images:,} images (--boundary-images)")
        if judged.boundary != CUSTOM[judged.data]:
            found.append(f"odsF is by the protocol {judged.boundary}, the papers' by {CUSTOM[judged.data]}")
    if judged.training:
        found += _training_differences(judged, FRAMES[judged.data])
    return found


def _training_differences(judged: Judgement, frame: tuple[int, int]) -> list[str]:
    found = []
    assert judged.training is not None
    assert judged.model is not None
    iteration, iterations, batch_size, img_size = judged.training
    if iteration < iterations:
        found.append(f"this is iteration {iteration:,} of {iterations:,}, the papers' numbers are of the last")
    decoder, _, backbone = judged.model.partition("_")
    paper = decoder if decoder in ("taskexpert", "tif") else "mlore"  # which also has the baselines
    settings = published.settings(paper, judged.data, backbone)
    steps, images = settings["iterations"].value, settings["batch_size"].value
    if (iterations, batch_size) != (steps, images):
        found.append(f"{iterations:,} iterations of {batch_size} images, the papers' {steps:,} of {images}")
    if img_size != frame:
        found.append(f"images of {img_size[0]}×{img_size[1]}, the papers' {frame[0]}×{frame[1]}")
    everything = TASK_SETS[judged.data]
    if len(judged.tasks) < len(everything):
        found.append(f"it learned {len(judged.tasks)} of the {len(everything)} tasks")
    return found


def is_rendered(judged: Judgement) -> bool:
    """Whether the images are Dollhouse's, in whatever layout its folder is."""
    return judged.data == "dollhouse" or (Path(judged.root) / "dataset.json").is_file()


def beside_the_papers(judged: Judgement) -> str:
    """The table of a judgement and the comparable rows of the papers, with the differences, as text."""
    if is_rendered(judged):
        return "no paper has numbers on Dollhouse, so there is nothing to put beside these"
    rows = paper_rows(judged.data, judged.model)
    sources = list(dict.fromkeys(row.source for row in rows))
    lines = [["", *judged.tasks.names], ["", *(f"{task.metric} {_arrow(task)} {task.unit}" for task in judged.tasks)]]
    lines.append(["this one", *(f"{judged.metrics[task.name]:.{_decimals(task)}f}" for task in judged.tasks)])
    for row in rows:
        label = f"{row.method}, {row.backbone} [{sources.index(row.source) + 1}]"
        lines.append([label, *(_cell(task, judged.metrics[task.name], row) for task in judged.tasks)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ["   ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    unlike = differences(judged)
    return "\n".join(
        [
            "\nbeside the papers' models, and how far this one is above (+) or below (-) each:",
            *table,
            *(f"[{number}] {source}" for number, source in enumerate(sources, 1)),
            *([f"not alike: {'; '.join(unlike)}"] if unlike else []),
        ]
    )


def _cell(task: Task, ours: float, row: PaperRow) -> str:
    if task.name not in row.metrics:
        return "–"
    theirs, decimals = row.metrics[task.name], _decimals(task)
    return f"{theirs:.{decimals}f} {ours - theirs:+.{decimals}f}"


def _decimals(task: Task) -> int:
    return 4 if task.unit == "m" else 2


def _arrow(task: Task) -> str:
    return "↓" if task.lower_is_better else "↑"


def results_table(tasks: TaskSet, metrics: Mapping[str, float]) -> str:
    """The metric of every task, one a line, with its unit and whether higher or lower is better."""
    width = max(len(task.title) for task in tasks)
    lines = [
        f"{task.title:<{width}}  {task.metric:<4} {_arrow(task)} "
        f"{metrics[task.name]:8.{3 if task.unit == 'm' else 2}f} {task.unit}"
        for task in tasks
    ]
    return "\n".join(lines)


def single_task_runs(runs: Sequence[Path]) -> dict[str, SingleTask]:
    """Read the runs that Δm compares with, by task.

    Parameters
    ----------
    runs
        Folders of complete runs of one task each.

    Raises
    ------
    UserError
        If a run is of several tasks or not complete, or two are of the same task.
    """
    if not runs:
        return {}
    from mlore_edu.training.recipe import load_recipe
    from mlore_edu.training.run_folder import RunFolder

    found: dict[str, SingleTask] = {}
    for run in runs:
        recipe, stored = load_recipe(run), RunFolder(run).read_metrics()
        if len(recipe.task_set) != 1:
            raise UserError(f"{run} learned {len(recipe.task_set)} tasks; give --single-task runs of one task each.")
        if stored is None:
            raise UserError(f"{run} is not complete yet; finish it with 'mlore-edu train', or leave it out.")
        (task,) = recipe.task_set.names
        if task in found:
            raise UserError(f"{found[task].run} and {run} both learned {task}; give --single-task one run a task.")
        found[task] = SingleTask(run, recipe, stored["metrics"][task])
    return found


def gain_over(singles: Mapping[str, SingleTask], judged: Judgement) -> float:
    """Δm of a judgement over single-task runs, in percent (:func:`mlore_edu.multitask_gain`).

    Raises
    ------
    UserError
        If a task has no run, or a run was on other data or judged by another protocol.
    """
    from mlore_edu.judging import CUSTOM
    from mlore_edu.metrics import multitask_gain

    for name, (run, recipe, _) in singles.items():
        boundary = recipe.boundary_protocol or CUSTOM[recipe.data]
        if recipe.data != judged.data:
            raise UserError(f"{run} was trained on {recipe.data}; give --single-task runs on {judged.data}.")
        if (name == "edge" and boundary != judged.boundary) or (
            name == "saliency" and recipe.saliency_variant != judged.saliency
        ):
            raise UserError(f"{run} was judged by another protocol of {name}; choose the same one for both.")
    if absent := [name for name in judged.tasks.names if name not in singles]:
        raise UserError(f"Δm needs a single-task run for every task; add one of {', '.join(absent)} to --single-task.")
    return multitask_gain(judged.metrics, {name: single.metric for name, single in singles.items()}, judged.tasks)


def as_record(judged: Judgement) -> dict[str, Any]:
    """A judgement and what it is compared with, as JSON keeps it.

    Returns
    -------
    dict
        ``metrics`` and ``details`` by task; ``subject``, ``model``, ``data``, ``root``, ``images``, ``protocols`` (the
        names, and every choice of the boundary protocol), ``training``, ``remarks``; ``papers``: the comparable rows
        with their ``difference`` (ours − theirs); ``not_alike``; ``versions``.
    """
    from mlore_edu.evaluation import PROTOCOLS
    from mlore_edu.training.run_folder import versions

    rendered = is_rendered(judged)
    return {
        "metrics": judged.metrics,
        "details": judged.evaluation.details,
        **{name: getattr(judged, name) for name in ("subject", "model", "data", "root", "images", "remarks")},
        "protocols": {
            "boundary": {"name": judged.boundary, **asdict(PROTOCOLS[judged.boundary])},
            "saliency": judged.saliency,
        },
        "training": judged.training._asdict() if judged.training else None,
        "papers": [] if rendered else [_as_record(row, judged) for row in paper_rows(judged.data, judged.model)],
        "not_alike": [] if rendered else differences(judged),
        "versions": versions(),
    }


def _as_record(row: PaperRow, judged: Judgement) -> dict[str, Any]:
    tasks = [task for task in judged.tasks.names if task in row.metrics]
    return {**asdict(row), "difference": {task: judged.metrics[task] - row.metrics[task] for task in tasks}}
