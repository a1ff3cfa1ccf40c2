"""The built book's pages, for the tests that read its files and those that open it in a browser."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = ["index", *re.findall(r"- file: (\S+)", (ROOT / "book" / "_toc.yml").read_text())]
CHAPTERS = [page for page in PAGES if re.match(r"part\d_\w+/\d\d_", page)]  # not the parts' summaries


class Page(HTMLParser):
    """What a page consists of: ids, links, pictures, next and previous, numbers of figures and equations."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.images, self.tables = [], [], [], []
        self.neighbours = {}
        self.figures = self.equations = self.captions = self.equation_numbers = 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)
        if tag == "link" and attributes.get("rel") in ("prev", "next"):
            self.neighbours[attributes["rel"]] = attributes["href"]
        self.figures += tag == "figure"
        self.equations += tag == "div" and "math" in classes
        self.captions += tag == "span" and "caption-number" in classes
        self.equation_numbers += tag == "span" and "eqno" in classes


@cache
def page(path):
    """Read a file of the built book once."""
    assert path.exists(), f"{path} is missing: run `make book` first"
    return Page(path.read_text())
