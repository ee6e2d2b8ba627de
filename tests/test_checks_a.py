"""The checks of the exercises in chapters 01 to 05 take right answers of any form, and refuse wrong ones.

The cells are taken from the notebooks and run in a smaller world, so that the page stays the one source.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from subspace_lib import MLP, Data, LeNet, count_parameters, fit, make_projection

BOOK = Path(__file__).resolve().parents[1] / "book"


def digits(n: int = 256) -> Data:
    """Images of noise with a bright row, the label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (n,), generator=generator)
    images = 0.3 * torch.randn(n, 1, 28, 28, generator=generator)
    images[torch.arange(n), 0, 2 * labels + 4] += 2
    return Data(train=(images, labels), val=(images[:100], labels[:100]), test=None)


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


def chapter_03() -> dict[str, Any]:
    names = common() | {"count_parameters": count_parameters, "make_projection": make_projection}
    names |= {"data": digits(), "profile": SimpleNamespace(seeds=2), "BUDGET": {"epochs": 1, "patience": None}}
    names |= {"LEARNING_RATE": {"direct": 0.001, "subspace": 0.03}, "Data": Data}
    names["lenet"] = {50: [0.5, 0.52], 100: [0.7, 0.71], 200: [0.8, 0.82], 400: [0.9, 0.91], None: [0.96, 0.97]}
    names["crossing"] = __import__("subspace_lib.intrinsic", fromlist=["crossing"]).crossing
    run("03", "code-10 checks", names)

    def losses(seed: int, lr: float) -> list[float]:
        torch.manual_seed(seed)
        return fit(LeNet(), names["data"], epochs=1, lr=lr, seed=seed).val_loss

    return names | {"losses": losses}


WORLDS: dict[str, Callable[[], dict[str, Any]]] = {"01": chapter_01, "03": chapter_03}
world = cache(lambda number: WORLDS[number]())

RIGHT = [
    ("01", "check_1(10, 20)"),
    ("01", "check_1(np.int64(10), 20.0)"),
    ("01", "check_2(3 / 7, 3 / 49)"),
    ("01", "check_2(0.4286, torch.tensor(0.06122))"),
    ("01", "check_3(lambda D, d, s: F.one_hot(torch.randperm(D)[:d], D).T)"),
    ("01", "check_3(lambda D, d, s: np.eye(D)[:, np.random.default_rng(s).permutation(D)[:d]])"),
    ("03", "check_1(read_off(lenet, 0.8))"),
    ("03", "check_1(np.round(read_off(lenet, 0.8)))"),
    ("03", "check_2(losses(0, 0.001))"),
    ("03", "check_2(np.float32(losses(0, 0.001)))"),
    ("03", "check_3(Data(train=(data.train[0], data.train[1].roll(1)), val=(data.train[0], data.train[1].roll(1))))"),
    ("03", "check_3(Data(*[(data.train[0][:64], (data.train[1][:64] + 1) % 10)] * 2))"),
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
    ("03", "check_1(read_off(lenet))"),
    ("03", "check_1(read_off(lenet, 0.8, fixed=1.0))"),
    ("03", "check_1(read_off(lenet, 0.8)[0])"),
    ("03", "check_2(0.959)"),
    ("03", "check_2(losses(1, 0.001))"),
    ("03", "check_2(losses(0, 0.003))"),
    ("03", "check_3(data)"),
    ("03", "check_3(Data(data.train, data.train))"),
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
