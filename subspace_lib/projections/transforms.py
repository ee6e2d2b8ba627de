"""Matrix-free projections made of fast transforms and of small factors."""

from __future__ import annotations

import math
from typing import Any

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


def kronecker_transform(x: Tensor, factors: list[Tensor]) -> Tensor:
    """(F_1 kron F_2 kron ...) x along the last axis, for square factors; one matrix product for each factor.

    With Hadamard matrices as factors this is the Hadamard transform: H of order n is the Kronecker product of
    small ones, and the cost is n (|F_1| + |F_2| + ...) instead of n^2.
    """
    n = x.shape[-1]
    y = x.reshape(-1, n)
    after = n
    for F in factors:
        m = len(F)
        after //= m
        if after > 1:
            blocks = y.reshape(-1, m, after)
            y = torch.bmm(F.expand(len(blocks), m, m), blocks)
        else:
            y = y.reshape(-1, m) @ F.T
    return y.reshape(x.shape)


def random_signs(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """+1 and -1, each with probability one half."""
    return (2 * torch.randint(0, 2, shape, generator=generator) - 1).to(dtype)


def power_of_two(d: int) -> int:
    """The smallest power of two that is at least d."""
    return 1 << (d - 1).bit_length()


class HadamardProjection(Projection):
    """Orthonormal columns without a matrix, at any D and any d <= D.

    The weights are cut into blocks of n = 2^k >= d rows, and what is left over into smaller blocks by its binary
    expansion. Block b is R H B_b C: z is put into random places of a vector of n zeros (C), gets the block's own
    random signs (B_b), is transformed (H), and gets random signs again (R). The columns of a block are orthogonal
    and equally long, so P^T P is diagonal, and dividing each column by its norm makes P orthonormal exactly. Blocks
    of fewer than d rows carry as many coordinates as they have rows, taking turns. Every weight moves, even at d = 1.

    H runs as a product of small matrices, and R is made of their rows' signs, so it costs nothing.
    Cost: D log n operations. Keeps one byte a weight.

    References
    ----------
    Ailon and Chazelle (2009), for a Hadamard transform under random signs.
    """

    name = "hadamard"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        n = max(64, power_of_two(d))
        left = D % n
        sizes = [1 << bit for bit in reversed(range(left.bit_length())) if left >> bit & 1]
        self.groups = [(count, m) for count, m in [(D // n, n), *((1, m) for m in sizes)] if count]
        squared_norms = torch.zeros(d, dtype=torch.float64)
        first = 0
        for i, (count, m) in enumerate(self.groups):
            coordinates = (first + torch.arange(min(m, d))) % d
            first = int(coordinates[-1] + 1) % d
            squared_norms[coordinates] += count * m
            places = torch.randperm(m, generator=generator)[: len(coordinates)]
            self._keep(i, "coordinates", coordinates)
            self._keep(i, "places", places)
            self._keep(i, "signs", random_signs((count, m), generator, torch.int8))
            for j, order in enumerate(factor_orders(m)):
                rows = random_signs((order, 1), generator, self.dtype)
                self._keep(i, f"factor_{j}", rows * hadamard_matrix(order).to(self.dtype))
        self.register_buffer("scale", squared_norms.rsqrt().to(self.dtype), persistent=False)

    scale: Tensor

    def _keep(self, group: int, name: str, value: Tensor) -> None:
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
            placed = flat.new_zeros(len(flat), 1, m)
            placed[:, 0, places] = flat[:, coordinates]
            parts.append(kronecker_transform(placed * signs, factors).reshape(len(flat), count * m))
        return torch.cat(parts, 1).reshape(*z.shape[:-1], self.D)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        flat = v.reshape(-1, self.D)
        z = flat.new_zeros(len(flat), self.d)
        pieces = flat.split([count * m for count, m in self.groups], dim=1)
        for i, ((count, m), piece) in enumerate(zip(self.groups, pieces, strict=True)):
            coordinates, places, signs, factors = self._group(i)
            x = kronecker_transform(piece.reshape(len(flat), count, m), [F.T for F in factors])
            z[:, coordinates] += (x * signs).sum(1)[:, places]
        return (z * self.scale).reshape(*v.shape[:-1], self.d)


class FastfoodProjection(Projection):
    """Nearly Gaussian columns at the cost of two transforms: Fastfood (Le, Sarlos and Smola 2013, section 3).

    Blocks S H G Pi H B of n = 2^k >= d rows, all computed at once: B random signs, Pi a random permutation, which all
    blocks share, G Gaussian
    factors, S row lengths as a Gaussian matrix would have them. The last block is cut to D rows. The
    columns have norm 1 in expectation. Keeps nine bytes a weight in float32.
    """

    name = "fastfood"

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        n = power_of_two(d)
        self.n, self.blocks = n, -(-D // n)
        gaussian = torch.randn(self.blocks, n, generator=generator)
        order = torch.randperm(n, generator=generator)
        squared_lengths = 2 * torch._standard_gamma(torch.full((self.blocks, n), n / 2), generator=generator)
        row_scale = squared_lengths.sqrt() / gaussian.norm(dim=1, keepdim=True) / math.sqrt(n * D)
        for name, buffer in {
            "signs": random_signs((self.blocks, n), generator, torch.int8),
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

    def _transform(self, x: Tensor) -> Tensor:
        return kronecker_transform(x, [self.get_buffer(f"H_{size}") for size in self._orders])

    def _multiply(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, 1, self.d)
        x = torch.nn.functional.pad(flat, (0, self.n - self.d)) * self.signs
        x = self._transform(x)[..., self.order]
        x = self._transform(x * self.gaussian) * self.row_scale
        return x.reshape(len(flat), -1)[:, : self.D].reshape(*z.shape[:-1], self.D)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        flat = torch.nn.functional.pad(v.reshape(-1, self.D), (0, self.blocks * self.n - self.D))
        x = self._transform(flat.view(-1, self.blocks, self.n) * self.row_scale) * self.gaussian
        x = self._transform(x[..., self.inverse_order])
        x = (x * self.signs).sum(1)
        return x[:, : self.d].reshape(*v.shape[:-1], self.d)


class KroneckerProjection(Projection):
    """P = A kron B cut to D x d: two small products instead of one large one.

    A has about sqrt(D) rows and sqrt(d) columns, B too; z is laid out as a matrix Z and P z is A Z B^T, read
    row by row. The columns of A and B are Gaussian with norm 1, or orthonormal, so the columns of P have norm 1 up
    to the few rows that are cut. Cost: about D sqrt(d) operations. Keeps about 2 sqrt(D d) numbers.

    Parameters
    ----------
    D, d, seed, dtype
        As in ``Projection``.
    orthonormal : bool
        Orthonormal columns in A and B.
    """

    name = "kronecker"

    def __init__(
        self, D: int, d: int, seed: int = 0, *, orthonormal: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(D, d, seed, dtype=dtype)
        if not isinstance(orthonormal, bool):
            raise TypeError(f"orthonormal must be True or False, got {orthonormal!r}")
        self.orthonormal = orthonormal
        generator = torch.Generator().manual_seed(seed)
        for name, part in (("A", 0), ("B", 1)):
            rows, columns = (_near_square(size)[part] for size in (D, d))
            factor = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            factor = torch.linalg.qr(factor).Q if orthonormal else factor / factor.norm(dim=0)
            self.register_buffer(name, factor.to(self.dtype).contiguous(), persistent=False)

    A: Tensor
    B: Tensor

    def options(self) -> dict[str, Any]:
        """Whether the factors are orthonormal, beside D, d and seed."""
        return {"orthonormal": self.orthonormal}

    def _multiply(self, z: Tensor) -> Tensor:
        Z = _as_matrix(z, self.A.shape[1], self.B.shape[1])
        return (self.A @ Z @ self.B.T).reshape(*z.shape[:-1], -1)[..., : self.D]

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        V = _as_matrix(v, self.A.shape[0], self.B.shape[0])
        return (self.A.T @ (V @ self.B)).reshape(*v.shape[:-1], -1)[..., : self.d]


def _near_square(size: int) -> tuple[int, int]:
    """Two factors close to the square root whose product is at least ``size``, by as little as possible."""
    second = math.ceil(math.sqrt(size))
    return -(-size // second), second


def _as_matrix(x: Tensor, rows: int, columns: int) -> Tensor:
    padded = torch.nn.functional.pad(x, (0, rows * columns - x.shape[-1]))
    return padded.reshape(*x.shape[:-1], rows, columns)
