"""The built book as a reader's browser shows it: wide and narrow, light and dark, by mouse and by keyboard."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from book_pages import CHAPTERS, HTML, PAGES

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHECKS = (Path(__file__).parent / "page_checks.js").read_text()
CHECK = f"name => {{ {CHECKS}; return {{contrast, headings, names, solutions, structure, width}}[name](); }}"
TYPESET = "!document.querySelector('.math:not(:has(mjx-container))')"
PICTURES = "[...document.querySelectorAll('article img')].every(image => image.complete)"
OPEN_ALL = """() => {
    document.querySelectorAll("details").forEach(fold => fold.open = true);
    document.querySelectorAll(".toggle-hidden .toggle-button").forEach(button => button.click());
}"""


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


@pytest.fixture(scope="module")
def window(browser):
    """One window for all tests, so that what the pages share is fetched once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context
    context.close()


def open_page(window, site, page):
    """Open a page and note what goes wrong, among it whatever is not asked of the book itself."""
    tab = window.new_page()
    tab.failures = []
    tab.on("requestfailed", lambda request: tab.failures.append(request.url))
    tab.on("request", lambda request: request.url.startswith((site, "data:")) or tab.failures.append(request.url))
    tab.on("response", lambda response: response.status < 400 or tab.failures.append(response.url))
    tab.on("pageerror", lambda error: tab.failures.append(str(error)))
    tab.goto(f"{site}/{page}", wait_until="load")
    return tab


def settled_width(tab):
    """Say what is wrong with the page's width once the theme, which takes its time, has seen which boxes scroll."""
    for _ in range(50):
        wrong = tab.evaluate(CHECK, "width")
        if not wrong:
            break
        tab.wait_for_timeout(200)
    return wrong


@pytest.fixture(scope="module", params=PAGES)
def seen(request, window, site):
    """Everything that one visit to a page finds, as name of the check → what is wrong."""
    tab = open_page(window, site, f"{request.param}.html")
    tab.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    tab.wait_for_function(PICTURES)
    tab.wait_for_function(TYPESET, timeout=60_000)
    found = {"solutions": tab.evaluate(CHECK, "solutions")}
    tab.evaluate(OPEN_ALL)
    found[1280] = settled_width(tab)
    tab.wait_for_timeout(300)  # the solutions fade in
    for check in ("headings", "names", "structure"):
        found[check] = tab.evaluate(CHECK, check)
    for theme in ("light", "dark"):
        tab.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        found[theme] = tab.evaluate(CHECK, "contrast")
    tab.set_viewport_size({"width": 390, "height": 900})
    found[390] = settled_width(tab)
    found["failures"] = tab.failures
    tab.close()
    return found


def test_the_page_fits_a_desktop_and_a_phone(seen):
    assert seen[1280] == []
    assert seen[390] == []


def test_text_and_code_can_be_read_on_a_light_and_on_a_dark_page(seen):
    assert seen["light"] == []
    assert seen["dark"] == []


def test_headings_names_tables_pictures_and_mathematics_are_in_order(seen):
    assert seen["headings"] == []
    assert seen["names"] == []
    assert seen["structure"] == []


def test_solutions_are_closed_and_named_after_their_exercise(seen):
    assert seen["solutions"] == []


def test_the_page_asks_nothing_of_the_internet_and_no_script_fails(seen):
    assert seen["failures"] == []


def test_a_solution_opens_and_closes_by_click_and_by_keyboard_with_the_focus_in_sight(window, site):
    tab = open_page(window, site, f"{CHAPTERS[4]}.html")
    solution = tab.locator(".solution.admonition").nth(1)
    button, code = solution.locator(".toggle-button").first, solution.locator("div.cell").first
    button.focus()
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Tab")  # back again, as someone arrives who moves with the keyboard
    assert button.evaluate("button => button === document.activeElement")
    assert button.evaluate("button => parseFloat(getComputedStyle(button).outlineWidth)") >= 2
    assert button.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    for press, state in (("Enter", "visible"), ("Space", "hidden"), ("Enter", "visible")):
        tab.keyboard.press(press)
        code.wait_for(state=state, timeout=5_000)
        assert button.get_attribute("aria-expanded") == str(state == "visible").lower()
    button.click()
    code.wait_for(state="hidden", timeout=5_000)
    tab.close()


def test_the_first_tab_skips_to_the_text_and_the_page_is_dark_for_who_wants_it_dark(browser, site):
    tab = browser.new_page(color_scheme="dark")
    tab.goto(f"{site}/{CHAPTERS[0]}.html", wait_until="load")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.keyboard.press("Tab")
    assert (
        tab.evaluate("document.activeElement.closest('#pst-skip-link, a').textContent.trim()") == "Skip to main content"
    )
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#main-content"
    tab.close()


@pytest.mark.parametrize(
    ("word", "page"),
    [("archimedes", "03_one_encoder"), ("hopfield", "13_self_feature"), ("torchrun", "16_training")],
)
def test_the_search_finds_the_page_of_a_word_without_the_internet(window, site, word, page):
    tab = open_page(window, site, f"search.html?q={word}")
    first = tab.locator("#search-results ul.search li a").first
    first.wait_for(timeout=20_000)
    assert page in first.get_attribute("href")
    assert tab.failures == []
    tab.close()
