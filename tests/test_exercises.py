"""The self-checks tell right from wrong from unanswered, and never stop a chapter."""

import pytest

from mlore_edu.exercises import answered, exercise
from tests import (
    test_exercises_ch09,
    test_exercises_ch11,
    test_exercises_ch12,
    test_exercises_ch13,
    test_exercises_ch14,
    test_exercises_ch15,
    test_exercises_ch16,
    test_exercises_ch17,
    test_exercises_ch18,
    test_exercises_ch19,
    test_exercises_ch20,
)

CHAPTERS = (
    test_exercises_ch09,
    test_exercises_ch11,
    test_exercises_ch12,
    test_exercises_ch13,
    test_exercises_ch14,
    test_exercises_ch15,
    test_exercises_ch16,
    test_exercises_ch17,
    test_exercises_ch18,
    test_exercises_ch19,
    test_exercises_ch20,
)
ANSWERS = {check: answers for chapter in CHAPTERS for check, answers in chapter.ANSWERS.items()}
"""For each self-check its right answer and typical wrong ones, as the chapters' own tests list them."""


@exercise("9.9", hint="Think of squares.")
def check_square(answer):
    assert answered(answer(3)) == 9, "3 should give 9."


def test_a_right_answer_is_correct(capsys):
    assert check_square(lambda x: x * x)
    assert capsys.readouterr().out == "Exercise 9.9: correct.\n"


def test_a_wrong_answer_gets_its_reason_and_the_hint(capsys):
    assert not check_square(lambda x: 2 * x)
    assert capsys.readouterr().out == "Exercise 9.9: not yet. 3 should give 9. Hint: Think of squares.\n"


def test_an_answer_that_raises_is_a_wrong_answer(capsys):
    assert not check_square(lambda x: x / 0)
    assert "division by zero" in capsys.readouterr().out


def test_an_empty_stub_is_not_answered(capsys):
    assert not check_square(lambda x: ...)
    assert not check_square(lambda x: None)
    assert not check_square(...)
    assert capsys.readouterr().out == "Exercise 9.9: not answered yet.\n" * 3


@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_the_right_answer_is_correct(check, capsys):
    right, *_ = ANSWERS[check]
    assert check(right)
    assert "correct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "wrong"), [(check, wrong) for check, (_, *answers) in ANSWERS.items() for wrong in answers]
)
def test_a_wrong_answer_gets_a_hint(check, wrong, capsys):
    assert not check(wrong)
    assert "Hint:" in capsys.readouterr().out


@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_the_empty_stub_is_not_answered_yet(check, capsys):
    assert not check(lambda *arguments: ...)
    assert "not answered yet" in capsys.readouterr().out
