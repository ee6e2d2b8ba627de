"""Freed memory that stays at hand, so that a training step does not fetch it from the system again."""

from __future__ import annotations

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
