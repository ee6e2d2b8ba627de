"""A large matrix as the Kronecker product of two small ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection, generator

COLUMNS_OF_A = 32
"""At least so many, so that the rows of A are nearly equally long."""
COLUMNS_OF_B = 16
"""At most so many, if that can be: as many numbers as a vector unit holds."""


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

    Examples
    --------
    >>> P = make_projection("kronecker", D=100, d=9)
    >>> torch.allclose(P.to_dense(), torch.kron(P.A, P.B))
    True
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
        self, D: int, d: int, seed: int = 0, *, orthonormal: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        if not isinstance(orthonormal, bool):
            raise TypeError(f"orthonormal must be True or False, got {orthonormal!r}")
        self.orthonormal = orthonormal
        drawn = generator(seed)
        rows_B = math.ceil(math.sqrt(D))
        rows_A = -(-D // rows_B)
        columns_A = min(rows_A, max(min(d, COLUMNS_OF_A), -(-d // COLUMNS_OF_B)))
        columns_B = -(-d // columns_A)
        for name, rows, columns in (("A", rows_A, columns_A), ("B", rows_B, columns_B)):
            factor = torch.randn(rows, columns, generator=drawn, dtype=torch.float64)
            factor = torch.linalg.qr(factor).Q if orthonormal else factor.div_(factor.norm(dim=0))
            self.register_buffer(name, factor.to(self.dtype).contiguous(), persistent=False)
        # The last row of A Z B^T may be cut.
        self._rows, self._rest = divmod(D, rows_B)

    A: Tensor
    B: Tensor

    def _multiply(self, z: Tensor) -> Tensor:
        Z = _as_matrix(z, self.A.shape[1], self.B.shape[1])
        return (self.A @ Z @ self.B.T).reshape(*z.shape[:-1], -1)[..., : self.D]

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        AZ = self.A @ _as_matrix(z, self.A.shape[1], self.B.shape[1])
        (start, last), (whole, rest) = self._cut(theta0), self._cut(out)
        torch.addmm(start, AZ[: self._rows], self.B.T, out=whole)
        if self._rest:
            torch.addmv(last, self.B[: self._rest], AZ[-1], out=rest)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        V = _as_matrix(v, self.A.shape[0], self.B.shape[0])
        return (self.A.T @ (V @ self.B)).reshape(*v.shape[:-1], -1)[..., : self.d]

    def _pull(self, v: Tensor) -> Tensor:
        whole, rest = self._cut(v)
        VB = whole @ self.B
        if self._rest:
            VB = torch.cat([VB, (rest @ self.B[: self._rest])[None]])
        return (self.A.T @ VB).view(-1)[: self.d]

    def _cut(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """A vector of D numbers as a matrix of whole rows, and what is left over."""
        whole = self._rows * len(self.B)
        return v[:whole].view(self._rows, len(self.B)), v[whole:]


def _as_matrix(x: Tensor, rows: int, columns: int) -> Tensor:
    padded = torch.nn.functional.pad(x, (0, rows * columns - x.shape[-1]))
    return padded.reshape(*x.shape[:-1], rows, columns)
