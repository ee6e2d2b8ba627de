"""The projections of the study, restated: with the two ways in which they differ from ours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from subspace_lib.projections import Projection, make_projection
from subspace_lib.projections.base import generator
from subspace_lib.projections.sparse import distinct_integers


@dataclass(frozen=True)
class Recipe:
    """How a projection of the study is made.

    Attributes
    ----------
    density : str
        Share of a column that is not zero: "1" (dense, Gaussian), "1/sqrt(d)" or "1/sqrt(D)".
    long : bool
        Whether columns have norm sqrt(D/d) instead of 1.
    shared : bool
        Whether all columns have their entries in the same rows, as from a sampler that is seeded anew each time.
    one_sign : bool
        Whether entries are 0 or 1 by a coin, instead of -1 or 1.
    """

    density: str
    long: bool
    shared: bool = False
    one_sign: bool = False


RESTATED = {
    "study_gaussian": Recipe("1", long=True),
    "study_sparse": Recipe("1/sqrt(d)", long=False, shared=True),
    "sparse_independent_rows": Recipe("1/sqrt(d)", long=False),
    "study_sparse2full": Recipe("1/sqrt(d)", long=True, shared=True),
    "study_sparse2": Recipe("1/sqrt(d)", long=True, shared=True, one_sign=True),
    "study_sparse_original": Recipe("1/sqrt(D)", long=True, shared=True),
    "sparser_shared_unit": Recipe("1/sqrt(D)", long=False, shared=True),
    "sparser_independent_long": Recipe("1/sqrt(D)", long=True),
    "sparser_independent_unit": Recipe("1/sqrt(D)", long=False),
}
"""The study's types under its own names, the control of "study_sparse", and the other corners of rows x column norm at
density 1/sqrt(D)."""


def restate(name: str, D: int, d: int, seed: int) -> Projection:
    """A projection of ``RESTATED``.

    References
    ----------
    Minut (2023), *Training on Parameters Subspaces*: the run tables behind its figures 5 and 6.
    """
    recipe = RESTATED[name]
    if recipe.density == "1":
        P = make_projection("dense", D, d, seed)
    else:
        density = 1 / math.sqrt(d if recipe.density == "1/sqrt(d)" else D)
        P = SharedRows(D, d, seed, density, recipe.one_sign) if recipe.shared else _sparse(D, d, seed, density)
    return math.sqrt(D / d) * P if recipe.long else P


def _sparse(D: int, d: int, seed: int, density: float) -> Projection:
    return make_projection("sparse", D, d, seed, density=density)


class SharedRows(Projection):
    """A sparse P whose columns all have their entries in the same rows, so that no z moves any other weight.

    P[rows, j] = s / sqrt(k), with k = density * D rows drawn once and s random signs; with ``one_sign``, s is 0 or 1.
    """

    name = "shared_rows"

    def __init__(self, D: int, d: int, seed: int, density: float, one_sign: bool = False) -> None:
        super().__init__(D, d, seed)
        self.density, self.one_sign = density, one_sign
        self.k = max(1, round(density * D))
        drawn = generator(seed)
        self.register_buffer("rows", distinct_integers(1, self.k, D, drawn)[0].long(), persistent=False)
        coins = torch.randint(0, 2, (d, self.k), generator=drawn, dtype=torch.int8)
        signs = (coins if one_sign else 2 * coins - 1).to(self.dtype)
        self.register_buffer("values", signs / math.sqrt(self.k), persistent=False)

    rows: Tensor
    values: Tensor

    def _multiply(self, z: Tensor) -> Tensor:
        return z.new_zeros(*z.shape[:-1], self.D).index_copy(-1, self.rows, z @ self.values)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v.index_select(-1, self.rows) @ self.values.T
