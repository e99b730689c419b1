"""The second half of a guard: recompute flagged tiles in IEEE arithmetic, apply α and β.

A fast pass flags the row blocks of A and the column blocks of B that hold an element it
cannot treat within its bound. This kernel, launched behind it on the same stream, computes
just the tiles of the product those blocks touch anew, and brings all tiles to α·P + β·C.
No host synchronisation, a fixed sequence of launches, and so safe inside a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import ceil_div, launch, written
from autogemm.kernels.staging import FLAG_BLOCK


@triton.jit(do_not_specialize=["alpha", "beta"])
def _finish_kernel(
    a, b, p, c, out, flags, m, n, k, a_row, a_col, b_row, b_col, p_row, p_col, c_row, c_col,
    out_row, out_col, alpha, beta, HAS_C: tl.constexpr, IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(n, BLOCK)
    tile_m = tl.program_id(0) // across
    tile_n = tl.program_id(0) % across
    flagged = tl.load(flags + tile_m) + tl.load(flags + tl.cdiv(m, BLOCK) + tile_n) > 0
    # In place there is nothing to do for a tile that needs no repair: P is the result.
    if flagged or not IN_PLACE:
        i = (tile_m * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        j = (tile_n * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        inside = (i < m)[:, None] & (j < n)[None, :]
        total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        if flagged:
            kk = tl.arange(0, BLOCK_K).to(tl.int64)
            a_at = a + i[:, None] * a_row + kk[None, :] * a_col
            b_at = b + kk[:, None] * b_row + j[None, :] * b_col
            for start in range(0, k, BLOCK_K):
                left = kk < k - start
                x = tl.load(a_at, mask=(i < m)[:, None] & left[None, :], other=0.0)
                y = tl.load(b_at, mask=left[:, None] & (j < n)[None, :], other=0.0)
                total = tl.dot(x, y, total, input_precision="ieee")
                a_at += BLOCK_K * a_col
                b_at += BLOCK_K * b_row
        else:
            total = tl.load(p + i[:, None] * p_row + j[None, :] * p_col, mask=inside, other=0.0)
        if not IN_PLACE:
            total *= alpha
            if HAS_C:
                total += beta * tl.load(
                    c + i[:, None] * c_row + j[None, :] * c_col, mask=inside, other=0.0
                )
        tl.store(out + i[:, None] * out_row + j[None, :] * out_col, total, mask=inside)


def finish(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    P: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    flags: torch.Tensor,
) -> None:
    """Write α·P + β·C (α·P where C is None) into ``out``, P being A·B where no flag is set.

    A (m, k), B (k, n), P, C and ``out`` (m, n) are float32 with any strides; ``out`` may be P
    or C. ``flags`` are int32: one for each ``FLAG_BLOCK`` rows of A, then one for each
    ``FLAG_BLOCK`` columns of B; tiles with a flag set are computed from A and B.
    """
    (m, k), n = A.shape, B.shape[1]
    source = P if C is None else C
    launch(
        _finish_kernel,
        ceil_div(m, FLAG_BLOCK) * ceil_div(n, FLAG_BLOCK),
        (A, B, P, source, out, flags),
        (m, n, k, *A.stride(), *B.stride(), *P.stride(), *source.stride(), *out.stride()),
        (float(alpha.real), float(beta.real)),
        {
            "HAS_C": C is not None,
            "IN_PLACE": C is None and alpha == 1 and P is out,
            "BLOCK": FLAG_BLOCK,
            "BLOCK_K": 16,
        },
        num_warps=8,
    )
    written(out)
