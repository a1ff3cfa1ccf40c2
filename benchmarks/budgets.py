"""What every named recipe is expected to take on one GPU: writes mlore_edu/training/budgets.json.

    python benchmarks/budgets.py            # all recipes, a few minutes on any machine; no GPU, little memory
    python benchmarks/budgets.py NAME…      # these only; the others stay

Run it after a change to a recipe, to a model or to the loss. ``mlore-edu recipes`` shows the result.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from mlore_edu.atomic import write_atomically
from mlore_edu.training import budget
from mlore_edu.training.recipes import RECIPES, find_recipe
from mlore_edu.training.rehearsal import rehearse

FILE = Path(budget.__file__).with_name("budgets.json")


def main(names: list[str]) -> None:
    entries = budget.read_stored() if FILE.exists() else {}
    recipes = [find_recipe(name) for name in names] or list(RECIPES.values())
    warnings.filterwarnings("ignore", category=UserWarning)
    for recipe in tqdm(recipes, desc="rehearsing", unit="recipe"):
        entries[recipe.name] = budget.to_entry(recipe, rehearse(recipe))
    kept = {name: entries[name] for name in RECIPES if name in entries}  # those whose recipe is gone go too
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in kept.items())
    made_by = json.dumps({"command": "python benchmarks/budgets.py", "torch": torch.__version__})
    write_atomically(FILE, f'{{"made_by": {made_by}, "budgets": {{\n{lines}\n}}}}\n'.encode())
    print(f"{len(recipes)} budgets written to {FILE}; 'mlore-edu recipes' shows them")


if __name__ == "__main__":
    main(sys.argv[1:])
