"""One pass over the operands: convert them, pad them with zeros, and flag what leaves a range.

A fast product may want another type, 16-byte alignment, or both; and it is exact only
for elements inside a range of magnitudes. This pass does all three at once, reads every
operand a single time, and takes one launch for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import ceil_div, launch, workspace

FLAG_BLOCK = 128
"""Rows of A (columns of B) that share one flag: the edge of a tile of the product."""

_BLOCK = 2048
"""Elements of a program's block."""
_WIDEST = 1024
"""Columns of it at most: some rows in one piece are copied faster than more in part (H200)."""
_FAR_ROW = 2**31 // (_BLOCK // FLAG_BLOCK)
"""Offsets within a block fit 32 bits below these strides: it has no more rows."""


@dataclass(frozen=True, slots=True)
class Range:
    """Magnitudes a product handles within its bound: 0, [smallest, largest], inf and NaN."""

    smallest: float
    largest: float


@triton.jit
def _copy_words(
    x, y, odd, first_row, first_col, rows, cols, y_rows, y_cols, x_row, y_row,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Copy 16-bit elements in pairs: half the accesses. ``odd``: x begins within a 32-bit word.

    Only words that hold an element are read. Offsets within the block fit 32 bits.
    """
    r = tl.arange(0, BLOCK_R)[:, None]
    c = tl.arange(0, BLOCK_C // 2)[None, :]
    start = first_row.to(tl.int64) * x_row + first_col + odd
    words = (x - odd).to(tl.pointer_type(tl.uint32)) + (start >> 1)
    place = r * x_row + 2 * c + (start & 1).to(tl.int32)
    split = (place & 1) == 1
    first = (r < rows - first_row) & (2 * c < cols - first_col)
    second = (r < rows - first_row) & (2 * c + 1 < cols - first_col)
    here = tl.load(words + (place >> 1), mask=first, other=0)
    beyond = tl.load(words + (place >> 1) + 1, mask=second & split, other=0)
    pair = tl.where(split, (here >> 16) | (beyond << 16), here)
    pair = tl.where(second, pair, pair & 0xFFFF)
    at = y.to(tl.pointer_type(tl.uint32))
    at += (first_row.to(tl.int64) * y_row + first_col) // 2
    inside = (r < y_rows - first_row) & (2 * c < y_cols - first_col)
    tl.store(at + (r * (y_row // 2) + c), pair, mask=inside)


@triton.jit
def _stage_block(
    block, x, y, flags, odd, rows, cols, y_rows, y_cols, x_row, x_col, y_row, smallest, largest,
    STORE: tl.constexpr, CHECK: tl.constexpr, FLAG_ROWS: tl.constexpr, ALIGNED: tl.constexpr,
    WORDS: tl.constexpr, FLAG: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(y_cols, BLOCK_C)
    first_row = block // across * BLOCK_R
    first_col = block % across * BLOCK_C
    r = (first_row + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    if WORDS:
        _copy_words(
            x, y, odd, first_row, first_col, rows, cols, y_rows, y_cols, x_row, y_row, BLOCK_R,
            BLOCK_C,
        )  # fmt: skip
    else:
        _stage_elements(
            x, y, flags, first_row, first_col, r, rows, cols, y_rows, y_cols, x_row, x_col, y_row,
            smallest, largest, STORE, CHECK, FLAG_ROWS, ALIGNED, FLAG, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _stage_elements(
    x, y, flags, first_row, first_col, r, rows, cols, y_rows, y_cols, x_row, x_col, y_row,
    smallest, largest, STORE: tl.constexpr, CHECK: tl.constexpr, FLAG_ROWS: tl.constexpr,
    ALIGNED: tl.constexpr, FLAG: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = (first_col + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
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


# Row strides are not specialised: told that only the target's is a multiple of 16, Triton
# vectorises for the target and reads an unaligned source uncoalesced (65 instead of 20 us for
# 4095 x 4095 bfloat16 on an H200, Triton 3.6). ALIGNED says so where both are.
# Nor are extents, so that one compiled kernel serves all sizes.
@triton.jit(
    do_not_specialize=[
        "odd1", "rows1", "cols1", "y1_rows", "y1_cols", "x1_row", "y1_row",
        "odd2", "rows2", "cols2", "y2_rows", "y2_cols", "x2_row", "y2_row",
        "blocks1", "first_flags", "smallest", "largest",
    ]
)  # fmt: skip
def _stage_kernel(
    x1, y1, flags1, x2, y2, flags2,
    odd1, rows1, cols1, y1_rows, y1_cols, x1_row, x1_col, y1_row,
    odd2, rows2, cols2, y2_rows, y2_cols, x2_row, x2_col, y2_row, blocks1, first_flags,
    smallest, largest,
    STORE: tl.constexpr, CHECK: tl.constexpr, FLAG_ROWS1: tl.constexpr,
    FLAG_ROWS2: tl.constexpr, ALIGNED1: tl.constexpr, ALIGNED2: tl.constexpr,
    WORDS1: tl.constexpr, WORDS2: tl.constexpr, FLAG: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < blocks1:
        _stage_block(
            block, x1, y1, flags1, odd1, rows1, cols1, y1_rows, y1_cols, x1_row, x1_col, y1_row,
            smallest, largest, STORE, CHECK, FLAG_ROWS1, ALIGNED1, WORDS1, FLAG, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        _stage_block(
            block - blocks1, x2, y2, flags2 + first_flags, odd2, rows2, cols2, y2_rows, y2_cols,
            x2_row, x2_col, y2_row, smallest, largest, STORE, CHECK, FLAG_ROWS2, ALIGNED2, WORDS2,
            FLAG, BLOCK_R, BLOCK_C,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Side:
    """One operand's part of a launch, turned so that its contiguous extent is the columns."""

    source: torch.Tensor
    target: torch.Tensor
    transposed: bool
    flags: torch.Tensor | None
    flag_rows: bool
    store: bool

    @classmethod
    def of(
        cls, x: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype,
        flags: torch.Tensor | None, flag_rows: bool, store: bool,
    ) -> _Side:  # fmt: skip
        transposed = x.stride(0) == 1 and x.stride(1) != 1
        source = x.t() if transposed else x
        if transposed:
            shape = (shape[1], shape[0])
        target = workspace(*shape, dtype=dtype, device=x.device) if store else source
        return cls(source, target, transposed, flags, flag_rows != transposed, store)

    @property
    def width(self) -> int:
        """How many columns suit a block: all of a row, or no more than share a flag."""
        if self.flags is not None:
            return FLAG_BLOCK
        cols = self.target.shape[1]
        return min(_WIDEST, max(FLAG_BLOCK, 1 << (cols - 1).bit_length()))

    def blocks(self, width: int) -> int:
        rows, cols = self.target.shape
        return ceil_div(rows, _BLOCK // width) * ceil_div(cols, width)

    @property
    def aligned(self) -> bool:
        row, col = self.source.stride()
        return (
            self.source.data_ptr() % 16 == 0
            and row % 8 == 0
            and col == 1
            and self.target.stride(0) % 8 == 0
        )

    @property
    def in_words(self) -> bool:
        """Whether 16-bit elements can be copied as they are, two at a time."""
        source, target = self.source, self.target
        return (
            self.store
            and self.flags is None
            and source.dtype == target.dtype
            and source.element_size() == 2
            and source.stride(1) == 1
            and source.stride(0) < _FAR_ROW
            and target.shape[1] % 2 == 0
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.source, self.target, self.target if self.flags is None else self.flags

    @property
    def integers(self) -> tuple[int, ...]:
        source, target = self.source, self.target
        odd = source.data_ptr() // 2 % 2
        return (odd, *source.shape, *target.shape, *source.stride(), target.stride(0))

    @property
    def result(self) -> torch.Tensor:
        return self.target.t() if self.transposed else self.target


def stage(x: torch.Tensor, *, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x as a (rows, cols) matrix of ``dtype``, zero beyond x, in x's own order.

    The result is 16-byte aligned if its contiguous extent is.
    """
    side = _Side.of(x, (rows, cols), dtype, None, True, True)
    _launch(side, None, 0, None)
    return side.result


def stage_both(
    A: torch.Tensor,
    B: torch.Tensor,
    *,
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    flags: torch.Tensor | None = None,
    limits: Range | None = None,
    store: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A as (m, k) and B as (k, n) of ``dtype``, zero beyond the operands, orders kept.

    With ``flags`` (int32, zeroed, one for each ``FLAG_BLOCK`` rows of A and then one for each
    ``FLAG_BLOCK`` columns of B) a flag is set to 1 where a finite element lies outside
    ``limits``. With ``store`` False the operands are only checked, and returned as they are.
    """
    a = _Side.of(A, (m, k), dtype, flags, True, store)
    b = _Side.of(B, (k, n), dtype, flags, False, store)
    _launch(a, b, ceil_div(A.shape[0], FLAG_BLOCK), limits)
    return (a.result, b.result) if store else (A, B)


def _launch(
    first: _Side, other: _Side | None, first_flags: int, limits: Range | None
) -> None:
    second = first if other is None else other
    width = max(first.width, second.width)
    blocks = first.blocks(width)
    launch(
        _stage_kernel,
        blocks if other is None else blocks + second.blocks(width),
        (*first.tensors, *second.tensors),
        (*first.integers, *second.integers, blocks, first_flags),
        (limits.smallest, limits.largest) if limits else (0.0, 0.0),
        {
            "STORE": first.store,
            "CHECK": first.flags is not None,
            "FLAG_ROWS1": first.flag_rows,
            "FLAG_ROWS2": second.flag_rows,
            "ALIGNED1": first.aligned,
            "ALIGNED2": second.aligned,
            "WORDS1": first.in_words,
            "WORDS2": second.in_words,
            "FLAG": FLAG_BLOCK,
            "BLOCK_R": _BLOCK // width,
            "BLOCK_C": width,
        },
        num_warps=4,
    )
