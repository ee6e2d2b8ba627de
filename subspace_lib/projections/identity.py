"""All weights, trained as they are."""

from __future__ import annotations

from torch import Tensor

from subspace_lib.projections.base import Projection


class IdentityProjection(Projection):
    """P = I: z moves every weight directly, and d is D; for a block that trains all its weights beside others.

    Raises
    ------
    ValueError
        If d is not D.

    Examples
    --------
    >>> P = make_projection("identity", D=3, d=3)
    >>> P(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 2., 3.])
    """

    name = "identity"
    columns = "orthonormal"
    square = True

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """Nothing."""
        return 0.0

    def _multiply(self, z: Tensor) -> Tensor:
        return z.clone()

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v.clone()
