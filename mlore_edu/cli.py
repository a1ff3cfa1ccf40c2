"""The command line ``mlore-edu``: a thin layer that turns words into calls of the library (chapters 3 and 16).

What a user can put right ends in one sentence and exit code 2; Ctrl-C ends in exit code 130. Libraries are imported
inside the commands that use them, so that ``mlore-edu --help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mlore_edu.cli_evaluate import add_evaluate
from mlore_edu.comparison import results_table
from mlore_edu.errors import UserError
from mlore_edu.tasks import TASK_SETS
from mlore_edu.using import add_commands

RUNS = Path("runs")
"""Where runs go unless ``--run`` names a folder."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; '{self.prog} --help' shows what it takes.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Words after ``mlore-edu``; those of the process if not given.

    Returns
    -------
    int
        Exit code: 0 done, 2 something the user can put right, 130 interrupted.
    """

    def run() -> int:
        options, rest = _parser().parse_known_args(arguments)
        if rest and options.command != "train":
            _parser().error(f"{' '.join(rest)} is not understood by '{options.command}'")
        options.overrides = rest
        options.run_command(options)
        return 0

    return explained("mlore-edu", run)


def explained(program: str, run: Callable[[], int]) -> int:
    """Run a command so that whatever ends it is one sentence and an exit code.

    Parameters
    ----------
    program
        Its name, before the sentence.
    run
        Does the work; returns an exit code.

    Returns
    -------
    int
        What ``run`` returns; 2 for something the user can put right, 130 for an interruption.
    """
    try:
        return run()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"{program}: {str(interruption) or 'interrupted.'}", file=sys.stderr)
        return 130
    except PermissionError as error:
        place = error.filename or "a file"
        print(f"{program}: {place} may not be used; grant yourself permission, or choose another.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mlore-edu", description="Multi-task dense prediction, from the book's chapters to a GPU.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what is installed, which data and runs are there, what to do next")
    doctor.set_defaults(run_command=_doctor)

    _add_dollhouse(commands)

    # Its help is the recipe's: every field with its value (recipe.py).
    train = commands.add_parser("train", help="train a recipe, or go on with it", add_help=False, allow_abbrev=False)
    train.add_argument("recipe", nargs="?", help="'mlore-edu recipes' lists them; --FIELD VALUE changes any field")
    # The longer form is for torchrun, which takes --run for one of its own options.
    train.add_argument("--run", "--run-folder", type=Path, default=None, help="folder of the run (runs/RECIPE)")
    train.set_defaults(run_command=_train)

    add_evaluate(commands)

    recipes = commands.add_parser("recipes", help="list the recipes with what they cost, or show one in detail")
    recipes.add_argument("recipe", nargs="?", help="where its settings come from, and what memory can be saved")
    recipes.set_defaults(run_command=_recipes)

    complexity = commands.add_parser("complexity", help="count a model's parameters and multiply-accumulates")
    complexity.add_argument("model", help="e.g. baseline_vit_base, or FILE.py:CLASS_vit_base")
    complexity.add_argument("--data", choices=list(TASK_SETS), default="pascal_context", help="(%(default)s)")
    complexity.add_argument("--tasks", nargs="+", default=[], help="only these of the data set's tasks")
    complexity.add_argument("--img-size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"), help="(512 512)")
    complexity.add_argument("--depth", type=int, default=1, help="levels of modules shown (%(default)s)")
    complexity.set_defaults(run_command=_complexity)

    add_commands(commands)
    return parser


def _add_dollhouse(commands: argparse._SubParsersAction[Parser]) -> None:
    dollhouse = commands.add_parser("dollhouse", help="render the data set that comes with the book")
    dollhouse.add_argument("--root", type=Path, default=Path("data/dollhouse"), help="folder to write (%(default)s)")
    dollhouse.add_argument("--layout", choices=list(TASK_SETS), default="dollhouse", help="file formats (%(default)s)")
    dollhouse.add_argument("--size", type=int, nargs="+", default=[128], help="side, or height and width (%(default)s)")
    dollhouse.add_argument("--difficulty", choices=["easy", "medium", "full"], default="easy", help="(%(default)s)")
    dollhouse.add_argument("--train", type=int, default=1000, help="training scenes (%(default)s)")
    dollhouse.add_argument("--val", type=int, default=100, help="validation scenes (%(default)s)")
    dollhouse.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (%(default)s)")
    dollhouse.add_argument("--workers", type=int, default=None, help="processes (one per core)")
    dollhouse.set_defaults(run_command=_dollhouse)


def _doctor(options: argparse.Namespace) -> None:
    from mlore_edu.doctor import report

    print(report())


def _dollhouse(options: argparse.Namespace) -> None:
    import os

    from mlore_edu.data.dollhouse_files import write_dollhouse

    if len(options.size) > 2:
        raise UserError(f"--size takes one or two numbers, not {len(options.size)}; give --size 128 or --size 448 576.")
    size = options.size[0] if len(options.size) == 1 else tuple(options.size)
    workers = os.cpu_count() or 1 if options.workers is None else options.workers
    write_dollhouse(
        options.root,
        layout=options.layout,
        size=size,
        difficulty=options.difficulty,
        train=options.train,
        val=options.val,
        seed=options.seed,
        workers=workers,
    )
    print(f"{options.train} training and {options.val} validation scenes are in {options.root}")


def _train(options: argparse.Namespace) -> None:
    from mlore_edu.training.recipe import override
    from mlore_edu.training.recipes import find_recipe

    if options.recipe is None:
        raise UserError("train needs the name of a recipe; 'mlore-edu recipes' lists them.")
    recipe = override(find_recipe(options.recipe), options.overrides)
    run = options.run or RUNS / recipe.name

    from mlore_edu.training import distributed
    from mlore_edu.training.engine import train
    from mlore_edu.training.run_folder import RunFolder

    was_complete = RunFolder(run).result(recipe) is not None
    metrics = train(recipe, run)
    if not distributed.is_main_by_environment():
        return
    print(results_table(recipe.task_set, metrics))
    if was_complete:
        print(f"{run} was complete already; to train anew, choose another folder with --run FOLDER")
    else:
        print(f"metrics, log, checkpoint and pictures are in {run}; 'mlore-edu evaluate {run}' judges it again")


def _recipes(options: argparse.Namespace) -> None:
    from mlore_edu.training.listing import recipe_details, recipes_table
    from mlore_edu.training.recipes import find_recipe

    print(recipes_table() if options.recipe is None else recipe_details(find_recipe(options.recipe)))


def _complexity(options: argparse.Namespace) -> None:
    from mlore_edu.complexity import count
    from mlore_edu.model import build_model

    everything = TASK_SETS[options.data]
    tasks = everything.subset(*options.tasks) if options.tasks else everything
    img_size = (options.img_size[0], options.img_size[1])
    if min(img_size) < 1:
        raise UserError(f"an image of {img_size[0]} x {img_size[1]} pixels does not exist; give --img-size H W.")
    print(count(build_model(options.model, tasks, img_size), img_size).format(options.depth))
