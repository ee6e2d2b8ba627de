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
print(min(faults() for _ in range(3)))  # another program may cost one of them a few
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_rounds_cost_no_page_faults():
    # Without help it is thousands, unless something large happened to be freed before.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50


LOOP = """
import resource, torch
from subspace_lib import SubspaceOptimizer, make_projection

net = torch.nn.Linear(2_000, 200)
P = make_projection("hadamard", 400_200, 4_000, seed=0)
optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=1e-3)
batch = torch.ones(16, 2_000)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

faults()
print(min(faults() for _ in range(3)))  # another program may cost one of them a few
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_steps_in_a_loop_of_ones_own_cost_no_page_faults():
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20  # without help a hundred and more


class Greedy(torch.nn.Linear):
    """Says what PyTorch says when a GPU is full."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_a_full_gpu_is_explained():
    data = Data(train=(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), val=None, test=None)
    with pytest.raises(torch.OutOfMemoryError, match=r"fewer runs .* or SUBSPACE_GRAPHS=0 .*20.00 MiB"):
        fit(Greedy(3, 2), data, epochs=1, lr=0.1, batch_size=2)
