"""The checks of the exercises in chapters 01 to 05 take right answers of any form, and refuse wrong ones.

The cells are taken from the notebooks and run in a smaller world, so that the page stays the one source.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from subspace_lib import MLP, LeNet, fit

BOOK = Path(__file__).resolve().parents[1] / "book"


def common() -> dict[str, Any]:
    return {
        "np": np,
        "torch": torch,
        "F": F,
        "PROFILE": "smoke",
        "device": "cpu",
        "fit": fit,
        "MLP": MLP,
        "LeNet": LeNet,
    }


@cache
def source(number: str) -> dict[str, str]:
    """The cells of a chapter by their id."""
    [path] = BOOK.glob(f"{number}_*.ipynb")
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


def run(number: str, cells: str, names: dict[str, Any]) -> dict[str, Any]:
    for cell in cells.split():
        exec(compile(source(number)[cell], f"{number}, {cell}", "exec"), names)
    return names


def chapter_01() -> dict[str, Any]:
    names = run("01", "fifteen-lines toy-once toy-runs checks", common())
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    return names | {"rows": rows}


WORLDS: dict[str, Callable[[], dict[str, Any]]] = {"01": chapter_01}
world = cache(lambda number: WORLDS[number]())

RIGHT = [
    ("01", "check_1(10, 20)"),
    ("01", "check_1(np.int64(10), 20.0)"),
    ("01", "check_2(3 / 7, 3 / 49)"),
    ("01", "check_2(0.4286, torch.tensor(0.06122))"),
    ("01", "check_3(lambda D, d, s: F.one_hot(torch.randperm(D)[:d], D).T)"),
    ("01", "check_3(lambda D, d, s: np.eye(D)[:, np.random.default_rng(s).permutation(D)[:d]])"),
]
WRONG = [
    ("01", "check_1(10, 10)"),
    ("01", "check_1(9, 20)"),
    ("01", "check_1(10, 21)"),
    ("01", "check_1(10.5, 20)"),
    ("01", "check_2(3 / 7, 3 / 7)"),
    ("01", "check_2(3 * 7, 3 / 49)"),
    ("01", "check_2(3, 3)"),
    ("01", "check_3(lambda D, d, s: F.one_hot(torch.arange(d), D).T)"),
    ("01", "check_3(lambda D, d, s: F.one_hot(torch.randint(5, (d,)), D).T)"),
    ("01", "check_3(lambda D, d, s: random_directions(D, d, s))"),
]


def said(number: str, call: str, capsys: pytest.CaptureFixture[str]) -> str:
    names = world(number)
    capsys.readouterr()
    exec(call, names)
    return capsys.readouterr().out


@pytest.mark.parametrize(("number", "call"), RIGHT)
def test_a_right_answer_is_taken(number: str, call: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(number, call, capsys).startswith("Right")


@pytest.mark.parametrize(("number", "call"), WRONG)
def test_a_wrong_answer_is_refused(number: str, call: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(number, call, capsys).startswith("Not yet")


@pytest.mark.parametrize(("number", "solution"), [("01", "solution-1"), ("01", "solution-2"), ("01", "solution-3")])
def test_the_solutions_are_taken(number: str, solution: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = dict(world(number))
    capsys.readouterr()
    run(number, solution, names)
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize("number", WORLDS)
def test_cells_that_a_reader_sees_hold_no_answer(number: str) -> None:
    """What a reader fills in stands there as None or as an empty function."""
    for name, text in source(number).items():
        if name.startswith("exercise-") and "check_" in text:
            assert "None" in text and len(text.splitlines()) <= 8, name
