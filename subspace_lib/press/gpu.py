"""All that is to be learned from a GPU, in parts that each have their time: `python -m subspace_lib gpu`."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from subspace_lib.files import replaced_atomically, write_text
from subspace_lib.press.chapters import BookError, chapter_names, record_of
from subspace_lib.processes import end, start, tied
from subspace_lib.study.records import Spec, curves
from subspace_lib.tasks.profiles import check_device, default_device

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 75
"""Exit code of a part that has nothing to do here."""
COMPARED = {"f1": (300, 750, 2500), "f2": (750, 4750, 12_000), "f3": (150, 450, 1000), "f4": (300, 2000, 9000)}
"""The dimensions of F1 to F4 that are run again, for the first seed."""
MOST_LAUNCHED = 32
"""Runs together that are also trained without graphs; more take long, and as much longer as there are more."""


@dataclass(frozen=True)
class Size:
    """How much is done: all, or a rehearsal that any machine can afford."""

    device: str
    benchmark: Mapping[str, Any]
    together: tuple[int, ...]
    images: int | None
    epochs: int | None
    profile: str
    chapters: tuple[str, ...]
    limit: float


def size_of(tiny: bool) -> Size:
    """The sizes of a run, or of its rehearsal."""
    if not tiny:
        return Size("cuda", {}, (8, 32, 128), 12_800, None, "full", (), 420)
    small = {"in_features": 20, "d": 10, "rounds": 2, "variants": [("one_hot", {})], "scale_D": (2000,), "scale_d": ()}
    return Size(default_device(), small, (2,), 256, 1, "smoke", ("scorecard",), 120)


def run_parts(parts: Sequence[str], out: Path, tiny: bool) -> None:
    """Run parts one after the other, each in a process of its own and within its limit; say what ran.

    What a part finds out stands under ``out`` as soon as it is known, so a part that is cut short loses the rest only.

    Parameters
    ----------
    parts : sequence of str
        Keys of ``PARTS``, which are all of them in their order.
    out : Path
        Takes ``results/`` and ``executions_cuda.json`` as ``data/`` has them, and the chapters in ``executed/``.
    tiny : bool
        Whether to rehearse it at a size that a CPU can afford.

    Raises
    ------
    ValueError
        If a part is unknown, or there is no GPU and this is no rehearsal.
    BookError
        If parts failed; after all others ran.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"unknown part {unknown[0]!r}; choose from: {', '.join(PARTS)}")
    check_device(size_of(tiny).device)
    out.mkdir(parents=True, exist_ok=True)
    lines, failed = [], []
    for part in parts:
        print(f"=== {part}", flush=True)
        started, limit = time.monotonic(), PARTS[part].limit * (10 if tiny else 1)
        child = start(tied("subspace_lib.press.gpu", part, str(out.resolve()), str(int(tiny))), os.environ)
        try:
            code = child.wait(limit)
            said = {0: "done", SKIPPED: "skipped"}.get(code, f"failed with code {code}")
        except subprocess.TimeoutExpired:
            said = f"cut short at its limit of {limit} s"
        finally:
            end([child])
        lines.append(f"{part:12s}{time.monotonic() - started:6.0f} s  {said}")
        if not said.startswith(("done", "skipped")):
            failed.append(f"{part} {said}")
    print("=== what ran", *lines, sep="\n", flush=True)
    if failed:
        raise BookError("\n".join(failed))


def describe_device(size: Size, out: Path) -> None:
    """What the device is, and how fast it copies."""
    import torch

    from subspace_lib.study.benchmark import copy_bandwidth

    about: dict[str, Any] = {"device": size.device, "torch": torch.__version__, "cores": os.cpu_count()}
    if size.device == "cuda":
        of = torch.cuda.get_device_properties(0)
        about |= {"device": of.name, "memory": of.total_memory, "cuda": torch.version.cuda}
        about["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        about["driver"] = subprocess.run(asked, capture_output=True, encoding="utf-8", check=False).stdout.strip()
    about["copy_bytes_per_second"] = copy_bandwidth(size.device)
    print(json.dumps(about, indent=1))
    write_text(out / "device.json", json.dumps(about, indent=1) + "\n")


def run_tests(size: Size, out: Path) -> None:
    """The tests that need a GPU."""
    if find_spec("pytest") is None:
        print("pytest is not installed")
        sys.exit(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"]  # which needs more
    command.append(str(ROOT / "tests" / "test_cuda.py"))
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(code)


def measure(size: Size, out: Path) -> None:
    """What every projection costs; the table is written row by row."""
    from subspace_lib.study.benchmark import run_benchmark

    table = run_benchmark(size.device, out / "results", **size.benchmark)
    if find_spec("matplotlib"):
        from subspace_lib.press.figures import write_benchmark_picture

        print(write_benchmark_picture(table))


def train_many(size: Size, out: Path) -> None:
    """Subspaces of LeNet trained together over the same one after another, also with steps as graphs: runs an hour."""
    from subspace_lib import LeNet, SubspaceModel, count_parameters, fit, fit_many, load_dataset, make_projection
    from subspace_lib.graphs import GRAPHS
    from subspace_lib.study.benchmark import asked_for

    data = load_dataset("mnist", device=size.device).limit(size.images, 500, size.images)
    D = count_parameters(LeNet())
    rows: list[dict[str, Any]] = []

    def models(count: int) -> list[SubspaceModel]:
        drawn = (make_projection("hadamard", D, 750, seed) for seed in range(count))
        return [SubspaceModel.from_seed(LeNet, P, seed=i).to(size.device) for i, P in enumerate(drawn)]

    def seconds(train: Callable[..., object], given: Any, graphs: bool) -> float:
        with asked_for(GRAPHS, "" if graphs else "0"):
            started = time.perf_counter()
            train(given, data, epochs=1, lr=0.01)
            return time.perf_counter() - started

    def add(count: int, graphs: bool, together: float, alone: float) -> None:
        row: dict[str, Any] = {"runs": count, "graphs": graphs, "D": D, "d": 750, "images": len(data.train[1])}
        row |= {"seconds_together": round(together, 3), "seconds_alone": round(alone, 3)}
        rows.append(row | {"times_the_runs_an_hour": round(count * alone / together, 2), "device": _name(size.device)})
        print(rows[-1], flush=True)
        _write_rows(out / "results" / f"many_{size.device}.csv", rows)

    alone, graphed = (statistics.median([seconds(fit, m, graphs) for m in models(4)][1:]) for graphs in (False, True))
    add(1, True, graphed, alone)
    for count in size.together:
        fit_many(models(count), data.limit(256, 256), epochs=1, lr=0.01)
        for graphs in (False, True) if count <= MOST_LAUNCHED else (True,):
            add(count, graphs, seconds(fit_many, models(count), graphs), alone)


def compare(size: Size, out: Path) -> None:
    """F1 to F4 at three dimensions each and directly, for one seed, beside the recorded runs of a CPU."""
    from subspace_lib.study.sweep import sweep

    rows: list[dict[str, Any]] = []
    for name, dimensions in COMPARED.items():
        specs: dict[str, Spec] = {}
        recorded: dict[str, list[float]] = {}
        for record in curves(name):
            spec = replace(Spec(**record["spec"]), seed=0)
            if spec.d is None or spec.d in dimensions[: 1 if size.epochs else None]:
                specs[spec.key] = spec
                recorded.setdefault(spec.key, []).append(record["result"]["val_accuracy"])
        made = list(specs.values())
        if size.epochs:
            made = [replace(spec, epochs=size.epochs, train_images=size.images, val_images=500) for spec in made]
        table, jobs = out / "results" / f"compare_{size.device}.jsonl", 1 if size.epochs else 2
        known = sweep(made, out / "records", table, device=size.device, jobs=jobs, require_real=not size.epochs)
        here = [known[spec.key]["result"] for spec in made]
        for row in beside_recorded(list(specs.values()), list(recorded.values()), here):
            print(row, flush=True)
            rows.append(row)
        _write_rows(out / "results" / f"compared_{size.device}.csv", rows)


def beside_recorded(
    specs: Sequence[Spec], recorded: Sequence[Sequence[float]], here: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Accuracies of an experiment here, and whether they lie within three standard deviations of the recorded ones.

    Parameters
    ----------
    specs : sequence of Spec
        What was trained.
    recorded : sequence of sequence of float
        The recorded accuracies of each; their standard deviation within these groups is the measure.
    here : sequence of mapping
        The result of each here.
    """
    spread, rows = _pooled(recorded), []
    for spec, there, result in zip(specs, recorded, here, strict=True):
        mean, tolerated = statistics.mean(there), 3 * spread * (1 + 1 / len(there)) ** 0.5
        row: dict[str, Any] = {"experiment": spec.experiment, "projection": spec.projection, "d": spec.d or ""}
        row |= {"val_accuracy": round(result["val_accuracy"], 4), "recorded": round(mean, 4), "runs": len(there)}
        row |= {"tolerated": round(tolerated, 4), "within": abs(result["val_accuracy"] - mean) <= tolerated}
        rows.append(row | {"device": result["device"]})
    return rows


def execute(size: Size, out: Path) -> None:
    """The chapters, side by side."""
    from subspace_lib.press.build import execute_chapters
    from subspace_lib.press.status import write_executions

    try:
        execute_chapters(out / "executed", size.profile, size.device, size.chapters, jobs=8, limit=size.limit)
    finally:
        records = {name: record_of(out / "executed", name) for name in chapter_names(ROOT / "book")}
        write_executions(out / "executions_cuda.json", {name: one for name, one in records.items() if one})


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """The standard deviation within groups."""
    squares = sum((value - statistics.mean(group)) ** 2 for group in groups for value in group)
    return float((squares / sum(len(group) - 1 for group in groups)) ** 0.5)


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replaced_atomically(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class Part:
    """One part: what it does, and the seconds that it may take."""

    run: Callable[[Size, Path], None]
    limit: int


PARTS = {
    "device": Part(describe_device, 20),
    "tests": Part(run_tests, 120),
    "benchmark": Part(measure, 80),
    "many": Part(train_many, 60),
    "compare": Part(compare, 100),
    "execute": Part(execute, 480),
}
"""What there is to do, and within how many seconds."""


def main() -> None:
    """One part, in a process of its own."""
    part, out, tiny = sys.argv[1:]
    try:
        PARTS[part].run(size_of(tiny == "1"), Path(out))
    except BookError as error:
        print(error, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
