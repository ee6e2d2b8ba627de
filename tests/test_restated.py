"""The study's projections: the contract of all projections, and what was particular to them."""

import math

import pytest
import torch

from subspace_lib import diagnose
from subspace_lib.study.restated import RESTATED, restate

D, d = 3001, 25


@pytest.mark.parametrize("name", RESTATED)
def test_products_are_those_of_the_matrix(name):
    P = restate(name, D, d, seed=3)
    matrix = P.to_dense().double()
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(4, d, generator=generator), torch.randn(4, D, generator=generator)
    torch.testing.assert_close(P(z).double(), z.double() @ matrix.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(P.adjoint(v).double(), v.double() @ matrix, rtol=1e-4, atol=1e-4)
    out = torch.empty(D)
    P.write(v[0], z[0], out)
    torch.testing.assert_close(out, v[0] + P(z[0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(P.pull(v[1].clone()), P.adjoint(v[1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(restate(name, D, d, seed=3).to_dense(), P.to_dense(), rtol=0, atol=0)


@pytest.mark.parametrize("name", RESTATED)
def test_density_norms_and_rows_are_those_of_the_table(name):
    recipe = RESTATED[name]
    matrix = restate(name, D, d, seed=0).to_dense()
    filled = (matrix != 0).sum(0) / D
    density = {"1": 1.0, "1/sqrt(d)": 1 / math.sqrt(d), "1/sqrt(D)": 1 / math.sqrt(D)}[recipe.density]
    share = density / 2 if recipe.one_sign else density
    assert filled.mean() == pytest.approx(share, rel=0.05)
    norm = (math.sqrt(D / d) if recipe.long else 1.0) * (math.sqrt(0.5) if recipe.one_sign else 1.0)
    assert matrix.norm(dim=0).mean() == pytest.approx(norm, rel=0.02)
    reach = (matrix != 0).any(1).float().mean()
    assert reach == pytest.approx(density if recipe.shared else 1 - (1 - density) ** d, rel=0.05)
    assert (matrix.min() < 0) != recipe.one_sign


def test_the_study_could_move_one_weight_in_sixty():
    layer = restate("study_sparse", 470_600, 4000, seed=0)
    assert diagnose(layer)["reach"] == pytest.approx(0.0158, abs=1e-4)
