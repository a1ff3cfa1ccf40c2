"""Measure what every notebook of the book asks of its reader, and write chapter_times.json.

    nice python book/results/make_chapter_times.py          every notebook, some ten minutes on a quiet machine
    nice python book/results/make_chapter_times.py 09 part2  those whose file name begins so; the others' lines stay

Running: each notebook runs from top to bottom in a fresh kernel with one thread, without a GPU, and with a network
that leads nowhere. What is written down are the seconds of processor time of the kernel and of all that it started, and
the most memory that any of these processes held. Processor time is not waiting time, but processes that share caches
slow each other: chapter 3 took 43 seconds, and 53 beside more of them. "load" says how many there were.

Reading: 200 words a minute, three seconds for a line of code that is on view, twenty for a figure. Solving the
exercises is not in it, nor are the solutions' code and other cells that are folded away.
"""

import json
import multiprocessing
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from record import HERE, write

from mlore_edu.training.run_folder import versions

BOOK = HERE.parent
RATES = {"words per minute": 200, "seconds per line": 3, "seconds per figure": 20}
TEXTS = ("text/markdown", "text/html")
NOWHERE = "http://127.0.0.1:9"
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "no_proxy": "127.0.0.1,localhost",
}


def notebooks(prefixes: list[str]) -> list[Path]:
    """All notebooks of the book, or those whose names begin so."""
    found = [
        *sorted(BOOK.glob("part*/*.ipynb")),
        *sorted(BOOK.glob("appendix/*.ipynb")),
    ]
    return [path for path in found if path.name.startswith(tuple(prefixes) or "")]


def reading(notebook: Any) -> dict[str, int]:
    """What there is to read in a notebook, and the minutes it takes.

    Formulas, links' targets and numbers are no words; words that a cell prints are.
    """
    words = lines = figures = 0
    for cell in notebook.cells:
        texts = []
        if cell.cell_type == "markdown":
            texts = [cell.source]
        else:
            folded = {"hide-input", "remove-input"} & {
                *cell.metadata.get("tags", [])
            }
            if (
                not folded and "jupyter" not in cell.metadata
            ):  # which folds solutions
                lines += sum(
                    bool(line.strip()) for line in cell.source.splitlines()
                )
            shown = [output.get("data", {}) for output in cell.outputs]
            figures += any("image/png" in data for data in shown)
            texts = [output.get("text", "") for output in cell.outputs]
            texts += [data.get(kind, "") for data in shown for kind in TEXTS]
        words += sum(count_words(text) for text in texts)
    seconds = (
        60 * words / RATES["words per minute"]
        + lines * RATES["seconds per line"]
        + figures * RATES["seconds per figure"]
    )
    return {
        "words": words,
        "lines": lines,
        "figures": figures,
        "minutes": round(seconds / 60),
    }


def count_words(text: str) -> int:
    """Words of prose in Markdown or HTML."""
    for no_prose in (
        r"<details>.*?</details>",  # folded away
        r"</?\w[^<>]*>",
        r"```\{math\}.*?```",
        r"\$[^$]+\$",
        r"\]\([^)]*\)",  # where a link leads
        r"\{\w+\}`[^`]*`",  # a reference
    ):
        text = re.sub(no_prose, " ", text, flags=re.DOTALL)
    return len(re.findall(r"[^\W\d_][\w’'-]*", text))


def run(path: Path) -> dict[str, float]:
    """Execute a notebook, and tell what its processes used; in a process of its own, so that nothing else is in it."""
    os.environ |= SURROUNDINGS
    NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=600,
        resources={"metadata": {"path": path.parent}},
    ).execute()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory_mib": round(used.ru_maxrss * unit / 2**20),
    }


def main(prefixes: list[str]) -> None:
    """Measure one notebook after the other, and write after each; what there is to read is counted for all."""
    stored = HERE / "chapter_times.json"
    known = json.loads(stored.read_text())["running"] if stored.exists() else {}
    everything = {path.stem: path for path in notebooks([])}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for path in notebooks(prefixes):
            used = pool.apply(run, (path,))
            made_with = versions()
            about = {"commit": made_with["commit"], "load": os.getloadavg()[0]}
            known[path.stem] = {**used, **about}
            print(path.stem, used, flush=True)
            content = {
                "command": "python book/results/make_chapter_times.py",
                "hardware": {k: made_with[k] for k in ("processor", "cores")},
                "versions": {
                    "python": made_with["python"],
                    **made_with["packages"],
                },
                "surroundings": SURROUNDINGS,
                "running": {k: known[k] for k in sorted(known) if k in everything},
                "rates": RATES,
                "reading": {
                    name: reading(nbformat.read(path, as_version=4))
                    for name, path in sorted(everything.items())
                },
            }
            write("chapter_times", content)


if __name__ == "__main__":
    main(sys.argv[1:])
