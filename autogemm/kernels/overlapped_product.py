"""α·A·B + β·C in one launch, as ``kernels/fused_product.py``, on Hopper's warpgroups (Gluon).

A block of k is split into fp16 terms while the tensor cores multiply the one before it, which
Triton's own loops do not do. Where an element outgrows fp16, the scales of its rows and columns
are lowered, what is summed is scaled alike, and the chunk is computed again; IEEE arithmetic is
left for inf, NaN and tiles that cannot be certified (``docs/accuracy.md``).
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from autogemm.kernels.fused_product import fused_product, launch_product
from autogemm.kernels.split_product import Tiling
from autogemm.kernels.warpgroups import (
    absolute,
    any_of,
    ieee_tile,
    in_registers,
    in_shared,
    inverse,
    largest,
    origin,
    scale_of,
    store,
)

_CERTIFIED = gl.constexpr(2.0**19)
_FAR = 2**23
"""Offsets within a block fit 32 bits below this pitch: it has 256 rows at most."""


@gluon.jit
def _put(x, down, hi, lo, TERMS: gl.constexpr):
    """Scale a block and write its terms to shared memory."""
    x = x * down
    high = x.to(gl.float16)
    hi.store(high)
    if TERMS == 2:
        lo.store((x - high.to(gl.float32)).to(gl.float16))


@gluon.jit
def _add_products(a_hi, a_lo, b_hi, b_lo, acc, fresh, TERMS: gl.constexpr):
    """Start adding a block's products to ``acc``, or to nothing where it is to be ``fresh``."""
    if TERMS == 2:
        acc = warpgroup_mma(a_hi, b_lo, acc, use_acc=fresh == 0, is_async=True)
        acc = warpgroup_mma(a_lo, b_hi, acc, is_async=True)
        acc = warpgroup_mma(a_hi, b_hi, acc, is_async=True)
    else:
        acc = warpgroup_mma(a_hi, b_hi, acc, use_acc=fresh == 0, is_async=True)
    return acc


@gluon.jit
def _load(x, at, inside, kk, left, step, block, KDIM: gl.constexpr):
    """Block number ``block`` of an operand, zeros beyond it."""
    reach = (kk < left)[None, :] if KDIM == 1 else (kk < left)[:, None]
    return gl.load(x + block.to(gl.int64) * step + at, mask=inside & reach, other=0.0)


@gluon.jit(
    do_not_specialize=[
        "m", "n", "k", "a_row", "a_k", "b_row", "b_k", "c_row", "c_col", "out_row", "out_col",
        "slice_k", "chunk_blocks", "group", "alpha", "beta", "gain",
    ]
)  # fmt: skip
def _overlapped_kernel(
    a, b, c, out, m, n, k, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, slice_k,
    chunk_blocks, group, alpha, beta, gain,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, A_T: gl.constexpr, B_T: gl.constexpr,
    TERMS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, GUARD: gl.constexpr, GRAM: gl.constexpr, SHARED: gl.constexpr,
    A_WHOLE: gl.constexpr, B_WHOLE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    LA: gl.constexpr = in_registers(0 if A_T else 1, BM, BK, W)
    LB: gl.constexpr = in_registers(0 if B_T else 1, BK, BN, W)
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, BN, 16])
    down = (m + BM - 1) // BM
    if GRAM:
        tiles = down * (down + 1) // 2
    else:
        tiles = down * ((n + BN - 1) // BN)
    i0, j0 = origin(gl.program_id(0) % tiles, m, n, group, BM, BN, GRAM)
    slice_ = gl.program_id(0) // tiles
    slice_k = slice_k // BK * BK
    first = slice_ * slice_k
    length = gl.minimum(slice_k, k - first)
    blocks = (length + BK - 1) // BK

    ra = gl.arange(0, BM, layout=gl.SliceLayout(1, LA))
    ka = gl.arange(0, BK, layout=gl.SliceLayout(0, LA))
    kb = gl.arange(0, BK, layout=gl.SliceLayout(1, LB))
    cb = gl.arange(0, BN, layout=gl.SliceLayout(0, LB))
    # Which extent is contiguous, and that it comes in fours where it does, decides how wide
    # loads are. Rounding down is the one form in which Triton takes note.
    a_rows = m - i0
    a_left = length
    if A_T:
        a_pitch = a_k // 4 * 4
        a_at = ra[:, None] + ka[None, :] * a_pitch
        a_tile = a + (first.to(gl.int64) * a_pitch + i0)
        a_step = BK * a_pitch
        if A_WHOLE:
            a_rows = a_rows // 4 * 4
    else:
        a_pitch = a_row // 4 * 4
        a_at = ra[:, None] * a_pitch + ka[None, :]
        a_tile = a + (i0.to(gl.int64) * a_pitch + first)
        a_step = BK
        if A_WHOLE:
            a_left = a_left // 4 * 4
    b_rows = n - j0
    b_left = length
    if B_T:
        b_pitch = b_row // 4 * 4
        b_at = kb[:, None] + cb[None, :] * b_pitch
        b_tile = b + (j0.to(gl.int64) * b_pitch + first)
        b_step = BK
        if B_WHOLE:
            b_left = b_left // 4 * 4
    else:
        b_pitch = b_k // 4 * 4
        b_at = kb[:, None] * b_pitch + cb[None, :]
        b_tile = b + (first.to(gl.int64) * b_pitch + j0)
        b_step = BK * b_pitch
        if B_WHOLE:
            b_rows = b_rows // 4 * 4
    a_in = (ra < a_rows)[:, None]
    b_in = (cb < b_rows)[None, :]

    SA: gl.constexpr = in_shared(0 if A_T else 1, BM, BK)
    SB: gl.constexpr = in_shared(0 if B_T else 1, BK, BN)
    a_hi = gl.allocate_shared_memory(gl.float16, [STAGES, BM, BK], SA)
    b_hi = gl.allocate_shared_memory(gl.float16, [STAGES, BK, BN], SB)
    if TERMS == 2:
        a_lo = gl.allocate_shared_memory(gl.float16, [STAGES, BM, BK], SA)
        b_lo = gl.allocate_shared_memory(gl.float16, [STAGES, BK, BN], SB)
    else:
        a_lo = a_hi
        b_lo = b_hi

    zero = first * 0
    x = _load(a_tile, a_at, a_in, ka, a_left, a_step, zero, 1)
    y = _load(b_tile, b_at, b_in, kb, b_left, b_step, zero, 0)
    a_down = scale_of(largest(x, 1))
    b_down = scale_of(largest(y, 0))
    i = gl.arange(0, BM, layout=gl.SliceLayout(1, MMA))
    j = gl.arange(0, BN, layout=gl.SliceLayout(0, MMA))
    inside = (i < m - i0)[:, None] & (j < n - j0)[None, :]
    doubtful = zero
    if GUARD:
        a_hi.index(0).store(absolute(x, a_down[:, None]))
        b_hi.index(0).store(absolute(y, b_down[None, :]))
        fence_async_shared()
        gl.thread_barrier()
        weight = warpgroup_mma(
            a_hi.index(0), b_hi.index(0), gl.zeros([BM, BN], gl.float32, MMA), is_async=False
        )
        doubtful = any_of(inside & (weight < _CERTIFIED + 1.0))
    total = gl.zeros([BM, BN], gl.float32, MMA)
    wrong = zero
    start = zero  # of the chunk that is being summed
    lowered = zero - 1  # the chunk for which scales were lowered last
    while start < blocks:
        gl.thread_barrier()
        x = _load(a_tile, a_at, a_in, ka, a_left - start * BK, a_step, start, 1)
        y = _load(b_tile, b_at, b_in, kb, b_left - start * BK, b_step, start, 0)
        _put(x, a_down[:, None], a_hi.index(0), a_lo.index(0), TERMS)
        _put(y, b_down[None, :], b_hi.index(0), b_lo.index(0), TERMS)
        block = start
        x = _load(a_tile, a_at, a_in, ka, a_left - (block + 1) * BK, a_step, block + 1, 1)
        y = _load(b_tile, b_at, b_in, kb, b_left - (block + 1) * BK, b_step, block + 1, 0)
        fence_async_shared()
        gl.thread_barrier()
        acc = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, MMA))
        buffer = zero
        fresh = zero + 1
        outgrown = zero
        while (block < blocks) & (outgrown == 0):
            ahead = block + 2
            next_x = _load(a_tile, a_at, a_in, ka, a_left - ahead * BK, a_step, ahead, 1)
            next_y = _load(b_tile, b_at, b_in, kb, b_left - ahead * BK, b_step, ahead, 0)
            acc = _add_products(
                a_hi.index(buffer), a_lo.index(buffer), b_hi.index(buffer), b_lo.index(buffer),
                acc, fresh, TERMS,
            )  # fmt: skip
            buffer = gl.where(buffer == STAGES - 1, 0, buffer + 1)
            _put(x, a_down[:, None], a_hi.index(buffer), a_lo.index(buffer), TERMS)
            _put(y, b_down[None, :], b_hi.index(buffer), b_lo.index(buffer), TERMS)
            x = next_x
            y = next_y
            fence_async_shared()
            block += 1
            fresh = zero
            if (block - start == chunk_blocks) | (block == blocks):
                part = warpgroup_mma_wait(0, deps=[acc])
                # An element beyond fp16 is inf in hi, so that every sum it enters is inf or NaN.
                outgrown = any_of((gl.abs(part) < float("inf")) == 0)
                if outgrown == 0:
                    total += part * (1.0 + gain * (block - start))
                    start = block
                fresh = zero + 1
                acc = warpgroup_mma_init(part)
            else:
                part = warpgroup_mma_wait(3 if TERMS == 2 else 1, deps=[acc])
                acc = warpgroup_mma_init(part)
            gl.thread_barrier()
        if outgrown != 0:
            if lowered == start:  # it was no matter of scale: inf or NaN
                wrong = zero + 1
                start = blocks
            else:
                lowered = start
                doubtful = zero + 1
                a_most = gl.zeros([BM], gl.float32, gl.SliceLayout(1, LA))
                b_most = gl.zeros([BN], gl.float32, gl.SliceLayout(0, LB))
                for at in range(start, block):
                    x = _load(a_tile, a_at, a_in, ka, a_left - at * BK, a_step, at, 1)
                    y = _load(b_tile, b_at, b_in, kb, b_left - at * BK, b_step, at, 0)
                    a_most = gl.maximum(a_most, largest(x, 1))
                    b_most = gl.maximum(b_most, largest(y, 0))
                # A stretch of zeros so far says nothing of the scale.
                a_new = gl.where(a_most > 0, gl.minimum(scale_of(a_most), a_down), a_down)
                b_new = gl.where(b_most > 0, gl.minimum(scale_of(b_most), b_down), b_down)
                a_ratio = gl.convert_layout(a_new * inverse(a_down), gl.SliceLayout(1, MMA))
                b_ratio = gl.convert_layout(b_new * inverse(b_down), gl.SliceLayout(0, MMA))
                total = total * a_ratio[:, None] * b_ratio[None, :]
                a_down = a_new
                b_down = b_new

    if doubtful > 0:
        doubtful = any_of(inside & (gl.abs(total) < _CERTIFIED))
    # The smaller factor first: the other way round could overflow where the result does not.
    a_up = gl.convert_layout(inverse(a_down), gl.SliceLayout(1, MMA))[:, None]
    b_up = gl.convert_layout(inverse(b_down), gl.SliceLayout(0, MMA))[None, :]
    total = total * gl.minimum(a_up, b_up) * gl.maximum(a_up, b_up)
    if ROWS == 2:
        n = n // 4 * 4
    out += slice_.to(gl.int64) * m * n  # one matrix a slice
    if not SHARED:
        store(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            False, GRAM, BM, BN, W,
        )  # fmt: skip
    if GUARD:
        if (doubtful > 0) & (wrong == 0):
            weight = gl.zeros([BM, BN], gl.float32, MMA)
            for at in range(zero, blocks):
                x = _load(a_tile, a_at, a_in, ka, a_left - at * BK, a_step, at, 1)
                y = _load(b_tile, b_at, b_in, kb, b_left - at * BK, b_step, at, 0)
                gl.thread_barrier()
                a_hi.index(0).store(absolute(x, a_down[:, None]))
                b_hi.index(0).store(absolute(y, b_down[None, :]))
                fence_async_shared()
                gl.thread_barrier()
                weight = warpgroup_mma(a_hi.index(0), b_hi.index(0), weight, is_async=False)
            # What underflows to 2^-24 weighs too much, by 2^-8 a product at most.
            enough = _CERTIFIED + length * 0.0078125
            wrong = any_of(inside & (weight < enough) & (weight != 0))
        if wrong > 0:
            gl.thread_barrier()  # whichever thread stored an element is to have done so
            i0 += wrong - 1  # 0, unknown to the compiler, which would keep addresses of a store
            again = ieee_tile(
                a, b, i0, j0, m, n, first, first + length, chunk_blocks * BK // 2, a_row, a_k,
                b_row, b_k, BM, BN, W,
            )  # fmt: skip
            if SHARED:
                total = gl.convert_layout(again, MMA)
            else:
                store(
                    again, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta,
                    HAS_C, ROWS, False, GRAM, BM, BN, W,
                )  # fmt: skip
    if SHARED:
        store(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            False, GRAM, BM, BN, W,
        )  # fmt: skip


def overlapped_product(
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

    ``tiling.stages`` is how many blocks of k shared memory holds, 3 or more: two are multiplied
    while the next is written. Where rows lie too far apart for 32-bit offsets, ``fused_product``
    computes the same.
    """
    if max(*A.stride(), *B.stride()) >= _FAR:
        fused_product(
            alpha, A, B, beta, C, out, terms=terms, chunk=chunk, slices=slices, tiling=tiling,
            gain=gain, guard=guard,
        )  # fmt: skip
        return
    (m, k), n = A.shape, B.shape[1]
    launch_product(
        _overlapped_kernel, alpha, A, B, beta, C, out, terms=terms, chunk=chunk, slices=slices,
        tiling=tiling, gain=gain, guard=guard,
        constants={
            "A_WHOLE": (k if A.stride(1) == 1 else m) % 4 == 0,
            "B_WHOLE": (n if B.stride(1) == 1 else k) % 4 == 0,
            "W": tiling.warps,
        },
    )  # fmt: skip
