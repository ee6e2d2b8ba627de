"""The families by name, and how to draw a projection by its name or by its recipe."""

from __future__ import annotations

from typing import Any

import torch

from subspace_lib.projections.base import COMPOSED, Projection
from subspace_lib.projections.dense import DenseProjection, OrthogonalProjection
from subspace_lib.projections.identity import IdentityProjection
from subspace_lib.projections.kronecker import KroneckerProjection
from subspace_lib.projections.sharing import OneHotProjection
from subspace_lib.projections.sparse import SparseProjection
from subspace_lib.projections.transforms import FastfoodProjection, HadamardProjection

PROJECTIONS: dict[str, type[Projection]] = {
    family.name: family
    for family in (
        DenseProjection,
        SparseProjection,
        OrthogonalProjection,
        HadamardProjection,
        FastfoodProjection,
        KroneckerProjection,
        OneHotProjection,
        IdentityProjection,
    )
}
"""The families by name."""


def make_projection(name: str, D: int, d: int, seed: int = 0, **options: Any) -> Projection:
    """Draw a random projection P with D rows and d columns.

    Parameters
    ----------
    name : str
        A key of ``PROJECTIONS``.
    D, d : int
        Number of weights and dimension of the subspace, 1 <= d <= D.
    seed : int
        Same seed, same P.
    **options
        Keywords of the family, for instance ``density`` for "sparse"; ``dtype`` for all.

    Returns
    -------
    Projection
        ``P(z)`` maps (..., d) to (..., D); ``P.adjoint(v)`` maps (..., D) to (..., d).

    Raises
    ------
    ValueError
        If the name or an option is unknown, or d lies outside 1..D.
    TypeError
        If D, d or seed is not an integer.

    Examples
    --------
    >>> P = make_projection("sparse", D=1000, d=10, seed=0)
    >>> P(torch.zeros(10)).shape
    torch.Size([1000])
    """
    if name not in PROJECTIONS:
        raise ValueError(f"unknown projection {name!r}; choose one of: {', '.join(PROJECTIONS)}")
    family = PROJECTIONS[name]
    allowed = family.option_names()
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r} for {name!r}; allowed: {', '.join(allowed)}")
    return family(D, d, seed, **options)


def from_recipe(recipe: dict[str, Any], dtype: torch.dtype) -> Projection:
    """Draw the projection that ``Projection.recipe`` describes.

    Examples
    --------
    >>> recipe = (0.5 * make_projection("one_hot", D=100, d=4, seed=7)).recipe()
    >>> from_recipe(recipe, torch.float32)
    ScaledProjection(
      D=100, d=4, seed=7, factor=0.5
      (P): OneHotProjection(D=100, d=4, seed=7)
    )
    """
    composed = COMPOSED.get(recipe.get("name", ""))
    if composed is None:
        return make_projection(**recipe, dtype=dtype)

    def rebuilt(part: Any) -> Any:
        if isinstance(part, dict):
            return from_recipe(part, dtype)
        return [rebuilt(one) for one in part] if isinstance(part, list) else part

    P: Projection = composed(**{key: rebuilt(part) for key, part in recipe.items() if key in composed.option_names()})
    return P


def has_recipe(P: Projection) -> bool:
    """Whether ``from_recipe`` can draw P again: it is of a known family, or made of such by the algebra.

    Examples
    --------
    >>> has_recipe(make_projection("dense", D=100, d=4)), has_recipe(MatrixProjection(torch.ones(3, 1)))
    (True, False)
    """
    known = PROJECTIONS | COMPOSED
    return all(type(part) is known.get(part.name) for part in P.modules() if isinstance(part, Projection))
