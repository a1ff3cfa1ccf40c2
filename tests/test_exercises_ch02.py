"""Chapter 2's self-checks accept right answers and see through the mistakes that are usually made."""

import math

import numpy as np
import pytest

from mlore_edu.exercises import ch02

THRESHOLDS = np.arange(1, 20) / 20


def iou(prediction, target, c):
    counted = target != 255
    predicted, true = (prediction == c) & counted, (target == c) & counted
    union = (predicted | true).sum()
    return (predicted & true).sum() / union if union else np.nan


def iou_of_everything(prediction, target, c):
    return ((prediction == c) & (target == c)).sum() / max(((prediction == c) | (target == c)).sum(), 1)


def accuracy(prediction, target, c):
    counted = target != 255
    return ((prediction == c) & (target == c))[counted].sum() / (target == c).sum()


def acting(temperature):
    return [p for p in temperature * np.log(THRESHOLDS / (1 - THRESHOLDS)) if 1e-9 < p < 1]


def acting_at_one(temperature):
    return acting(1.0)


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def angle(p, g):
    p, g = unit(p), unit(g)
    return np.degrees(2 * np.arctan2(np.linalg.norm(p - g, axis=-1), np.linalg.norm(p + g, axis=-1)))


def angle_by_arccos(p, g):
    return np.degrees(np.arccos(np.clip((unit(p) * unit(g)).sum(-1), -1, 1)))


def angle_of_unit_vectors(p, g):
    return np.degrees(2 * np.arctan2(np.linalg.norm(p - g, axis=-1), np.linalg.norm(p + g, axis=-1)))


def angle_by_cross_product(p, g):
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(p, g), axis=-1), (p * g).sum(-1)))


def pooled(errors, pixels):
    return math.sqrt(sum(n * e * e for e, n in zip(errors, pixels)) / sum(pixels))


def log_gain(results, baseline, lower_is_better):
    signs = [-1 if lower else 1 for lower in lower_is_better]
    return 100 * float(np.mean([s * math.log(m / b) for s, m, b in zip(signs, results, baseline)]))


def delta_m(results, baseline, lower_is_better):
    signs = [-1 if lower else 1 for lower in lower_is_better]
    return 100 * float(np.mean([s * (m - b) / b for s, m, b in zip(signs, results, baseline)]))


RIGHT = [
    (ch02.check_iou, iou),
    (ch02.check_acting, acting),
    (ch02.check_angle, angle),
    (ch02.check_angle, angle_by_cross_product),
    (ch02.check_pooled, pooled),
    (ch02.check_log_gain, log_gain),
]

WRONG = [
    (ch02.check_iou, iou_of_everything, "255 was counted"),
    (ch02.check_iou, accuracy, "claimed by either side"),
    (ch02.check_iou, lambda p, t, c: np.nan_to_num(iou(p, t, c)), "occurs nowhere"),
    (ch02.check_acting, lambda temperature: THRESHOLDS, "there are 19"),
    (ch02.check_acting, lambda temperature: [0.55, 0.6, 0.65, 0.7], "not the thresholds on p"),
    (ch02.check_acting, acting_at_one, "two thresholds are left"),
    (ch02.check_acting, lambda temperature: acting(temperature)[::-1], "ascending"),
    (ch02.check_angle, angle_by_arccos, "lost to rounding"),
    (ch02.check_angle, lambda p, g: np.radians(angle(p, g)), "in degrees?"),
    (ch02.check_angle, angle_of_unit_vectors, "length one"),
    (ch02.check_angle, lambda p, g: angle(p, g).mean(), "shape"),
    (ch02.check_pooled, lambda errors, pixels: np.average(errors, weights=pixels), "add as squares"),
    (ch02.check_pooled, lambda errors, pixels: np.sqrt(np.mean(np.square(errors))), "count more"),
    (ch02.check_pooled, lambda errors, pixels: np.mean(errors), "√3|add as squares"),
    (ch02.check_log_gain, delta_m, "100 · ln 2"),
    (ch02.check_log_gain, lambda m, b, lower: log_gain(m, b, [False] * len(m)), "both are gains"),
    (ch02.check_log_gain, lambda m, b, lower: log_gain(m, b, lower) / 100, "100 · ln 2"),
    (ch02.check_log_gain, lambda m, b, lower: abs(log_gain(m, b, lower)), "turn the sign"),
    (ch02.check_log_gain, lambda m, b, lower: log_gain(m, b, lower) * len(m) / 2, "three tasks"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_is_correct(check, answer, capsys):
    assert check(answer)
    assert capsys.readouterr().out.endswith(": correct.\n")


@pytest.mark.parametrize(("check", "answer", "reason"), WRONG)
def test_a_usual_mistake_is_named_and_gets_a_hint(check, answer, reason, capsys):
    assert not check(answer)
    printed = capsys.readouterr().out
    assert any(part in printed for part in reason.split("|"))
    assert "Hint: " in printed


@pytest.mark.parametrize(
    "check", [ch02.check_iou, ch02.check_acting, ch02.check_angle, ch02.check_pooled, ch02.check_log_gain]
)
def test_the_empty_stub_is_not_answered(check, capsys):
    assert not check(lambda *arguments: ...)
    assert "not answered yet" in capsys.readouterr().out
