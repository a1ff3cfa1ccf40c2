"""Print the built HTML book into one PDF, `_build/pdf/mlore-edu.pdf`, with headless Chromium: `make pdf`.

The pages are joined in the browser (`join.js`), so that figures, equations and numbers are those of the site, and links
lead from page to page of the PDF. Code that is folded away on the site, which draws figures, is left out. It is printed
twice: the first time tells on which page every entry of the contents stands, the second time says so.
"""

import functools
import io
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

try:
    from playwright.sync_api import Error, sync_playwright
    from pypdf import PdfReader
except ImportError as error:
    sys.exit(
        f'make pdf needs the package {error.name}: pip install -e ".[book,test]"'
    )

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "pdf" / "mlore-edu.pdf"
FIRST = "part1_foundations/01_five_answers_from_one_image.html"  # brings MathJax and the styles
NO_CHROMIUM = (
    "make pdf prints with Chromium, which was not found: install it (Debian, Ubuntu: apt install chromium), "
    "or without root: .venv/bin/playwright install chromium"
)
FOOTER = (
    '<div style="width: 100%; font-size: 8pt; text-align: center; font-family: sans-serif">'
    '<span class="pageNumber"></span></div>'
)
WRITE_PAGE_NUMBERS = """pages => {
    for (const link of document.querySelectorAll("nav.contents a"))
        link.querySelector("span").textContent = pages[link.getAttribute("href").slice(1)] ?? "";
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *arguments):
        """Say nothing."""


def page_numbers(pdf: bytes) -> dict[str, int]:
    """Say on which page, counted from 1, each named place of a PDF stands."""
    reader = PdfReader(io.BytesIO(pdf))
    return {
        name.removeprefix("/"): reader.get_destination_page_number(place) + 1
        for name, place in reader.named_destinations.items()
    }


def print_book(chromium) -> int:
    """Join the pages, print them twice, and return the number of named places."""
    serve = functools.partial(Quiet, directory=str(HTML))
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = chromium.new_page(viewport={"width": 658, "height": 1000})
    page.set_default_timeout(0)
    page.emulate_media(media="screen", color_scheme="light")
    page.goto(f"http://127.0.0.1:{server.server_port}/{FIRST}")
    page.evaluate((HERE / "join.js").read_text(), (HERE / "print.css").read_text())
    margin = {"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"}
    settings = {
        "format": "A4",
        "margin": margin,
        "print_background": True,
        "display_header_footer": True,
        "header_template": "<span></span>",
        "footer_template": FOOTER,
        "outline": True,
        "tagged": True,
    }
    places = page_numbers(page.pdf(**settings))
    page.evaluate(WRITE_PAGE_NUMBERS, places)
    PDF.parent.mkdir(parents=True, exist_ok=True)
    PDF.write_bytes(page.pdf(**settings))
    server.shutdown()
    return len(places)


def main() -> None:
    """Print the book, or say in one sentence what is missing."""
    if not (HTML / FIRST).exists():
        sys.exit("The HTML book is not there: run make book first.")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox"]
            )
        except Error:
            sys.exit(NO_CHROMIUM)
        print_book(chromium)
        chromium.close()
    print(f"{PDF.relative_to(ROOT)}: {PDF.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
