"""α·A·B + β·C in one launch where both operands are large: they stream side by side (Gluon).

Blocks of k of both arrive as float32 by the tensor memory accelerator. A thread splits the elements
of A that its tensor core multiplies, in registers, as ``kernels/streamed_product.py`` does, and its
share of B's, which all of them read from shared memory, while the block before is multiplied
(``kernels/tandem_steps.py``). Scales, promotions and the guard are those of
``kernels/fused_product.py``, except that one row or column that alone is spoilt is computed by
itself (``kernels/lines.py``). ``docs/accuracy.md`` derives the bound.
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

from autogemm.kernels.checks import CERTIFIED, any_of, least_of_rows, line_of, look_over, within
from autogemm.kernels.epilogue import rows_of
from autogemm.kernels.launch import ceil_div, launch
from autogemm.kernels.raster import is_gram, tile_count
from autogemm.kernels.reduce import finish
from autogemm.kernels.split_product import Tiling
from autogemm.kernels.tandem_settle import settle
from autogemm.kernels.tandem_steps import (
    BLOCK,
    blocks,
    fetch,
    fetch_pair,
    put_terms,
    split_meanwhile,
    start_products,
    weigh,
)
from autogemm.kernels.warpgroups import (
    barrier,
    barriers_of,
    by_tma,
    described_tiles,
    in_fours,
    in_registers,
    in_shared,
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


@gluon.jit(
    do_not_specialize=[
        "m", "n", "k", "a_row", "a_k", "b_row", "b_k", "c_row", "c_col", "out_row", "out_col",
        "slice_k", "chunk_pairs", "group", "alpha", "beta", "gain",
    ]
)  # fmt: skip
def _tandem_kernel(
    a_tiles, b_tiles, a, b, c, out, m, n, k, a_row, a_k, b_row, b_k, c_row, c_col, out_row,
    out_col, slice_k, chunk_pairs, group, alpha, beta, gain,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, A_T: gl.constexpr, B_T: gl.constexpr,
    OUT_T: gl.constexpr, TERMS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, GUARD: gl.constexpr, GRAM: gl.constexpr, SHARED: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    BK: gl.constexpr = BLOCK
    PAIR: gl.constexpr = 2 * BK
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, BN, 16])
    LA: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    LB: gl.constexpr = in_registers(0 if B_T else 1, BK, BN, W)
    down = (m + BM - 1) // BM
    if GRAM:
        tiles = down * (down + 1) // 2
    else:
        tiles = down * ((n + BN - 1) // BN)
    i0, j0 = origin(gl.program_id(0) % tiles, m, n, group, BM, BN, GRAM)
    slice_ = gl.program_id(0) // tiles
    first = slice_ * slice_k
    length = gl.minimum(slice_k, k - first)
    pairs = (length + PAIR - 1) // PAIR  # of blocks; behind k lie zeros

    A_SHAPE: gl.constexpr = [STAGES, BK, BM] if A_T else [STAGES, BM, BK]
    B_SHAPE: gl.constexpr = [STAGES, BN, BK] if B_T else [STAGES, BK, BN]
    H_SHAPE: gl.constexpr = [2, BK, BN]
    SA: gl.constexpr = by_tma(BM if A_T else BK, 32)
    SB: gl.constexpr = by_tma(BK if B_T else BN, 32)
    SH: gl.constexpr = in_shared(0 if B_T else 1, BK, BN)
    a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
    b_s = gl.allocate_shared_memory(gl.float32, B_SHAPE, SB)
    odd_a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
    odd_b_s = gl.allocate_shared_memory(gl.float32, B_SHAPE, SB)
    b_hi = gl.allocate_shared_memory(gl.float16, H_SHAPE, SH)
    odd_b_hi = gl.allocate_shared_memory(gl.float16, H_SHAPE, SH)
    if TERMS == 2:
        b_lo = gl.allocate_shared_memory(gl.float16, H_SHAPE, SH)
        odd_b_lo = gl.allocate_shared_memory(gl.float16, H_SHAPE, SH)
    else:
        b_lo = b_hi
        odd_b_lo = odd_b_hi
    a_bars = barriers_of(STAGES)
    b_bars = barriers_of(STAGES)
    odd_a_bars = barriers_of(STAGES)
    odd_b_bars = barriers_of(STAGES)
    fence_async_shared()
    barrier()
    even = (a_s, b_s, a_bars, b_bars, b_hi, b_lo)
    odd = (odd_a_s, odd_b_s, odd_a_bars, odd_b_bars, odd_b_hi, odd_b_lo)

    zero = first * 0
    used = zero  # pairs that were split, in all attempts
    for s in gl.static_range(STAGES):
        fetch_pair(
            a_tiles, b_tiles, even, odd, i0, j0, first + s * PAIR, used + s, s < pairs, A_T, B_T,
            BM, BN, STAGES,
        )  # fmt: skip
    x, y = blocks(even, used, A_T, B_T, BM, STAGES, LA, LB, W)
    a_down = scale_of(largest(x, 1))
    b_down = scale_of(largest(y, 0))
    doubt = gl.zeros([BM], gl.float32, gl.SliceLayout(1, MMA))  # 1 for rows of a tile
    doubtful = zero
    if GUARD:
        weight = weigh(x, y, a_down, b_down, odd_b_hi.index(0), A_T, BM, BN, MMA)
        least = least_of_rows(weight, m - i0, n - j0, BM, BN, MMA)
        doubt = gl.where(least < CERTIFIED + 1.0, 1.0, 0.0)
    total = gl.zeros([BM, BN], gl.float32, MMA)
    # Whether a row or a column that is bad is computed by itself.
    LINES: gl.constexpr = GUARD and not SHARED and TERMS == 2
    attempts = zero
    places = zero
    line = zero - 1
    while (line == -1) & (attempts < 2):
        if attempts > 0:  # an element outgrew fp16: by the largest ones none does
            doubt += 1.0
            a_most = gl.zeros([BM], gl.float32, gl.SliceLayout(1, LA))
            b_most = gl.zeros([BN], gl.float32, gl.SliceLayout(0, LB))
            for pair in range(zero, pairs):
                barrier()
                fetch_pair(
                    a_tiles, b_tiles, even, odd, i0, j0, first + pair * PAIR, used, True, A_T,
                    B_T, BM, BN, STAGES,
                )  # fmt: skip
                x, y = blocks(even, used, A_T, B_T, BM, STAGES, LA, LB, W)
                a_most = gl.maximum(a_most, largest(x, 1))
                b_most = gl.maximum(b_most, largest(y, 0))
                x, y = blocks(odd, used, A_T, B_T, BM, STAGES, LA, LB, W)
                a_most = gl.maximum(a_most, largest(x, 1))
                b_most = gl.maximum(b_most, largest(y, 0))
                used += 1
            a_down = scale_of(a_most)
            b_down = scale_of(b_most)
            barrier()
            for s in gl.static_range(STAGES):
                fetch_pair(
                    a_tiles, b_tiles, even, odd, i0, j0, first + s * PAIR, used + s, s < pairs,
                    A_T, B_T, BM, BN, STAGES,
                )  # fmt: skip
            x, y = blocks(even, used, A_T, B_T, BM, STAGES, LA, LB, W)
        total = gl.zeros([BM, BN], gl.float32, MMA)
        hi, lo = terms_of(x, a_down[:, None])
        odd_hi, odd_lo = hi, lo
        put_terms(y, b_down, even, used & 1, A_T, BN, TERMS)
        fence_async_shared()
        barrier()
        for start in range(zero, pairs, chunk_pairs):
            stop = gl.minimum(start + chunk_pairs, pairs)
            acc = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, MMA))
            for pair in range(start, stop):
                # What comes goes where the block lay that is multiplied: its terms are elsewhere.
                mine = used & 1
                ahead = pair + STAGES
                at = first + ahead * PAIR
                acc = start_products(hi, even, mine, acc, pair > start, TERMS)
                fetch(
                    a_tiles, b_tiles, even, i0, j0, at, used + STAGES, ahead < pairs, A_T, B_T,
                    BM, BN, STAGES,
                )  # fmt: skip
                acc, odd_hi, odd_lo = split_meanwhile(
                    hi, lo, even, mine, acc, odd_hi, odd_lo, odd, used, mine, a_down, b_down, A_T,
                    B_T, BM, BN, STAGES, LA, LB, W, TERMS,
                )  # fmt: skip
                acc = start_products(odd_hi, odd, mine, acc, True, TERMS)
                fetch(
                    a_tiles, b_tiles, odd, i0, j0, at + BK, used + STAGES, ahead < pairs, A_T,
                    B_T, BM, BN, STAGES,
                )  # fmt: skip
                used += 1
                coming = used - gl.where(pair + 1 < pairs, 0, 1)
                acc, hi, lo = split_meanwhile(
                    odd_hi, odd_lo, odd, mine, acc, hi, lo, even, coming, used & 1, a_down, b_down,
                    A_T, B_T, BM, BN, STAGES, LA, LB, W, TERMS,
                )  # fmt: skip
            part, odd_hi, odd_lo = warpgroup_mma_wait(0, deps=[acc, odd_hi, odd_lo])
            total += part * (1.0 + gain * (2 * (stop - start)))
        barrier()
        # An element beyond fp16 is inf in hi, so that every sum it enters is inf or NaN.
        places, doubtful = look_over(total, doubt, m - i0, n - j0, False, BM, BN, MMA)
        line = line_of(places, LINES, BM)
        attempts += 1
    if GUARD:  # noqa: SIM102 - together they would not be decided when compiled
        if doubtful > 0:
            light = gl.abs(total) < CERTIFIED
            doubtful = any_of(light & within(m - i0, n - j0, BM, BN, MMA))
    # The smaller factor first: the other way round could overflow where the result does not.
    a_up = gl.convert_layout(inverse(a_down), gl.SliceLayout(1, MMA))[:, None]
    b_up = gl.convert_layout(inverse(b_down), gl.SliceLayout(0, MMA))[None, :]
    total = total * gl.minimum(a_up, b_up) * gl.maximum(a_up, b_up)
    m, n = in_fours(m, n, ROWS, OUT_T)
    out += slice_.to(gl.int64) * m * n  # one matrix a slice
    if not SHARED:
        store(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            OUT_T, GRAM, BM, BN, W,
        )  # fmt: skip
    wrong = zero
    if GUARD:  # noqa: SIM102 - together they would not be decided when compiled
        if (doubtful > 0) | (places != 0):
            wrong = settle(
                a_tiles, b_tiles, a, b, reach_of(a_down), reach_of(b_down), c, out, doubtful,
                attempts, places, i0, j0, m, n, first, first + length, chunk_pairs * BK,
                a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
                A_T, B_T, OUT_T, GRAM, BM, BN, STAGES, LINES, W,
            )  # fmt: skip
    if SHARED:  # noqa: SIM102
        if wrong == 0:  # what was added was kept until then: the result takes its place
            store(
                total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
                ROWS, OUT_T, GRAM, BM, BN, W,
            )  # fmt: skip


def tandem_product(
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
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, as ``fused_product`` does.

    ``tiling.bk`` is 32, ``tiling.bm`` 16 a warp; ``tiling.stages`` pairs of blocks of k are on
    their way at a time. Slices and chunks are of whole pairs.
    """
    (m, k), n = A.shape, B.shape[1]
    pair = 2 * tiling.bk
    slice_k = ceil_div(ceil_div(k, slices), pair) * pair
    slices = ceil_div(k, slice_k)
    a_t, b_t = is_turned(A), is_turned(B)
    result = written_to(slices, C, out)
    gram = tiling.bm == tiling.bn and is_gram(A, B)
    b_k, b_row = B.stride()
    launch(
        _tandem_kernel,
        tile_count(m, n, tiling.bm, tiling.bn, gram=gram) * slices,
        (A, B, result.read, result.target),
        (
            m, n, k, *A.stride(), b_row, b_k, *result.places, slice_k, chunk // pair,
            tiling.group,
        ),
        (alpha, beta, gain) if slices == 1 else (1.0, 0.0, gain),
        {
            "HAS_C": result.adds,
            "ROWS": min(rows_of(result.read), rows_of(result.target)),
            "A_T": a_t,
            "B_T": b_t,
            "OUT_T": result.out_t,
            "TERMS": terms,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "STAGES": tiling.stages,
            "GUARD": guard,
            "GRAM": gram,
            "SHARED": result.is_shared,
            "W": tiling.warps,
        },
        num_warps=tiling.warps,
        descriptors=(
            described_tiles(A, a_t, tiling.bm, tiling.bk),
            described_tiles(B, b_t, tiling.bk, tiling.bn),
        ),
    )  # fmt: skip
    finish(alpha, result.target, slices, beta, result.added, result.lying)
