"""What ``mlore-edu recipes`` prints: all recipes with what they are expected to cost, or one of them in detail."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from mlore_edu.published import Setting
from mlore_edu.tasks import TASK_SETS
from mlore_edu.training.budget import ASSUMED_GPU, Budget, stored_budget
from mlore_edu.training.recipe import Recipe
from mlore_edu.training.recipes import RECIPES
from mlore_edu.training.recipes_papers import settings_of

GROUPS = {
    "mlore": "MLoRE",
    "taskexpert": "TaskExpert",
    "tif": "TIF",
    "baseline": "baselines",
    "single": "one task alone, which Δm is measured against",
}
"""Headings by the second word of a paper's recipe."""

# ten steps of the four decoders, without checkpointing: a process's peak (benchmarks/measuring.py) over the estimate
CAUTION = f"""Memory and hours are estimates for {ASSUMED_GPU};
no GPU has confirmed them yet. Memory is that of tensors; libraries took 14 to 62 % more on a CPU."""

HINTS = (
    "One recipe in detail, where its settings come from and what memory can be saved: mlore-edu recipes NAME",
    "A single-task baseline of any recipe: mlore-edu train RECIPE --tasks depth --run runs/NAME",
)

SAVINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "--precision bf16": {"precision": "bf16"},
    "--checkpointing": {"checkpointing": True},
    "both": {"precision": "bf16", "checkpointing": True},
}
"""Options whose effect on the cost is shown."""


def recipes_table() -> str:
    """All named recipes, grouped by data set and paper, with expected memory and hours; at most 120 columns wide."""
    groups: dict[str, list[Recipe]] = {}
    for recipe in sorted(RECIPES.values(), key=lambda recipe: ["dollhouse", *TASK_SETS].index(recipe.data)):
        groups.setdefault(_heading(recipe), []).append(recipe)
    head = ("recipe", "model", "size", "iterations", "batch", "memory", "hours")
    rows = {heading: [_row(recipe) for recipe in recipes] for heading, recipes in groups.items()}
    widths = [max(map(len, cells)) for cells in zip(head, *chain(*rows.values()))]
    lines = [_aligned(head, widths)]
    for heading, group in rows.items():
        lines += ["", heading, *(_aligned(row, widths) for row in group)]
    return "\n".join([*lines, "", CAUTION, *HINTS])


def _heading(recipe: Recipe) -> str:
    title = TASK_SETS[recipe.data].name
    return title if recipe.data == "dollhouse" else f"{title}, {GROUPS[recipe.name.split('_')[1]]}"


def _row(recipe: Recipe) -> tuple[str, ...]:
    height, width = recipe.img_size
    costs = _costs(recipe, stored_budget(recipe))
    return (recipe.name, recipe.model, f"{height}×{width}", f"{recipe.iterations:,}", str(recipe.batch_size), *costs)


def _costs(recipe: Recipe, budget: Budget | None) -> tuple[str, str]:
    if budget is None:
        return "–", "–"
    hours = budget.hours(recipe)
    return f"{budget.peak / 2**30:.1f} GiB", f"{hours:.1f} h" if hours >= 0.05 else "< 0.1 h"


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """Two columns of text, then numbers to the right."""
    cells = [
        cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))
    ]
    return "  ".join(cells).rstrip()


def recipe_details(recipe: Recipe) -> str:
    """One recipe: its settings and their sources, what it is expected to cost, and what options make of that."""
    lines = [f"{recipe.name}: {recipe.model} on {TASK_SETS[recipe.data].name} ({', '.join(recipe.task_set.names)})"]
    settings = settings_of(recipe)
    if settings:
        lines += ["", *_settings_table(settings)]
    return "\n".join([*lines, "", *_cost_table(recipe), "", CAUTION])


def _settings_table(settings: dict[str, Setting]) -> list[str]:
    rows = [
        (name, "none" if setting.value is None else f"{setting.value}", setting.status, setting.source)
        for name, setting in settings.items()
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _cost_table(recipe: Recipe) -> list[str]:
    from mlore_edu.training.rehearsal import rehearse  # loads torch; the list of recipes does without

    variants: dict[str, Recipe] = {}
    for words, changes in SAVINGS.items():
        changed = replace(recipe, **changes)
        if changed not in variants.values():  # some recipes are in bf16 as they are
            variants[words] = changed
    budgets = {words: stored_budget(changed) or rehearse(changed) for words, changed in variants.items()}
    plain, macs = budgets["as it is"], budgets["as it is"].macs / recipe.batch_size
    lines = [
        f"{plain.parameters / 1e6:.1f} M parameters, {macs / 1e9:.1f}e9 multiply-accumulates an image on the way there",
        f"weights {_gib(plain.weights)}, gradients {_gib(plain.gradients)}, optimiser {_gib(plain.optimizer)}, and",
        f"{'':<18}{'activations':>12}{'all at most':>13}{'hours':>9}",
    ]
    for words, changed in variants.items():
        memory, hours = _costs(changed, budgets[words])
        lines.append(f"{words:<18}{_gib(budgets[words].activations):>12}{memory:>13}{hours:>9}")
    return lines


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
