"""What a projection does, measured: norms, angles, reach, rank, cost."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from subspace_lib.projections import Projection

SAMPLED_COLUMNS = 64
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

    Norms, cosines and rank come from at most 64 columns, drawn at random; ``columns sampled`` says how many.
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
        ``rank of the sample``; ``adjoint error``, ``|<P z, v> - <z, P^T v>| / (|P z| |v|)``; ``bytes`` that P keeps;
        ``forward ms`` and ``adjoint ms``, medians of a few calls.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(P.device, P.dtype)

    count = min(P.d, SAMPLED_COLUMNS)
    chosen = torch.randperm(P.d, generator=generator)[:count].to(P.device)
    columns = P(torch.nn.functional.one_hot(chosen, P.d).to(P.dtype))
    norms = columns.norm(dim=1)
    cosines = (columns @ columns.T) / (norms[:, None] * norms)
    rank = torch.linalg.matrix_rank(cosines, hermitian=True)  # of unit columns: their lengths play no part
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
            "rank of the sample": int(rank),
            "adjoint error": float(error),
            "bytes": P.nbytes,
            "forward ms": _milliseconds(P, z),
            "adjoint ms": _milliseconds(P.adjoint, v),
        }
    )


def _movement(displacements: Tensor) -> Tensor:
    """Root mean square of every stretch of the weights, over that of all."""
    squares = displacements.square().mean(0)
    stretches = squares.tensor_split(max(1, min(STRETCHES, len(squares) // STRETCHES)))
    return torch.stack([stretch.mean() for stretch in stretches]).div(squares.mean()).sqrt()


def _milliseconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    times = []
    for _ in range(REPEATS):
        _wait(x)
        started = time.perf_counter()
        function(x)
        _wait(x)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _text(value: float | int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else value
