"""The algebra: projections made of a matrix, or of other projections."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subspace_lib.checks import number
from subspace_lib.projections.base import COMPOSED, Projection
from subspace_lib.projections.sparse import product


class MatrixProjection(Projection):
    """A projection whose matrix is given, dense or in one of PyTorch's sparse formats.

    It holds the tensor itself, not a copy. It can train, but ``SubspaceModel.save`` refuses it: no seed draws it again.

    Parameters
    ----------
    matrix : Tensor
        P, of shape (D, d) with d <= D.

    Raises
    ------
    TypeError
        If ``matrix`` is not a tensor of floating-point numbers.
    ValueError
        If it is not a matrix with at least as many rows as columns.

    Examples
    --------
    >>> P = MatrixProjection(torch.eye(5)[:, :2])
    >>> P(torch.tensor([3.0, 4.0]))
    tensor([3., 4., 0., 0., 0.])
    """

    name = "matrix"

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor):
            raise TypeError(f"matrix must be a tensor, got {type(matrix).__name__}")
        if matrix.ndim != 2:
            raise ValueError(f"matrix must have shape (D, d), got {tuple(matrix.shape)}")
        if matrix.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
            raise TypeError(f"matrix must be dense or in the format COO, CSR or CSC, got {matrix.layout}")
        super().__init__(*matrix.shape, dtype=matrix.dtype)
        self.register_buffer("matrix", matrix.detach(), persistent=False)
        self.to(matrix.device)

    matrix: Tensor

    def _multiply(self, z: Tensor) -> Tensor:
        return z @ self.matrix.T if self.matrix.layout == torch.strided else product(self.matrix, z)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v @ self.matrix if self.matrix.layout == torch.strided else product(self.matrix.transpose(0, 1), v)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers that P keeps, and of their places where the matrix is sparse."""
        if self.matrix.layout == torch.strided:
            return self.matrix.nbytes
        if self.matrix.layout == torch.sparse_coo:
            return self.matrix._values().nbytes + self.matrix._indices().nbytes
        by_rows = self.matrix.layout == torch.sparse_csr
        starts = self.matrix.crow_indices() if by_rows else self.matrix.ccol_indices()
        places = self.matrix.col_indices() if by_rows else self.matrix.row_indices()
        return self.matrix.values().nbytes + starts.nbytes + places.nbytes


class ComposedProjection(Projection):
    """A projection that is made of others, which share a type and a device.

    Raises
    ------
    TypeError
        If a part is not a Projection.
    ValueError
        If their types or devices differ.
    """

    def __init__(self, D: int, d: int, seed: int, parts: Sequence[Projection]) -> None:
        first = parts[0]
        super().__init__(D, d, seed, dtype=first.dtype)
        for part in parts[1:]:
            if (part.dtype, part.device) != (first.dtype, first.device):
                raise ValueError(
                    f"parts must have one type and device, got {first.dtype} on {first.device} "
                    f"and {part.dtype} on {part.device}"
                )
        self.to(first.device)

    @property
    def nbytes(self) -> int:
        """Bytes that the parts keep; a part that stands there twice counts once."""
        parts = (part for child in self.children() for part in (child if isinstance(child, nn.ModuleList) else [child]))
        return sum(part.nbytes for part in parts if isinstance(part, Projection))


class ScaledProjection(ComposedProjection):
    """c P: another length of the columns, and so another learning rate for what P moves.

    With Adam the weights move c times as far a step, with SGD c * c times.

    Examples
    --------
    >>> P = make_projection("one_hot", D=100, d=4)
    >>> print(diagnose(0.5 * P)["column norm max"])
    0.5
    """

    name = "scaled"

    def __init__(self, P: Projection, factor: float) -> None:
        check_parts(P)
        super().__init__(P.D, P.d, P.seed, [P])
        self.factor = number("factor", factor)
        if not math.isfinite(self.factor):
            raise ValueError(f"factor must be finite, got {factor}")
        self.P = P

    def _multiply(self, z: Tensor) -> Tensor:
        return self.P._multiply(self.factor * z)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return self.factor * self.P._multiply_transposed(v)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        self.P._write(theta0, self.factor * z, out)

    def _pull(self, v: Tensor) -> Tensor:
        return self.factor * self.P._pull(v)


class SumProjection(ComposedProjection):
    """P + Q: both move the weights, by the same z.

    Examples
    --------
    >>> P, Q = (make_projection("dense", D=100, d=4, seed=seed) for seed in range(2))
    >>> z = torch.ones(4)
    >>> torch.equal((P + Q)(z), P(z) + Q(z))
    True
    """

    name = "sum"

    def __init__(self, P: Projection, Q: Projection) -> None:
        check_parts(P, Q)
        if (P.D, P.d) != (Q.D, Q.d):
            raise ValueError(f"P + Q needs one D and d, got D = {P.D}, d = {P.d} and D = {Q.D}, d = {Q.d}")
        super().__init__(P.D, P.d, P.seed, [P, Q])
        self.P, self.Q = P, Q

    def _multiply(self, z: Tensor) -> Tensor:
        return self.P._multiply(z) + self.Q._multiply(z)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return self.P._multiply_transposed(v) + self.Q._multiply_transposed(v)


class ProductProjection(ComposedProjection):
    """P Q: Q maps z into the subspace of P. ``P @ MatrixProjection(A)`` has the columns of P mixed by A.

    Examples
    --------
    >>> P = make_projection("hadamard", D=100, d=20)
    >>> (P @ make_projection("dense", D=20, d=3)).d
    3
    """

    name = "product"

    def __init__(self, P: Projection, Q: Projection) -> None:
        check_parts(P, Q)
        if P.d != Q.D:
            raise ValueError(f"P @ Q needs as many columns in P as rows in Q, got d = {P.d} of P and D = {Q.D} of Q")
        super().__init__(P.D, Q.d, P.seed, [P, Q])
        self.P, self.Q = P, Q

    def _multiply(self, z: Tensor) -> Tensor:
        return self.P._multiply(self.Q._multiply(z))

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return self.Q._multiply_transposed(self.P._multiply_transposed(v))

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        self.P._write(theta0, self.Q._multiply(z), out)

    def _pull(self, v: Tensor) -> Tensor:
        return self.Q._pull(self.P._pull(v))


def check_parts(*parts: object) -> None:
    """Raise a TypeError unless all are projections."""
    for part in parts:
        if not isinstance(part, Projection):
            raise TypeError(f"every part must be a Projection, got {type(part).__name__}")


COMPOSED.update({family.name: family for family in (ScaledProjection, SumProjection, ProductProjection)})
