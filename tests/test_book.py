"""The built book, as files. `make book-check` builds it first; what a browser makes of it: `test_book_browser.py`."""

import re
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import pytest
from book_pages import CHAPTERS, HTML, PAGES, page
from PIL import Image

pytestmark = pytest.mark.book
FILES = [HTML / f"{name}.html" for name in PAGES]


def problems_of_link(path, href):
    """Say what is wrong with an internal link; links to elsewhere are not followed."""
    target = urlsplit(href)
    if target.scheme or target.netloc:
        return None
    file = (path.parent / unquote(target.path)).resolve() if target.path else path
    if not file.exists():
        return f"{href}: no such file"
    if target.fragment and file.suffix == ".html" and unquote(target.fragment) not in page(file).ids:
        return f"{href}: no such place"
    return None


@pytest.mark.parametrize("path", FILES, ids=PAGES)
def test_the_page_exists_and_its_pictures_are_there_with_alt_text(path):
    assert "problematic" not in path.read_text()
    for image in page(path).images:
        assert len(image.get("alt", "")) > 20, image
        assert (path.parent / image["src"]).resolve().exists(), image


@pytest.mark.parametrize("path", FILES, ids=PAGES)
def test_every_link_within_the_book_leads_to_a_place_that_exists(path):
    assert len(page(path).links) > len(PAGES)  # the contents stand beside every page
    assert [found for href in page(path).links if (found := problems_of_link(path, href))] == []


@pytest.mark.parametrize("path", FILES, ids=PAGES)
def test_no_id_occurs_twice_or_its_links_would_lead_to_the_wrong_place(path):
    ids = page(path).ids
    assert sorted(ids) == sorted(set(ids))


def test_next_and_previous_follow_the_contents_across_the_parts():
    follows = [(one, other) for one, other in pairwise(FILES)]
    assert [(one, (one.parent / page(one).neighbours["next"]).resolve()) for one, _ in follows] == follows
    assert [((other.parent / page(other).neighbours["prev"]).resolve(), other) for _, other in follows] == follows
    assert "prev" not in page(FILES[0]).neighbours
    assert "next" not in page(FILES[-1]).neighbours


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_numbers_its_figures_exercises_and_equations(name):
    chapter = page(HTML / f"{name}.html")
    exercises = sum(bool(re.fullmatch(r"ex-\d\d-(?!.*content$)[\w-]+", found)) for found in chapter.ids)
    assert chapter.figures >= 3
    assert chapter.captions == chapter.figures + exercises
    assert chapter.equation_numbers == chapter.equations


def test_no_picture_is_transparent_or_it_could_not_be_read_on_a_dark_page():
    pictures = sorted((HTML / "_images").glob("*.png"))
    assert len(pictures) > 3 * len(CHAPTERS)
    for picture in pictures:
        with Image.open(picture) as image:
            opaque = image.mode in ("RGB", "L") or image.convert("RGBA").getchannel("A").getextrema()[0] == 255
        assert opaque, picture
