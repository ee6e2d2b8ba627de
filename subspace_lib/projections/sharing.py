"""Weights that share coordinates of z."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection, generator, wide


class OneHotProjection(Projection):
    """Each weight follows one coordinate of z, with a sign: weight sharing (Chen et al. 2015).

    A random permutation of the weights is cut into d groups whose sizes differ by at most one; the weights
    of group j are +-z_j / sqrt(size of the group). The columns do not overlap, so P is orthonormal exactly,
    and every weight moves. Keeps one 64-bit index a weight.

    Examples
    --------
    >>> make_projection("one_hot", D=6, d=2).to_dense().count_nonzero(dim=0)
    tensor([3, 3])
    """

    name = "one_hot"
    columns = "orthonormal"

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """One 64-bit index a weight, and two numbers a column."""
        return 8 + 8 * d / D

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        # The signs alternate within a group, whose weights come in random order: entries run 0, ..., 2 d - 1, 0, ...
        in_order = torch.arange(D).remainder_(2 * d)
        entry = torch.empty(D, dtype=torch.int64)
        entry[torch.randperm(D, generator=generator(seed))] = in_order
        sizes = torch.full((d,), D // d)
        sizes[: D % d] += 1
        self.register_buffer("entry", entry, persistent=False)
        scale = sizes.to(wide(self.dtype)).rsqrt().to(self.dtype)
        self.register_buffer("signed_scale", torch.stack([scale, -scale]), persistent=False)

    entry: Tensor  # (D,) where in [z, -z] a weight finds its value
    signed_scale: Tensor  # (2, d) plus and minus one over the square root of each group's size

    def _multiply(self, z: Tensor) -> Tensor:
        return (z[..., None, :] * self.signed_scale).flatten(-2).index_select(-1, self.entry)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        # One table for each half of the weights, so that two threads can fill them; an odd one is added at the end.
        half = self.D // 2
        halves, odd = v[..., : 2 * half].unflatten(-1, (2, half)), v[..., 2 * half :]
        sums = v.new_zeros(*v.shape[:-1], 2, 2 * self.d, dtype=wide(v.dtype))
        sums.scatter_add_(-1, self.entry[: 2 * half].view(2, half).expand_as(halves), halves.to(sums.dtype))
        if odd.shape[-1]:
            sums[..., 0, :].scatter_add_(-1, self.entry[2 * half :].expand_as(odd), odd.to(sums.dtype))
        return (sums.view(*v.shape[:-1], 2, 2, self.d) * self.signed_scale).sum((-3, -2)).to(v.dtype)
