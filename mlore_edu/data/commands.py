"""The command line of ``data_scripts/pascal_context.py`` and ``nyud_v2.py``: fetch, prepare, verify (chapter 15)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlore_edu.cli import Parser, explained
from mlore_edu.data.catalogue import ARCHIVES, BENCHMARKS, Benchmark
from mlore_edu.data.nyud_builds import MEANING
from mlore_edu.errors import UserError


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands for one data set.

    Parameters
    ----------
    name
        ``"pascal_context"`` or ``"nyud_v2"``.
    arguments
        Words after the script's name; those of the process if not given.

    Returns
    -------
    int
        Exit code: 0 done and nothing wrong, 1 files are missing or odd, 2 something the user can put right before
        anything can be said, 130 interrupted.
    """
    benchmark = BENCHMARKS[name]

    def run() -> int:
        options = parser(benchmark).parse_args(arguments)
        code: int = options.run_command(benchmark, options)
        return code

    return explained(f"data_scripts/{name}.py", run)


def parser(benchmark: Benchmark) -> Parser:
    """What the script takes."""
    made = Parser(
        prog=benchmark.script,
        description=f"{benchmark.title}: fetch the archive, prepare it for training, verify every file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="In this order:\n" + "\n".join(f"  {benchmark.script} {step}" for step in ("fetch", "prepare", "verify"))
        + "\n\nExit code: 0 all is well, 1 files are missing or odd, 2 an error with its remedy.",
    )  # fmt: skip
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fetch(benchmark, commands)
    prepare = commands.add_parser(
        "prepare",
        help="unpack, convert or link it, and derive labels once",
        description="Put the data set where recipes look for it, and derive labels once into a cache beside it. "
        "What you have is only read. Call again to complete what was interrupted.",
    )
    prepare.add_argument("--archive", type=Path, metavar="FILE", help="an archive you have (the fetched one)")
    prepare.add_argument("--folder", type=Path, metavar="FOLDER", help="a folder you have unpacked")
    prepare.set_defaults(run_command=_prepare)
    verify = commands.add_parser(
        "verify",
        help="check every file, and report in words what is missing or odd",
        description="Check counts, ids, sizes, types and values of every file that the splits name.",
    )
    verify.add_argument("--names-only", action="store_true", help="look whether files are there, without opening them")
    verify.set_defaults(run_command=_verify)
    for command in (prepare, verify):
        command.add_argument("--root", type=Path, default=benchmark.root, help="the data set's place (%(default)s)")
        command.add_argument("--workers", type=int, default=None, help="processes (one per core)")
    return made


def _add_fetch(benchmark: Benchmark, commands: argparse._SubParsersAction[Parser]) -> None:
    listed = [
        f"  {build}{': ' + MEANING[build] if benchmark.name == 'nyud_v2' else ''}\n"
        + "\n".join(f"    {source}" for source in sources)
        for build, sources in benchmark.sources.items()
    ]
    fetch = commands.add_parser(
        "fetch",
        help="download the archive, or import one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Download the archive from the first source that gives it. Call again to go on after a break.",
        epilog="Known sources, by build (these links have died before):\n" + "\n".join(listed),
    )
    first = next(iter(benchmark.sources))
    fetch.add_argument("--build", choices=list(benchmark.sources), default=first, help="(%(default)s)")
    fetch.add_argument(
        *("--from", "--archive"),
        dest="sources",
        action="append",
        metavar="SOURCE",
        help="an https:// or file:// address or a file, instead of the known sources; may be repeated",
    )
    fetch.add_argument("--archives", type=Path, default=ARCHIVES, help="folder of archives (%(default)s)")
    fetch.set_defaults(run_command=_fetch)


def _fetch(benchmark: Benchmark, options: argparse.Namespace) -> int:
    from mlore_edu.data.downloads import fetch, record_of

    remedy = (
        "look for another address and give it with --from, or import an archive you have: "
        f"{benchmark.script} prepare --archive FILE"
    )
    target = benchmark.archive(options.build, options.archives)
    fetch(options.sources or benchmark.sources[options.build], target, remedy)
    print(f"{target} is there, its SHA-256 in {record_of(target).name}")
    archive = "" if target == benchmark.archive(options.build) else f" --archive {target}"
    print(f"next: {benchmark.script} prepare{archive}")
    return 0


def fetched_archive(benchmark: Benchmark, folder: Path = Path()) -> Path | None:
    """The archive that ``fetch`` brought to its usual place, if it brought one.

    Raises
    ------
    UserError
        If it brought several builds.
    """
    found = [path for build in benchmark.sources if (path := folder / benchmark.archive(build)).exists()]
    if len(found) > 1:
        names = " and ".join(str(path) for path in found)
        raise UserError(f"{names} are two builds of {benchmark.title}; choose one with --archive FILE.")
    return found[0] if found else None


def _prepare(benchmark: Benchmark, options: argparse.Namespace) -> int:
    from mlore_edu.data.preparation import prepare

    archive = options.archive
    if archive is None and options.folder is None and not options.root.exists():
        archive = fetched_archive(benchmark)
    prepared = prepare(benchmark.name, options.root, archive=archive, folder=options.folder, workers=_workers(options))
    root = "" if options.root == benchmark.root else f" --root {options.root}"
    return _report(prepared.facts, prepared.problems, f"next: {benchmark.script} verify{root}")


def _verify(benchmark: Benchmark, options: argparse.Namespace) -> int:
    from mlore_edu.data.verification import verify

    report = verify(benchmark.name, options.root, contents=not options.names_only, workers=_workers(options))
    looked = "every file is there" if options.names_only else "every file is there and as it should be"
    return _report(report.facts, report.problems, f"{options.root}: {looked}")


def _workers(options: argparse.Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"{options.workers} processes can do nothing; give --workers 1 or more, or leave it out.")
    return options.workers or os.cpu_count() or 1


def _report(facts: Sequence[str], problems: Sequence[str], good: str) -> int:
    for fact in facts:
        print(fact)
    for problem in problems:
        print(f"! {problem}", file=sys.stderr)
    if not problems:
        print(good)
        return 0
    print(
        f"{len(problems)} kinds of fault: unpack the archive again, or get it from another source ('fetch --help' "
        "names them); what is not named above can be used.",
        file=sys.stderr,
    )
    return 1
