"""Photograph the page of `mlore-edu demo` in a browser, for chapter 19; needs gradio and Chromium.

python book/figures/make_demo.py
"""

import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import mlore_edu as me
from mlore_edu.data.dollhouse import scene
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS
from mlore_edu.demo import page

HERE = Path(__file__).parent
WINDOW = (1330, 900)


def main() -> None:
    model = me.from_pretrained(HERE.parent / "models" / "mlore")
    room = scene(VALIDATION_SEEDS, (300, 400), "easy").image
    blocks = page(model)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            sync_playwright() as playwright,
        ):
            Image.fromarray(room).save(Path(folder) / "room.png")
            chromium = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            tab = chromium.new_page(
                viewport={"width": WINDOW[0], "height": WINDOW[1]},
                color_scheme="light",
            )
            tab.goto(address)
            tab.locator("#photograph input[type=file]").set_input_files(
                Path(folder) / "room.png"
            )
            for name in model.configuration.tasks.names:
                tab.locator(f"#{name} img").first.wait_for(timeout=60_000)
            tab.wait_for_timeout(2000)
            tab.screenshot(path=Path(folder) / "shot.png", full_page=True)
            chromium.close()
            shot = Image.open(Path(folder) / "shot.png").convert("RGB")
            shot.thumbnail((900, 2000))
            shot.save(HERE / "demo.png", optimize=True)
    finally:
        blocks.close()


if __name__ == "__main__":
    main()
