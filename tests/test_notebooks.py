"""What nbval cannot see: every chapter was run from top to bottom, and is what its script says.

The outputs themselves are checked by `make notebooks` (pytest --nbval), which runs every cell again.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import jupytext
import numpy as np
import pytest

BOOK = Path(__file__).parents[1] / "book"
CHAPTERS = sorted(BOOK.glob("part*/[0-9][0-9]_*.ipynb"))
SUMMARIES = sorted(BOOK.glob("part*/part*_in_five_minutes.ipynb"))
APPENDICES = sorted(BOOK.glob("appendix/*.ipynb"))


def read(path):
    notebook = json.loads(path.read_text())
    notebook["path"] = path
    notebook["code"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return notebook


@pytest.fixture(params=[*CHAPTERS, *SUMMARIES, *APPENDICES], ids=lambda path: path.stem)
def notebook(request):
    return read(request.param)


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return read(request.param)


def source(cell):
    return "".join(cell["source"])


def text(notebook):
    return "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def test_every_chapter_of_the_contents_has_a_notebook():
    named = re.findall(r"file: ((?:part|appendix)\S+)", (BOOK / "_toc.yml").read_text())
    written = [name for name in named if not (BOOK / f"{name}.md").exists()]  # some appendices are pages of text
    assert {BOOK / f"{name}.ipynb" for name in written} == {*CHAPTERS, *SUMMARIES, *APPENDICES}
    assert CHAPTERS


def test_it_was_run_from_top_to_bottom_in_a_fresh_kernel(notebook):
    assert [cell["execution_count"] for cell in notebook["code"]] == list(range(1, len(notebook["code"]) + 1))


def test_no_cell_failed(notebook):
    assert not [o for cell in notebook["code"] for o in cell["outputs"] if o["output_type"] == "error"]


def test_no_cell_is_hidden_from_nbval(notebook):
    allowed = {"nbval-ignore-output", "hide-input", "hide-output", "remove-input"}
    for cell in notebook["code"]:
        tags = set(cell["metadata"].get("tags", []))
        assert tags <= allowed, tags
        # only a widget, which prints nothing that could be compared, may leave its output unchecked
        assert "nbval-ignore-output" not in tags or "interact" in source(cell)


def test_it_equals_its_script(notebook):
    script = jupytext.read(notebook["path"].with_suffix(".py"))
    assert [cell.cell_type for cell in script.cells] == [cell["cell_type"] for cell in notebook["cells"]]
    for written, run in zip(script.cells, notebook["cells"], strict=True):
        assert written.source == source(run)


def test_every_figure_has_alt_text_and_a_caption(notebook):
    for cell in notebook["code"]:
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            shown = cell["metadata"].get("mystnb", {})
            assert len(shown.get("image", {}).get("alt", "")) > 20, source(cell)[:80]
            assert len(shown.get("figure", {}).get("caption", "")) > 20, source(cell)[:80]


def test_outputs_hold_no_times_paths_or_addresses(notebook):
    for cell in notebook["code"]:
        for output in cell["outputs"]:
            shown = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
            assert not re.search(
                r"0x[0-9a-f]{6,}|/(root|home|tmp|work|Users)/|\b\d+(\.\d+)? ?(ms|s/it|it/s)\b", shown
            ), shown


def test_cells_are_short_enough_to_read(notebook):
    lengths = [len([line for line in source(cell).splitlines() if line.strip()]) for cell in notebook["code"]]
    assert np.median(lengths) <= 8
    assert np.percentile(lengths, 90) <= 30


def test_it_has_the_anatomy_of_a_chapter(chapter):
    prose = text(chapter)
    for heading in ("What you will be able to do", "Exercises", "Takeaways"):
        assert re.search(rf"^## {heading}", prose, re.MULTILINE), heading
    assert re.search(r"minutes", prose)
    assert 3 <= len(re.findall(r"```\{exercise\}", prose)) <= 5
    assert len(re.findall(r"```\{exercise\}", prose)) == len(re.findall(r"```\{solution-start\}", prose))
    assert any("interact" in source(cell) for cell in chapter["code"])


def test_every_solution_is_run_and_found_correct(chapter):
    printed = "".join("".join(o.get("text", "")) for cell in chapter["code"] for o in cell["outputs"])
    asked = len(re.findall(r"```\{exercise\}", text(chapter)))
    assert len(set(re.findall(r"Exercise (\d+\.\d+): correct\.", printed))) == asked


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_a_summary_is_short_and_leads_to_every_chapter_of_its_part(path):
    summary = read(path)
    prose = text(summary)
    for heading in ("In one sentence", "In numbers", "Where to read more"):
        assert re.search(rf"^## {heading}$", prose, re.MULTILINE), heading
    assert len(prose.split()) <= 700
    assert len(summary["code"]) <= 10
    assert sum("assert" in source(cell) for cell in summary["code"]) >= 3
    figures = [o for cell in summary["code"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert 2 <= len(figures) <= 3
    chapters = {other.name for other in CHAPTERS if other.parent == path.parent}
    assert chapters <= set(re.findall(r"\]\((\S+\.ipynb)\)", prose))


def test_an_appendix_says_what_it_is_for_and_ends_with_what_it_gave():
    for path in APPENDICES:
        if path.stem == "all_tables":  # a list, for looking things up
            continue
        prose = text(read(path))
        assert re.search(r"^## What you will be able to do", prose, re.MULTILINE)
        assert re.search(r"^## Takeaways", prose, re.MULTILINE)
        assert "minutes" in prose


def test_headings_come_in_order(notebook):
    levels = [len(match) for match in re.findall(r"^(#+) ", text(notebook), re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(following - before <= 1 for before, following in pairwise(levels))
