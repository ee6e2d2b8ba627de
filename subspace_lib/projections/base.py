"""The contract that every projection keeps."""

from __future__ import annotations

import contextlib
import inspect
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from subspace_lib.checks import integer

COMPOSED: dict[str, type[Any]] = {}
"""The projections that are made of others, by name; ``compose`` and ``layerwise`` enter theirs."""


class _Drawn(ABCMeta):
    """Makes every projection on the CPU, whatever torch's default device is, and out of Python's own integers."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        args = tuple(_python(one) for one in args)
        with torch.device("cpu"):
            return super().__call__(*args, **{name: _python(one) for name, one in kwargs.items()})

    @property
    def __signature__(cls) -> inspect.Signature:
        """What the constructor takes, for help() and for the options."""
        taken = inspect.signature(cls.__init__)  # type: ignore[misc]
        return taken.replace(parameters=list(taken.parameters.values())[1:])


def _python(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


class Projection(nn.Module, metaclass=_Drawn):
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
        Floating-point type of P; the default is torch's default. It decides how P is rounded, not which P is drawn.

    Raises
    ------
    TypeError
        If D, d or seed is not an integer, or dtype is not a type that the family works in.
    ValueError
        If d lies outside 1..D, or the seed is negative.

    Examples
    --------
    >>> P = make_projection("dense", D=1000, d=10, seed=0)
    >>> P(torch.zeros(10)).shape, P.adjoint(torch.zeros(1000)).shape
    (torch.Size([1000]), torch.Size([10]))
    >>> 2 * P
    ScaledProjection(
      D=1000, d=10, seed=0, factor=2.0
      (P): DenseProjection(D=1000, d=10, seed=0, store=True)
    )
    """

    name: ClassVar[str]
    """The name under which ``make_projection`` builds this family."""
    columns: ClassVar[Literal["orthonormal", "unit", "expected"]]
    """What a family promises of its columns: orthonormal, of norm 1, or of norm 1 in expectation."""
    nested: ClassVar[bool] = False
    """Whether the first d columns are the same for every d."""
    square: ClassVar[bool] = False
    """Whether d must be D."""
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Sets of options that stand for all; the contract is tested with each."""
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    """The types in which P is right to their own precision."""

    @classmethod
    def keeps(cls, D: int, d: int) -> float:
        """The most bytes a weight that P keeps in float32, with the options left out; here, those of a matrix."""
        return 4.0 * d

    def __init__(self, D: int, d: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        D, d, seed = integer("D", D), integer("d", d), integer("seed", seed)
        if D < 1:
            raise ValueError(f"D must be at least 1, got {D}: D is the number of weights to move")
        if not 1 <= d <= D:
            raise ValueError(f"d must lie between 1 and D = {D}, got {d}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2**63 - 1, got {seed}")
        if self.square and d != D:
            raise ValueError(f"d of {self.name} must be D = {D}, got {d}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        self._check_dtype(dtype)
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

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        """``write``, for a family that needs no copy of P z."""
        torch.add(theta0, self._multiply(z), out=out)

    def _pull(self, v: Tensor) -> Tensor:
        """``pull``, for a family that uses v as a buffer."""
        return self._multiply_transposed(v)

    def write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        """Write theta0 + P z into ``out``, for vectors, outside autograd."""
        self._check_vectors(theta0=(theta0, self.D), z=(z, self.d), out=(out, self.D))
        if out.is_set_to(theta0):  # which is written over before it is read
            theta0 = theta0.clone()
        with in_own_type(z):
            self._write(theta0, z, out)
        if not (out.is_inference() or torch.compiler.is_compiling()):
            torch.autograd.graph.increment_version(out)  # a kernel writes behind PyTorch's back

    def pull(self, v: Tensor) -> Tensor:
        """P^T v for a vector v that the caller gives up, outside autograd."""
        self._check_vectors(v=(v, self.D))
        with in_own_type(v):
            return self._pull(v)

    def pull_pieces(self, pieces: Sequence[Tensor], spare: Tensor) -> Tensor:
        """``pull`` of one vector that lies in pieces, with memory where it may be put together."""
        return self.pull(torch.cat(list(pieces), out=spare))

    @classmethod
    def option_names(cls) -> list[str]:
        """Keywords that this family takes beside D, d and seed."""
        return [name for name in inspect.signature(cls).parameters if name not in ("D", "d", "seed")]

    def options(self) -> dict[str, Any]:
        """Keywords that draw this P again, beside D, d and seed: what the constructor took, kept under its names."""
        return {name: self._plain(getattr(self, name)) for name in self.option_names() if name != "dtype"}

    def recipe(self) -> dict[str, Any]:
        """All that ``from_recipe`` needs to draw this P again, as plain data.

        Raises
        ------
        ValueError
            If P was made of a tensor, which no recipe can hold.
        """
        return {"name": self.name, "D": self.D, "d": self.d, "seed": self.seed, **self.options()}

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            raise ValueError(f"a {type(self).__name__} has no recipe: it was made of a tensor; save the tensor instead")
        if isinstance(value, Projection):
            return value.recipe()
        return [self._plain(one) for one in value] if isinstance(value, nn.ModuleList | list | tuple) else value

    def __mul__(self, factor: float) -> Projection:
        """P times a number."""
        return _compose("scaled", self, factor)

    __rmul__ = __mul__
    __array_ufunc__ = None  # so that a NumPy number leaves the product to P

    def __add__(self, other: Projection) -> Projection:
        """P + Q, of the same D and d."""
        return _compose("sum", self, other) if isinstance(other, Projection) else NotImplemented

    def __matmul__(self, other: Projection) -> Projection:
        """P Q, with as many columns in P as rows in Q."""
        return _compose("product", self, other) if isinstance(other, Projection) else NotImplemented

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
        parts = (part for part in self.modules() if isinstance(part, Projection))
        return sum(one.nbytes for one in (*self.buffers(), *(made for part in parts for made in part._made())))

    def _made(self) -> list[Tensor]:
        """What P keeps beside its buffers, made when it was first needed."""
        return []

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
        taken = {name: getattr(self, name, None) for name in ("D", "d", "seed", *self.option_names())}
        return ", ".join(f"{name}={value!r}" for name, value in taken.items() if isinstance(value, int | float | str))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for part in self.modules():
            if isinstance(part, Projection):
                part._check_dtype(fn(part._like).dtype)  # before anything is converted
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _check_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in self.dtypes:
            allowed = ", ".join(str(one).removeprefix("torch.") for one in self.dtypes)
            raise TypeError(
                f"{getattr(self, 'name', type(self).__name__)} products need one of {allowed}, got {dtype}; "
                'or use "one_hot"'
            )

    def _check(self, x: Tensor, label: str, size: int, size_name: str) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{label} must be a tensor, got {type(x).__name__}")
        if x.ndim == 0 or x.shape[-1] != size:
            raise ValueError(f"{label} must have shape (..., {size_name} = {size}), got {tuple(x.shape)}")
        if x.dtype != self.dtype:
            raise TypeError(f"{label} is {x.dtype} but P is {self.dtype}: convert one of them with .to()")
        if x.device != self.device:
            raise ValueError(f"{label} is on {x.device} but P is on {self.device}: move one of them with .to()")

    def _check_vectors(self, **vectors: tuple[Tensor, int]) -> None:
        for label, (x, size) in vectors.items():
            if x.shape != (size,):
                raise ValueError(f"{label} must have shape ({size},), got {tuple(x.shape)}")
            if x.dtype != self._like.dtype:
                raise TypeError(f"{label} is {x.dtype} but P is {self.dtype}: convert one of them with .to()")


def _compose(name: str, *parts: Any) -> Projection:
    composed: Projection = COMPOSED[name](*parts)
    return composed


def generator(seed: int) -> torch.Generator:
    """The random numbers of a seed, on the CPU; every seed below 2**63 has its own.

    torch's generator starts from the lowest 32 bits of a seed. Where a seed has more, its 624 words of state are
    drawn from the whole of it, and two of them are the seed.
    """
    drawn = torch.Generator("cpu").manual_seed(seed % 2**32)
    if seed >= 2**32:
        state = drawn.get_state()
        words = state[24 : 24 + 8 * 624].view(torch.int64)
        if words[0] != seed % 2**32:
            raise ValueError(f"torch {torch.__version__} keeps its state in another way: seed must be below 2**32")
        drawn_words = np.random.SeedSequence(seed).generate_state(624).astype(np.int64)
        drawn_words[1:3] = seed % 2**32, seed >> 32
        words.copy_(torch.from_numpy(drawn_words))
        drawn.set_state(state)
    return drawn


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums are made: float32 for half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)


def in_own_type(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, where it is on: P is computed in its own type."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


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
        if x.numel() == 0:  # an empty batch
            return x.new_zeros(*x.shape[:-1], P.d if transposed else P.D)
        with in_own_type(x):
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
    weights = torch.arange(len(v), dtype=torch.float64, device="cpu").cos()
    return [float(v.sum()), float(v @ weights), float(v.norm())]


def same_fingerprint(a: list[float], b: list[float]) -> bool:
    """Whether two fingerprints belong to the same vector, up to rounding."""
    scale = max(abs(a[-1]), abs(b[-1]), 1e-30)
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-4 * scale) for x, y in zip(a, b, strict=True))
