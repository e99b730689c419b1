"""Which tile a program computes: neighbours in time share operands in the L2 cache.

Of a Gram matrix, X·Xᵀ or XᵀX, only the tiles on and below the diagonal are computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import ceil_div


@triton.jit
def tile_origin(program, m, n, group, BM: tl.constexpr, BN: tl.constexpr):
    """The tile's first row and column: ``group`` rows of tiles are walked column by column."""
    down = tl.cdiv(m, BM)
    across = tl.cdiv(n, BN)
    width = group * across
    first = program // width * group
    rows = tl.minimum(down - first, group)
    within = program % width
    return (first + within % rows) * BM, within // rows * BN


@triton.jit
def triangle_origin(program, BLOCK: tl.constexpr):
    """The first row and column of a square tile on or below the diagonal, counted row by row."""
    row = ((tl.sqrt((8 * program + 1).to(tl.float32)) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded: one step either way.
    row = tl.where((row + 1) * (row + 2) // 2 <= program, row + 1, row)
    row = tl.where(row * (row + 1) // 2 > program, row - 1, row)
    return row * BLOCK, (program - row * (row + 1) // 2) * BLOCK


def is_gram(A: torch.Tensor, B: torch.Tensor) -> bool:
    """Whether B is A transposed, the same memory, so that A·B equals its transpose."""
    return (
        A.data_ptr() == B.data_ptr()
        and A.shape[0] == B.shape[1]
        and A.stride() == B.stride()[::-1]
    )


def tile_count(m: int, n: int, bm: int, bn: int, *, gram: bool) -> int:
    """How many tiles are computed of a matrix (m, n)."""
    down = ceil_div(m, bm)
    return down * (down + 1) // 2 if gram else down * ceil_div(n, bn)
