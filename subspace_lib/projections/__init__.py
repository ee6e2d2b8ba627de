"""The maps P: every family of random projection, behind one contract."""

from subspace_lib.projections.base import Projection
from subspace_lib.projections.compose import MatrixProjection, ProductProjection, ScaledProjection, SumProjection
from subspace_lib.projections.dense import DenseProjection, OrthogonalProjection
from subspace_lib.projections.families import PROJECTIONS, from_recipe, has_recipe, make_projection
from subspace_lib.projections.identity import IdentityProjection
from subspace_lib.projections.kronecker import KroneckerProjection
from subspace_lib.projections.layerwise import LayerwiseProjection, split_budget
from subspace_lib.projections.sharing import OneHotProjection
from subspace_lib.projections.sparse import SparseProjection
from subspace_lib.projections.transforms import FastfoodProjection, HadamardProjection

__all__ = [
    "PROJECTIONS",
    "DenseProjection",
    "FastfoodProjection",
    "HadamardProjection",
    "IdentityProjection",
    "KroneckerProjection",
    "LayerwiseProjection",
    "MatrixProjection",
    "OneHotProjection",
    "OrthogonalProjection",
    "ProductProjection",
    "Projection",
    "ScaledProjection",
    "SparseProjection",
    "SumProjection",
    "from_recipe",
    "has_recipe",
    "make_projection",
    "split_budget",
]
