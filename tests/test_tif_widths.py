"""The closed form behind TIF's widths counts what the library builds; the record is what the script finds."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlore_edu as me
from mlore_edu import complexity, published
from mlore_edu.decoders.base import MapShape
from mlore_edu.decoders.tif import WIDTHS, TIFDecoder

RESULTS = Path(__file__).parents[1] / "book" / "results"
RECORD = json.loads((RESULTS / "tif_widths.json").read_text())
ROW_OPTIONS = {
    "full": {},
    "self": {"diffusion": "none"},
    "cross": {"diffusion": "none", "distillation": "cross"},
}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RESULTS))
    try:
        import make_tif_widths

        return make_tif_widths
    finally:
        sys.path.remove(str(RESULTS))


def reading(size="448 × 576", unit="1e9", question="full"):
    (found,) = (
        its for its in RECORD["readings"] if (its["size"], its["unit"], its["question"]) == (size, unit, question)
    )
    return found


# --- the closed form -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "widths", "row", "size"),
    [
        ("hrnet18", (28, 68), "full", (448, 576)),
        ("hrnet18", (8, 12), "cross", (480, 640)),
        ("swin_tiny", (88, 96), "full", (448, 576)),
        ("swin_tiny", (88, 96), "self", (448, 576)),
        ("swin_tiny", (88, 96), "cross", (448, 576)),
        ("swin_tiny", (52, 36), "full", (480, 640)),
        ("swin_large", (100, 120), "full", (448, 576)),
        ("swin_large", (7, 400), "self", (448, 576)),
        ("vit_base", (200, 200), "full", (448, 576)),
        ("vit_base", (16, 33), "full", (480, 640)),
    ],
)
def test_the_closed_form_is_what_the_library_counts_of_a_built_model(script, backbone, widths, row, size):
    """To the last parameter and the last multiply-accumulate."""
    high, low = widths
    options = {"channels": high, "high_width": high, "low_width": low, **ROW_OPTIONS[row]}
    with torch.device("meta"):
        model = me.build_model(f"tif_{backbone}", me.NYUD_V2, size, **options)
    counted = complexity.count(model, size)
    assert script.costs(backbone, high, low, size=size)[row] == (counted.parameters, counted.macs)


@settings(max_examples=15, deadline=None)
@given(
    high=st.integers(1, 12),
    low=st.integers(1, 12),
    ratio=st.sampled_from([1, 2, 4]),
    row=st.sampled_from([*ROW_OPTIONS]),
)
def test_the_closed_form_has_the_decoders_parameters_at_any_widths(script, high, low, ratio, row):
    maps = [MapShape(c, 32 >> i, 48 >> i) for i, c in enumerate((18, 36, 72, 144))]
    options = {"high_width": high, "low_width": low, "ffn_ratio": ratio, **ROW_OPTIONS[row]}
    decoder = TIFDecoder(me.NYUD_V2, maps, high, **options)
    structure = script.Structure(ffn_ratio=ratio)
    rest = script.encoder("hrnet18", script.SIZE)[1].parameters + script.heads(high, 1, structure).parameters
    expected = script.costs("hrnet18", high, low, structure)[row].parameters - rest
    assert sum(p.numel() for p in decoder.parameters()) == expected


def test_each_open_detail_costs_what_its_layer_would(script):
    """Weights of one detail at a time, against the library's structure, by hand for T = 4, high 20, low 30."""

    def change(**detail):
        costs = [script.costs("hrnet18", 20, 30, script.Structure(**its))["full"] for its in ({}, detail)]
        return costs[1].parameters - costs[0].parameters, costs[1].macs - costs[0].macs

    n = [112 * 144, 56 * 72, 28 * 36, 14 * 18]
    squares = [20**2, 20**2, 30**2, 30**2]
    assert change(first=1) == (-16 * sum(squares), -16 * sum(s * m for s, m in zip(squares, n)))
    assert change(second=1) == (-8 * sum(squares), -8 * sum(s * m for s, m in zip(squares, n)))
    assert change(to_tasks=1) == (-32 * sum(squares), -32 * sum(s * m for s, m in zip(squares, n)))
    assert change(projection=True) == (4 * 2 * (900 + 30), 4 * 900 * (n[2] + n[3]))
    assert change(ffn_at_full_size=True) == (0, 4 * 4 * 400 * (n[0] + n[1] - 2 * n[2]))
    assert change(concatenated=False) == (-4 * 9 * 400 * 2, -4 * 9 * 400 * (n[0] + n[1]))
    assert change(join=1) == (-4 * 8 * 800 * 2, -4 * 8 * 800 * (n[0] + n[1]))
    assert change(fuse=1) == (-4 * 8 * 100 * 20, -4 * 8 * 100 * 20 * n[0])
    assert change(head=False) == (-4 * (9 * 400 + 3 * 20), -4 * 9 * 400 * n[0])


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_published_numbers_are_those_of_tables_3_4_8_and_10(script):
    row = published.table("tif", 3).row(method="TIF", backbone="Swin-T")
    assert script.ROWS["swin_tiny"]["full"] == (row["parameters"], row["flops"]) == (32.91, 76.33)
    assert script.ROWS["swin_tiny"]["self"] == (31.78, 62.49)
    assert script.ROWS["swin_tiny"]["cross"] == (31.56, 62.89)
    assert script.ROWS["hrnet18"] == {"full": (5.27, 16.6)}
    assert script.ROWS["swin_large"] == {"full": (204.19, 274.27)}
    assert script.ROWS["vit_base"] == {"full": (124, None)}
    assert RECORD["published"] == json.loads(json.dumps(script.ROWS))


def test_a_search_one_by_one_finds_the_recorded_pairs_of_swin_t(script):
    """Plain loops over pairs near the band, against the search of the whole grid at once."""
    found = []
    for high, low in itertools.product(range(80, 105, 4), range(40, 113, 4)):
        costs = script.costs("swin_tiny", high, low)
        if all(
            abs(ours / unit / theirs - 1) <= 0.03
            for row, published_row in script.ROWS["swin_tiny"].items()
            for ours, theirs, unit in zip(costs[row], published_row, (1e6, 1e9))
        ):
            found.append((high, low))
    of_record = RECORD["pairs"]["swin_tiny"]
    assert found == [(high, low) for high, first, last in of_record["bands"] for low in range(first, last + 1, 4)]
    assert len(found) == of_record["found"] == 10


def test_the_librarys_widths_are_in_the_recorded_set_and_within_three_percent(script):
    for backbone, of_library in RECORD["library"].items():
        assert {name: of_library[name] for name in WIDTHS[backbone]} == WIDTHS[backbone]
        assert of_library["error"] == max(row["error"] for row in of_library["rows"].values()) < 3
        assert any(
            high == of_library["high_width"] and first <= of_library["low_width"] <= last
            for high, first, last in RECORD["pairs"][backbone]["bands"]
        )


def test_bands_of_pairs_have_no_gaps(script):
    """The number of pairs found is the number between the ends of the bands."""
    for its in RECORD["pairs"].values():
        assert its["found"] == sum((last - first) // 4 + 1 for _, first, last in its["bands"])


def test_table_8_leaves_one_low_width_for_swin_t(script):
    assert RECORD["table8"] == {"difference": 0.22, "widths": [96]} == script.table8()
    low = {row: its["ours"][0] for row, its in RECORD["library"]["swin_tiny"]["rows"].items()}
    assert low["self"] - low["cross"] == pytest.approx(0.22)


def test_the_counts_leave_many_structures_with_two_widths_and_none_with_one():
    assert RECORD["searched"] == 1536
    assert [reading(question=q)["two_widths"]["fitting"] for q in ("full", "ablation", "ablation_at_96")] == [
        1478,
        433,
        192,
    ]
    assert reading()["one_width"]["best"][-1] == pytest.approx(4.72)
    for its in RECORD["readings"]:
        assert its["one_width"]["fitting"] == 0
        assert its["two_widths"]["fitting"] > 50


def test_every_recorded_structure_has_all_published_numbers_with_its_widths(script):
    options = len(script.Structure._fields)
    assert len(RECORD["fitting"]) == reading(question="ablation_at_96")["two_widths"]["fitting"]
    for row in RECORD["fitting"][::8]:
        structure = script.Structure(*row[:options])
        widths = dict(zip(RECORD["columns"][options:], row[options:]))
        assert widths["swin_tiny low"] == 96
        worst = max(
            float(script.error(name, script.costs(name, widths[f"{name} high"], widths[f"{name} low"], structure)))
            for name in script.PYRAMIDS
        )
        assert round(100 * worst, 2) == widths["error"] <= 3


def test_the_librarys_structure_is_among_those_recorded(script):
    library = [list(map(int, script.LIBRARY))]
    assert sum(row[:10] == library[0] for row in RECORD["fitting"]) == 1
    assert reading(question="ablation_at_96")["two_widths"]["library"] in RECORD["fitting"]


def test_the_one_number_of_vit_b_rules_no_structure_out(script):
    """Parameters grow with the widths in steps far below 3 % of 124 M, from too few to too many."""
    for structure in script.STRUCTURES:
        few, some, more, many = (
            script.costs("vit_base", d, d, structure)["full"].parameters for d in (8, 400, 404, 1000)
        )
        assert few < 124e6 < many
        assert more - some < 0.03 * 124e6


@pytest.mark.slow
def test_the_script_writes_what_is_recorded(script):
    assert json.loads(json.dumps(script.content())) == RECORD
