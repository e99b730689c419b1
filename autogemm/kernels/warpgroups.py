"""What products for Hopper's warpgroups share: layouts, scales, epilogue, IEEE arithmetic (Gluon).

Each says the same as its namesake for Triton in ``fused_product``, ``epilogue`` or ``raster``; one
language compiles only its own functions.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from autogemm.kernels.launch import REMEMBERED, ceil_div
from autogemm.kernels.reduce import target_of

_PLACE = gl.constexpr(11)
_LOWEST_EXPONENT = gl.constexpr(-84)
_SMALLEST_HALF = gl.constexpr(2.0**-24)
_LARGEST_HALF = gl.constexpr(65520.0)
"""What is scaled and as large as that becomes inf in fp16."""
_IEEE_BLOCK = gl.constexpr(16)

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""Waits for all threads of a program; Triton 3.7 gave it another name."""


@gluon.constexpr_function
def in_registers(fast, rows, cols, warps):
    """Four neighbours along the contiguous dimension ``fast`` to a thread."""
    if fast == 1:
        across = min(32, cols // 4)
        return gl.BlockedLayout([1, 4], [32 // across, across], [warps, 1], [1, 0])
    down = min(32, rows // 4)
    return gl.BlockedLayout([4, 1], [down, 32 // down], [1, warps], [0, 1])


@gluon.constexpr_function
def in_shared(fast, rows, cols):
    """A 16-bit tile as warpgroup products read it."""
    swizzle = min(128, max(32, (cols if fast == 1 else rows) * 2))
    return gl.NVMMASharedLayout(
        swizzle_byte_width=swizzle, element_bitwidth=16, rank=2, transposed=fast == 0
    )


@gluon.constexpr_function
def by_tma(cols, bits, rank=2):
    """A tile with contiguous rows, as the tensor memory accelerator writes it."""
    return gl.NVMMASharedLayout(
        swizzle_byte_width=min(128, cols * bits // 8), element_bitwidth=bits, rank=rank
    )


@gluon.constexpr_function
def weighing(warps):
    """A layout whose products are computed apart from those of warpgroups."""
    return gl.NVMMADistributedLayout([2, 0], [warps // 2, 2], [16, 8])


@gluon.constexpr_function
def in_memory(rows_are, out_t, rows, cols, warps):
    """How a warp writes a tile: whole lines, of fours where they may be written as such."""
    if rows_are == 2:
        return in_registers(0 if out_t else 1, rows, cols, warps)
    if out_t:
        return gl.BlockedLayout([1, 1], [32, 1], [1, warps], [0, 1])
    return gl.BlockedLayout([1, 1], [1, 32], [warps, 1], [1, 0])


@gluon.jit
def scale_of(most):
    """The power of two that brings a stretch's largest finite magnitude to about 2^11."""
    exponent = (most.to(gl.int32, bitcast=True) >> 23) - 127
    exponent = gl.where(most > 0, gl.maximum(exponent, _LOWEST_EXPONENT), 0) - _PLACE
    return ((127 - exponent) << 23).to(gl.float32, bitcast=True)


@gluon.jit
def inverse(power):
    """The reciprocal of a power of two."""
    return (0x7F000000 - power.to(gl.int32, bitcast=True)).to(gl.float32, bitcast=True)


@gluon.jit
def reach_of(down):
    """What no element reaches that, scaled by one of these, is finite in fp16."""
    return gl.max(inverse(down), 0) * _LARGEST_HALF


@gluon.jit
def largest(x, axis: gl.constexpr):
    """The largest finite magnitudes along an axis."""
    magnitude = gl.abs(x)
    return gl.max(gl.where(magnitude < float("inf"), magnitude, 0.0), axis)


@gluon.jit
def absolute(x, down):
    """|hi|, 0 for nothing but zeros, so that a sum of 0 proves that all products are."""
    return gl.where(x != 0, gl.maximum(gl.abs(x * down), _SMALLEST_HALF), 0.0).to(gl.float16)


@gluon.jit
def terms_of(x, down):
    """A block times its scales as two fp16 terms."""
    x = x * down
    hi = x.to(gl.float16)
    return hi, (x - hi.to(gl.float32)).to(gl.float16)


@gluon.jit
def barriers_of(STAGES: gl.constexpr):
    """A barrier a stage, for copies; the accelerator and other threads are yet to know of them."""
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(bars.index(s), count=1)
    return bars


@gluon.jit
def forget(bars, STAGES: gl.constexpr):
    """Free the memory of barriers, for others to lie there."""
    barrier()
    for s in gl.static_range(STAGES):
        mbarrier.invalidate(bars.index(s))


@gluon.jit
def bring(x, line, at, bar, tile, wanted, K_FIRST: gl.constexpr):
    """Start to bring the tile of x at ``line`` and at ``at`` of k. K_FIRST: x is described by k."""
    if K_FIRST:
        tma.async_copy_global_to_shared(x, [at, line], bar, tile, pred=wanted)
    else:
        tma.async_copy_global_to_shared(x, [line, at], bar, tile, pred=wanted)


@gluon.jit
def arrive(bars, number, STAGES: gl.constexpr):
    """Wait until the copies of number ``number`` of all are there."""
    mbarrier.wait(bars.index(number % STAGES), (number // STAGES) & 1)


@gluon.jit
def in_fours(m, n, ROWS: gl.constexpr, OUT_T: gl.constexpr):
    """m and n, that along which a result is written in fours as a multiple of them.

    ROWS and OUT_T as ``store`` has them: only so does Triton take note; hints on arguments are
    dropped.
    """
    if ROWS == 2:
        if OUT_T:
            m = m // 4 * 4
        else:
            n = n // 4 * 4
    return m, n


@gluon.jit
def store(
    total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr, GRAM: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Write α·total + β·C; of a Gram matrix also the tile's mirror image.

    ROWS is what ``rows_of`` says of both C and the result; OUT_T: columns are what is contiguous.
    """
    _store(
        total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
        OUT_T, BM, BN, W,
    )  # fmt: skip
    if GRAM:  # noqa: SIM102 - together they would not be decided when compiled
        if i0 != j0:  # columns' strides for rows' and the other way round
            _store(
                total, c, out, i0, j0, m, n, c_col, c_row, out_col, out_row, alpha, beta, HAS_C,
                ROWS, not OUT_T, BM, BN, W,
            )  # fmt: skip


@gluon.jit
def _store(
    total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    L: gl.constexpr = in_memory(ROWS, OUT_T, BM, BN, W)
    total = alpha * gl.convert_layout(total, L)
    r = gl.arange(0, BM, layout=gl.SliceLayout(1, L))[:, None]
    q = gl.arange(0, BN, layout=gl.SliceLayout(0, L))[None, :]
    if ROWS == 2:  # the one form in which Triton takes note: hints on arguments are dropped
        if OUT_T:
            m = m // 4 * 4
            c_col = c_col // 4 * 4
            out_col = out_col // 4 * 4
        else:
            n = n // 4 * 4
            c_row = c_row // 4 * 4
            out_row = out_row // 4 * 4
    inside = (r < m - i0) & (q < n - j0)
    if ROWS > 0:
        if OUT_T:
            if HAS_C:
                c += j0.to(gl.int64) * c_col + i0
                total += beta * gl.load(c + (r + q * c_col), mask=inside, other=0.0)
            out += j0.to(gl.int64) * out_col + i0
            gl.store(out + (r + q * out_col), total, mask=inside)
        else:
            if HAS_C:
                c += i0.to(gl.int64) * c_row + j0
                total += beta * gl.load(c + (r * c_row + q), mask=inside, other=0.0)
            out += i0.to(gl.int64) * out_row + j0
            gl.store(out + (r * out_row + q), total, mask=inside)
    else:
        r64 = (i0 + r).to(gl.int64)
        q64 = (j0 + q).to(gl.int64)
        if HAS_C:
            total += beta * gl.load(c + (r64 * c_row + q64 * c_col), mask=inside, other=0.0)
        gl.store(out + (r64 * out_row + q64 * out_col), total, mask=inside)


@gluon.constexpr_function
def ieee_layout(warps):
    """Sixteen elements of a tile to a thread."""
    return gl.BlockedLayout([4, 4], [4, 8], [warps, 1], [1, 0])


@gluon.jit
def ieee_tile(
    a, b, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, BM: gl.constexpr,
    BN: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``epilogue.ieee_tile``, in ``ieee_layout``."""
    L: gl.constexpr = ieee_layout(W)
    LX: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [W, 1], [1, 0])
    LY: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [1, W], [1, 0])
    i = (i0 + gl.arange(0, BM, layout=gl.SliceLayout(1, LX))).to(gl.int64)
    j = (j0 + gl.arange(0, BN, layout=gl.SliceLayout(0, LY))).to(gl.int64)
    ka = gl.arange(0, _IEEE_BLOCK, layout=gl.SliceLayout(0, LX)).to(gl.int64)
    kb = gl.arange(0, _IEEE_BLOCK, layout=gl.SliceLayout(1, LY)).to(gl.int64)
    total = gl.zeros([BM, BN], gl.float32, L)
    for start in range(first, last, chunk):
        part = gl.zeros([BM, BN], gl.float32, L)
        end = gl.minimum(start + chunk, last)
        for block in range(start, end, _IEEE_BLOCK):
            x = gl.load(
                a + i[:, None] * a_row + (block + ka)[None, :] * a_k,
                mask=(i < m)[:, None] & (block + ka < end)[None, :],
                other=0.0,
            )
            y = gl.load(
                b + (block + kb)[:, None] * b_k + j[None, :] * b_row,
                mask=(block + kb < end)[:, None] & (j < n)[None, :],
                other=0.0,
            )
            x = gl.convert_layout(x, gl.DotOperandLayout(0, L, 0))
            y = gl.convert_layout(y, gl.DotOperandLayout(1, L, 0))
            part = gl.dot_fma(x, y, part)
        total += part
    return total


@gluon.jit
def write_again(
    a, b, c, out, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, c_row, c_col, out_row,
    out_col, alpha, beta, HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr,
    GRAM: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Compute a tile over k in [first, last), in sums of ``chunk`` elements each, and write it.

    Whichever threads stored its elements before must have met the others since.
    """
    again = ieee_tile(a, b, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, BM, BN, W)
    store(
        again, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
        OUT_T, GRAM, BM, BN, W,
    )  # fmt: skip


@gluon.jit
def origin(program, m, n, group, BM: gl.constexpr, BN: gl.constexpr, GRAM: gl.constexpr):
    """As ``raster.tile_origin`` and ``raster.triangle_origin``."""
    if GRAM:
        row = ((gl.sqrt((8 * program + 1).to(gl.float32)) - 1.0) * 0.5).to(gl.int32)
        row = gl.where((row + 1) * (row + 2) // 2 <= program, row + 1, row)
        row = gl.where(row * (row + 1) // 2 > program, row - 1, row)
        i0 = row * BM
        j0 = (program - row * (row + 1) // 2) * BM
    else:
        down = (m + BM - 1) // BM
        width = group * ((n + BN - 1) // BN)
        first = program // width * group
        rows = gl.minimum(down - first, group)
        within = program % width
        i0 = (first + within % rows) * BM
        j0 = within // rows * BN
    return i0, j0


class Written(NamedTuple):
    """Where a kernel reads C and writes, seen so that rows are contiguous where columns are."""

    out_t: bool
    """Whether columns are what is contiguous; ``added`` and ``lying`` are transposed then."""
    read: torch.Tensor
    target: torch.Tensor
    places: tuple[int, int, int, int]
    """The strides of rows and columns, of C and of the result."""
    adds: bool
    is_shared: bool
    """Whether C is where the result goes."""
    added: torch.Tensor | None
    lying: torch.Tensor


def written_to(slices: int, C: torch.Tensor | None, out: torch.Tensor) -> Written:
    """``target_of`` a result that may lie by columns; ``finish`` takes ``added`` and ``lying``.

    Batches (batch, m, n) are for one slice.
    """
    out_t = out.stride(-2) == 1 and out.stride(-1) != 1
    lying, added = (out.mT, None if C is None else C.mT) if out_t else (out, C)
    target, source = target_of(slices, added, lying)
    read = target if source is None else source
    (c_row, c_col), (row, col) = read.stride()[-2:], target.stride()[-2:]
    places = (c_col, c_row, col, row) if out_t else (c_row, c_col, row, col)
    shared = source is not None and source.data_ptr() == target.data_ptr()
    return Written(out_t, read, target, places, source is not None, shared, added, lying)


def described_rows(
    x: torch.Tensor, extents: tuple[int, int], pitch: int, tile: tuple[int, int]
) -> TensorDescriptor:
    """A descriptor of contiguous rows that are known to be legal."""
    if extents[0] == 1:  # the stride over a single row means nothing, but must be a legal one
        pitch = ceil_div(extents[1], 8) * 8
    return _unchecked(x, list(extents), [pitch, 1], list(tile))


def is_turned(x: torch.Tensor) -> bool:
    """Whether columns are contiguous. A single column is, whatever strides it has."""
    return x.stride(1) != 1 or (x.shape[1] == 1 and x.stride(0) == 1)


def described_tiles(x: torch.Tensor, turned: bool, rows: int, cols: int) -> TensorDescriptor:
    """A descriptor of an operand's tiles of rows by columns."""
    if turned:
        x, rows, cols = x.t(), cols, rows
    return described_rows(x, (x.shape[0], x.shape[1]), x.stride(0), (rows, cols))


def described_terms(
    x: torch.Tensor, terms: int, rows: int, k: int, tile: tuple[int, int]
) -> TensorDescriptor:
    """A descriptor of all terms of so many rows, the first rows of x; its tiles hold each term."""
    pitch = x.stride(0)
    return _unchecked(x, [terms, rows, k], [rows * pitch, pitch, 1], [terms, *tile])


def _unchecked(
    x: torch.Tensor, shape: list[int], strides: list[int], tile: list[int]
) -> TensorDescriptor:
    """Made without Gluon's checks, which take microseconds."""
    made = object.__new__(TensorDescriptor)
    made.base, made.shape, made.strides = x, shape, strides
    made.block_shape, made.padding = tile, "zero"
    made.layout = _host_layout(tile[-1], 8 * x.element_size(), len(tile))
    return made


@functools.lru_cache(maxsize=REMEMBERED)
def _host_layout(cols: int, bits: int, rank: int) -> gl.NVMMASharedLayout:
    return by_tma(cols, bits, rank)
