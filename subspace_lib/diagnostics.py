"""What a projection does, measured: norms, angles, reach, rank, cost."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from subspace_lib.checks import seed as checked_seed
from subspace_lib.projections import Projection
from subspace_lib.projections.base import wide
from subspace_lib.projections.kernels import path_of

SAMPLED_COLUMNS = 64
LARGEST_RANK = 1024
"""All columns are looked at for their rank up to so many,"""
LARGEST_MATRIX = 2**25
"""and so many numbers in all."""
SAMPLED_DISPLACEMENTS = 16
STRETCHES = 64
REPEATS = 7


class Diagnosis(dict[str, float | int | str]):
    """The findings of ``diagnose`` by name; shown as a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{_text(value)}</td></tr>" for key, value in self.items())
        return f"<table>{rows}</table>"

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:{width}s}  {_text(value)}" for key, value in self.items())


@torch.no_grad()
def diagnose(P: Projection, seed: int = 0) -> Diagnosis:
    """Measure what makes a projection good, without building it.

    Norms and cosines come from at most 64 columns, drawn at random; ``columns sampled`` says how many. The rank is
    that of all columns where P has at most 1024 columns and 2^25 numbers, else only what the sample tells of it.
    The rest is exact, or a time measured here and now.

    Parameters
    ----------
    P : Projection
        Any projection, on any device.
    seed : int
        Seed of the sample and of the random vectors.

    Returns
    -------
    Diagnosis
        ``column norm min``, ``mean`` and ``max``; ``largest cosine``, the closest that two sampled columns come
        to being parallel; ``reach``, the share of the weights that any z can move; ``least moved stretch`` and
        ``most moved stretch``: how far random z move a stretch of the weights over how far they move all of them
        (root mean square), with the weights cut in their order into up to 64 stretches of at least 64;
        ``rank``, a number, or "at least ..." where only the sample was looked at; ``rank of the sample``;
        ``adjoint error``, ``|<P z, v> - <z, P^T v>| / (|P z| |v|)``; ``bytes`` that P keeps before its first step;
        ``forward ms`` and ``adjoint ms``, medians of a few calls; ``steps by``, what computes the products of a
        training step: compiled kernels, or PyTorch and why.

    Examples
    --------
    >>> found = diagnose(make_projection("one_hot", D=1000, d=100))
    >>> found["rank"], found["reach"]
    (100, 1.0)
    """
    if not isinstance(P, Projection):
        raise TypeError(f"P must be a Projection, got {type(P).__name__}")
    generator = torch.Generator().manual_seed(checked_seed("seed", seed))

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(P.device, P.dtype)

    count = min(P.d, SAMPLED_COLUMNS)
    chosen = torch.randperm(P.d, generator=generator, device="cpu")[:count].to(P.device)
    columns = P(torch.nn.functional.one_hot(chosen, P.d).to(P.dtype))
    norms, cosines = columns.norm(dim=1), _cosines(columns)
    sampled = _rank(cosines)
    if count == P.d:
        rank: int | str = sampled
    elif P.d <= LARGEST_RANK and P.D * P.d <= LARGEST_MATRIX:
        rank = _rank(_cosines(P.to_dense().T))
    else:
        rank = f"at least {sampled} (of {P.d:,} columns {count} were looked at)"
    cosines.fill_diagonal_(0)
    z, v = normal(P.d), normal(P.D)
    moved = _movement(P(normal(SAMPLED_DISPLACEMENTS * P.d).view(-1, P.d)))
    displacement = P(z)
    error = (displacement @ v - z @ P.adjoint(v)).abs() / (displacement.norm() * v.norm())
    return Diagnosis(
        {
            "D": P.D,
            "d": P.d,
            "columns sampled": count,
            "column norm min": float(norms.min()),
            "column norm mean": float(norms.mean()),
            "column norm max": float(norms.max()),
            "largest cosine": float(cosines.abs().max()),
            # A random z moves every weight whose row of P is not zero, with probability one.
            "reach": float((displacement != 0).double().mean()),
            "least moved stretch": float(moved.min()),
            "most moved stretch": float(moved.max()),
            "rank": rank,
            "rank of the sample": sampled,
            "adjoint error": float(error),
            "bytes": P.nbytes,
            "forward ms": milliseconds(lambda: P(z), P.device.type),
            "adjoint ms": milliseconds(lambda: P.adjoint(v), P.device.type),
            "steps by": path_of(lambda: P.write(v, z, displacement)),
        }
    )


def _movement(displacements: Tensor) -> Tensor:
    """Root mean square of every stretch of the weights, over that of all."""
    squares = displacements.square().mean(0)
    stretches = squares.tensor_split(max(1, min(STRETCHES, len(squares) // STRETCHES)))
    return torch.stack([stretch.mean() for stretch in stretches]).div(squares.mean()).sqrt()


def _cosines(columns: Tensor) -> Tensor:
    """Between all columns of P, given as rows; 0 where a column is zero."""
    unit = torch.nn.functional.normalize(columns.to(wide(columns.dtype)), dim=1)
    return unit @ unit.T


def _rank(cosines: Tensor) -> int:
    """How many columns are independent; their lengths play no part."""
    return int(torch.linalg.matrix_rank(cosines, hermitian=True))


def milliseconds(function: Callable[[], object], device: str = "cpu", rounds: int = REPEATS) -> float:
    """Median time of a call after a first one, by the GPU's own clock where there is one."""
    function()
    return median(once(function, device) for _ in range(rounds))


def once(function: Callable[[], object], device: str = "cpu") -> float:
    """Milliseconds of one call."""
    if not device.startswith("cuda"):
        started = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - started)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _text(value: float | int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else value
