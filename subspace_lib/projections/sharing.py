"""Weights that share coordinates of z."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection


class OneHotProjection(Projection):
    """Each weight follows one coordinate of z, with a random sign: weight sharing (Chen et al. 2015).

    A random permutation of the weights is cut into d groups whose sizes differ by at most one; the weights
    of group j are +-z_j / sqrt(size of the group). The columns do not overlap, so P is orthonormal exactly,
    and every weight moves. Keeps one 64-bit index and one signed factor a weight.
    """

    name = "one_hot"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        group_of_place = torch.arange(D) % d
        group = torch.empty(D, dtype=torch.int64)
        group[torch.randperm(D, generator=generator)] = group_of_place
        signs = 2 * torch.randint(0, 2, (D,), generator=generator) - 1
        sizes = torch.full((d,), D // d)
        sizes[: D % d] += 1
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("factor", signs.to(self.dtype) / sizes.to(self.dtype).sqrt()[group], persistent=False)

    group: Tensor  # (D,) which coordinate of z a weight follows
    factor: Tensor  # (D,) its sign over the square root of the group's size

    def _multiply(self, z: Tensor) -> Tensor:
        return z.index_select(-1, self.group) * self.factor

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        flat = (v * self.factor).reshape(-1, self.D)
        sums = flat.new_zeros(len(flat), self.d).scatter_add_(1, self.group.expand_as(flat), flat)
        return sums.reshape(*v.shape[:-1], self.d)
