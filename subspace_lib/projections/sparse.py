"""Columns with few entries that are not zero."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from subspace_lib.checks import number
from subspace_lib.projections import kernels
from subspace_lib.projections.base import Projection, generator, refuse_if_too_large

COLUMNS_PER_DRAW = 64
"""Columns are drawn in full blocks of this many, so that the first d columns never depend on d."""

BLOCK = 2**15 - 1
"""Columns whose numbers, their negatives and a zero have places of 16 bits, for a kernel."""
WINDOW = 2**12
"""Rows among which those of one length are put together, near enough to each other to stay in the caches."""
GROUPED = 2**25
"""Entries, and rows of all blocks, up to which a kernel gets an order of its own; making it takes some 50 bytes for
each for a moment."""

LAYOUTS = ("two_way", "dense", "coo", "csr", "csc")
"""Ways to keep the same sparse P."""

FORMATS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "coo": (partial(torch.sparse_coo_tensor, is_coalesced=True), ("indices", "value_by_row")),
    "csr": (torch.sparse_csr_tensor, ("row_starts", "column_of", "value_by_row")),
    "csc": (torch.sparse_csc_tensor, ("column_starts", "row_of", "value_by_column")),
}


class SparseProjection(Projection):
    """k random signs a column, in k distinct random rows: very sparse random projections (Li et al. 2006).

    Column j has k = max(1, round(density * D)) entries of +-1/sqrt(k), in rows drawn for this column on its
    own, so its norm is 1 exactly. A weight whose row holds no entry cannot move: a share of about
    exp(-d * density) of them.

    ``layout`` says how the same P is kept. "two_way" keeps P and its transpose, both by rows (CSR) with 32-bit
    indices: P z and P^T v are then each one pass over memory; 16 bytes an entry in float32, d * k entries. Kernels
    have orders of their own, made at the first step: 4 bytes an entry more.
    "coo", "csr" and "csc" are PyTorch's own formats with its own products, and "dense" is a full matrix: they are
    here to be compared.

    Parameters
    ----------
    D, d, seed, dtype
        As in ``Projection``.
    density : float, optional
        Share of entries that are not zero, in (0, 1]; default 1/sqrt(D).
    layout : str
        One of ``LAYOUTS``.

    Examples
    --------
    >>> P = make_projection("sparse", D=10_000, d=50)
    >>> P.k, diagnose(P)["reach"] < 0.5
    (100, True)
    """

    name = "sparse"
    columns = "unit"
    nested = True
    variants = ({}, *({"layout": layout} for layout in LAYOUTS[1:]))
    dtypes = (torch.float32, torch.float64)

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """16 bytes an entry, and where the rows and the columns start."""
        return (16 * d * max(1, round(math.sqrt(D))) + 4 * (D + d + 2)) / D

    def __init__(
        self,
        D: int,
        d: int,
        seed: int = 0,
        *,
        density: float | None = None,
        layout: str = "two_way",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; choose one of: {', '.join(LAYOUTS)}")
        density = 1 / math.sqrt(D) if density is None else number("density", density)
        if not 0 < density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {density}")
        self.density = density
        self.layout = layout
        self.k = max(1, round(self.density * D))
        if layout == "dense":
            refuse_if_too_large(self, d)
        if d * self.k >= 2**31:
            raise ValueError(
                f"sparse P with D = {D}, d = {d}, density = {self.density:g} has {d * self.k:,} entries, "
                'more than the 2**31 that 32-bit indices reach; lower the density or use "hadamard"'
            )
        drawn = generator(seed)
        rows = torch.empty(d, self.k, dtype=torch.int32)
        signs = torch.empty(d, self.k, dtype=torch.int8)
        for start in range(0, d, COLUMNS_PER_DRAW):
            here = slice(start, min(start + COLUMNS_PER_DRAW, d))
            distinct = distinct_integers(COLUMNS_PER_DRAW, self.k, D, drawn)
            sign = torch.randint(0, 2, (COLUMNS_PER_DRAW, self.k), generator=drawn, dtype=torch.int8)
            rows[here], signs[here] = distinct[: d - start], (2 * sign - 1)[: d - start]
        _hear_the_warning_of_beta()
        self._groups: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._keep(rows, signs.to(self.dtype) / math.sqrt(self.k))

    def _keep(self, rows: Tensor, values: Tensor) -> None:
        """Keep the buffers of the layout; column j has its entries in ``rows[j]``, of shape (k,)."""
        if self.layout == "dense":
            matrix = torch.zeros(self.d, self.D, dtype=self.dtype).scatter_(1, rows.long(), values)
            self.register_buffer("matrix", matrix.T, persistent=False)
            return
        index = torch.int32 if self.layout == "two_way" else torch.int64  # PyTorch's own formats have 64 bits
        buffers: dict[str, Tensor] = {}
        if self.layout in ("two_way", "csc"):
            starts = torch.arange(0, self.d * self.k + 1, self.k, dtype=index)
            buffers |= {
                "column_starts": starts,
                "row_of": rows.flatten().to(index),
                "value_by_column": values.flatten(),
            }
        if self.layout != "csc":
            order = torch.argsort(rows.flatten(), stable=True).to(torch.int32)
            starts = torch.zeros(self.D + 1, dtype=index)
            torch.cumsum(torch.bincount(rows.flatten(), minlength=self.D), 0, dtype=index, out=starts[1:])
            column_of, value_by_row = (order // self.k).to(index), values.flatten()[order]
            buffers |= {"row_starts": starts, "column_of": column_of, "value_by_row": value_by_row}
        if self.layout == "coo":
            row_of = torch.repeat_interleave(torch.arange(self.D), buffers.pop("row_starts").diff())
            buffers |= {"indices": torch.stack([row_of, buffers.pop("column_of")])}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def _multiply(self, z: Tensor) -> Tensor:
        if self.layout != "two_way":
            return product(self._matrix(), z)
        return csr_product(z, *map(self.get_buffer, ("row_starts", "column_of", "value_by_row")))

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        if self.layout != "two_way":
            return product(self._matrix().transpose(0, 1), v)
        return csr_product(v, *map(self.get_buffer, ("column_starts", "row_of", "value_by_column")))

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        kernel = self._kernel(theta0, z, out)
        if kernel is None:
            return super()._write(theta0, z, out)
        return self._by_groups(kernel, ("row_starts", "column_of", "value_by_row"), theta0, z, out)

    def _pull(self, v: Tensor) -> Tensor:
        kernel = self._kernel(v)
        if kernel is None:
            return self._multiply_transposed(v)
        z = v.new_zeros(self.d)
        self._by_groups(kernel, ("column_starts", "row_of", "value_by_column"), z, v, z)
        return z

    def _kernel(self, *vectors: Tensor) -> kernels.Kernels | None:
        grouped = self.layout == "two_way" and self.d * max(self.k, self.D // BLOCK) <= GROUPED
        return kernels.taking(self._like, *vectors) if grouped else None

    def _made(self) -> list[Tensor]:
        return [one for groups in self._groups.values() for group in groups for one in group]

    def _by_groups(
        self, kernel: kernels.Kernels, names: tuple[str, str, str], start: Tensor, x: Tensor, out: Tensor
    ) -> None:
        """out = start + A x, for the matrix A that these buffers keep, block by block of its columns."""
        starts, columns, values = map(self.get_buffer, names)
        if names[0] not in self._groups:
            self._groups[names[0]] = groups_of_rows(starts, columns, values, len(x))
        x = x * values[0].abs()
        for part, groups in zip(x.split(BLOCK), self._groups[names[0]], strict=True):
            table = torch.cat([part, -part, part.new_zeros(1)])
            kernel("sparse_product", kernels.threads_for(self.D), len(groups[-1]), *groups, start, table, out)
            start = out

    def _matrix(self) -> Tensor:
        """P of shape (D, d) in PyTorch's own format, made of the buffers without a copy."""
        if self.layout == "dense":
            return self.get_buffer("matrix")
        make, names = FORMATS[self.layout]
        return make(*map(self.get_buffer, names), (self.D, self.d), check_invariants=False)


@functools.cache
def _hear_the_warning_of_beta() -> None:
    """Make PyTorch say here, unheard, what it says once a process of its first CSR matrix: that they are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def product(A: Tensor, x: Tensor) -> Tensor:
    """A x along the last axis of x, for a matrix A in any format."""
    flat = x.reshape(-1, x.shape[-1])
    y = (A @ flat[0])[None] if len(flat) == 1 else (A @ flat.T).T
    return y.reshape(*x.shape[:-1], len(A))


def csr_product(x: Tensor, starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """A x along the last axis of x, for a matrix A kept by its rows."""
    if x.device.type == "cpu" and not torch.backends.mkl.is_available():
        return gather_product(starts, columns, values, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
    shape = (len(starts) - 1, x.shape[-1])
    return product(torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False), x)


def groups_of_rows(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A matrix kept by its rows as the kernel ``sparse_product`` takes it: offsets, entries, order of each block."""
    rows, groups = len(starts) - 1, []
    all_rows, window = torch.repeat_interleave(torch.arange(rows), starts.diff()), torch.arange(rows) // WINDOW
    block_of = columns // BLOCK
    by_block, sizes = torch.argsort(block_of, stable=True), torch.bincount(block_of, minlength=-(-width // BLOCK))
    for first, here in zip(range(0, width, BLOCK), by_block.split(sizes.tolist()), strict=True):
        size = min(BLOCK, width - first)
        row, entry = all_rows[here], columns[here] - first + size * (values[here] < 0)
        length = torch.bincount(row, minlength=rows)
        order = torch.argsort(window * (width + 1) + length, stable=True)
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(rows))[row]
        longest = torch.nn.functional.pad(length[order], (0, -rows % 16)).view(-1, 16).amax(1)
        offsets = torch.nn.functional.pad(longest.cumsum(0), (1, 0))
        nth = torch.arange(len(row)) - (length.cumsum(0) - length)[row]
        entries = torch.full((int(offsets[-1]), 16), 2 * size, dtype=torch.int32)
        entries[offsets[place // 16] + nth, place % 16] = entry.int()
        groups.append((offsets, entries.to(torch.uint16), order.int()))
    return groups


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
            torch.rand(min(step, count - start), D, generator=generator, dtype=torch.float32).argsort(dim=1)[:, :k]
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
