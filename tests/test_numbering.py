"""Figures, equations and chapters are numbered by the book, and the prose speaks of them by those numbers."""

import re
from collections import Counter

import pytest
from test_notebooks import APPENDICES, BOOK, CHAPTERS, SUMMARIES, read, text

WRITTEN = [*CHAPTERS, *SUMMARIES, *APPENDICES]
PAGES = [*BOOK.glob("*.md"), *BOOK.glob("appendix/**/*.md")]


def figures(notebook):
    """Names of the figures that a notebook shows."""
    shown = [cell for cell in notebook["code"] if any("image/png" in o.get("data", {}) for o in cell["outputs"])]
    return [cell["metadata"]["mystnb"]["figure"]["name"] for cell in shown]


def prose(path):
    """What a page says, in one line, so that a line break is a space."""
    return re.sub(r"\s+", " ", text(read(path)) if path.suffix == ".ipynb" else path.read_text())


@pytest.mark.parametrize("path", [*CHAPTERS, *APPENDICES], ids=lambda path: path.stem)
def test_every_figure_is_spoken_of_by_its_number(path):
    named = re.findall(r"\{numref\}`(?:[^`<]*<)?([^`>]+)>?`", text(read(path)))
    assert [figure for figure in figures(read(path)) if figure not in named] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_every_displayed_equation_has_a_label_with_the_chapters_number(path):
    words = text(read(path))
    labels = re.findall(r"```\{math\}\n:label: (eq-\S+)\n", words)
    assert len(labels) == len(re.findall(r"```\{math\}", words))
    assert "$$" not in words
    if path in CHAPTERS:
        assert {label[:5] for label in labels} <= {f"eq-{path.stem[:2]}"}


def test_no_name_of_a_figure_or_an_equation_occurs_twice():
    names = [name for path in WRITTEN for name in figures(read(path))]
    names += [label for path in WRITTEN for label in re.findall(r":label: (\S+)", text(read(path)))]
    assert [name for name, times in Counter(names).items() if times > 1] == []


@pytest.mark.parametrize("path", [*WRITTEN, *PAGES], ids=lambda path: path.stem)
def test_no_number_of_ours_is_typed_by_hand_and_links_to_chapters_say_the_right_one(path):
    words = prose(path)
    # "Fig. 4" and "Eq. 4" are a paper's; ours have the chapter's number in front, and come from numref and eq
    assert re.findall(r"(?:Figs?\.|Figure|Eqs?\.|Equation) ?\(?\d+\.\d+", words) == []
    links = re.findall(r"\[[Cc]hapter (\d+)\]\([^)]*?(\d\d)_[^)]*\)", words)
    assert [link for link in links if int(link[0]) != int(link[1])] == []
