"""Tiles of operands as they lie, by rows or by columns, through tensor descriptors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from autogemm.kernels.launch import ceil_div


@triton.jit
def load_tiles(a, b, i0, j0, at, A_T: tl.constexpr, B_T: tl.constexpr):
    """The tiles of A and B for rows from i0, columns from j0, at k. _T: described transposed."""
    x = a.load([at, i0]).T if A_T else a.load([i0, at])
    y = b.load([j0, at]).T if B_T else b.load([at, j0])
    return x, y


@triton.jit
def place_of(z, step):
    """Where ``described_batch`` has matrix z: at 0 if one is all of them, its step being 0."""
    return tl.where(step == 0, 0, z)


@triton.jit
def load_batched_tiles(a, b, a_z, b_z, i0, j0, at, A_T: tl.constexpr, B_T: tl.constexpr):
    """``load_tiles`` of matrix a_z of a batch and b_z of another, as ``described_batch``."""
    # An extent of 1 is dropped as the tile is loaded: nothing is moved for its sake.
    x = a.load([a_z, at, i0]) if A_T else a.load([a_z, i0, at])
    y = b.load([b_z, j0, at]) if B_T else b.load([b_z, at, j0])
    x = tl.reshape(x, (x.shape[1], x.shape[2]))
    y = tl.reshape(y, (y.shape[1], y.shape[2]))
    return x.T if A_T else x, y.T if B_T else y


@triton.jit
def load_either(a, b, a_z, b_z, i0, j0, at, A_T: tl.constexpr, B_T: tl.constexpr):
    """``load_tiles``; of matrices a_z and b_z of batches, unless these are None."""
    if a_z is None:
        x, y = load_tiles(a, b, i0, j0, at, A_T, B_T)
    else:
        x, y = load_batched_tiles(a, b, a_z, b_z, i0, j0, at, A_T, B_T)
    return x, y


def described(x: torch.Tensor, transposed: bool, rows: int, cols: int) -> TensorDescriptor:
    """The descriptor of x, or of its transpose, for tiles of x with ``rows`` and ``cols``.

    What it describes has contiguous rows, at multiples of 16 bytes.
    """
    if transposed:
        x, rows, cols = x.t(), cols, rows
    # The stride over a single row means nothing, but must be a legal one.
    pitch = x.stride(0) if x.shape[0] > 1 else ceil_div(x.shape[1], 8) * 8
    return descriptor(x, (x.shape[0], x.shape[1]), pitch, (rows, cols))


def described_batch(x: torch.Tensor, transposed: bool, rows: int, cols: int) -> TensorDescriptor:
    """The descriptor of a batch (batch, m, k), or of its transposes, for tiles of its matrices.

    As ``described``, with the matrices at multiples of 16 bytes. Where all of them are one
    (expanded, stride 0) that one is described, at place 0. A tile never holds elements of two
    matrices: what it lacks is filled with zeros.
    """
    if transposed:
        x, rows, cols = x.mT, cols, rows
    count, *extents = x.shape
    step, pitch, _ = x.stride()
    if extents[0] == 1:
        pitch = ceil_div(extents[1], 8) * 8
    if step == 0:
        count, step = 1, extents[0] * pitch
    return _unchecked(x, [count, *extents], [step, pitch, 1], [1, rows, cols])


def descriptor(
    x: torch.Tensor, extents: tuple[int, int], pitch: int, tile: tuple[int, int]
) -> TensorDescriptor:
    """A descriptor of contiguous rows that are known to be legal."""
    return _unchecked(x, list(extents), [pitch, 1], list(tile))


def _unchecked(
    x: torch.Tensor, shape: list[int], strides: list[int], tile: list[int]
) -> TensorDescriptor:
    """Made without Triton's checks, which take microseconds."""
    made = object.__new__(TensorDescriptor)
    made.base, made.shape, made.strides = x, shape, strides
    made.block_shape, made.padding = tile, "zero"
    return made
