"""The benchmark measures what it says, writes it, and refuses what it cannot do; speed itself is not tested."""

import csv
from pathlib import Path

import pytest

from subspace_lib import __main__
from subspace_lib.press import figures
from subspace_lib.projections import PROJECTIONS
from subspace_lib.study.benchmark import all_variants, benchmark, build_peak, cheap, run_benchmark

SMALL = {"in_features": 20, "d": 50, "rounds": 2, "scale_D": (2000,), "scale_d": (10, 100)}


def test_every_family_is_measured():
    assert {name for name, _ in all_variants()} == {name for name in PROJECTIONS if not PROJECTIONS[name].square}
    assert cheap() == ["sparse", "hadamard", "fastfood", "kronecker", "one_hot"], "what a stored matrix cannot do"


def test_rows_add_up():
    rows = list(benchmark(**SMALL))
    steps = [row for row in rows if row["part"] == "step"]
    assert [(row["projection"], row["layout"]) for row in steps] == [
        (name, options.get("layout", "")) for name, options in all_variants()
    ]
    for row in steps:
        assert row["D"] == 20 * 200 + 200 + 2010
        assert row["step_over_direct"] == pytest.approx(row["step_ms"] / row["direct_ms"])
        assert row["forward_bytes"] >= 4 * (row["D"] + row["d"])
        assert min(row["forward_ms"], row["adjoint_ms"], row["bandwidth_share"]) > 0
    assert {(row["part"], row["D"], row["d"]) for row in rows if row["part"] != "step"} == {
        ("d", 6210, 10),
        ("d", 6210, 100),
        ("D", 2000, 1000),
    }


def test_a_refused_projection_gives_its_reason():
    [row] = benchmark(**SMALL | {"d": 7000, "variants": [("dense", {})], "scale_D": (), "scale_d": ()})
    assert row["refused"] == "d must lie between 1 and D = 6210, got 7000"


def test_table_and_picture(tmp_path, capsys):
    small = SMALL | {"variants": [("one_hot", {}), ("sparse", {"layout": "coo"})]}
    path = run_benchmark("cpu", tmp_path / "new", **small)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["projection"] for row in rows[:2]] == ["one_hot", "sparse"]
    assert float(rows[0]["build_peak"]) >= 0
    assert rows[0]["device"] == "cpu"
    assert figures.write_benchmark_picture(path).read_text().startswith("<?xml")
    assert "times direct" in capsys.readouterr().out
    assert len(figures.draw_benchmark([]).axes) == 3


def test_numbers_are_medians_of_the_passes(tmp_path, monkeypatch):
    times = iter([[1.0, 8.0], [50.0, 7.0], [2.0, 90.0]])
    row = {"part": "D", "projection": "one_hot", "layout": "", "D": 10, "d": 2, "adjoint_ms": 1.0}
    row |= {"bytes_per_weight": 8.0}

    def measured(device):
        return [row | {"forward_ms": time} for time in next(times)] + [row | {"part": "step", "refused": "too large"}]

    monkeypatch.setattr("subspace_lib.study.benchmark.benchmark", measured)
    with run_benchmark("cpu", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["forward_ms"] for row in rows] == ["2.0", "8.0", ""]
    assert rows[-1]["refused"] == "too large"
    assert next(times, None) is None, "three passes"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory count")
@pytest.mark.parametrize("name", cheap())
def test_building_takes_at_most_four_times_what_is_kept(name):
    D, d = (10_000_000, 1000) if name == "kronecker" else (4_000_000, 1000)
    assert 0.8 <= build_peak(name, D, d) <= 4


def test_absent_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert __main__.main(["benchmark", "--device", "cuda"]) == 2
    assert "PyTorch finds no GPU here" in capsys.readouterr().err
