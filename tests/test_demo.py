"""The page in a browser: a photograph goes in, every task's answer comes out, and nothing leaves the machine."""

import shutil
import sys

import pytest
from PIL import Image
from using_fakes import room, tiny_model, write_run

from mlore_edu import cli, demo
from mlore_edu.errors import UserError
from mlore_edu.tasks import DOLLHOUSE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_GRADIO = "the page needs the extra demo (package gradio)"


@pytest.fixture
def answer():
    """The function behind the page, and its outputs."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    blocks = demo.page(tiny_model())
    (function,) = blocks.fns.values()
    return function.fn


@pytest.mark.slow
def test_every_task_gets_its_picture_with_the_names_of_its_classes(answer, tmp_path):
    Image.fromarray(room()).save(tmp_path / "room.png")
    shown = dict(zip(DOLLHOUSE.names, answer(str(tmp_path / "room.png")), strict=True))
    image, masks = shown["semseg"]
    assert image.shape == (96, 128, 3)
    assert sum(mask.sum() for mask, _ in masks) == 96 * 128  # every pixel has one class
    assert {name for _, name in masks} <= set(DOLLHOUSE["semseg"].class_names)
    assert "background" not in {name for _, name in shown["human_parts"][1]}
    assert all(shown[name].shape == (96, 128, 3) for name in ("saliency", "normals", "depth", "edge"))


@pytest.mark.slow
def test_a_large_photograph_is_shown_small_and_no_photograph_shows_nothing(answer, tmp_path):
    Image.new("RGB", (2048, 512), "teal").save(tmp_path / "wide.png")
    assert answer(str(tmp_path / "wide.png"))[3].shape == (256, 1024, 3)
    assert answer(None) == [None] * len(DOLLHOUSE)


@pytest.mark.slow
def test_a_file_that_is_no_image_is_one_sentence_on_the_page(answer, tmp_path):
    import gradio

    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(gradio.Error, match="is no image that Pillow can read"):
        answer(str(tmp_path / "text.png"))


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="install it with 'pip install gradio'"):
        demo.page(tiny_model())
    run, _ = write_run(tmp_path / "run")
    assert cli.main(["demo", str(run)]) == 2
    assert capsys.readouterr().err.startswith("mlore-edu: The page needs the package gradio; install it with")


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    import socket

    run, _ = write_run(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert cli.main(["demo", str(run), "--port", str(taken.getsockname()[1])]) == 2
    assert capsys.readouterr().err.rstrip().endswith("choose another with --port.")


@pytest.mark.browser
def test_in_chromium_a_photograph_gives_every_answer_and_only_this_machine_is_asked(tmp_path):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    Image.fromarray(room()).save(tmp_path / "room.jpg")
    page = demo.page(tiny_model())
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    foreign = []
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = chromium.new_page(viewport={"width": 1280, "height": 900})
            local = (address, "data:", "blob:")
            tab.on("request", lambda request: request.url.startswith(local) or foreign.append(request.url))
            tab.goto(address)
            tab.locator("#photograph input[type=file]").set_input_files(tmp_path / "room.jpg")
            for task in DOLLHOUSE:
                picture = tab.locator(f"#{task.name} img").first
                picture.wait_for(timeout=60_000)
                size = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
                assert size == [128, 96]
                assert tab.locator(f"#{task.name}").get_by_text(task.title).count() >= 1
            chromium.close()
    finally:
        page.close()
    assert foreign == []
