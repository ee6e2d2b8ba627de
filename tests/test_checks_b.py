"""The checks of the exercises in chapters 06 to 11 take right answers of any form, and refuse wrong ones.

Of a chapter its imports and functions are run, and what its cells would have measured is set down here instead.
"""

import ast
import contextlib
import itertools
import json
import re
import struct
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from subspace_lib import make_projection
from subspace_lib.projections.transforms import hadamard_matrix

BOOK = Path(__file__).resolve().parents[1] / "book"
N = 1280
FILES = [
    {"d": d, "seed": seed, "bits": bits, "bytes": d * bits // 8, "val": 1 - 20 / d - 0.5**bits}
    for d in (100, 400)
    for seed in (0, 1)
    for bits in range(1, 9)
]
MEASURED: dict[str, dict[str, Any]] = {
    "06": {},
    "07": {
        "d": 150,
        "D": 61_706,
        "sizes": [156, 2416, 48_120, 10_164, 850],
        "settings": {},
        "runs": {"best": {0: 0.8, 1: 0.81}},
        "best": "best",
        "LR": 0.1,
        "SEEDS": range(2),
        "yardstick": 0.01,
    },
    "08": {"live": {(440, 700): np.array([[0.1], [-0.2]])}, "full": {}, "NAMES": {}},
    "09": {
        "rows": FILES,
        "dimensions": (100, 400),
        "n": N,
        "best": {"bytes": 100, "train_error": 0.1},
        "d_shuffled": 400,
        "HEADER": struct.Struct("<IBBf"),
    },
    "10": {},
    "11": {},
}


@cache
def cells(number: str) -> dict[str, str]:
    """The code of a chapter by the ids of its cells."""
    [path] = BOOK.glob(f"{number}_*.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}


@cache
def world(number: str) -> dict[str, Any]:
    """The imports and functions of a chapter, without what its cells run."""
    names: dict[str, Any] = {"PROFILE": "smoke", "device": "cpu"} | MEASURED[number]
    for source in cells(number).values():
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
                with contextlib.suppress(NameError):  # a default that a cell computes
                    exec(compile(ast.Module([node], []), number, "exec"), names)
    if number == "07":  # what would train for a minute
        names["train"] = lambda todo, seeds: [
            names["runs"][name].setdefault(seed, 0.8) for name in todo for seed in seeds
        ]
    return names


def best_of_sorted(values: Any, k: int) -> float:
    draws = [max(draw) for draw in itertools.combinations(values, k)]
    return sum(draws) / len(draws)


def chain(first: str, second: str) -> Any:
    """A chain of two families of the library, or a family alone where the second has no name."""

    def made(D: int, m: int, d: int) -> Any:
        if not second:
            P = make_projection(first, D, d, seed=3)
            return P, P.adjoint
        P, Q = make_projection(first, D, m, seed=3), make_projection(second, m, d, seed=4)
        return (P @ Q), (lambda v: Q.adjoint(P.adjoint(v)))

    return made


def chain_by_matrix(D: int, m: int, d: int) -> Any:
    matrix = make_projection("one_hot", D, m, seed=5).to_dense() @ make_projection("hadamard", m, d).to_dense()
    return (lambda z: matrix @ z), (lambda v: matrix.T @ v)


def covered(n: int, times: int = 20_000) -> float:
    """How often 1.96 standard errors to either side of a mean of n normal numbers hold 0."""
    draws = np.random.default_rng(1).standard_normal((times, n))
    return float(np.mean([abs(one.mean()) < 1.96 * one.std(ddof=1) / n**0.5 for one in draws]))


def bootstrapped(n: int, times: int = 400) -> float:
    """The same for another interval, the bootstrap's."""
    draws = np.random.default_rng(1)
    samples = draws.standard_normal((times, n))
    means = np.stack(
        [samples[np.arange(times)[:, None], draws.integers(n, size=(times, n))].mean(1) for _ in range(200)]
    )
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return float(((low < 0) & (high > 0)).mean())


def plausible(number: str, part: float) -> tuple[float, float]:
    """A training error on shuffled labels, and the bound of a file that is so long, beside the usual one."""
    names = world(number)
    usual = names["file_bytes"](names["quantise"](torch.randn(400), 3)[0], 3)
    return 0.88, names["occam"](0.88, round(part * usual))


UNIT = np.eye(16)[3]
ROOTS = (0.001 * (48_120 / 25) ** 0.5, 0.001 * (156 / 25) ** 0.5)
RIGHT = [
    ("06", 1, (hadamard_matrix(16)[3] / 16,)),
    ("06", 1, ((hadamard_matrix(16).numpy() @ UNIT / 16).tolist(),)),
    ("06", 2, ((2.8e6, 35, 0.2117),)),
    ("06", 2, (np.array([2_800_000, 35.0, 0.21]),)),
    ("06", 3, (chain("one_hot", "hadamard"),)),
    ("06", 3, (chain_by_matrix,)),
    ("07", 1, ([30] * 5,)),
    ("07", 1, (np.array([25, 25, 50.0, 25, 25]),)),
    ("07", 2, ROOTS),
    ("07", 2, (torch.tensor(0.04387), 0.0025)),
    ("07", 3, (covered,)),
    ("07", 3, (lambda n: np.float64({5: 0.878, 20: 0.935}[n]),)),  # by Student's t
    ("08", 1, (5744,)),
    ("08", 1, (np.float64(3528 + 1800 + 256 + 160),)),
    ("08", 2, (best_of_sorted,)),
    ("08", 2, (lambda values, k: torch.tensor(best_of_sorted(values, k), dtype=torch.float64),)),
    ("08", 3, (4,)),
    ("08", 3, (np.int64(4),)),
    ("09", 1, (400, 5)),
    ("09", 1, (np.int64(400), 5.0)),
    ("09", 2, ("needed",)),
    ("09", 2, ("rounded",)),
    ("09", 3, (1.0,)),
    ("09", 3, (1.02,)),
    ("10", 1, (7,)),
    ("10", 1, (np.float64(7.0),)),
    ("10", 2, (0.25, 33)),
    ("10", 2, (torch.tensor(0.253), 34.0)),
    ("10", 3, (lambda G, r: torch.linalg.svd(G).U[:, :r],)),
    ("10", 3, (lambda G, r: torch.linalg.eigh(G @ G.T).eigenvectors[:, -r:],)),
    ("11", 1, (4,)),
    ("11", 1, (np.float64(4.0),)),
    ("11", 2, (torch.kron,)),
    ("11", 2, (lambda U, V: torch.einsum("ai,bj->abij", U, V).reshape(35, 9).numpy(),)),
    ("11", 3, (3600, 1.005)),
    ("11", 3, (torch.tensor(3600.0), 0.99**-0.5)),
]
WRONG = [
    ("06", 1, (UNIT,)),
    ("06", 1, (hadamard_matrix(16)[3],)),
    ("06", 2, ((2.8e6, 28, 0.2117),)),
    ("06", 2, ((2.8e6, 35),)),
    ("06", 3, (chain("one_hot", ""),)),
    ("06", 3, (chain("hadamard", ""),)),
    ("06", 3, (chain("dense", "hadamard"),)),
    ("07", 1, ([150, 0, 0, 0, 0],)),
    ("07", 1, ([30.5, 29.5, 30, 30, 30],)),
    ("07", 1, ([30] * 4,)),
    ("07", 2, (0.001, 0.001)),
    ("07", 2, ROOTS[::-1]),
    ("07", 3, (lambda n: 0.95,)),
    ("07", 3, (lambda n: 1.96 / n**0.5,)),
    ("07", 3, (bootstrapped,)),
    ("08", 1, (538,)),
    ("08", 1, (5745,)),
    ("08", 2, (lambda values, k: max(values),)),
    ("08", 2, (lambda values, k: float(np.mean(sorted(values)[-k:])),)),
    ("08", 3, (3,)),
    ("08", 3, (5,)),
    ("08", 3, (3.5,)),
    ("09", 1, (400, 8)),
    ("09", 1, (100, 8)),
    ("09", 1, (300, 4)),
    ("09", 2, ("half",)),
    ("09", 2, ("double",)),
    ("09", 3, (0.5,)),
    ("09", 3, (2.0,)),
    ("10", 1, (6.29,)),
    ("10", 1, (6,)),
    ("10", 1, (8,)),
    ("10", 2, (0.5, 33)),
    ("10", 2, (0.25, 99)),
    ("10", 2, (0.25, 32.5)),
    ("10", 3, (lambda G, r: G[:, :r],)),
    ("10", 3, (lambda G, r: torch.linalg.qr(G[:, 40 : 40 + r]).Q,)),
    ("11", 1, (5,)),
    ("11", 1, (3,)),
    ("11", 1, (4.19,)),
    ("11", 2, (lambda U, V: torch.kron(V, U),)),
    ("11", 2, (lambda U, V: torch.kron(U, V).T,)),
    ("11", 3, (6400, 1.005)),
    ("11", 3, (3600, 1.01)),
]


def said(number: str, exercise: int, answers: tuple[Any, ...], capsys: pytest.CaptureFixture[str]) -> str:
    names = world(number)
    if (number, exercise) == ("09", 2):
        needed = (8 * 100 * np.log(2) + np.log(20)) / names["kl"](0.1, 0.15)
        way = {"needed": needed, "rounded": round(needed, -2), "half": needed / 2, "double": 2 * needed}
        answers = (way[answers[0]],)
    if (number, exercise) == ("09", 3):
        answers = (plausible(number, answers[0]),)
    capsys.readouterr()
    names[f"check_{exercise}"](*answers)
    return capsys.readouterr().out


@pytest.mark.parametrize(("number", "exercise", "answers"), RIGHT)
def test_a_right_answer_is_taken(
    number: str, exercise: int, answers: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(number, exercise, answers, capsys).startswith("Right")


@pytest.mark.parametrize(("number", "exercise", "answers"), WRONG)
def test_a_wrong_answer_is_refused(
    number: str, exercise: int, answers: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(number, exercise, answers, capsys).startswith("Not yet")


def in_small(number: str) -> dict[str, Any]:
    """What the solutions of a chapter train, in a moment: a network of 5 x 4 weights, and no image."""
    names = dict(world(number))
    if number == "09":
        names |= {"data": SimpleNamespace(train=(None, None)), "shuffled": None, "train": lambda d, **_: d}
        names |= {"rounded": lambda d, bits: (d, names["quantise"](torch.randn(d), bits)[0])}
        names |= {"evaluate": lambda *_: (None, 0.12)}
        names["rows"] = [
            row | {"train_error": 0.1, "bound": 0.5} for row in [*FILES, FILES[-1] | {"seed": 0, "bits": 3}]
        ]
    if number == "10":

        def one_gradient(net: torch.nn.Module, generator: torch.Generator) -> None:
            for weight in net.parameters():
                weight.grad = torch.randn(weight.shape, generator=generator)

        names |= {"start": lambda seed: torch.nn.Linear(4, 5), "train": lambda *_: 0.5, "one_gradient": one_gradient}
        names |= {"direct_rate": 0.1, "refresh": 5, "D": 25, "SGD": torch.optim.SGD}
    return names


SOLUTIONS = [(number, f"solution-{n}") for number in MEASURED for n in (1, 2, 3)]


@pytest.mark.parametrize(("number", "cell"), SOLUTIONS)
def test_the_solutions_are_taken(number: str, cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(cells(number)[cell], in_small(number))
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize("number", MEASURED)
def test_every_exercise_with_a_check_is_tried(number: str) -> None:
    """Two right answers, two wrong ones and the solution; an open exercise has no check, and its solution is run."""
    checks = {int(n) for text in cells(number).values() for n in re.findall(r"(?m)^def check_(\d)\(", text)}
    assert checks == {1, 2, 3}
    for exercise in checks:
        for answers in (RIGHT, WRONG):
            assert sum((where, n) == (number, exercise) for where, n, _ in answers) >= 2, exercise
        assert f"check_{exercise}(" in cells(number)[f"solution-{exercise}"]


@pytest.mark.parametrize("number", MEASURED)
def test_cells_that_a_reader_sees_hold_no_answer(number: str) -> None:
    """What a reader fills in stands there as None or as an empty function."""
    for name, source in cells(number).items():
        if name.startswith("exercise-"):
            assert "None" in source and len(source.splitlines()) <= 8, name
