"""Matrix-free projections made of fast transforms."""

from __future__ import annotations

import functools
import math
from types import ModuleType

import torch
from torch import Tensor

from subspace_lib.projections import kernels
from subspace_lib.projections.base import Projection, generator

LARGEST_FACTOR_BITS = 4
"""A transform runs as products with matrices of order 2^4 at most: few operations, each of them dense."""
SIGNS_BITS = 5
"""The signs of a block's rows are the Kronecker product of random vectors of 2^5 signs at most."""
STRIP = 3 * 2**13
"""Rows of 16 numbers that a kernel works on at a time: 1.5 MiB, which a core's second cache holds."""


def hadamard_matrix(n: int) -> Tensor:
    """Sylvester's Hadamard matrix of order n, a power of two: entries +-1, H H = n I."""
    H = torch.ones(1, 1)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def factor_orders(n: int, largest_bits: int = LARGEST_FACTOR_BITS) -> list[int]:
    """Powers of two, nearly equal, at most 2^largest_bits each, whose product is n."""
    bits = n.bit_length() - 1
    count = max(1, -(-bits // largest_bits))
    return [1 << (bits * (i + 1) // count - bits * i // count) for i in range(count)]


def hadamard_transform(x: Tensor, H: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """The Hadamard transform of every column of x, of shape (batch, n, columns).

    The matrix of order n is the Kronecker product of small ones, each of them a corner of ``H``, and the cost is n
    times the sum of their orders a column instead of n^2.

    x and ``spare``, of the same shape, are both written over: new buffers at every step of the training would cost
    more in page faults than the products. Gives the result, and the buffer that is free again.
    """
    shape, before = x.shape, len(x)
    for order in factor_orders(shape[1]):
        factor = H[:order, :order]
        if x.numel() > before * order:
            blocks = (before, order, -1)
            torch.bmm(factor.expand(before, -1, -1), x.view(blocks), out=spare.view(blocks))
        else:
            torch.mm(x.view(-1, order), factor, out=spare.view(-1, order))
        x, spare = spare, x
        before *= order
    return x.view(shape), spare.view(shape)


@functools.cache
def strip_width(count: int, n: int, threads: int) -> int:
    """How many times 16 blocks make a strip: wide ones cost less a block, and each thread should have as many."""

    def cost(width: int) -> float:
        most = math.ceil(math.ceil(count / 16 / width) / threads) * width
        return most * (1 + 1 / width)

    return min(range(1, max(1, STRIP // n) + 1), key=cost)


def strips(count: int, n: int, like: Tensor, buffers: int = 1) -> tuple[tuple[int, int, int, int], Tensor]:
    """For a kernel: threads, blocks, rows of a block, and how many times 16 blocks make a strip; and its memory."""
    threads = kernels.threads_for(count * n)
    width = strip_width(count, n, threads)
    return (threads, count, n, width), like.new_empty(threads, buffers, width, 16, n)


def block_shape(count: int, n: int) -> tuple[int, int, int]:
    """How ``count`` blocks of n rows lie in memory: many of them side by side, as products want it, few in a row."""
    return (1, n, count) if count >= 16 else (count, n, 1)


def random_signs(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """+1 and -1, each with probability one half."""
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8).to(dtype).mul_(2).sub_(1)


def power_of_two(d: int) -> int:
    """The smallest power of two that is at least d."""
    return 1 << (d - 1).bit_length()


class HadamardProjection(Projection):
    """Orthonormal columns without a matrix, at any D and any d <= D.

    The weights are cut into ``count`` blocks of n = 2^k >= d rows. Block b is R H B_b C: z is put into random places
    of a vector of n zeros (C), gets the block's own random signs (B_b), is transformed (H), and gets random signs
    again (R). The columns of a block are orthogonal and equally long, so P^T P is diagonal, and dividing each column
    by its norm makes P orthonormal exactly. Rows that are left over form smaller blocks, which carry as many
    coordinates as they have rows, taking turns; the last few, at most one row in 64, follow one coordinate each.
    The fewer coordinates a row has, the larger its entries are, so that every weight moves equally far for a random z;
    without that the last rows, an output layer perhaps, would hardly move at all.

    Many blocks lie side by side: then weight i * count + b is row i of block b, and one product serves them all.
    H runs as a few products with small matrices; R, which all blocks share, is a Kronecker product of short vectors of
    signs. Cost: D log n operations. Keeps one number a weight.

    References
    ----------
    Ailon and Chazelle (2009), for a Hadamard transform under random signs.

    Examples
    --------
    >>> P = make_projection("hadamard", D=100_000, d=500)
    >>> diagnose(P)["reach"], P.nbytes < 5 * P.D
    (1.0, True)
    """

    name = "hadamard"
    columns = "orthonormal"
    dtypes = (torch.bfloat16, torch.float32, torch.float64)  # sums of thousands of numbers are too large for float16

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """One number a weight, and three for each of the rows of a block."""
        return 4 + (24 * max(64, power_of_two(d)) + 1024) / D

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        self.register_buffer("H", hadamard_matrix(2**LARGEST_FACTOR_BITS).to(self.dtype), persistent=False)
        drawn = generator(seed)
        n = max(64, power_of_two(d))
        self.groups = [(D // n, n)] if n <= D else []
        left, size = D % n, n // 2
        while left > D // 64:
            if left >= size:
                self.groups.append((1, size))
                left -= size
            size //= 2
        squared_norms = torch.zeros(d, dtype=torch.float64)
        first = 0
        for i, (count, m) in enumerate(self.groups):
            coordinates = (first + torch.arange(min(m, d))) % d
            first = int(coordinates[-1] + 1) % d
            weight = d / len(coordinates)
            squared_norms[coordinates] += count * m * weight
            places = torch.randperm(m, generator=drawn)[: len(coordinates)]
            self._keep("source", i, coordinates[0].repeat(m).index_copy_(0, places, coordinates))
            placed = torch.zeros(1, m, 1, dtype=self.dtype).index_fill_(1, places, math.sqrt(weight))
            self._keep("entries", i, random_signs(block_shape(count, m), drawn, self.dtype).mul_(placed))
            row_signs = [random_signs((order,), drawn, self.dtype) for order in factor_orders(m, SIGNS_BITS)]
            self._keep("row_signs", i, functools.reduce(torch.kron, row_signs)[:, None])
        followed = (first + torch.arange(left)) % d
        squared_norms += d * torch.bincount(followed, minlength=d)
        scale = squared_norms.rsqrt().to(self.dtype)
        for i in range(len(self.groups)):
            source, entries, _ = self._group(i)
            entries.mul_(scale[source][:, None])
        entries = random_signs((left,), drawn, self.dtype) * math.sqrt(d) * scale[followed]
        self.register_buffer("followed", followed, persistent=False)
        self.register_buffer("followed_entries", entries, persistent=False)

    H: Tensor
    followed: Tensor  # the coordinate of each of the last rows
    followed_entries: Tensor

    def _keep(self, name: str, group: int, value: Tensor) -> None:
        self.register_buffer(f"{name}_{group}", value, persistent=False)

    def _group(self, i: int) -> list[Tensor]:
        """The coordinate in each of the m places, the entries of B_b C (0 in the empty places), the signs R."""
        return [self.get_buffer(f"{name}_{i}") for name in ("source", "entries", "row_signs")]

    def _multiply(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, self.d)
        parts = []
        for i in range(len(self.groups)):
            source, entries, row_signs = self._group(i)
            x = (flat[:, None, source, None] * entries).view(-1, *entries.shape[1:])
            x, _ = hadamard_transform(x, self.H, torch.empty_like(x))
            parts.append(x.mul_(row_signs).view(len(flat), -1))
        parts.append(flat[:, self.followed] * self.followed_entries)
        return torch.cat(parts, 1).reshape(*z.shape[:-1], self.D)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        cuts = [*(count * m for count, m in self.groups), len(self.followed)]
        starts, ends = theta0.split(cuts), out.split(cuts)
        kernel, triton = kernels.taking(self._like, theta0, z, out), self._in_triton(theta0, z, out)
        for i, (count, m) in enumerate(self.groups):
            source, entries, row_signs = self._group(i)
            if triton:
                triton.hadamard_write(starts[i], z, source, entries, row_signs, ends[i])
                continue
            placed = z[source]
            if kernel:
                sizes, scratch = strips(count, m, z)
                kernel("hadamard_write", *sizes, starts[i], placed, entries, row_signs, self.H, scratch, ends[i])
                continue
            end = ends[i].view_as(entries)
            x = torch.mul(placed[:, None], entries, out=end)
            x, _ = hadamard_transform(x, self.H, torch.empty_like(end))
            torch.addcmul(starts[i].view_as(entries), x, row_signs, out=end)
        torch.addcmul(starts[-1], z[self.followed], self.followed_entries, out=ends[-1])

    def _in_triton(self, *vectors: Tensor) -> ModuleType | None:
        """The kernels in Triton, if they take these vectors and the largest blocks, which come first."""
        return kernels.in_triton(self._like, *vectors) if self.groups[0][1] <= kernels.LARGEST_BLOCK else None

    def _pull(self, v: Tensor) -> Tensor:
        kernel = kernels.taking(self._like, v)
        if kernel is None:
            return self._transform_back(v)
        *pieces, last = v.split([*(count * m for count, m in self.groups), len(self.followed)])
        z = v.new_zeros(self.d).index_add_(0, self.followed, last * self.followed_entries)
        for i, (count, m) in enumerate(self.groups):
            source, entries, row_signs = self._group(i)
            sizes, scratch = strips(count, m, v)
            sums = v.new_zeros(sizes[0], m)
            kernel("hadamard_pull", *sizes, pieces[i], entries, row_signs, self.H, scratch, sums)
            z.index_add_(0, source, sums.sum(0))
        return z

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return self._transform_back(v.clone(memory_format=torch.contiguous_format))

    def _transform_back(self, v: Tensor) -> Tensor:
        flat = v.reshape(-1, self.D)
        *pieces, last = flat.split([*(count * m for count, m in self.groups), len(self.followed)], dim=1)
        z = flat.new_zeros(len(flat), self.d).index_add_(1, self.followed, last * self.followed_entries)
        triton = self._in_triton(v) if v.ndim == 1 else None
        for i, piece in enumerate(pieces):
            source, entries, row_signs = self._group(i)
            if triton:
                triton.hadamard_pull(piece, source, entries, row_signs, z)
                continue
            x = piece.reshape(-1, *entries.shape[1:]).contiguous().mul_(row_signs)
            x, _ = hadamard_transform(x, self.H, torch.empty_like(x))
            z.index_add_(1, source, x.view(len(flat), *entries.shape).mul_(entries).sum((1, 3)))
        return z.reshape(*v.shape[:-1], self.d)


class FastfoodProjection(Projection):
    """Nearly Gaussian columns at the cost of two transforms: Fastfood (Le, Sarlos and Smola 2013, section 3).

    Blocks S H G Pi H B of n = 2^k >= d rows, all computed at once: B random signs, Pi a random permutation, which
    all blocks share, G Gaussian factors, S row lengths as a Gaussian matrix would have them. What passes D is cut.
    The columns have norm 1 in expectation. Keeps two numbers and a byte a weight.

    Examples
    --------
    >>> P = make_projection("fastfood", D=100_000, d=500)
    >>> P(torch.ones(500)).shape, P.nbytes < 10 * P.D
    (torch.Size([100000]), True)
    """

    name = "fastfood"
    columns = "expected"
    dtypes = (torch.bfloat16, torch.float32, torch.float64)  # sums of thousands of numbers are too large for float16

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """Two numbers and a byte a weight, and an order of the rows of a block and its inverse."""
        return 9 + (21 * power_of_two(d) + 1024) / D

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        self.register_buffer("H", hadamard_matrix(2**LARGEST_FACTOR_BITS).to(self.dtype), persistent=False)
        drawn = generator(seed)
        n = power_of_two(d)
        self.n, self.blocks = n, -(-D // n)
        shape = block_shape(self.blocks, n)
        gaussian = torch.randn(shape, generator=drawn, dtype=torch.float32)
        order = torch.randperm(n, generator=drawn)
        lengths = torch._standard_gamma(torch.full(shape, n / 2, dtype=torch.float32), generator=drawn).mul_(2).sqrt_()
        lengths /= gaussian.norm(dim=1, keepdim=True) * math.sqrt(n * D)
        for name, buffer in {
            "signs": random_signs(shape, drawn, torch.int8),
            "gaussian": gaussian.to(self.dtype),
            "order": order,
            "inverse_order": order.argsort(),
            "lengths": lengths.flatten()[:D].to(self.dtype),
        }.items():
            self.register_buffer(name, buffer, persistent=False)

    H: Tensor
    signs: Tensor
    gaussian: Tensor
    order: Tensor
    inverse_order: Tensor
    lengths: Tensor  # (D,) the factors S

    def _multiply(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, self.d)
        x = torch.nn.functional.pad(flat, (0, self.n - self.d))[:, None, :, None] * self.signs
        x = x.view(-1, *self.signs.shape[1:])
        x, spare = hadamard_transform(x, self.H, torch.empty_like(x))
        x, spare = torch.index_select(x, 1, self.order, out=spare), x
        x.view(-1, *self.gaussian.shape).mul_(self.gaussian)
        x = hadamard_transform(x, self.H, spare)[0].view(len(flat), -1)
        return (x[:, : self.D] * self.lengths).reshape(*z.shape[:-1], self.D)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        kernel = kernels.taking(self._like, theta0, z, out)
        if kernel is None:
            return super()._write(theta0, z, out)
        padded = torch.nn.functional.pad(z, (0, self.n - self.d))
        sizes, scratch = strips(self.blocks, self.n, z, 2)
        given = theta0, padded, self.signs, self.order, self.gaussian, self.lengths, self.H, scratch, out
        return kernel("fastfood_write", *sizes, self.D, *given)

    def _pull(self, v: Tensor) -> Tensor:
        kernel = kernels.taking(self._like, v)
        if kernel is None:
            return self._multiply_transposed(v)
        sizes, scratch = strips(self.blocks, self.n, v, 2)
        sums = v.new_zeros(sizes[0], self.n)
        given = v, self.signs, self.inverse_order, self.gaussian, self.lengths, self.H, scratch, sums
        kernel("fastfood_pull", *sizes, self.D, *given)
        return sums.sum(0)[: self.d]

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        flat = v.reshape(-1, self.D)
        x = v.new_empty(len(flat), self.blocks * self.n)
        torch.mul(flat, self.lengths, out=x[:, : self.D])
        x[:, self.D :] = 0
        x = x.view(-1, *self.signs.shape[1:])
        x, spare = hadamard_transform(x, self.H, torch.empty_like(x))
        x.view(-1, *self.gaussian.shape).mul_(self.gaussian)
        x, spare = torch.index_select(x, 1, self.inverse_order, out=spare), x
        x, _ = hadamard_transform(x, self.H, spare)
        x = x.view(-1, *self.signs.shape).mul_(self.signs).sum((1, 3))
        return x[:, : self.d].reshape(*v.shape[:-1], self.d)
