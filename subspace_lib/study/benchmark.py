"""What each projection costs beside ordinary training: `python -m subspace_lib benchmark`."""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subspace_lib.diagnostics import milliseconds, once
from subspace_lib.files import replaced_atomically
from subspace_lib.projections import PROJECTIONS, Projection, make_projection
from subspace_lib.projections.base import LIMIT_BYTES
from subspace_lib.projections.kernels import KERNELS, path_of
from subspace_lib.study.records import read_table
from subspace_lib.subspace import SubspaceOptimizer, count_parameters
from subspace_lib.tasks.models import MLP
from subspace_lib.tasks.profiles import check_device

BATCH = 128
BATCHES = 4
"""Batches and vectors that take turns, so that none is measured with the answer still in the caches."""
PASSES = {"cpu": 3, "cuda": 1}
"""The whole table is measured so many times: a number is the median, and a busy minute of a CPU spoils none."""
SLOW, FEW = 100.0, 3
"""A step of more milliseconds than this is measured so few times."""
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
    only: Sequence[str] = (),
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
        Timings of which the median is taken. The steps of all variants take turns, each beside a direct step, so that
        all see the same machine.
    variants : sequence
        Pairs (name, options) for ``make_projection``, all of ``all_variants`` if left out; one that is refused gives a
        row with the reason.
    scale_D, scale_d : sequence of int
        Sizes at which forward and adjoint of the cheap families are timed: D at d = 1000, and d at the MLP's D.
    only : sequence of str
        Families to measure; all by default.

    Yields
    ------
    dict
        ``part`` ("step", "d" or "D"), the sizes, milliseconds, ``steps_by``, what computes a step's products,
        ``step_over_direct`` with its quartiles, on a GPU by PyTorch alone and the same inside a CUDA graph, and both
        once more where kernels in Triton compute it; the bytes kept a weight, the bytes that a forward product must
        move and the share of the measured copy bandwidth that this is, and ``build_peak``, the most memory used while
        building over what is kept; for "sparse" also both its products over PyTorch's best, ``products_over_direct``,
        with quartiles.
    """
    bandwidth = copy_bandwidth(device)
    D = count_parameters(MLP(in_features))
    chosen = [one for one in (all_variants() if variants is None else variants) if not only or one[0] in only]
    light = [(name, options) for name, options in chosen if name in cheap() and not options]
    for group in (light, [one for one in chosen if one not in light]):
        built: list[tuple[Row, Projection]] = []
        for name, options in group:
            row: Row = {"part": "step", "projection": name, "layout": options.get("layout", ""), "D": D, "d": d}
            try:
                built.append((row, make_projection(name, D, d, **options).to(device)))
            except (ValueError, MemoryError) as error:
                yield row | {"refused": str(error)}
        steps = step_costs([P for _, P in built], in_features, rounds)
        for (row, P), step in zip(built, steps, strict=True):
            row |= product_costs(P, rounds if P.nbytes < 2**30 else FEW, bandwidth) | step | {"steps_by": steps_by(P)}
            if device == "cpu" and group is light and sys.platform == "linux":
                row["build_peak"] = build_peak(row["projection"], D, d)
            if row["projection"] == "sparse" and not row["layout"]:
                row |= beside_pytorchs_best(P, rounds)
            yield row
    sizes = [("d", D, size) for size in scale_d if size <= D] + [("D", size, SCALE_FIXED_D) for size in scale_D]
    for part, rows, columns in sizes:
        for name in (name for name in cheap() if not only or name in only):
            P = make_projection(name, rows, columns).to(device)
            costs = product_costs(P, rounds if rows * columns < 10**10 else 5, bandwidth)
            yield {"part": part, "projection": name, "layout": "", "D": rows, "d": columns} | costs


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 1000 * 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device, 9)


@torch.no_grad()
def beside_pytorchs_best(P: Projection, rounds: int) -> Row:
    """Both products of the two-way layout beside PyTorch's best formats: rows for P z, columns for the transpose."""
    by_rows, by_columns = (
        make_projection("sparse", P.D, P.d, P.seed, layout=layout).to(P.device) for layout in ("csr", "csc")
    )
    z, v = torch.randn(P.d).to(P.device), torch.randn(P.D).to(P.device)
    best, ours = (lambda: (by_rows(z), by_columns.adjoint(v))), (lambda: (P(z), P.adjoint(v)))
    return in_turns("products", best, ours, device=P.device.type, rounds=rounds)[0]


@torch.no_grad()
def steps_by(P: Projection) -> str:
    """What computes the products of a training step."""
    theta = torch.zeros(P.D, device=P.device)
    return path_of(lambda: P.write(theta, torch.zeros(P.d, device=P.device), theta.clone()))


@torch.no_grad()
def product_costs(P: Projection, rounds: int, bandwidth: float) -> Row:
    """Times of P z and P^T v, and how they compare with the memory's speed."""
    device = P.device.type
    # Drawn on the CPU: a CUDA graph that could not be captured may leave the GPU's generator unusable.
    zs, vs = (itertools.cycle(torch.randn(BATCHES, size).to(device).unbind()) for size in (P.d, P.D))
    forward = milliseconds(lambda: P(next(zs)), device, rounds)
    adjoint = milliseconds(lambda: P.adjoint(next(vs)), device, rounds)
    both_ways = P.options().get("layout") == "two_way"
    read = sum(buffer.nbytes for buffer in P.buffers()) // (2 if both_ways else 1)
    moved = read + 4 * (P.d + P.D)
    return {
        "forward_ms": forward,
        "adjoint_ms": adjoint,
        "bytes_per_weight": P.nbytes / P.D,
        "forward_bytes": moved,
        "bandwidth_share": moved / (forward / 1000) / bandwidth,
        "adjoint_share": moved / (adjoint / 1000) / bandwidth,
    }


def step_costs(projections: Sequence[Projection], in_features: int, rounds: int) -> list[Row]:
    """Times of a training step in each subspace, beside a direct step with fused Adam; on a GPU in a graph as well."""
    if not projections:
        return []
    device = projections[0].device.type

    def steps(
        make: Callable[..., Callable[[], None]], some: Sequence[Projection], **more: Any
    ) -> Iterator[Callable[[], None] | str]:
        for P in (None, *some):
            net = MLP(in_features).to(device)
            how: dict[str, Any] = {"fused": True, **more}
            try:
                if P is None:
                    yield make(net, torch.optim.Adam(net.parameters(), lr=1e-3, **how))
                else:
                    yield make(net, SubspaceOptimizer(net, P, torch.optim.Adam, lr=1e-2, **how))
            except (RuntimeError, ValueError) as error:
                yield str(error).splitlines()[0]

    def timed(name: str, some: Sequence[Projection]) -> list[Row]:
        rows = in_turns(name, *steps(training_step, some), device=device, rounds=rounds)
        if device == "cuda":
            made = steps(graphed_step, some, capturable=True)
            graphs = in_turns(f"{name}_graph".removeprefix("step_"), *made, device=device, rounds=rounds)
            rows = [row | graph for row, graph in zip(rows, graphs, strict=True)]
        return rows

    if device != "cuda":
        return timed("step", projections)
    with pytorch_alone():
        rows = timed("step", projections)
    some = [P for P in projections if steps_by(P) == "Triton kernels"]
    for P, row in zip(some, timed("triton", some) if some else [], strict=True):
        rows[projections.index(P)] |= row
    return rows


@contextlib.contextmanager
def asked_for(variable: str, value: str) -> Iterator[None]:
    """Ask for something in the environment, for a while."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def pytorch_alone() -> contextlib.AbstractContextManager[None]:
    """Leave all products to PyTorch."""
    return asked_for(KERNELS, "0")


def in_turns(
    name: str, direct: Callable[[], object] | str, *steps: Callable[[], object] | str, device: str, rounds: int
) -> list[Row]:
    """Time one step of each in turn, each beside a direct one; a step that could not be made is the reason why."""
    pairs: list[list[tuple[float, float]]] = [[] for _ in steps]
    for turn in range(rounds + 1):
        for step, found in zip(steps, pairs, strict=True):
            if isinstance(step, str) or isinstance(direct, str) or (turn > FEW and found[0][1] > SLOW):
                continue
            direct()  # the caches are this step's own when the clock starts
            before = once(direct, device)
            step()
            pair = before, once(step, device)
            if turn > 0:
                found.append(pair)
    rows: list[Row] = []
    for step, found in zip(steps, pairs, strict=True):
        if not found:
            rows.append({f"{name}_refused": step if isinstance(step, str) else direct})
            continue
        low, middle, high = quantiles([mine / other for other, mine in found], n=4, method="inclusive")
        row = {"direct_ms" if name == "step" else f"{name}_direct_ms": median(other for other, _ in found)}
        row |= {f"{name}_ms": median(mine for _, mine in found), f"{name}_over_direct": middle}
        rows.append(row | {f"{name}_low": low, f"{name}_high": high})
    return rows


def training_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that does one step on one of a few batches of noise."""
    batches = _batches(net)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def graphed_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """The same step as one CUDA graph: launched at once, on the next batch, copied into its place.

    Raises
    ------
    RuntimeError
        If the step cannot be captured.
    """
    batches = _batches(net)
    images, labels = (tensor.clone() for tensor in next(batches))

    def compute() -> None:
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            optimizer.zero_grad()
            compute()
    torch.cuda.current_stream().wait_stream(beside)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its own stream the current one; the outer context puts ours back.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        compute()
    # A graph knows addresses alone: weights, moments and P must live as long as it may be replayed.
    captured = graph, net, optimizer

    def step() -> None:
        for place, fresh in zip((images, labels), next(batches), strict=True):
            place.copy_(fresh)
        captured[0].replay()

    return step


def _batches(net: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """A few batches of noise on the device of a network, again and again."""
    weight = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCHES, BATCH, weight.shape[1], generator=generator).to(weight.device)
    labels = torch.randint(0, 10, (BATCHES, BATCH), generator=generator).to(weight.device)
    return itertools.cycle(list(zip(images, labels, strict=True)))


@functools.cache
def build_peak(name: str, D: int, d: int) -> float:
    """The most memory that building takes over what it keeps, in a process of its own; no pass finds another."""
    command = [sys.executable, "-c", PEAK, name, str(D), str(d)]
    return float(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


def run_benchmark(device: str, folder: Path, only: Sequence[str] = (), **sizes: Any) -> Path:
    """Measure all rows, print them, and write medians of ``PASSES`` as a table, from the first row on; gives its path.

    With ``only``, the rows of these families take the place of theirs in the table that is there.

    Raises
    ------
    ValueError
        If a family is unknown, there is no such device, or the table that is there cannot be read.
    OSError
        If the table cannot be written; a folder that cannot be made is refused before anything is measured.
    """
    check_device(device)
    if unknown := [name for name in only if name not in PROJECTIONS]:
        raise ValueError(f"unknown projection {unknown[0]!r}; choose from: {', '.join(PROJECTIONS)}")
    kind = torch.device(device).type
    about = {
        "device": torch.cuda.get_device_name() if kind == "cuda" else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"benchmark_{kind}.csv"
    old: list[Row] = []
    if only and path.exists():
        old = [row for row in read_table(path, ("part", "projection")) if row["projection"] not in only]
        if gone := [row["projection"] for row in old if row["projection"] not in PROJECTIONS]:
            raise ValueError(f"{path} has rows of {gone[0]!r}, which is no projection; measure all, or move it away")
    passes: list[list[Row]] = []
    for number in range(1, PASSES[kind] + 1):
        print(f"pass {number} of {PASSES[kind]}", flush=True)
        passes.append([])
        for row in benchmark(device, only=only, **sizes):
            passes[-1].append(row)
            print(in_words(row), flush=True)
            if number == 1:
                _write(path, old + [row | about for row in passes[0]])
    rows = [median_row(same) | about for same in zip(*passes, strict=True)]
    print("medians", *map(in_words, rows), sep="\n")
    _write(path, old + rows)
    print(path)
    return path


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Write the table, part by part and family by family."""
    families, parts = list(PROJECTIONS), ["step", "d", "D"]
    order = sorted(rows, key=lambda row: (parts.index(row["part"]), families.index(row["projection"])))
    columns = list(dict.fromkeys(key for row in order for key in row))
    with replaced_atomically(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(order)


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
    for name in ("step", "graph", "triton", "triton_graph"):
        if f"{name}_ms" in row:
            line += f"  {name} {row[f'{name}_ms']:9.3f} ms, {row[f'{name}_over_direct']:.2f} times direct"
    return line
