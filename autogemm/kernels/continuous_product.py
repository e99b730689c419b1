"""``split_product`` whose pipeline runs on where a chunk ends, for Hopper's warpgroups (Gluon).

Triton's loop over a chunk fills its pipeline anew for every chunk. Here the tensor memory
accelerator brings blocks of k without a pause: while a chunk's sums are scaled and added to the
total, those of the next are on their way, as are its scales. What is computed, and the check, are
``split_product``'s.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from autogemm.kernels.checks import any_of, stretches
from autogemm.kernels.continuous_settle import settle
from autogemm.kernels.continuous_steps import (
    TOTAL_SCALE,
    fetch,
    needed,
    scale_of_each,
    sum_of_chunk,
)
from autogemm.kernels.epilogue import rows_of
from autogemm.kernels.launch import ceil_div, launch
from autogemm.kernels.raster import is_gram, tile_count
from autogemm.kernels.reduce import finish
from autogemm.kernels.split import Split, count_of
from autogemm.kernels.split_product import CERTIFIED, Tiling
from autogemm.kernels.warpgroups import (
    barrier,
    barriers_of,
    by_tma,
    described_terms,
    in_fours,
    origin,
    store,
    written_to,
)

_OVERFLOWS = gl.constexpr(2.0**64)
_FEW_WARPS = 4
"""Programs of so many gain 1 to 3 % where one chunk is all and flags are counted ahead; with tiles
of 128 x 128 nothing was gained (H200)."""


@gluon.jit
def _number_of_flags(a_scales, b_scales):
    """Of how many operands, by their scales, a stretch is flagged."""
    return gl.max((a_scales < 0).to(gl.int32), 0) + gl.max((b_scales < 0).to(gl.int32), 0)


@gluon.jit(
    do_not_specialize=[
        "m", "n", "k", "a_rows", "b_rows", "a_step", "a_row", "a_k", "b_step", "b_row", "b_k",
        "c_step", "c_row", "c_col", "out_step", "out_row", "out_col", "slice_blocks",
        "chunk_blocks", "group", "alpha", "beta", "gain", "certified",
    ]
)  # fmt: skip
def _continuous_kernel(
    a_terms, b_terms, a, b, a_scales, c, out, m, n, k, a_rows, b_rows, a_step, a_row, a_k, b_step,
    b_row, b_k, c_step, c_row, c_col, out_step, out_row, out_col, slice_blocks, chunk_blocks,
    group, alpha, beta, gain, certified,
    BATCHED: gl.constexpr, HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr,
    TERMS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, GUARD: gl.constexpr, GRAM: gl.constexpr, SHARED: gl.constexpr,
    ONE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """ONE: a slice is a chunk; the registers of a total are free, flags are counted first."""
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, BN, 16])
    EACH: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    BYTES: gl.constexpr = 2 * BK * TERMS * (BM + BN)
    if GRAM:
        down = (m + BM - 1) // BM
        tiles = down * (down + 1) // 2
    else:
        tiles = ((m + BM - 1) // BM) * ((n + BN - 1) // BN)
    i0, j0 = origin(gl.program_id(0) % tiles, m, n, group, BM, BN, GRAM)
    slice_ = gl.program_id(0) // tiles
    a_base = slice_ * 0  # where the matrix begins among all rows of terms
    b_base = slice_ * 0
    if BATCHED:  # in which k is whole: a program's number says which product
        product = slice_.to(gl.int64)
        a_base = gl.where(a_step == 0, 0, slice_ * m)  # one that all share is there once
        b_base = gl.where(b_step == 0, 0, slice_ * n)
        slice_ = a_base * 0
        if ROWS == 2:
            c_step = c_step // 4 * 4
            out_step = out_step // 4 * 4
        a += product * a_step
        b += product * b_step
        c += product * c_step
        out += product * out_step
    first = slice_ * slice_blocks  # where a chunk starts
    all_blocks = (k + BK - 1) // BK
    blocks = gl.minimum(slice_blocks, all_blocks - first)
    chunks = (blocks + chunk_blocks - 1) // chunk_blocks
    b_scales = a_scales + ((all_blocks + chunk_blocks - 1) // chunk_blocks).to(gl.int64) * a_rows
    a_scales += (first // chunk_blocks).to(gl.int64) * a_rows + a_base
    b_scales += (first // chunk_blocks).to(gl.int64) * b_rows + b_base

    LS: gl.constexpr = by_tma(BK, 16, 3)
    a_s = gl.allocate_shared_memory(gl.float16, [STAGES, TERMS, BM, BK], LS)
    b_s = gl.allocate_shared_memory(gl.float16, [STAGES, TERMS, BN, BK], LS)
    bars = barriers_of(STAGES)
    fence_async_shared()
    barrier()
    for s in gl.static_range(STAGES - 1):
        fetch(
            a_terms, b_terms, a_s, b_s, bars, a_base + i0, b_base + j0, (first + s) * BK, s,
            s < blocks, BYTES, STAGES,
        )  # fmt: skip
    zero = first * 0
    flagged = zero
    i = gl.arange(0, BM, layout=EACH)
    j = gl.arange(0, BN, layout=EACH)
    a_scale = a_scales + i0
    b_scale = b_scales + j0
    a_least = gl.zeros([BM], gl.float32, EACH)
    b_least = gl.zeros([BN], gl.float32, EACH)
    if ONE:
        a_least = scale_of_each(a_scale, i, m - i0)  # on their way meanwhile
        b_least = scale_of_each(b_scale, j, n - j0)
        if GUARD:
            flagged = _number_of_flags(a_least, b_least)  # while the first block is awaited
        total = sum_of_chunk(
            a_terms, b_terms, a_s, b_s, bars, a_least, b_least, a_base + i0, b_base + j0, first,
            zero, blocks, blocks, gain, BYTES, TERMS, BM, BN, BK, STAGES, W,
        )  # fmt: skip
    else:
        total = gl.zeros([BM, BN], gl.float32, MMA)
        for start in range(zero, blocks, chunk_blocks):
            fa = scale_of_each(a_scale, i, m - i0)
            fb = scale_of_each(b_scale, j, n - j0)
            total += sum_of_chunk(
                a_terms, b_terms, a_s, b_s, bars, fa, fb, a_base + i0, b_base + j0, first, start,
                gl.minimum(start + chunk_blocks, blocks), blocks, gain, BYTES, TERMS, BM, BN, BK,
                STAGES, W,
            )  # fmt: skip
            if GUARD:
                a_least = gl.minimum(a_least, fa)
                b_least = gl.minimum(b_least, fb)
            a_scale += a_rows
            b_scale += b_rows
    barrier()  # the result passes through the memory of blocks
    total *= TOTAL_SCALE
    doubtful = zero
    wrong = zero
    if GUARD:
        if not ONE:
            flagged = _number_of_flags(a_least, b_least)
        if flagged > 0:
            a_most, a_odd = stretches(a_scales, a_rows, m, i0, chunks, BM, W)
            b_most, b_odd = stretches(b_scales, b_rows, n, j0, chunks, BN, W)
            need, both = needed(a_most, a_odd, b_most, b_odd, certified, MMA)
            size = gl.abs(total)
            beyond = (size == float("inf")) & (need > _OVERFLOWS)  # by what was lost, maybe
            doubtful = any_of((size < need) | beyond)
            # NaN: two infinities met, for which lo·lo would have been needed, or sums that what
            # was lost made infinite, or it is one.
            wrong = any_of((total != total) & (both | (need > _OVERFLOWS)))
    m, n = in_fours(m, n, ROWS, OUT_T)
    if not BATCHED:
        out += slice_.to(gl.int64) * m * n  # one matrix a slice
    if not SHARED:
        store(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            OUT_T, GRAM, BM, BN, W,
        )  # fmt: skip
    if GUARD:  # noqa: SIM102 - together they would not be decided when compiled
        if (doubtful > 0) | (wrong > 0):
            wrong = settle(
                a_terms, b_terms, a, b, a_scales, b_scales, c, out, wrong, i0, j0, m, n, k, a_rows,
                b_rows, a_base, b_base, first, blocks, chunk_blocks, a_row, a_k, b_row, b_k, c_row,
                c_col, out_row, out_col, alpha, beta, certified, HAS_C, ROWS, OUT_T, TERMS, GRAM,
                BM, BN, BK, W,
            )  # fmt: skip
    if SHARED:  # noqa: SIM102
        if wrong == 0:  # what was added was kept until then: the result takes its place
            store(
                total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
                ROWS, OUT_T, GRAM, BM, BN, W,
            )  # fmt: skip


def continuous_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    split: Split,
    *,
    terms: int,
    chunk: int,
    slices: int,
    tiling: Tiling,
    gain: float,
    guard: bool = True,
    registers: int | None = None,
) -> None:
    """As ``split_product``. ``registers`` limits those of a thread where a slice is one chunk.

    With few warps no total is then kept beside the chunk's sums: a kernel of its own, the sums
    are the same.

    Or of batches (batch, m, k), (batch, k, n) and (batch, m, n), of which A, B and C may be
    expanded; ``slices`` is 1 then.
    """
    m, k, n = *A.shape[-2:], B.shape[-1]
    batch = A.shape[0] if A.ndim == 3 else 1
    slice_k = ceil_div(ceil_div(k, slices), chunk) * chunk
    slices = ceil_div(k, slice_k)
    one = slice_k <= chunk and tiling.warps <= _FEW_WARPS
    result = written_to(slices, C, out)
    a_rows, b_rows = count_of(A) * m, count_of(B) * n
    of_b = split.terms[terms * a_rows :]
    a_step, a_row, a_k = (0, *A.stride())[-3:]
    b_step, b_k, b_row = (0, *B.stride())[-3:]
    c_step, out_step = (x.stride(0) if x.ndim == 3 else 0 for x in (result.read, result.target))
    c_row, c_col, out_row, out_col = result.places
    gram = A.ndim == 2 and is_gram(A, B) and tiling.bm == tiling.bn
    launch(
        _continuous_kernel,
        tile_count(m, n, tiling.bm, tiling.bn, gram=gram) * slices * batch,
        (A, B, split.scales, result.read, result.target),
        (
            m, n, k, a_rows, b_rows, a_step, a_row, a_k, b_step, b_row, b_k, c_step, c_row, c_col,
            out_step, out_row, out_col, slice_k // tiling.bk, chunk // tiling.bk, tiling.group,
        ),
        (*((alpha, beta) if slices == 1 else (1.0, 0.0)), gain, CERTIFIED[terms]),
        {
            "BATCHED": A.ndim == 3,
            "HAS_C": result.adds,
            "ROWS": min(rows_of(result.read), rows_of(result.target)),
            "OUT_T": result.out_t,
            "TERMS": terms,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "GUARD": guard,
            "GRAM": gram,
            "SHARED": result.is_shared,
            "ONE": one,
            "W": tiling.warps,
        },
        num_warps=tiling.warps,
        registers=registers if one else None,
        descriptors=(
            described_terms(split.terms, terms, a_rows, k, (tiling.bm, tiling.bk)),
            described_terms(of_b, terms, b_rows, k, (tiling.bn, tiling.bk)),
        ),
    )  # fmt: skip
    finish(alpha, result.target, slices, beta, result.added, result.lying)
