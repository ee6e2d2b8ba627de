"""Freed memory is kept: fewer page faults, counted in a process of its own."""

import platform
import subprocess
import sys

import pytest
import torch

from subspace_lib import Data, fit

PROGRAM = """
import resource, torch
from subspace_lib.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(2_000_000) for _ in range(6)]
        del tensors
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_rounds_cost_no_page_faults():
    # Without help it is thousands, unless something large happened to be freed before.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50


class Greedy(torch.nn.Linear):
    """Says what PyTorch says when a GPU is full."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_a_full_gpu_is_explained():
    data = Data(train=(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), val=None, test=None)
    with pytest.raises(torch.OutOfMemoryError, match=r"smaller batch_size, or fewer runs.*20.00 MiB"):
        fit(Greedy(3, 2), data, epochs=1, lr=0.1, batch_size=2)
