"""What the scripts of the sweeps have in common: a network by its options, its run, and the record of all runs.

Each run is one command of `mlore-edu`; a configuration that several sweeps share is trained once. What is in the record
or in the run folders already is not made again, so an interrupted sweep goes on where it was.

Some runs of the papers' sweeps name "other_versions" than the head of their record: Pillow 12.3.0, which reads the same
pixels out of a PNG (a run made with both came out the same to the last digit). Their "cpu_seconds" are null where the
run had been interrupted.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch
from record import HERE, record

from mlore_edu.cli import main as mlore_edu
from mlore_edu.training import checkpoint
from mlore_edu.training.recipe import load_recipe
from mlore_edu.training.setup import make_model

ROOT = HERE.parents[1]
DATA = "dollhouse --root data/dollhouse_64 --size 64 --difficulty easy --train 400 --val 100"


ITERATIONS = 300


@dataclass(frozen=True)
class Configuration:
    """One network: the recipe dollhouse_<decoder>_nano_64, and what differs from it: the decoder's options, and flags."""

    decoder: str = "mlore"
    options: dict = field(default_factory=dict)
    runs: str = "mlore_sweeps"
    flags: str = ""

    @property
    def key(self) -> str:
        """A name that says everything, also of the run's folder."""
        pairs = (f"{name}={value}" for name, value in sorted(self.options.items()))
        return " ".join([self.decoder, *pairs, *self.flags.split()])

    def command(self, seed: int) -> str:
        """The command of one run."""
        flags = "--workers 0 --pictures 0"
        if "--iterations" not in self.flags:
            flags = f"--iterations {ITERATIONS} {flags}"
        flags += f" {self.flags}" if self.flags else ""
        pairs = " ".join(f"{name} {value}" for name, value in self.options.items())
        options = f" --model-options {pairs}" if pairs else ""
        return (
            f"train dollhouse_{self.decoder}_nano_64 {flags} --seed {seed}{options}"
            f" --run {self.folder(seed)}"
        )

    def folder(self, seed: int) -> Path:
        """Where the run lies."""
        name = self.key.replace(" ", "_").replace("/", "-")
        return Path("runs", self.runs, f"{name}_seed_{seed}")


Sweeps = dict[str, dict[str, Configuration]]
"""Configurations by sweep and row."""


def arguments(doc: str, choices: list[str], seeds: int = 3) -> argparse.Namespace:
    """What the command line of a script says: a sweep, and how many seeds and workers."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("sweep", choices=choices)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def prepare(data: str = DATA) -> None:
    """Go to the repository, let every process use one thread, and render the data where they are not there."""
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    words = shlex.split(data)
    if not Path(words[words.index("--root") + 1]).exists() and mlore_edu(words):
        raise SystemExit(2)


def run(configuration: Configuration, seed: int) -> dict:
    """Train one network with one command of `mlore-edu`, and collect what its run folder tells."""
    started = time.process_time()
    command, said = configuration.command(seed), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = mlore_edu(shlex.split(command))
    if code:
        raise RuntimeError(
            f"mlore-edu {command} ended with code {code}: {said.getvalue()[-500:]}"
        )
    told = record(configuration.folder(seed))
    losses = told["curve"]["losses"].values()
    model = make_model(load_recipe(configuration.folder(seed)), for_training=False)
    return {
        "key": configuration.key,
        "seed": seed,
        "command": f"mlore-edu {command}",
        "commit": told["commit"][:12],
        "decoder": configuration.decoder,
        "options": configuration.options,
        **({"flags": configuration.flags} if configuration.flags else {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_seconds": round(time.process_time() - started),
        "metrics": {
            name: round(value, 4) for name, value in told["metrics"].items()
        },
        # the tasks' losses added without their weights, every 30th step
        "curve": [round(sum(step), 3) for step in list(zip(*losses))[2::3]],
        "made_with": {key: told[key] for key in ("hardware", "versions")},
    }


def trained(configuration: Configuration, seed: int) -> torch.nn.Module:
    """The network of a finished run."""
    folder = configuration.folder(seed)
    model = make_model(load_recipe(folder), for_training=False)
    weights, _ = checkpoint.load(checkpoint.latest(folder / "checkpoints"))
    model.load_state_dict(weights)
    return model.eval()


def read(path: Path) -> dict:
    """What is recorded already."""
    return json.loads(path.read_text()) if path.exists() else {"runs": []}


def write(path: Path, content: dict) -> None:
    """Store the record, one run a line; never half of it."""
    head = json.dumps(
        {name: value for name, value in content.items() if name != "runs"}, indent=1
    )
    rows = ",\n".join(
        json.dumps(run, ensure_ascii=False) for run in content["runs"]
    )
    draft = path.with_suffix(".draft")
    draft.write_text(f'{head[:-2]},\n "runs": [\n{rows}\n ]\n}}\n')
    draft.replace(path)


def add(
    path: Path, command: str, sweeps: Sweeps, told: dict, data: str = DATA
) -> None:
    """Add one run to a record."""
    made_with = told.pop("made_with")
    known = read(path)
    if known["runs"] and {name: known[name] for name in made_with} != made_with:
        raise RuntimeError(
            f"{path} was made on another machine or with other versions; move it away to make all runs again."
        )
    content = {
        "command": command,
        **made_with,
        "data_command": f"mlore-edu {data}",
        "sweeps": {
            name: {row: c.key for row, c in rows.items()}
            for name, rows in sweeps.items()
        },
        "runs": [*known["runs"], told],
    }
    write(path, content)


def one_machine(runs: list[dict]) -> dict:
    """What all runs were made with, taken out of each."""
    made_with = [told.pop("made_with") for told in runs]
    if any(other != made_with[0] for other in made_with):
        raise RuntimeError("the networks were not all trained on one machine")
    return made_with[0]


def train(
    path: Path,
    command: str,
    sweeps: Sweeps,
    names: list[str],
    seeds: Sequence[int],
    workers: int,
    data: str = DATA,
) -> None:
    """Train what the named sweeps need and the record lacks."""
    wanted = {
        (configuration.key, seed): configuration
        for name in names
        for configuration in sweeps[name].values()
        for seed in seeds
    }
    known = {(run["key"], run["seed"]) for run in read(path)["runs"]}
    missing = [
        (c, seed) for (key, seed), c in wanted.items() if (key, seed) not in known
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(run, *choice) for choice in missing]
        for number, finished in enumerate(as_completed(waiting), start=1):
            try:
                told = finished.result()
            except (
                RuntimeError
            ) as error:  # the others may do better; the same command tries again
                print(error, flush=True)
                continue
            print(
                f"{number} of {len(missing)}: {told['key']}, seed {told['seed']}",
                flush=True,
            )
            add(path, command, sweeps, told, data)


def train_chosen(chosen: argparse.Namespace, path: Path, sweeps: Sweeps) -> None:
    """Train the sweep that the command line names, or all."""
    prepare()
    names = list(sweeps) if chosen.sweep == "all" else [chosen.sweep]
    command = f"python book/results/make_{path.stem}.py all"
    train(path, command, sweeps, names, range(chosen.seeds), chosen.workers)
