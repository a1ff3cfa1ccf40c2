"""What a notebook says of its reading, running and hardware is what was counted in it and measured of it."""

import importlib
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parents[1] / "book"
NOTEBOOKS = [path for path in sorted(BOOK.glob("*/*.ipynb")) if path.stem != "all_tables"]  # a list, to look things up
LINE = re.compile(
    r"\*Time:\* (\d+) minutes of reading, (.+?) of running(?:, [^.]+)?\. "
    r"\*Hardware:\* two CPU cores, 4 GB of memory; no GPU, no download\."
)
SECONDS = {
    "ten seconds": (4, 15),
    "a quarter of a minute": (10, 24),
    "half a minute": (18, 48),
    "three quarters of a minute": (30, 65),
}
"""Words for a time on one core; they overlap, because another processor is not the one that was measured."""


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BOOK / "results"))
    try:
        return importlib.import_module("make_chapter_times")
    finally:
        sys.path.remove(str(BOOK / "results"))


@pytest.fixture(scope="module")
def record():
    return json.loads((BOOK / "results" / "chapter_times.json").read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_line_of_a_notebook_agrees_with_what_was_measured(path, script, record):
    notebook = nbformat.read(path, as_version=4)
    prose = " ".join(" ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    stated = LINE.findall(prose)
    assert len(stated) == 1, "needs one line '*Time:* 40 minutes of reading, half a minute of running. *Hardware:* …'"
    minutes, words = int(stated[0][0]), stated[0][1]
    assert minutes % 5 == 0
    assert abs(minutes - script.reading(notebook)["minutes"]) <= 4
    assert path.stem in record["running"], f"run: python book/results/make_chapter_times.py {path.stem}"
    used = record["running"][path.stem]
    assert SECONDS[words][0] <= used["cpu_seconds"] <= SECONDS[words][1]
    assert used["memory_mib"] < 3 * 1024  # the reader's browser and system want some, too


def test_reading_counts_what_a_reader_sees(script):
    seen = nbformat.v4.new_markdown_cell("Four *words* of [prose](somewhere/else.md) and {eq}`eq-1` $x^2$.")
    code = nbformat.v4.new_code_cell("x = 1\n\nprint(x)")
    code.outputs = [nbformat.v4.new_output("stream", text="two words 3.0\n")]
    folded = nbformat.v4.new_code_cell("y = 2", metadata={"tags": ["hide-input"]})
    folded.outputs = [nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "a figure"})]
    solution = nbformat.v4.new_code_cell("z = 3", metadata={"jupyter": {"source_hidden": True}})
    notebook = nbformat.v4.new_notebook(cells=[seen, code, folded, solution])
    assert script.reading(notebook) == {"words": 7, "lines": 2, "figures": 1, "minutes": 0}


def test_the_record_was_made_as_the_script_says(script, record):
    assert record["surroundings"] == script.SURROUNDINGS
    assert record["rates"] == script.RATES
    assert set(record["reading"]) >= set(record["running"])
