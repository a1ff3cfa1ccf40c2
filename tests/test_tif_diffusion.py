"""What chapter 14 says of trained affinities is measured by functions that know the clear cases."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlore_edu.decoders.tif import Affinity

RESULTS = Path(__file__).parents[1] / "book" / "results"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RESULTS))
    try:
        import make_tif_diffusion

        return make_tif_diffusion
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture(scope="module")
def arrays():
    return np.load(RESULTS / "tif_diffusion.npz")


@pytest.fixture(scope="module")
def told():
    return json.loads((RESULTS / "tif_diffusion.json").read_text())


def weights(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).softmax(dim=-1)


# --- what is measured ------------------------------------------------------------------------------------------------


def test_equal_weights_attend_to_all_tokens_at_the_mean_distance(script):
    found = script.concentration(torch.full((2, 3, 16, 16), 1 / 16), side=4)
    np.testing.assert_allclose(found["attended"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["distance"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["held"], np.broadcast_to(script.SHARES, (3, 101)), atol=1e-5)
    counted = found["counted"]
    np.testing.assert_allclose(counted[:, script.EDGES[:-1] == 0], 1)


def test_a_token_that_attends_to_itself_alone_holds_all_in_one_and_goes_nowhere(script):
    found = script.concentration(torch.eye(16).expand(2, 3, 16, 16), side=4)
    np.testing.assert_allclose(found["attended"], 1 / 16)
    np.testing.assert_allclose(found["distance"], 0, atol=1e-6)
    np.testing.assert_allclose(found["held"][:, 7:], 1)  # 7 % of 16 tokens are more than one
    lowest, highest = found["counted"][:, 0], found["counted"][:, script.EDGES[:-1] == 4][:, 0]
    np.testing.assert_allclose(lowest, 15 / 16)
    np.testing.assert_allclose(highest, 1 / 16)


def test_the_distance_is_that_between_the_tokens_middles(script):
    towards = torch.zeros(1, 1, 4, 4)
    towards[..., 3] = 1  # all attend to the last of 2 × 2 tokens
    distances = np.array([np.sqrt(0.5), 0.5, 0.5, 0])
    every = np.array([0, 0.5, 0.5, np.sqrt(0.5)])
    found = script.concentration(towards, side=2)["distance"].item()
    assert found == pytest.approx(distances.mean() / every.mean())


def test_only_large_weights_are_kept_and_sum_to_one(script):
    row = torch.tensor([[[[0.5, 0.3, 0.15, 0.05]]]])
    torch.testing.assert_close(script.only_large(row), torch.tensor([[[[0.625, 0.375, 0, 0]]]]))


def test_weights_between_larger_tokens_are_means_over_who_asks_and_sums_over_who_is_asked(script):
    fine, side, low = weights(1, 2, 16, 16), 4, 2
    found = script.shrunk(fine, side, low)
    block = [(token // side // 2) * low + token % side // 2 for token in range(16)]
    for asks in range(4):
        for asked in range(4):
            rows = [i for i in range(16) if block[i] == asks]
            columns = [j for j in range(16) if block[j] == asked]
            expected = fine[:, :, rows][..., columns].sum(dim=-1).mean(dim=-1)
            torch.testing.assert_close(found[:, :, asks, asked], expected)


def test_weights_in_the_place_of_an_affinity_gather_as_it_does(script):
    queries, keys, values = torch.randn(3, 2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    affinity = Affinity(queries, keys)
    given = script.Weights(script.softmax(affinity), keys)
    torch.testing.assert_close(given.gather(values), affinity.gather(values), rtol=1e-4, atol=1e-5)


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_the_record_is_the_one_that_its_description_names(script, told, arrays):
    assert hashlib.sha256((RESULTS / "tif_diffusion.npz").read_bytes()).hexdigest() == told["sha256"]
    factors = {
        f"{network}_{letter}{i}" for network, at in (("all", "0123"), ("whole", "23")) for i in at for letter in "qk"
    }
    named = {key for key in script.KEYS if "…" not in key}
    assert set(arrays.files) == named | factors
    assert told["keys"] == script.KEYS
    assert set(told["steps"]) == factors
    assert (RESULTS / "tif_diffusion.npz").stat().st_size < 1e6


def test_all_runs_are_commands_of_the_sweeps(script, told):
    assert told["runs"] == {
        name: [f"mlore-edu {configuration.command(seed)}" for seed in range(script.SEEDS[name])]
        for name, configuration in script.NETWORKS.items()
    }


def test_shares_are_shares(script, told, arrays):
    assert arrays["held"].shape == (script.SEEDS["all"] + 1, 4, 6, 101)
    assert (np.diff(arrays["held"], axis=-1) >= -1e-6).all()
    np.testing.assert_allclose(arrays["held"][..., -1], 1, atol=1e-4)
    np.testing.assert_allclose(arrays["counted"].sum(axis=-1), 1, atol=1e-4)
    assert ((arrays["attended"] > 0) & (arrays["attended"] <= 1 + 1e-4)).all()
    assert arrays["exchanged"].shape == (len(told["exchanges"]), 2, 6)
    assert arrays["diffused"].shape == (script.SEEDS["whole"], len(told["diffused"]), 6)
    assert (arrays["apart"] >= 0).all()


def test_the_three_scenes_are_those_of_the_rule(arrays):
    gains = arrays["right"][1, 0] - arrays["right"][0, 0]
    most, middle, least = gains[arrays["shown"]]
    assert most == gains.max()
    assert least == gains.min()
    assert sorted(gains)[len(gains) // 2] == middle
