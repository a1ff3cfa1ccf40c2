"""Run chapters in fresh kernels and save notebooks whose diffs stay small.

    make chapters               every chapter, the parts' summaries, the appendices
    make chapters ONLY=03       those whose file name begins so
    make chapters ONLY=part2    the summary of Part II

The `.py` (jupytext percent format) is what an author edits; the `.ipynb` beside it is made here: executed from top to
bottom, with what changes from run to run (times, widget state, versions) taken out.
"""

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}


def chapters(prefix: str = "") -> list[Path]:
    """Scripts in reading order: a part's chapters and its summary, part after part, then the appendices."""
    in_parts = [
        *BOOK.glob("part*/[0-9][0-9]_*.py"),
        *BOOK.glob("part*/part*_in_five_minutes.py"),
    ]
    scripts = [*sorted(in_parts), *sorted(BOOK.glob("appendix/*.py"))]
    return [path for path in scripts if path.name.startswith(prefix)]


def execute(script: Path) -> None:
    """Make the notebook beside `script`, with the outputs of a fresh kernel."""
    notebook = jupytext.read(script)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": script.parent}},
    ).execute()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    notebook.nbformat_minor = 5
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if WIDGET not in output.get("data", {})
            ]
    nbformat.validate(notebook)
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def main() -> None:
    todo = chapters(sys.argv[1] if len(sys.argv) > 1 else "")
    if not todo:
        sys.exit("No chapter's file name begins so.")
    for script in todo:
        start = time.perf_counter()
        execute(script)
        print(f"{script.relative_to(BOOK)}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
