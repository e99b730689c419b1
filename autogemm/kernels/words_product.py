"""``half_product`` of a B whose columns lie anyhow, read where they lie, in the same one launch.

Columns are read in 32-bit words, as ``kernels/staging.py`` does, and shifted into place on their
way to the tensor cores. Triton brings words ahead of time as it does tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.half_product import has_unit_columns, is_aligned, is_row_major
from autogemm.kernels.interleaved_product import read_columns, store_columns
from autogemm.kernels.launch import ceil_div, launch, written
from autogemm.kernels.operands import described
from autogemm.kernels.raster import tile_origin
from autogemm.kernels.split_product import Tiling

_FAR_COLUMN = 2**31 // 256
"""Offsets within a tile fit 32 bits below this pitch: tiles have at most 256 columns."""


@triton.jit
def _columns(
    words, place, rows, cols, TYPE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """A tile of columns whose first elements are at ``place``, counted from the first word.

    Only words that hold an element of these ``rows`` and ``cols`` are read.
    """
    j = tl.arange(0, BN)[:, None]
    pair = 2 * tl.arange(0, BK // 2)[None, :]
    split = (place & 1) == 1
    at = (place >> 1) + tl.arange(0, BK // 2)[None, :]
    here = tl.load(words + at, mask=(j < cols) & (pair < rows), other=0)
    beyond = tl.load(words + 1 + at, mask=(j < cols) & split & (pair + 1 < rows), other=0)
    both = tl.where(split, (here >> 16) | (beyond << 16), here)
    both = tl.where(pair + 1 < rows, both, both & 0xFFFF)
    first = both.to(tl.uint16).to(TYPE, bitcast=True)
    second = (both >> 16).to(tl.uint16).to(TYPE, bitcast=True)
    return tl.reshape(tl.join(first, second), (BN, BK)).T


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "odd", "y_col", "c_row", "c_col", "out_row", "out_col", "group", "alpha",
        "beta",
    ]
)  # fmt: skip
def _words_kernel(
    a, y, c, out, m, n, k, odd, y_col, c_row, c_col, out_row, out_col, group, alpha, beta,
    HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, ALIGNED: tl.constexpr,
    A_T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    i0, j0 = tile_origin(tl.program_id(0), m, n, group, BM, BN)
    rows, cols = m - i0, n - j0
    start = odd + j0.to(tl.int64) * y_col
    words = (y - odd).to(tl.pointer_type(tl.uint32)) + (start >> 1)
    place = (start & 1).to(tl.int32) + tl.arange(0, BN)[:, None] * y_col
    if C_UNIT:
        c_col = 1
    if OUT_UNIT:
        out_col = 1
    inside = cols
    if ALIGNED:  # the one form in which Triton takes note: hints on arguments are dropped
        inside = cols // 8 * 8
        c_row = c_row // 8 * 8
        out_row = out_row // 8 * 8
    c += i0.to(tl.int64) * c_row + j0.to(tl.int64) * c_col
    out += i0.to(tl.int64) * out_row + j0.to(tl.int64) * out_col
    read = 0.0
    if HAS_C and ALIGNED:
        read = read_columns(c, rows, inside, c_row, c_col, C_UNIT, BM, BN, AT_ONCE)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in tl.range(0, k, BK, num_stages=STAGES):
        x = a.load([at, i0]).T if A_T else a.load([i0, at])
        b = _columns(words + at // 2, place, k - at, cols, y.dtype.element_ty, BK, BN)
        total = tl.dot(x, b, total)
    store_columns(
        total, read, c, out, rows, inside, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
        C_UNIT, OUT_UNIT, HAS_C and ALIGNED, BM, BN, AT_ONCE,
    )  # fmt: skip


def words_product(
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

    As ``half_product`` in one slice, but of a B for which ``has_words`` holds. The result may lie
    anyhow, but its rows are what is written.
    """
    m, n = out.shape
    k = min(A.shape[1], B.shape[0])
    read = out if C is None else C
    c_unit, out_unit = has_unit_columns(read), has_unit_columns(out)
    aligned = c_unit and out_unit and is_aligned(read) and is_aligned(out)
    a_t = not is_row_major(A)
    launch(
        _words_kernel,
        ceil_div(m, tiling.bm) * ceil_div(n, tiling.bn),
        (B, read, out),
        (
            m,
            n,
            k,
            B.data_ptr() // 2 % 2,
            B.stride(1),
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
            "A_T": a_t,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "AT_ONCE": min(tiling.bn, 64 if aligned else 32),
        },
        num_warps=tiling.warps,
        descriptors=(described(A, a_t, tiling.bm, tiling.bk),),
    )
    written(out)


def has_words(x: torch.Tensor) -> bool:
    """Whether a 16-bit matrix of contiguous columns can be read as it lies, of whatever pitch."""
    return x.stride(0) == 1 and 0 < x.stride(1) < _FAR_COLUMN
