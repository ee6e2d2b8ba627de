"""Where a block of P is A kron B in the shape of a layer, the layer computes with A, Z and B and forms no weight."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subspace_lib.projections import KroneckerProjection, LayerwiseProjection, Projection
from subspace_lib.projections.compose import ScaledProjection


class Factors(NamedTuple):
    """What a layer computes with."""

    weight: Tensor
    """Theta0, in the shape of the layer's weight."""
    bias: Tensor | None
    """The start of the bias, where the block moves it."""
    A: Tensor
    Z: Tensor
    B: Tensor
    """Its columns, each in the shape of a row of the weight."""
    B_bias: Tensor | None
    """The row of B that belongs to the bias."""


class _Factored(nn.Module):
    """A layer that is given its factors for a forward pass of its model."""

    factors: Factors | None = None


class FactoredLinear(_Factored, nn.Linear):
    """A linear layer whose weight is Theta0 + A Z B^T and is never formed."""

    def forward(self, x: Tensor) -> Tensor:
        """x Theta0^T + ((x B) Z^T) A^T, and the bias."""
        if self.factors is None:  # somebody has filled in the weight, as fit_many does
            return super().forward(x)
        weight, bias, A, Z, B, B_bias = self.factors
        start = F.linear(x, weight, self.bias if bias is None else bias)
        return start + F.linear(F.linear(F.linear(x, B, B_bias), Z), A)


class FactoredConv2d(_Factored, nn.Conv2d):
    """The same for a convolution: the columns of B are filters, and A Z is a convolution of one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with Theta0 + A Z B^T; each group of channels is seen by all filters of B."""
        if self.factors is None:
            return super().forward(x)
        weight, bias, A, Z, B, B_bias = self.factors
        start = self._conv_forward(x, weight, self.bias if bias is None else bias)
        B_bias = None if B_bias is None else B_bias.repeat(self.groups)
        seen = self._conv_forward(x, B.repeat(self.groups, 1, 1, 1), B_bias)
        moved: Tensor = start + F.conv2d(seen, (A @ Z)[:, :, None, None], groups=self.groups)
        return moved


FORMS: dict[type[nn.Module], type[_Factored]] = {nn.Linear: FactoredLinear, nn.Conv2d: FactoredConv2d}
"""The layers that can be factored, and what they become."""


@dataclass(frozen=True)
class Place:
    """A layer that computes with factors: name, shape of its weight, block of P, and where it begins in theta."""

    layer: str
    shape: torch.Size
    block: int
    start: int


class Factoring:
    """Which layers of a network compute with factors, and which rows of theta are formed as ever.

    Parameters
    ----------
    net : nn.Module
        The network of a ``SubspaceModel``; its layers become those of ``FORMS``.
    P : Projection
        Its projection.
    shapes : mapping
        The shape of every weight that P moves, by name, in the order of theta.
    aliases : sequence
        All names of each of these weights.

    Raises
    ------
    ValueError
        If no block of P has the shape of a layer, or one has but does not move one layer of ``FORMS`` alone.
    """

    def __init__(
        self, net: nn.Module, P: Projection, shapes: Mapping[str, torch.Size], aliases: Sequence[Sequence[str]]
    ) -> None:
        ends = list(itertools.accumulate((shape.numel() for shape in shapes.values()), initial=0))
        spans = _spans(P)
        self.places: list[Place] = []
        self.formed = list(shapes)
        for i, (block, _) in enumerate(_blocks(P)):
            if not isinstance(block, KroneckerProjection) or block.shape is None:
                continue
            start, end = spans[i][0][0], spans[i][-1][1]
            held = [
                name for name, (low, high) in zip(shapes, pairwise(ends), strict=True) if low < end and start < high
            ]
            layer = held[0].rpartition(".")[0]
            places = {alias for name, known in zip(shapes, aliases, strict=True) if name in held for alias in known}
            why = _refusal(net, block, layer, [(name, shapes[name]) for name in held], places)
            if why or len(spans[i]) > 1:
                raise ValueError(
                    f"{held[0]!r} cannot be factored: {why or 'its block moves rows far apart'}; "
                    "give it a block without ranks, which is formed as ever"
                )
            self.places.append(Place(layer, shapes[held[0]], i, start))
            self.formed = [name for name in self.formed if name not in held]
        if not self.places:
            raise ValueError(
                f"P, a {P.name} projection, has no block in the shape of a layer, which could be factored; "
                'LayerwiseProjection.over(net, {"0.*": ("kronecker", (a, b)), ...}) makes one'
            )
        for place in self.places:
            module = net.get_submodule(place.layer)
            module.__class__ = FORMS.get(type(module), type(module))
        self.factored = {
            alias for name, known in zip(shapes, aliases, strict=True) if name not in self.formed for alias in known
        }
        blocks = {place.block for place in self.places}
        self.rest = sorted((*span, i) for i, of_block in enumerate(spans) if i not in blocks for span in of_block)

    def theta(self, P: Projection, theta0: Tensor, z: Tensor) -> Tensor:
        """The rows of theta0 + P z that are formed, in their order."""
        if not self.rest:
            return theta0[:0]
        blocks = _blocks(P)
        parts = z.split([block.d for block, _ in blocks])
        products = {i: blocks[i][0](blocks[i][1] * parts[i]) for _, _, i in self.rest}
        found = []
        for start, end, i in self.rest:
            found.append(theta0[start:end] + products[i][: end - start])
            products[i] = products[i][end - start :]
        return torch.cat(found)

    def columns(self, P: Projection, layer: str) -> int:
        """How many columns the factor B of a layer has."""
        (block,) = (_blocks(P)[place.block][0] for place in self.places if place.layer == layer)
        return cast(KroneckerProjection, block).B.shape[1]

    @contextlib.contextmanager
    def placed(self, net: nn.Module, P: Projection, theta0: Tensor, z: Tensor) -> Iterator[None]:
        """For a while, the layers have their factors."""
        layers = [cast(_Factored, net.get_submodule(place.layer)) for place in self.places]
        blocks = _blocks(P)
        parts = z.split([block.d for block, _ in blocks])
        try:
            for layer, place in zip(layers, self.places, strict=True):
                block, factor = blocks[place.block]
                start = theta0[place.start : place.start + block.D]
                layer.factors = _factors(
                    cast(KroneckerProjection, block), factor, place.shape, start, parts[place.block]
                )
            yield
        finally:
            for layer in layers:
                layer.factors = None


def _factors(block: KroneckerProjection, factor: float, shape: torch.Size, theta0: Tensor, z: Tensor) -> Factors:
    """What a layer computes with, cut out of its rows of theta0, its block of P and its part of z."""
    size, columns = shape.numel(), shape[1:].numel()
    with_bias = size < block.D
    return Factors(
        theta0[:size].view(shape),
        theta0[size:] if with_bias else None,
        block.A,
        block.Z(z if factor == 1 else factor * z),
        block.B[:columns].T.reshape(-1, *shape[1:]),
        block.B[columns] if with_bias else None,
    )


def _refusal(
    net: nn.Module, block: KroneckerProjection, layer: str, held: list[tuple[str, torch.Size]], places: set[str]
) -> str:
    """Why a block with the shape of a layer cannot be that of these weights; empty if it can."""
    module, (name, shape) = net.get_submodule(layer), held[0]
    if type(module) not in (*FORMS, *FORMS.values()):
        return f"a {type(module).__name__} is no {' or '.join(form.__name__ for form in FORMS)}"
    whole = [f"{layer}.{part}".removeprefix(".") for part in ("weight", "bias")]
    if [one for one, _ in held] != whole[: len(held)] or sum(one.numel() for _, one in held) != block.D:
        return "its block moves other weights than a layer's, or parts of them"
    if {net.get_submodule(place.rpartition(".")[0]) for place in places} != {module}:
        return f"it is tied: {', '.join(sorted(places - {one for one, _ in held}))}"
    if block.shape != (shape[0], shape[1:].numel()):
        return f"its shape is {tuple(shape)}, that of the block {block.shape}"
    dtype = net.get_buffer(name).dtype
    return "" if dtype == block.dtype else f"it is {dtype}, and P {block.dtype}; use autocast for short products"


def _unscaled(P: Projection) -> tuple[Projection, float]:
    """P without the numbers that it is multiplied by, and their product."""
    factor = 1.0
    while isinstance(P, ScaledProjection):
        factor *= P.factor
        P = P.P
    return P, factor


def _blocks(P: Projection) -> list[tuple[Projection, float]]:
    """The blocks on the diagonal of P, each with the number that it is multiplied by."""
    whole, factor = _unscaled(P)
    blocks = whole._blocks() if isinstance(whole, LayerwiseProjection) else [whole]
    return [(block, factor * own) for block, own in map(_unscaled, blocks)]


def _spans(P: Projection) -> list[list[tuple[int, int]]]:
    """The rows of theta that each block moves, from where to where."""
    whole, _ = _unscaled(P)
    pieces = whole.pieces if isinstance(whole, LayerwiseProjection) else None
    blocks = _blocks(P)
    spans: list[list[tuple[int, int]]] = [[] for _ in blocks]
    end = 0
    for i, length in pieces or [[i, block.D] for i, (block, _) in enumerate(blocks)]:
        joined = bool(spans[i]) and spans[i][-1][1] == end
        start = spans[i].pop()[0] if joined else end
        end += length
        spans[i].append((start, end))
    return spans
