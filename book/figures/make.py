"""Draw the pictures of the README and of the book's first page.

python book/figures/make.py          the house and the scene
python book/figures/make.py RUN      and two validation scenes as the run in that folder drew them
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from mlore_edu.data.dollhouse import scene
from mlore_edu.pictures import to_rgb
from mlore_edu.plots import OKABE_ITO, show_grid, use_style

HERE = Path(__file__).parent
TASKS = ("semseg", "human_parts", "saliency", "normals", "depth", "edge")
WORDS = {"semseg": "classes", "human_parts": "human\nparts", "edge": "boundaries"}
SEED = 23


def labels(seed: int, size: int) -> dict[str, np.ndarray]:
    """Image and six labels of one scene, ready to draw."""
    shown = scene(seed, size, "full")
    return {key: getattr(shown, key) for key in ("image", *TASKS)}


def draw_scene() -> None:
    """One image and its six answers, for the README."""
    figure = show_grid([labels(SEED, 256)], width=14)
    figure.savefig(
        HERE / "scene.png", dpi=128, bbox_inches="tight"
    )  # one pixel of the page for each of the scene


def draw_house() -> None:
    """The way of the data through every model of the book, with the chapters that build each part."""
    figure, axis = plt.subplots(figsize=(9.5, 4.3))
    axis.set(xlim=(0, 19), ylim=(0, 8.6))
    axis.axis("off")
    drawn = labels(SEED, 192)
    place(axis, drawn["image"], 0.2, 3.3, 2.4)
    axis.text(1.4, 5.9, "image", ha="center")
    box(
        axis,
        3.5,
        2.6,
        2.5,
        3.8,
        "Backbone",
        "ViT · Swin\nHRNet · DINO",
        "chapter 3",
        OKABE_ITO[0],
    )
    for level in range(4):
        axis.add_patch(
            FancyBboxPatch(
                (6.75, 2.75 + 0.95 * level),
                0.7,
                0.65,
                boxstyle="round,pad=0.02",
                fc="#cfe3f1",
                ec="grey",
            )
        )
    axis.text(7.1, 6.75, "four maps", ha="center")
    box(
        *(axis, 8.3, 1.2, 4.3, 6.6, "Decoder"),
        "baseline (3)\nmixture of experts (4)\nMLoRE (5–9)\nTaskExpert (10–11)\nTIF (12–14)\nyour own (20)",
        "chapters 3–14, 20",
        OKABE_ITO[3],
    )
    box(
        axis,
        13.4,
        2.6,
        2.1,
        3.8,
        "Heads",
        "one\nper task",
        "chapter 3",
        OKABE_ITO[2],
    )
    for index, task in enumerate(TASKS):
        place(axis, to_rgb(task, drawn[task]), 16.4, 7.15 - 1.37 * index, 1.25)
        axis.text(
            17.8,
            7.75 - 1.37 * index,
            WORDS.get(task, task),
            va="center",
            fontsize=9,
        )
    for start, end in (
        (2.7, 3.4),
        (6.05, 6.65),
        (7.6, 8.2),
        (12.65, 13.3),
        (15.6, 16.3),
    ):
        axis.add_patch(
            FancyArrowPatch(
                (start, 4.5),
                (end, 4.5),
                arrowstyle="-|>",
                mutation_scale=14,
                color="#444444",
            )
        )
    axis.text(
        8.2,
        0.35,
        "measured in chapters 2 and 17 · taken to full scale in 15 and 16 · looked into in 18 · on your own images in 19",
        ha="center",
        style="italic",
        fontsize=8.5,
    )
    figure.savefig(HERE / "house.png", dpi=110)


def draw_predictions(run: Path) -> None:
    """Two pictures of a run's folder, one above the other."""
    pictures = [
        Image.open(path) for path in sorted((run / "pictures").glob("*.png"))[:2]
    ]
    page = Image.new(
        "RGB", (pictures[0].width, sum(p.height for p in pictures)), "white"
    )
    for place_of, picture in enumerate(pictures):
        page.paste(picture, (0, place_of * picture.height))
    page.save(HERE / "predictions.png")


def box(axis, x, y, width, height, title, text, chapters, colour) -> None:
    """A rounded box with a title, a few words and its chapters."""
    axis.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0.05,rounding_size=0.25",
            fc="white",
            ec=colour,
            lw=2,
        )
    )
    axis.text(x + width / 2, y + height - 0.5, title, ha="center", weight="bold")
    axis.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        linespacing=1.5,
    )
    axis.text(
        x + width / 2, y + 0.35, chapters, ha="center", color=colour, fontsize=9
    )


def place(axis, picture, x, y, side) -> None:
    """A picture at (x, y), its lower left corner."""
    axis.imshow(
        picture,
        extent=(x, x + side, y, y + side),
        aspect="auto",
        zorder=2,
        interpolation="antialiased",
    )


if __name__ == "__main__":
    use_style()
    draw_scene()
    draw_house()
    for run in sys.argv[1:]:
        draw_predictions(Path(run))
