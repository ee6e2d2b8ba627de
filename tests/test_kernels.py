"""The compiled kernels: PyTorch's own products are their oracle, and what happens where they cannot be built."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from subspace_lib import MLP, PROJECTIONS, LayerwiseProjection, SubspaceOptimizer, count_parameters, diagnose
from subspace_lib import make_projection as make
from subspace_lib.projections import kernels, sparse
from subspace_lib.projections.base import fingerprint, same_fingerprint
from subspace_lib.projections.testing import ProjectionContract, normal

FAMILIES = ("one_hot", "hadamard", "fastfood", "sparse")
SIZES = (
    *((1, 1), (2, 1), (7, 3), (61, 9), (300, 90), (1009, 65), (1009, 1000), (4097, 4097)),
    *((40_001, 1), (40_001, 70), (40_001, 600), (62_006, 4500), (100_003, 40_000), (100_003, 70_000)),
)
"""Odd sizes, for one thread and for more; few and many blocks, in a row and side by side, with smaller ones after them;
more entries than 16 bits tell apart."""


def sizes_of(name):
    """Those that take a moment: the time of sparse grows with d sqrt(D)."""
    return [(D, d) for D, d in SIZES if name != "sparse" or d < 4096]


@pytest.fixture(scope="module", autouse=True)
def built():
    """They are there, or the tests that need them fail where they should be."""
    if sys.platform == "linux":
        assert kernels.loaded()[1] == "C kernels"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has not looked for kernels yet, and a cache of its own."""
    monkeypatch.delenv("SUBSPACE_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.compiled.cache_clear()
    yield tmp_path
    kernels.compiled.cache_clear()


@pytest.fixture
def off(fresh, monkeypatch):
    monkeypatch.setenv("SUBSPACE_KERNELS", "0")


linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are for Linux")
families = pytest.mark.parametrize("name", FAMILIES)


def both(P, z, v, theta0):
    """theta0 + P z and P^T v by the methods that may take a kernel, and what computed each."""
    out = torch.full_like(theta0, torch.nan)
    pulled = []
    paths = kernels.path_of(lambda: P.write(theta0, z, out)), kernels.path_of(lambda: pulled.append(P.pull(v.clone())))
    return out, pulled[0], paths


@linux
@families
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_kernels_compute_what_pytorch_computes(name, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for D, d in sizes_of(name):
            P, theta0, z, v = make(name, D, d, 3), normal(D), normal(d, seed=1), normal(D, seed=2)
            out, pulled, paths = both(P, z, v, theta0)
            assert paths == ("C kernels", "C kernels")
            for found, right in ((out, theta0 + P(z)), (pulled, P.adjoint(v))):  # always by PyTorch
                assert float((found - right).norm() / right.norm()) < 3e-6, (D, d)
    finally:
        torch.set_num_threads(before)


@linux
@families
@pytest.mark.parametrize("gaps", [False, True])
def test_gradients_in_pieces(name, gaps):
    """Read where they lie, or put together where a kernel cannot read them."""
    P, v, found = make(name, 40_001, 70), normal(2 * 40_001)[:: 1 + gaps][:40_001], []
    pieces = v.split([40_000 - 77, 0, 78])
    path = kernels.path_of(lambda: found.append(P.pull_pieces(pieces, torch.empty(40_001))))
    assert path == "C kernels"
    torch.testing.assert_close(found[0], P.adjoint(v), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"v must have shape \(40001,\)"):
        P.pull_pieces(pieces[:2], torch.empty(40_000 - 77))


@linux
def test_sparse_in_several_blocks_both_ways_and_too_large_a_one(monkeypatch):
    P, z, v = make("sparse", 40_001, 33_000, density=1e-4), normal(33_000), normal(40_001, seed=1)
    for path in ("C kernels", "PyTorch"):
        out, pulled, paths = both(P, z, v, torch.ones(P.D))
        assert paths == (path, path)
        torch.testing.assert_close(out, 1 + P(z))
        torch.testing.assert_close(pulled, P.adjoint(v))
        monkeypatch.setattr(sparse, "GROUPED", P.d * P.k - 1)
    assert len(P._groups["row_starts"]) == len(P._groups["column_starts"]) == 2


@families
def test_what_they_do_not_take_is_left_to_pytorch(name):
    P = make(name, 1009, 65)
    theta0, z, v = normal(2 * 1009)[::2], normal(65), normal(2 * 1009, seed=1)[::2]
    for case in (P, make(name, 1009, 65, dtype=torch.float64)):
        given = (x.to(case.dtype) for x in (z, v, theta0))
        out, pulled, paths = both(case, *given)
        assert paths[0] == "PyTorch"
        torch.testing.assert_close(out, theta0.to(case.dtype) + case(z.to(case.dtype)))
        torch.testing.assert_close(pulled, case.adjoint(v.to(case.dtype)))
    assert kernels.path_of(lambda: P.adjoint(normal(3, 1009))) == "PyTorch"
    for wrong, words in (((theta0[:-1], z, theta0), "theta0"), ((theta0, z[:-1], theta0), "z"), ((v, z, v[:2]), "out")):
        with pytest.raises(ValueError, match=f"{words} must have shape"):
            P.write(*wrong)
    with pytest.raises(ValueError, match=r"v must have shape \(1009,\), got \(2, 1009\)"):
        P.pull(normal(2, 1009))


@linux
@families
@pytest.mark.parametrize("alone", [True, False])
def test_thirty_steps_end_where_pytorchs_end(name, alone, fresh, monkeypatch):
    """Alone and with a block of another family beside it, at sizes for several threads."""

    def train():
        kernels.compiled.cache_clear()
        torch.manual_seed(0)
        net = MLP(300)
        hidden, rest = 301 * 200, count_parameters(net) - 301 * 200
        P = LayerwiseProjection([make(name, hidden, 400), 0.5 * make("one_hot", rest, 30)])
        P = make(name, P.D, 430) if alone else P
        optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=1e-2)
        x, y = torch.randn(64, 300), torch.randint(0, 10, (64,))
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            path = kernels.path_of(optimizer.step)
        return path, optimizer.z.detach().clone()

    path, by_kernels = train()
    monkeypatch.setenv("SUBSPACE_KERNELS", "0")
    off, by_pytorch = train()
    assert (path, off) == ("C kernels", "PyTorch (SUBSPACE_KERNELS=0)")
    assert float(by_pytorch.abs().max()) > 0.1
    torch.testing.assert_close(by_kernels, by_pytorch, rtol=1e-4, atol=2e-6)


@linux
@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("hadamard", [7.62367, 6.50046, 5.95456]),
        ("one_hot", [0.09251, 2.60303, 5.95456]),
        ("sparse", [-4.70104, -3.16486, 5.77452]),
        ("fastfood", [5.00566, -0.18444, 6.03137]),
    ],
)
def test_kernels_have_the_P_of_the_recorded_runs(name, recorded):
    """The numbers of ``test_P_is_the_one_of_the_recorded_runs_and_saved_models``."""
    P, out = make(name, 1314, 70, seed=3), torch.empty(1314)
    assert kernels.path_of(lambda: P.write(torch.zeros(1314), torch.arange(70.0).cos(), out)) == "C kernels"
    assert same_fingerprint(fingerprint(out), recorded)


class TestWithoutKernels(ProjectionContract):
    """The contract as PyTorch keeps it; ``test_projections`` has it with kernels."""

    @pytest.fixture(autouse=True, params=FAMILIES)
    def _case(self, request, off):
        self.family = PROJECTIONS[request.param]


def test_diagnose_names_what_computes_a_step(off):
    assert kernels.loaded() == (None, kernels.OFF), "and nothing is compiled, nor said"
    assert diagnose(make("one_hot", 100, 5))["steps by"] == "PyTorch (SUBSPACE_KERNELS=0)"
    assert diagnose(make("dense", 100, 5))["steps by"] == "PyTorch"


@linux
def test_compiled_once_and_said_once(fresh, capfd, recwarn):
    P = make("one_hot", 100, 5)
    assert [diagnose(P)["steps by"] for _ in range(2)] == ["C kernels"] * 2
    assert capfd.readouterr().err.count("compiled its kernels for this processor, once") == 1
    kernels.compiled.cache_clear()  # another process
    assert diagnose(P)["steps by"] == "C kernels"
    assert (capfd.readouterr().err, len(recwarn)) == ("", 0)
    [kept] = (fresh / "cache" / "subspace_lib").iterdir()
    kept.unlink()
    kept.write_bytes(b"damaged")
    kernels.compiled.cache_clear()
    assert diagnose(P)["steps by"] == "C kernels"


def no_compiler(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    return "there is no C compiler on the PATH: gcc, cc, clang"


def compiler_that(does, folder, monkeypatch):
    script = folder / "gcc"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def broken_compiler(folder, monkeypatch):
    compiler_that("echo gcc: out of order >&2; exit 1", folder, monkeypatch)
    return "fails: gcc: out of order"


def compiler_of_nothing(folder, monkeypatch):
    compiler_that("exit 0", folder, monkeypatch)
    return "file too short"


def cache_is_a_file(folder, monkeypatch):
    (folder / "cache").touch()
    return "cache"


def home_is_read_only(folder, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/proc")
    return "/proc/.cache"


def no_room_to_compile(folder, monkeypatch):
    monkeypatch.setattr(kernels.tempfile, "tempdir", "/proc/nowhere")
    return "/proc/nowhere"


@linux
@pytest.mark.parametrize(
    "trouble",
    [no_compiler, broken_compiler, compiler_of_nothing, cache_is_a_file, home_is_read_only, no_room_to_compile],
)
def test_one_line_says_why_there_are_none(trouble, fresh, monkeypatch, capsys):
    """And no step is broken by it, even where warnings are errors."""
    words = trouble(fresh, monkeypatch)
    P, out = make("one_hot", 100, 5), torch.empty(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            P.write(torch.zeros(100), torch.ones(5), out)
    assert torch.equal(out, P(torch.ones(5)))
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("training steps are computed by PyTorch (") and words in message
    assert "SUBSPACE_KERNELS=0" in message
    assert not list(fresh.glob("cache/**/*.so"))


@linux
def test_two_processes_may_compile_at_once_and_an_import_compiles_nothing(fresh):
    program = """
import sys, torch, subspace_lib, pathlib, os
cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])
P = subspace_lib.make_projection("one_hot", 100, 5)
assert not cache.exists(), "compiled before the first use"
print("ready", flush=True)
sys.stdin.readline()
print(subspace_lib.diagnose(P)["steps by"])
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1], **pipes) for _ in range(2)]
    assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.communicate()[0] for one in both] == ["C kernels\n"] * 2
    assert len(list((fresh / "cache" / "subspace_lib").iterdir())) == 1


SANITIZED = """
import pathlib, sys, torch
from subspace_lib import make_projection
from subspace_lib.projections import kernels

found = kernels.Kernels(pathlib.Path(sys.argv[1]))
kernels.loaded = lambda: (found, "C kernels")
for threads in (1, 2):
    torch.set_num_threads(threads)
    for name, sizes in {SIZES}.items():
        for D, d in sizes:
            P, theta0, out = make_projection(name, D, d), torch.ones(D), torch.empty(D)
            assert kernels.path_of(lambda: P.write(theta0, torch.ones(d), out)) == "C kernels"
            P.pull(theta0)
print("all sizes done", flush=True)
P = make_projection("one_hot", 1009, 65)
found("one_hot_write", 1, 1010, torch.ones(1009), torch.ones(130), P.entry, torch.empty(1009))  # one too many
"""


@linux
def test_sanitizers_find_nothing_at_odd_sizes_on_two_threads(tmp_path, missing):
    """Of addresses and of undefined behaviour, in PyTorch's own memory; that they watch it is seen at the end."""
    compiler, library = next(filter(kernels.which, kernels.COMPILERS)), tmp_path / "kernels.so"
    runtimes = [
        subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        missing(f"{compiler} has no sanitizers as shared libraries: {runtimes}")
    watched = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    kernels.compile_to(library, compiler, (*kernels.FLAGS, *watched))
    told = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    program = SANITIZED.replace("{SIZES}", str({name: sizes_of(name) for name in FAMILIES}))
    done = subprocess.run(
        [sys.executable, "-c", program, library], env=os.environ | told, capture_output=True, text=True
    )
    assert done.stdout == "all sizes done\n", done.stderr
    assert done.returncode and "heap-buffer-overflow" in done.stderr


@linux
def test_a_word_that_asks_for_nothing_we_know_is_refused(fresh, monkeypatch):
    monkeypatch.setenv("SUBSPACE_KERNELS", "off")
    with pytest.raises(ValueError, match="SUBSPACE_KERNELS is 'off'; allowed is 0 "):
        make("one_hot", 100, 5).write(torch.zeros(100), torch.ones(5), torch.empty(100))


def test_pytorch_counts_what_a_kernel_writes():
    P, out = make("one_hot", 100, 5), torch.zeros(100)
    loss = (torch.ones(100, requires_grad=True) * out).sum()
    P.write(torch.zeros(100), torch.ones(5), out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@linux
def test_a_cache_of_another_user_is_not_believed(fresh, monkeypatch, capsys):
    monkeypatch.setattr(kernels.os, "getuid", lambda: 12345)
    assert kernels.loaded()[0] is None
    assert "belongs to another user" in capsys.readouterr().err


@pytest.mark.parametrize("density", [None, 0.4])
def test_orders_of_sparse_hold_every_entry_once(density, monkeypatch):
    """Read back one by one: place 16 g + i of a block has its entries at 16 places from each other."""
    monkeypatch.setattr(sparse, "BLOCK", 50)
    P = make("sparse", 401, 130, density=density)
    for names, (rows, width) in {
        ("row_starts", "column_of", "value_by_row"): (401, 130),
        ("column_starts", "row_of", "value_by_column"): (130, 401),
    }.items():
        found = np.zeros((rows, width))
        groups = sparse.groups_of_rows(*map(P.get_buffer, names), width)
        assert len(groups) == -(-width // 50)
        for block, (offsets, entries, order) in enumerate(groups):
            size = min(50, width - 50 * block)
            for place, row in enumerate(order.tolist()):
                for entry in entries[offsets[place // 16] : offsets[place // 16 + 1], place % 16].tolist():
                    if entry < 2 * size:
                        found[row, 50 * block + entry % size] += 1 if entry < size else -1
        matrix = P.to_dense().sign().numpy()
        assert (found == (matrix if rows == 401 else matrix.T)).all()


@linux
def test_bytes_kept_count_what_is_made_for_kernels():
    P = LayerwiseProjection([make("sparse", 40_001, 70)])
    kept = sum(buffer.nbytes for buffer in P.buffers())
    assert P.nbytes == kept
    both(P, normal(70), normal(40_001), normal(40_001))
    made = sum(one.nbytes for groups in P.blocks[0]._groups.values() for group in groups for one in group)
    assert P.nbytes == P.blocks[0].nbytes == kept + made > kept


class Subclass(torch.Tensor):
    """A tensor by which somebody sees what is computed."""


def test_triton_is_asked_what_it_can_do_before_it_is_said_to_do_it(monkeypatch):
    """Here by kernels that are not there: those of hadamard take blocks up to a size, and float32 alone."""
    ordinary = torch.zeros(3)
    others = ordinary.double(), ordinary.as_subclass(Subclass), torch.zeros(6)[::2]
    assert kernels._ordinary([ordinary, nn.Parameter(ordinary)], "cpu") and not kernels._ordinary([ordinary], "cuda")
    assert not any(kernels._ordinary([ordinary, other], "cpu") for other in others)
    asked = []
    monkeypatch.setattr(kernels, "in_triton", lambda *tensors: asked.append(tensors))
    for D, d, is_asked in ((1000, 100, True), (40_000, 8193, False)):
        P, asked[:] = make("hadamard", D, d), []
        P.write(torch.zeros(D), torch.ones(d), torch.empty(D))
        P._transform_back(torch.ones(D))
        assert [tensors[0] is P._like for tensors in asked] == ([True, True] if is_asked else []), (D, d)
