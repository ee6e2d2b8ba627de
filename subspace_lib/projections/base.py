"""The contract that every projection keeps."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from subspace_lib.checks import integer


class Projection(nn.Module, ABC):
    """A linear map P from z, with d numbers, to a displacement of theta, with D numbers.

    ``P(z)`` computes P z and ``P.adjoint(v)`` computes P^T v; both take a batch in front. Gradients of
    ``P(z)`` are computed by ``adjoint`` itself, so the two can never disagree. The tensors that P keeps are
    non-persistent buffers: they follow ``.to()``, and a ``state_dict`` holds none of them, because P can be
    drawn again from its seed.

    Parameters
    ----------
    D : int
        Number of weights, the rows of P.
    d : int
        Dimension of the subspace, the columns of P; 1 <= d <= D.
    seed : int
        Seed of the random numbers, which are drawn on the CPU: same seed, same P, on every device.
    dtype : torch.dtype, optional
        Floating-point type of P; the default is torch's default.

    Raises
    ------
    TypeError
        If D, d or seed is not an integer, or dtype is not a floating-point type.
    ValueError
        If d lies outside 1..D, or the seed is negative.
    """

    name: str
    """The name under which ``make_projection`` builds this family."""

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        D, d, seed = integer("D", D), integer("d", d), integer("seed", seed)
        if D < 1:
            raise ValueError(f"D must be at least 1, got {D}: D is the number of weights to move")
        if not 1 <= d <= D:
            raise ValueError(f"d must lie between 1 and D = {D}, got {d}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2**63 - 1, got {seed}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        self.D, self.d, self.seed = D, d, seed
        # An empty buffer that follows .to(): it remembers the device and the type of P.
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    _like: Tensor

    @abstractmethod
    def _multiply(self, z: Tensor) -> Tensor:
        """P z for z of shape (..., d), outside autograd."""

    @abstractmethod
    def _multiply_transposed(self, v: Tensor) -> Tensor:
        """P^T v for v of shape (..., D), outside autograd."""

    def write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        """Write theta0 + P z into ``out``, for vectors, outside autograd; families do it without a copy of P z."""
        torch.add(theta0, self._multiply(z), out=out)

    def pull(self, v: Tensor) -> Tensor:
        """P^T v outside autograd, for a v that the caller gives up: families may use it as a buffer."""
        return self._multiply_transposed(v)

    @classmethod
    def option_names(cls) -> list[str]:
        """Keywords that this family takes beside D, d and seed."""
        return [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind == p.KEYWORD_ONLY]

    def options(self) -> dict[str, Any]:
        """Keywords that ``make_projection`` needs, beside D, d and seed, to draw this P again."""
        return {}

    def recipe(self) -> dict[str, Any]:
        """All that ``from_recipe`` needs to draw this P again, as plain data."""
        return {"name": self.name, "D": self.D, "d": self.d, "seed": self.seed, **self.options()}

    def forward(self, z: Tensor) -> Tensor:
        """P z, of shape (..., D), for z of shape (..., d)."""
        self._check(z, "z", self.d, "d")
        product: Tensor = _Product.apply(z, self, False)  # type: ignore[no-untyped-call]
        return product

    def adjoint(self, v: Tensor) -> Tensor:
        """P^T v, of shape (..., d), for v of shape (..., D): <P z, v> = <z, P.adjoint(v)>."""
        self._check(v, "v", self.D, "D")
        product: Tensor = _Product.apply(v, self, True)  # type: ignore[no-untyped-call]
        return product

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """P as a matrix of shape (D, d); meant for small sizes."""
        columns: Tensor = self(torch.eye(self.d, dtype=self.dtype, device=self.device))
        return columns.T.contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes that P keeps in memory."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def device(self) -> torch.device:
        """Device on which P works."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type in which P works."""
        return self._like.dtype

    def extra_repr(self) -> str:
        """The numbers that define P, shown by ``print(P)``."""
        options = "".join(f", {key}={value!r}" for key, value in self.options().items())
        return f"D={self.D}, d={self.d}, seed={self.seed}{options}"

    def _check(self, x: Tensor, label: str, size: int, size_name: str) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{label} must be a tensor, got {type(x).__name__}")
        if x.ndim == 0 or x.shape[-1] != size:
            raise ValueError(f"{label} must have shape (..., {size_name} = {size}), got {tuple(x.shape)}")
        if x.dtype != self.dtype:
            raise TypeError(f"{label} is {x.dtype} but P is {self.dtype}: convert one of them with .to()")
        if x.device != self.device:
            raise ValueError(f"{label} is on {x.device} but P is on {self.device}: move one of them with .to()")


LIMIT_BYTES = 16 * 2**30
"""The most memory that drawing a stored P may take."""


def refuse_if_too_large(P: Projection, columns: int) -> None:
    """Raise a ValueError if that many full columns would need more than ``LIMIT_BYTES``."""
    needed = P.D * columns * P.dtype.itemsize
    if needed > LIMIT_BYTES:
        raise ValueError(
            f"{P.name} P with D = {P.D}, d = {P.d} needs {needed:,} bytes, over the limit of {LIMIT_BYTES:,}; "
            'use "hadamard" or "one_hot", which keep a few bytes a weight'
        )


class _Product(torch.autograd.Function):
    """x -> P x or P^T x. The derivative of the one is the other, to any order, batched or not."""

    @staticmethod
    def forward(x: Tensor, P: Projection, transposed: bool) -> Tensor:
        return P._multiply_transposed(x) if transposed else P._multiply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Projection, bool], output: Tensor) -> None:
        _, ctx.P, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(grad, ctx.P, not ctx.transposed), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        product: Tensor = _Product.apply(tangent, ctx.P, ctx.transposed)  # type: ignore[no-untyped-call]
        return product

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, P: Projection, transposed: bool) -> tuple[Tensor, int]:
        return _Product.apply(x.movedim(in_dims[0], 0), P, transposed), 0  # type: ignore[no-untyped-call]


def fingerprint(v: Tensor) -> list[float]:
    """Three numbers that tell vectors apart: sum, sum weighted by position, and norm, in float64.

    They are compared with a tolerance by ``same_fingerprint``, because the last bits of a random draw may
    differ between kinds of processor.
    """
    v = v.detach().cpu().double().flatten()
    weights = torch.arange(len(v), dtype=torch.float64).cos()
    return [float(v.sum()), float(v @ weights), float(v.norm())]


def same_fingerprint(a: list[float], b: list[float]) -> bool:
    """Whether two fingerprints belong to the same vector, up to rounding."""
    scale = max(abs(a[-1]), abs(b[-1]), 1e-30)
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-4 * scale) for x, y in zip(a, b, strict=True))
