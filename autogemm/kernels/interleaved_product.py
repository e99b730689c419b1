"""``half_product`` of an A whose rows lie anyhow, read where they lie, in the same one launch.

A tensor descriptor's rows are multiples of 16 bytes apart, and Triton's tiles begin at such
multiples. Of rows an odd number of elements apart every eighth begins as far behind a multiple as
the last one: the matrix is eight, interleaved, and from the next multiple on each can be described.
A tile has rows of one of them, so that its heads, the columns before that, are as many in each row.

For few columns such a product is bound by memory: where C is aligned it is asked for before the
first tile is there.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from autogemm.kernels.half_product import has_unit_columns, is_aligned, offsets, read_tile
from autogemm.kernels.launch import ceil_div, launch, registers_for_two, written
from autogemm.kernels.operands import described, descriptor
from autogemm.kernels.raster import tile_origin
from autogemm.kernels.split_product import Tiling

_MOST = 8
"""Elements of 16 bytes, and so the most matrices that one is made of."""
_WIDEST = 2**31 // _MOST
"""Coordinates fit 32 bits below this pitch."""


@triton.jit
def _chosen(a, which, EVERY: tl.constexpr):
    """The descriptor of matrix ``which``."""
    found = a[0]
    for other in tl.static_range(1, EVERY):
        if which == other:
            found = a[other]
    return found


@triton.jit
def _heads(x, y, rows, cols, head, x_row, y_row, BM: tl.constexpr, BN: tl.constexpr):
    """The first ``head`` columns of x and rows of y, and zeros, as a product takes them."""
    k = tl.arange(0, 16)
    a = tl.load(
        x + tl.arange(0, BM)[:, None].to(tl.int64) * x_row + k[None, :],
        mask=(tl.arange(0, BM)[:, None] < rows) & (k[None, :] < head), other=0.0,
    )  # fmt: skip
    y_row = y_row // 8 * 8  # as it can be described
    b = tl.load(
        y + k[:, None].to(tl.int64) * y_row + tl.arange(0, BN)[None, :],
        mask=(k[:, None] < head) & (tl.arange(0, BN)[None, :] < cols), other=0.0,
    )  # fmt: skip
    return a, b


@triton.jit
def read_columns(
    c, rows, cols, c_row, c_col, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """A tile of C as pairs of pairs of parts, of AT_ONCE columns each."""
    if BN > AT_ONCE:
        half: tl.constexpr = BN // 2
        read = (
            read_columns(c, rows, cols, c_row, c_col, UNIT, BM, half, AT_ONCE),
            read_columns(
                c + half * c_col, rows, cols - half, c_row, c_col, UNIT, BM, half, AT_ONCE
            ),
        )  # fmt: skip
    else:
        read = read_tile(c, rows, cols, c_row, c_col, UNIT, BM, BN)
    return read


@triton.jit
def store_columns(
    total, read, c, out, rows, cols, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, EARLY: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write α·total + β·C, AT_ONCE columns after one another. EARLY: C was read already."""
    if BN > AT_ONCE:
        half: tl.constexpr = BN // 2
        halves = tl.permute(tl.reshape(total, (BM, 2, half)), (0, 2, 1))
        left, right = tl.split(halves)
        store_columns(
            left, read[0] if EARLY else read, c, out, rows, cols, c_row, c_col, out_row, out_col,
            alpha, beta, HAS_C, C_UNIT, OUT_UNIT, EARLY, BM, half, AT_ONCE,
        )  # fmt: skip
        store_columns(
            right, read[1] if EARLY else read, c + half * c_col, out + half * out_col, rows,
            cols - half, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, C_UNIT, OUT_UNIT,
            EARLY, BM, half, AT_ONCE,
        )  # fmt: skip
    else:
        total *= alpha
        if HAS_C:
            if not EARLY:
                read = read_tile(c, rows, cols, c_row, c_col, C_UNIT, BM, BN)
            total += beta * read.to(tl.float32)
        inside = (tl.arange(0, BM)[:, None] < rows) & (tl.arange(0, BN)[None, :] < cols)
        at = offsets(out_row, out_col, OUT_UNIT, BM, BN)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "shift", "x_row", "y_row", "c_row", "c_col", "out_row", "out_col", "group",
        "alpha", "beta",
    ]
)  # fmt: skip
def _interleaved_kernel(
    a0, a1, a2, a3, a4, a5, a6, a7, b, x, y, c, out, m, n, k, shift, x_row, y_row, c_row, c_col,
    out_row, out_col, group, alpha, beta,
    HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, ALIGNED: tl.constexpr,
    EVERY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    slab: tl.constexpr = BM * EVERY
    # Tiles of all matrices from the same slab of rows stand one below the other.
    i0, j0 = tile_origin(tl.program_id(0), tl.cdiv(m, slab) * slab, n, group, BM, BN)
    which = i0 // BM % EVERY
    i0 = i0 // slab * BM
    a = _chosen((a0, a1, a2, a3, a4, a5, a6, a7), which, EVERY)
    row = (i0 * EVERY + which).to(tl.int64)
    rows = tl.cdiv(m - which, EVERY) - i0
    cols = n - j0
    if C_UNIT:
        c_col = 1
    else:  # whose multiples may not fit 32 bits
        c_row = c_row.to(tl.int64)
        c_col = c_col.to(tl.int64)
    if OUT_UNIT:
        out_col = 1
    else:
        out_row = out_row.to(tl.int64)
        out_col = out_col.to(tl.int64)
    if ALIGNED:  # the one form in which Triton takes note: hints on arguments are dropped
        cols = cols // 8 * 8
        c_row = c_row // 8 * 8
        out_row = out_row // 8 * 8
    c += row * c_row + j0.to(tl.int64) * c_col
    out += row * out_row + j0.to(tl.int64) * out_col
    c_row *= EVERY
    out_row *= EVERY
    head = 8 - (shift + which * x_row) % 8
    first = which * x_row + head - (8 - shift)  # in the descriptors, from the first row's head on
    a_head, b_head = _heads(
        x + row * x_row, y + j0, rows, cols, head, x_row.to(tl.int64) * EVERY, y_row, BM, BN
    )
    read = 0.0
    if HAS_C and ALIGNED:
        read = read_columns(c, rows, cols, c_row, c_col, C_UNIT, BM, BN, AT_ONCE)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in tl.range(0, k - head, BK, num_stages=STAGES):
        total = tl.dot(a.load([i0, first + at]), b.load([head + at, j0]), total)
    # Where the heads are masked anew they are put into shared memory: not before they are there.
    at = tl.arange(0, 16)
    a_head = tl.where((at < head)[None, :], a_head, 0.0)
    b_head = tl.where((at < head)[:, None], b_head, 0.0)
    total = tl.dot(a_head, b_head, total)
    store_columns(
        total, read, c, out, rows, cols, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
        C_UNIT, OUT_UNIT, HAS_C and ALIGNED, BM, BN, AT_ONCE,
    )  # fmt: skip


def interleaved_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: Tiling,
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    As ``half_product`` in one slice, but of an A for which ``is_interleaved`` holds, and of a B
    with contiguous rows. The result may lie anyhow, but its rows are what is written.
    """
    m, n = out.shape
    k = min(A.shape[1], B.shape[0])
    read = out if C is None else C
    every = _every(A)
    c_unit, out_unit = has_unit_columns(read, every), has_unit_columns(out, every)
    aligned = c_unit and out_unit and is_aligned(read) and is_aligned(out)
    launch(
        _interleaved_kernel,
        ceil_div(m, tiling.bm * every) * every * ceil_div(n, tiling.bn),
        (A, B, read, out),
        (
            m,
            n,
            k,
            _shift(A),
            A.stride(0),
            B.stride(0),
            *read.stride(),
            *out.stride(),
            tiling.group,
        ),
        (alpha, beta),
        {
            "HAS_C": C is not None,
            "C_UNIT": c_unit,
            "OUT_UNIT": out_unit,
            "ALIGNED": aligned,
            "EVERY": every,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "AT_ONCE": min(tiling.bn, 64 if aligned else 32),
        },
        num_warps=tiling.warps,
        # Two programs share a multiprocessor: one is written while the other multiplies.
        registers=(
            registers_for_two(8) if tiling.warps == 8 and tiling.bm * tiling.bn <= 2**14 else None
        ),
        descriptors=(
            *_matrices(A, every, (tiling.bm, tiling.bk)),
            described(B, False, tiling.bk, tiling.bn),
        ),
    )
    written(out)


def is_interleaved(x: torch.Tensor) -> bool:
    """Whether a 16-bit matrix of contiguous rows can be read as it lies, whatever their pitch."""
    (rows, cols), (pitch, step) = x.shape, x.stride()
    return step == 1 and _MOST < cols <= pitch < _WIDEST and rows >= _MOST


def _shift(x: torch.Tensor) -> int:
    """How many elements behind a multiple of 16 bytes x begins."""
    return x.data_ptr() % 16 // 2


def _every(x: torch.Tensor) -> int:
    """How many matrices x is made of that can be described."""
    return _MOST // math.gcd(x.stride(0), _MOST)


def _matrices(x: torch.Tensor, every: int, tile: tuple[int, int]) -> list[TensorDescriptor]:
    """The descriptors of every so many-th row each, and the first again up to eight.

    All begin where the head of the first row ends, and end where x does.
    """
    (rows, cols), pitch, head = x.shape, x.stride(0), _MOST - _shift(x)
    base = x.as_strided((1,), (1,), x.storage_offset() + head)
    found = [
        descriptor(
            base, (ceil_div(rows - i, every), i * pitch + cols - head), every * pitch, tile
        )
        for i in range(every)
    ]  # fmt: skip
    return found + found[:1] * (_MOST - every)
