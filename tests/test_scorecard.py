"""Claims are well formed, sized as printed, and judged by a rule that errs as seldom as it says."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlore_edu import published, scorecard
from mlore_edu.errors import UserError
from mlore_edu.metrics import multitask_gain
from mlore_edu.scorecard import CONTRADICTED, NOISE, OWN_TABLE, SUPPORTED, UNTESTABLE, Claim, Interval, verdict
from mlore_edu.tasks import DOLLHOUSE

RESULTS = Path(__file__).parents[1] / "book" / "results"
CLAIMS = scorecard.claims()
COUNTS = json.loads((RESULTS / "counts.json").read_text())["models"]
RUNS = scorecard.read_runs(RESULTS)
TEST = Claim("mlore", "2", "Table 2", "test", "delta_m", "2", "1", "s", "a", "b", "")


def changed(**fields):
    return Claim(**{**TEST.__dict__, **fields})


def find(words):
    (found,) = (claim for claim in CLAIMS if claim.claim == words)
    return found


# --- the claims as data ----------------------------------------------------------------------------------------------


def test_every_ablation_table_of_the_papers_has_claims():
    named = {(claim.paper, claim.table) for claim in CLAIMS}
    expected = {("mlore", n) for n in "1234567"} | {("mlore_supplement", n) for n in "1234567"}
    expected |= {("taskexpert", n) for n in "1245"} | {("tif", n) for n in ("1", "3", "4", *"56789", "10")}
    assert expected <= named
    assert {"Fig. 8", "suppl. Fig. 1"} <= {claim.place for claim in CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim[:40])
def test_a_claim_names_rows_that_exist_and_says_why_where_it_has_none_of_ours(claim):
    assert claim.metric in {*scorecard.COSTS, *scorecard._TASKS, "delta_m", "every task", "most tasks"}
    assert bool(claim.sweep) != bool(claim.reason)
    if claim.table:
        assert (claim.paper, int(claim.table)) in published.tables()
        assert np.isfinite(scorecard.paper_size(claim))
    if claim.sweep == "counts":
        assert {which.partition(":")[0] for which in (claim.ours_better, claim.ours_worse)} <= COUNTS.keys()
    elif claim.sweep:
        assert len(scorecard.paired_differences(claim, RUNS)) >= 5  # seeds


def test_no_claim_is_made_twice():
    assert len({(c.paper, c.place, c.claim) for c in CLAIMS}) == len(CLAIMS)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("standard experts improve the baseline", 3.41 - 1.20),
        ("15 experts are the best number (better than 20)", 0.53 - 0.58),
        ("the high scales gain more from SAFF than the low ones", (6.34 - 5.64) - (5.64 - 5.53)),
        ("the mixture improves semantic segmentation", 100 * (77.62 / 76.40 - 1)),
        ("depth needs LTHD", 100 * (1 - 0.5677 / 0.5766)),
        ("the generic path improves all tasks", 100 * (85.20 / 85.15 - 1)),  # saliency, the least
        ("on PASCAL-Context MLoRE is the best in all tasks", 100 * (84.90 / 84.87 - 1)),
        ("low-rank experts need a third of the parameters of standard ones", 100 * (1 - 213 / 676)),
    ],
)
def test_the_size_in_the_paper_follows_from_the_printed_rows(words, size):
    assert scorecard.paper_size(find(words)) == pytest.approx(size, abs=1e-9)


def test_a_claim_without_numbers_has_no_size():
    assert scorecard.paper_size(find("two active experts are better than one")) is None


def test_without_a_printed_delta_m_the_size_is_the_gain_over_the_other_row():
    rows = published.table("tif", 6).rows
    names = ("semseg", "depth", "normals", "edge")
    gain = np.mean([100 * (-1 if n in ("depth", "normals") else 1) * (rows[3][n] / rows[0][n] - 1) for n in names])
    assert scorecard.paper_size(find("all three modules improve the network without them")) == pytest.approx(gain)


def test_our_gains_have_delta_m_as_their_mean_and_pairs_are_made_by_seed():
    record = json.loads((RESULTS / "mlore_sweeps.json").read_text())
    single = scorecard.single_tasks(RESULTS)
    gains = {
        (run["key"], run["seed"]): multitask_gain(run["metrics"], single, DOLLHOUSE)
        for run in record["runs"]
        if run["key"] in ("mlore", "baseline")
    }
    seeds = sorted({seed for _, seed in gains})
    expected = [gains["mlore", seed] - gains["baseline", seed] for seed in seeds]
    found = scorecard.paired_differences(find("MLoRE improves its baseline"), RUNS)
    np.testing.assert_allclose(found[:, 0], expected)


def test_only_seeds_that_both_sides_have_are_compared():
    runs = {("s", "a"): {0: {"x": 1.0}, 2: {"x": 5.0}, 3: {"x": 2.0}}, ("s", "b"): {2: {"x": 4.0}, 3: {"x": 0.0}}}
    np.testing.assert_array_equal(scorecard.paired_differences(TEST, runs), [[1.0], [2.0]])
    judged = scorecard.judge(TEST, runs | {("s", "b"): {2: {"x": 4.0}}}, {})
    assert (judged.ours, judged.seeds, judged.verdict) == (None, 1, UNTESTABLE)
    assert scorecard.judge(TEST, runs | {("s", "b"): {}}, {}).verdict == UNTESTABLE


def test_a_row_that_nothing_is_recorded_of_is_refused():
    with pytest.raises(UserError, match="No run is recorded under s, 'b'"):
        scorecard.paired_differences(TEST, {("s", "a"): {0: {"x": 1.0}}})


def test_operations_are_compared_in_one_unit():
    claim = changed(metric="flops", better="1", worse="2", sweep="counts")
    counts = {"a": {"flops": 1e9 / 2**30, "unit": "2**30"}, "b": {"flops": 2.0, "unit": "1e9"}}
    judged = scorecard.judge(claim, {}, counts)
    assert judged.ours.value == pytest.approx(50)
    assert judged.verdict == scorecard.COUNTED
    opposite = changed(metric="flops", better="1", worse="2", sweep="counts", ours_better="b", ours_worse="a")
    assert scorecard.judge(opposite, {}, counts).verdict == scorecard.MISCOUNTED


# --- the rule --------------------------------------------------------------------------------------------------------

ENDS = st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(sorted)
ORDER = (CONTRADICTED, NOISE, SUPPORTED)


def interval(low, high):
    return Interval((low + high) / 2, low, high, 1.0)


@given(ENDS, st.floats(0, 5))
def test_a_better_result_never_has_a_worse_verdict(ends, more):
    before, after = (verdict(1.0, interval(*(end + shift for end in ends))) for shift in (0, more))
    assert ORDER.index(after) >= ORDER.index(before)


@given(ENDS, st.floats(0.01, 5))
def test_a_wider_interval_never_decides_more(ends, wider):
    narrow, wide = verdict(1.0, interval(*ends)), verdict(1.0, interval(ends[0] - wider, ends[1] + wider))
    assert wide in (NOISE, narrow)


@given(ENDS)
def test_the_opposite_claim_has_the_opposite_verdict(ends):
    mirrored = verdict(1.0, interval(-ends[1], -ends[0]))
    assert ORDER.index(mirrored) == 2 - ORDER.index(verdict(1.0, interval(*ends)))


@given(st.floats(-5, 0), ENDS)
def test_what_its_own_table_denies_nothing_of_ours_can_save(paper, ends):
    assert verdict(paper, interval(*ends)) == verdict(paper, None) == OWN_TABLE
    assert verdict(None, None) == verdict(1.0, None) == UNTESTABLE


def synthetic(effect, rng, seeds=5, tasks=6):
    """Runs of two configurations, of which the first is better by an effect in every task."""
    gains = rng.normal(size=(seeds, tasks)) + rng.normal(size=(2, seeds, tasks))
    gains[0] += effect
    return {("s", row): {s: dict(zip("uvwxyz", its[s])) for s in range(seeds)} for row, its in zip("ab", gains)}


@pytest.mark.parametrize("metric", ["delta_m", "every task", "most tasks"])
def test_of_claims_about_nothing_at_most_one_in_forty_is_supported_and_one_contradicted(metric):
    rng = np.random.default_rng(3)
    given_ = [scorecard.judge(changed(metric=metric), synthetic(0.0, rng), {}).verdict for _ in range(600)]
    assert given_.count(SUPPORTED) / 600 < 0.04
    assert given_.count(CONTRADICTED) / 600 < 0.04
    if metric == "delta_m":
        assert 0.03 < 1 - given_.count(NOISE) / 600 < 0.07


@pytest.mark.parametrize("metric", ["delta_m", "every task", "most tasks"])
def test_a_large_effect_is_found_with_its_sign(metric):
    rng = np.random.default_rng(4)
    for effect, expected in ((20.0, SUPPORTED), (-20.0, CONTRADICTED)):
        judged = scorecard.judge(changed(metric=metric), synthetic(effect, rng), {})
        assert (judged.verdict, judged.seeds) == (expected, 5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_the_smallest_gain_is_no_larger_than_the_fourth_and_both_are_gains_of_a_task(seed):
    runs = synthetic(0.5, np.random.default_rng(seed))
    every, most = (scorecard.judge(changed(metric=m), runs, {}).ours.value for m in ("every task", "most tasks"))
    tasks = sorted(scorecard.judge(changed(metric=m), tasks_as_named(runs), {}).ours.value for m in DOLLHOUSE.names)
    assert every == pytest.approx(tasks[0])
    assert most == pytest.approx(tasks[2])  # the fourth largest of six


def tasks_as_named(runs):
    return {key: {s: dict(zip(DOLLHOUSE.names, run.values())) for s, run in its.items()} for key, its in runs.items()}


# --- the recorded runs -----------------------------------------------------------------------------------------------


def test_every_claim_gets_a_verdict_from_the_records():
    judged = [scorecard.judge(claim, RUNS, COUNTS) for claim in CLAIMS]
    tally = scorecard.tally(judged)
    assert list(tally) == list(scorecard.VERDICTS)
    assert sum(tally.values()) == len(CLAIMS)
    for one in judged:
        untestable = one.verdict == UNTESTABLE
        assert untestable == bool(one.claim.reason and (one.paper is None or one.paper > 0))
        if one.ours and one.claim.sweep != "counts":
            assert one.seeds >= 3
            assert one.ours.low <= one.ours.value <= one.ours.high


def test_the_sentences_that_the_papers_own_tables_contradict_do_not_depend_on_us():
    denied = [c.claim for c in CLAIMS if (size := scorecard.paper_size(c)) is not None and size <= 0]
    assert len(denied) == 9
    assert sum("surpasses the others" in words for words in denied) == 6
