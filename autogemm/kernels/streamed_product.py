"""α·A·B + β·C where A is much larger than B: A streams through registers, B comes split (Gluon).

B's columns are split beforehand, a stretch of k at a time (``kernels/split.py``): it is small, and
every tile of rows reads it. A's blocks of k arrive in shared memory as float32; a thread splits
just the elements that its tensor core multiplies, in registers, while the block before them is
multiplied (``kernels/streamed_steps.py``). Scales of A, promotions and the guard are those of
``kernels/tandem_product.py``; ``docs/accuracy.md`` derives the bound.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from autogemm.kernels.checks import (
    CERTIFIED,
    FEW_CHUNKS,
    any_of,
    line_of,
    look_over,
    stretches,
    within,
)
from autogemm.kernels.epilogue import rows_of
from autogemm.kernels.launch import ceil_div, launch
from autogemm.kernels.reduce import finish
from autogemm.kernels.split import split_columns
from autogemm.kernels.split_product import Tiling
from autogemm.kernels.streamed_settle import GROWN, ROOM, settle
from autogemm.kernels.streamed_steps import (
    above_zero,
    add_products,
    fetch_pair,
    half_of_a,
    least_weight,
    scale_of_columns,
)
from autogemm.kernels.warpgroups import (
    arrive,
    barrier,
    barriers_of,
    by_tma,
    described_rows,
    described_tiles,
    in_fours,
    inverse,
    is_turned,
    largest,
    origin,
    reach_of,
    scale_of,
    store,
    terms_of,
    written_to,
)

_LARGEST = gl.constexpr(2.0**15)
"""Times its scale, what no element of a stretch of B reaches."""


@gluon.jit(
    do_not_specialize=[
        "m", "n", "k", "a_row", "a_k", "b_row", "b_k", "c_row", "c_col", "out_row", "out_col",
        "slice_k", "chunk_blocks", "group", "alpha", "beta", "gain",
    ]
)  # fmt: skip
def _streamed_kernel(
    a_tiles, b_tiles, a, b, scales, c, out, m, n, k, a_row, a_k, b_row, b_k, c_row, c_col, out_row,
    out_col, slice_k, chunk_blocks, group, alpha, beta, gain,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, A_T: gl.constexpr, OUT_T: gl.constexpr,
    TERMS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, GUARD: gl.constexpr, SHARED: gl.constexpr, AHEAD: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, BN, 16])
    LA: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    PAIR: gl.constexpr = 2 * BK
    BYTES: gl.constexpr = PAIR * (BM * 4 + TERMS * BN * 2)
    tiles = ((m + BM - 1) // BM) * ((n + BN - 1) // BN)
    i0, j0 = origin(gl.program_id(0) % tiles, m, n, group, BM, BN, False)
    slice_ = gl.program_id(0) // tiles
    first = slice_ * slice_k
    length = gl.minimum(slice_k, k - first)
    chunk_pairs = chunk_blocks // 2
    pairs = (length + PAIR - 1) // PAIR  # of blocks; behind k lie zeros
    scales += (first // (chunk_blocks * BK)).to(gl.int64) * n + j0

    A_SHAPE: gl.constexpr = [STAGES, PAIR, BM] if A_T else [STAGES, BM, PAIR]
    SA: gl.constexpr = by_tma(BM if A_T else PAIR, 32)
    SB: gl.constexpr = by_tma(PAIR, 16)
    a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
    b_hi = gl.allocate_shared_memory(gl.float16, [STAGES, BN, PAIR], SB)
    if TERMS == 2:
        b_lo = gl.allocate_shared_memory(gl.float16, [STAGES, BN, PAIR], SB)
    else:
        b_lo = b_hi
    bars = barriers_of(STAGES)
    fence_async_shared()
    barrier()

    zero = first * 0
    used = zero  # pairs that were multiplied, in all attempts
    for s in gl.static_range(STAGES - 1):
        fetch_pair(
            a_tiles, b_tiles, a_s, b_hi, b_lo, bars, i0, j0, n, first + s * PAIR, used + s,
            s < pairs, A_T, TERMS, BYTES, STAGES,
        )  # fmt: skip
    each = gl.arange(0, BN, layout=gl.BlockedLayout([1], [32], [W], [0]))
    first_unit = scale_of_columns(scales, each, n - j0)
    grown = zero
    if GUARD and AHEAD:
        chunks = (pairs + chunk_pairs - 1) // chunk_pairs
        highest, _ = stretches(scales, n, n - j0, zero, chunks, BN, W)
        highest = gl.convert_layout(highest, gl.BlockedLayout([1], [32], [W], [0]))
        grown = gl.max((highest > first_unit * ROOM).to(gl.int32), 0)
    arrive(bars, used, STAGES)
    x = half_of_a(a_s, used, 0, A_T, BK, STAGES, LA)
    a_down = scale_of(largest(x, 1))
    hi, lo = terms_of(x, a_down[:, None])
    doubt = gl.zeros([BM], gl.float32, gl.SliceLayout(1, MMA))  # 1 for rows of a tile
    doubtful = zero
    if GUARD:
        least = least_weight(hi, b_hi, used, m - i0, n - j0, STAGES, BM, BN, BK, W)
        doubt = gl.where(least < (CERTIFIED + 1.0) * ROOM, 1.0, 0.0)
        doubt = gl.convert_layout(doubt, gl.SliceLayout(1, MMA))
    total = gl.zeros([BM, BN], gl.float32, MMA)
    unit = first_unit
    # Whether a row or a column that is bad is computed by itself.
    LINES: gl.constexpr = GUARD and not SHARED and TERMS == 2
    attempts = zero
    places = zero
    line = zero - 1
    while (line == -1) & (attempts < 2):
        if attempts > 0:  # an element outgrew fp16: by the largest ones none does
            doubt += 1.0
            most = gl.zeros([BM], gl.float32, gl.SliceLayout(1, LA))
            for pair in range(zero, pairs):
                barrier()
                fetch_pair(
                    a_tiles, b_tiles, a_s, b_hi, b_lo, bars, i0, j0, n, first + pair * PAIR,
                    used, True, A_T, TERMS, BYTES, STAGES,
                )  # fmt: skip
                arrive(bars, used, STAGES)
                most = gl.maximum(most, largest(half_of_a(a_s, used, 0, A_T, BK, STAGES, LA), 1))
                most = gl.maximum(most, largest(half_of_a(a_s, used, 1, A_T, BK, STAGES, LA), 1))
                used += 1
            a_down = scale_of(most)
            barrier()
            for s in gl.static_range(STAGES - 1):
                fetch_pair(
                    a_tiles, b_tiles, a_s, b_hi, b_lo, bars, i0, j0, n, first + s * PAIR,
                    used + s, s < pairs, A_T, TERMS, BYTES, STAGES,
                )  # fmt: skip
            arrive(bars, used, STAGES)
            x = half_of_a(a_s, used, 0, A_T, BK, STAGES, LA)
            hi, lo = terms_of(x, a_down[:, None])
        total = gl.zeros([BM, BN], gl.float32, MMA)
        unit = first_unit
        scale = scales
        odd_hi, odd_lo = hi, lo
        for start in range(zero, pairs, chunk_pairs):
            stop = gl.minimum(start + chunk_pairs, pairs)
            of_chunk = scale_of_columns(scale, each, n - j0)  # on its way meanwhile
            acc = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, MMA))
            for pair in range(start, stop):
                # While a block is multiplied, terms of the next are computed, into the registers
                # of the last one. What comes next goes where the last pair lay.
                acc = add_products(
                    hi, lo, b_hi, b_lo, used, 0, acc, pair > start, BK, TERMS, STAGES
                )
                part, odd_hi, odd_lo = warpgroup_mma_wait(
                    3 if TERMS == 2 else 1, deps=[acc, odd_hi, odd_lo]
                )
                acc = warpgroup_mma_init(part)
                barrier()
                ahead = pair + STAGES - 1
                fetch_pair(
                    a_tiles, b_tiles, a_s, b_hi, b_lo, bars, i0, j0, n, first + ahead * PAIR,
                    used + STAGES - 1, ahead < pairs, A_T, TERMS, BYTES, STAGES,
                )  # fmt: skip
                x = half_of_a(a_s, used, 1, A_T, BK, STAGES, LA)
                odd_hi, odd_lo = terms_of(x, a_down[:, None])
                acc = add_products(
                    odd_hi, odd_lo, b_hi, b_lo, used, 1, acc, True, BK, TERMS, STAGES
                )
                part, hi, lo = warpgroup_mma_wait(3 if TERMS == 2 else 1, deps=[acc, hi, lo])
                acc = warpgroup_mma_init(part)
                coming = used + gl.where(pair + 1 < pairs, 1, 0)
                arrive(bars, coming, STAGES)
                x = half_of_a(a_s, coming, 0, A_T, BK, STAGES, LA)
                hi, lo = terms_of(x, a_down[:, None])
                used += 1
            part, odd_hi, odd_lo = warpgroup_mma_wait(0, deps=[acc, odd_hi, odd_lo])
            larger = gl.maximum(unit, of_chunk)
            down = inverse(above_zero(larger))
            weight_of_part = (of_chunk * down) * (1.0 + gain * (2 * (stop - start)))
            total = total * gl.convert_layout(unit * down, gl.SliceLayout(0, MMA))[None, :]
            total += part * gl.convert_layout(weight_of_part, gl.SliceLayout(0, MMA))[None, :]
            unit = larger
            scale += n
        barrier()
        # An element beyond fp16 is inf in hi, so that every sum it enters is inf or NaN.
        places, doubtful = look_over(total, doubt, m - i0, n - j0, True, BM, BN, MMA)
        line = line_of(places, LINES, BM)
        attempts += 1
    if GUARD:
        # What the first block certified was in units of its own.
        if not AHEAD:
            grown = gl.max((unit > first_unit * ROOM).to(gl.int32), 0)
        doubtful += GROWN * grown
        if doubtful > 0:
            light = gl.abs(total) < CERTIFIED
            doubtful *= any_of(within(m - i0, n - j0, BM, BN, MMA) & light)
    # The smaller factor first: the other way round could overflow where the result does not.
    a_up = gl.convert_layout(inverse(a_down), gl.SliceLayout(1, MMA))[:, None]
    b_up = gl.convert_layout(above_zero(unit), gl.SliceLayout(0, MMA))[None, :]
    total = total * gl.minimum(a_up, b_up) * gl.maximum(a_up, b_up)
    m, n = in_fours(m, n, ROWS, OUT_T)
    out += slice_.to(gl.int64) * m * n  # one matrix a slice
    if not SHARED:
        store(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            OUT_T, False, BM, BN, W,
        )  # fmt: skip
    wrong = zero
    if GUARD:  # noqa: SIM102 - together they would not be decided when compiled
        if (doubtful > 0) | (places != 0):
            wrong = settle(
                a, b, reach_of(a_down), gl.max(unit, 0) * _LARGEST, scales, c, out, doubtful,
                attempts, places, i0, j0, m, n, first, first + length, chunk_blocks * BK,
                a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
                A_T, OUT_T, BM, BN, BK, LINES, W,
            )  # fmt: skip
    if SHARED:  # noqa: SIM102 - together they would not be decided when compiled
        if wrong == 0:  # what was added was kept until then: the result takes its place
            store(
                total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
                ROWS, OUT_T, False, BM, BN, W,
            )  # fmt: skip


def streamed_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    terms: int,
    chunk: int,
    slices: int,
    tiling: Tiling,
    gain: float,
    guard: bool = True,
    registers: int | None = None,
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    All are float32. A has one contiguous extent, rows (columns) of it 16-byte aligned; B, C and
    ``out`` lie as they like. ``chunk`` elements of k are summed before a promotion and share a
    scale of B, ``slices`` parts of k, of whole chunks, are computed apart and added by a third
    launch. ``gain`` and ``guard`` are as in ``fused_product``.
    """
    (m, k), n = A.shape, B.shape[1]
    slice_k = ceil_div(ceil_div(k, slices), chunk) * chunk
    slices = ceil_div(k, slice_k)
    split = split_columns(B, terms=terms, chunk=chunk)
    a_t = is_turned(A)
    result = written_to(slices, C, out)
    b_k, b_row = B.stride()
    wide = 2 * tiling.bk
    rows, pitch = split.terms.shape
    launch(
        _streamed_kernel,
        ceil_div(m, tiling.bm) * ceil_div(n, tiling.bn) * slices,
        (A, B, split.scales, result.read, result.target),
        (
            m, n, k, *A.stride(), b_row, b_k, *result.places, slice_k, chunk // tiling.bk,
            tiling.group,
        ),
        (alpha, beta, gain) if slices == 1 else (1.0, 0.0, gain),
        {
            "HAS_C": result.adds,
            "ROWS": min(rows_of(result.read), rows_of(result.target)),
            "A_T": a_t,
            "OUT_T": result.out_t,
            "TERMS": terms,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "GUARD": guard,
            "SHARED": result.is_shared,
            "AHEAD": slice_k <= FEW_CHUNKS.value * chunk,
            "W": tiling.warps,
        },
        num_warps=tiling.warps,
        registers=registers,
        descriptors=(
            described_tiles(A, a_t, tiling.bm, wide),
            described_rows(split.terms, (rows, k), pitch, (tiling.bn, wide)),
        ),
    )  # fmt: skip
    finish(alpha, result.target, slices, beta, result.added, result.lying)
