"""The recipes with a name: what ``mlore-edu recipes`` lists and ``mlore-edu train`` takes (chapters 3 and 16)."""

from __future__ import annotations

from dataclasses import replace

from mlore_edu.errors import UserError
from mlore_edu.training.recipe import Recipe, did_you_mean
from mlore_edu.training.recipes_papers import paper_recipes


def _dollhouse_recipes() -> list[Recipe]:
    """Runs on the data that come with the book; each is written as the difference from the first."""
    nano = Recipe(
        name="dollhouse_baseline_nano",
        hardware="2 CPU cores, minutes",
        img_size=(128, 128),
        augmentation="flip",
        lr=4e-3,  # 0.4 million weights from scratch: 2e-3 learns more slowly, 8e-3 less well
        edge_positive_weight=0.8,  # the field's 0.95 makes boundaries bloat
        iterations=400,
        batch_size=8,  # at equal time, twice the steps of 16 images; better on every task
        channels_last=True,
        workers=1,  # loading is light; the cores are better spent on the model
    )
    small = replace(nano, name="dollhouse_baseline_nano_64", root="data/dollhouse_64", img_size=(64, 64))
    mlore = replace(
        nano,
        name="dollhouse_mlore_nano",
        model="mlore_vit_nano",
        channels_last=False,  # convolutions with a group per task are a tenth faster without
    )
    small_mlore = replace(mlore, name="dollhouse_mlore_nano_64", root="data/dollhouse_64", img_size=(64, 64))
    small_moe = replace(small_mlore, name="dollhouse_moe_nano_64", model="moe_vit_nano")
    taskexpert = replace(mlore, name="dollhouse_taskexpert_nano", model="taskexpert_vit_nano_12")
    small_taskexpert = replace(
        taskexpert, name="dollhouse_taskexpert_nano_64", root="data/dollhouse_64", img_size=(64, 64)
    )
    tif = replace(mlore, name="dollhouse_tif_nano", model="tif_vit_nano")
    small_tif = replace(tif, name="dollhouse_tif_nano_64", root="data/dollhouse_64", img_size=(64, 64))
    large = replace(
        nano,
        name="dollhouse_baseline_vit_small_512",
        model="baseline_vit_small",
        hardware="one GPU",
        root="data/dollhouse_512",
        difficulty="full",
        img_size=(512, 512),
        augmentation="field",
        lr=2e-4,
        iterations=20_000,
        batch_size=16,
        precision="bf16",
        workers=8,
        checkpoint_interval=1000,
        eval_interval=5000,
    )
    others = [
        replace(large, name=f"dollhouse_{decoder}_vit_small_512", model=f"{decoder}_vit_small", channels_last=False)
        for decoder in ("mlore", "taskexpert", "tif")
    ]
    nanos = [nano, small, mlore, small_mlore, small_moe, taskexpert, small_taskexpert, tif, small_tif]
    return [*nanos, large, *others]


RECIPES = {recipe.name: recipe for recipe in (*_dollhouse_recipes(), *paper_recipes())}
"""The named recipes of ``mlore-edu recipes``, those of the papers (recipes_papers.py) last."""


def find_recipe(name: str) -> Recipe:
    """The named recipe.

    Raises
    ------
    UserError
        If there is none of that name; the sentence offers the closest ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise UserError(f"there is no recipe {name!r}; {did_you_mean(name, list(RECIPES))}'mlore-edu recipes' lists all.")
