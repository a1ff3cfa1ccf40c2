"""Turn the folder of a finished run into a record of the book.

    python book/results/record.py runs/dollhouse_baseline_nano

writes `book/results/dollhouse_baseline_nano.json`: the command, commit, hardware, versions,
recipe (its seed among it), metrics of the last iteration, and the curve of every loss.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.run_folder import RunFolder, read_log

HERE = Path(__file__).parent


def record(folder: Path) -> dict[str, Any]:
    """What a finished run's folder tells, as plain values."""
    stored = RunFolder(folder).read_metrics()
    if stored is None:
        raise SystemExit(
            f"{folder} holds no finished run; train it to its end first."
        )
    made_with = json.loads((folder / "versions.json").read_text())
    steps = [entry for entry in read_log(folder / "log.jsonl") if "losses" in entry]
    recipe = load_recipe(folder)
    program, *arguments = made_with["command"].split()
    return {
        "command": " ".join([Path(program).name, *arguments]),
        "commit": made_with["commit"],
        "hardware": {
            key: made_with[key] for key in ("processor", "cores", "threads", "gpus")
        },
        "versions": {"python": made_with["python"], **made_with["packages"]},
        "seed": recipe.seed,
        "recipe": dataclasses.asdict(recipe),
        "metrics": stored["metrics"],
        "curve": {
            "iteration": [step["iteration"] for step in steps],
            "losses": {
                name: [float(f"{step['losses'][name]:.4g}") for step in steps]
                for name in recipe.task_set.names
            },
        },
    }


def write(name: str, content: dict[str, Any]) -> None:
    """Store a record under a name."""
    (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run = Path(argument)
        write(load_recipe(run).name, record(run))
