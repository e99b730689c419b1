"""α·A[z]·B[z] + β·C[z] of 16-bit batches in one launch: a tile of one matrix after another.

The tile is that of ``kernels/half_product.py``; k is not sliced.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.half_product import compute_tile, constants, is_row_major, registers_of
from autogemm.kernels.launch import ceil_div, launch, written
from autogemm.kernels.operands import described_batch, place_of
from autogemm.kernels.raster import tile_count
from autogemm.kernels.replay import not_repeatable
from autogemm.kernels.split_product import Tiling
from autogemm.kernels.staging import stage

_ALIGNED = 8
"""16-bit elements in the 16 bytes that rows and matrices begin at multiples of."""


@triton.jit
def _tile_of_batch(
    tile, a, b, c, out, m, n, k, a_batch, b_batch, c_batch, c_row, c_col, out_batch, out_row,
    out_col, group, alpha, beta,
    HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, ALIGNED: tl.constexpr,
    AHEAD: tl.constexpr, TURNED: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    z = tile // tiles
    a_z = place_of(z, a_batch)
    b_z = place_of(z, b_batch)
    if ALIGNED:  # the one form in which Triton takes note: hints on arguments are dropped
        c_batch = c_batch // 8 * 8
        out_batch = out_batch // 8 * 8
    far = z.to(tl.int64)
    compute_tile(
        tile % tiles, a, b, a_z, b_z, c + far * c_batch, out + far * out_batch, m, n, k, c_row,
        c_col, out_row, out_col, k, group, alpha, beta, HAS_C, C_UNIT, OUT_UNIT, ALIGNED, AHEAD,
        TURNED, False, A_T, B_T, BM, BN, BK, STAGES, AT_ONCE,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "batch", "m", "n", "k", "a_batch", "b_batch", "c_batch", "c_row", "c_col", "out_batch",
        "out_row", "out_col", "group", "alpha", "beta",
    ]
)  # fmt: skip
def _batch_kernel(
    a, b, c, out, batch, m, n, k, a_batch, b_batch, c_batch, c_row, c_col, out_batch, out_row,
    out_col, group, alpha, beta,
    PERSISTENT: tl.constexpr, HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr,
    ALIGNED: tl.constexpr, AHEAD: tl.constexpr, TURNED: tl.constexpr, A_T: tl.constexpr,
    B_T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        tiles = batch * tl.cdiv(m, BM) * tl.cdiv(n, BN)
        # Flattened: the next tile's operands are on their way while this one is written.
        for tile in tl.range(
            tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES, flatten=True
        ):
            _tile_of_batch(
                tile, a, b, c, out, m, n, k, a_batch, b_batch, c_batch, c_row, c_col, out_batch,
                out_row, out_col, group, alpha, beta, HAS_C, C_UNIT, OUT_UNIT, ALIGNED, AHEAD,
                TURNED, A_T, B_T, BM, BN, BK, STAGES, AT_ONCE,
            )  # fmt: skip
    else:
        _tile_of_batch(
            tl.program_id(0), a, b, c, out, m, n, k, a_batch, b_batch, c_batch, c_row, c_col,
            out_batch, out_row, out_col, group, alpha, beta, HAS_C, C_UNIT, OUT_UNIT, ALIGNED,
            AHEAD, TURNED, A_T, B_T, BM, BN, BK, STAGES, AT_ONCE,
        )  # fmt: skip


def half_batch(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: Tiling,
    programs: int | None = None,
) -> None:
    """Write α·A[z]·B[z] + β·C[z] into ``out[z]`` for all z, in one launch; ``out`` may be C.

    A (batch, m, k), B (batch, k, n), C and ``out`` (batch, m, n) are all float16 or all bfloat16.
    Matrices of A and of B have one contiguous extent, and begin, as their rows (columns) do, at
    multiples of 16 bytes; they may be larger by zeros: ``out`` says what is computed, from the
    first min(columns of A, rows of B) elements of k. C and ``out`` have any strides. A, B and C may
    be expanded. The rest is as for ``half_product``, but that k is not sliced.
    """
    batch, m, n = out.shape
    k = min(A.shape[2], B.shape[1])
    turned = out.stride(1) == 1 and out.stride(2) != 1
    target, addend = (out.mT, None if C is None else C.mT) if turned else (out, C)
    read = target if addend is None else addend
    a_t, b_t = not is_row_major(A), not is_row_major(B)
    tiles = batch * tile_count(m, n, tiling.bm, tiling.bn, gram=False)
    launch(
        _batch_kernel,
        tiles if programs is None else min(tiles, programs),
        (read, target),
        (
            batch,
            m,
            n,
            k,
            A.stride(0),
            B.stride(0),
            *read.stride(),
            *target.stride(),
            tiling.group,
        ),
        (alpha, beta),
        {
            "PERSISTENT": programs is not None,
            **constants(
                read, target, tiling, adds=addend is not None, turned=turned, a_t=a_t, b_t=b_t
            ),
        },
        num_warps=tiling.warps,
        registers=registers_of(tiling),
        descriptors=(
            described_batch(A, a_t, tiling.bm, tiling.bk),
            described_batch(B, b_t, tiling.bk, tiling.bn),
        ),
    )
    written(out)


def aligned(x: torch.Tensor) -> torch.Tensor:
    """A batch as ``half_batch`` reads it: x, or a copy of it that is larger by zeros.

    x has one contiguous extent. Matrices that follow each other evenly are copied by one launch;
    of one that serves all of the batch there is one copy.
    """
    return _aligned(x) if is_row_major(x) else _aligned(x.mT).mT


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """That of a batch whose matrices have contiguous rows."""
    (batch, rows, cols), (step, pitch, _) = x.shape, x.stride()
    if x.data_ptr() % 16 == step % _ALIGNED == 0 and (pitch % _ALIGNED == 0 or rows == 1):
        return x
    wide = ceil_div(cols, _ALIGNED) * _ALIGNED
    if step == 0:
        return stage(x[0], rows=rows, cols=wide, dtype=x.dtype).expand(batch, rows, wide)
    if step == rows * pitch:
        flat = x.as_strided((batch * rows, cols), (pitch, 1))
        made = stage(flat, rows=batch * rows, cols=wide, dtype=x.dtype)
        return made.view(batch, rows, wide)
    not_repeatable()
    made = x.new_zeros(batch, rows, wide)
    made[..., :cols] = x
    return made
