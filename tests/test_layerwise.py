"""Block-diagonal projections, budgets and the diagnosis."""

import math

import pytest
import torch
from torch import nn

from subspace_lib import (
    PROJECTIONS,
    LayerwiseProjection,
    LeNet,
    MatrixProjection,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    diagnose,
    make_projection,
    split_budget,
)
from subspace_lib.projections import from_recipe
from subspace_lib.projections.testing import ProjectionContract


def layerwise():
    return LayerwiseProjection(
        [make_projection("dense", 30, 4, 1), make_projection("one_hot", 50, 5, 2), make_projection("hadamard", 7, 7, 3)]
    )


def test_layerwise_is_block_diagonal():
    P = layerwise()
    assert (P.D, P.d) == (87, 16)
    torch.testing.assert_close(P.to_dense(), torch.block_diag(*(block.to_dense() for block in P.blocks)))
    v = torch.randn(3, 87, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(P.adjoint(v), v @ P.to_dense())
    z = torch.randn(16, requires_grad=True)
    (P(z) @ v[0]).backward()
    torch.testing.assert_close(z.grad, P.adjoint(v[0]))
    assert P.nbytes >= sum(block.nbytes for block in P.blocks)
    assert P.double().dtype == torch.float64


def test_layerwise_is_saved_and_rebuilt(tmp_path):
    sizes = [p.numel() for p in LeNet().parameters()]
    budget = split_budget(sizes, 150)
    P = LayerwiseProjection(
        [make_projection("sparse", D, d, i) for i, (D, d) in enumerate(zip(sizes, budget, strict=True))]
    )
    model = SubspaceModel.from_seed(LeNet, P, 0)
    with torch.no_grad():
        model.z.normal_()
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(SubspaceModel.load(tmp_path / "model.safetensors", LeNet).theta(), model.theta())


def test_layerwise_refuses_bad_blocks():
    with pytest.raises(ValueError, match="at least one block"):
        LayerwiseProjection([])
    with pytest.raises(TypeError, match="must be a Projection, got Linear"):
        LayerwiseProjection([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"torch.float32 on cpu and torch.float64 on cpu"):
        LayerwiseProjection([make_projection("dense", 4, 2), make_projection("dense", 4, 2, dtype=torch.float64)])


class TestLayerwise(ProjectionContract):
    """The contract, of blocks that take turns."""

    def sizes(self):
        return ((D, d) for D, d in super().sizes() if d > 3)

    def make(self, D, d, seed=0, dtype=torch.float32):
        half = D // 2
        blocks = [
            make_projection("one_hot", half, d // 2, seed, dtype=dtype),
            0.5 * make_projection("dense", D - half, d - d // 2, seed + 1 if seed < 2**63 - 1 else 0, dtype=dtype),
        ]
        return LayerwiseProjection(blocks, [[1, 2], [0, half - 1], [1, D - half - 2], [0, 1]])


def test_pieces_add_up():
    blocks = [make_projection("dense", 4, 2), make_projection("dense", 3, 2)]
    with pytest.raises(ValueError, match=r"pieces give the blocks \[4, 2\] rows, but they have \[4, 3\]"):
        LayerwiseProjection(blocks, [(0, 4), (1, 2)])


def a_net():
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), "head": nn.Linear(3, 2)})


def test_over_makes_a_block_for_each_pattern():
    net = a_net()
    net["body"][0].bias.requires_grad_(False)
    P = LayerwiseProjection.over(net, {"head.*": ("identity", None), "body.*": ("hadamard", 7, 2.0)}, seed=3)
    expected = [2 * make_projection("hadamard", 35, 7, 6), make_projection("identity", 8, 8)]
    torch.testing.assert_close(P.to_dense(), torch.block_diag(*(block.to_dense() for block in expected)))
    assert P.pieces is None
    assert count_parameters(net) == P.D
    again = from_recipe(P.recipe(), torch.float32)
    assert torch.equal(again.to_dense(), P.to_dense())
    other = LayerwiseProjection.over(net, {"body.*": ("hadamard", 7), "head.*": ("dense", 8)}, seed=4)
    assert not torch.equal(P.to_dense()[:35, :7], 2 * other.to_dense()[:35, :7])
    assert LayerwiseProjection.over(a_net().double(), {"*": ("one_hot", 3)}).dtype == torch.float64


def test_over_where_the_weights_of_blocks_take_turns():
    """Row by row: the biases are moved by their own part of z, wherever they stand."""
    net = a_net()
    P = LayerwiseProjection.over(net, {"*.weight": ("dense", 6), "*.bias": ("identity", None)}, seed=2)
    matrix, weight = P.to_dense(), make_projection("dense", 38, 6, 4).to_dense()
    rows, start, weights_seen, bias_column = [], 0, 0, 6
    for name, p in net.named_parameters():
        rows = matrix[start : start + p.numel()]
        start += p.numel()
        expected = torch.zeros(p.numel(), P.d)
        if name.endswith("weight"):
            expected[:, :6] = weight[weights_seen : weights_seen + p.numel()]
            weights_seen += p.numel()
        else:
            expected[range(p.numel()), range(bias_column, bias_column + p.numel())] = 1
            bias_column += p.numel()
        torch.testing.assert_close(rows, expected)
    assert (start, bias_column) == (P.D, P.d)


def test_over_trains_a_head_beside_a_subspace():
    torch.manual_seed(0)
    net = a_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    P = LayerwiseProjection.over(net, {"body.*": ("one_hot", 5, 0.1), "head.*": ("identity", None)})
    optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=0.01)
    net["head"](net["body"](torch.randn(8, 5))).square().mean().backward()
    optimizer.step()
    moved = {name: (p.detach() - before[name]).abs() for name, p in net.named_parameters()}
    torch.testing.assert_close(moved["head.weight"], torch.full((2, 3), 0.01), rtol=1e-3, atol=1e-5)
    sizes = torch.cat([moved[name].flatten() for name in moved if name.startswith("body")])
    torch.testing.assert_close(sizes.norm(), torch.tensor(0.01 * 0.1 * 5**0.5), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "error", "words"),
    [
        ({"body.*": ("dense", 3)}, ValueError, r"'head.weight' fits none of \['body.\*'\]"),
        ({"*": ("dense", 3), "head.*": ("dense", 3)}, ValueError, r"'head.weight' fits '\*' and 'head.\*'"),
        ({"*": ("dense", 3), "tail.*": ("dense", 3)}, ValueError, r"'tail.\*' fits no trained weight.*body.0.weight"),
        ({"body.*": ("dense", 3), "head.*": ("identity", 3)}, ValueError, r"'head.\*': d of identity must be D = 8"),
        ({"*": ("gauss", 3)}, ValueError, r"'\*': unknown projection 'gauss'"),
        ({"*": ("dense", 3.0)}, TypeError, r"'\*': d must be an integer, got 3.0"),
        ({"*": "dense"}, TypeError, r"'\*': a block is \(family, d\) or \(family, d, c\), got 'dense'"),
        ({"*": ("dense", 3, "fast")}, TypeError, r"'\*': factor must be a number"),
    ],
)
def test_over_refuses(blocks, error, words):
    with pytest.raises(error, match=words):
        LayerwiseProjection.over(a_net(), blocks)


@pytest.mark.parametrize("rule", ["proportional", "sqrt", "equal"])
@pytest.mark.parametrize("d", [5, 17, 150, 1000, 1115])
def test_budget_is_spent_within_bounds(rule, d):
    sizes = [10, 100, 5, 400, 600]
    budget = split_budget(sizes, d, rule)
    assert sum(budget) == d
    assert all(1 <= share <= size for share, size in zip(budget, sizes, strict=True))


def test_budget_follows_its_rule():
    assert split_budget([100, 200, 700], 100) == [10, 20, 70]
    assert split_budget([100, 400, 900], 60, "sqrt") == [10, 20, 30]
    assert split_budget([100, 400, 900], 60, "equal") == [20, 20, 20]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([10, 10], 1), r"d must lie between 2 \(one a layer\) and 20"),
        (([10, 10], 21), "got 21"),
        (([10, 0], 5), "sizes must be one or more numbers of at least 1"),
        (([10, 10], 5, "fair"), "unknown rule 'fair'; choose one of: proportional, sqrt, equal"),
    ],
)
def test_budget_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        split_budget(*arguments)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_diagnosis_against_the_matrix(name):
    P = make_projection(name, 300, 300 if PROJECTIONS[name].square else 20, 1)
    nbytes, found, matrix = P.nbytes, diagnose(P), P.to_dense()
    norms = matrix.norm(dim=0)
    assert found["columns sampled"] == min(P.d, 64)
    assert found["column norm min"] == pytest.approx(float(norms.min()), rel=1e-5)
    assert found["column norm max"] == pytest.approx(float(norms.max()), rel=1e-5)
    cosines = torch.corrcoef(torch.cat([matrix, -matrix]).T).fill_diagonal_(0)  # centred by symmetry
    assert found["largest cosine"] == pytest.approx(float(cosines.abs().max()), abs=1e-5)
    assert found["reach"] == pytest.approx(float((matrix != 0).any(1).double().mean()))
    assert found["rank of the sample"] == min(P.d, 64)
    assert found["adjoint error"] < 1e-5
    assert found["bytes"] == nbytes, "before its first step, for which sparse makes orders"
    assert found["forward ms"] > 0


def test_diagnosis_of_a_large_sparse_projection_samples_and_finds_its_reach():
    D, d = 100_000, 300
    found = diagnose(make_projection("sparse", D, d))
    assert found["columns sampled"] == 64
    assert abs(found["reach"] - (1 - math.exp(-d / math.sqrt(D)))) < 0.01
    assert "columns sampled" in str(found)
    assert "<th>reach</th>" in found._repr_html_()
    with pytest.raises(ValueError, match="seed must lie between 0 and 4294967295"):
        diagnose(make_projection("sparse", D, d), 2**32)


def test_diagnosis_sees_shared_rows():
    """The study's flaw: columns that all move the same few weights."""
    P = make_projection("sparse", 1000, 50, 0, density=0.02)
    P._keep(P.row_of.view(50, -1)[:1].repeat(50, 1), P.value_by_column.view(50, -1))
    assert diagnose(P)["reach"] == 0.02
    assert diagnose(P)["rank of the sample"] <= 20


def test_the_rank_is_that_of_all_columns_or_says_that_it_is_not(monkeypatch):
    """100 columns that lie in 90 dimensions: any 64 of them are independent."""
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(2000, 90, generator=random) @ torch.randn(90, 100, generator=random)
    P = MatrixProjection(matrix)
    assert diagnose(P)["rank"] == 90
    assert diagnose(P)["rank of the sample"] == 64
    assert diagnose(make_projection("hadamard", 2000, 700))["rank"] == 700
    monkeypatch.setattr("subspace_lib.diagnostics.LARGEST_RANK", 99)
    assert diagnose(P)["rank"] == "at least 64 (of 100 columns 64 were looked at)"
    with_zeros = MatrixProjection(torch.cat([matrix[:, :10], torch.zeros(2000, 5)], dim=1))
    assert diagnose(with_zeros)["rank"] == 10


def test_diagnosis_sees_weights_that_hardly_move():
    """Rows of norm sqrt(1/2) and sqrt(1/64), half of the weights each."""
    P = LayerwiseProjection([make_projection("one_hot", 640, d, seed=d) for d in (320, 10)])
    found, mean = diagnose(P), (1 / 2 + 1 / 64) / 2
    assert found["most moved stretch"] == pytest.approx(math.sqrt(1 / 2 / mean), rel=0.2)
    assert found["least moved stretch"] == pytest.approx(math.sqrt(1 / 64 / mean), rel=0.2)


def test_layerwise_writes_and_pulls_block_by_block():
    names = [*PROJECTIONS]
    sizes = [(90 + 7 * i, 90 + 7 * i if PROJECTIONS[name].square else 20) for i, name in enumerate(names)]
    P = LayerwiseProjection([make_projection(name, *size) for name, size in zip(names, sizes, strict=True)])
    generator = torch.Generator().manual_seed(0)
    theta0, z = torch.randn(P.D, generator=generator), torch.randn(P.d, generator=generator)
    out = torch.full((P.D,), math.nan)
    P.write(theta0, z, out)
    torch.testing.assert_close(out, theta0 + P.to_dense() @ z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(P.pull(theta0.clone()), P.to_dense().T @ theta0, rtol=1e-5, atol=1e-5)


def test_the_rank_does_not_depend_on_the_lengths_of_the_columns():
    long_and_short = LayerwiseProjection(
        [10.0**-seed * make_projection("orthogonal", 3000, 1, seed) for seed in range(4)]
    )
    assert diagnose(long_and_short)["rank of the sample"] == 4
