"""α·A·B + β·C in one launch: float32 tiles are split into fp16 terms on their way to the cores.

A program computes one tile over one slice of k. The first block of k gives each row of A and
column of B its power of two, with room above for elements 2⁴ times larger; hi·lo, lo·hi and
hi·hi are added in one accumulator, which is promoted to a float32 total every few blocks.

The first block's sum of |hi·hi| certifies the tile where it is so large that what the terms
lose of small elements cannot matter; else the total itself may, or that sum over the whole
slice. What is left, and sums where an element is inf or NaN or, with lower scales, still outgrew
fp16, are computed again in IEEE arithmetic (``kernels/settle.py``): without lower scales, and only
one row or column, if they lie in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from autogemm.kernels.epilogue import rows_of, store_both, within
from autogemm.kernels.launch import ceil_div, launch, registers_for_two
from autogemm.kernels.operands import described, load_either
from autogemm.kernels.raster import is_gram, tile_count, tile_origin, triangle_origin
from autogemm.kernels.reduce import finish, target_of
from autogemm.kernels.scales import inverse, largest, reach_of, scale_of
from autogemm.kernels.settle import line_of, places_of, settle
from autogemm.kernels.split_product import Tiling

_CERTIFIED = tl.constexpr(2.0**19)
"""The sum of |hi·hi|, in scaled units, beside which bits lost below 2⁻²⁵ are at most k/8
units of the result's own bound: k·2⁻²⁵·(2¹⁶ + 2¹⁶) ≤ (k/8)·2⁻²⁴·2¹⁹. The first block of
normally distributed operands has some 2²⁴."""
_SMALLEST_HALF = tl.constexpr(2.0**-24)


@triton.jit
def _absolute(x, down):
    """|hi|, 0 for nothing but zeros, so that a sum of 0 proves that all products are."""
    return tl.where(x != 0, tl.maximum(tl.abs(x * down), _SMALLEST_HALF), 0.0).to(tl.float16)


@triton.jit
def _least_of(x, rows, cols, BM: tl.constexpr, BN: tl.constexpr):
    """The least element of those there are. Of a whole tile none is asked whether it is one."""
    if cols < BN:
        x = tl.where((tl.arange(0, BN) < cols)[None, :], x, float("inf"))
    return tl.min(tl.where(tl.arange(0, BM) < rows, tl.min(x, 1), float("inf")), 0)


@triton.jit
def _places_of_bad(x, BM: tl.constexpr, BN: tl.constexpr):
    """``places_of`` the elements of a tile that are inf or NaN.

    Those beyond the matrix, zeros of an operand times elements of the other, are so only in a row
    or a column that is within.
    """
    sums = tl.sum(tl.sum(x * 0.0, 1), 0)  # NaN where one is: all that ordinary tiles take
    places = 0
    if sums != sums:
        # 0: no sum is a signalling NaN. The compiler, which cannot know, makes places here and not,
        # for every tile, before the loop.
        nothing = (sums.to(tl.int32, bitcast=True) == 0x7F800001).to(tl.int32)
        places = places_of((tl.abs(x) < float("inf")) == 0, nothing, BM, BN)
    return places


@triton.jit
def _safe_scales(
    a, b, a_z, b_z, i0, j0, first, last, A_T: tl.constexpr, B_T: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """The scales by the largest magnitudes over k in [first, last)."""
    x, y = load_either(a, b, a_z, b_z, i0, j0, first, A_T, B_T)
    a_most = largest(x, 1)
    b_most = largest(y, 0)
    for at in tl.range(first + BK, last, BK, num_stages=2):
        x, y = load_either(a, b, a_z, b_z, i0, j0, at, A_T, B_T)
        a_most = tl.maximum(a_most, largest(x, 1))
        b_most = tl.maximum(b_most, largest(y, 0))
    return scale_of(a_most), scale_of(b_most)


@triton.jit
def _weight(
    a, b, a_z, b_z, a_down, b_down, i0, j0, first, last, A_T: tl.constexpr, B_T: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The sum of |hi·hi| over k in [first, last)."""
    weight = tl.zeros((BM, BN), dtype=tl.float32)
    for at in tl.range(first, last, BK, num_stages=2):
        x, y = load_either(a, b, a_z, b_z, i0, j0, at, A_T, B_T)
        weight = tl.dot(_absolute(x, a_down[:, None]), _absolute(y, b_down[None, :]), weight)
    return weight


@triton.jit
def compute_tile(
    a_tiles, b_tiles, a, b, c, out, a_z, b_z, i0, j0, first, last, place, m, n, a_row, a_k, b_row,
    b_k, c_row, c_col, out_row, out_col, chunk_blocks, alpha, beta, gain,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr,
    TERMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, GUARD: tl.constexpr, GRAM: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Write the tile at i0, j0 of the products over k in [first, last): all that a program does."""
    # Whether a row or a column that is bad is computed by itself.
    LINES: tl.constexpr = GUARD and not SHARED
    x, y = load_either(a_tiles, b_tiles, a_z, b_z, i0, j0, first, A_T, B_T)
    a_down = scale_of(largest(x, 1))
    b_down = scale_of(largest(y, 0))
    doubtful = 0
    if GUARD:
        weight = tl.dot(_absolute(x, a_down[:, None]), _absolute(y, b_down[None, :]))
        least = _least_of(weight, m - i0, n - j0, BM, BN)
        doubtful = (least < _CERTIFIED + 1.0).to(tl.int32)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    attempts = 0
    places = 0
    line = -1
    while (line == -1) & (attempts < 2):
        if attempts > 0:  # an element outgrew fp16: by the largest ones none does
            a_down, b_down = _safe_scales(
                a_tiles, b_tiles, a_z, b_z, i0, j0, first, last, A_T, B_T, BK
            )  # fmt: skip
            doubtful = 1
        total = tl.zeros((BM, BN), dtype=tl.float32)
        part = tl.zeros((BM, BN), dtype=tl.float32)
        in_chunk = 0
        for at in tl.range(first, last, BK, num_stages=STAGES):
            x, y = load_either(a_tiles, b_tiles, a_z, b_z, i0, j0, at, A_T, B_T)
            x *= a_down[:, None]
            y *= b_down[None, :]
            a_hi = x.to(tl.float16)
            b_hi = y.to(tl.float16)
            if TERMS == 2:
                a_lo = (x - a_hi.to(tl.float32)).to(tl.float16)
                b_lo = (y - b_hi.to(tl.float32)).to(tl.float16)
                part = tl.dot(a_hi, b_lo, part)
                part = tl.dot(a_lo, b_hi, part)
            part = tl.dot(a_hi, b_hi, part)
            in_chunk += 1
            if in_chunk == chunk_blocks:
                total += part * (1.0 + gain * in_chunk)
                part = tl.zeros((BM, BN), dtype=tl.float32)
                in_chunk = 0
        total += part * (1.0 + gain * in_chunk)
        # An element beyond fp16 is inf in hi, so that every sum it enters is inf or NaN.
        places = _places_of_bad(total, BM, BN)
        line = line_of(places, LINES, BM)
        attempts += 1
    if doubtful > 0:
        light = (tl.abs(total) < _CERTIFIED) & within(m - i0, n - j0, BM, BN)
        doubtful = tl.max(tl.max(light.to(tl.int32), 1), 0)
    # The smaller factor first: the other way round could overflow where the result does not.
    a_up = inverse(a_down)
    b_up = inverse(b_down)
    low = tl.minimum(a_up[:, None], b_up[None, :])
    high = tl.maximum(a_up[:, None], b_up[None, :])
    total = total * low * high
    if ROWS == 2:
        n = n // 4 * 4
    if a_z is None:
        out += place.to(tl.int64) * m * n  # one matrix a slice
    if not SHARED:
        store_both(
            total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            GRAM, BM, BN,
        )  # fmt: skip
    if GUARD:
        if (doubtful > 0) & (line != -1):
            weight = _weight(
                a_tiles, b_tiles, a_z, b_z, a_down, b_down, i0, j0, first, last, A_T, B_T, BM, BN,
                BK,
            )  # fmt: skip
            # What underflows to 2^-24 weighs too much, by 2^-8 a product at most.
            enough = _CERTIFIED + (last - first) * 0.0078125
            light = within(m - i0, n - j0, BM, BN) & (weight < enough) & (weight != 0)
            line = line_of(places | places_of(light, 0, BM, BN), LINES, BM)
        if line > -2:
            settle(
                a, b, reach_of(a_down), reach_of(b_down), c, out, line, i0, j0, m, n, first, last,
                chunk_blocks * BK // 2, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col,
                alpha, beta, HAS_C, ROWS, A_T, B_T, GRAM, BM, BN,
            )  # fmt: skip
    if SHARED:  # noqa: SIM102
        if (line == -2) or not GUARD:
            store_both(
                total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
                ROWS, GRAM, BM, BN,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "a_row", "a_k", "b_row", "b_k", "c_row", "c_col", "out_row", "out_col",
        "slice_k", "chunk_blocks", "group", "alpha", "beta", "gain",
    ]
)  # fmt: skip
def _fused_kernel(
    a_tiles, b_tiles, a, b, c, out, m, n, k, a_row, a_k, b_row, b_k, c_row, c_col, out_row,
    out_col, slice_k, chunk_blocks, group, alpha, beta, gain,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr,
    TERMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, GUARD: tl.constexpr, GRAM: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    down = tl.cdiv(m, BM)
    if GRAM:
        tiles = down * (down + 1) // 2
        i0, j0 = triangle_origin(tl.program_id(0) % tiles, BM)
    else:
        tiles = down * tl.cdiv(n, BN)
        i0, j0 = tile_origin(tl.program_id(0) % tiles, m, n, group, BM, BN)
    slice_ = tl.program_id(0) // tiles
    first = slice_ * slice_k
    last = tl.minimum(first + slice_k, k)
    compute_tile(
        a_tiles, b_tiles, a, b, c, out, None, None, i0, j0, first, last, slice_, m, n, a_row, a_k,
        b_row, b_k, c_row, c_col, out_row, out_col, chunk_blocks, alpha, beta, gain, HAS_C, ROWS,
        A_T, B_T, TERMS, BM, BN, BK, STAGES, GUARD, GRAM, SHARED,
    )  # fmt: skip


def fused_product(
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
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    All are float32. A and B have one contiguous extent each, rows (columns) of it 16-byte
    aligned. ``chunk`` elements of k are summed before a promotion, ``slices`` parts of k
    computed apart and added by a second launch. ``gain`` per block of k multiplies partial
    sums, against the tensor cores' habit of truncating. Without ``guard``, for benchmarks
    alone, the result is right for ordinary operands only.
    """
    a_t, b_t = A.stride(1) != 1, B.stride(1) != 1
    launch_product(
        _fused_kernel, alpha, A, B, beta, C, out, terms=terms, chunk=chunk, slices=slices,
        tiling=tiling, gain=gain, guard=guard,
        # Two programs share a multiprocessor: one converts while the other multiplies.
        registers=registers_for_two(tiling.warps) if tiling.warps == 8 else None,
        descriptors=(
            described(A, a_t, tiling.bm, tiling.bk),
            described(B, b_t, tiling.bk, tiling.bn),
        ),
    )  # fmt: skip


def launch_product(
    kernel: Any,
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
    guard: bool,
    registers: int | None = None,
    descriptors: tuple[TensorDescriptor, ...] = (),
    constants: Mapping[str, int | bool] | None = None,
) -> None:
    """Launch a kernel with the parameters of ``_fused_kernel``, and ``constants`` behind them."""
    (m, k), n = A.shape, B.shape[1]
    gram = tiling.bm == tiling.bn and is_gram(A, B)
    slice_k = ceil_div(ceil_div(k, slices), tiling.bk) * tiling.bk
    slices = ceil_div(k, slice_k)
    target, source = target_of(slices, C, out)
    read = target if source is None else source
    b_k, b_row = B.stride()
    launch(
        kernel,
        tile_count(m, n, tiling.bm, tiling.bn, gram=gram) * slices,
        (A, B, read, target),
        (
            m,
            n,
            k,
            *A.stride(),
            b_row,
            b_k,
            *read.stride(),
            *target.stride(),
            slice_k,
            chunk // tiling.bk,
            tiling.group,
        ),
        (alpha, beta, gain) if slices == 1 else (1.0, 0.0, gain),
        {
            "HAS_C": source is not None,
            "ROWS": min(rows_of(read), rows_of(target)),
            "A_T": A.stride(1) != 1,
            "B_T": B.stride(1) != 1,
            "TERMS": terms,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "GUARD": guard,
            "GRAM": gram,
            "SHARED": source is not None and source.data_ptr() == target.data_ptr(),
            **(constants or {}),
        },
        num_warps=tiling.warps,
        registers=registers,
        descriptors=descriptors,
    )
    finish(alpha, target, slices, beta, C, out)
