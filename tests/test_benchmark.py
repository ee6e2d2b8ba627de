"""The benchmark measures what it says, writes it, and refuses what it cannot do; speed itself is not tested."""

import csv
import sys
from pathlib import Path

import pytest

from subspace_lib import __main__
from subspace_lib.press import figures
from subspace_lib.projections import PROJECTIONS
from subspace_lib.study.benchmark import all_variants, benchmark, build_peak, cheap, in_turns, run_benchmark
from subspace_lib.study.records import COLUMNS, OTHER_COLUMNS, read_table

SMALL = {"in_features": 20, "d": 50, "rounds": 2, "scale_D": (2000,), "scale_d": (10, 100)}


def test_every_family_is_measured():
    assert {name for name, _ in all_variants()} == {name for name in PROJECTIONS if not PROJECTIONS[name].square}
    assert cheap() == ["sparse", "hadamard", "fastfood", "kronecker", "one_hot"], "what a stored matrix cannot do"


@pytest.fixture
def quick(monkeypatch):
    """One pass, and no process for each measurement of memory."""
    monkeypatch.setattr("subspace_lib.study.benchmark.PASSES", {"cpu": 1})
    monkeypatch.setattr("subspace_lib.study.benchmark.build_peak", lambda *_: 1.0)


def test_rows_add_up(quick):
    rows = list(benchmark(**SMALL))
    steps = [row for row in rows if row["part"] == "step"]
    measured = [(row["projection"], row["layout"]) for row in steps]
    assert sorted(measured) == sorted((name, options.get("layout", "")) for name, options in all_variants())
    for row in steps:
        assert row["D"] == 20 * 200 + 200 + 2010
        assert 0 < row["step_low"] <= row["step_over_direct"] <= row["step_high"]
        assert row["forward_bytes"] >= 4 * (row["D"] + row["d"])
        assert min(row["forward_ms"], row["adjoint_ms"], row["bandwidth_share"], row["adjoint_share"]) > 0
        two_way = (row["projection"], row["layout"]) == ("sparse", "")
        assert ("products_over_direct" in row) == two_way, "both products beside the best of PyTorch's formats"
    assert {(row["part"], row["D"], row["d"]) for row in rows if row["part"] != "step"} == {
        ("d", 6210, 10),
        ("d", 6210, 100),
        ("D", 2000, 1000),
    }


def test_a_refused_projection_gives_its_reason():
    [row] = benchmark(**SMALL | {"d": 7000, "variants": [("dense", {})], "scale_D": (), "scale_d": ()})
    assert row["refused"] == "d must lie between 1 and D = 6210, got 7000"


def test_table_and_picture(tmp_path, capsys, quick):
    small = SMALL | {"variants": [("one_hot", {}), ("sparse", {}), ("sparse", {"layout": "coo"})]}
    path = run_benchmark("cpu", tmp_path / "new", **small)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["projection"] for row in rows[:3]] == ["sparse", "sparse", "one_hot"]
    peak = "1.0" if sys.platform == "linux" else ""
    assert [row.get("build_peak", "") for row in rows[:3]] == [peak, "", peak]
    assert [list(row) for row in read_table(path)] == [list(row) for row in rows], "every column has its type"
    assert rows[0]["device"] == "cpu"
    assert figures.write_benchmark_picture(path).read_text().startswith("<?xml")
    assert "times direct" in capsys.readouterr().out
    assert len(figures.draw_benchmark([]).axes) == 3


def test_steps_take_turns_and_are_compared_pair_by_pair(monkeypatch):
    calls, times = [], {"direct": iter([9.0, 1.0, 2.0, 4.0]), "quick": iter([9.0, 2.0, 6.0, 4.0])}

    def step(name):
        return lambda: calls.append(name)

    def once(function, device):
        function()
        return next(times[calls[-1]])

    monkeypatch.setattr("subspace_lib.study.benchmark.once", once)
    good, bad = in_turns("step", step("direct"), step("quick"), "no graph", device="cpu", rounds=3)
    assert calls == ["direct", "direct", "quick", "quick"] * 4
    assert (good["direct_ms"], good["step_ms"], good["step_over_direct"]) == (2.0, 4.0, 2.0)
    assert bad == {"step_refused": "no graph"}
    assert (good | bad).keys() <= (COLUMNS | OTHER_COLUMNS).keys(), "as a table is read again"


def test_only_some_take_the_place_of_their_rows(tmp_path, capsys, quick):
    small = SMALL | {"variants": [("one_hot", {}), ("hadamard", {})], "scale_d": ()}
    path = run_benchmark("cpu", tmp_path, **small)

    def rows():
        with path.open(newline="") as file:
            return {(row["part"], row["projection"]): row for row in csv.DictReader(file)}

    before = rows()
    run_benchmark("cpu", tmp_path, only=["one_hot"], **small)
    after = rows()
    assert list(after) == list(before) and len(after) == 7
    assert {key for key in after if after[key] != before[key]} == {("step", "one_hot"), ("D", "one_hot")}
    text = path.read_text()
    for change, words in (
        (lambda text: "\ufeff" + text.replace("hadamard", "gone"), "rows of 'gone', which is no projection"),
        (lambda text: text.replace("part,", "piece,"), "cannot be read: .*'part'"),
        (lambda text: text + "<<<<<<< ours\n", "cannot be read: line"),
    ):
        path.write_text(change(text), encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            run_benchmark("cpu", tmp_path, only=["one_hot"], **small)
    with pytest.raises(ValueError, match="unknown projection 'onehot'; choose from: .*one_hot"):
        run_benchmark("cpu", tmp_path, only=["onehot"])


def test_numbers_are_medians_of_the_passes(tmp_path, monkeypatch):
    times = iter([[1.0, 8.0], [50.0, 7.0], [2.0, 90.0]])
    row = {"part": "D", "projection": "one_hot", "layout": "", "D": 10, "d": 2, "adjoint_ms": 1.0}
    row |= {"bytes_per_weight": 8.0}

    def measured(device, only):
        return [row | {"forward_ms": time} for time in next(times)] + [row | {"part": "step", "refused": "too large"}]

    monkeypatch.setattr("subspace_lib.study.benchmark.benchmark", measured)
    with run_benchmark("cpu", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["forward_ms"] for row in rows] == ["", "2.0", "8.0"]
    assert rows[0]["refused"] == "too large"
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


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("subspace_lib.study.benchmark.benchmark", lambda *_, **__: pytest.fail("it has measured"))
    (tmp_path / "file").touch()
    assert __main__.main(["benchmark", "--out", str(tmp_path / "file" / "folder")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
