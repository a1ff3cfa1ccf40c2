"""The papers' recipes: MLoRE, TaskExpert, TIF, the baselines that they are compared with, the single tasks of Δm.

They are read as a table: :data:`FIELD` is what MLoRE and TaskExpert share, :data:`TIF` what TIF does otherwise, and
every row of :data:`ROWS` says which models train on which data set, and what is particular to them. Where each value
comes from, and whether a paper states it or it is an assumption, stands in ``published/settings.csv``, which a test
holds against these recipes; ``mlore-edu recipes NAME`` shows both. Chapters 16 and 17.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mlore_edu import published
from mlore_edu.tasks import TASK_SETS
from mlore_edu.training.recipe import Recipe

if TYPE_CHECKING:  # the list of recipes is to come at once, without PyTorch
    from mlore_edu.decoders.mlore import Variant

FIELD = Recipe(
    name="field",
    hardware="one GPU",
    pretrained=True,
    drop_path_rate=0.15,  # nowhere in the papers: the released MLoRE code's
    optimizer="adam",
    lr=2e-5,
    weight_decay=1e-6,
    poly_power=0.9,
    iterations=40_000,
    batch_size=4,
    clip_norm=10.0,  # the released MLoRE code's
    edge_positive_weight=0.95,
    saliency_variant="released",  # what the published maxF of this line of work was computed with
    workers=4,
    log_interval=50,
    checkpoint_interval=1000,
)
"""What MLoRE and TaskExpert share with the work before them (TaskExpert Sec. 4.1, MLoRE Sec. 4.1)."""

TIF = replace(
    FIELD,
    optimizer="sgd",  # the paper names none; its rates, and that it trains as ATRC does, mean SGD with momentum
    momentum=0.9,
    weight_decay=5e-4,
    iterations=50_000,
    batch_size=8,
    clip_norm=None,  # the paper names none
    saliency_variant="standard",  # assumption: nothing says that TIF's maxF was computed the other way
)
"""What TIF does otherwise (its Sec. 4.2)."""

DATA: dict[str, dict[str, Any]] = {
    "pascal": {"data": "pascal_context", "root": "data/PASCALContext", "img_size": (512, 512)},
    "nyud": {"data": "nyud_v2", "root": "data/NYUDv2", "img_size": (448, 576)},
}
"""By the first word of a recipe's name."""

VITS = ("vit_small", "vit_base", "vit_large")
SWINS = ("swin_tiny", "swin_base", "swin_large")
PASCAL, NYUD, BOTH = ("pascal",), ("nyud",), ("pascal", "nyud")
PAPER: tuple[Variant, ...] = ("paper",)
EITHER: tuple[Variant, ...] = ("paper", "released")

OF_HRNET: dict[str, Any] = {"drop_path_rate": 0.0}  # it has no residual branch that could be skipped
TIF_PASCAL: dict[str, Any] = {"lr": 1e-4}
TIF_NYUD: dict[str, Any] = {"lr": 1e-3, "edge_positive_weight": 0.8}  # w: ATRC's on NYUD, whose settings TIF takes
TIF_NYUD_HRNET: dict[str, Any] = {**TIF_NYUD, **OF_HRNET, "lr": 1e-2}
MLORE_NYUD: dict[str, Any] = {"lr": 1e-5, "edge_positive_weight": 0.88}  # the released code's


class Row(NamedTuple):
    """One row of the table: some models of one decoder, and what is particular to their training."""

    decoder: str
    data: tuple[str, ...]
    backbones: tuple[str, ...]
    base: Recipe
    changes: Mapping[str, Any] = {}
    variants: tuple[Variant, ...] = PAPER


ROWS = (
    Row("mlore", PASCAL, ("vit_small", "vit_base"), FIELD, {}, EITHER),
    Row("mlore", PASCAL, ("vit_large",), FIELD, {"edge_positive_weight": 0.925}, EITHER),
    Row("mlore", PASCAL, ("hrnet18",), FIELD, OF_HRNET),  # supplement Tab. 7, which states no setting
    Row("mlore", NYUD, VITS, FIELD, MLORE_NYUD, EITHER),  # S and B: assumed to train as L does
    Row("taskexpert", BOTH, VITS, FIELD),
    Row("tif", PASCAL, ("hrnet18",), TIF, TIF_PASCAL | OF_HRNET),
    Row("tif", PASCAL, (*SWINS, "vit_base"), TIF, TIF_PASCAL),  # ViT-B: assumed to train as Swin does
    Row("tif", NYUD, ("hrnet18",), TIF, TIF_NYUD_HRNET),
    Row("tif", NYUD, (*SWINS, "vit_base"), TIF, TIF_NYUD),
    Row("baseline", BOTH, VITS, FIELD),
    Row("baseline", PASCAL, ("hrnet18",), TIF, TIF_PASCAL | OF_HRNET),
    Row("baseline", PASCAL, SWINS, TIF, TIF_PASCAL),
    Row("baseline", NYUD, ("hrnet18",), TIF, TIF_NYUD_HRNET),
    Row("baseline", NYUD, SWINS, TIF, TIF_NYUD),
    Row("single", BOTH, ("vit_base",), FIELD),  # the baseline, one task at a time: Δm of MLoRE and TaskExpert,
    Row("single", NYUD, ("swin_tiny",), TIF, TIF_NYUD),  # and of TIF's ablations
)
"""Every recipe of the papers."""


def paper_recipes() -> Iterator[Recipe]:
    """Every recipe of :data:`ROWS`, in its order; names are ``<data>_<decoder>_<backbone>[_released]``."""
    for row in ROWS:
        for place in row.data:
            for backbone in row.backbones:
                recipe = replace(row.base, **DATA[place], **row.changes)
                if row.decoder == "single":
                    yield from _single_tasks(recipe, place, backbone)
                    continue
                for variant in row.variants:
                    yield _variant(recipe, f"{place}_{row.decoder}_{backbone}", f"{row.decoder}_{backbone}", variant)


def _variant(recipe: Recipe, name: str, model: str, variant: Variant) -> Recipe:
    if variant == "paper":
        return replace(recipe, name=name, model=model)
    return replace(recipe, name=f"{name}_released", model=model, model_options=(("variant", "released"),))


def _single_tasks(recipe: Recipe, place: str, backbone: str) -> Iterator[Recipe]:
    """The baseline, learning one task only: what the gain Δm is measured against."""
    for task in TASK_SETS[recipe.data].names:
        yield replace(recipe, name=f"{place}_single_{task}_{backbone}", model=f"baseline_{backbone}", tasks=(task,))


def settings_of(recipe: Recipe) -> dict[str, published.Setting]:
    """Where each setting of a paper's recipe comes from; a baseline has those of the paper that it is compared with.

    Parameters
    ----------
    recipe
        One of :func:`paper_recipes`; for others there are none.

    Returns
    -------
    dict
        By name: the recipe's fields, ``"loss weight of <task>"`` and ``"decoder <option>"``.
    """
    if recipe.data == "dollhouse":
        return {}
    decoder, _, backbone = recipe.model.partition("_")
    left_out = {f"loss weight of {task}" for task in TASK_SETS[recipe.data].names} - {
        f"loss weight of {task}" for task in recipe.task_set.names
    }
    if decoder == "baseline":
        paper = "taskexpert" if backbone in VITS else "tif"
    else:
        paper = f"{decoder}_released" if ("variant", "released") in recipe.model_options else decoder
    return {
        name: setting
        for name, setting in published.settings(paper, recipe.data, backbone).items()
        if name not in left_out and not (decoder == "baseline" and name.startswith("decoder "))
    }
