"""Gaussian columns and orthonormal ones, stored as a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection

COLUMNS_PER_DRAW = 16
"""Columns are drawn in full blocks of this many, so that the first d columns never depend on d."""


LIMIT_BYTES = 16 * 2**30
"""The most memory that drawing a stored P may take."""


def _refuse_if_too_large(P: Projection, columns: int) -> None:
    needed = P.D * columns * P.dtype.itemsize
    if needed > LIMIT_BYTES:
        raise ValueError(
            f"{P.name} P with D = {P.D}, d = {P.d} needs {needed:,} bytes, over the limit of {LIMIT_BYTES:,}; "
            'use "hadamard" or "one_hot", which keep a few bytes a weight'
        )


class DenseProjection(Projection):
    """Gaussian columns, each divided by its norm: the projection of Li et al. (2018), section 2.

    P[:, j] = g_j / |g_j| with g_j ~ N(0, I_D). Every column has norm 1 exactly; two columns meet at an angle
    whose cosine is about 1/sqrt(D). The first d columns are the same for every d. Keeps D d numbers.

    Raises
    ------
    ValueError
        If the matrix would need more than ``LIMIT_BYTES``.
    """

    name = "dense"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        _refuse_if_too_large(self, d + COLUMNS_PER_DRAW)
        generator = torch.Generator().manual_seed(seed)
        columns = torch.empty(d, D, dtype=self.dtype)
        for start in range(0, d, COLUMNS_PER_DRAW):
            block = torch.randn(COLUMNS_PER_DRAW, D, generator=generator)[: d - start].to(self.dtype)
            columns[start : start + COLUMNS_PER_DRAW] = block / block.norm(dim=1, keepdim=True)
        self.register_buffer("columns", columns, persistent=False)

    columns: Tensor  # (d, D), that is P^T: a column of P is one run of memory

    def _multiply(self, z: Tensor) -> Tensor:
        return z @ self.columns

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v @ self.columns.T


class OrthogonalProjection(Projection):
    """Orthonormal columns: Q of the QR decomposition of a Gaussian matrix.

    P^T P = I to rounding, uniformly distributed over all orthonormal D x d matrices. Drawing it costs 2 D d^2
    operations and three times the memory of P; "hadamard" gives orthonormal columns for nothing.

    Raises
    ------
    ValueError
        If the decomposition would need more than ``LIMIT_BYTES``.
    """

    name = "orthogonal"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        _refuse_if_too_large(self, 3 * d)
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(d, D, generator=generator).T.to(self.dtype)
        Q, R = torch.linalg.qr(gaussian)
        # With the signs of R's diagonal made positive, Q is unique, and uniform (Haar) over its kind.
        Q *= torch.where(R.diagonal() < 0, -1.0, 1.0).to(self.dtype)
        self.register_buffer("columns", Q.T.contiguous(), persistent=False)

    columns: Tensor  # (d, D)

    def _multiply(self, z: Tensor) -> Tensor:
        return z @ self.columns

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v @ self.columns.T
