"""The products of a training step in C, compiled on first use; PyTorch's own where that cannot be.

They change the rounding of a step, not P, and are there by default, since they make it shorter. The one time that
something is compiled, or cannot be, a line says so. ``diagnose`` names what runs.
kronecker has none: both its products are PyTorch's, and a kernel for them took longer (1.65 of a direct step for 1.48).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import which
from types import ModuleType

import torch
from torch import Tensor, nn

from subspace_lib.files import replaced_atomically

SOURCE = Path(__file__).with_name("kernels.c")
KERNELS = "SUBSPACE_KERNELS"
"""The variable of the environment that chooses: "0" for PyTorch alone, "triton" for those on a GPU."""
COMPILERS = ("gcc", "cc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC")
"""Never -ffast-math: with it a library may make the whole process flush small numbers to zero."""
SERIAL = 2**15
"""Fewer weights than this are not worth a second thread."""
LARGEST_BLOCK = 8192
"""Rows of a block of hadamard that a program in Triton holds in its registers."""
MARKS = ("model name", "flags", "CPU part", "Features")
"""What Linux says of a processor that decides which instructions it has."""


class Kernels:
    """The functions of ``kernels.c``, by name."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def __call__(self, name: str, *arguments: Tensor | int) -> None:
        """Run one on sizes and on tensors, which the caller answers for."""
        values = [ctypes.c_int64(one) if isinstance(one, int) else ctypes.c_void_p(one.data_ptr()) for one in arguments]
        getattr(self.library, name)(*values)


_last = "PyTorch"


def taking(*tensors: Tensor) -> Kernels | None:
    """The kernels, if they take such tensors, on the CPU; None where PyTorch has to do it."""
    global _last
    if not _ordinary(tensors, "cpu"):
        return None
    found, _last = loaded()
    return found


def _ordinary(tensors: Sequence[Tensor], device: str) -> bool:
    """Whether these are float32 there, without gaps, and no tensors by which PyTorch records a program."""
    return not torch.compiler.is_compiling() and all(
        type(one) in (Tensor, nn.Parameter)
        and one.device.type == device
        and one.dtype == torch.float32
        and one.is_contiguous()
        for one in tensors
    )


def in_triton(*tensors: Tensor) -> ModuleType | None:
    """The kernels in Triton, where ``SUBSPACE_KERNELS`` is "triton" and they take such tensors, on a GPU; else None.

    Raises
    ------
    ImportError
        If they are asked for and Triton is not installed.
    """
    global _last
    if _asked() != "triton" or torch.are_deterministic_algorithms_enabled():
        return None
    if not _ordinary(tensors, "cuda") or any(one.numel() >= 2**30 for one in tensors):
        return None
    if importlib.util.find_spec("triton") is None:
        raise ImportError("SUBSPACE_KERNELS asks for triton, which is not installed: pip install triton, or unset it")
    _last = "Triton kernels"
    return importlib.import_module("subspace_lib.projections.triton_kernels")


def _asked() -> str:
    """What the environment asks for.

    Raises
    ------
    ValueError
        If that is nothing we know.
    """
    asked = os.environ.get(KERNELS, "")
    if asked not in ("", "0", "triton"):
        raise ValueError(f"{KERNELS} is {asked!r}; allowed are 0 (PyTorch alone) and triton, or leave it unset")
    return asked


def path_of(products: Callable[[], object]) -> str:
    """What computed the last of these products, in words."""
    global _last
    _last = "PyTorch"
    products()
    return _last


def threads_for(D: int) -> int:
    """How many threads a kernel should take for D weights."""
    return torch.get_num_threads() if D >= SERIAL else 1


@functools.cache
def loaded() -> tuple[Kernels | None, str]:
    """The compiled kernels, and what computes the steps, in words; one line a process where they are missed."""
    if _asked() == "0":
        return None, "PyTorch (SUBSPACE_KERNELS=0)"
    if sys.platform != "linux":
        return None, "PyTorch (kernels are for Linux)"
    try:
        return _built(), "C kernels"
    except (OSError, RuntimeError) as error:
        why = f"PyTorch ({error})"
        print(f"training steps are computed by {why}; SUBSPACE_KERNELS=0 asks for that", file=sys.stderr)
        return None, why


def _built() -> Kernels:
    """What an earlier process compiled, or else what this one compiles.

    Raises
    ------
    OSError, RuntimeError
        If no compiler works, or there is no folder to keep the kernels in.
    """
    path = _place()
    with contextlib.suppress(OSError):  # none yet, or a damaged one
        return Kernels(path)
    compiler = next(filter(which, COMPILERS), None)
    if compiler is None:
        raise OSError(f"there is no C compiler on the PATH: {', '.join(COMPILERS)}")
    started = time.perf_counter()
    with replaced_atomically(path) as temporary:
        compile_to(temporary, compiler)
        found = Kernels(temporary)  # before others see it
    seconds = time.perf_counter() - started
    print(f"subspace_lib compiled its kernels for this processor, once, in {seconds:.1f} s: {path}", file=sys.stderr)
    return found


def compile_to(path: Path, compiler: str, flags: tuple[str, ...] = FLAGS) -> None:
    """Compile ``kernels.c`` into a shared library that takes the OpenMP which PyTorch has loaded: two would fight.

    Raises
    ------
    OSError
        If the compiler fails, with the first line of what it says.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = str(Path(folder) / "kernels.o")
        for command in (*flags, "-c", str(SOURCE), "-o", done), ("-shared", done, "-o", str(path)):
            told = subprocess.run([compiler, *command], capture_output=True, text=True, errors="replace")
            if told.returncode:
                said = (told.stderr.strip() or f"exit status {told.returncode}").splitlines()[0]
                raise OSError(f"{which(compiler)} fails: {said}")


def _place() -> Path:
    """Where the kernels of this version are kept for this processor."""
    from subspace_lib import __version__

    told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    processor = sorted({line for line in told.splitlines() if line.startswith(MARKS)})
    marks = hashlib.sha256(SOURCE.read_bytes() + " ".join([*FLAGS, platform.machine(), *processor]).encode())
    told_to = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (told_to if told_to.is_absolute() else Path.home() / ".cache") / "subspace_lib"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user, who could put anything there")
    return folder / f"kernels-{__version__}-{marks.hexdigest()[:16]}.so"
