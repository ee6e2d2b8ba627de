"""Memory: keeping what was freed at hand, the most that was in use, and what to do where there is too little."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch

LARGEST = 2**25 - 2**16
"""Just under 32 MiB, the largest block that moves glibc's bounds."""


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of freed memory instead of giving it back to the system.

    A training step makes and frees tensors of some megabytes. By default glibc gives them back as soon as twice the
    size of the largest mapped block that was ever freed lies free, and the next step pays for it in page faults: on
    two cores more time than a fast projection takes. Freeing one large block that was never touched moves that
    bound, and costs nothing. Other C libraries take no notice.

    References
    ----------
    mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: both adjust themselves to the blocks that are freed.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


@contextlib.contextmanager
def explained_when_full() -> Iterator[None]:
    """Say what to do where a GPU's memory does not suffice.

    Raises
    ------
    torch.OutOfMemoryError
        In place of PyTorch's own, whose message it keeps.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"the GPU's memory is full; take a smaller batch_size, fewer runs at a time, or SUBSPACE_GRAPHS=0 ({error})"
        ) from None


class PeakMemory:
    """The most memory that was in use inside a ``with`` block, beyond what was in use before it.

    On a GPU PyTorch counts it; on Linux the system does, for the whole process.

    Attributes
    ----------
    bytes : int or None
        None where neither counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            with contextlib.suppress(OSError):
                # proc(5): resets VmHWM to what is in use now
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _most_memory()
        return self

    def __exit__(self, *_: object) -> None:
        most = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _most_memory()
        self.bytes = most - self._before if most else None


def _most_memory() -> int:
    """The process's largest resident size since the last reset, in bytes; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
