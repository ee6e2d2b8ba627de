"""The products of a training step as single kernels in Triton, for a GPU: one_hot's and hadamard's.

They are used wherever Triton is installed and works. They take float32; sums come in any order, as in PyTorch's own
``scatter_add`` on a GPU. ``python -m subspace_lib benchmark --device cuda`` measures a step with them and without. An
H100 took, of a direct step launched the same way (MLP, D = 472,610, d = 4,500): one_hot 1.25 with them and 1.58
without, and in a CUDA graph 1.02 and 1.12; hadamard 1.63 and 2.11, in a graph 1.26 and 1.43.

What a step of the optimiser costs, for an MLP of four weights and D = 472,610 (one group of blocks in hadamard):

| | launches | bytes a weight | at 3.35 TB/s, D = 472,610 | D = 124 million |
| --- | --- | --- | --- | --- |
| direct, fused Adam | 2 | 28 | .004 ms | 1.04 ms |
| one_hot, PyTorch; these kernels | 13; 6 | 52; 28 | .007; .004 | 1.92; 1.04 |
| hadamard, PyTorch; these kernels | 23; 10 | 116; 28 | .016; .004 | 4.29; 1.04 |

Launches were counted on a CPU as operators of PyTorch that compute, without views, allocations and the check for
changed weights, which a GPU leaves out; bytes by hand, each operator's arguments and result. Of all, 8 bytes gather the
gradients. At five microseconds a launch these decide at the first size, and bytes at the second.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from subspace_lib.projections.kernels import LARGEST_BLOCK

BLOCK = 1024
"""Weights of a program of one_hot."""
TILE = 2 * LARGEST_BLOCK
"""Numbers that it holds at most, 32 a thread; with more, registers spill."""
TOGETHER = 8
"""Blocks that it takes at most: their rows lie side by side, and memory is read in pieces of 32 bytes."""
PROGRAMS = 132
"""Programs that a GPU should have at least, one for each of its multiprocessors, before they take several blocks."""


def one_hot_write(theta0: Tensor, z: Tensor, entry: Tensor, signed_scale: Tensor, out: Tensor) -> None:
    """Write theta0 + P z into ``out`` in one launch; moves 12 bytes a weight."""
    grid = (triton.cdiv(len(entry), BLOCK),)
    _one_hot_write[grid](theta0, z, entry, signed_scale, out, len(entry), len(z), BLOCK)


def one_hot_pull(v: Tensor, entry: Tensor, signed_scale: Tensor) -> Tensor:
    """P^T v in two launches, one of which makes zeros; moves 8 bytes a weight and adds atomically."""
    d = signed_scale.shape[1]
    z = v.new_zeros(d)
    _one_hot_pull[(triton.cdiv(len(entry), BLOCK),)](v, entry, signed_scale, z, len(entry), d, BLOCK)
    return z


def hadamard_write(theta0: Tensor, z: Tensor, source: Tensor, entries: Tensor, row_signs: Tensor, out: Tensor) -> None:
    """Write theta0 + R H B C z, of blocks of one size, into ``out`` in one launch; moves 12 bytes a weight."""
    grid, shape = _blocks(entries)
    _hadamard_write[grid](theta0, z, source, entries, row_signs, out, *shape, num_warps=_warps(shape))


def hadamard_pull(v: Tensor, source: Tensor, entries: Tensor, row_signs: Tensor, z: Tensor) -> None:
    """Add C^T B H R v, of blocks of one size, to z in one launch; moves 8 bytes a weight and adds atomically."""
    grid, shape = _blocks(entries)
    _hadamard_pull[grid](v, source, entries, row_signs, z, *shape, num_warps=_warps(shape))


def _blocks(entries: Tensor) -> tuple[tuple[int], tuple[int, int, int, int, int]]:
    """Programs; and blocks, the way from one to the next and from row to row, rows, and how many a program takes."""
    before, n, after = entries.shape
    count, together = before * after, 1
    while 2 * together * n <= TILE and together < TOGETHER and after >= 2 * together * PROGRAMS:
        together *= 2
    return (triton.cdiv(count, together),), (count, 1 if after > 1 else n, after, n.bit_length() - 1, together)


def _warps(shape: tuple[int, int, int, int, int]) -> int:
    """So many that a thread holds 32 numbers."""
    return max(1, (1 << shape[3]) * shape[4] // 1024)


@triton.jit
def _one_hot_write(theta0, z, entry, signed_scale, out, D, d, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < D
    e = tl.load(entry + i, inside, 0)
    moved = tl.load(z + tl.where(e < d, e, e - d)) * tl.load(signed_scale + e)
    tl.store(out + i, tl.load(theta0 + i, inside) + moved, inside)


@triton.jit
def _one_hot_pull(v, entry, signed_scale, z, D, d, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < D
    e = tl.load(entry + i, inside, 0)
    part = tl.load(v + i, inside, 0.0) * tl.load(signed_scale + e)
    tl.atomic_add(z + tl.where(e < d, e, e - d), part, inside, sem="relaxed")


@triton.jit
def _transformed(x, bits: tl.constexpr, together: tl.constexpr):
    """The Hadamard transform of every row of x, of shape (together, n): the last bit of a place at a time."""
    for _ in tl.static_range(bits):
        a, b = tl.split(tl.reshape(x, (together, 2 ** (bits - 1), 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (together, 2**bits))
    return x


@triton.jit
def _hadamard_write(
    theta0, z, source, entries, row_signs, out, count, to_block, to_row, bits: tl.constexpr, together: tl.constexpr
):
    block = tl.program_id(0) * together + tl.arange(0, together)
    row = tl.arange(0, 2**bits)
    at = (block * to_block)[:, None] + (row * to_row)[None, :]
    inside = (block < count)[:, None] & (row >= 0)[None, :]
    placed = tl.load(z + tl.load(source + row))
    x = _transformed(tl.load(entries + at, inside, 0.0) * placed[None, :], bits, together)
    tl.store(out + at, tl.load(theta0 + at, inside, 0.0) + x * tl.load(row_signs + row)[None, :], inside)


@triton.jit
def _hadamard_pull(
    v, source, entries, row_signs, z, count, to_block, to_row, bits: tl.constexpr, together: tl.constexpr
):
    block = tl.program_id(0) * together + tl.arange(0, together)
    row = tl.arange(0, 2**bits)
    at = (block * to_block)[:, None] + (row * to_row)[None, :]
    inside = (block < count)[:, None] & (row >= 0)[None, :]
    x = _transformed(tl.load(v + at, inside, 0.0) * tl.load(row_signs + row)[None, :], bits, together)
    entry = tl.load(entries + at, inside, 0.0)
    part = tl.sum(x * entry, 0)
    tl.atomic_add(z + tl.load(source + row), part, tl.sum(tl.abs(entry), 0) > 0, sem="relaxed")
