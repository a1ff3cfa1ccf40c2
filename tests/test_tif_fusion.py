"""The script behind chapter 12 measures what it says, and its record is what it finds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import mlore_edu as me

RESULTS = Path(__file__).parents[1] / "book" / "results"
RECORD = json.loads((RESULTS / "tif_fusion.json").read_text())


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RESULTS))
    try:
        import make_tif_fusion

        return make_tif_fusion
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(**options):
    torch.manual_seed(0)
    return me.build_model("tif_vit_nano", me.DOLLHOUSE, (64, 64), **options).eval()


# --- what can be read from a map -------------------------------------------------------------------------------------


def test_ridge_is_least_squares_with_a_row_of_penalty_for_each_weight(script):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    longer = np.vstack([rows.numpy(), np.sqrt(2.5) * np.eye(6)])
    expected = np.linalg.lstsq(longer, np.vstack([targets.numpy(), np.zeros((6, 3))]), rcond=None)[0]
    np.testing.assert_allclose(script.ridge(rows, targets, penalty=2.5), expected, atol=1e-10)


def test_scores_are_mean_iou_and_average_precision(script):
    generator = torch.Generator().manual_seed(0)
    read, truth = (torch.rand(500, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    truth[:, 15] = (truth[:, 15] > 0.7).double()
    found = script.scores(read, truth)
    said, is_so = read[:, :15].argmax(1).numpy(), truth[:, :15].argmax(1).numpy()
    ious = [((said == c) & (is_so == c)).sum() / ((said == c) | (is_so == c)).sum() for c in range(15)]
    assert found["semseg"] == pytest.approx(100 * np.mean(ious), abs=0.006)
    expected = average_precision_score(truth[:, 15].numpy(), read[:, 15].numpy())
    assert found["edge"] == pytest.approx(100 * expected, abs=0.006)
    assert script.scores(truth, truth) == {"semseg": 100, "edge": 100}


def test_wanted_tells_shares_of_classes_and_boundaries_of_every_token(script):
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[0, 0, 0], labels[0, 0, 1] = 4, 255  # of the first token one pixel is class 4, one ignored
    edges = torch.zeros(1, 64, 64)
    edges[0, 3, 5] = 1
    edges[0, 9, 9] = 255
    found = script.wanted({"semseg": labels, "edge": edges}).reshape(32, 32, 16)
    assert found[0, 0, 0] == 0.5
    assert found[0, 0, 4] == 0.25
    assert found[..., 15].nonzero().tolist() == [[1, 2]]
    assert found[5, 5, :15].sum() == 1


def test_the_maps_are_those_on_the_way_through_saff(script, images):
    model = network()
    with torch.no_grad():
        found = script.maps_of(model, images)
        anatomy = model.decoder.anatomy(model.backbone(images))
    for scale, fusion in enumerate(model.decoder.fusions):
        torch.testing.assert_close(found["X"][scale], anatomy.scales[scale])
        torch.testing.assert_close(found["fused"][scale], anatomy.shared[scale])
        torch.testing.assert_close(fusion.mix(fusion.spatial(found["SFX"][scale]).relu()), found["fused"][scale])
        assert found["XL, Y"][scale].shape[1] == 2 * found["XL"][scale].shape[1]
    assert set(script.maps_of(network(fused_scales=0), images)) == {"X", "XL"}


def test_a_row_holds_a_token_of_every_map_and_a_one(script, images):
    maps = [images[:, :2, :16, :16], images[:, :, :32, :32]]
    rows = script.as_rows(*maps)
    assert rows.shape == (3 * 32 * 32, 6)
    torch.testing.assert_close(rows[32 * 7 + 5, 2:5], images[0, :, 7, 5].double())
    assert (rows[:, -1] == 1).all()


# --- what the tasks lose ---------------------------------------------------------------------------------------------


def test_silencing_y_leaves_nothing_of_the_other_scales_and_is_undone(script, images):
    model = network()
    with torch.no_grad():
        scales = model.decoder.pyramid(model.backbone(images))
        others = [scales[0], *(scale.roll(1, 0) for scale in scales[1:])]
        fusion = model.decoder.fusions[0]
        before = fusion(scales)
        with script.silenced(model, "gather", [0]):
            torch.testing.assert_close(fusion(scales), fusion(others))
        assert not torch.allclose(fusion(scales), fusion(others))
        assert torch.equal(fusion(scales), before)


def test_activity_is_the_share_of_tokens_at_which_a_unit_is_open(script, images):
    model = network()
    with torch.no_grad():
        found = script.activity(model, images)
        maps = script.maps_of(model, images)
        for scale, fusion in enumerate(model.decoder.fusions):
            hidden = fusion.fuse[0](maps["XL, Y"][scale])  # (B, C, h, w)
            expected = [(hidden[:, unit] > 0).float().mean().item() for unit in range(hidden.shape[1])]
            assert found[scale] == pytest.approx(expected, abs=1e-4)


# --- the record ------------------------------------------------------------------------------------------------------


def test_every_run_of_the_record_is_one_of_the_sweeps(script):
    for run in RECORD["runs"]:
        configuration = script.ROWS[run["row"]]
        assert run["key"] == configuration.key
        assert run["command"] == f"mlore-edu {configuration.command(run['seed'])}"
    seeds = {row: [run["seed"] for run in RECORD["runs"] if run["row"] == row] for row in script.ROWS}
    assert all(its == list(range(3)) for its in seeds.values())


def test_the_record_has_every_reading_and_every_loss():
    for run in RECORD["runs"]:
        fused = run["row"] != "W/O SAFF"
        assert set(run["readings"]) == ({"X", "XL", "Y", "XL, Y", "SFX", "fused"} if fused else {"X", "XL"})
        scores = [score for its in run["readings"].values() for place in its for score in place.values()]
        assert len(scores) == 10 * len(run["readings"])
        assert 0 < min(scores) <= max(scores) < 100
        if fused:
            assert [len(its) for its in run["losses"].values()] == [1, 5, 5]
            assert [len(its) for its in run["active"]] == [16, 16, 32, 32]


@pytest.fixture
def encoder():
    """The network of the record, its decoders left random."""
    stored = np.load(RESULTS / "tif_fusion.npz")
    model = network()
    told = model.load_state_dict({name: torch.from_numpy(stored[name]).float() for name in stored.files}, strict=False)
    assert not told.unexpected_keys
    missing = [name for name in told.missing_keys if not name.endswith("num_batches_tracked")]
    assert not [name for name in missing if name.startswith(("backbone", "decoder.pyramid", "decoder.fusions"))]
    return model


def test_the_stored_encoder_fits_a_repository(encoder):
    assert (RESULTS / "tif_fusion.npz").stat().st_size <= 1_000_000


@pytest.mark.slow
def test_the_stored_encoder_is_that_of_the_first_run(script, encoder):
    validation = script.scenes(script.VALIDATION, script.VALIDATION_SEEDS)
    with torch.no_grad():
        found = script.activity(encoder, validation["image"])
    for of_scale, recorded in zip(found, RECORD["runs"][0]["active"], strict=True):
        assert of_scale == pytest.approx(recorded, abs=0.01)
