"""The kernels in Triton, where it is installed: right in its interpreter, and compiled for a GPU that is not there.

On a machine without a GPU: `TRITON_INTERPRET=1 pytest tests/test_triton.py`. On a GPU test_cuda.py runs them.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from subspace_lib import make_projection
from subspace_lib.projections import kernels
from subspace_lib.projections.kernels import KERNELS, in_triton, path_of
from subspace_lib.study.benchmark import pytorch_alone

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
SIZES = [(1314, 70), (999, 7), (64, 64), (2050, 1025), (40, 1)]
COMPILED = """
import subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from subspace_lib.projections import triton_kernels

ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
types = dict.fromkeys(("count", "to_block", "to_row", "D", "d"), "i32") | {"entry": "*i32", "source": "*i64"}
for name, sizes in {
    "_one_hot_write": {"BLOCK": 1024}, "_one_hot_pull": {"BLOCK": 1024},
    "_hadamard_write": {"bits": 13, "together": 2}, "_hadamard_pull": {"bits": 13, "together": 2},
}.items():
    kernel = getattr(triton_kernels, name)
    signature = {one: "constexpr" if one in sizes else types.get(one, "*fp32") for one in kernel.arg_names}
    constants = {(kernel.arg_names.index(one),): value for one, value in sizes.items()}
    options = {"num_warps": 16 if "bits" in sizes else 4}
    source = ASTSource(kernel, signature, constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [ptxas, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
        print(name, subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr)
"""


@pytest.fixture
def in_interpreter(monkeypatch):
    """Let the projections take their kernels on a CPU as well, where the interpreter runs them."""
    monkeypatch.setattr(kernels, "_ordinary", lambda _, device: device == "cuda")


@needs_triton
@interpreted
@pytest.mark.parametrize("name", ["one_hot", "hadamard"])
@pytest.mark.parametrize(("D", "d"), SIZES)
def test_products_are_PyTorchs(name, D, d, in_interpreter):
    kernels.loaded_on.cache_clear()
    P = make_projection(name, D, d, seed=3)
    generator = torch.Generator().manual_seed(0)
    z, theta0, v = (torch.randn(size, generator=generator) for size in (d, D, D))
    expected, pulled = theta0 + P(z), P.to_dense().T @ v
    out = torch.full((D,), torch.nan)
    assert path_of(lambda: P.write(theta0, z, out)) == "Triton kernels"
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(P.pull(v.clone()), pulled, rtol=1e-5, atol=1e-5)


@needs_triton
@interpreted
@pytest.mark.parametrize("count", [16, 17])
def test_blocks_side_by_side(count, monkeypatch):
    """As a large D takes them: several blocks a program, the last one with fewer."""
    from subspace_lib.projections import triton_kernels

    monkeypatch.setattr(triton_kernels, "PROGRAMS", 2)
    P = make_projection("hadamard", 64 * count, 64, seed=3)
    [(found, n)] = P.groups
    assert (found, n) == (count, 64) and triton_kernels._blocks(P.entries_0)[1][-1] == 8
    z, theta0, v = torch.randn(64), torch.randn(64 * count), torch.randn(64 * count)
    out, pulled = torch.full_like(theta0, torch.nan), torch.zeros(64)
    triton_kernels.hadamard_write(theta0, z, *P._group(0), out)
    triton_kernels.hadamard_pull(v, *P._group(0), pulled)
    torch.testing.assert_close(out, theta0 + P(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pulled, P.adjoint(v), rtol=1e-5, atol=1e-5)


@needs_triton
def test_they_compile_for_an_H100_without_spills():
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run([sys.executable, "-c", COMPILED], env=plain, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    print(told.stdout)
    assert re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told.stdout) == [("0", "0")] * 4


def test_they_are_for_a_GPU(monkeypatch):
    assert in_triton(torch.zeros(3)) is None, "a CPU"


def test_they_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(kernels, "_ordinary", lambda _, device: device == "cuda")
    monkeypatch.setattr(kernels, "loaded_on", lambda device: (kernels, "Triton kernels"))
    monkeypatch.delenv(KERNELS, raising=False)
    P, z, theta = make_projection("one_hot", 100, 5), torch.ones(5), torch.zeros(100)
    assert in_triton(z) is kernels
    with pytorch_alone():
        assert path_of(lambda: P.write(theta, z, torch.empty(100))) == kernels.OFF
        with pytest.raises(RuntimeError, match="within"), pytorch_alone():
            raise RuntimeError("within")
        assert os.environ[KERNELS] == "0", "as it was before"
    assert KERNELS not in os.environ


@pytest.mark.parametrize("trouble", ["no compiler", ""])
def test_where_they_fail_one_line_says_so_and_PyTorch_computes(trouble, monkeypatch, capsys):
    class Broken:
        @staticmethod
        def one_hot_write(*tensors):
            raise KeyError(trouble) if trouble else RuntimeError

    monkeypatch.delenv(KERNELS, raising=False)
    kernels.loaded_on.cache_clear()
    monkeypatch.setattr(kernels, "_ordinary", lambda _, device: device == "cuda")
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "subspace_lib.projections.triton_kernels", Broken)
    P, z, theta = make_projection("one_hot", 100, 5, seed=1), torch.ones(5), torch.zeros(100)
    for _ in range(2):
        P.write(theta, z, out := torch.empty(100))
        torch.testing.assert_close(out, P(z))
    kernels.loaded_on.cache_clear()
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("training steps are computed by PyTorch (") and (trouble or "RuntimeError") in message


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch, capsys):
    class Wrong:
        @staticmethod
        def one_hot_write(theta0, z, entry, signed_scale, out):
            out.fill_(3)

    kernels.loaded_on.cache_clear()
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "subspace_lib.projections.triton_kernels", Wrong)
    assert kernels.loaded_on(torch.device("cpu"))[0] is None and "1 + 1 is 3" in capsys.readouterr().err
    kernels.loaded_on.cache_clear()
