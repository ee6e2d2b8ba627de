"""The products of a training step in C, or in Triton on a GPU, compiled on first use; PyTorch's where that cannot be.

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
from typing import Any

import torch
from torch import Tensor, nn

from subspace_lib.checks import says
from subspace_lib.files import replaced_atomically

SOURCE = Path(__file__).with_name("kernels.c")
KERNELS = "SUBSPACE_KERNELS"
"""The variable of the environment that switches them off, if it is "0"."""
COMPILERS = ("gcc", "cc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC")
"""Never -ffast-math: with it a library may make the whole process flush small numbers to zero."""
OFF = f"PyTorch ({KERNELS}=0)"
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

    def __call__(self, name: str, *arguments: Tensor | int | Sequence[Tensor] | Sequence[int]) -> None:
        """Run one on sizes and on tensors, or sequences of them, which the caller answers for."""
        getattr(self.library, name)(*map(_passed, arguments))


def _passed(one: Tensor | int | Sequence[Tensor] | Sequence[int]) -> Any:
    """An argument as C takes it."""
    if isinstance(one, int):
        return ctypes.c_int64(one)
    if isinstance(one, Tensor):
        return ctypes.c_void_p(one.data_ptr())
    values = list(map(_passed, one))
    return (type(values[0]) * len(values))(*values)


_last = "PyTorch"


def taking(*tensors: Tensor) -> Kernels | None:
    """The kernels, if they take such tensors, on the CPU; None where PyTorch has to do it."""
    global _last
    if not _ordinary(tensors, "cpu"):
        return None
    found, _last = loaded()
    return found


def _ordinary(tensors: Sequence[Tensor], device: str) -> bool:
    """Whether these are float32 there, without gaps, and no tensors by which PyTorch records a program.

    Of several GPUs, on the one that is current: Triton launches there, wherever the tensors are.
    """
    return (
        not torch.compiler.is_compiling()
        and all(
            type(one) in (Tensor, nn.Parameter)
            and one.device.type == device
            and one.dtype == torch.float32
            and one.is_contiguous()
            for one in tensors
        )
        and (device == "cpu" or all(one.get_device() == torch.cuda.current_device() for one in tensors))
    )


def in_triton(*tensors: Tensor) -> ModuleType | None:
    """The kernels in Triton, if they take such tensors, on a GPU; None where PyTorch has to do it."""
    global _last
    if torch.are_deterministic_algorithms_enabled() or not _ordinary(tensors, "cuda"):
        return None
    if any(one.numel() >= 2**30 for one in tensors):
        return None
    found, _last = (None, OFF) if says(KERNELS, "0", "PyTorch alone") else loaded_on(tensors[0].device)
    return found


def path_of(products: Callable[[], object]) -> str:
    """What computed the last of these products, in words."""
    global _last
    _last = "PyTorch"
    products()
    return _last


def threads_for(D: int) -> int:
    """How many threads a kernel should take for D weights."""
    return torch.get_num_threads() if D >= SERIAL else 1


def loaded() -> tuple[Kernels | None, str]:
    """The compiled kernels, and what computes the steps, in words; one line a process where they are missed."""
    return (None, OFF) if says(KERNELS, "0", "PyTorch alone") else compiled()


@functools.cache
def compiled() -> tuple[Kernels | None, str]:
    """The same, whatever the environment asks for."""
    if sys.platform != "linux":
        return None, "PyTorch (kernels are for Linux)"
    try:
        return _built(), "C kernels"
    except (OSError, RuntimeError) as error:
        return None, _missed(error)


@functools.cache
def loaded_on(device: torch.device) -> tuple[ModuleType | None, str]:
    """The same for the kernels in Triton on a GPU, after a first small product there."""
    if importlib.util.find_spec("triton") is None:
        return None, "PyTorch (Triton is not installed)"
    try:
        triton = importlib.import_module("subspace_lib.projections.triton_kernels")
        one, out = torch.ones(1, device=device), torch.zeros(1, device=device)
        triton.one_hot_write(one, one, one.int() - 1, torch.stack([one, -one]), out)
        if (found := float(out)) != 2:
            raise RuntimeError(f"1 + 1 is {found:g} in Triton")
    except Exception as error:  # a compiler may raise anything
        return None, _missed(error)
    return triton, "Triton kernels"


def _missed(error: Exception) -> str:
    """What computes the steps where kernels fail, which is said once."""
    why = f"PyTorch ({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})"
    print(f"training steps are computed by {why}; {KERNELS}=0 asks for that", file=sys.stderr)
    return why


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
