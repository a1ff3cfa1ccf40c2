"""The self-checks tell right from wrong from unanswered, and never stop a chapter."""

from importlib import import_module

import pytest

from mlore_edu.exercises import answered, exercise

CHAPTERS = [import_module(f"tests.test_exercises_ch{chapter:02}") for chapter in range(3, 21)]
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
    assert capsys.readouterr().out.endswith(": correct.\n")


@pytest.mark.parametrize(
    ("check", "wrong"), [(check, wrong) for check, (_, *answers) in ANSWERS.items() for wrong in answers]
)
def test_a_wrong_answer_gets_a_hint(check, wrong, capsys):
    assert not check(wrong)
    printed = capsys.readouterr().out
    assert ": not yet. " in printed
    assert " Hint: " in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("check", ANSWERS, ids=lambda check: check.__name__)
def test_the_empty_stub_is_not_answered_yet(check, capsys):
    assert not check(lambda *arguments: ...)
    assert capsys.readouterr().out.endswith(": not answered yet.\n")


@pytest.mark.parametrize(("number", "chapter"), list(enumerate(CHAPTERS, 3)))
def test_the_checks_of_a_chapter_are_numbered_in_order(number, chapter, capsys):
    for check in chapter.ANSWERS:
        check(...)
    expected = [f"Exercise {number}.{n}: not answered yet." for n in range(1, len(chapter.ANSWERS) + 1)]
    assert capsys.readouterr().out.splitlines() == expected
