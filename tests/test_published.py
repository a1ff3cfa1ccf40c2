"""The papers' tables as the library holds them, and the baselines that a table of gains gives away.

What the printed numbers prove about the papers is in test_published_slips.py.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlore_edu import published
from mlore_edu.errors import UserError
from mlore_edu.metrics import implied_baselines, multitask_gain
from mlore_edu.tasks import NYUD_V2, PASCAL_CONTEXT

ROOT = Path(__file__).parents[1]
ALL = [published.table(*key) for key in published.tables()]
TASKS = PASCAL_CONTEXT.names


# --- the tables as data ------------------------------------------------------------------------------------------


def test_every_table_of_the_mlore_paper_and_its_supplement_is_there():
    expected = {(paper, n) for paper in ("mlore", "mlore_supplement") for n in range(1, 8)}
    assert expected | {("mlore_supplement", "figure 5")} <= set(published.tables())


def test_every_file_is_listed_and_goes_into_the_package():
    folder = ROOT / "mlore_edu" / "published"
    named = {f"{t.paper}_{'table' if isinstance(t.number, int) else ''}{t.number}.csv".replace(" ", "") for t in ALL}
    assert {path.name for path in folder.glob("*")} == named | {
        *("tables.csv", "columns.csv", "settings.csv", "ledger.csv", "claims.csv", "ours.csv")
    }
    assert '"published/*.csv"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("table", ALL, ids=lambda t: f"{t.paper} {t.number}")
def test_a_table_is_complete_typed_and_sourced(table):
    assert len(table.caption) > 20
    assert str(table.number).lower() in table.source.lower()
    names = [column.name for column in table.columns]
    assert all(list(row) == names for row in table.rows)
    for column in table.columns:
        kinds = {type(cell) for cell in table[column.name]} - {type(None)}
        assert kinds in ({str}, {int}, {float}), (column.name, kinds)
        assert (kinds == {float}) == (column.decimals > 0)
        if column.lower_is_better is not None:
            assert column.unit
            assert kinds <= {int, float}


def test_every_source_names_the_paper_and_the_table():
    for t in ALL:
        papers = {"taskexpert": "Ye and Xu, ICCV 2023", "tif": "Anonymous authors, ACM MM 2024"}
        paper = papers.get(t.paper, "Yang et al., CVPR 2024")
        assert re.match(rf"{paper}, (supplement, )?(Table|Figure) \d", t.source)


def test_metric_columns_bear_the_names_units_and_directions_of_the_tasks():
    for task in {task.name: task for tasks in (PASCAL_CONTEXT, NYUD_V2) for task in tasks}.values():
        columns = [column for t in ALL for column in t.columns if column.name == task.name]
        assert columns
        assert {(c.unit, c.lower_is_better) for c in columns} == {(task.unit, task.lower_is_better)}


def padded(text, decimals):
    """A printed cell with the zeros at its end that its column has and TIF's paper leaves out: 36.7, 392."""
    whole, _, digits = text.partition(".")
    return f"{whole}.{digits:0<{decimals}}" if decimals else text


def test_printed_text_and_numbers_are_the_same_digits():
    for table in ALL:
        kind = "table" if isinstance(table.number, int) else ""
        path = ROOT / "mlore_edu" / "published" / f"{table.paper}_{kind}{table.number}.csv".replace(" ", "")
        for line, row in zip(csv.DictReader(path.read_text().splitlines()), table.rows, strict=True):
            for column in table.columns:
                cell = row[column.name]
                text = line[column.name]
                decimals = column.decimals if table.paper == "tif" else 0
                assert text == "-" if cell is None else padded(text, decimals) == published._show(cell, column)


def test_a_missing_cell_is_none():
    assert published.table("mlore", 5).row(method="MLoRE")["publication"] is None
    assert published.table("mlore_supplement", 6).row(dataset="NYUD-v2", method="Baseline")["saliency"] is None


def test_a_row_goes_into_multitask_gain_as_it_is():
    table = published.table("mlore_supplement", 6)
    rows = [table.row(dataset="NYUD-v2", method=method) for method in ("MLoRE", "Baseline")]
    by_hand = [55.96 / 54.55 - 1, 1 - 0.5076 / 0.6043, 1 - 18.33 / 18.62, 78.43 / 75.21 - 1]
    assert multitask_gain(*rows, NYUD_V2) == pytest.approx(100 * sum(by_hand) / 4)


def test_text_is_laid_out_with_arrows_units_and_as_many_digits_as_printed():
    text = published.table("mlore", 2).format("setting", "normals", "delta_m", "parameters").splitlines()
    assert text[0] == "setting          normals ↓  delta_m ↑  parameters ↓"
    assert text[1] == "                         °          %             M"
    assert text[3] == "Baseline + MoE       13.57      -1.20           676"
    assert str(published.table("mlore", 2)).startswith("Yang et al., CVPR 2024, Table 2: Components")
    assert "–" in published.table("mlore", 5).format("method", "publication")


def test_a_table_without_units_has_no_empty_line():
    assert len(published.table("mlore_supplement", "figure 5").format("matrix", "task").splitlines()) == 41


def test_our_own_column_stands_beside_the_papers():
    table = published.table("mlore", 2)
    both = table.beside("parameters", [114.7, None, 213.2, 242.7, 259.1], decimals=1)
    assert [column.name for column in both.columns][-2:] == ["parameters", "parameters ours"]
    assert both["parameters ours"] == [114.7, None, 213.2, 242.7, 259.1]
    last = both.beside("flops", [1] * 5, label="recounted").format("setting", "flops recounted", "parameters ours")
    assert last.splitlines()[-1].split() == ["+", "SPE", "1", "259.1"]
    assert "parameters ours" not in table.rows[0]  # the printed table stays as it was


def test_a_table_can_be_asked_for_by_its_number_as_text():
    assert published.table("mlore", "5").number == 5


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (
            lambda: published.table("mlore", 8),
            "no table 8 of 'mlore'; choose one .*mlore: 1, 2, 3, 4, 5, 6, 7; mlore_s",
        ),
        (lambda: published.table("invpt", 1), "no table 1 of 'invpt'; choose"),
        (lambda: published.table("mlore", 2)["miou"], "Table 2 has no 'miou'; its columns are setting, semseg"),
        (lambda: published.table("mlore", 2).format("miou"), "has no 'miou'"),
        (lambda: published.table("mlore", 2).row(miou=1), "has no 'miou'"),
        (lambda: published.table("mlore", 2).row(setting="all"), r"0 rows .* \(setting: Baseline, Baseline \+ MoE"),
        (lambda: published.table("mlore", 5).row(backbone="ViT-L"), "7 rows have backbone='ViT-L'; choose"),
        (lambda: published.table("mlore", 2).beside("flops", [1.0]), "has 5 rows, not 1; give one"),
    ],
)
def test_asking_for_what_is_not_there_names_what_is(ask, sentence):
    with pytest.raises(UserError, match=sentence):
        ask()


# --- baselines behind a table of gains -----------------------------------------------------------------------------


def made_up(seed, rows=12, spread=0.03):
    """Single-task baselines, and models whose metrics lie around them, printed with two digits as in a paper."""
    rng = np.random.default_rng(seed)
    truth = dict(zip(TASKS, (79.0, 70.0, 86.0, 13.4, 72.8) * rng.uniform(0.9, 1.1, 5)))
    models = [
        {name: round(m * rng.uniform(1 - spread, 1 + spread), 2) for name, m in truth.items()} for _ in range(rows)
    ]
    return truth, models, [round(multitask_gain(model, truth, PASCAL_CONTEXT), 2) for model in models]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_baselines_that_made_the_gains_lie_in_the_ranges_found(seed):
    truth, models, gains = made_up(seed)
    found = implied_baselines(models, gains, PASCAL_CONTEXT, rounding=0.00501)
    assert found.slips == []
    for name in TASKS:
        low, high = found.ranges[name]
        assert low - 1e-6 <= truth[name] <= high + 1e-6
        assert low <= found.values[name] <= high
    assert np.abs(np.subtract(found.gains, gains)).max() < 0.0051
    again = [multitask_gain(model, found.values, PASCAL_CONTEXT) for model in models]
    assert found.gains == pytest.approx(again, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_slip_is_found(seed):
    _, models, gains = made_up(seed, rows=16)
    gains[5] += 0.2
    found = implied_baselines(models, gains, PASCAL_CONTEXT)
    assert found.slips == [5]
    assert found.gains[5] == pytest.approx(gains[5] - 0.2, abs=0.05)


def test_models_far_apart_tell_more_about_the_baselines_than_models_alike():
    widths = []
    for spread in (0.01, 0.1):
        _, models, gains = made_up(0, spread=spread)
        low, high = implied_baselines(models, gains, PASCAL_CONTEXT, rounding=0.00501).ranges["semseg"]
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_a_baseline_without_an_upper_limit_is_infinite():
    one = PASCAL_CONTEXT.subset("semseg")
    found = implied_baselines([{"semseg": 50.0}, {"semseg": 50.1}], [-100.0, -100.0], one)
    low, high = found.ranges["semseg"]
    assert high == math.inf
    assert low == pytest.approx(50.1 / 5e-5)


@pytest.mark.parametrize("rows", [3, 5])
def test_too_few_rows_are_one_clear_sentence(rows):
    _, models, gains = made_up(0, rows=rows)
    with pytest.raises(UserError, match=f"5 baselines cannot be told from {rows} rows.*give more rows"):
        implied_baselines(models, gains, PASCAL_CONTEXT)
