"""The built book, as files and as a reader's browser shows it. `make book-check` builds it first."""

import functools
import re
import shutil
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = ["index", *re.findall(r"- file: (\S+)", (ROOT / "book" / "_toc.yml").read_text())]
CHAPTERS = [page for page in PAGES if re.match(r"part\d_\w+/\d\d_", page)]  # not the parts' summaries
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Images(HTMLParser):
    """Collects the attributes of every picture in a page's article."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


@pytest.mark.book
@pytest.mark.parametrize("page", PAGES)
def test_the_page_exists_and_its_pictures_are_there_with_alt_text(page):
    path = HTML / f"{page}.html"
    assert path.exists(), "run `make book` first"
    html = path.read_text()
    assert "problematic" not in html
    for image in Images(html).found:
        assert len(image.get("alt", "")) > 20, image
        assert (path.parent / image["src"]).resolve().exists(), image


@pytest.mark.book
@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_shows_at_least_three_figures(page):
    assert len(Images((HTML / f"{page}.html").read_text()).found) >= 3


@pytest.fixture(scope="module")
def site():
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, site):
    """Open a page at a width; everything it asks for must come from the book itself."""
    opened = []

    def open_page(page, width=1280):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        opened.append(tab)
        tab.failures = []
        tab.on("requestfailed", lambda request: tab.failures.append(request.url))
        tab.on("request", lambda request: request.url.startswith((site, "data:")) or tab.failures.append(request.url))
        tab.goto(f"{site}/{page}.html", wait_until="load")
        return tab

    yield open_page
    for tab in opened:
        tab.close()


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_and_shows_every_picture_without_the_internet(visit, page, width):
    tab = visit(page, width)
    tab.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    tab.wait_for_function("[...document.querySelectorAll('article img')].every(image => image.complete)")
    assert tab.evaluate("[...document.querySelectorAll('article img')].every(image => image.naturalWidth > 0)")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert tab.failures == []


@pytest.mark.browser
@pytest.mark.parametrize("page", CHAPTERS)
def test_equations_are_typeset(visit, page):
    tab = visit(page)
    tab.wait_for_selector("mjx-container", timeout=20_000)
    tab.wait_for_function("!document.querySelector('.math:not(:has(mjx-container))')", timeout=20_000)
    assert tab.locator("mjx-merror").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("page", CHAPTERS)
def test_solutions_are_closed_and_open_on_a_click(visit, page):
    tab = visit(page)
    solution = tab.locator(".solution.admonition").first
    code = solution.locator("div.cell").first
    assert tab.locator(".solution.admonition").count() >= 3
    assert not code.is_visible()
    solution.locator(".toggle-button").first.click()
    code.wait_for(state="visible", timeout=5_000)
