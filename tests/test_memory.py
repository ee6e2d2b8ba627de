"""Freed memory is kept: fewer page faults, counted in a process of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from subspace_lib.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(500_000) for _ in range(4)]
        del tensors
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20

faults()
first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_steps_cost_no_page_faults():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before > 500, "without help every step should fetch its pages again"
    assert after < before / 20
