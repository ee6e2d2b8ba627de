"""Matrix-free projections made of fast transforms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace_lib.projections.base import Projection

LARGEST_FACTOR_BITS = 5
"""A transform runs as products with matrices of order 2^5 at most: few operations, each of them dense."""


def hadamard_matrix(n: int) -> Tensor:
    """Sylvester's Hadamard matrix of order n, a power of two: entries +-1, H H = n I."""
    H = torch.ones(1, 1)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def factor_orders(n: int) -> list[int]:
    """Powers of two, nearly equal, at most 2^5 each, whose product is n."""
    bits = n.bit_length() - 1
    count = max(1, -(-bits // LARGEST_FACTOR_BITS))
    return [1 << (bits * (i + 1) // count - bits * i // count) for i in range(count)]


def kronecker_transform(x: Tensor, factors: list[Tensor], spare: Tensor) -> tuple[Tensor, Tensor]:
    """(F_1 kron F_2 kron ...) x for square factors and x of shape (batch, n, columns).

    With Hadamard matrices as factors this is the Hadamard transform of every column: H of order n is the Kronecker
    product of small ones, and the cost is n (|F_1| + |F_2| + ...) a column instead of n^2.

    x and ``spare``, of the same shape, are both written over: new buffers at every step of the training would cost
    more in page faults than the products. Gives the result, and the buffer that is free again.
    """
    shape, before = x.shape, len(x)
    for F in factors:
        if x.numel() > before * len(F):
            blocks = (before, len(F), -1)
            torch.bmm(F.expand(before, -1, -1), x.view(blocks), out=spare.view(blocks))
        else:
            torch.mm(x.view(-1, len(F)), F.T, out=spare.view(-1, len(F)))
        x, spare = spare, x
        before *= len(F)
    return x.view(shape), spare.view(shape)


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
    H runs as a few products with small matrices, and R is made of their rows' signs, so it costs nothing.
    Cost: D log n operations. Keeps one sign a weight.

    References
    ----------
    Ailon and Chazelle (2009), for a Hadamard transform under random signs.
    """

    name = "hadamard"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
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
            self._keep("coordinates", i, coordinates)
            self._keep("places", i, torch.randperm(m, generator=generator)[: len(coordinates)])
            self._keep("signs", i, random_signs(block_shape(count, m), generator, self.dtype) * math.sqrt(weight))
            for j, order in enumerate(factor_orders(m)):
                rows = random_signs((order, 1), generator, self.dtype)
                self._keep(f"factor_{j}", i, rows * hadamard_matrix(order).to(self.dtype))
        followed = (first + torch.arange(left)) % d
        squared_norms += d * torch.bincount(followed, minlength=d)
        self.register_buffer("followed", followed, persistent=False)
        self.register_buffer(
            "followed_signs", random_signs((left,), generator, self.dtype) * math.sqrt(d), persistent=False
        )
        self.register_buffer("scale", squared_norms.rsqrt().to(self.dtype), persistent=False)

    followed: Tensor  # the coordinate of each of the last rows
    followed_signs: Tensor
    scale: Tensor

    def _keep(self, name: str, group: int, value: Tensor) -> None:
        self.register_buffer(f"{name}_{group}", value, persistent=False)

    def _group(self, i: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        coordinates, places, signs = (self.get_buffer(f"{name}_{i}") for name in ("coordinates", "places", "signs"))
        factors = [self.get_buffer(f"factor_{j}_{i}") for j in range(len(factor_orders(self.groups[i][1])))]
        return coordinates, places, signs, factors

    def _multiply(self, z: Tensor) -> Tensor:
        flat = (z * self.scale).reshape(-1, self.d)
        parts = []
        for i, (count, m) in enumerate(self.groups):
            coordinates, places, signs, factors = self._group(i)
            placed = flat.new_zeros(len(flat), m)
            placed[:, places] = flat[:, coordinates]
            x = (placed[:, None, :, None] * signs).view(-1, *signs.shape[1:])
            parts.append(kronecker_transform(x, factors, torch.empty_like(x))[0].view(len(flat), count * m))
        parts.append(flat[:, self.followed] * self.followed_signs)
        return torch.cat(parts, 1).reshape(*z.shape[:-1], self.D)

    def write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        """Write theta0 + P z into ``out``; the last product of a transform adds theta0 as it goes."""
        scaled = z * self.scale
        sizes = [*(count * m for count, m in self.groups), len(self.followed)]
        starts, ends = theta0.split(sizes), out.split(sizes)
        for i, (_, m) in enumerate(self.groups):
            coordinates, places, signs, (first, *factors) = self._group(i)
            placed = scaled.new_zeros(m).index_copy_(0, places, scaled[coordinates])
            buffers = [torch.empty_like(ends[i]), ends[i]]
            if len(factors) % 2:  # so that the result does not lie where the sum goes
                buffers.reverse()
            torch.mul(placed[:, None], signs, out=buffers[0].view_as(signs))
            inner = (len(signs) * len(first), m // len(first), signs.shape[2])
            x, _ = kronecker_transform(buffers[0].view(inner), factors, buffers[1].view(inner))
            x = x.view(len(signs), len(first), -1)
            torch.baddbmm(starts[i].view_as(x), first.expand(len(x), -1, -1), x, out=ends[i].view_as(x))
        torch.addcmul(starts[-1], scaled[self.followed], self.followed_signs, out=ends[-1])

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return self.pull(v.clone(memory_format=torch.contiguous_format))

    def pull(self, v: Tensor) -> Tensor:
        """P^T v, with v as a buffer."""
        flat = v.reshape(-1, self.D)
        *pieces, last = flat.split([*(count * m for count, m in self.groups), len(self.followed)], dim=1)
        z = flat.new_zeros(len(flat), self.d).index_add_(1, self.followed, last * self.followed_signs)
        for i, piece in enumerate(pieces):
            coordinates, places, signs, factors = self._group(i)
            x = piece.reshape(-1, *signs.shape[1:]).contiguous()
            x, _ = kronecker_transform(x, [F.T for F in factors], torch.empty_like(x))
            x = x.view(len(flat), *signs.shape).mul_(signs)
            z[:, coordinates] += x.sum((1, 3))[:, places]
        return (z * self.scale).reshape(*v.shape[:-1], self.d)


class FastfoodProjection(Projection):
    """Nearly Gaussian columns at the cost of two transforms: Fastfood (Le, Sarlos and Smola 2013, section 3).

    Blocks S H G Pi H B of n = 2^k >= d rows, all computed at once: B random signs, Pi a random permutation, which
    all blocks share, G Gaussian factors, S row lengths as a Gaussian matrix would have them. What passes D is cut.
    The columns have norm 1 in expectation. Keeps two numbers and a byte a weight.
    """

    name = "fastfood"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        n = power_of_two(d)
        self.n, self.blocks = n, -(-D // n)
        shape = block_shape(self.blocks, n)
        gaussian = torch.randn(shape, generator=generator)
        order = torch.randperm(n, generator=generator)
        lengths = torch._standard_gamma(torch.full(shape, n / 2), generator=generator).mul_(2).sqrt_()
        row_scale = lengths / (gaussian.norm(dim=1, keepdim=True) * math.sqrt(n * D))
        for name, buffer in {
            "signs": random_signs(shape, generator, torch.int8),
            "gaussian": gaussian.to(self.dtype),
            "order": order,
            "inverse_order": order.argsort(),
            "row_scale": row_scale.to(self.dtype),
        }.items():
            self.register_buffer(name, buffer, persistent=False)
        self._orders = factor_orders(n)
        for size in set(self._orders):
            self.register_buffer(f"H_{size}", hadamard_matrix(size).to(self.dtype), persistent=False)

    signs: Tensor
    gaussian: Tensor
    order: Tensor
    inverse_order: Tensor
    row_scale: Tensor

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        """x times the factors of every block, in place; x may hold a batch."""
        return x.view(-1, *factors.shape).mul_(factors).view_as(x)

    def _transform(self, x: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        return kronecker_transform(x, [self.get_buffer(f"H_{size}") for size in self._orders], spare)

    def _multiply(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, self.d)
        x = torch.nn.functional.pad(flat, (0, self.n - self.d))[:, None, :, None] * self.signs
        x = x.view(-1, *self.signs.shape[1:])
        x, spare = self._transform(x, torch.empty_like(x))
        x, spare = torch.index_select(x, 1, self.order, out=spare), x
        x, _ = self._transform(self._scaled(x, self.gaussian), spare)
        x = self._scaled(x, self.row_scale)
        return x.reshape(len(flat), -1)[:, : self.D].reshape(*z.shape[:-1], self.D)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        x = v.new_zeros(v.numel() // self.D, self.blocks * self.n)
        x[:, : self.D] = v.reshape(-1, self.D)
        x = self._scaled(x.view(-1, *self.signs.shape[1:]), self.row_scale)
        x, spare = self._transform(x, torch.empty_like(x))
        x, spare = torch.index_select(self._scaled(x, self.gaussian), 1, self.inverse_order, out=spare), x
        x, _ = self._transform(x, spare)
        x = x.view(-1, *self.signs.shape).mul_(self.signs).sum((1, 3))
        return x[:, : self.d].reshape(*v.shape[:-1], self.d)
