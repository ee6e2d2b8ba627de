"""Columns with few entries that are not zero."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

COLUMNS_PER_DRAW = 64
"""Columns are drawn in full blocks of this many, so that the first d columns never depend on d."""


class SparseProjection(Projection):
    """k random signs a column, in k distinct random rows: very sparse random projections (Li et al. 2006).

    Column j has k = max(1, round(density * D)) entries of +-1/sqrt(k), in rows drawn for this column on its
    own, so its norm is 1 exactly. P is kept twice, as itself and as its transpose, both by rows (CSR) with
    32-bit indices: P z and P^T v are then each one pass over memory. A weight whose row holds no entry
    cannot move: a share of about exp(-d * density) of them. Keeps 16 bytes per entry in float32, d * k entries.

    Parameters
    ----------
    D, d, seed, dtype
        As in ``Projection``.
    density : float, optional
        Share of entries that are not zero, in (0, 1]; default 1/sqrt(D).
    """

    name = "sparse"

    def __init__(
        self, D: int, d: int, seed: int = 0, *, density: float | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        density = 1 / math.sqrt(D) if density is None else density
        if isinstance(density, bool) or not isinstance(density, int | float):
            raise TypeError(f"density must be a number in (0, 1], got {density!r}")
        if not 0 < density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {density}")
        self.density = float(density)
        self.k = max(1, round(self.density * D))
        if d * self.k >= 2**31:
            raise ValueError(
                f"sparse P with D = {D}, d = {d}, density = {self.density:g} has {d * self.k:,} entries, "
                'more than the 2**31 that 32-bit indices reach; lower the density or use "hadamard"'
            )
        generator = torch.Generator().manual_seed(seed)
        rows = torch.empty(d, self.k, dtype=torch.int32)
        signs = torch.empty(d, self.k, dtype=torch.int8)
        for start in range(0, d, COLUMNS_PER_DRAW):
            here = slice(start, min(start + COLUMNS_PER_DRAW, d))
            drawn = distinct_integers(COLUMNS_PER_DRAW, self.k, D, generator)
            sign = torch.randint(0, 2, (COLUMNS_PER_DRAW, self.k), generator=generator, dtype=torch.int8)
            rows[here], signs[here] = drawn[: d - start], (2 * sign - 1)[: d - start]
        self._keep_both_ways(rows.flatten(), signs.flatten())

    def _keep_both_ways(self, rows: Tensor, signs: Tensor) -> None:
        values = signs.to(self.dtype) / math.sqrt(self.k)
        order = torch.argsort(rows, stable=True).to(torch.int32)
        entries_before_row = torch.zeros(self.D + 1, dtype=torch.int32)
        torch.cumsum(torch.bincount(rows, minlength=self.D), 0, dtype=torch.int32, out=entries_before_row[1:])
        column_starts = torch.arange(0, self.d * self.k + 1, self.k, dtype=torch.int32)
        for name, buffer in {
            "row_starts": entries_before_row,
            "column_of": order // self.k,
            "value_by_row": values[order],
            "column_starts": column_starts,
            "row_of": rows,
            "value_by_column": values,
        }.items():
            self.register_buffer(name, buffer, persistent=False)

    row_starts: Tensor
    column_of: Tensor
    value_by_row: Tensor
    column_starts: Tensor
    row_of: Tensor
    value_by_column: Tensor

    def options(self) -> dict[str, Any]:
        """The density, beside D, d and seed."""
        return {"density": self.density}

    def _multiply(self, z: Tensor) -> Tensor:
        return csr_product(self.row_starts, self.column_of, self.value_by_row, z, self.D)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return csr_product(self.column_starts, self.row_of, self.value_by_column, v, self.d)


def csr_product(starts: Tensor, columns: Tensor, values: Tensor, x: Tensor, rows: int) -> Tensor:
    """A x for a matrix A in CSR form, x of shape (..., columns of A); the result has shape (..., rows)."""
    flat = x.reshape(-1, x.shape[-1])
    if x.device.type == "cpu" and not torch.backends.mkl.is_available():
        return gather_product(starts, columns, values, flat).reshape(*x.shape[:-1], rows)
    A = torch.sparse_csr_tensor(starts, columns, values, (rows, x.shape[-1]), check_invariants=False)
    product = (A @ flat[0])[None] if len(flat) == 1 else (A @ flat.T).T
    return product.reshape(*x.shape[:-1], rows)


def gather_product(starts: Tensor, columns: Tensor, values: Tensor, flat: Tensor) -> Tensor:
    """The same product without a CSR kernel, for builds of torch that have none: gather, then add by row."""
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    return flat.new_zeros(len(flat), len(starts) - 1).index_add_(1, rows, flat[:, columns.long()] * values)


def distinct_integers(count: int, k: int, D: int, generator: torch.Generator) -> Tensor:
    """``count`` rows of k distinct integers below D, every subset equally likely; int32, shape (count, k).

    Draws with replacement and draws the repeated ones again, which is drawing without replacement; where
    more than a quarter of the integers is wanted, sorts random keys instead.
    """
    if 4 * k > D:
        step = max(1, 2**24 // D)
        parts = [
            torch.rand(min(step, count - start), D, generator=generator).argsort(dim=1)[:, :k]
            for start in range(0, count, step)
        ]
        return torch.cat(parts).to(torch.int32)
    drawn = torch.randint(0, D, (count, k), generator=generator)
    while True:
        drawn = drawn.sort(dim=1).values
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated[:, 1:] = drawn[:, 1:] == drawn[:, :-1]
        missing = int(repeated.sum())
        if missing == 0:
            return drawn.to(torch.int32)
        drawn[repeated] = torch.randint(0, D, (missing,), generator=generator)
