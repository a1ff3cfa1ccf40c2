"""Figures show what they are given, in the size of a page."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")

from mlore_edu import plots
from mlore_edu.tasks import DOLLHOUSE


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield
        plots.plt.close("all")


def rows():
    image = np.zeros((32, 48, 3), np.uint8)
    depth = np.full((1, 32, 48), 3.0)
    return [{"image": image, "depth": depth}, {"depth": depth}]


def test_the_style_is_opaque_and_distinguishable_by_colour_blind_readers():
    assert matplotlib.rcParams["figure.facecolor"] == "white"
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.OKABE_ITO)


def test_a_grid_has_a_column_per_key_and_leaves_missing_cells_empty():
    figure = plots.show_grid(rows(), ("label", "prediction"))
    axes = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["Image", "Depth"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["label", "prediction"]
    assert [len(axis.images) for axis in axes.flat] == [1, 1, 0, 1]
    assert not axes[1, 0].spines["top"].get_visible()


def test_long_titles_are_broken_into_lines_where_columns_are_narrow():
    row = {
        "image": np.zeros((8, 8, 3), np.uint8),
        **{name: np.zeros((8, 8)) for name in ("semseg", "saliency", "edge")},
    }
    wide = plots.show_grid([row], width=14)
    narrow = plots.show_grid([row], width=5)
    assert wide.axes[1].get_title() == "Semantic segmentation"
    assert narrow.axes[1].get_title() == "Semantic\nsegmentation"


def test_a_contact_sheet_fills_its_rows():
    figure = plots.show_images([np.zeros((8, 8, 3), np.uint8)] * 7, columns=5)
    assert [len(axis.images) for axis in figure.axes] == [1] * 7 + [0] * 3


def test_the_legend_names_the_classes_that_occur():
    figure = plots.show_grid(rows())
    plots.class_legend(figure, "semseg", np.array([[0, 14], [255, 2]]), DOLLHOUSE["semseg"].class_names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["wall", "ceiling", "person"]
