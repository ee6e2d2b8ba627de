"""The contract that every projection keeps, and a dense oracle for each family, written another way."""

import importlib
import inspect
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from subspace_lib import PROJECTIONS, LayerwiseProjection, MatrixProjection, make_projection
from subspace_lib.projections import base, from_recipe, has_recipe, sparse
from subspace_lib.projections.base import fingerprint, same_fingerprint
from subspace_lib.projections.testing import ProjectionContract
from subspace_lib.projections.transforms import factor_orders, hadamard_matrix, hadamard_transform
from subspace_lib.study.benchmark import all_variants, cheap


def cases():
    """Every family with every set of options that stands for others."""
    return [(family, options) for family in PROJECTIONS.values() for options in family.variants]


def in_words(case):
    family, options = case
    return "-".join([family.name, *(f"{name}={value}" for name, value in options.items())])


families = pytest.mark.parametrize("case", cases(), ids=in_words)


class TestEveryFamily(ProjectionContract):
    @pytest.fixture(autouse=True, params=cases(), ids=in_words)
    def _case(self, request):
        self.family, self.options = request.param


class TestSparseOfAnyDensity(ProjectionContract):
    """The other ways in which distinct rows are drawn, at small sizes."""

    family = PROJECTIONS["sparse"]

    @pytest.fixture(autouse=True, params=[0.2, 0.5, 1.0])
    def _case(self, request):
        self.options = {"density": request.param}

    def some(self, D=61, d=9):
        return min(D, 1009), min(d, 65)


class Made(ProjectionContract):
    """What the algebra makes of projections of families."""

    def sizes(self):
        return ((D, d) for D, d in super().sizes() if d > 1)


class TestScaled(Made):
    def make(self, D, d, seed=0, dtype=torch.float32):
        return -0.5 * make_projection("hadamard", D, d, seed, dtype=dtype)

    def test_oracle(self):
        P = make_projection("sparse", 61, 9, 3)
        for scaled in (3 * P, P * 3.0, np.float32(3) * P):
            torch.testing.assert_close(scaled.to_dense(), 3 * P.to_dense(), rtol=0, atol=0)
        assert (3 * P.to("meta")).device.type == "meta"
        assert (3 * P).seed == 3


class TestSum(Made):
    def make(self, D, d, seed=0, dtype=torch.float32):
        P = make_projection("one_hot", D, d, seed, dtype=dtype)
        return P + 2 * make_projection("dense", D, d, seed, dtype=dtype)

    def test_oracle(self):
        P, Q = make_projection("dense", 61, 9), make_projection("kronecker", 61, 9)
        torch.testing.assert_close((P + Q).to_dense(), P.to_dense() + Q.to_dense())


class TestProduct(Made):
    def make(self, D, d, seed=0, dtype=torch.float32):
        middle = max(d, D // 2)
        return make_projection("one_hot", D, middle, seed, dtype=dtype) @ make_projection(
            "dense", middle, d, seed, dtype=dtype
        )

    def test_oracle(self):
        P, Q = make_projection("fastfood", 61, 20), make_projection("orthogonal", 20, 9)
        torch.testing.assert_close((P @ Q).to_dense(), P.to_dense() @ Q.to_dense())


class TestMatrix(Made):
    @pytest.fixture(autouse=True, params=["strided", "sparse_coo", "sparse_csr", "sparse_csc"])
    def _case(self, request):
        self.layout = getattr(torch, request.param)

    def make(self, D, d, seed=0, dtype=torch.float32):
        if dtype in (torch.float16, torch.bfloat16) and self.layout != torch.strided:
            pytest.skip("PyTorch has no sparse products in half precision on the CPU")
        matrix = torch.randn(D, d, generator=base.generator(seed), dtype=torch.float64, device="cpu").to(dtype)
        return MatrixProjection(
            matrix / math.sqrt(D) if self.layout == torch.strided else in_layout(matrix, self.layout)
        )

    def test_oracle(self):
        matrix = torch.randn(61, 9, generator=base.generator(0))
        P = MatrixProjection(in_layout(matrix, self.layout))
        assert torch.equal(P.to_dense(), matrix)
        assert P.nbytes >= matrix.nbytes
        assert (2 * P).nbytes == P.nbytes

    def test_it_has_no_recipe(self):
        P = 2 * self.make(61, 9)
        assert not has_recipe(P)
        with pytest.raises(ValueError, match="a MatrixProjection has no recipe: it was made of a tensor"):
            P.recipe()


def in_layout(matrix, layout):
    return matrix.to_sparse(layout=layout) if layout != torch.strided else matrix


def test_the_algebra_says_what_of_adapter_classes():
    """Columns mixed by a matrix, rows weighted, rows in another order."""
    P, D, d = make_projection("hadamard", 61, 9), 61, 9
    A = torch.randn(d, d, generator=base.generator(1))
    torch.testing.assert_close((P @ MatrixProjection(A)).to_dense(), P.to_dense() @ A)
    blocks = [factor * make_projection("identity", size, size) for factor, size in ((0.5, 51), (4.0, 10))]
    weights = torch.cat([torch.full((51, 1), 0.5), torch.full((10, 1), 4.0)])
    torch.testing.assert_close((LayerwiseProjection(blocks) @ P).to_dense(), weights * P.to_dense())
    order = torch.randperm(D, generator=base.generator(2))
    places = torch.sparse_coo_tensor(
        torch.stack([torch.arange(D), order]), torch.ones(D), (D, D), check_invariants=True
    )
    torch.testing.assert_close((MatrixProjection(places) @ P).to_dense(), P.to_dense()[order])
    shuffled = (make_projection("one_hot", D, D, seed=3) @ P).to_dense()  # a random order, and random signs
    torch.testing.assert_close(shuffled.abs().sort(dim=0).values, P.to_dense().abs().sort(dim=0).values)
    assert not torch.equal(shuffled, P.to_dense())


def test_the_algebra_refuses():
    P, Q = make_projection("dense", 61, 9), make_projection("dense", 60, 9)
    for make, error, words in [
        (lambda: P + Q, ValueError, "one D and d, got D = 61, d = 9 and D = 60, d = 9"),
        (lambda: P @ Q, ValueError, "got d = 9 of P and D = 60 of Q"),
        (lambda: math.nan * P, ValueError, "factor must be finite, got nan"),
        (lambda: "2" * P, TypeError, "factor must be a number, got '2'"),
        (lambda: P * P, TypeError, "factor must be a number"),
        (lambda: P + 1, TypeError, "unsupported operand"),
        (lambda: P @ torch.eye(9), TypeError, "unsupported operand"),
        (lambda: P + make_projection("dense", 61, 9, dtype=torch.float64), ValueError, "one type and device"),
        (lambda: MatrixProjection([[1.0]]), TypeError, "matrix must be a tensor, got list"),
        (lambda: MatrixProjection(torch.ones(3)), ValueError, r"shape \(D, d\), got \(3,\)"),
        (lambda: MatrixProjection(torch.ones(3, 4)), ValueError, "d must lie between 1 and D = 3, got 4"),
        (lambda: MatrixProjection(torch.ones(4, 3, dtype=torch.int64)), TypeError, "floating-point"),
    ]:
        with pytest.raises(error, match=words):
            make()


def size_of(family, D, d):
    return D, D if family.square else d


MINE = """
import torch
from subspace_lib.projections.base import Projection, generator

class Mine(Projection):
    name = "mine"
    columns = "unit"
    length = 1.0

    def __init__(self, D, d, seed=0, *, turned=False, dtype=None):
        super().__init__(D, d, seed, dtype=dtype)
        self.turned = turned
        matrix = torch.randn(D, d, generator=generator(seed), dtype=torch.float64)
        matrix *= self.length / matrix.norm(dim=0)
        self.register_buffer("matrix", (matrix.flip(0) if turned else matrix).to(self.dtype), persistent=False)

    def _multiply(self, z):
        return z @ self.matrix.T

    def _multiply_transposed(self, v):
        return v @ self.matrix
"""


def faults(family, options):
    """What the contract finds, test by test."""
    found = []
    for name in [name for name in dir(ProjectionContract) if name.startswith("test_")]:
        contract = ProjectionContract()
        contract.family, contract.options = family, options
        try:
            getattr(contract, name)()
        except AssertionError as error:
            found.append(f"{name}: {error}")
    return found


def test_a_family_is_one_file_and_one_line(tmp_path, monkeypatch):
    """Everything that lists families has it, and the contract holds it: with its columns doubled, its file is named."""
    (tmp_path / "file_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    family = importlib.import_module("file_of_mine").Mine
    monkeypatch.setitem(PROJECTIONS, "mine", family)
    assert (family, {}) in cases()
    assert ("mine", {}) in all_variants()
    assert "mine" not in cheap(), "it keeps a matrix"
    assert "`mine`" in table_of_families()
    with pytest.raises(ValueError, match="choose one of: .*identity, mine"):
        make_projection("gauss", 10, 2)
    P = make_projection("mine", 61, 9, turned=True)
    assert from_recipe(P.recipe(), torch.float32).turned is True
    assert str(inspect.signature(family)) == "(D, d, seed=0, *, turned=False, dtype=None)"
    assert faults(family, {"turned": True}) == []
    monkeypatch.setattr(family, "length", 2.0)
    [fault] = faults(family, {})
    assert "columns must have norm 1" in fault
    assert str(tmp_path / "file_of_mine.py") in fault


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"_multiply_transposed": lambda P, v: 1.01 * v @ P.matrix}, "<P z, v> is not <z, P^T v>"),
        ({"_pull": lambda P, v: v @ P.matrix + 1}, "pull must give P^T v"),
        ({"_write": lambda P, theta0, z, out: out.copy_(theta0)}, "write must give theta0 + P z"),
        ({"columns": "orthonormal"}, "columns must be orthonormal"),
        ({"nested": True}, "the first columns must not depend on d"),
        ({"keeps": classmethod(lambda family, D, d: 4.0)}, "P keeps"),
        ({"options": lambda P: {}}, "another P is drawn from"),
        ({"columns": "about 1"}, "columns is 'about 1'"),
    ],
)
def test_the_contract_finds_what_is_broken(broken, words, monkeypatch):
    namespace = {"__name__": __name__}
    exec(MINE, namespace)
    family = type("Mine", (namespace["Mine"],), broken)
    monkeypatch.setitem(PROJECTIONS, "mine", family)
    monkeypatch.delattr(ProjectionContract, "test_compiled")
    options = {"turned": True} if "options" in broken else {}
    assert any(words in fault for fault in faults(family, options)), words


def table_of_families():
    """The table of book/api.md."""
    D, d = 472_610, 4_500
    rows = [
        f"| `{name}` | {family.columns} | {'yes' if family.nested else 'no'} | "
        f"{family.keeps(D, D if family.square else d):,.1f} |"
        for name, family in PROJECTIONS.items()
    ]
    head = f"| family | columns | nested | bytes a weight, D = {D:,}, d = {d:,} |"
    return "\n".join([head, "| --- | --- | --- | --- |", *rows])


def test_the_page_of_the_library_has_every_family():
    page = (Path(__file__).parents[1] / "book" / "api.md").read_text(encoding="utf-8")
    assert table_of_families() in page, f"book/api.md needs this table:\n{table_of_families()}"
    for family in PROJECTIONS.values():
        assert f".. autoclass:: {family.__name__}\n" in page


def test_seeds_above_2_to_the_32_have_numbers_of_their_own():
    """Pinned, for saved models; the seed itself stands in the generator's state, so no two are alike."""
    first = [torch.rand(2, generator=base.generator(seed)) for seed in (7, 7 + 2**32, 7 + 2**33, 2**63 - 1)]
    assert torch.equal(first[0], torch.rand(2, generator=torch.Generator().manual_seed(7)))
    torch.testing.assert_close(
        torch.stack(first[1:]), torch.tensor([[0.011426, 0.683987], [0.161732, 0.475019], [0.048849, 0.044082]])
    )


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("dense", [-5.29209, -1.00814, 6.18189]),
        ("sparse", [-4.70104, -3.16486, 5.77452]),
        ("orthogonal", [-5.23716, -1.55246, 5.95456]),
        ("hadamard", [7.62367, 6.50046, 5.95456]),
        ("fastfood", [5.00566, -0.18444, 6.03137]),
        ("kronecker", [9.14814, 1.07342, 4.96355]),
        ("one_hot", [0.09251, 2.60303, 5.95456]),
    ],
)
def test_P_is_the_one_of_the_recorded_runs_and_saved_models(name, recorded):
    """Sum, weighted sum and norm of P z, as computed at commit 1932786, where the study was complete."""
    P = make_projection(name, 1314, 70, seed=3)
    assert same_fingerprint(fingerprint(P(torch.arange(70.0).cos())), recorded)


def test_layouts_and_storage_hold_the_same_P():
    for layout in sparse.LAYOUTS:
        P = make_projection("sparse", 301, 40, 1, layout=layout)
        torch.testing.assert_close(P.to_dense(), make_projection("sparse", 301, 40, 1).to_dense(), rtol=0, atol=0)
    P = make_projection("dense", 301, 40, 1, store=False)
    assert P.nbytes == 0
    torch.testing.assert_close(P.to_dense(), make_projection("dense", 301, 40, 1).to_dense())


def test_sparse_layouts_keep_what_their_formats_need():
    entries = 40 * (k := make_projection("sparse", 301, 40, 1).k)
    expected = {
        "two_way": 16 * entries + 4 * (301 + 1 + 40 + 1),
        "dense": 4 * 301 * 40,
        "coo": 20 * entries,
        "csr": 12 * entries + 8 * 302,
        "csc": 12 * entries + 8 * 41,
    }
    assert k == round(math.sqrt(301))
    for layout, nbytes in expected.items():
        assert make_projection("sparse", 301, 40, 1, layout=layout).nbytes == nbytes


def test_dense_oracle():
    generator = torch.Generator().manual_seed(8)
    blocks = [torch.randn(16, 50, generator=generator) for _ in range(2)]
    columns = [row / row.square().sum().sqrt() for block in blocks for row in block][:20]
    torch.testing.assert_close(make_projection("dense", 50, 20, 8).to_dense(), torch.stack(columns, dim=1))


@pytest.mark.parametrize("density", [None, 0.02, 0.2, 0.9])
def test_sparse_has_k_distinct_signs_a_column(density):
    D, d = 400, 130
    options = {} if density is None else {"density": density}
    P = make_projection("sparse", D, d, 4, **options)
    k = max(1, round((density or 1 / math.sqrt(D)) * D))
    entries = P.to_dense()
    assert torch.equal((entries != 0).sum(0), torch.full((d,), k))
    torch.testing.assert_close(entries[entries != 0].abs(), torch.full((d * k,), 1 / math.sqrt(k)))
    share_of_plus = (entries > 0).sum() / (d * k)
    assert abs(share_of_plus - 0.5) < 4 * 0.5 / math.sqrt(d * k)
    rows_hit = (entries != 0).sum(1).float() / d  # each row is in a column with probability k / D
    assert abs(rows_hit - k / D).max() < 5 * math.sqrt(k / D * (1 - k / D) / d) + 1 / d


def test_sparse_columns_draw_their_own_rows():
    reach = (make_projection("sparse", 10_000, 100, 0).to_dense() != 0).any(1).float().mean()
    assert abs(reach - (1 - math.exp(-1))) < 0.03  # 1 - exp(-d / sqrt(D)), not the 1% of shared rows


def test_distinct_integers_draws_every_subset_equally_often():
    generator = torch.Generator().manual_seed(0)
    subsets, counts = sparse.distinct_integers(30_000, 2, 9, generator).unique(dim=0, return_counts=True)
    assert len(subsets) == math.comb(9, 2)
    expected = 30_000 / len(subsets)
    assert abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_sparse_without_a_csr_kernel(monkeypatch):
    P = make_projection("sparse", 301, 40, 1)
    z, v = torch.randn(2, 40), torch.randn(2, 301)
    with_kernel = P(z), P.adjoint(v)
    called = []
    original = sparse.gather_product
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(sparse, "gather_product", lambda *a: called.append(1) or original(*a))
    torch.testing.assert_close((P(z), P.adjoint(v)), with_kernel)
    assert len(called) == 2


def test_one_hot_in_chunks(monkeypatch):
    whole = make_projection("one_hot", 1001, 30)
    monkeypatch.setattr("subspace_lib.projections.sharing.CHUNK", 64)
    P, v = make_projection("one_hot", 1001, 30), torch.randn(3, 1001)
    assert torch.equal(P.to_dense(), whole.to_dense())
    torch.testing.assert_close(P.adjoint(v), v @ whole.to_dense(), rtol=1e-4, atol=1e-5)


def test_one_hot_oracle():
    D, d = 103, 10
    matrix = make_projection("one_hot", D, d, 7).to_dense()
    assert torch.equal((matrix != 0).sum(1), torch.ones(D, dtype=torch.int64))
    sizes = (matrix != 0).sum(0)
    assert sorted(sizes.tolist()) == [10] * 7 + [11] * 3
    torch.testing.assert_close(matrix.abs().amax(0), 1 / sizes.float().sqrt())
    assert abs((matrix > 0).sum(0) - (matrix < 0).sum(0)).max() <= 1, "half of a group has either sign"


def test_orthogonal_spans_what_it_was_drawn_from():
    matrix = make_projection("orthogonal", 60, 12, 3, dtype=torch.float64).to_dense()
    gaussian = torch.randn(12, 60, generator=torch.Generator().manual_seed(3)).T.double()
    for j in range(12):  # Gram and Schmidt, column by column
        column = gaussian[:, j] - matrix[:, :j] @ (matrix[:, :j].T @ gaussian[:, j])
        torch.testing.assert_close(matrix[:, j], column / column.norm(), rtol=1e-6, atol=1e-6)


def sylvester(n):
    """The Hadamard matrix by the parity of the bits that row and column share."""
    return torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)])


@pytest.mark.parametrize("n", [1, 2, 64, 128, 1024, 8192])
def test_hadamard_transform(n):
    orders = factor_orders(n)
    assert math.prod(orders) == n
    assert max(orders) <= 16
    H = hadamard_matrix(16).double()
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, spare = hadamard_transform(x[..., None].clone(), H, torch.empty(2, n, 1, dtype=torch.float64))
    if n <= 1024:
        torch.testing.assert_close(y[..., 0], x @ sylvester(n).double())
    torch.testing.assert_close(hadamard_transform(y, H, spare)[0][..., 0], n * x)


@pytest.mark.parametrize(("D", "d"), [(300, 70), (300, 1), (37, 37), (37, 20), (63, 5), (64, 64), (1500, 40)])
def test_hadamard_oracle(D, d):
    """Block by block, with matrices."""
    P = make_projection("hadamard", D, d, 2)
    rows = []
    for i, (count, m) in enumerate(P.groups):
        source, entries, row_signs = P._group(i)
        assert torch.equal(row_signs.abs(), torch.ones(m, 1))
        assert torch.equal((entries != 0).sum(1), torch.full((len(entries), entries.shape[2]), min(m, d)))
        group = torch.zeros(*entries.shape, d)
        for a, b in itertools.product(range(entries.shape[0]), range(entries.shape[2])):
            BC = torch.zeros(m, d)
            BC[torch.arange(m), source] = entries[a, :, b]
            group[a, :, b] = row_signs * (sylvester(m) @ BC)
        rows.append(group.reshape(m * count, d))
    last = torch.zeros(len(P.followed), d)
    last[torch.arange(len(P.followed)), P.followed] = P.followed_entries
    matrix = torch.cat([*rows, last])
    assert matrix.shape == (D, d)
    torch.testing.assert_close(P.to_dense(), matrix / matrix.norm(dim=0))
    assert (matrix != 0).any(1).all(), "every weight must move"


@families
@pytest.mark.parametrize(("D", "d"), [(5050, 150), (5050, 40), (1314, 300), (3000, 1100)])
def test_a_random_z_moves_the_last_weights_as_far_as_the_others(case, D, d):
    """The last weights are the output layer's; what a family does with left-over rows must not freeze them."""
    family, options = case
    rows = family(*size_of(family, D, d), 3, **options).to_dense().square().sum(1)
    for last in (D // 100, D // 10):
        assert 0.5 < rows[-last:].mean() / rows.mean() < 2


@pytest.mark.parametrize(("D", "blocks"), [(50, 4), (300, 19)])
def test_fastfood_oracle(D, blocks):
    d, n = 11, 16
    P = make_projection("fastfood", D, d, 2)
    H = sylvester(n)
    matrix = torch.zeros(*P.signs.shape, n)
    assert P.signs.numel() == blocks * n
    for a, b in itertools.product(range(P.signs.shape[0]), range(P.signs.shape[2])):
        Pi = torch.eye(n)[P.order]
        G, B = (torch.diag(part[a, :, b].float()) for part in (P.gaussian, P.signs))
        matrix[a, :, b] = H @ G @ Pi @ H @ B
    torch.testing.assert_close(P.to_dense(), P.lengths[:, None] * matrix.reshape(blocks * n, n)[:D, :d])


def test_fastfood_columns_have_norm_1_in_expectation_and_rows_gaussian_lengths():
    squares = [make_projection("fastfood", 512, 64, seed).to_dense().square() for seed in range(40)]
    mean_square = torch.stack([s.sum(0) for s in squares]).mean()
    assert abs(mean_square - 1) < 0.01
    row_lengths = torch.cat([s.sum(1) for s in squares]) * 512  # chi squared with 64 degrees of freedom
    assert abs(row_lengths.mean() - 64) < 1
    assert abs(row_lengths.var() / 128 - 1) < 0.1


@pytest.mark.parametrize("orthonormal", [False, True])
@pytest.mark.parametrize(("D", "d"), [(100, 25), (97, 13), (1009, 64)])
def test_kronecker_oracle(D, d, orthonormal):
    P = make_projection("kronecker", D, d, 2, orthonormal=orthonormal)
    torch.testing.assert_close(P.to_dense(), torch.kron(P.A, P.B)[:D, :d])
    cut = P.A.shape[0] * P.B.shape[0] - D
    assert cut < P.B.shape[0]
    for factor in (P.A, P.B):
        torch.testing.assert_close(factor.norm(dim=0), torch.ones(factor.shape[1]))
        if orthonormal:
            torch.testing.assert_close(factor.T @ factor, torch.eye(factor.shape[1]), atol=1e-5, rtol=0)


def test_kronecker_columns_have_norm_1_up_to_the_cut():
    norms = make_projection("kronecker", 10_007, 90, 1).to_dense().norm(dim=0)
    assert norms.max() <= 1 + 1e-5
    assert norms.min() > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            ("gauss", 10, 2),
            ValueError,
            "unknown projection 'gauss'; choose one of: dense, sparse, orthogonal, hadamard, fastfood, kron",
        ),
        (("dense", 10, 0), ValueError, "d must lie between 1 and D = 10, got 0"),
        (("dense", 10, 11), ValueError, "d must lie between 1 and D = 10, got 11"),
        (("dense", 0, 1), ValueError, "D must be at least 1, got 0"),
        (("dense", 10, 2.0), TypeError, "d must be an integer, got 2.0 of type float"),
        (("dense", "10", 2), TypeError, "D must be an integer, got '10'"),
        (("dense", 10, True), TypeError, "d must be an integer, got True"),
        (("dense", 10, 2, -1), ValueError, "seed must lie between"),
        (("dense", 10**8, 1000), ValueError, r"needs 406,400,000,000 bytes.*hadamard"),
        (("orthogonal", 10**6, 5000), ValueError, "needs 60,000,000,000 bytes.*hadamard"),
        (("sparse", 10**7, 10**6), ValueError, r"entries, more than the 2\*\*31"),
    ],
)
def test_bad_sizes_and_names(arguments, error, words):
    with pytest.raises(error, match=words):
        make_projection(*arguments)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("dense", {"density": 0.1}, ValueError, "unknown option 'density' for 'dense'; allowed: store, dtype"),
        ("dense", {"store": 1}, TypeError, "store must be True or False, got 1"),
        ("sparse", {"layout": "bsr"}, ValueError, "unknown layout 'bsr'; choose one of: two_way, dense, coo, csr, csc"),
        (
            "sparse",
            {"dtype": torch.float16},
            TypeError,
            "need one of float32, float64, got torch.float16",
        ),
        ("sparse", {"density": 0.0}, ValueError, r"density must lie in \(0, 1\], got 0.0"),
        ("sparse", {"density": "low"}, TypeError, "density must be a number"),
        ("kronecker", {"orthonormal": 1}, TypeError, "orthonormal must be True or False, got 1"),
        ("dense", {"dtype": torch.int64}, TypeError, "dtype must be a floating-point"),
    ],
)
def test_bad_options(name, options, error, words):
    with pytest.raises(error, match=words):
        make_projection(name, 10, 2, **options)


def test_sparse_matrices_are_made_without_a_warning_and_without_a_filter():
    program = """
import warnings
before = list(warnings.filters)
import subspace_lib, torch
for layout in ("two_way", "csr", "csc", "coo"):
    P = subspace_lib.make_projection("sparse", 100, 5, layout=layout)
    P.adjoint(P(torch.ones(5)))
ours = [f for f in warnings.filters if f not in before and "beta" in str(f)]
assert not ours, ours
"""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
