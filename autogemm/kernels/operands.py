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


def described(x: torch.Tensor, transposed: bool, rows: int, cols: int) -> TensorDescriptor:
    """The descriptor of x, or of its transpose, for tiles of x with ``rows`` and ``cols``.

    What it describes has contiguous rows, at multiples of 16 bytes.
    """
    if transposed:
        x, rows, cols = x.t(), cols, rows
    # The stride over a single row means nothing, but must be a legal one.
    pitch = x.stride(0) if x.shape[0] > 1 else ceil_div(x.shape[1], 8) * 8
    return descriptor(x, (x.shape[0], x.shape[1]), pitch, (rows, cols))


def descriptor(
    x: torch.Tensor, extents: tuple[int, int], pitch: int, tile: tuple[int, int]
) -> TensorDescriptor:
    """A descriptor of contiguous rows that are known to be legal: checking takes microseconds."""
    made = object.__new__(TensorDescriptor)
    made.base, made.shape, made.strides = x, list(extents), [pitch, 1]
    made.block_shape, made.padding = list(tile), "zero"
    return made
