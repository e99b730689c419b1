"""α·A·B + β·C from split operands (``kernels/split.py``): fp16 products, promoted sums, a check.

A program computes one tile over one slice of k. Over each chunk of it the tensor cores add
hi·hi, and hi·lo + lo·hi apart; the sums are scaled and added to a float32 total with ordinary
rounding. An element whose stretches are flagged is certified where the total, or the sum of
|hi·hi|, is so large that what the terms lost cannot matter. A tile with an uncertified element
is computed again, in IEEE arithmetic.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from autogemm.kernels.epilogue import ieee_tile, rows_by, store_both
from autogemm.kernels.launch import REMEMBERED, ceil_div, launch
from autogemm.kernels.operands import descriptor
from autogemm.kernels.raster import is_gram, tile_count, tile_origin, triangle_origin
from autogemm.kernels.reduce import finish, target_of
from autogemm.kernels.split import Split

TOTAL_SCALE = 2.0**14
"""What a total must be multiplied by: the scales' biases leave it this much too small."""

CERTIFIED = {2: 2.0**8, 1: 2.0**20}
"""By terms: the magnitude G, in units of the largest scales, beside which lost bits of small
elements are at most k/16 units of the result's own bound."""

_UNDERFLOW = tl.constexpr(2.0**-96)
_OVERFLOWS = tl.constexpr(2.0**64)
"""Up to this need the sum of 2³¹ finite products of terms, each below 2³⁰, is finite."""
_TOTAL_SCALE = tl.constexpr(TOTAL_SCALE)
_FLAG_CHUNKS = tl.constexpr(8)


@triton.jit
def _partial(
    a, b, i0, a_lo_row, j0, b_lo_row, first, last, TERMS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The sum over blocks [first, last) of k: hi·hi + 2⁻¹¹(hi·lo + lo·hi)."""
    high = tl.zeros((BM, BN), dtype=tl.float32)
    if TERMS == 2:
        cross = tl.zeros((BM, BN), dtype=tl.float32)
    for block in tl.range(first, last, num_stages=STAGES):
        at = block * BK
        a_hi = a.load([i0, at])
        b_hi = b.load([j0, at]).T
        high = tl.dot(a_hi, b_hi, high)
        if TERMS == 2:
            a_lo = a.load([a_lo_row, at])
            b_lo = b.load([b_lo_row, at]).T
            cross = tl.dot(a_hi, b_lo, cross)
            cross = tl.dot(a_lo, b_hi, cross)
    if TERMS == 2:
        high += cross * 0.00048828125
    return high


@triton.jit
def _stretches(scales, rows, first_row, chunks, BLOCK: tl.constexpr):
    """The largest scale of each row over all chunks, and whether any of them is flagged."""
    r = first_row + tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    least = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, chunks, _FLAG_CHUNKS):
        c = first + tl.arange(0, _FLAG_CHUNKS)
        scale = tl.load(
            scales + c.to(tl.int64)[:, None] * rows + r[None, :],
            mask=(c < chunks)[:, None] & (r < rows)[None, :],
            other=0.0,
        )
        largest = tl.maximum(largest, tl.max(tl.abs(scale), 0))
        least = tl.minimum(least, tl.min(scale, 0))
    return largest, least < 0


@triton.jit
def _needed(a_largest, b_largest, a_odd, b_odd, certified):
    """How large a total must be to certify an element: 0 where no stretch of it is flagged."""
    need = (a_largest * (certified * _TOTAL_SCALE))[:, None] * b_largest[None, :]
    # The floor holds where the product underflows too. A row or column of zeros needs nothing.
    something = (a_largest > 0)[:, None] & (b_largest > 0)[None, :]
    need = tl.where(something, tl.maximum(need, _UNDERFLOW), 0.0)
    return tl.where(a_odd[:, None] | b_odd[None, :], need, 0.0)


@triton.jit
def _is_too_light(
    a, b, b_first, a_scales, b_scales, i0, j0, m, n, start, stop, chunks, chunk_blocks, certified,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Whether the sum of |hi·hi| over a slice leaves a flagged element of the tile uncertified."""
    a_largest, a_odd = _stretches(a_scales, m, i0, chunks, BM)
    b_largest, b_odd = _stretches(b_scales, n, j0, chunks, BN)
    weight = tl.zeros((BM, BN), dtype=tl.float32)
    heaviest = tl.zeros((BM, BN), dtype=tl.float32)
    a_unit = tl.where(a_largest > 0, a_largest, 1.0)
    b_unit = tl.where(b_largest > 0, b_largest, 1.0)
    for block in tl.range(start, stop, num_stages=1):
        x = tl.abs(a.load([i0, block * BK]))
        y = tl.abs(b.load([b_first + j0, block * BK])).T
        chunk = (block - start) // chunk_blocks
        i = tl.arange(0, BM)
        j = tl.arange(0, BN)
        fa = tl.load(a_scales + (chunk * m + i0) + i, mask=i < m - i0, other=0.0)
        fb = tl.load(b_scales + (chunk * n + j0) + j, mask=j < n - j0, other=0.0)
        part = tl.dot(x, y)
        # In units of the largest scales: nothing overflows, and underflow only takes away.
        weight += (part * (tl.abs(fa) / a_unit)[:, None]) * (tl.abs(fb) / b_unit)[None, :]
        heaviest = tl.maximum(heaviest, part)
    need = _needed(a_largest, b_largest, a_odd, b_odd, certified)
    # What underflows to 2^-24 weighs too much, by 2^-9 a product at most. Where scales are so
    # small, the sums themselves may have underflowed, whatever they weigh.
    light = (weight < certified + (stop - start) * (BK * 0.00390625)) | (need <= _UNDERFLOW)
    # A sum of nothing but zeros is exact: hi is 0 for zeros alone. Behind the last row or column
    # other terms were read; nothing is needed there.
    light = light & (heaviest > 0) & (need > 0)
    return tl.max(tl.max(light.to(tl.int32), 1), 0)


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "a_row", "a_k", "b_row", "b_k", "c_row", "c_col", "out_row", "out_col",
        "slice_blocks", "chunk_blocks", "group", "alpha", "beta", "gain", "certified",
    ]
)  # fmt: skip
def _product_kernel(
    a_terms, b_terms, a, b, a_scales, c, out, m, n, k, a_row, a_k, b_row, b_k, c_row,
    c_col, out_row, out_col, slice_blocks, chunk_blocks, group, alpha, beta, gain, certified,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, GUARD: tl.constexpr,
    GRAM: tl.constexpr, SHARED: tl.constexpr, SLICED: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    blocks = tl.cdiv(k, BK)
    b_scales = a_scales + tl.cdiv(blocks, chunk_blocks).to(tl.int64) * m
    start = 0
    stop = blocks
    if SLICED:
        down = tl.cdiv(m, BM)
        tiles = down * (down + 1) // 2 if GRAM else down * tl.cdiv(n, BN)
        slice_ = tile // tiles
        tile = tile % tiles
        start = slice_ * slice_blocks  # where a chunk starts
        stop = tl.minimum(start + slice_blocks, blocks)
        a_scales += (start // chunk_blocks).to(tl.int64) * m
        b_scales += (start // chunk_blocks).to(tl.int64) * n
        if ROWS == 2:
            n = n // 4 * 4
        out += slice_.to(tl.int64) * m * n  # one matrix a slice
    chunks = tl.cdiv(stop - start, chunk_blocks)
    if GRAM:
        i0, j0 = triangle_origin(tile, BM)
    else:
        i0, j0 = tile_origin(tile, m, n, group, BM, BN)
    b_first = TERMS * m  # B's terms lie behind A's
    total = tl.zeros((BM, BN), dtype=tl.float32)
    a_scale = a_scales + i0
    b_scale = b_scales + j0
    a_least = tl.zeros((BM,), dtype=tl.float32)
    b_least = 0.0
    for first in range(start, stop, chunk_blocks):
        last = tl.minimum(first + chunk_blocks, stop)
        part = _partial(
            a_terms, b_terms, i0, m + i0, b_first + j0, b_first + n + j0, first, last, TERMS, BM,
            BN, BK, STAGES,
        )  # fmt: skip
        i = tl.arange(0, BM)
        j = tl.arange(0, BN)
        fa = tl.load(a_scale + i, mask=i < m - i0, other=0.0)
        fb = tl.load(b_scale + j, mask=j < n - j0, other=0.0)
        if GUARD:  # a sign is a flag
            a_least = tl.minimum(a_least, fa)
            b_least = tl.minimum(b_least, tl.min(fb, 0))
        fa = tl.abs(fa) * (1.0 + gain * (last - first))
        total += (part * fa[:, None]) * tl.abs(fb)[None, :]
        a_scale += m
        b_scale += n
    total *= _TOTAL_SCALE
    doubtful = 0
    wrong = 0
    if GUARD:
        flagged = (tl.min(a_least, 0) < 0) | (b_least < 0)
        if flagged:
            a_largest, a_odd = _stretches(a_scales, m, i0, chunks, BM)
            b_largest, b_odd = _stretches(b_scales, n, j0, chunks, BN)
            need = _needed(a_largest, b_largest, a_odd, b_odd, certified)
            size = tl.abs(total)
            beyond = (size == float("inf")) & (need > _OVERFLOWS)  # by what was lost, maybe
            doubtful = tl.max(tl.max(((size < need) | beyond).to(tl.int32), 1), 0)
            # NaN: two infinities met, for which lo·lo would have been needed, or sums that what was
            # lost made infinite, or it is one.
            met = (total != total) & ((a_odd[:, None] & b_odd[None, :]) | (need > _OVERFLOWS))
            wrong = tl.max(tl.max(met.to(tl.int32), 1), 0)
    if not SHARED:
        store_both(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            GRAM, BM, BN,
        )  # fmt: skip
    if GUARD:
        if (doubtful > 0) & (wrong == 0):
            wrong = _is_too_light(
                a_terms, b_terms, b_first, a_scales, b_scales, i0, j0, m, n, start, stop, chunks,
                chunk_blocks, certified, BM, BN, BK,
            )  # fmt: skip
        if wrong > 0:
            tl.debug_barrier()  # whichever thread stored an element is to have done so
            again = ieee_tile(
                a, b, i0, j0, m, n, start * BK, tl.minimum(stop * BK, k), chunk_blocks * BK // 2,
                a_row, a_k, b_row, b_k, BM, BN,
            )  # fmt: skip
            if SHARED:
                total = again
            else:
                store_both(
                    again, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta,
                    HAS_C, ROWS, GRAM, BM, BN,
                )  # fmt: skip
    if SHARED:
        store_both(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            GRAM, BM, BN,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up: tile, block of k, warps, pipeline stages, rows in a group."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8


def split_product(
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
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, float32 all, any strides.

    ``split`` is ``split_both(A, B, terms=terms, chunk=chunk)``; ``slices`` parts of k, of whole
    chunks, are computed apart and added by a second launch; ``gain`` per block of k
    multiplies partial sums, against the tensor cores' habit of truncating. ``out`` may be C.
    Without ``guard``, for benchmarks alone, the result is right for ordinary operands only.
    """
    (m, k), n = A.shape, B.shape[1]
    slice_k = ceil_div(ceil_div(k, slices), chunk) * chunk
    slices = ceil_div(k, slice_k)
    target, source = target_of(slices, C, out)
    read = target if source is None else source
    blocks, integers, constants = _plan(
        m, n, k, A.stride(), B.stride(), read.stride(), target.stride(),
        read.data_ptr() % 16 == 0 and target.data_ptr() % 16 == 0, is_gram(A, B),
        source is not None, source is not None and source.data_ptr() == target.data_ptr(), terms,
        chunk, slice_k, tiling, guard,
    )  # fmt: skip
    extents, pitch = (split.terms.shape[0], k), split.terms.stride(0)
    a_terms = descriptor(split.terms, extents, pitch, (tiling.bm, tiling.bk))
    b_terms = a_terms
    if tiling.bn != tiling.bm:
        b_terms = descriptor(split.terms, extents, pitch, (tiling.bn, tiling.bk))
    launch(
        _product_kernel,
        blocks,
        (A, B, split.scales, read, target),
        integers,
        (*((alpha, beta) if slices == 1 else (1.0, 0.0)), gain, CERTIFIED[terms]),
        constants,
        num_warps=tiling.warps,
        descriptors=(a_terms, b_terms),
    )
    finish(alpha, target, slices, beta, C, out)


@functools.lru_cache(maxsize=REMEMBERED)
def _plan(
    m: int, n: int, k: int, a_strides: tuple[int, int], b_strides: tuple[int, int],
    read_strides: tuple[int, int], target_strides: tuple[int, int], aligned: bool, gram: bool,
    has_c: bool, shared: bool, terms: int, chunk: int, slice_k: int, tiling: Tiling, guard: bool,
) -> tuple[int, tuple[int, ...], dict[str, int | bool]]:  # fmt: skip
    """Programs, integers and constants of a launch; ``aligned``: C and the result, at 16 bytes."""
    b_k, b_row = b_strides
    slices = ceil_div(k, slice_k)
    gram = gram and tiling.bm == tiling.bn
    integers = (
        m, n, k, *a_strides, b_row, b_k, *read_strides, *target_strides, slice_k // tiling.bk,
        chunk // tiling.bk, tiling.group,
    )  # fmt: skip
    constants = {
        "HAS_C": has_c,
        "ROWS": min(rows_by(strides, n, aligned) for strides in (read_strides, target_strides)),
        "TERMS": terms,
        "BM": tiling.bm,
        "BN": tiling.bn,
        "BK": tiling.bk,
        "STAGES": tiling.stages,
        "GUARD": guard,
        "GRAM": gram,
        "SHARED": shared,
        "SLICED": slices > 1,
    }
    return tile_count(m, n, tiling.bm, tiling.bn, gram=gram) * slices, integers, constants
