"""A page in the browser: give it a photograph, and see every answer over it (chapter 19)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from mlore_edu.errors import UserError
from mlore_edu.images import read_image
from mlore_edu.model import MultiTaskModel
from mlore_edu.pictures import overlay, palette
from mlore_edu.prediction import predict, tasks_of
from mlore_edu.tasks import Task

LONGEST = 1024
"""Side in pixels that a photograph is shrunk to before it is shown: a browser has no use for more."""


def page(model: MultiTaskModel) -> Any:
    """Build the page for a model.

    Parameters
    ----------
    model
        Built by :func:`~mlore_edu.model.build_model`, or loaded.

    Returns
    -------
    gradio.Blocks
        ``page(model).launch()`` serves it.

    Raises
    ------
    UserError
        If the package ``gradio`` is not installed, or the model does not know its tasks.
    """
    try:
        gr: Any = import_module("gradio")
    except ImportError as error:
        raise UserError("The page needs the package gradio; install it with 'pip install gradio'.") from error
    tasks = tasks_of(model)

    def answer(path: str | None) -> list[Any]:
        if path is None:
            return [None for _ in tasks]
        try:
            photo = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        photo.thumbnail((LONGEST, LONGEST))
        image, answers = np.asarray(photo), predict(model, photo)
        shown: list[Any] = []
        for task in tasks:
            label = answers[task.name].numpy()
            if task.metric == "mIoU":  # names appear where the mouse is
                present = [index for index in np.unique(label) if task.name == "semseg" or index]
                shown.append((image, [(label == index, task.class_names[index]) for index in present]))
            else:
                shown.append(overlay(image, task.name, label))
        return shown

    def output(task: Task) -> Any:
        frame: dict[str, Any] = {"label": task.title, "elem_id": task.name, "min_width": 320, "format": "png"}
        if task.metric != "mIoU":
            return gr.Image(**frame, buttons=["fullscreen", "download"])  # none to share: nothing leaves this machine
        colours = ["#" + bytes(colour).hex() for colour in palette(task.name, task.channels)]
        return gr.AnnotatedImage(**frame, buttons=["fullscreen"], color_map=dict(zip(task.class_names, colours)))

    with gr.Blocks(title="mlore-edu", analytics_enabled=False) as blocks:
        gr.Markdown(f"# All answers from one image\n{len(tasks)} tasks of {tasks.name}, one pass of the model.")
        photo = gr.Image(label="Photograph", type="filepath", elem_id="photograph", sources=["upload", "clipboard"])
        with gr.Row():
            outputs = [output(task) for task in tasks]
        photo.change(answer, photo, outputs)
    return blocks
