"""The self-checks tell right from wrong from unanswered, and never stop a chapter."""

from mlore_edu.exercises import answered, exercise


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
