"""Train the shared network and six single-task ones, three seeds each, and write chapter03.json (chapter 3).

    python book/results/make_chapter03.py

Renders data/dollhouse_64, trains in runs/chapter03 (two runs at a time, one thread each), and takes under ten minutes
on two free cores. What is there already is not made again, so an interrupted run goes on where it was.
"""

import contextlib
import io
import multiprocessing
import os
import shlex
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from record import record, write

import mlore_edu as me
from mlore_edu.cli import main as mlore_edu

ROOT = Path(__file__).parents[2]
RUNS = Path("runs/chapter03")
DATA = "dollhouse --root data/dollhouse_64 --size 64 --difficulty easy --train 400 --val 100"
TRAIN = "train dollhouse_baseline_nano_64 --iterations 300 --workers 0 --pictures 0"
SEEDS = (0, 1, 2)
CHOICES = [
    (seed, tasks)
    for seed in SEEDS
    for tasks in ((), *((name,) for name in me.DOLLHOUSE.names))
]


def run(choice: tuple[int, tuple[str, ...]]) -> dict:
    """Train one network with one command of `mlore-edu`, and collect what its run folder tells."""
    seed, tasks = choice
    folder = RUNS / f"{'_'.join(tasks) or 'all'}_{seed}"
    chosen = f" --tasks {' '.join(tasks)}" if tasks else ""
    command = f"{TRAIN} --seed {seed}{chosen} --run {folder}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = mlore_edu(shlex.split(command))
    if code:
        raise RuntimeError(
            f"mlore-edu {command} ended with code {code}: {said.getvalue()[-500:]}"
        )
    told = record(folder)
    return {
        **told,
        "command": f"mlore-edu {command}",
        "tasks": list(tasks) or list(me.DOLLHOUSE.names),
    }


def main() -> None:
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the two processes that train
    if mlore_edu(shlex.split(DATA)):
        raise SystemExit(2)
    runs = []
    with ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        for finished in pool.map(run, CHOICES):
            runs.append(finished)
            print(
                f"{len(runs)} of {len(CHOICES)}: {finished['command']}", flush=True
            )
    shared = {key: runs[0][key] for key in ("hardware", "versions")}
    for finished in runs:
        if {key: finished.pop(key) for key in shared} != shared:
            raise RuntimeError("the runs were not all made on one machine")
        del finished["recipe"]
    write(
        "chapter03",
        {
            "command": "python book/results/make_chapter03.py",
            **shared,
            "seeds": list(SEEDS),
            "data_command": f"mlore-edu {DATA}",
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
