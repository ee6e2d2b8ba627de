"""Weights that share coordinates of z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subspace_lib.projections import kernels
from subspace_lib.projections.base import Projection, generator, wide

CHUNK = 2**18
"""Weights at a time where PyTorch wants indices of 64 bits: made of those of 32 bits within the caches."""


class OneHotProjection(Projection):
    """Each weight follows one coordinate of z, with a sign: weight sharing (Chen et al. 2015).

    A random permutation of the weights is cut into d groups whose sizes differ by at most one; the weights
    of group j are +-z_j / sqrt(size of the group). The columns do not overlap, so P is orthonormal exactly,
    and every weight moves. Keeps one 32-bit index a weight.

    Examples
    --------
    >>> make_projection("one_hot", D=6, d=2).to_dense().count_nonzero(dim=0)
    tensor([3, 3])
    """

    name = "one_hot"
    columns = "orthonormal"

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """One 32-bit index a weight, and two numbers a column."""
        return 4 + 8 * (d + 1) / D

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        if d >= 2**30:
            raise ValueError(f"one_hot reaches 2 d entries with 32-bit indices, so d must be below 2**30, got {d}")
        # The signs alternate within a group, whose weights come in random order: entries run 0, ..., 2 d - 1, 0, ...
        entry = torch.empty(D, dtype=torch.int32)
        order = torch.randperm(D, generator=generator(seed), dtype=torch.int32 if D < 2**31 else torch.int64)
        for start in range(0, D, CHUNK):
            places = order[start : start + CHUNK].long()
            entry[places] = torch.arange(start, start + len(places)).remainder_(2 * d).int()
        self.register_buffer("entry", entry, persistent=False)
        sizes = torch.full((d,), D // d)
        sizes[: D % d] += 1
        scale = sizes.to(wide(self.dtype)).rsqrt().to(self.dtype)
        self.register_buffer("signed_scale", torch.stack([scale, -scale]), persistent=False)

    entry: Tensor  # (D,) where in [z, -z] a weight finds its value
    signed_scale: Tensor  # (2, d) plus and minus one over the square root of each group's size

    def _multiply(self, z: Tensor) -> Tensor:
        return (z[..., None, :] * self.signed_scale).flatten(-2).index_select(-1, self.entry)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        if triton := kernels.in_triton(self._like, theta0, z, out):
            triton.one_hot_write(theta0, z, self.entry, self.signed_scale, out)
            return
        table = (z * self.signed_scale).view(-1)
        if kernel := kernels.taking(self._like, theta0, z, out):
            kernel("one_hot_write", kernels.threads_for(self.D), self.D, theta0, table, self.entry, out)
        else:
            torch.index_select(table, 0, self.entry, out=out).add_(theta0)

    def _pull(self, v: Tensor) -> Tensor:
        if triton := kernels.in_triton(self._like, v):
            z: Tensor = triton.one_hot_pull(v, self.entry, self.signed_scale)
            return z
        kernel = kernels.taking(self._like, v)
        return self._multiply_transposed(v) if kernel is None else self._gather(kernel, [v])

    def pull_pieces(self, pieces: Sequence[Tensor], spare: Tensor) -> Tensor:
        """Read where they lie, by the kernel."""
        kernel = kernels.taking(self._like, *pieces)
        if kernel is None or sum(map(len, pieces)) != self.D:
            return super().pull_pieces(pieces, spare)
        return self._gather(kernel, pieces)

    def _gather(self, kernel: kernels.Kernels, pieces: Sequence[Tensor]) -> Tensor:
        threads, lengths = kernels.threads_for(self.D), [len(piece) for piece in pieces]
        sums, z = self._like.new_empty(threads, 2, self.d), self._like.new_empty(self.d)
        kernel("one_hot_pull", threads, len(pieces), self.d, lengths, pieces, self.entry, self.signed_scale, sums, z)
        return z

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        # One table for each half of a chunk, so that two threads can fill them; an odd number goes into the first.
        sums = v.new_zeros(*v.shape[:-1], 2, 2 * self.d, dtype=wide(v.dtype))
        for part, entry in zip(v.split(CHUNK, dim=-1), self.entry.split(CHUNK), strict=True):
            half, index = len(entry) // 2, entry.long()
            halves, odd = part[..., : 2 * half].unflatten(-1, (2, half)), part[..., 2 * half :]
            sums.scatter_add_(-1, index[: 2 * half].view(2, half).expand_as(halves), halves.to(sums.dtype))
            if len(entry) % 2:
                sums[..., 0, :].scatter_add_(-1, index[-1:].expand_as(odd), odd.to(sums.dtype))
        return (sums.view(*v.shape[:-1], 2, 2, self.d) * self.signed_scale).sum((-3, -2)).to(v.dtype)
