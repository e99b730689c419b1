"""The steps of ``kernels/streamed_product.py``: pairs of blocks brought and multiplied (Gluon)."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    mma_v2,
    tma,
    warpgroup_mma,
)

from autogemm.kernels.checks import least_of_rows
from autogemm.kernels.warpgroups import bring


@gluon.jit
def fetch_pair(
    a, b, a_s, b_hi, b_lo, bars, i0, j0, n, at, number, wanted, A_T: gl.constexpr,
    TERMS: gl.constexpr, BYTES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start to bring the pair of blocks at ``at`` of k to where pair ``number`` of all goes."""
    stage = number % STAGES
    bar = bars.index(stage)
    mbarrier.expect(bar, BYTES, pred=wanted)
    bring(a, i0, at, bar, a_s.index(stage), wanted, A_T)
    tma.async_copy_global_to_shared(b, [j0, at], bar, b_hi.index(stage), pred=wanted)
    if TERMS == 2:
        tma.async_copy_global_to_shared(b, [n + j0, at], bar, b_lo.index(stage), pred=wanted)


@gluon.jit
def half_of_a(
    a_s, number, half: gl.constexpr, A_T: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    L: gl.constexpr,
):  # fmt: skip
    """One half of A's pair of blocks, float32, where the tensor cores will want its terms."""
    at = a_s.index(number % STAGES)
    if A_T:
        x = at.slice(half * BK, BK, dim=0).permute((1, 0)).load(L)
    else:
        x = at.slice(half * BK, BK, dim=1).load(L)
    return x


@gluon.jit
def half_of_b(b_s, number, half: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr):
    """One half of a term of B's pair of blocks, k by columns."""
    return b_s.index(number % STAGES).slice(half * BK, BK, dim=1).permute((1, 0))


@gluon.jit
def add_products(
    hi, lo, b_hi, b_lo, number, half: gl.constexpr, acc, use_acc, BK: gl.constexpr,
    TERMS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start adding the products of one half of a pair of blocks to ``acc``."""
    high = half_of_b(b_hi, number, half, BK, STAGES)
    if TERMS == 2:
        low = half_of_b(b_lo, number, half, BK, STAGES)
        acc = warpgroup_mma(hi, low, acc, use_acc=use_acc, is_async=True)
        acc = warpgroup_mma(lo, high, acc, is_async=True)
        acc = warpgroup_mma(hi, high, acc, is_async=True)
    else:
        acc = warpgroup_mma(hi, high, acc, use_acc=use_acc, is_async=True)
    return acc


@gluon.jit
def scale_of_columns(scales, j, reach):
    """B's scales for a stretch of k; their signs are flags, for which others have a use."""
    return gl.abs(gl.load(scales + j, mask=j < reach, other=0.0))


@gluon.jit
def least_weight(
    hi, b_hi, number, rows, cols, STAGES: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """The least sum of |hi·hi| in each row of a tile, over the first half of a pair of blocks.

    ``hi`` lies as warpgroups take it, which is how each warp's own products do.
    """
    L: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [W, 1], [16, 8])
    x = gl.abs(gl.convert_layout(hi, gl.DotOperandLayout(0, L, 2)))
    y = half_of_b(b_hi, number, 0, BK, STAGES).load(gl.DotOperandLayout(1, L, 2))
    weight = mma_v2(x, gl.abs(y), gl.zeros([BM, BN], gl.float32, L))
    return least_of_rows(weight, rows, cols, BM, BN, L)


@gluon.jit
def above_zero(scale):
    """1 in place of 0, whose inverse nothing is multiplied by."""
    return gl.where(scale > 0, scale, 1.0)
