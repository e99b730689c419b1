"""Recomputes the flagged tiles of a float32 product in IEEE arithmetic; others exit at once.

The second half of a guard: a fast pass flags the row blocks of A and the column blocks of B
that hold an element it cannot treat within its bound, and this kernel, launched behind it on
the same stream, replaces just the tiles of the product those blocks touch. No host
synchronisation, a fixed sequence of launches, and so safe inside a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.staging import FLAG_BLOCK


@triton.jit
def _repair_kernel(
    a, b, p, a_flags, b_flags, m, n, k, a_row, a_col, b_row, b_col, p_row, p_col,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(n, BLOCK)
    tile_m = tl.program_id(0) // across
    tile_n = tl.program_id(0) % across
    if tl.load(a_flags + tile_m) + tl.load(b_flags + tile_n) > 0:
        i = (tile_m * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        j = (tile_n * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        kk = tl.arange(0, BLOCK_K).to(tl.int64)
        a_at = a + i[:, None] * a_row + kk[None, :] * a_col
        b_at = b + kk[:, None] * b_row + j[None, :] * b_col
        total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, k, BLOCK_K):
            inside = kk < k - start
            x = tl.load(a_at, mask=(i < m)[:, None] & inside[None, :], other=0.0)
            y = tl.load(b_at, mask=inside[:, None] & (j < n)[None, :], other=0.0)
            total = tl.dot(x, y, total, input_precision="ieee")
            a_at += BLOCK_K * a_col
            b_at += BLOCK_K * b_row
        inside = (i < m)[:, None] & (j < n)[None, :]
        tl.store(p + i[:, None] * p_row + j[None, :] * p_col, total, mask=inside)


def repair(
    A: torch.Tensor,
    B: torch.Tensor,
    P: torch.Tensor,
    a_flags: torch.Tensor,
    b_flags: torch.Tensor,
) -> None:
    """Overwrite the tiles of P (m, n) with A·B where a flag of their row or column block is set.

    A (m, k), B (k, n) and P are float32 with any strides; flags are int32, one for each
    ``FLAG_BLOCK`` rows of A or columns of B.
    """
    (m, k), n = A.shape, B.shape[1]
    grid = (triton.cdiv(m, FLAG_BLOCK) * triton.cdiv(n, FLAG_BLOCK),)
    _repair_kernel[grid](
        A, B, P, a_flags, b_flags, m, n, k, *A.stride(), *B.stride(), *P.stride(),
        BLOCK=FLAG_BLOCK, BLOCK_K=16, num_warps=8,
    )  # fmt: skip
