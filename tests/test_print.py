"""`make pdf`: what it needs it says in one sentence, and the pages of its contents are those of the PDF."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[1] / "book" / "print" / "make_pdf.py"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def load(folder):
    """Load a copy of the script, so that it looks for the book in a folder of its own."""
    copy = folder / "book" / "print"
    shutil.copytree(SCRIPT.parent, copy)
    spec = importlib.util.spec_from_file_location("make_pdf", copy / "make_pdf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_the_book_it_says_what_to_do(tmp_path):
    shutil.copytree(SCRIPT.parent, tmp_path / "book" / "print")
    script = tmp_path / "book" / "print" / "make_pdf.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip() == "The HTML book is not there: run make book first."


def test_without_chromium_it_says_how_to_get_it(tmp_path, monkeypatch):
    make_pdf = load(tmp_path)
    first = make_pdf.HTML / make_pdf.FIRST
    first.parent.mkdir(parents=True)
    first.touch()
    monkeypatch.setattr(make_pdf, "shutil", SimpleNamespace(which=lambda name: str(tmp_path / "no-such-browser")))
    with pytest.raises(SystemExit, match=r"apt install chromium.*playwright install chromium"):
        make_pdf.main()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_small_book_is_printed_with_contents_that_name_the_right_pages(tmp_path):
    from playwright.sync_api import sync_playwright

    make_pdf = load(tmp_path)
    nav = (
        '<nav class="bd-links"><a class="reference internal" href="{up}index.html">Small</a><p class="caption">Part</p>'
    )
    nav += "".join(f'<a class="reference internal" href="{{up}}part1_foundations/{name}.html">x</a>' for name in "ab")
    pages = {"index": "Small", "part1_foundations/a": "One", "part1_foundations/b": "Two"}
    script = "<script>MathJax = {startup: {promise: null}, typesetPromise: () => null}</script>"
    for name, title in pages.items():
        up = "../" if "/" in name else ""
        body = f'<section id="x"><h1>{title}</h1><a href="{up}part1_foundations/b.html#x">b</a></section>'
        html = f'{script}{nav.format(up=up)}</nav><article class="bd-article">{body}</article>'
        path = make_pdf.HTML / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html)
    make_pdf.FIRST = "part1_foundations/a.html"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        make_pdf.print_book(chromium)
        chromium.close()
    pdf = make_pdf.PDF.read_bytes()
    places = make_pdf.page_numbers(pdf)
    # cover, contents, index, part, a, b
    assert {name: places[name] for name in ("index", "part1_foundations-a", "part1_foundations-b")} == {
        "index": 3,
        "part1_foundations-a": 5,
        "part1_foundations-b": 6,
    }
    assert places["part1_foundations-b--x"] == 6
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 6
