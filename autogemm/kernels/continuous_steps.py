"""The steps of ``kernels/continuous_product.py``: terms brought, and a chunk summed (Gluon)."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from autogemm.kernels.warpgroups import arrive, barrier, by_tma

TOTAL_SCALE = gl.constexpr(2.0**14)
UNDERFLOW = gl.constexpr(2.0**-96)


@gluon.jit
def fetch(
    a, b, a_s, b_s, bars, i0, j0, at, number, wanted, BYTES: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Start to bring the block at ``at`` of k to where block ``number`` of all goes."""
    stage = number % STAGES
    bar = bars.index(stage)
    mbarrier.expect(bar, BYTES, pred=wanted)
    tma.async_copy_global_to_shared(a, [0, i0, at], bar, a_s.index(stage), pred=wanted)
    tma.async_copy_global_to_shared(b, [0, j0, at], bar, b_s.index(stage), pred=wanted)


@gluon.jit
def terms_in(
    x_s, number, TERMS: gl.constexpr, ROWS: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """The terms of an operand's block as matrices, which its copy was one array of."""
    block = x_s.index(number % STAGES)
    return block._reinterpret(gl.float16, [TERMS, ROWS, BK], by_tma(BK, 16))


@gluon.jit
def _add_products(a, b, high, cross, use_acc, TERMS: gl.constexpr):
    """Start adding a block's products, and wait for those of the block before it."""
    a_hi = a.index(0)
    b_hi = b.index(0).permute((1, 0))
    high = warpgroup_mma(a_hi, b_hi, high, use_acc=use_acc, is_async=True)
    if TERMS == 2:
        b_lo = b.index(1).permute((1, 0))
        cross = warpgroup_mma(a_hi, b_lo, cross, use_acc=use_acc, is_async=True)
        cross = warpgroup_mma(a.index(1), b_hi, cross, is_async=True)
        high, cross = warpgroup_mma_wait(3, deps=[high, cross])
        cross = warpgroup_mma_init(cross)
    else:
        high = warpgroup_mma_wait(1, deps=[high])
    return warpgroup_mma_init(high), cross


@gluon.jit
def _sum_of_both(high, cross, TERMS: gl.constexpr):
    """hi·hi + 2⁻¹¹(hi·lo + lo·hi), once all products are there."""
    if TERMS == 2:
        high, cross = warpgroup_mma_wait(0, deps=[high, cross])
        total = high + cross * 0.00048828125
    else:
        total = warpgroup_mma_wait(0, deps=[high])
    return total


@gluon.jit
def sum_of_chunk(
    a_terms, b_terms, a_s, b_s, bars, fa, fb, i0, j0, first, start, stop, blocks, gain,
    BYTES: gl.constexpr, TERMS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """2⁻¹⁴ of a chunk's products, over blocks of k in [start, stop); fa, fb: its scales."""
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, BN, 16])
    high = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, MMA))
    cross = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, MMA))
    for block in range(start, stop):
        arrive(bars, block, STAGES)
        x = terms_in(a_s, block, TERMS, BM, BK, STAGES)
        y = terms_in(b_s, block, TERMS, BN, BK, STAGES)
        high, cross = _add_products(x, y, high, cross, block > start, TERMS)
        barrier()
        ahead = block + STAGES - 1  # goes where the block before this one lay
        fetch(
            a_terms, b_terms, a_s, b_s, bars, i0, j0, (first + ahead) * BK, ahead, ahead < blocks,
            BYTES, STAGES,
        )  # fmt: skip
    part = _sum_of_both(high, cross, TERMS)
    fa = gl.abs(fa) * (1.0 + gain * (stop - start))
    fa = gl.convert_layout(fa, gl.SliceLayout(1, MMA))[:, None]
    fb = gl.convert_layout(gl.abs(fb), gl.SliceLayout(0, MMA))[None, :]
    return (part * fa) * fb


@gluon.jit
def needed(a_most, a_least, b_most, b_least, certified, L: gl.constexpr):
    """How large a total must be to certify an element: 0 where no stretch of it is flagged."""
    a_most = gl.convert_layout(a_most, gl.SliceLayout(1, L))[:, None]
    a_least = gl.convert_layout(a_least, gl.SliceLayout(1, L))[:, None]
    b_most = gl.convert_layout(b_most, gl.SliceLayout(0, L))[None, :]
    b_least = gl.convert_layout(b_least, gl.SliceLayout(0, L))[None, :]
    need = (a_most * (certified * TOTAL_SCALE)) * b_most
    # The floor holds where the product underflows too. A row or column of zeros needs nothing.
    need = gl.where((a_most > 0) & (b_most > 0), gl.maximum(need, UNDERFLOW), 0.0)
    need = gl.where((a_least < 0) | (b_least < 0), need, 0.0)
    return need, (a_least < 0) & (b_least < 0)


@gluon.jit
def scale_of_each(scales, each, reach):
    """A chunk's scales, an element a thread; a sign is a flag."""
    return gl.load(scales + each, mask=each < reach, other=0.0)
