"""Gaussian columns, stored as a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection

COLUMNS_PER_DRAW = 16
"""Columns are drawn in full blocks of this many, so that the first d columns never depend on d."""


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
    LIMIT_BYTES = 32 * 2**30

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        needed = D * d * self._like.element_size()
        if needed > self.LIMIT_BYTES:
            raise ValueError(
                f"dense P with D = {D}, d = {d} needs {needed:,} bytes, over the limit of {self.LIMIT_BYTES:,}; "
                'use "hadamard" or "one_hot", which keep a few bytes a weight'
            )
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
