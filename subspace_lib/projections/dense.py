"""Gaussian columns and orthonormal ones, stored as a matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection, generator, refuse_if_too_large, wide

COLUMNS_PER_DRAW = 16
"""Columns are drawn in full blocks of this many, so that the first d columns never depend on d."""


class DenseProjection(Projection):
    """Gaussian columns, each divided by its norm: the projection of Li et al. (2018), section 2.

    ``P[:, j] = g_j / |g_j|`` with ``g_j ~ N(0, I_D)``. Every column has norm 1 exactly; two columns meet at an angle
    whose cosine is about 1/sqrt(D). The first d columns are the same for every d. Keeps D d numbers; with
    ``store=False`` none, and every product draws the columns again, a few at a time.

    Parameters
    ----------
    D, d, seed, dtype
        As in ``Projection``.
    store : bool
        Whether to keep the matrix.

    Raises
    ------
    ValueError
        If the matrix, or with ``store=False`` one draw of it, would need more than ``LIMIT_BYTES``.

    Examples
    --------
    >>> P = make_projection("dense", D=1000, d=4, seed=0)
    >>> torch.equal(P.to_dense()[:, :2], make_projection("dense", D=1000, d=2, seed=0).to_dense())
    True
    >>> P.nbytes, make_projection("dense", D=1000, d=4, seed=0, store=False).nbytes
    (16000, 0)
    """

    name = "dense"
    columns = "unit"
    nested = True
    variants = ({}, {"store": False})

    def __init__(self, D: int, d: int, seed: int = 0, *, store: bool = True, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        if not isinstance(store, bool):
            raise TypeError(f"store must be True or False, got {store!r}")
        self.store = store
        refuse_if_too_large(self, COLUMNS_PER_DRAW + (d if store else 0))
        if store:
            transposed = torch.empty(d, D, dtype=self.dtype)
            for start, block in self._drawn():
                transposed[start : start + len(block)] = block
            self.register_buffer("transposed", transposed, persistent=False)

    transposed: Tensor  # (d, D): a column of P is one run of memory

    def _drawn(self) -> Iterator[tuple[int, Tensor]]:
        """The columns as rows of blocks, each with the number of its first."""
        drawn = generator(self.seed)
        for start in range(0, self.d, COLUMNS_PER_DRAW):
            block = torch.randn(COLUMNS_PER_DRAW, self.D, generator=drawn, dtype=torch.float32, device="cpu")
            block = block[: self.d - start].to(self.device, wide(self.dtype))
            yield start, block.div_(block.norm(dim=1, keepdim=True)).to(self.dtype)

    def _multiply(self, z: Tensor) -> Tensor:
        if self.store:
            return z @ self.transposed
        displacement = z.new_zeros(*z.shape[:-1], self.D, dtype=wide(self.dtype))
        for start, block in self._drawn():
            displacement += z[..., start : start + len(block)] @ block
        return displacement.to(self.dtype)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        if self.store:
            return v @ self.transposed.T
        return torch.cat([v @ block.T for _, block in self._drawn()], dim=-1)


class OrthogonalProjection(Projection):
    """Orthonormal columns: Q of the QR decomposition of a Gaussian matrix.

    P^T P = I to rounding, uniformly distributed over all orthonormal D x d matrices. Drawing it costs about
    4 D d^2 operations (half of them to form Q) and three times the memory of P; "hadamard" gives orthonormal columns
    for nothing.

    Raises
    ------
    ValueError
        If the decomposition would need more than ``LIMIT_BYTES``.

    Examples
    --------
    >>> P = make_projection("orthogonal", D=1000, d=4).to_dense()
    >>> torch.allclose(P.T @ P, torch.eye(4), atol=1e-5)
    True
    """

    name = "orthogonal"
    columns = "orthonormal"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        refuse_if_too_large(self, 3 * d)
        gaussian = torch.randn(d, D, generator=generator(seed), dtype=torch.float32).T.to(wide(self.dtype))
        Q, R = torch.linalg.qr(gaussian)
        # With the signs of R's diagonal made positive, Q is unique, and uniform (Haar) over its kind.
        Q *= torch.where(R.diagonal() < 0, -1, 1)
        self.register_buffer("transposed", Q.T.contiguous().to(self.dtype), persistent=False)

    transposed: Tensor  # (d, D)

    def _multiply(self, z: Tensor) -> Tensor:
        return z @ self.transposed

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v @ self.transposed.T
