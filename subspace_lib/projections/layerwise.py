"""One projection for each layer, and how to share d out among them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from subspace_lib.checks import integer, mapping
from subspace_lib.projections.base import COMPOSED, Projection
from subspace_lib.projections.compose import ComposedProjection, check_parts
from subspace_lib.projections.families import make_projection


class LayerwiseProjection(ComposedProjection):
    """A block-diagonal P: part i of z moves part i of the weights only.

    ``LayerwiseProjection.over`` makes one by the names of a network's weights.

    Parameters
    ----------
    blocks : sequence of Projection
        The projections on the diagonal, in the order of the weights; D and d are the sums of theirs.
    pieces : sequence of (int, int), optional
        Where the weights of the blocks take turns: the number of a block and how many of its rows come next, from the
        first weight to the last. Left out, each block's rows stand together.

    Raises
    ------
    ValueError
        If there is no block, their types or devices differ, or the pieces do not add up to the blocks.
    TypeError
        If a block is not a Projection.

    Examples
    --------
    >>> sizes = [p.numel() for p in LeNet().parameters()]
    >>> budget = split_budget(sizes, 150)
    >>> P = LayerwiseProjection([make_projection("dense", D, d, seed=i) for i, (D, d) in enumerate(zip(sizes, budget))])
    >>> P.D, P.d
    (61706, 150)
    """

    name = "layerwise"

    def __init__(self, blocks: Sequence[Projection], pieces: Sequence[Sequence[int]] | None = None) -> None:
        if isinstance(blocks, Projection):
            raise TypeError(f"blocks must be a sequence of projections, got one {type(blocks).__name__}; make it [P]")
        blocks = list(blocks)
        if not blocks:
            raise ValueError("a layerwise projection needs at least one block, got none")
        check_parts(*blocks)
        super().__init__(sum(P.D for P in blocks), sum(P.d for P in blocks), 0, blocks)
        self.blocks = nn.ModuleList(blocks)
        self.pieces = None if pieces is None else [_piece(one, len(blocks)) for one in pieces]
        if self.pieces is not None:
            rows = [sum(length for block, length in self.pieces if block == i) for i in range(len(blocks))]
            if rows != [P.D for P in blocks]:
                raise ValueError(f"pieces give the blocks {rows} rows, but they have {[P.D for P in blocks]}")

    @classmethod
    def over(cls, net: nn.Module, blocks: Mapping[str, tuple[Any, ...]], seed: int = 0) -> LayerwiseProjection:
        """A block for each group of weights, by their names.

        The blocks have the widest type of these weights, float32 at least: short weights leave z long.

        Parameters
        ----------
        net : nn.Module
            The network; its trained weights, ``[name for name, p in net.named_parameters() if p.requires_grad]``,
            are theta in this order.
        blocks : mapping
            From a pattern of names, as for file names (``"layer4.*"``, ``"*.bias"``), to the block that moves all
            weights whose name it fits: ``(family, d)``, or ``(family, d, c)`` for c times that. d = None stands for
            as many as the weights are; "identity" trains each of them. c sets the learning rate of a block beside
            the others': with Adam its weights move c times as far a step, with SGD c * c times.
            ``("kronecker", (a, b))`` fits A, with a columns, and B, with b, to the weight matrix of one layer, its
            bias included where the pattern fits that too; ``SubspaceModel.factored`` then never forms it.
        seed : int
            Block i of n, in the order of the weights, is drawn with seed * n + i.

        Raises
        ------
        ValueError
            If a weight fits no pattern or several, a pattern fits no weight, or a block cannot be drawn.
        TypeError
            If a block is not given as a tuple of two or three.

        Examples
        --------
        >>> net = torch.nn.Sequential(torch.nn.Linear(50, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
        >>> P = LayerwiseProjection.over(net, {"0.*": ("hadamard", 30), "2.*": ("identity", None)})
        >>> P.D == count_parameters(net), P.d
        (True, 93)
        """
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a network, got {type(net).__name__}")
        weights = {name: p for name, p in net.named_parameters() if p.requires_grad}
        pattern_of = {name: _pattern_of(name, mapping("blocks", blocks)) for name in weights}
        patterns = list(dict.fromkeys(pattern_of.values()))
        for pattern in blocks:
            if pattern not in patterns:
                raise ValueError(
                    f"{pattern!r} fits no trained weight of {type(net).__name__}; they are: {', '.join(weights)}"
                )
        if not weights:
            raise ValueError(f"{type(net).__name__} has no trained weight")
        pieces: list[list[int]] = []
        for name, p in weights.items():
            block = patterns.index(pattern_of[name])
            if not pieces or pieces[-1][0] != block:
                pieces.append([block, 0])
            pieces[-1][1] += p.numel()
        dtype = functools.reduce(torch.promote_types, {p.dtype for p in weights.values()}, torch.float32)
        device = next(iter(weights.values())).device
        seed = integer("seed", seed, 0)
        drawn = []
        for i, pattern in enumerate(patterns):
            D = sum(length for block, length in pieces if block == i)
            try:
                shapes = [p.shape for name, p in weights.items() if pattern_of[name] == pattern]
                drawn.append(_draw(blocks[pattern], D, seed * len(patterns) + i, dtype, shapes).to(device))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{pattern!r}: {error}") from None
        return cls(drawn, None if len(pieces) == len(patterns) else pieces)

    def _blocks(self) -> list[Projection]:
        return [block for block in self.blocks if isinstance(block, Projection)]

    def _of_z(self, z: Tensor) -> list[Tensor]:
        return list(z.split([P.d for P in self._blocks()], dim=-1))

    def _of_theta(self, v: Tensor) -> list[Tensor]:
        """The rows of each block."""
        if self.pieces is None:
            return list(v.split([P.D for P in self._blocks()], dim=-1))
        cut = list(zip(self.pieces, v.split([length for _, length in self.pieces], dim=-1), strict=True))
        return [torch.cat([rows for (block, _), rows in cut if block == i], dim=-1) for i in range(len(self.blocks))]

    def _multiply(self, z: Tensor) -> Tensor:
        products = [P._multiply(part) for P, part in zip(self._blocks(), self._of_z(z), strict=True)]
        if self.pieces is None:
            return torch.cat(products, dim=-1)
        lengths = [[length for block, length in self.pieces if block == i] for i in range(len(products))]
        rows = [iter(product.split(cut, dim=-1)) for product, cut in zip(products, lengths, strict=True)]
        return torch.cat([next(rows[block]) for block, _ in self.pieces], dim=-1)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        parts = zip(self._blocks(), self._of_theta(v), strict=True)
        return torch.cat([P._multiply_transposed(part) for P, part in parts], dim=-1)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        if self.pieces is not None:
            return super()._write(theta0, z, out)
        parts = zip(self._blocks(), self._of_theta(theta0), self._of_z(z), self._of_theta(out), strict=True)
        for P, start, part, end in parts:
            P._write(start, part, end)
        return None

    def _pull(self, v: Tensor) -> Tensor:
        parts = zip(self._blocks(), self._of_theta(v), strict=True)
        return torch.cat([P._pull(part) for P, part in parts], dim=-1)


def _piece(piece: Sequence[int], blocks: int) -> list[int]:
    """The number of a block and of its next rows."""
    try:
        block, rows = piece
    except (TypeError, ValueError):
        raise TypeError(f"a piece is a pair, the number of a block and of its next rows, got {piece!r}") from None
    return [integer("the block of a piece", block, 0, blocks - 1), integer("the rows of a piece", rows, 1)]


def _pattern_of(name: str, patterns: Iterable[str]) -> str:
    """The one pattern that fits the name of a weight."""
    fitting = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
    if len(fitting) != 1:
        found = " and ".join(map(repr, fitting)) or "none"
        raise ValueError(f"every trained weight needs exactly one pattern; {name!r} fits {found} of {list(patterns)}")
    return fitting[0]


def _draw(block: tuple[Any, ...], D: int, seed: int, dtype: torch.dtype, shapes: Sequence[Sequence[int]]) -> Projection:
    if not isinstance(block, tuple) or len(block) not in (2, 3):
        raise TypeError(f"a block is (family, d) or (family, d, c), got {block!r}")
    d, options = D if block[1] is None else block[1], {}
    if isinstance(d, tuple) and block[0] == "kronecker" and len(d) == 2:
        out, *into = shapes[0]
        if not into or [tuple(shape) for shape in shapes[1:]] not in ([], [(out,)]):
            found = ", ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"ranks {d} are those of one layer, a matrix and its bias at most; the weights are {found}"
            )
        options = {"shape": (out, math.prod(into)), "ranks": d}
        d = math.prod(integer("a rank", rank) for rank in d)
    P = make_projection(block[0], D, d, seed, dtype=dtype, **options)
    return block[2] * P if len(block) == 3 else P


COMPOSED[LayerwiseProjection.name] = LayerwiseProjection

RULES: dict[str, Callable[[int], float]] = {
    "proportional": lambda size: size,
    "sqrt": math.sqrt,
    "equal": lambda size: 1.0,
}
"""How much of d a layer of a given size deserves."""


def split_budget(sizes: Sequence[int], d: int, rule: str = "proportional") -> list[int]:
    """Share d dimensions out among layers, at least one each and at most as many as the layer has weights.

    Parameters
    ----------
    sizes : sequence of int
        Weights of each layer.
    d : int
        Dimensions to share out, from ``len(sizes)`` to ``sum(sizes)``.
    rule : str
        "proportional" to the size, to its "sqrt", or "equal".

    Returns
    -------
    list of int
        One number a layer, d in sum.

    Raises
    ------
    ValueError
        If the rule is unknown, a size is below 1, or d is out of range.
    TypeError
        If a number is not an integer.

    Examples
    --------
    >>> split_budget([100, 200, 700], 100)
    [10, 20, 70]
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose one of: {', '.join(RULES)}")
    d, sizes = integer("d", d), [integer("a size", size) for size in sizes]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be one or more numbers of at least 1, got {list(sizes)}")
    if not len(sizes) <= d <= sum(sizes):
        raise ValueError(f"d must lie between {len(sizes)} (one a layer) and {sum(sizes)} (all weights), got {d}")
    deserved = [RULES[rule](size) for size in sizes]
    shares = [1] * len(sizes)
    for _ in range(d - len(sizes)):  # to the layer that is furthest below what it deserves
        open_layers = [i for i, size in enumerate(sizes) if shares[i] < size]
        shares[min(open_layers, key=lambda i: (shares[i] + 0.5) / deserved[i])] += 1
    return shares
