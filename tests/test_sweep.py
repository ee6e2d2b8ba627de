"""Sweeps survive what befalls them: kills, company, damaged records, failing writes, runs that diverge."""

import csv
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Timer

import pytest
import torch
from filelock import FileLock

from subspace_lib import MLP, Data, SmallLeNet, SubspaceModel, count_parameters, evaluate, fit, make_projection
from subspace_lib.__main__ import main
from subspace_lib.study import experiments, sweep
from subspace_lib.study.experiments import (
    AROUND,
    DIMENSIONS,
    EXPERIMENTS,
    RATES,
    SMALL_TUNING,
    TUNING,
    chosen_rate,
    experiment,
    small_networks,
)
from subspace_lib.study.records import (
    COLUMNS,
    DamagedRecordError,
    RecordVersionError,
    Spec,
    curves,
    read_record,
    read_records,
    results,
    write_record,
    write_table,
)
from subspace_lib.study.runs import P_SEED, make_model, run
from subspace_lib.study.sweep import SweepError
from subspace_lib.tasks import profiles
from subspace_lib.tasks.profiles import get_profile

SPEC = Spec(
    "test",
    "mnist",
    "mlp",
    d=5,
    seed=0,
    lr=0.03,
    epochs=2,
    projection="one_hot",
    model_options={"hidden": 4},
    batch_size=32,
)
SPECS = [replace(SPEC, d=d, seed=seed) for seed in (0, 1) for d in (2, 5, 9)]
SLOWLY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_sweep
folder = Path(sys.argv[2])
test_sweep.use_small_data()
original = test_sweep.sweep.run
def logged(specs, data):
    import time
    time.sleep(float(sys.argv[3]))
    with (folder / "log").open("a") as log:
        log.write("".join(spec.key + chr(10) for spec in specs))
    return original(specs, data)
test_sweep.sweep.run = logged
"""
SWEEP = SLOWLY + 'test_sweep.sweep.sweep(test_sweep.SPECS, folder / "records", folder / "test.jsonl")'
TWO_WORKERS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_sweep
def work(group):
    (Path(sys.argv[2]) / f"{os.getpid()}.pid").touch()
    time.sleep(600)
groups = [[test_sweep.replace(test_sweep.SPEC, seed=seed)] for seed in range(4)]
list(test_sweep.sweep._in_processes(work, groups, jobs=2))
"""
DASK_WORKER = (
    SLOWLY
    + """
import asyncio
from distributed import Worker
async def work():
    async with Worker(sys.argv[4], nthreads=1, local_directory=sys.argv[2]) as worker:
        await worker.finished()
asyncio.run(work())
"""
)


def small_data(images=96):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 10
    pictures = torch.randn(images, 1, 28, 28, generator=generator)
    pictures[:, 0, 0] += 3 * torch.nn.functional.one_hot(labels, 28)
    pair = (pictures, labels)
    return Data(train=pair, val=(pictures[:32], labels[:32]), test=(pictures[-40:], labels[-40:]), name="mnist")


def use_small_data():
    sweep._dataset = lambda name, device, require_real: small_data()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_dataset", lambda name, device, require_real: small_data())
    return tmp_path


def go(folder, specs=None):
    return sweep.sweep(SPECS if specs is None else specs, folder / "records", folder / "test.jsonl")


def test_the_key_names_every_field_and_does_not_change():
    assert Spec(**asdict(SPEC)).key == SPEC.key == "14664479ee38cc6a"
    changed = [
        replace(SPEC, seed=1),
        replace(SPEC, d=6),
        replace(SPEC, lr=0.1),
        replace(SPEC, options={"density": 0.1}),
    ]
    assert len({spec.key for spec in [SPEC, *changed]}) == 5
    assert replace(SPEC, lr=1).key == replace(SPEC, lr=1.0).key


def test_a_record_is_the_run_that_fit_makes():
    data = small_data()
    [result] = run([SPEC], data)
    torch.manual_seed(0)
    model = SubspaceModel(MLP(784, 4), make_projection("one_hot", 3190, 5, P_SEED))
    history = fit(model, data, epochs=2, lr=0.03, seed=0, batch_size=32)
    assert result["train_loss"] == history.train_loss
    assert result["val_loss_curve"] == history.val_loss
    assert result["test_accuracy"] == history.test_accuracy == evaluate(model, *data.test)[1]
    assert (result["D"], result["d"], result["steps"], result["epochs_run"]) == (3190, 5, 6, 2)
    assert result["val_accuracy"] == result["val_accuracy_curve"][result["best_epoch"]]
    assert result["val_loss"] == min(result["val_loss_curve"])


def test_runs_of_one_seed_share_theta0_and_not_its_random_numbers():
    data = small_data()
    models = [
        make_model(replace(SPEC, d=d, projection=family), data) for d in (3, 7) for family in ("dense", "one_hot")
    ]
    direct = torch.cat([p.detach().flatten() for p in make_model(replace(SPEC, projection="none"), data).parameters()])
    for model in models:
        torch.testing.assert_close(model.theta0, direct, rtol=0, atol=0)
        column = model.P(torch.eye(model.P.d))[0]
        assert abs(torch.corrcoef(torch.stack([column, direct]))[0, 1]) < 0.1
    torch.testing.assert_close(models[2].P.to_dense()[:, :3], models[0].P.to_dense())  # nested subspaces


def test_a_group_gives_the_same_as_run_by_run():
    specs = [replace(SPEC, d=d, lr=lr) for d, lr in ((3, 0.03), (8, 0.01))]
    data = small_data()
    together = run(specs, data)
    for spec, both in zip(specs, together, strict=True):
        [alone] = run([spec], data)
        assert both["val_loss_curve"] == pytest.approx(alone["val_loss_curve"], rel=1e-4)
        assert (both["d"], both["best_epoch"], both["together"]) == (alone["d"], alone["best_epoch"], 2)
    direct = replace(SPEC, projection="none", d=None)
    groups = sweep._groups([direct, *specs, replace(specs[0], seed=1), replace(direct, seed=1)], "cuda")
    assert [len(group) for group in groups] == [1, 2, 1, 1]


def test_a_split_gives_each_layer_its_dimensions():
    spec = replace(SPEC, projection="dense", d=9, options={"split": [6, 3]})
    model = make_model(spec, small_data())
    assert [(P.D, P.d) for P in model.P.blocks] == [(3140, 6), (50, 3)]
    with pytest.raises(ValueError, match=r"split of d = 9 over 2 layers was expected, got \[6, 2\]"):
        make_model(replace(spec, options={"split": [6, 2]}), small_data())


def test_ranks_give_each_layer_a_block_of_its_shape_and_run_factored():
    spec = replace(SPEC, projection="kronecker", d=22, options={"ranks": [[2, 5], [3, 4]]})
    model = make_model(spec, small_data())
    assert [(P.A.shape[1], P.B.shape[1]) for P in model.P.blocks] == [(2, 5), (3, 4)]
    assert model.factoring is not None


def test_longer_columns_are_a_larger_learning_rate_to_adam():
    data = small_data()
    [long] = run([replace(SPEC, lr=0.003, options={"scale": 10.0})], data)
    [unit] = run([SPEC], data)
    assert long["val_loss_curve"] == pytest.approx(unit["val_loss_curve"], rel=1e-3)
    [short] = run([replace(SPEC, lr=0.003)], data)
    assert short["val_loss_curve"] != pytest.approx(unit["val_loss_curve"], rel=1e-3)


def test_a_sweep_runs_once_and_its_table_says_all(folder):
    first = go(folder)
    files = {path: path.stat().st_mtime_ns for path in (folder / "records").glob("*.json")}
    assert {path.stem for path in files} == set(first) == {spec.key for spec in SPECS}
    assert go(folder) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files
    with (folder / "test.csv").open() as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    rows = results("test", folder)
    assert [row["d"] for row in rows] == [2, 2, 5, 5, 9, 9]
    assert all(row["D"] == 3190 and row["dataset"] == "mnist" and row["device"] == "cpu" for row in rows)
    assert {row["step_ms"] > 0 and (row["peak_bytes"] or 0) >= 0 for row in rows} == {True}
    assert [len(record["result"]["val_loss_curve"]) for record in curves("test", folder)] == [3] * 6
    for path in files:
        path.unlink()
    assert go(folder).keys() == first.keys()  # the table alone is enough
    assert not list((folder / "records").glob("*.json"))


def start(folder, pause, script=SWEEP, *more):
    arguments = [str(Path(__file__).parent), str(folder), str(pause), *more]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_sweep_that_is_killed_goes_on_where_it_stood(tmp_path):
    process = start(tmp_path, 0.3)
    while len(list((tmp_path / "records").glob("[!.]*.json"))) < 2:
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "records").glob("[!.]*.json")}
    assert 2 <= len(kept) < len(SPECS)
    assert start(tmp_path, 0).wait() == 0
    for name, content in kept.items():
        assert (tmp_path / "records" / name).read_bytes() == content
    assert sorted(row["d"] for row in results("test", tmp_path)) == [2, 2, 5, 5, 9, 9]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_sweep_that_is_killed_leaves_no_worker(tmp_path):
    process = start(tmp_path, 0, TWO_WORKERS)
    while len(workers := [path.stem for path in tmp_path.glob("*.pid")]) < 2:
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.01)

    def running():
        stats = [Path(f"/proc/{pid}/stat") for pid in workers]
        return [stat for stat in stats if stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"]

    assert len(running()) == 2 and str(process.pid) not in workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while running():
        assert time.monotonic() < deadline, "workers outlive their sweep"
        time.sleep(0.05)


def test_two_sweeps_over_one_folder_share_the_work(tmp_path):
    both = [start(tmp_path, 0.2), start(tmp_path, 0.2)]
    assert [process.wait() for process in both] == [0, 0]
    made = (tmp_path / "log").read_text().split()
    assert sorted(made) == sorted(spec.key for spec in SPECS)
    assert len(results("test", tmp_path)) == len(SPECS)


def test_a_dask_worker_that_is_killed_takes_nothing_with_it(tmp_path):
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0", silence_logs=logging.CRITICAL) as cluster,
        ThreadPoolExecutor(1) as thread,
    ):
        address = cluster.scheduler_address
        workers = [start(tmp_path, 0.5, DASK_WORKER, address) for _ in range(2)]
        try:
            going = thread.submit(sweep.sweep, SPECS, tmp_path / "records", tmp_path / "test.jsonl", dask=address)
            while len(list((tmp_path / "records").glob("[!.]*.json"))) < 2:
                assert not going.done(), going.result()
                time.sleep(0.01)
            workers[0].kill()
            assert going.result(timeout=120).keys() == {spec.key for spec in SPECS}
            assert workers[1].poll() is None
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert sorted((row["d"], row["seed"]) for row in results("test", tmp_path)) == [
        (spec.d, spec.seed) for spec in sorted(SPECS, key=lambda spec: (spec.d, spec.seed))
    ]
    assert len((tmp_path / "log").read_text().split()) in (len(SPECS), len(SPECS) + 1)  # once more, where it was killed


def test_a_dask_scheduler_that_does_not_answer_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "DASK_TIMEOUT", "1s")
    nobody = ["--dask", "tcp://127.0.0.1:9", "--out", str(tmp_path)]
    assert main(["sweep", "lr", "--profile", "smoke", *nobody]) == 2
    assert re.search(r"(?m)^error: .*127\.0\.0\.1:9.*\n\Z", capsys.readouterr().err)


def test_a_dask_scheduler_that_dies_is_a_failure_of_the_runs_that_are_left():
    from distributed import LocalCluster

    quietly = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=0, host="127.0.0.1", **quietly) as cluster:
        Timer(1, cluster.close).start()
        outcomes = list(sweep._on_cluster(str, [[spec] for spec in SPECS[:2]], cluster.scheduler_address))
    lost = dict.fromkeys((spec.key for spec in SPECS[:2]), "the Dask scheduler was lost")
    assert {key: text for outcome in outcomes for key, text in outcome.items()} == lost


def test_dask_that_is_not_installed_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    nobody = ["--dask", "tcp://127.0.0.1:9", "--out", str(tmp_path)]
    assert main(["sweep", "lr", "--profile", "smoke", *nobody]) == 2
    assert capsys.readouterr().err == (
        "error: dask = 'tcp://127.0.0.1:9' needs the package distributed; install it with `pip install distributed`\n"
    )
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("harm", ["truncated", "edited", "emptied", "not ours"])
def test_a_damaged_record_is_named_kept_and_made_again(folder, harm, capsys):
    first = go(folder)
    (folder / "test.jsonl").unlink()
    path = folder / "records" / f"{SPECS[1].key}.json"
    text = path.read_text()
    number = first[SPECS[1].key]["result"]["val_accuracy"]
    harmed = {
        "truncated": text[: len(text) // 2],
        "edited": text.replace(f'"val_accuracy":{number}', '"val_accuracy":0.99'),
        "emptied": "",
        "not ours": "[1, 2]",
    }[harm]
    assert harmed != text
    path.write_text(harmed)
    again = go(folder)
    assert str(path) in capsys.readouterr().out
    assert path.with_name(path.name + ".damaged").read_text() == harmed
    assert again[SPECS[1].key]["result"]["val_loss_curve"] == first[SPECS[1].key]["result"]["val_loss_curve"]


def test_a_record_that_another_sweep_is_writing_is_let_alone(folder, capsys):
    go(folder, SPECS[:1])
    unfinished = folder / "records" / f".{SPECS[1].key}.json.abc.json"
    unfinished.write_text('{"version":')
    (folder / "records" / "no file.json").mkdir()
    assert len(go(folder, SPECS[:1])) == 1
    assert unfinished.exists() and "not a whole record" not in capsys.readouterr().out


def test_a_damaged_line_of_the_table_is_named_and_made_again(folder, capsys):
    first = go(folder)
    for path in (folder / "records").glob("*.json"):
        path.unlink()
    table = folder / "test.jsonl"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], lines[3].replace('"seed":1', '"seed":7'), *lines[4:]]) + "\n")
    assert go(folder).keys() == first.keys()
    assert "test.jsonl, line 4, was changed after it was written" in capsys.readouterr().out
    assert '"seed":7' in table.with_name("test.jsonl.damaged").read_text()
    assert len(list((folder / "records").glob("*.json"))) == 1


def test_a_record_of_another_version_is_refused(folder):
    go(folder, SPECS[:1])
    path = folder / "records" / f"{SPECS[0].key}.json"
    path.write_text(path.read_text().replace('"version":1', '"version":99'))
    with pytest.raises(RecordVersionError, match="version 99, and this library reads version 1"):
        go(folder, SPECS[:2])
    assert path.exists()


def test_a_run_that_diverges_is_recorded_as_such(folder):
    wild = replace(SPECS[0], lr=1e30, epochs=3)
    known = go(folder, [wild])
    assert known[wild.key]["result"]["diverged"] is True
    [row] = results("test", folder)
    assert row["diverged"] is True
    assert all(value is None or value == value for value in known[wild.key]["result"]["val_loss_curve"])
    assert "NaN" not in (folder / "test.jsonl").read_text()
    assert go(folder, [wild]) == known


def test_failures_are_listed_and_do_not_stop_the_others(folder):
    bad = replace(SPECS[0], d=10**6)
    with pytest.raises(SweepError, match=rf"1 of 3 runs failed.*\n  {bad.key}: ValueError: .*1000000"):
        go(folder, [SPECS[0], bad, SPECS[1]])
    assert len(results("test", folder)) == 2
    assert "Traceback" in (folder / "records" / f"{bad.key}.failed").read_text()


def test_a_write_that_fails_is_a_failure_of_that_run_alone(folder, monkeypatch):
    original = sweep.write_record

    def full_disk(path, record):
        if record["spec"]["d"] == 5:
            raise OSError(28, "No space left on device")
        original(path, record)

    monkeypatch.setattr(sweep, "write_record", full_disk)
    with pytest.raises(SweepError, match="2 of 6 runs failed"):
        go(folder)
    assert len(results("test", folder)) == 4
    monkeypatch.setattr(sweep, "write_record", original)
    assert len(go(folder)) == 6
    assert not list((folder / "records").glob("*.failed"))
    assert not [path for path in (folder / "records").iterdir() if path.name.startswith(".")]


def test_a_process_that_dies_takes_no_other_run_with_it(tmp_path):
    groups = [[replace(SPEC, seed=seed)] for seed in range(5)]
    outcomes = {}
    for outcome in sweep._in_processes(Deadly(tmp_path / "died"), groups, jobs=2):
        outcomes |= outcome
    assert outcomes == {spec.key: "" for [spec] in groups}


class Deadly:
    """Kills its process the first time it meets seed 2."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, group):
        if group[0].seed == 2 and not self.mark.exists():
            self.mark.touch()
            os._exit(9)
        return {group[0].key: ""}


def test_no_more_processes_start_than_there_are_runs_left(monkeypatch):
    asked, parallel = [], sweep.Parallel
    monkeypatch.setattr(sweep, "Parallel", lambda n_jobs, **more: asked.append(n_jobs) or parallel(n_jobs=1, **more))
    outcomes = list(sweep._in_processes(lambda group: {group[0].key: ""}, [[spec] for spec in SPECS[:2]], jobs=64))
    assert (len(outcomes), asked) == (2, [2])


def test_records_survive_a_round_trip(folder):
    [record] = go(folder, [SPEC]).values()
    write_record(folder / "a.json", record)
    text = (folder / "a.json").read_text()
    assert read_record(text, "a.json") == record
    uncounted = record | {"result": record["result"] | {"peak_bytes": None}}  # as on macOS and Windows
    write_record(folder / "b.json", uncounted)
    assert read_record((folder / "b.json").read_text(), "b.json") == uncounted
    with pytest.raises(DamagedRecordError, match="a.json is not a whole record"):
        read_record(text[:-1], "a.json")
    with pytest.raises(DamagedRecordError, match="a.json is not a whole record"):
        read_record("[" * 100_000, "a.json")
    known, damaged = read_records(folder / "records", folder / "none.jsonl")
    assert (list(known), damaged) == ([SPEC.key], [])


@pytest.mark.parametrize("part", ["spec", "result"])
def test_a_sealed_record_of_which_anything_is_missing_or_of_another_type_is_named(folder, part):
    [record] = go(folder, [SPEC]).values()
    needed = set(record[part]) - {"together"}
    for name in needed:
        lacking = record | {part: {key: value for key, value in record[part].items() if key != name}}
        for harmed in (lacking, record | {part: record[part] | {name: {"a": [1]} if "options" not in name else 7}}):
            write_record(folder / "a.json", harmed)
            with pytest.raises(DamagedRecordError, match=rf"a.json (lacks|has .* as) '{name}' in '{part}'"):
                read_record((folder / "a.json").read_text(), "a.json")
    write_record(folder / "a.json", {other: record[other] for other in ("spec", "result") if other != part})
    with pytest.raises(DamagedRecordError, match=f"a.json has no '{part}'"):
        read_record((folder / "a.json").read_text(), "a.json")
    write_record(folder / "a.json", record | {"spec": record["spec"] | {"colour": 1}})
    with pytest.raises(DamagedRecordError, match="a.json has 'colour' in 'spec', which no run has"):
        read_record((folder / "a.json").read_text(), "a.json")


@pytest.mark.parametrize(
    ("part", "lie", "said"),
    [
        ("result", {"d": 4000}, "has 4000 dimensions of 3190"),
        ("result", {"d": 0}, "has 0 dimensions of 3190"),
        ("result", {"D": -3190}, "has 5 dimensions of -3190"),
        ("result", {"val_accuracy": 97.1}, "has 97.1 as 'val_accuracy'"),
        ("result", {"test_accuracy": -0.1}, "has -0.1 as 'test_accuracy'"),
        ("spec", {"options": {"density": float("nan")}}, "holds a number that is not finite"),
        ("spec", {"lr": float("inf")}, "has inf as 'lr'"),
    ],
)
def test_a_sealed_record_of_what_cannot_be_is_named_and_set_aside(folder, part, lie, said):
    [record] = go(folder, [SPEC]).values()
    told = record | {part: record[part] | lie}
    path = folder / "lies" / f"{Spec(**told['spec']).key}.json"
    path.parent.mkdir()
    write_record(path, told)
    known, damaged = read_records(path.parent)
    assert known == {} and len(damaged) == 1 and f"{path} {said}" in damaged[0]
    assert path.with_name(path.name + ".damaged").exists()


def test_a_record_under_the_name_of_another_run_is_set_aside_and_that_run_is_made(folder, capsys):
    go(folder, SPECS[:2])
    (folder / "test.jsonl").unlink()
    first, second = (folder / "records" / f"{spec.key}.json" for spec in SPECS[:2])
    first.replace(second)
    assert set(go(folder, SPECS[:2])) == {spec.key for spec in SPECS[:2]}
    assert f"{second} is the record of another run, {SPECS[0].key}" in capsys.readouterr().out
    assert sorted(row["d"] for row in results("test", folder)) == [2, 5]


def test_a_sweep_that_is_not_complete_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(sweep, "write_record", lambda path, record: None)
    with pytest.raises(SweepError, match=rf"1 of 1 runs failed.*\n  {SPEC.key}: it has no record"):
        go(folder, [SPEC])


def test_a_run_that_another_sweep_makes_is_waited_for(folder):
    records = folder / "records"
    records.mkdir()
    lock = FileLock(records / f"{SPEC.key}.lock")
    with ThreadPoolExecutor(1) as thread:
        with lock:  # the other sweep, which dies before it has made the run
            going = thread.submit(go, folder, [SPEC, SPECS[0]])
            while not (records / f"{SPECS[0].key}.json").exists():
                time.sleep(0.01)
            time.sleep(0.2)
            assert not going.done()
        assert set(going.result(timeout=60)) == {SPEC.key, SPECS[0].key}


def test_a_table_changes_to_other_rates_point_by_point_and_only_when_they_are_whole(folder):
    old = [replace(SPEC, d=d, seed=seed) for seed in (0, 1) for d in (2, 5)]
    new = [replace(spec, lr=0.1) for spec in old]
    go(folder, old)
    rest = [key for spec in new if (key := spec.key) not in (new[0].key, new[1].key, new[2].key)]

    def rates():
        return sorted((row["d"], row["seed"], row["lr"]) for row in results("test", folder))

    for spec, made in zip(new, run(new[:1], small_data()) * 4, strict=True):
        if spec.key not in rest:  # all but seed 1 of d = 5
            stamped = {"spec": asdict(spec), "result": made | {"d": spec.d, "commit": "1", "date": "2"}}
            write_record(folder / "records" / f"{spec.key}.json", stamped)
    sweep.gather(folder / "records", folder / "test.jsonl", new)
    assert rates() == [(2, 0, 0.1), (2, 1, 0.1), (5, 0, 0.03), (5, 1, 0.03)]
    assert [(row["d"], row["lr"]) for row in results("test", folder / "replaced")] == [(2, 0.03), (2, 0.03)]
    assert len(go(folder, new)) == 8
    assert rates() == [(2, 0, 0.1), (2, 1, 0.1), (5, 0, 0.1), (5, 1, 0.1)]
    assert len(results("test", folder / "replaced")) == 4
    for path in (folder / "records").glob("*.json"):
        path.unlink()
    go(folder, old)  # back again, without another run
    assert not list((folder / "records").glob("*.json"))
    assert {lr for *_, lr in rates()} == {0.03}


def test_a_kill_between_the_two_tables_loses_no_run(folder, monkeypatch):
    old, new = (replace(SPEC, lr=lr) for lr in (0.03, 0.1))
    go(folder, [old])
    (folder / "records" / f"{old.key}.json").unlink()
    written = []

    def killed(table, records):
        if written:
            raise KeyboardInterrupt
        written.append(table)
        write_table(table, records)

    [made] = run([new], small_data())
    stamped = {"spec": asdict(new), "result": made | {"commit": "1", "date": "2"}}
    write_record(folder / "records" / f"{new.key}.json", stamped)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "write_table", killed)
        sweep.gather(folder / "records", folder / "test.jsonl", [new])
    known = sweep.gather(folder / "records", folder / "test.jsonl", [new])
    assert set(known) == {old.key, new.key}
    assert [row["lr"] for row in results("test", folder)] == [0.1]
    sweep.gather(folder / "records", folder / "test.jsonl", [old, new])
    assert [row["lr"] for row in results("test", folder)] == [0.03, 0.1]
    assert results("test", folder / "replaced") == []


def test_a_table_of_other_sizes_changes_once_all_new_runs_are_there():
    """As where small networks are tried at other shapes: the old ones stay, and new points come beside them."""
    old = [replace(SPEC, d=None, projection="none", model_options={"hidden": 4}, seed=seed) for seed in (0, 1)]
    new = [replace(spec, model_options={"hidden": hidden}) for spec in old for hidden in (3, 5)]
    known = {spec.key: {"spec": asdict(spec), "result": {}} for spec in [*old, *new[:3]]}
    current, replaced = sweep.divide(known, new, {spec.key for spec in old})
    assert (len(current), replaced) == (5, [])
    known[new[3].key] = {"spec": asdict(new[3]), "result": {}}
    current, replaced = sweep.divide(known, new, set(known) - {new[3].key})
    assert [record["spec"]["model_options"]["hidden"] for record in current] == [3, 5, 3, 5]
    assert [record["spec"]["model_options"]["hidden"] for record in replaced] == [4, 4]


def test_both_rates_of_a_point_may_be_asked_for(folder):
    study, fitted, other = (replace(SPEC, lr=lr) for lr in (0.001, 0.03, 0.01))
    known = {spec.key: {"spec": asdict(spec), "result": {}} for spec in (study, fitted)}
    current, old = sweep.divide(known, [study, other], set(known))
    assert (len(current), len(old)) == (2, 0)
    table = set(known)
    known[other.key] = {"spec": asdict(other), "result": {}}
    current, old = sweep.divide(known, [study, other], table)
    assert [record["spec"]["lr"] for record in current] == [0.001, 0.01]
    assert [record["spec"]["lr"] for record in old] == [0.03]


def test_a_list_of_rates_changes_as_a_whole():
    short = [replace(SPEC, epochs=8, lr=lr) for lr in (0.001, 0.003)]
    full = [replace(SPEC, epochs=30, lr=lr) for lr in (0.001, 0.003)]
    known = {spec.key: {"spec": asdict(spec), "result": {}} for spec in [*short, full[0]]}
    current, old = sweep.divide(known, full, {spec.key for spec in short})
    assert ([record["spec"]["epochs"] for record in current], old) == ([8, 8], [])
    known[full[1].key] = {"spec": asdict(full[1]), "result": {}}
    current, old = sweep.divide(known, full, {spec.key for spec in short})
    assert [[record["spec"]["epochs"] for record in part] for part in (current, old)] == [[30, 30], [8, 8]]


def test_a_changed_library_makes_no_recorded_runs_unless_told(tmp_path, monkeypatch, capsys):
    swept = []
    monkeypatch.setattr(sweep, "sweep", lambda specs, *_, **__: swept.append(len(specs)) or {})
    for state in ("1234567-dirty", "unknown"):
        monkeypatch.setattr(sweep, "code_commit", lambda state=state: state)
        assert main(["sweep", "lr", "--out", str(tmp_path)]) == 2
        assert f"error: the code of these runs would be in no commit ({state})" in capsys.readouterr().err
    assert main(["sweep", "lr", "--profile", "smoke", "--out", str(tmp_path)]) == 0
    assert main(["sweep", "lr", "--dirty", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(sweep, "code_commit", lambda: "1234567")
    assert main(["sweep", "lr", "--out", str(tmp_path)]) == 0
    assert len(swept) == 3


def test_the_commit_is_that_of_the_code_and_says_if_it_was_changed(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    module = tmp_path / "package" / "study" / "sweep.py"
    module.parent.mkdir(parents=True)
    module.write_text("first")
    monkeypatch.setattr(sweep, "__file__", str(module))
    assert sweep.code_commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = git("rev-parse", "--short", "HEAD").strip()
    (tmp_path / "table.csv").write_text("a sweep's own table is no code")
    assert sweep.code_commit() == clean
    module.write_text("second")
    assert sweep.code_commit() == f"{clean}-dirty"


RATE_COLUMNS = ("dataset", "model", "projection", "d", "model_options", "epochs", "seed", "lr", "val_loss")


def put_rates(folder, loss=None, left_out=None, epochs=lambda setting: 30):
    """Write both tables of rates, each run with its loss by setting and seed; the last runs of both may be left out."""
    for name in ("lr", "lr_small"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, RATE_COLUMNS)
            writer.writeheader()
            runs = [(s, seed) for s in EXPERIMENTS[name](name, folder) for seed in range(s["seeds"])]
            for setting, seed in runs[: len(runs) - (left_out or {}).get(name, 0)]:
                options = setting.get("model_options", {})
                D = count_parameters(SmallLeNet(1 if setting["dataset"] == "mnist" else 3, **options)) if options else 9
                row = {"projection": "none", "epochs": epochs(setting), "seed": seed} | setting
                row |= {"d": setting["d"] or D, "model_options": json.dumps(options) if options else ""}
                row["val_loss"] = (loss or in_the_middle)(setting, seed)
                writer.writerow({column: row[column] for column in RATE_COLUMNS})


def in_the_middle(setting, seed):
    """A loss whose lowest lies inside each list of rates."""
    name = "lr_small" if setting["model"] == "small_lenet" else "lr"
    alike = [s for s in EXPERIMENTS[name](name, Path()) if s | {"lr": 0} == setting | {"lr": 0}]
    middle = sorted(s["lr"] for s in alike)[len(alike) // 2]
    return 0.5 + abs(math.log(setting["lr"] / middle))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_three_seeds_a_point_and_no_run_twice(name, tmp_path):
    put_rates(tmp_path)
    specs = experiment(name, get_profile("full"), tmp_path)
    assert len({spec.key for spec in specs}) == len(specs)
    assert {spec.experiment for spec in specs} == {name}
    seeds = {}
    for spec in specs:
        seeds.setdefault(replace(spec, seed=0).key, set()).add(spec.seed)
    one_at_first = name.startswith("lr") or name in ("finetune_adapters", "finetune_network")
    assert all(len(found) >= (1 if one_at_first else 3) for found in seeds.values())
    assert [spec.seed for spec in specs] == sorted(spec.seed for spec in specs)


def test_dimensions_with_more_seeds_are_dimensions_of_the_curve():
    for name, around in AROUND.items():
        assert set(around) <= set(DIMENSIONS[name])


def test_the_study_is_restated_with_both_poolings():
    specs = [spec for spec in experiment("restated", get_profile("full")) if spec.seed == 0]
    for options in ({}, {"pooling": "average"}):
        mine = [spec for spec in specs if spec.model_options == options]
        assert [spec.d for spec in mine] == [125, *[150] * 6]
        assert all(sum(spec.options["split"]) == spec.d for spec in mine)


def test_small_networks_are_thirty_and_more_of_250_to_6000_parameters():
    for channels in (1, 3):
        sizes = [count_parameters(SmallLeNet(channels, **options)) for options in small_networks(channels)]
        assert len(sizes) >= 30
        assert 250 <= min(sizes) < 350
        assert 5000 < max(sizes) <= 6000


def by_rate(curves):
    """The losses of the MLP on MNIST by d (None: direct training) and rate, and those of others as they come."""

    def loss(setting, seed):
        mine = (setting["dataset"], setting["model"]) == ("mnist", "mlp")
        return curves[setting["d"]][RATES.index(setting["lr"])] if mine else in_the_middle(setting, seed)

    return loss


def test_the_learning_rate_is_the_one_of_lowest_mean_loss(tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING, "f1", {None: RATES, 300: RATES})
    put_rates(tmp_path, by_rate({None: (0.2, 0.1, 0.3, 0.4, 0.5), 300: (0.9, 0.9, 0.5, 0.4, "")}))
    assert chosen_rate("mnist", "mlp", False, tmp_path) == 0.003
    assert chosen_rate("mnist", "mlp", True, tmp_path) == 0.03, "a run that diverged is worst"
    seeds = {0.001: [0.9, 0.8, 0.8], 0.003: [0.5, 0.1, 0.3], 0.01: [0.2, 0.4, 0.4], 0.03: [0.7, 0.7, 0.7]}
    put_rates(tmp_path, lambda setting, seed: seeds.get(setting["lr"], [0.6] * 3)[seed])
    assert chosen_rate("mnist", "small_lenet", False, tmp_path) == 0.003, "the mean counts"


def test_a_rate_at_a_size_is_that_of_the_nearest_size_and_of_tied_ones_the_largest(tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING, "f1", dict.fromkeys((100, 1000, 10_000), RATES))
    curves = {
        100: (0.9, 0.8, 0.7, 0.60, 0.65),
        1000: (0.9, 0.494, 0.49, 0.50, 0.6),
        10_000: (0.9, 0.300, 0.302, 0.31, 0.5),  # a tie of two
    }
    put_rates(tmp_path, by_rate(curves))
    expected = {50: 0.03, 100: 0.03, 316: 0.03, 317: 0.01, 1000: 0.01, 3163: 0.01, 60_000: 0.01}
    assert {size: chosen_rate("mnist", "mlp", True, tmp_path, size) for size in expected} == expected
    put_rates(tmp_path, by_rate(curves | {100: (0.9, 0.8, 0.7, 0.60, 0.605)}))
    assert chosen_rate("mnist", "mlp", True, tmp_path, 1000) == 0.01
    with pytest.raises(ValueError, match=r"mlp on mnist at 100 dimensions, 0.1, is the highest .* add higher ones"):
        chosen_rate("mnist", "mlp", True, tmp_path, 90)
    put_rates(tmp_path, by_rate(dict.fromkeys(curves, (0.1, 0.2, 0.3, 0.4, 0.5))))
    with pytest.raises(ValueError, match=r"at 100 dimensions, 0.001, is the lowest that was tried; add lower ones"):
        chosen_rate("mnist", "mlp", True, tmp_path)


SETTINGS = sum(map(len, SMALL_TUNING.values()))


@pytest.mark.parametrize("left_out", [1, 23, 3 * SETTINGS - 1, 3 * SETTINGS])
def test_no_rate_is_chosen_from_a_table_that_is_not_whole(tmp_path, left_out):
    """Of each task a run of one seed, of one rate or of a whole size may be missing, or all."""
    put_rates(tmp_path, left_out={"lr": 1, "lr_small": left_out})  # those of CIFAR-10 come last
    whole = SETTINGS - math.ceil(left_out / 3)
    said = rf"for small_lenet on cifar10: its runs are not all recorded \({whole} of {SETTINGS} settings\); .* lr_small"
    with pytest.raises(ValueError, match=said):
        chosen_rate("cifar10", "small_lenet", False, tmp_path, 425)
    assert chosen_rate("mnist", "small_lenet", False, tmp_path, 425) == 0.01
    with pytest.raises(ValueError, match="no learning rate has been chosen for lenet on cifar10: .*sweep lr` first"):
        chosen_rate("cifar10", "lenet", True, tmp_path, 6000)
    with pytest.raises(ValueError, match="sweep lr"):
        experiment("f9", get_profile("full"), tmp_path)
    assert experiment("f8", get_profile("full"), tmp_path)


def test_no_rate_is_chosen_from_runs_of_two_lengths_or_at_sizes_that_nobody_asks_for(tmp_path, monkeypatch):
    put_rates(tmp_path, epochs=lambda setting: 8 if setting["d"] == 750 else 30)
    with pytest.raises(ValueError, match=r"lenet on mnist: .*\(\d+ of \d+ settings, of several lengths\)"):
        chosen_rate("mnist", "lenet", True, tmp_path, 150)
    assert chosen_rate("mnist", "lenet", False, tmp_path) == 0.001
    put_rates(tmp_path)
    monkeypatch.setattr(experiments, "SMALL_TUNING", dict.fromkeys((800, 3535), RATES[:4]))  # another size now
    with pytest.raises(ValueError, match=r"small_lenet on mnist: its runs are not all recorded \(4 of 8 settings\)"):
        chosen_rate("mnist", "small_lenet", False, tmp_path, 425)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f99"], "unknown experiment 'f99'; choose one of: lr, lr_small, f1"),
        (["lr", "--profile", "huge"], "unknown profile 'huge'"),
        (["lr", "f99", "--profile", "smoke"], "unknown experiment 'f99'"),
        (["lr", "--jobs", "0", "--profile", "smoke"], "jobs must be at least 1, got 0"),
        (["lr", "--dask", "", "--profile", "smoke"], "the address of the Dask scheduler is empty"),
        (["f1", "--profile", "smoke"], "run `python -m subspace_lib sweep lr` first"),
        ([], "the following arguments are required: EXPERIMENT"),
    ],
)
def test_bad_requests_end_on_one_line(arguments, message, tmp_path, capsys):
    try:
        code = main(["sweep", *arguments, "--out", str(tmp_path)])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr().err
    assert (code, len(printed.splitlines())) == (2, 1)
    assert message in printed


def test_one_of_several_gpus_has_one_process(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(profiles, "default_device", lambda: "cuda:1")
    monkeypatch.setattr(sweep, "sweep", lambda *_, device, jobs, **__: asked.append((device, jobs)) or {})
    assert main(["sweep", "lr", "--profile", "smoke", "--out", str(tmp_path)]) == 0
    assert asked == [("cuda:1", 1)]


def test_an_experiment_with_failures_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    begun = []

    def fails_once(specs, records, table, **_):
        begun.append(table.stem)
        if len(begun) == 1:
            raise SweepError("1 of 2 runs failed")
        return {}

    monkeypatch.setattr(sweep, "sweep", fails_once)
    assert main(["sweep", "lr", "lr_small", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    assert begun == ["lr", "lr_small"]
    captured = capsys.readouterr()
    assert captured.err == "1 of 2 runs failed\n"
    assert captured.out.startswith(f"lr_small: 0 of {2 * 3 * SETTINGS} runs")
    begun.clear()
    assert main(["sweep", "lr", "f1", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "1 of 2 runs failed" and said[1].startswith("f1: no learning rate has been chosen"), (
        "the reason stands before what follows from it"
    )
