"""What ``kernels/continuous_product.py`` does with a tile that its sums do not vouch for (Gluon).

A function of its own, as ``kernels/tandem_settle.py`` explains.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mma_v2

from autogemm.kernels.checks import LEAST_SHARE, any_of, stretches
from autogemm.kernels.continuous_steps import (
    UNDERFLOW,
    fetch,
    needed,
    scale_of_each,
    terms_in,
)
from autogemm.kernels.warpgroups import (
    arrive,
    barrier,
    barriers_of,
    by_tma,
    forget,
    weighing,
    write_again,
)


@gluon.jit
def _any_light(
    a_terms, b_terms, a_scales, b_scales, i0, j0, m, n, a_rows, b_rows, a_base, b_base, first,
    blocks, chunk_blocks, certified, TERMS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """1 where the products of the larger terms weigh too little for an element, else 0."""
    L: gl.constexpr = weighing(W)
    EACH: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    LS: gl.constexpr = by_tma(BK, 16, 3)
    BYTES: gl.constexpr = 2 * BK * TERMS * (BM + BN)
    a_s = gl.allocate_shared_memory(gl.float16, [1, TERMS, BM, BK], LS)
    b_s = gl.allocate_shared_memory(gl.float16, [1, TERMS, BN, BK], LS)
    bars = barriers_of(1)
    fence_async_shared()
    i = gl.arange(0, BM, layout=EACH)
    j = gl.arange(0, BN, layout=EACH)
    chunks = (blocks + chunk_blocks - 1) // chunk_blocks
    a_most, a_odd = stretches(a_scales, a_rows, m, i0, chunks, BM, W)
    b_most, b_odd = stretches(b_scales, b_rows, n, j0, chunks, BN, W)
    need, _ = needed(a_most, a_odd, b_most, b_odd, certified, L)
    a_unit = gl.convert_layout(gl.where(a_most > 0, a_most, 1.0), EACH)
    b_unit = gl.convert_layout(gl.where(b_most > 0, b_most, 1.0), EACH)
    weight = gl.zeros([BM, BN], gl.float32, L)
    for block in range(first * 0, blocks):
        barrier()
        fetch(
            a_terms, b_terms, a_s, b_s, bars, a_base + i0, b_base + j0, (first + block) * BK,
            block, True, BYTES, 1,
        )  # fmt: skip
        chunk = (block // chunk_blocks).to(gl.int64)
        fa = gl.abs(scale_of_each(a_scales + (chunk * a_rows + i0), i, m - i0)) / a_unit
        fb = gl.abs(scale_of_each(b_scales + (chunk * b_rows + j0), j, n - j0)) / b_unit
        arrive(bars, block, 1)
        x = terms_in(a_s, block, TERMS, BM, BK, 1).index(0)
        x = x.load(gl.DotOperandLayout(0, L, 2))
        y = terms_in(b_s, block, TERMS, BN, BK, 1).index(0).permute((1, 0))
        y = y.load(gl.DotOperandLayout(1, L, 2))
        part = mma_v2(gl.abs(x), gl.abs(y), gl.zeros([BM, BN], gl.float32, L))
        # In units of the largest scales: nothing overflows, and underflow only takes away.
        fa = gl.convert_layout(fa, gl.SliceLayout(1, L))[:, None]
        fb = gl.convert_layout(fb, gl.SliceLayout(0, L))[None, :]
        # Not so small that a sum vanishes: 0 proves that all products are; hi is 0 for zeros alone.
        weight += part * gl.maximum(fa * fb, LEAST_SHARE)
    forget(bars, 1)
    # What underflows to 2^-24 weighs too much, by 2^-9 a product at most. Where scales are
    # so small, the sums themselves may have underflowed, whatever they weigh.
    light = (weight < certified + blocks * (BK * 0.00390625)) | (need <= UNDERFLOW)
    # A sum of nothing but zeros is exact.
    return any_of(light & (weight != 0) & (need > 0))


@gluon.jit(noinline=True)
def settle(
    a_terms, b_terms, a, b, a_scales, b_scales, c, out, wrong, i0, j0, m, n, k, a_rows, b_rows,
    a_base, b_base, first, blocks, chunk_blocks, a_row, a_k, b_row, b_k, c_row, c_col, out_row,
    out_col, alpha, beta, certified, HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr,
    TERMS: gl.constexpr, GRAM: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """Compute a tile again and write it, unless all its elements weigh enough.

    It is ``wrong`` already, or doubtful. Returned is whether it was computed.
    """
    barrier()  # as in ``tandem_settle``
    if wrong == 0:
        wrong = _any_light(
            a_terms, b_terms, a_scales, b_scales, i0, j0, m, n, a_rows, b_rows, a_base, b_base,
            first, blocks, chunk_blocks, certified, TERMS, BM, BN, BK, W,
        )  # fmt: skip
    if wrong > 0:
        write_again(
            a, b, c, out, i0, j0, m, n, first * BK, gl.minimum((first + blocks) * BK, k),
            chunk_blocks * BK // 2, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha,
            beta, HAS_C, ROWS, OUT_T, GRAM, BM, BN, W,
        )  # fmt: skip
    return wrong
