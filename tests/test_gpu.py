"""The command for a GPU, rehearsed where there is none: every part runs and writes, and is named if it fails."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from subspace_lib import __main__
from subspace_lib.press import gpu


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_rehearsal(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_OFFLINE", "1")
    arguments = ["gpu", "--tiny", "--out", str(tmp_path), "--parts", "device,benchmark,many,compare"]
    code = __main__.main(arguments)
    output = capfd.readouterr()
    assert code == 0, output.err
    assert [line.split()[-1] for line in output.out.rsplit("=== what ran", 1)[1].strip().splitlines()] == ["done"] * 4
    kind = gpu.size_of(True).device
    many = read(tmp_path / f"results/many_{kind}.csv")
    assert [(row["runs"], row["graphs"]) for row in many] == [("1", "True"), ("2", "False"), ("2", "True")]
    assert all(float(row["times_the_runs_an_hour"]) > 0 for row in many)
    compared = read(tmp_path / f"results/compared_{kind}.csv")
    assert {(row["experiment"], row["d"]) for row in compared if row["d"]} == {
        (name, str(dimensions[0])) for name, dimensions in gpu.COMPARED.items()
    }
    assert {row["within"] for row in compared} <= {"True", "False"} and len(compared) >= 8
    assert read(tmp_path / f"results/benchmark_{kind}.csv")[0]["projection"] == "one_hot"
    assert (tmp_path / f"results/benchmark_{kind}.svg").exists() and (tmp_path / "device.json").exists()


def test_what_is_late_is_named_and_the_next_part_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {name: dataclasses.replace(part, limit=0) for name, part in gpu.PARTS.items()}
    monkeypatch.setattr(gpu, "PARTS", short)
    assert __main__.main(["gpu", "--tiny", "--out", str(tmp_path), "--parts", "many,compare"]) == 1
    assert capsys.readouterr().err.splitlines() == [f"{p} cut short at its limit of 0 s" for p in ("many", "compare")]


def test_the_recorded_runs_hold_what_is_compared() -> None:
    from subspace_lib.study.records import results

    for name, dimensions in gpu.COMPARED.items():
        assert set(dimensions) <= {row["d"] for row in results(name)}


def test_the_spread_within_groups() -> None:
    assert gpu._pooled([[1.0, 3.0], [10.0, 10.0, 13.0]]) == pytest.approx(((2 + 6) / 3) ** 0.5)


def test_the_tests_of_a_GPU_need_pytest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    gpu.run_tests(gpu.size_of(tiny=True), tmp_path)  # exits if they fail


def test_images_travel_in_two_parts(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = {"mnist": (28, 28), "cifar10": (32, 32, 3)}
    for name, shape in shapes.items():
        arrays = {}
        for part, count in (("train", 1101), ("test", 502)):
            arrays[f"{part}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"{part}_labels"] = generator.integers(0, 10, count, dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for what in (("pack", tmp_path, tmp_path / "parts"), ("unpack", tmp_path / "parts", tmp_path / "there")):
        subprocess.run([sys.executable, str(Path(__file__).with_name("travel.py")), *map(str, what)], check=True)
    small, large = sorted(part.stat().st_size for part in (tmp_path / "parts").iterdir())
    assert large < 1.7 * small
    (tmp_path / "parts/part2.npz").unlink()
    travel = [sys.executable, str(Path(__file__).with_name("travel.py")), "unpack", str(tmp_path / "parts")]
    subprocess.run([*travel, str(tmp_path / "digits")], check=True)
    assert [file.name for file in (tmp_path / "digits").iterdir()] == ["mnist.npz"]
    for name in shapes:
        before, after = np.load(tmp_path / f"{name}.npz"), np.load(tmp_path / "there" / f"{name}.npz")
        assert sorted(before) == sorted(after)
        for key in before:
            np.testing.assert_array_equal(after[key], before[key], strict=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--parts", "many,nothing"], "unknown part 'nothing'; choose from: device"), ([], "finds no GPU here")],
)
def test_bad_input(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert __main__.main(["gpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
