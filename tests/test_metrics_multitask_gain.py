"""Δm is the mean relative improvement over the single-task baselines."""

import math

import pytest

from mlore_edu.errors import UserError
from mlore_edu.metrics import multitask_gain
from mlore_edu.tasks import NYUD_V2

BASELINE = {"semseg": 50.0, "depth": 0.5, "normals": 20.0, "edge": 80.0}


def test_equal_models_gain_nothing():
    assert multitask_gain(BASELINE, BASELINE, NYUD_V2) == 0


def test_hand_computed_case_with_tasks_where_lower_is_better():
    results = {"semseg": 55.0, "depth": 0.45, "normals": 21.0, "edge": 80.0, "a task outside the set": 1.0}
    # +10 %, +10 % (error fell), −5 % (error rose), 0
    assert multitask_gain(results, BASELINE, NYUD_V2) == pytest.approx((10 + 10 - 5 + 0) / 4)
    assert multitask_gain(results, BASELINE, NYUD_V2.subset("normals")) == pytest.approx(-5)


def test_units_cancel():
    results = {"semseg": 47.0, "depth": 0.61, "normals": 18.0, "edge": 77.0}
    in_shares = [{**values, "semseg": values["semseg"] / 100} for values in (results, BASELINE)]
    assert multitask_gain(*in_shares, NYUD_V2) == pytest.approx(multitask_gain(results, BASELINE, NYUD_V2))


@pytest.mark.parametrize(
    ("results", "baseline", "sentence"),
    [
        ({"semseg": 1.0}, BASELINE, "results have no depth"),
        (BASELINE, {"semseg": 1.0}, "baseline have no depth"),
        (BASELINE, {**BASELINE, "edge": 0.0}, "baseline of edge is 0"),
        ({**BASELINE, "normals": math.nan}, BASELINE, "normals in the results is nan"),
    ],
)
def test_incomparable_results_are_one_clear_sentence(results, baseline, sentence):
    with pytest.raises(UserError, match=sentence):
        multitask_gain(results, baseline, NYUD_V2)


def test_an_empty_task_set_has_no_mean():
    with pytest.raises(UserError, match="no tasks"):
        multitask_gain(BASELINE, BASELINE, NYUD_V2.subset())
