"""The contract of all projections as tests: inherit from ``ProjectionContract`` and name your family."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import gradcheck

from subspace_lib.projections import from_recipe, has_recipe
from subspace_lib.projections.base import Projection

SIZES = ((1, 1), (2, 1), (7, 1), (7, 7), (31, 30), (61, 9), (64, 17), (97, 96), (120, 120), (257, 30), (1009, 65))
"""Pairs (D, d): odd and even, around powers of two, at both ends of 1 <= d <= D."""


class ProjectionContract:
    """What every projection keeps, held by oracles that know P only as a matrix.

    Set ``family``, or override ``make`` for a projection that is no family. pytest finds the tests of a subclass
    whose name begins with ``Test``; nothing here needs pytest.

    Attributes
    ----------
    family : type
        A subclass of ``Projection``, whose ``columns``, ``nested``, ``square``, ``keeps`` and ``dtypes`` say what is
        tested.
    options : dict
        Keywords for it.

    Raises
    ------
    AssertionError
        From a test, with the size, what was found, and the file in which the family is written.

    Examples
    --------
    >>> class TestOneHot(ProjectionContract):
    ...     family = PROJECTIONS["one_hot"]
    >>> TestOneHot().test_adjoint_is_the_transpose()
    """

    family: type[Projection] | None = None
    options: ClassVar[dict[str, Any]] = {}

    def make(self, D: int, d: int, seed: int = 0, dtype: torch.dtype | None = torch.float32) -> Projection:
        """The projection under test."""
        if self.family is None:
            raise TypeError(f"{type(self).__name__} tests no projection: set its family, or override make")
        return self.family(D, d, seed, dtype=dtype, **self.options)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """The sizes at which P is tested."""
        square = self.family is not None and self.family.square
        yield from ((D, D if square else d) for D, d in SIZES)

    def test_the_class_says_what_it_promises(self) -> None:
        """A name, what the columns are, and options that are kept under their names."""
        if self.family is None:
            return
        self.hold(isinstance(getattr(self.family, "name", None), str), "the class needs a name")
        promised = getattr(self.family, "columns", None)
        self.hold(promised in ("orthonormal", "unit", "expected"), f"columns is {promised!r}")
        D, d = self.some()
        P = self.make(D, d)
        kept = P.options()
        self.hold(self.options.items() <= kept.items(), f"made with {self.options}, but options() gives {kept}")
        shown = f"{type(P).__name__}(D={D}, d={d}, seed=0"
        self.hold(repr(P).startswith(shown), f"repr is {P!r}, which should begin with {shown}")

    def test_adjoint_is_the_transpose(self) -> None:
        """<P z, v> = <z, P^T v>, both are the products with P as a matrix, and neither changes what it is given."""
        for D, d in self.sizes():
            for dtype in (torch.float32, torch.float64):
                P, z, v = self.make(D, d, 3, dtype), normal(3, d, dtype=dtype), normal(3, D, seed=1, dtype=dtype)
                matrix, before = P.to_dense(), (z.clone(), v.clone())
                self.hold(matrix.shape == (D, d), f"to_dense gives {tuple(matrix.shape)} at D = {D}, d = {d}")
                scale = float(matrix.norm(dim=0).max() * z.norm() * v.norm())
                same = partial(self.same, atol=10 * torch.finfo(dtype).eps * scale * math.sqrt(d), at=(D, d, dtype))
                same((P(z) * v).sum(1), (z * P.adjoint(v)).sum(1), "<P z, v> is not <z, P^T v>")
                same(P(z), z @ matrix.T, "P(z) is not the matrix times z")
                same(P.adjoint(v), v @ matrix, "P.adjoint(v) is not the transpose times v")
                self.same(P(z[:0]), z.new_zeros(0, D), "P of an empty batch", at=(D, d, dtype))
                self.hold(torch.equal(z, before[0]), "P(z) changed z")
                self.hold(torch.equal(v, before[1]), "P.adjoint(v) changed v: only pull may")

    def test_columns_are_as_long_as_promised(self) -> None:
        """Norm 1 or orthonormal, exactly; or of norm 1 in expectation."""
        if self.family is None:
            return
        for D, d in self.sizes():
            matrix = self.make(D, d, 4, torch.float64).to_dense()
            lengths, eye = matrix.norm(dim=0), torch.eye(d, dtype=torch.float64)
            if self.family.columns != "expected":
                self.same(lengths, torch.ones_like(lengths), "columns must have norm 1", atol=1e-6, at=(D, d))
            if self.family.columns == "orthonormal":
                self.same(matrix.T @ matrix, eye, "columns must be orthonormal", atol=1e-6, at=(D, d))
        D, d = self.some(1500, 200)
        squares = torch.stack([self.make(D, d, seed).to_dense().square().sum(0) for seed in range(20)])
        found = float(squares.mean())
        self.hold(0.93 < found < 1.07, f"columns have a mean squared norm of {found:.3f}, not 1, at D = {D}, d = {d}")

    def test_first_columns_do_not_depend_on_d(self) -> None:
        """Where the family promises nested subspaces."""
        if self.family is None or not self.family.nested:
            return
        large = self.make(301, 150, 3).to_dense()
        for d in (1, 15, 16, 63, 65, 149):
            few = self.make(301, d, 3).to_dense()
            self.same(few, large[:, :d], "nested: the first columns must not depend on d", atol=0, at=(301, d))

    def test_same_seed_same_P(self) -> None:
        """Whatever was drawn before, on any number of threads, under any default type or device; others differ."""
        D, d = self.some(1009, 65)
        first = self.make(D, d, 5).to_dense()
        torch.manual_seed(99)
        torch.randn(17)
        state, threads, default = torch.random.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
        try:
            torch.set_num_threads(1 if threads > 1 else 2)
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
                P = self.make(D, d, 5)
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(default)
        untouched = torch.equal(state, torch.random.get_rng_state())
        self.hold(untouched, "drawing P touched torch's own generator: draw from generator(seed)")
        self.hold(P.device.type == "cpu", f"P is drawn on the CPU whatever the default device, not on {P.device}")
        same = partial(self.same, atol=1e-6, at=(D, d))
        same(P.to_dense(), first, "the default type, the device or the threads changed P")
        double = self.make(D, d, 5, torch.float64).to_dense()
        same(double.float(), first, "P in float64 is another one than in float32")
        if torch.equal(first, torch.eye(D, d)):
            return
        others = [self.make(D, d, seed).to_dense() for seed in (5, 6, 5 + 2**32, 5 + 2**33, 2**63 - 1)]
        different = len({tuple(other.flatten().tolist()) for other in others})
        self.hold(different == len(others), f"{len(others)} seeds draw {different} projections")

    def test_memory(self) -> None:
        """P keeps no more than the class says, and no parameter and no state."""
        for D, d in (*self.sizes(), self.some(20_000, 10), self.some(20_000, 600)):
            P = self.make(D, d)
            self.hold(not P.state_dict() and not list(P.parameters()), "P must be kept in non-persistent buffers")
            if self.family is not None and not self.options:
                most = self.family.keeps(D, d) * D
                self.hold(P.nbytes <= most, f"P keeps {P.nbytes:,} bytes at D = {D}, d = {d}, promised {most:,.0f}")

    def test_gradients_are_the_adjoint(self) -> None:
        """To second order, forward and backward, in float64."""
        for D, d in (self.some(13, 5), self.some(32, 32)):
            P = self.make(D, d, dtype=torch.float64)
            z = normal(2, d, dtype=torch.float64).requires_grad_()
            v = normal(2, D, seed=1, dtype=torch.float64).requires_grad_()
            right = gradcheck(P, (z,), check_forward_ad=True, raise_exception=False)
            self.hold(right and gradcheck(P.adjoint, (v,), raise_exception=False), f"gradcheck at D, d = {D, d}")
            (gradient,) = torch.autograd.grad((P(z) * v).sum(), z)
            self.same(gradient, P.adjoint(v), "the gradient of <P z, v> is not P^T v", atol=1e-12, at=(D, d))

    def test_batches_vmap_and_conversion(self) -> None:
        """A batch is one product after another; ``vmap`` and ``.to`` work."""
        D, d = self.some(61, 9)
        P, z, v = self.make(D, d), normal(4, 2, d), normal(4, D, seed=1)
        same = partial(self.same, atol=1e-5, at=(D, d))
        same(P(z)[1, 1], P(z[1, 1]), "a batch of z")
        same(torch.vmap(P, in_dims=1, out_dims=1)(z), P(z), "vmap of P")
        same(torch.vmap(P.adjoint)(P(z)), P.adjoint(P(z)), "vmap of P.adjoint")
        gradient = torch.func.grad(lambda one, weight: (P(one) * weight).sum())
        same(torch.vmap(gradient)(z[:, 0], v), P.adjoint(v), "vmap of a gradient")
        exact = P(z)
        same(P.to(torch.float64)(z.double()).float(), exact, ".to(torch.float64)")

    def test_compiled(self) -> None:
        """``torch.compile`` gives the same product and gradient."""
        D, d = self.some(61, 9)
        P, z, v = self.make(D, d), normal(d).requires_grad_(), normal(D, seed=1)
        compiled = torch.compile(lambda one: P(one) @ v, backend="aot_eager")
        (gradient,) = torch.autograd.grad(compiled(z), z)
        self.same(compiled(z), P(z) @ v, "the compiled product", atol=1e-4, at=(D, d))
        self.same(gradient, P.adjoint(v), "the compiled gradient", atol=1e-4, at=(D, d))

    def test_write_and_pull_are_the_products(self) -> None:
        """``write`` gives theta0 + P z, ``pull`` the adjoint."""
        for D, d in (*self.sizes(), self.some(300, 90), self.some(700, 3)):
            P, theta0, z = self.make(D, d, 3), normal(D), normal(d, seed=1)
            matrix, out, at = P.to_dense(), torch.full((D,), math.nan), (D, d)
            P.write(theta0, z, out)
            self.same(out, theta0 + matrix @ z, "write must give theta0 + P z", atol=1e-4, at=at)
            self.same(P.pull(theta0.clone()), matrix.T @ theta0, "pull must give P^T v", atol=1e-3, at=at)

    def test_autocast_leaves_P_alone(self) -> None:
        """P is computed in its own type, forward and backward, whatever autocast says."""
        D, d = self.some(257, 30)
        P, z, v = self.make(D, d), normal(2, d).requires_grad_(), normal(2, D, seed=1)
        exact, out = P(z), torch.empty(D)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = P(z)
            (gradient,) = torch.autograd.grad((product * v).sum(), z)
            batched = torch.vmap(P.adjoint)(v)
            P.write(v[0], z[0].detach(), out)
            pulled = P.pull(v[0].clone())
        same = partial(self.same, atol=1e-4, at=(D, d))
        same(product, exact, "P(z) under autocast")
        same(gradient, P.adjoint(v), "the gradient under autocast")
        same(batched, P.adjoint(v), "vmap under autocast")
        same(out, v[0] + exact[0], "write under autocast")
        same(pulled, P.adjoint(v[0]), "pull under autocast")

    def test_half_precision_is_right_or_refused(self) -> None:
        """To the type's own precision, at sizes whose squares float16 cannot hold; or a TypeError that names it."""
        D, d = self.some(140_000, 2)
        exact = self.make(D, d)
        for dtype in (torch.float16, torch.bfloat16):
            try:
                P = self.make(D, d, dtype=dtype)
            except TypeError as refusal:
                self.hold(str(dtype) in str(refusal), f"{dtype} is refused without its name: {refusal}")
                self.refuses(lambda dtype=dtype: self.make(D, d).to(dtype), TypeError, str(dtype))  # type: ignore[misc]
                continue
            z, v, eps = normal(d).to(dtype), normal(D, seed=1).to(dtype), torch.finfo(dtype).eps
            for product, right in ((P(z), exact(z.float())), (P.adjoint(v), exact.adjoint(v.float()))):
                self.hold(product.dtype == dtype, f"a product in {dtype} is {product.dtype}")
                error = float((product.float() - right).norm() / right.norm())
                self.hold(error < 4 * eps, f"products in {dtype} are off by {error:.1e} at D = {D}, d = {d}")

    def test_recipe_draws_P_again(self) -> None:
        """Where P has a recipe, which is plain data."""
        D, d = self.some(61, 9)
        P = self.make(D, d, 7)
        if has_recipe(P):
            again = from_recipe(P.recipe(), torch.float32)
            self.same(again.to_dense(), P.to_dense(), f"another P is drawn from {P.recipe()}", atol=0, at=(D, d))
            self.hold(again.recipe() == P.recipe(), f"{P.recipe()} became {again.recipe()}")

    def test_bad_input_is_refused(self) -> None:
        """By a ValueError or TypeError that names the value, and what was allowed; a NaN passes through."""
        D, d = self.some(61, 9)
        P = self.make(D, d)
        self.refuses(lambda: P(torch.zeros(d + 1)), ValueError, f"(..., d = {d}), got ({d + 1},)")
        self.refuses(lambda: P.adjoint(torch.zeros(D + 1)), ValueError, f"(..., D = {D}), got ({D + 1},)")
        self.refuses(lambda: P(torch.zeros(())), ValueError, "got ()")
        self.refuses(lambda: P(torch.zeros(d, dtype=torch.float64)), TypeError, "float64 but P is torch.float32")
        self.refuses(lambda: P([0.0] * d), TypeError, "z must be a tensor, got list")
        self.refuses(lambda: P(torch.zeros(d, device="meta")), ValueError, "z is on meta but P is on cpu")
        self.hold(bool(P(torch.full((d,), math.nan)).isnan().any()), "a NaN in z must be seen in P z")

    def test_bad_sizes_are_refused(self) -> None:
        """And NumPy's integers are taken where Python's are."""
        if self.family is None:
            return
        D, d = self.some(61, 9)
        self.refuses(lambda: self.make(10, 0), ValueError, "d must lie between 1 and D = 10, got 0")
        self.refuses(lambda: self.make(10, 11), ValueError, "d must lie between 1 and D = 10, got 11")
        self.refuses(lambda: self.make(0, 0), ValueError, "D must be at least 1, got 0")
        self.refuses(lambda: self.make(D, d, -1), ValueError, "seed must lie between")
        self.refuses(lambda: self.make(D, d, 2**63), ValueError, "seed must lie between")
        self.refuses(lambda: self.make(D, True), TypeError, "d must be an integer, got True")
        self.refuses(lambda: self.make(D, float(d)), TypeError, f"d must be an integer, got {float(d)}")  # type: ignore[arg-type]
        self.refuses(lambda: self.make(D, d, dtype=torch.int64), TypeError, "floating-point")
        numpy = self.make(np.int16(D), np.uint8(d), np.int64(5))  # type: ignore[arg-type]
        self.same(numpy.to_dense(), self.make(D, d, 5).to_dense(), "NumPy's integers", atol=0, at=(D, d))

    def some(self, D: int = 61, d: int = 9) -> tuple[int, int]:
        """One size that the projection can have."""
        if self.family is not None and self.family.square:
            return min(D, 300), min(D, 300)
        return D, d

    def hold(self, condition: bool, message: str) -> None:
        """Raise an AssertionError with the file to look into, unless the condition is true."""
        if not condition:
            tested = self.family or type(self)
            raise AssertionError(
                f"{tested.__name__} {self.options or ''}: {message}; see {inspect.getsourcefile(tested)}"
            )

    def same(self, found: Tensor, expected: Tensor, message: str, *, atol: float = 0.0, at: tuple[Any, ...]) -> None:
        """Raise an AssertionError unless two tensors are equal up to ``atol``."""
        self.hold(found.shape == expected.shape, f"{message}: shape {tuple(found.shape)} at D, d = {at}")
        self.hold(found.dtype == expected.dtype, f"{message}: type {found.dtype} at D, d = {at}")
        error = float((found - expected).detach().abs().max()) if found.numel() else 0.0
        self.hold(error <= atol, f"{message}: off by {error:.1e} at D, d = {at}")

    def refuses(self, call: Callable[[], object], kind: type[Exception], words: str) -> None:
        """Raise an AssertionError unless the call raises an error of this kind that says these words."""
        try:
            call()
        except kind as error:
            self.hold(words in str(error), f"the message should say {words!r}: {error}")
        else:
            self.hold(False, f"expected a {kind.__name__} that says {words!r}")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
