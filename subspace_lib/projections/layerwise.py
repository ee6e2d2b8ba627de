"""One projection for each layer, and how to share d out among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from subspace_lib.checks import integer
from subspace_lib.projections.base import COMPOSED, Projection
from subspace_lib.projections.compose import ComposedProjection, check_parts


class LayerwiseProjection(ComposedProjection):
    """A block-diagonal P: part i of z moves part i of the weights only.

    Parameters
    ----------
    blocks : sequence of Projection
        The projections on the diagonal, in the order of the weights; D and d are the sums of theirs.

    Raises
    ------
    ValueError
        If there is no block, or their types or devices differ.
    TypeError
        If a block is not a Projection.

    Examples
    --------
    >>> sizes = [p.numel() for p in net.parameters()]
    >>> budget = split_budget(sizes, 150)
    >>> P = LayerwiseProjection([make_projection("dense", D, d, seed=i) for i, (D, d) in enumerate(zip(sizes, budget))])
    """

    name = "layerwise"

    def __init__(self, blocks: Sequence[Projection]) -> None:
        if not blocks:
            raise ValueError("a layerwise projection needs at least one block, got none")
        check_parts(*blocks)
        super().__init__(sum(P.D for P in blocks), sum(P.d for P in blocks), 0, blocks)
        self.blocks = nn.ModuleList(blocks)

    def _blocks(self) -> list[Projection]:
        return [block for block in self.blocks if isinstance(block, Projection)]

    def _multiply(self, z: Tensor) -> Tensor:
        blocks = self._blocks()
        parts = z.split([P.d for P in blocks], dim=-1)
        return torch.cat([P._multiply(part) for P, part in zip(blocks, parts, strict=True)], dim=-1)

    def _write(self, theta0: Tensor, z: Tensor, out: Tensor) -> None:
        blocks = self._blocks()
        rows, columns = [P.D for P in blocks], [P.d for P in blocks]
        for P, start, part, end in zip(blocks, theta0.split(rows), z.split(columns), out.split(rows), strict=True):
            P._write(start, part, end)

    def _pull(self, v: Tensor) -> Tensor:
        blocks = self._blocks()
        parts = v.split([P.D for P in blocks], dim=-1)
        return torch.cat([P._pull(part) for P, part in zip(blocks, parts, strict=True)], dim=-1)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        blocks = self._blocks()
        parts = v.split([P.D for P in blocks], dim=-1)
        return torch.cat([P._multiply_transposed(part) for P, part in zip(blocks, parts, strict=True)], dim=-1)


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
