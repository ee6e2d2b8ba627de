"""A large matrix as the Kronecker product of two small ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from subspace_lib.checks import integer
from subspace_lib.projections.base import Projection, generator

COLUMNS_OF_A = 32
"""At least so many, so that the rows of A are nearly equally long."""
COLUMNS_OF_B = 16
"""At most so many, if that can be: as many numbers as a vector unit holds."""
PART_OF_A = 8
"""In a layer of m rows A has one column in so many rows, more only where B would have more columns than rows."""


class KroneckerProjection(Projection):
    """P = A kron B cut to D x d: two small products instead of one large one.

    A and B have about sqrt(D) rows; z is laid out as a matrix Z and P z is A Z B^T, read row by row. The columns of
    A and B are Gaussian with norm 1, or orthonormal, so the columns of P have norm 1 up to the few rows that are cut.
    A column of A costs a factor of d and one of B a factor of D, so B has at most 16 columns, and more only where A
    would have more columns than rows. A has at least 32, because all weights of one of its rows move more or less as
    that row is long. Cost: at most about 16 D operations up to d = 16 sqrt(D), then sqrt(D) d. Keeps at most about
    D + 16 sqrt(D) numbers, and far fewer for a small d.

    Parameters
    ----------
    D, d, seed, dtype
        As in ``Projection``.
    orthonormal : bool
        Orthonormal columns in A and B.
    shape : (int, int), optional
        Rows and columns (m, n) of a layer's weight matrix, which A and B then fit: Theta = Theta0 + A Z B^T. With
        D = m n the block is that of the weight; with D = m (n + 1) Theta has one column more, the bias, which stands
        behind the weight, as in the layer.
    ranks : (int, int), optional
        Columns (a, b) of A and B in a shape, with a b >= d; by default a is about m / 8, and b as large as d asks for.

    Examples
    --------
    >>> P = make_projection("kronecker", D=100, d=9)
    >>> torch.allclose(P.to_dense(), torch.kron(P.A, P.B))
    True
    >>> P = make_projection("kronecker", D=7 * 4 + 7, d=6, shape=(7, 4), ranks=(3, 2))
    >>> P.A.shape, P.B.shape
    (torch.Size([7, 3]), torch.Size([5, 2]))
    """

    name = "kronecker"
    columns = "expected"  # of norm 1 up to the rows that are cut, fewer than one in sqrt(D)
    variants = ({}, {"orthonormal": True})

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """At most about D + d numbers, or 64 sqrt(D) where that is more."""
        rows = math.ceil(math.sqrt(D))
        return 4 * rows * (min(rows, max(COLUMNS_OF_A, d / COLUMNS_OF_B)) + 1 + max(COLUMNS_OF_B, d / rows + 1)) / D

    def __init__(
        self,
        D: int,
        d: int,
        seed: int = 0,
        *,
        orthonormal: bool = False,
        shape: Sequence[int] | None = None,
        ranks: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        if not isinstance(orthonormal, bool):
            raise TypeError(f"orthonormal must be True or False, got {orthonormal!r}")
        self.orthonormal = orthonormal
        self.shape, self.ranks = _pair("shape", shape), _pair("ranks", ranks)
        drawn = generator(seed)
        if self.shape is None:
            rows_B = math.ceil(math.sqrt(D))
            rows_A = -(-D // rows_B)
            columns_A = min(rows_A, max(min(d, COLUMNS_OF_A), -(-d // COLUMNS_OF_B)))
        else:
            rows_A, rows_B = self._layer(*self.shape)
            columns_A = max(min(d, math.ceil(rows_A / PART_OF_A)), -(-d // rows_B))
        columns_B = -(-d // columns_A)
        if self.ranks is not None:
            columns_A, columns_B = self._given(*self.ranks, rows_A, rows_B)
        for name, rows, columns in (("A", rows_A, columns_A), ("B", rows_B, columns_B)):
            factor = torch.randn(rows, columns, generator=drawn, dtype=torch.float64)
            factor = torch.linalg.qr(factor).Q if orthonormal else factor.div_(factor.norm(dim=0))
            self.register_buffer(name, factor.to(self.dtype).contiguous(), persistent=False)
        # Without a shape, the last row of A Z B^T may be cut.
        self._rows, self._rest = divmod(D, rows_B)

    A: Tensor
    B: Tensor

    def _layer(self, m: int, n: int) -> tuple[int, int]:
        """Rows of A and B for a layer of this shape, with its bias or without."""
        if self.D not in (m * n, m * (n + 1)):
            raise ValueError(
                f"shape = ({m}, {n}) has {m * n} weights, {m * (n + 1)} with a bias, but D is {self.D}; "
                "give the rows and columns of the layer's weight"
            )
        return m, self.D // m

    def _given(self, a: int, b: int, rows_A: int, rows_B: int) -> tuple[int, int]:
        """Columns of A and B, where they are possible."""
        if self.shape is None:
            raise ValueError(f"ranks = ({a}, {b}) are those of a layer: give its shape as well")
        if not (a <= rows_A and b <= rows_B and a * b >= self.d):
            raise ValueError(
                f"ranks = ({a}, {b}) must be at most ({rows_A}, {rows_B}), and their product at least d = {self.d}"
            )
        return a, b

    def Z(self, z: Tensor) -> Tensor:
        """z as the matrix between A and B^T."""
        return _as_matrix(z, self.A.shape[1], self.B.shape[1])

    def _multiply(self, z: Tensor) -> Tensor:
        Theta = self.A @ self.Z(z) @ self.B.T
        if self.shape is None:
            return Theta.reshape(*z.shape[:-1], -1)[..., : self.D]
        weight, bias = Theta.tensor_split([self.shape[1]], dim=-1)
        return torch.cat([weight.flatten(-2), bias.flatten(-2)], dim=-1)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        if self.shape is not None:
            return super()._write(theta0, z, out)
        AZ = self.A @ self.Z(z)
        (start, last), (whole, rest) = self._cut(theta0), self._cut(out)
        torch.addmm(start, AZ[: self._rows], self.B.T, out=whole)
        if self._rest:
            torch.addmv(last, self.B[: self._rest], AZ[-1], out=rest)
        return None

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        m, n = len(self.A), len(self.B)
        if self.shape is None:
            V = _as_matrix(v, m, n)
        else:
            weight, bias = v.tensor_split([m * self.shape[1]], dim=-1)
            V = torch.cat([weight.unflatten(-1, self.shape), bias.unflatten(-1, (m, n - self.shape[1]))], dim=-1)
        return (self.A.T @ (V @ self.B)).reshape(*v.shape[:-1], -1)[..., : self.d]

    def _pull(self, v: Tensor) -> Tensor:
        if self.shape is not None:
            return self._multiply_transposed(v)
        whole, rest = self._cut(v)
        VB = whole @ self.B
        if self._rest:
            VB = torch.cat([VB, (rest @ self.B[: self._rest])[None]])
        return (self.A.T @ VB).view(-1)[: self.d]

    def _cut(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """A vector of D numbers as a matrix of whole rows, and what is left over."""
        whole = self._rows * len(self.B)
        return v[:whole].view(self._rows, len(self.B)), v[whole:]


def _pair(label: str, pair: Sequence[int] | None) -> tuple[int, int] | None:
    if pair is None:
        return None
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{label} must be a pair of integers, got {pair!r}")
    return integer(f"{label}[0]", pair[0], 1), integer(f"{label}[1]", pair[1], 1)


def _as_matrix(x: Tensor, rows: int, columns: int) -> Tensor:
    if missing := rows * columns - x.shape[-1]:
        x = torch.nn.functional.pad(x, (0, missing))
    return x.reshape(*x.shape[:-1], rows, columns)
