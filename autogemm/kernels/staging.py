"""One pass over an operand: convert it, pad it with zeros, and flag what leaves a range.

A fast product may want another type, 16-byte alignment, or both; and it is exact only
for elements inside a range of magnitudes. This pass does all three at once and reads the
operand a single time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

FLAG_BLOCK = 128
"""Rows (or columns) of an operand that share one flag: the edge of a tile of the product."""

_BLOCK_ROWS = 16
_BLOCK_COLS = 128


@dataclass(frozen=True, slots=True)
class Range:
    """Magnitudes a product handles within its bound: 0, [smallest, largest], inf and NaN."""

    smallest: float
    largest: float


@triton.jit(do_not_specialize=["x_row", "y_row"])
def _stage_kernel(
    x, y, flags, rows, cols, y_rows, y_cols, x_row, x_col, y_row, smallest, largest,
    STORE: tl.constexpr, CHECK: tl.constexpr, FLAG_ROWS: tl.constexpr, ALIGNED: tl.constexpr,
    FLAG: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(y_cols, BLOCK_C)
    first_row = tl.program_id(0) // across * BLOCK_R
    first_col = tl.program_id(0) % across * BLOCK_C
    r = (first_row + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    c = (first_col + tl.arange(0, BLOCK_C))[None, :]
    if ALIGNED:
        x_row = tl.multiple_of(x_row, 8)
        y_row = tl.multiple_of(y_row, 8)
    value = tl.load(x + r * x_row + c * x_col, mask=(r < rows) & (c < cols), other=0.0)
    if CHECK:
        magnitude = tl.abs(value)
        outside = ((magnitude > 0) & (magnitude < smallest)) | (
            (magnitude > largest) & (magnitude < float("inf"))
        )
        if tl.max(tl.max(outside.to(tl.int32), 1), 0) > 0:
            tl.store(flags + (first_row if FLAG_ROWS else first_col) // FLAG, 1)
    if STORE:
        tl.store(
            y + r * y_row + c, value.to(y.dtype.element_ty), mask=(r < y_rows) & (c < y_cols)
        )


def stage(
    x: torch.Tensor,
    *,
    rows: int,
    cols: int,
    dtype: torch.dtype,
    flags: torch.Tensor | None = None,
    flag_rows: bool = True,
    limits: Range | None = None,
    store: bool = True,
) -> torch.Tensor:
    """Return x as a (rows, cols) matrix of ``dtype``, zero beyond x, in x's own order.

    The result is 16-byte aligned if ``rows`` and ``cols`` are. With ``flags`` (int32, zeroed,
    one for each ``FLAG_BLOCK`` rows, or columns if not ``flag_rows``) a flag is set to 1 where
    a finite element lies outside ``limits``. With ``store`` False x is only checked, and
    returned.
    """
    transposed = x.stride(0) == 1 and x.stride(1) != 1
    source = x.t() if transposed else x
    shape = (cols, rows) if transposed else (rows, cols)
    target = torch.empty(shape, dtype=dtype, device=x.device) if store else source
    extents = shape if store else source.shape
    aligned = (
        x.data_ptr() % 16 == 0
        and source.stride(0) % 8 == 0
        and source.stride(1) == 1
        and target.stride(0) % 8 == 0
    )
    # One axis: only a grid's first one holds more than 65535 blocks.
    grid = (triton.cdiv(extents[0], _BLOCK_ROWS) * triton.cdiv(extents[1], _BLOCK_COLS),)
    _stage_kernel[grid](
        source,
        target,
        target if flags is None else flags,
        source.shape[0],
        source.shape[1],
        extents[0],
        extents[1],
        source.stride(0),
        source.stride(1),
        target.stride(0),
        limits.smallest if limits else 0.0,
        limits.largest if limits else 0.0,
        STORE=store,
        CHECK=flags is not None,
        FLAG_ROWS=flag_rows != transposed,
        ALIGNED=aligned,
        FLAG=FLAG_BLOCK,
        BLOCK_R=_BLOCK_ROWS,
        BLOCK_C=_BLOCK_COLS,
        num_warps=4,
    )
    return (target.t() if transposed else target) if store else x
