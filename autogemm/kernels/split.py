"""float32 operands as scaled fp16 terms: x·2^s ≈ hi + 2⁻¹¹·lo, with a scale for each stretch.

A stretch is one row of A (column of B) over ``chunk`` elements of k. Its power of two brings
the largest magnitude into [2¹⁴, 2¹⁵), so that hi and lo hold 23 of its 24 bits down to
2⁻²⁷ of it. One launch reads both operands once, in whatever order they lie, and writes the
terms with k contiguous, as tensor cores like them.

inf and NaN travel in lo, their hi being 0: hi·hi is then finite, and of the cross products
only theirs is not, with the sign that IEEE arithmetic gives it. For that, hi is 0 for nothing
else but zeros. With one term they travel in hi.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import REMEMBERED, ceil_div, launch, workspace

_ROWS = {
    64: ((32, 4), (32, 4)),
    128: ((8, 4), (16, 4)),
    256: ((8, 4), (16, 4)),
    512: ((4, 4), (8, 4)),
    1024: ((2, 4), (8, 8)),
    2048: ((2, 8), (8, 8)),
}
"""Stretches that one program splits and its warps, by chunk: where k is contiguous, and where it is
not (8 stretches are 32 bytes there, one access). As measured best on an H200."""
_LARGE = 2**22
"""Elements from which ``_ROWS_IF_LARGE`` holds: 2 to 7 % faster there, and as much slower below."""
_ROWS_IF_LARGE = _ROWS | {256: ((8, 4), (16, 8)), 512: ((4, 4), (16, 8))}
_TOGETHER = {64: 2048, 128: 2048, 256: 4096, 512: 4096, 1024: 4096, 2048: 16384}
"""Elements of a program, 16 a thread, where one launch splits operands that lie differently."""
_APART = 2**23
"""Elements of both up to which one launch splits such operands. With more, what one of two
kernels needs in registers would cost the other programs more than a launch takes: on an H200 a
product of form ``continuous`` took 0.974 (1536³), 1.000 (2048³) and 1.015 (3072³) times as long so,
launched call by call 0.964, 0.990 and 1.010."""
_FAR_ROW = 2**31 // 64
_FAR_K = 2**31 // 2048
"""Offsets within a program's block fit 32 bits below these strides: it has no more rows, and no
chunk is longer."""

# Bit patterns and binary exponents, as integers: the interpreter and the compiler agree on them.
_INFINITY = tl.constexpr(0x7F800000)
LOWEST_EXPONENT = tl.constexpr(-84)
"""Stretches whose largest magnitude is below 2^this are scaled as if it were there."""
_LOWEST_SAFE = tl.constexpr(-20)
"""Stretches that lie lower are flagged: sums of their products may underflow."""

_UNSCALED = -14
"""The bias with which a scale is what its terms are multiples of."""
SCALE_BIASES = (-42, 0)
"""Binary exponents by which the scales of A and B are off, chosen so that no product of a
partial sum with them overflows or underflows on the way: the sum comes out 2⁻¹⁴ of itself."""


@triton.jit
def _factor(exponent):
    """The power of two that a stretch is multiplied by."""
    return ((141 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]


@triton.jit
def _quotient(x, y):
    """x // y of integers that are not negative, for fewer instructions."""
    return (x.to(tl.uint32, bitcast=True) // y.to(tl.uint32, bitcast=True)).to(
        tl.int32, bitcast=True
    )


@triton.jit
def _split_block(
    block, x, terms, scales, rows, k, count, x_step, x_row, x_k, pitch, bias,
    BATCHED: tl.constexpr, ORDER: tl.constexpr, ALIGNED: tl.constexpr, TERMS: tl.constexpr,
    LOW_UNIT: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Split block ``block`` of ``count`` matrices, ``x_step`` elements apart."""
    if ALIGNED:  # the one form in which Triton takes note: hints on arguments are dropped
        rows = rows // 4 * 4
        k = k // 4 * 4
        if ORDER == 1:
            x_row = x_row // 4 * 4
        elif ORDER == 2:
            x_k = x_k // 4 * 4
        x_step = x_step // 4 * 4
    pitch = pitch // 8 * 8  # zeros fill the rows up to it
    all_rows = rows.to(tl.int64) * count
    before = all_rows * 0  # rows of the matrices before this one
    if BATCHED:
        of_matrix = tl.cdiv(rows, R) * tl.cdiv(k, CHUNK)
        matrix = _quotient(block, of_matrix)
        block -= matrix * of_matrix
        x += matrix.to(tl.int64) * x_step
        before = matrix.to(tl.int64) * rows
    # Neighbours in memory go to neighbouring programs.
    if ORDER == 2:
        across = tl.cdiv(rows, R)
        chunk = _quotient(block, across)
        first_row = (block - chunk * across) * R
    else:
        across = tl.cdiv(k, CHUNK)
        group = _quotient(block, across)
        first_row = group * R
        chunk = block - group * across
    first_k = chunk * CHUNK
    r = tl.arange(0, R)
    c = tl.arange(0, CHUNK)
    if ORDER == 1:
        x += first_row.to(tl.int64) * x_row + first_k
        at = r[:, None] * x_row + c[None, :]
    elif ORDER == 2:
        x += first_row + first_k.to(tl.int64) * x_k
        at = r[:, None] + c[None, :] * x_k
    else:
        x += first_row.to(tl.int64) * x_row + first_k.to(tl.int64) * x_k
        at = r.to(tl.int64)[:, None] * x_row + c.to(tl.int64)[None, :] * x_k
    inside = (r < rows - first_row)[:, None] & (c < k - first_k)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    bits = tl.abs(value).to(tl.int32, bitcast=True)
    nonzero = (bits - 1).to(tl.uint32, bitcast=True)  # what is 0 is not the smallest
    highest = tl.max(bits, 1)
    lowest = tl.min(nonzero, 1)
    exponent = tl.maximum((highest >> 23) - 127, LOWEST_EXPONENT)
    # The smallest magnitude that its terms hold in full lies 2^27 (28, with one term) below.
    whole = (exponent + (100 if TERMS == 2 else 99)) << 23
    small = lowest < (whole - 1).to(tl.uint32, bitcast=True)
    odd = small | (highest >= _INFINITY) | ((exponent < _LOWEST_SAFE) & (highest > 0))
    if tl.max(odd.to(tl.int32), 0) > 0:
        special = bits >= _INFINITY  # which takes no part in the scale
        highest = tl.max(tl.where(special, 0, bits), 1)
        exponent = tl.maximum((highest >> 23) - 127, LOWEST_EXPONENT)
        scaled = value * _factor(exponent)
        # What underflows becomes the smallest number: an infinite partner must meet no false zero.
        hi = scaled.to(tl.float16).to(tl.int16, bitcast=True)
        hi = tl.where(((hi & 0x7FFF) == 0) & (bits > 0), hi | 1, hi).to(tl.float16, bitcast=True)
        if TERMS == 2:
            hi = tl.where(special, 0.0, hi)
    else:
        scaled = value * _factor(exponent)
        hi = scaled.to(tl.float16)
    terms += (before + first_row) * pitch + first_k
    at = terms + (r[:, None] * pitch + c[None, :])
    kept = (r < rows - first_row)[:, None] & (c < pitch - first_k)[None, :]
    tl.store(at, hi, mask=kept)
    if TERMS == 2:
        lo = ((scaled - hi.to(tl.float32)) * LOW_UNIT).to(tl.float16)
        tl.store(at + all_rows * pitch, lo, mask=kept)
    scale = ((127 + bias + exponent) << 23).to(tl.float32, bitcast=True)
    scale = tl.where(highest > 0, scale, 0.0)
    # The sign is the flag: this stretch holds something that its terms do not hold in full.
    scale = tl.where(odd, -tl.maximum(scale, 2.0**-126), scale)
    scales += chunk * all_rows + before + first_row
    tl.store(scales + r, scale, mask=r < rows - first_row)


@triton.jit(
    do_not_specialize=[
        "m", "a_count", "a_step", "a_row", "a_k", "n", "b_count", "b_step", "b_row", "b_k", "k",
        "pitch", "blocks", "a_bias", "b_bias",
    ]
)  # fmt: skip
def _split_kernel(
    a, b, terms, scales, m, a_count, a_step, a_row, a_k, n, b_count, b_step, b_row, b_k, k, pitch,
    blocks, a_bias, b_bias,
    BATCHED: tl.constexpr, A_ORDER: tl.constexpr, B_ORDER: tl.constexpr, A_ALIGNED: tl.constexpr,
    B_ALIGNED: tl.constexpr, TERMS: tl.constexpr, LOW_UNIT: tl.constexpr, R: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < blocks:
        _split_block(
            block, a, terms, scales, m, k, a_count, a_step, a_row, a_k, pitch, a_bias, BATCHED,
            A_ORDER, A_ALIGNED, TERMS, LOW_UNIT, R, CHUNK,
        )  # fmt: skip
    else:
        a_rows = m.to(tl.int64) * a_count
        _split_block(
            block - blocks, b, terms + TERMS * a_rows * (pitch // 8 * 8),
            scales + tl.cdiv(k, CHUNK) * a_rows, n, k, b_count, b_step, b_row, b_k, pitch, b_bias,
            BATCHED, B_ORDER, B_ALIGNED, TERMS, LOW_UNIT, R, CHUNK,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """The terms and scales of both operands."""

    terms: torch.Tensor
    """fp16, k contiguous, rows 16-byte aligned: A's hi (m rows), A's lo, B's hi (n), B's lo. The
    rows of a batch's matrices follow one another; one that all products share is there once."""
    scales: torch.Tensor
    """float32, of A (chunks, m), then of B (chunks, n): 2^(e + bias), e the exponent of the
    stretch's largest finite magnitude and bias from ``SCALE_BIASES``, 0 where it has none;
    negative where it holds an inf, a NaN, or an element too small for its terms."""


def split_both(A: torch.Tensor, B: torch.Tensor, *, terms: int, chunk: int) -> Split:
    """Split the rows of A (m, k) and the columns of B (k, n), float32 with any strides.

    Or those of batches (batch, m, k) and (batch, k, n). ``terms`` is 1 or 2, ``chunk`` a power of
    two from 64 to 2048.
    """
    m, k, n = *A.shape[-2:], B.shape[-1]
    a_count, b_count = count_of(A), count_of(B)
    pitch, chunks, launches = _cut(
        m, n, k, a_count, b_count, A.stride(), B.stride(), A.data_ptr() % 16 == 0,
        B.data_ptr() % 16 == 0, terms, chunk,
    )  # fmt: skip
    a_rows, b_rows = a_count * m, b_count * n
    buffer = workspace((a_rows + b_rows) * terms, pitch, dtype=torch.float16, device=A.device)
    scales = workspace(chunks * (a_rows + b_rows), dtype=torch.float32, device=A.device)
    for which, blocks, integers, constants, warps in launches:
        tensors = (A, B, buffer, scales)
        if which == "A":
            tensors = (A, A, buffer, scales)
        elif which == "B":
            tensors = (B, B, buffer[terms * a_rows :], scales[chunks * a_rows :])
        launch(_split_kernel, blocks, tensors, integers, (), constants, num_warps=warps)
    return Split(buffer, scales)


def count_of(x: torch.Tensor) -> int:
    """How many matrices are there: 1 also where a batch is one expanded."""
    return 1 if x.ndim == 2 or x.stride(0) == 0 else x.shape[0]


def split_columns(B: torch.Tensor, *, terms: int, chunk: int) -> Split:
    """Split the columns of B (k, n) alone, for sums that add all products in one accumulator.

    lo is not multiplied by 2¹¹, and a scale is what terms are multiples of: b ≈ scale·(hi + lo).
    """
    (k, n), (b_k, b_row) = B.shape, B.stride()
    pitch, chunks = ceil_div(k, 8) * 8, ceil_div(k, chunk)
    _, blocks, integers, constants, warps = _cut_one(
        n, b_row, b_k, k, B.data_ptr() % 16 == 0, terms, chunk
    )
    buffer = workspace(n * terms, pitch, dtype=torch.float16, device=B.device)
    scales = workspace(chunks * n, dtype=torch.float32, device=B.device)
    launch(
        _split_kernel, blocks, (B, B, buffer, scales), integers, (), constants, num_warps=warps
    )
    return Split(buffer, scales)


_Launch = tuple[str, int, tuple[int, ...], dict[str, int | bool | float], int]
"""What is split, programs, integers, constants, warps."""
_Operand = tuple[int, int, int, int, int, int, bool]
"""Rows, matrices, their stride, that of rows, that of k, the bias of scales, whether at a multiple
of 16 bytes."""


@functools.lru_cache(maxsize=REMEMBERED)
def _cut(
    m: int, n: int, k: int, a_count: int, b_count: int, a_strides: tuple[int, ...],
    b_strides: tuple[int, ...], a_aligned: bool, b_aligned: bool, terms: int, chunk: int,
) -> tuple[int, int, list[_Launch]]:  # fmt: skip
    """Terms' pitch, chunks of k, and launches. ``_aligned``: whether at a multiple of 16 bytes."""
    a_step, a_row, a_k = (0, *a_strides)[-3:]
    b_step, b_k, b_row = (0, *b_strides)[-3:]
    a = (m, a_count, a_step, a_row, a_k, SCALE_BIASES[0], a_aligned)
    b = (n, b_count, b_step, b_row, b_k, SCALE_BIASES[1], b_aligned)
    pitch, chunks = ceil_div(k, 8) * 8, ceil_div(k, chunk)
    if _order(a_row, a_k) == _order(b_row, b_k) or (a_count * m + b_count * n) * k <= _APART:
        return pitch, chunks, [_one("both", a, b, k, terms, chunk, 2048.0)]
    apart = [("A", a), ("B", b)]
    return pitch, chunks, [_one(x, of, _none(of), k, terms, chunk, 2048.0) for x, of in apart]


@functools.lru_cache(maxsize=REMEMBERED)
def _cut_one(
    rows: int, row: int, k_stride: int, k: int, aligned: bool, terms: int, chunk: int
) -> _Launch:
    operand = (rows, 1, 0, row, k_stride, _UNSCALED, aligned)
    return _one("B", operand, _none(operand), k, terms, chunk, 1.0)


def _none(operand: _Operand) -> _Operand:
    """No rows, that lie as this operand's do."""
    return (0, *operand[1:])


def _one(
    which: str, first: _Operand, second: _Operand, k: int, terms: int, chunk: int, low_unit: float
) -> _Launch:
    rows, count, step, row, stride, bias, at_16 = first
    rows_2, count_2, step_2, row_2, stride_2, bias_2, at_16_2 = second
    order, order_2 = _order(row, stride), _order(row_2, stride_2)
    if order == order_2:
        by_chunk = _ROWS_IF_LARGE if (count * rows + count_2 * rows_2) * k >= _LARGE else _ROWS
        stretches, warps = by_chunk[chunk][order != 1]
    else:
        stretches, warps = _TOGETHER[chunk] // chunk, _TOGETHER[chunk] // 512
    pitch, chunks = ceil_div(k, 8) * 8, ceil_div(k, chunk)
    blocks = count * ceil_div(rows, stretches) * chunks
    blocks_2 = count_2 * ceil_div(rows_2, stretches) * chunks
    integers = (
        rows, count, step, row, stride, rows_2, count_2, step_2, row_2, stride_2, k, pitch, blocks,
        bias, bias_2,
    )  # fmt: skip
    constants = {
        "BATCHED": max(count, count_2) > 1,
        "A_ORDER": order,
        "B_ORDER": order_2,
        "A_ALIGNED": order > 0 and bool(at_16) and _in_fours(step, row, stride, rows, k),
        "B_ALIGNED": order_2 > 0 and bool(at_16_2)
        and _in_fours(step_2, row_2, stride_2, rows_2, k),
        "TERMS": terms,
        "LOW_UNIT": low_unit,
        "R": stretches,
        "CHUNK": chunk,
    }
    return which, blocks + blocks_2, integers, constants, warps


def _order(row: int, k: int) -> int:
    """1 where k is contiguous, 2 where rows are; 0 where neither is, or 32 bits fall short."""
    if k == 1 and row < _FAR_ROW:
        return 1
    return 2 if row == 1 and k < _FAR_K else 0


def _in_fours(step: int, row: int, k_stride: int, rows: int, k: int) -> bool:
    unit, *others = sorted((row, k_stride))
    return unit == 1 and all(extent % 4 == 0 for extent in (step, *others, rows, k))
