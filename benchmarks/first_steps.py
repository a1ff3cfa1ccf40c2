"""What a newcomer waits for: clone, installation, first figure, first trained model, each by the README's command.

    python benchmarks/first_steps.py

Clones this repository's last commit into a new folder, does there what the README says, without pip's cache, and writes
book/results/first_steps.json: seconds by the clock. "First figure" is chapter 1 in a fresh kernel, from its start to
the first picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "book" / "results" / "first_steps.json"
CHAPTER = "book/part1_foundations/01_five_answers_from_one_image.ipynb"
FIRST_FIGURE = f"""
import os, nbformat
from nbclient import NotebookClient
notebook = nbformat.read("{CHAPTER}", as_version=4)
client = NotebookClient(notebook, timeout=300, resources={{"metadata": {{"path": os.path.dirname("{CHAPTER}")}}}})
with client.setup_kernel():
    for number, cell in enumerate(notebook.cells):
        client.execute_cell(cell, number)
        if any("image/png" in output.get("data", {{}}) for output in cell.get("outputs", [])):
            break
    else:
        raise SystemExit("no cell of chapter 1 shows a figure")
"""
TRAINING = (
    "mlore-edu dollhouse --root data/dollhouse",
    "mlore-edu train dollhouse_baseline_nano",
)
VERSIONS = "import json; from mlore_edu.training.run_folder import versions; print(json.dumps(versions()))"


def steps(clone: Path) -> dict[str, Callable[[], object]]:
    """What is timed, in order; each needs the one before."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment["PIP_NO_CACHE_DIR"] = "1"

    def run(*command: str | Path) -> object:
        return subprocess.run(command, cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)

    binaries = clone / ".venv" / "bin"
    render, train = (command.split() for command in TRAINING)
    return {
        "clone": lambda: subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True),
        "install": lambda: run("make", ".venv/.ready"),
        "first figure": lambda: run(binaries / "python", "-c", FIRST_FIGURE),
        "render the data": lambda: run(binaries / render[0], *render[1:]),
        "first trained model": lambda: run(binaries / train[0], *train[1:]),
    }


def measure(folder: Path, report: Callable[[str], object] = print) -> dict[str, Any]:
    """Take the steps in a new folder; seconds of each, and what they were made with."""
    clone, seconds = folder / "mlore-edu", {}
    for name, step in steps(clone).items():
        start = time.perf_counter()
        step()
        seconds[name] = round(time.perf_counter() - start, 1)
        report(f"{name:20} {seconds[name]:7.1f} s")
    told = subprocess.run([clone / ".venv/bin/python", "-c", VERSIONS], cwd=clone, capture_output=True, check=True)
    made_with = {key: json.loads(told.stdout)[key] for key in ("commit", "python", "processor", "cores")}
    return {"command": "python benchmarks/first_steps.py", **made_with, "seconds": seconds}


def main() -> int:
    """Measure, and write the record."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            record = measure(Path(folder))
        except subprocess.CalledProcessError as error:
            print(
                f"{error.cmd[0]} failed with exit code {error.returncode}; its message stands above.", file=sys.stderr
            )
            return 1
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {RECORD.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
