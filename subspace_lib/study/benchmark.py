"""What each projection costs beside ordinary training: `python -m subspace_lib benchmark`."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from subspace_lib.diagnostics import milliseconds, once
from subspace_lib.files import replaced_atomically
from subspace_lib.projections import PROJECTIONS, Projection, make_projection
from subspace_lib.projections.base import LIMIT_BYTES
from subspace_lib.subspace import SubspaceOptimizer, count_parameters
from subspace_lib.tasks.models import MLP
from subspace_lib.tasks.profiles import check_device

BATCH = 128
PASSES = 3
"""The whole table is measured so many times: a number is the median, and a busy minute of the machine spoils none."""
SCALE_D = (10_000, 100_000, 1_000_000, 10_000_000)
SCALE_SMALL_D = (100, 1_000, 10_000, 100_000)
SCALE_FIXED_D = 1000
"""d where D is varied."""
PEAK = """
import re, sys
from subspace_lib import make_projection

def most_memory():  # of this process, by Linux; the getrusage of a child starts at its parent's
    return 1024 * int(re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace(chr(9), " "))[1])

make_projection(sys.argv[1], 1000, 10)
before = most_memory()
P = make_projection(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
print((most_memory() - before) / P.nbytes)
"""
Row = dict[str, Any]


def cheap() -> list[str]:
    """The families that keep little enough for every D of ``SCALE_D``."""
    D = max(SCALE_D)
    return [
        name
        for name, family in PROJECTIONS.items()
        if not family.square and D * family.keeps(D, SCALE_FIXED_D) <= LIMIT_BYTES
    ]


def all_variants() -> list[tuple[str, dict[str, Any]]]:
    """What is measured: the families that take any d, and the layouts, by which the table tells variants apart."""
    return [
        (name, options)
        for name, family in PROJECTIONS.items()
        if not family.square
        for options in family.variants
        if options.keys() <= {"layout"}
    ]


def benchmark(
    device: str = "cpu",
    in_features: int = 2352,
    d: int = 4500,
    rounds: int = 30,
    variants: Sequence[tuple[str, dict[str, Any]]] | None = None,
    scale_D: Sequence[int] = SCALE_D,
    scale_d: Sequence[int] = SCALE_SMALL_D,
) -> Iterator[Row]:
    """Measure every variant, and the cheap ones over d and over D; gives one row at a time.

    Parameters
    ----------
    device : str
        "cpu", or "cuda", where the GPU's own clock is read.
    in_features : int
        Inputs of the MLP whose training step is the measure; 2352 gives D = 472,610.
    d : int
        Dimension of the subspace.
    rounds : int
        Timings of which the median is taken. Step and direct step take turns, so that both see the same machine.
    variants : sequence
        Pairs (name, options) for ``make_projection``, all of ``all_variants`` if left out; one that is refused gives a
        row with the reason.
    scale_D, scale_d : sequence of int
        Sizes at which forward and adjoint of the cheap families are timed: D at d = 1000, and d at the MLP's D.

    Yields
    ------
    dict
        ``part`` ("step", "d" or "D"), the sizes, milliseconds, ``step_over_direct``, the bytes kept a weight, the
        bytes that a forward product must move and the share of the measured copy bandwidth that this is, and
        ``build_peak``, the most memory used while building over what is kept.
    """
    bandwidth = copy_bandwidth(device)
    D = count_parameters(MLP(in_features))
    for name, options in all_variants() if variants is None else variants:
        row: Row = {"part": "step", "projection": name, "layout": options.get("layout", ""), "D": D, "d": d}
        try:
            P = make_projection(name, D, d, **options).to(device)
        except ValueError as error:
            yield row | {"refused": str(error)}
            continue
        row |= product_costs(P, rounds if P.nbytes < 2**30 else 3, bandwidth)
        row |= step_costs(P, in_features, rounds if P.nbytes < 2**30 else 3)
        if device == "cpu" and name in cheap() and not options and sys.platform == "linux":
            row["build_peak"] = build_peak(name, D, d)
        yield row
    sizes = [("d", D, size) for size in scale_d if size <= D] + [("D", size, SCALE_FIXED_D) for size in scale_D]
    for part, rows, columns in sizes:
        for name in cheap():
            P = make_projection(name, rows, columns).to(device)
            costs = product_costs(P, rounds if rows * columns < 10**10 else 5, bandwidth)
            yield {"part": part, "projection": name, "layout": "", "D": rows, "d": columns} | costs


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 1000 * 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device, 9)


@torch.no_grad()
def product_costs(P: Projection, rounds: int, bandwidth: float) -> Row:
    """Times of P z and P^T v, and how they compare with the memory's speed."""
    z, v = torch.ones(P.d, device=P.device), torch.ones(P.D, device=P.device)
    device = P.device.type
    forward = milliseconds(lambda: P(z), device, rounds)
    both_ways = P.options().get("layout") == "two_way"
    moved = P.nbytes // (2 if both_ways else 1) + z.nbytes + v.nbytes
    return {
        "forward_ms": forward,
        "adjoint_ms": milliseconds(lambda: P.adjoint(v), device, rounds),
        "bytes_per_weight": P.nbytes / P.D,
        "forward_bytes": moved,
        "bandwidth_share": moved / (forward / 1000) / bandwidth,
    }


def step_costs(P: Projection, in_features: int, rounds: int) -> Row:
    """Time of a training step in the subspace and of a direct step with fused Adam, in turns."""
    direct = MLP(in_features).to(P.device)
    projected = MLP(in_features).to(P.device)
    steps = {
        "direct_ms": training_step(direct, torch.optim.Adam(direct.parameters(), lr=1e-3, fused=True)),
        "step_ms": training_step(projected, SubspaceOptimizer(projected, P, torch.optim.Adam, lr=1e-2, fused=True)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # the caches are this step's own when the clock starts
            times[name].append(once(step, P.device.type))
    found = {name: median(values) for name, values in times.items()}
    return found | {"step_over_direct": found["step_ms"] / found["direct_ms"]}


def training_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that does one step on one batch of noise."""
    weight = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, weight.shape[1], generator=generator).to(weight.device)
    labels = torch.randint(0, 10, (BATCH,), generator=generator).to(weight.device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def build_peak(name: str, D: int, d: int) -> float:
    """The most memory that building takes over what it keeps, in a process of its own."""
    command = [sys.executable, "-c", PEAK, name, str(D), str(d)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run_benchmark(device: str, folder: Path, **sizes: Any) -> Path:
    """Measure all rows ``PASSES`` times, print them, and write medians as a table; gives its path."""
    check_device(device)
    about = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    passes: list[list[Row]] = []
    for number in range(1, PASSES + 1):
        print(f"pass {number} of {PASSES}", flush=True)
        passes.append([])
        for row in benchmark(device, **sizes):
            passes[-1].append(row)
            print(in_words(row), flush=True)
    rows = [median_row(same) | about for same in zip(*passes, strict=True)]
    print("medians", *map(in_words, rows), sep="\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"benchmark_{'cuda' if device.startswith('cuda') else device}.csv"
    with replaced_atomically(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(path)
    return path


def median_row(same: Sequence[Row]) -> Row:
    """One row of several that measured the same: the median of every time and share, to four digits."""
    first = same[0]
    return {k: round(median(row[k] for row in same), 4) if isinstance(first[k], float) else first[k] for k in first}


def in_words(row: Row) -> str:
    """A row as one line."""
    name = f"{row['projection']} {row['layout']}".strip()
    line = f"{name:16s} D = {row['D']:10,} d = {row['d']:7,}"
    if "refused" in row:
        return f"{line}  refused: {row['refused']}"
    line += f"  forward {row['forward_ms']:9.3f} ms  adjoint {row['adjoint_ms']:9.3f} ms"
    line += f"  {row['bytes_per_weight']:8.1f} bytes a weight"
    if "step_ms" in row:
        line += f"  step {row['step_ms']:9.3f} ms, {row['step_over_direct']:.2f} times direct"
    return line
