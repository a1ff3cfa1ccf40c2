"""The command ``mlore-edu evaluate``: what it takes, and what it prints and writes (chapters 3, 15 and 17)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlore_edu.checks import check_new
from mlore_edu.comparison import as_record, beside_the_papers, gain_over, results_table, single_task_runs
from mlore_edu.errors import UserError
from mlore_edu.tasks import TASK_SETS

if TYPE_CHECKING:
    from mlore_edu.judging import Judgement


def add_evaluate(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    about = "judge a run's last checkpoint, one of MLoRE's authors, or predictions in files, beside the papers' numbers"
    evaluate = commands.add_parser("evaluate", help=about, description=about)
    evaluate.add_argument("run", type=Path, nargs="?", help="folder of a run, e.g. runs/dollhouse_baseline_nano")
    evaluate.add_argument("--released", type=Path, metavar="FILE", help="instead a checkpoint of MLoRE's authors")
    evaluate.add_argument("--predictions", type=Path, metavar="FOLDER", help="instead files FOLDER/<task>/<id>.png|npy")
    evaluate.add_argument("--root", help="where the data set is, if it was moved")
    evaluate.add_argument("--boundary-protocol", metavar="NAME", help="which odsF (the run's, or the data set's)")
    evaluate.add_argument("--boundary-images", type=Path, metavar="FILE", help="ids whose boundaries count (all)")
    evaluate.add_argument("--saliency", choices=["standard", "released"], help="which maxF (the run's, or standard)")
    evaluate.add_argument("--single-task", type=Path, nargs="+", metavar="RUN", help="runs of one task each, for Δm")
    out = evaluate.add_argument_group("what to write")
    out.add_argument("--json", type=Path, metavar="FILE", help="metrics, details, protocol, the papers' rows, versions")
    out.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw labels beside predictions")
    out.add_argument("--count", type=int, help="how many pictures (8)")
    out.add_argument("--save-predictions", type=Path, metavar="FOLDER", help="as --predictions takes them")
    only = evaluate.add_argument_group("only with --released or --predictions (a run's recipe says all this)")
    only.add_argument("--data", choices=list(TASK_SETS), help="data set (told by the heads of --released)")
    only.add_argument("--img-size", type=int, nargs=2, metavar=("H", "W"), help="padded size (that of the papers)")
    only.add_argument("--partial", action="store_true", help="with --predictions: judge only the images that are there")
    evaluate.set_defaults(run_command=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> None:
    """Judge what the options say; of several processes only the first prints and writes the JSON."""
    _check(options)
    singles = single_task_runs(options.single_task or [])
    with _joined() as is_main:
        judged = _judge(options)
        if not is_main:
            return
        _show(judged, options)
        record = as_record(judged)
        _write(options.json, record)  # what was judged for hours must not be lost to an unfit --single-task
        if singles:
            record["multitask_gain"] = gain_over(singles, judged)
            print(f"Δm over the single-task runs: {record['multitask_gain']:+.2f} %")
            _write(options.json, record)


def _check(options: argparse.Namespace) -> None:
    """Say now what would be said after hours of counting boundaries."""
    from mlore_edu.metrics import BOUNDARY_PROTOCOLS

    given = [name for name in ("run", "released", "predictions") if getattr(options, name) is not None]
    if len(given) != 1:
        raise UserError(
            "evaluate needs one thing to judge; give the folder of a run, or --released FILE, or --predictions FOLDER."
        )
    if options.partial and not options.predictions:
        raise UserError("--partial is for --predictions; leave it out, a model answers to every image.")
    for name in ("data", "img_size"):
        if options.run and getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for --released and --predictions; leave it out, a run's recipe says it.")
    if options.predictions and options.data is None:
        raise UserError(f"predictions do not say what they are of; give --data {', '.join(TASK_SETS)}.")
    if options.predictions and options.save_predictions:
        raise UserError("these predictions are saved already; leave out --save-predictions.")
    if options.boundary_protocol and options.boundary_protocol not in BOUNDARY_PROTOCOLS:
        known = ", ".join(BOUNDARY_PROTOCOLS)
        raise UserError(f"there is no --boundary-protocol {options.boundary_protocol}; choose one of {known}.")
    if options.count is not None and options.pictures is None:
        raise UserError("--count says how many pictures to draw; add --pictures FOLDER, or leave it out.")
    if options.count is not None and options.count < 1:
        raise UserError(f"--count is {options.count}; give at least 1, or leave out --pictures.")
    if options.json and not options.json.parent.is_dir():
        raise UserError(f"there is no folder {options.json.parent}; make it, or choose another with --json.")
    for option in ("pictures", "save_predictions"):
        if folder := getattr(options, option):
            check_new(folder, "--" + option.replace("_", "-"))


@contextmanager
def _joined() -> Iterator[bool]:
    """Share the images among the processes where torchrun started several; gives whether this one speaks."""
    from mlore_edu.training import distributed

    joined = distributed.start()
    try:
        yield distributed.is_main()
    finally:
        if joined:
            distributed.stop()


def _judge(options: argparse.Namespace) -> Judgement:
    from mlore_edu.judging import Choices, judge_predictions, judge_released, judge_run
    from mlore_edu.training import distributed

    choices = Choices(
        root=options.root,
        boundary=options.boundary_protocol,
        boundary_images=options.boundary_images,
        saliency=options.saliency,
        save=options.save_predictions,
        pictures=options.pictures,
        count=options.count or Choices.count,
        progress=distributed.is_main(),
    )
    if options.run:
        return judge_run(options.run, choices)
    img_size = tuple(options.img_size) if options.img_size else None
    if options.released:
        return judge_released(options.released, choices, data=options.data, img_size=img_size)
    return judge_predictions(options.predictions, options.data, choices, img_size=img_size, partial=options.partial)


def _show(judged: Judgement, options: argparse.Namespace) -> None:
    print(results_table(judged.tasks, judged.metrics))
    if options.run:
        _show_end_of_run(judged, options.run)
    for remark in judged.remarks:
        print(remark)
    print(beside_the_papers(judged))
    for folder, what in ((options.pictures, "pictures"), (options.save_predictions, "predictions")):
        if folder:
            print(f"{what} are in {folder}")


def _show_end_of_run(judged: Judgement, run: Path) -> None:
    """Whether the run itself found the same."""
    from mlore_edu.training.run_folder import RunFolder

    stored = RunFolder(run).read_metrics()
    if stored is None:
        print("this run is not complete yet: these are the numbers of its last checkpoint")
    elif stored["metrics"] == judged.metrics:
        print("equal to the numbers at the end of the run, to the last digit")
    else:
        print("at the end of the run it was")
        print(results_table(judged.tasks, stored["metrics"]))


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is None:
        return
    from mlore_edu.atomic import write_atomically
    from mlore_edu.training.checkpoint import explain_disk_errors
    from mlore_edu.training.run_folder import to_plain

    with explain_disk_errors(str(path), option="--json"):
        write_atomically(path, json.dumps(to_plain(record), indent=2).encode())
