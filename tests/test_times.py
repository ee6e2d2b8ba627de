"""The times that a page states: counted as a reader would, and near those that a reader took."""

from pathlib import Path

import pytest

from subspace_lib.press import times
from subspace_lib.press.times import EXERCISE_AND_QUIZ, PLACEHOLDER, Length, length_of, write_times


def markdown(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source, *tags, **metadata):
    return {"cell_type": "code", "metadata": {"tags": list(tags), **metadata}, "source": source.splitlines(True)}


CELLS = [
    markdown(f"# Two words\n\n{PLACEHOLDER}\n\nLet $z$ be zero, so $P z = 0$.\n\n$$\nx = y\n$$\n"),
    markdown("<details><summary>Deeper: a proof</summary>many more words of $x$</details>\n\n```\nnot prose\n```\nend"),
    code("PROFILE = 1", "parameters"),
    code("import sys\nsys.path", "setup"),
    code("a = 1\n\nb = 2"),
    code("c = 3\nd = 4\ne = 5\nf = 6", mystnb={"figure": {"name": "fig-x"}}),
    code("FrameSlider(draw, [1, 2])"),
    code("hidden = 1\n" * 50, "hide-input", mystnb={"figure": {"name": "fig-y"}}),
    code("solution = 1\n" * 50, "hide-cell"),
]


def test_what_counts():
    # "Two words", the placeholder's seven, "Let z be zero so P z" (letters in formulas are read too), "end".
    assert length_of({"cells": CELLS}) == Length(words=17, lines=7, longest=4, median=2, figures=3, formulas=2)


def test_the_page_says_it():
    notebook = {"cells": CELLS}
    write_times(notebook, 200, "quick", "cpu")
    text = notebook["cells"][0]["source"]
    assert PLACEHOLDER not in text
    assert "about 2 minutes for the main path" in text and "took 3 minutes (profile `quick`, cpu)" in text


@pytest.mark.parametrize(
    ("low", "high", "words", "lines", "figures", "formulas"),
    [
        (40, 45, 2447, 240, 5, 137),
        (70, 80, 3340, 272, 9, 211),
        (50, 60, 2234, 208, 5, 70),
        (55, 65, 3312, 286, 10, 106),
        (60, 70, 3641, 356, 9, 193),
        (65, 75, 3537, 340, 7, 223),
        (50, 60, 3298, 387, 7, 122),
        (40, 45, 2594, 248, 8, 45),
        (60, 70, 3707, 416, 6, 178),
        (60, 60, 3445, 425, 6, 169),
    ],
)
def test_the_rule_gives_the_times_that_a_student_took(low, high, words, lines, figures, formulas):
    """Chapters 01 to 10 of commit 84ff6dc: the minutes of a whole reading with one exercise, and what was counted."""
    minutes = Length(words, lines, 0, 0, figures, formulas).minutes + EXERCISE_AND_QUIZ
    assert 0.85 * low <= minutes <= 1.15 * high


def test_contributing_states_the_rule():
    text = " ".join((Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert f"{times.WORDS} words of prose a minute, {times.LINES} lines of code, {times.FIGURES} figures" in text
    assert f"and {times.FORMULAS} formulas within the text" in text
    assert f"for one exercise and the quiz it adds {EXERCISE_AND_QUIZ} minutes" in text
