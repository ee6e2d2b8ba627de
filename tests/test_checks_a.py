"""The checks of the exercises in chapters 01 to 05 take right answers of any form, and refuse wrong ones.

The cells are taken from the notebooks and run in a smaller world, so that the page stays the one source.
"""

import ast
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from subspace_lib import (
    MLP,
    Data,
    LeNet,
    MatrixProjection,
    SubspaceModel,
    count_parameters,
    diagnose,
    fit,
    make_projection,
)
from subspace_lib.intrinsic import crossing
from subspace_lib.press.tables import Table
from subspace_lib.study.benchmark import once

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
        "Table": Table,
    }


@cache
def source(number: str) -> dict[str, str]:
    """The cells of a chapter by their id."""
    [path] = BOOK.glob(f"{number}_*.ipynb")
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


def python(number: str) -> list[str]:
    """The code of a chapter, cell by cell."""
    [path] = BOOK.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


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
    names |= {"data": digits(), "profile": SimpleNamespace(seeds=2, epochs=1), "BUDGET": {"epochs": 1}, "Data": Data}
    names |= {"SubspaceModel": SubspaceModel, "cache": cache}
    names["lenet"] = {50: [0.5, 0.52], 100: [0.7, 0.71], 200: [0.8, 0.82], 400: [0.9, 0.91], None: [0.96, 0.97]}
    names["crossing"] = crossing
    run("03", "code-6 code-10 checks", names)

    def losses(seed: int, lr: float) -> list[float]:
        torch.manual_seed(seed)
        return fit(LeNet(), names["data"], epochs=1, lr=lr, seed=seed).val_loss

    return names | {"losses": losses}


def chapter_02() -> dict[str, Any]:
    names = common() | {"make_projection": make_projection, "MatrixProjection": MatrixProjection, "diagnose": diagnose}
    names |= {"math": math, "plain": make_projection("hadamard", 2000, 20), "uneven": torch.diag(torch.arange(1.0, 21))}
    run("02", "three-measures checks", names)
    function_of("02", "slide-lengths", "stretches", names)
    function_of("02", "reach-runs", "reach_of", names)
    return names


def function_of(number: str, cell: str, name: str, names: dict[str, Any]) -> None:
    """One function of a cell that does more."""
    [found] = [node for node in ast.parse(source(number)[cell]).body if f"def {name}(" in ast.unparse(node)]
    exec(ast.unparse(found), names)


def chapter_04() -> dict[str, Any]:
    names = common() | {"diagnose": diagnose, "make_projection": make_projection, "once": once}
    names |= {"D": 1200, "d": 40, "entries": 40 * 35, "v": torch.randn(1200), "times": {"two_way": (0.1, 0.2)}}
    return run("04", "loops timing checks", names)


def chapter_05() -> dict[str, Any]:
    names = common() | {"MatrixProjection": MatrixProjection, "SubspaceModel": SubspaceModel}
    names |= {"count_parameters": count_parameters, "tiny_D": count_parameters(MLP(196, hidden=6)), "tiny_epochs": 8}
    data = digits()
    shrunk = [(F.avg_pool2d(images, 2), labels) for images, labels in (data.train, data.train)]
    names["tiny"] = Data(shrunk[0], shrunk[1])
    names["check_1"] = names["check_3"] = lambda answer: None  # the solutions stand below, among the right answers
    run("05", "solution-1 solution-3 small-net-run bases checks", names)
    function_of("05", "spectrum", "singular_values", names)

    class TurnableMomentum(torch.optim.Optimizer):
        """Steps of a fixed length along the mean gradient: turns and stretches with the coordinates."""

        def __init__(self, parameters: Any, lr: float) -> None:
            super().__init__(parameters, {"lr": lr})
            self.mean: Any = 0.0

        @torch.no_grad()
        def step(self) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for z in group["params"]:
                    self.mean = 0.9 * self.mean + 0.1 * z.grad
                    z -= group["lr"] * len(z) ** 0.5 * self.mean / self.mean.norm()

    class Still(torch.optim.SGD):
        def step(self) -> None:  # type: ignore[override]
            pass

    return names | {"TurnableMomentum": TurnableMomentum, "Still": Still}


WORLDS: dict[str, Callable[[], dict[str, Any]]] = {
    "01": chapter_01,
    "02": chapter_02,
    "03": chapter_03,
    "04": chapter_04,
    "05": chapter_05,
}
world = cache(lambda number: WORLDS[number]())

CSR = "[0, 1, 1, 4], [2, 0, 2, 3], [5, 1, 2, 3]"
RIGHT = [
    ("02", "check_1(math.ceil(100 * math.log(100)))"),
    ("02", "check_1(np.float64(459))"),
    ("02", "check_2(0.5, 50.5**0.5)"),
    ("02", "check_2(torch.tensor(0.5), np.float64(7.1))"),
    ("02", "check_3(lambda P: P @ MatrixProjection(torch.diag(1 / P.to_dense().norm(dim=0))))"),
    ("02", "check_3(lambda P: MatrixProjection(F.normalize(P.to_dense(), dim=0)))"),
    ("04", f"check_1({CSR}, [0, 1, 1, 3, 4])"),
    ("04", "check_1(torch.tensor([0, 1, 1, 4]), (2, 3, 0, 2), np.array([5.0, 3, 1, 2]), [0, 1, 1, 3, 4])"),
    ("04", "check_2(1144)"),
    ("04", "check_2(61_706**0.5 * np.log(100))"),
    ("04", "check_3(lambda D, d, s: torch.randperm(D, generator=torch.Generator().manual_seed(s)).view(d, -1))"),
    ("04", "check_3(lambda D, d, s: np.random.default_rng(s).permutation(D).reshape(d, D // d))"),
    ("05", "check_1(by_cholesky)"),
    ("05", "check_1(lambda G: torch.linalg.svd(G, full_matrices=False)[0])"),
    ("05", "check_2(41_508)"),
    ("05", "check_2(np.float64((9 / 11) ** 2 * count_parameters(LeNet(in_channels=3))))"),
    ("05", "check_3(TurnableAdam)"),
    ("05", "check_3(TurnableMomentum)"),
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
SOLUTIONS = [(number, f"solution-{n}") for number in ("01", "02", "04", "05") for n in (1, 2, 3)]
SOLUTIONS += [("03", "code-21"), ("03", "code-23"), ("03", "code-25")]
WRONG = [
    ("02", "check_1(400)"),
    ("02", "check_1(500)"),
    ("02", "check_1(458)"),
    ("02", "check_2(0.25, 7.1)"),
    ("02", "check_2(0.5, 2)"),
    ("02", "check_3(lambda P: P)"),
    ("02", "check_3(lambda P: make_projection('orthogonal', P.D, P.d))"),
    ("04", "check_1([0, 1, 4], [2, 0, 2, 3], [5, 1, 2, 3], [0, 1, 1, 3, 4])"),
    ("04", "check_1([0, 1, 1, 4], [2, 0, 2, 3], [5, 2, 1, 3], [0, 1, 1, 3, 4])"),
    ("04", f"check_1({CSR}, [0, 1, 2, 3, 4])"),
    ("04", "check_2(248)"),
    ("04", "check_2(5000)"),
    ("04", "check_3(lambda D, d, s: torch.arange(D).view(d, -1))"),
    ("04", "check_3(lambda D, d, s: torch.randint(D, (d, D // d)))"),
    ("05", "check_1(lambda G: torch.linalg.qr(G)[0])"),
    ("05", "check_1(lambda G: G.qr()[0])"),
    ("05", "check_1(lambda G: torch.tensor(np.linalg.qr(G.numpy())[0]))"),
    ("05", "check_1(lambda G: F.normalize(G, dim=0))"),
    ("05", "check_1(lambda G: torch.eye(300, 40).double())"),
    ("05", "check_2(100)"),
    ("05", "check_2(62_006)"),
    ("05", "check_3(torch.optim.Adam)"),
    ("05", "check_3(torch.optim.SGD)"),
    ("05", "check_3(Still)"),
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


@pytest.mark.parametrize(("number", "solution"), SOLUTIONS)
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


@pytest.mark.parametrize("number", WORLDS)
def test_every_exercise_with_a_check_is_tried(number: str) -> None:
    """Two right answers, two wrong ones and the solution; an open exercise has no check, and its solution is run."""
    checks = [
        node.name for text in python(number) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)
    ]
    checks = [name for name in checks if re.fullmatch(r"check_\d", name)]
    assert len(checks) >= 3
    for name in checks:
        for answers in (RIGHT, WRONG):
            assert sum(where == number and call.startswith(f"{name}(") for where, call in answers) >= 2, name
    solved = [source(number)[solution] for where, solution in SOLUTIONS if where == number]
    assert all(any(f"{name}(" in text for text in solved) for name in checks)
