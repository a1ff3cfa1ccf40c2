"""The same function of many files, on several cores."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Results in order; processes are worth their start only for more than a few jobs.

    Parameters
    ----------
    function
        Of a module, so that another process finds it by name.
    jobs
        Its arguments.
    workers
        Processes; below 2 everything runs in this one.

    Raises
    ------
    BrokenProcessPool
        If a process was ended from outside.
    """
    if workers < 2 or len(jobs) < 2 * workers:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        # Forking a process in which torch has started threads may hang it.
        mp_context=multiprocessing.get_context("spawn"),
        # Ctrl-C reaches the whole group; the workers finish their file and leave the rest to the parent.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(function, jobs, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)
