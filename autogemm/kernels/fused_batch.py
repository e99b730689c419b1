"""α·A[z]·B[z] + β·C[z] for a batch in one launch: a program computes a tile of one matrix.

The tile is that of ``kernels/fused_product.py``; k is not sliced.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.epilogue import rows_of
from autogemm.kernels.fused_product import compute_tile
from autogemm.kernels.launch import launch, registers_for_two, written
from autogemm.kernels.operands import described_batch, place_of
from autogemm.kernels.raster import tile_count, tile_origin
from autogemm.kernels.split_product import Tiling


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "a_batch", "a_row", "a_k", "b_batch", "b_row", "b_k", "c_batch", "c_row",
        "c_col", "out_batch", "out_row", "out_col", "chunk_blocks", "group", "alpha", "beta",
        "gain",
    ]
)  # fmt: skip
def _batched_kernel(
    a_tiles, b_tiles, a, b, c, out, m, n, k, a_batch, a_row, a_k, b_batch, b_row, b_k, c_batch,
    c_row, c_col, out_batch, out_row, out_col, chunk_blocks, group, alpha, beta, gain,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr,
    TERMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, GUARD: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    i0, j0 = tile_origin(tl.program_id(0) % tiles, m, n, group, BM, BN)
    z = tl.program_id(0) // tiles
    a_z = place_of(z, a_batch)
    b_z = place_of(z, b_batch)
    if ROWS == 2:
        c_batch = c_batch // 4 * 4
        out_batch = out_batch // 4 * 4
    far = z.to(tl.int64)
    compute_tile(
        a_tiles, b_tiles, a + far * a_batch, b + far * b_batch, c + far * c_batch,
        out + far * out_batch, a_z, b_z, i0, j0, 0, k, z, m, n, a_row, a_k, b_row, b_k, c_row,
        c_col, out_row, out_col, chunk_blocks, alpha, beta, gain, HAS_C, ROWS, A_T, B_T, TERMS, BM,
        BN, BK, STAGES, GUARD, False, SHARED,
    )  # fmt: skip


def fused_batch(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    terms: int,
    chunk: int,
    tiling: Tiling,
    gain: float,
    guard: bool = True,
) -> None:
    """Write α·A[z]·B[z] + β·C[z] into ``out[z]`` for all z, in one launch; ``out`` may be C.

    A (batch, m, k), B (batch, k, n), C and ``out`` (batch, m, n) are float32. Each matrix is what
    ``fused_product`` takes, and those of A and of B begin at multiples of 16 bytes; A, B and C
    may be expanded. The rest is as for ``fused_product``, but that k is not sliced.
    """
    (batch, m, k), n = A.shape, B.shape[2]
    a_t, b_t = A.stride(2) != 1, B.stride(2) != 1
    read = out if C is None else C
    b_batch, b_k, b_row = B.stride()
    launch(
        _batched_kernel,
        batch * tile_count(m, n, tiling.bm, tiling.bn, gram=False),
        (A, B, read, out),
        (
            m,
            n,
            k,
            *A.stride(),
            b_batch,
            b_row,
            b_k,
            *read.stride(),
            *out.stride(),
            chunk // tiling.bk,
            tiling.group,
        ),
        (alpha, beta, gain),
        {
            "HAS_C": C is not None,
            "ROWS": min(rows_of(read), rows_of(out)),
            "A_T": a_t,
            "B_T": b_t,
            "TERMS": terms,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "GUARD": guard,
            "SHARED": C is not None and C.data_ptr() == out.data_ptr(),
        },
        num_warps=tiling.warps,
        registers=registers_for_two(tiling.warps) if tiling.warps == 8 else None,
        descriptors=(
            described_batch(A, a_t, tiling.bm, tiling.bk),
            described_batch(B, b_t, tiling.bk, tiling.bn),
        ),
    )
    written(out)
