"""What kernels of products share at their end: an IEEE tile, and α·P + β·C into memory.

A tile is stored before it is looked at twice, and again if it must be computed again: a total
that had to outlive the second look would cost every tile its registers. Where C is the result
itself that is not possible; such tiles are stored last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.operands import load_tiles

_IEEE_BLOCK = tl.constexpr(16)
_AT_ONCE = tl.constexpr(32)
"""Columns that are stored at a time."""


@triton.jit
def within(rows, cols, BM: tl.constexpr, BN: tl.constexpr):
    """Which elements there are of a tile of which so many rows and columns are in the matrix."""
    return (tl.arange(0, BM) < rows)[:, None] & (tl.arange(0, BN) < cols)[None, :]


@triton.jit
def ieee_tile(
    a, b, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, BM: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr = 1,
):  # fmt: skip
    """The tile's products over k in [first, last), by IEEE float32 arithmetic.

    Sums of ``chunk`` elements are added to a total, so that the error stays below that of
    chunks twice as long in a tensor core.
    """
    i = (i0 + tl.arange(0, BM)).to(tl.int64)
    j = (j0 + tl.arange(0, BN)).to(tl.int64)
    kk = tl.arange(0, _IEEE_BLOCK).to(tl.int64)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(first, last, chunk):
        part = tl.zeros((BM, BN), dtype=tl.float32)
        end = tl.minimum(start + chunk, last)
        for block in tl.range(start, end, _IEEE_BLOCK, num_stages=STAGES):
            at = block + kk
            x = tl.load(
                a + i[:, None] * a_row + at[None, :] * a_k,
                mask=(i < m)[:, None] & (at < end)[None, :],
                other=0.0,
            )
            y = tl.load(
                b + at[:, None] * b_k + j[None, :] * b_row,
                mask=(at < end)[:, None] & (j < n)[None, :],
                other=0.0,
            )
            part = tl.dot(x, y, part, input_precision="ieee")
        total += part
    return total


@triton.jit
def ieee_blocks(
    a, b, i0, j0, first, last, chunk_blocks, A_T: tl.constexpr, B_T: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``ieee_tile``, through descriptors, of chunks of so many blocks of BK elements."""
    total = tl.zeros((BM, BN), dtype=tl.float32)
    part = tl.zeros((BM, BN), dtype=tl.float32)
    in_chunk = 0
    for at in tl.range(first, last, BK, num_stages=STAGES):
        x, y = load_tiles(a, b, i0, j0, at, A_T, B_T)
        part = tl.dot(x, y, part, input_precision="ieee")
        in_chunk += 1
        if in_chunk == chunk_blocks:
            total += part
            part = tl.zeros((BM, BN), dtype=tl.float32)
            in_chunk = 0
    return total + part


@triton.jit
def store_tile(
    total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write α·total + β·C. ROWS is what ``rows_of`` says of both C and the result.

    All of C is asked for before anything is stored: one wait for memory instead of many.
    """
    source = read_parts(c, i0, j0, m, n, c_row, c_col, HAS_C, ROWS, BM, BN)
    store_parts(
        total, source, out, i0, j0, m, n, out_row, out_col, alpha, beta, HAS_C, ROWS, BM, BN
    )


@triton.jit
def read_parts(
    c, i0, j0, m, n, c_row, c_col, HAS_C: tl.constexpr, ROWS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """C's tile as a tree of pairs, its leaves of _AT_ONCE columns at most."""
    if not HAS_C:
        parts = 0.0
    elif BN > _AT_ONCE:
        left = read_parts(c, i0, j0, m, n, c_row, c_col, HAS_C, ROWS, BM, BN // 2)
        right = read_parts(c, i0, j0 + BN // 2, m, n, c_row, c_col, HAS_C, ROWS, BM, BN // 2)
        parts = left, right  # type: ignore[assignment]
    else:
        parts = read_tile(c, i0, j0, m, n, c_row, c_col, ROWS, BM, BN)
    return parts


@triton.jit
def read_tile(
    x, i0, j0, m, n, row, col, ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """A tile of the matrix x, zeros beyond it. ROWS is what ``rows_of`` says of it."""
    at, inside = _place(x, i0, j0, m, n, row, col, ROWS, BM, BN)
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def store_parts(
    total, source, out, i0, j0, m, n, out_row, out_col, alpha, beta, HAS_C: tl.constexpr,
    ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``store_tile`` of a tile of C that ``read_parts`` has read."""
    if BN > _AT_ONCE:  # half after half: a tile's addresses take many registers
        halves = tl.permute(tl.reshape(total, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        if HAS_C:
            source_left = source[0]
            source_right = source[1]
        else:
            source_left = source
            source_right = source
        store_parts(
            left, source_left, out, i0, j0, m, n, out_row, out_col, alpha, beta, HAS_C, ROWS, BM,
            BN // 2,
        )  # fmt: skip
        store_parts(
            right, source_right, out, i0, j0 + BN // 2, m, n, out_row, out_col, alpha, beta, HAS_C,
            ROWS, BM, BN // 2,
        )  # fmt: skip
    else:
        total *= alpha
        if HAS_C:
            total += beta * source
        at, inside = _place(out, i0, j0, m, n, out_row, out_col, ROWS, BM, BN)
        tl.store(at, total, mask=inside)


@triton.jit
def _place(
    x, i0, j0, m, n, row, col, ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """Where a part of a tile lies in the matrix x, and which of its elements there are."""
    r = tl.arange(0, BM)[:, None]
    q = tl.arange(0, BN)[None, :]
    if ROWS == 2:  # the one form in which Triton takes note: hints on arguments are dropped
        n = n // 4 * 4
        row = row // 4 * 4
    inside = (r < m - i0) & (q < n - j0)
    if ROWS > 0:
        at = x + (i0.to(tl.int64) * row + j0) + (r * row + q)
    else:
        at = x + ((i0 + r).to(tl.int64) * row + (j0 + q).to(tl.int64) * col)
    return at, inside


@triton.jit
def store_both(
    total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, GRAM: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """``store_tile``; of a Gram matrix also the tile's mirror image."""
    store_tile(
        total, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS, BM,
        BN,
    )  # fmt: skip
    if GRAM:  # noqa: SIM102 - together they would not be decided when compiled
        if i0 != j0:
            store_tile(
                tl.trans(total), c, out, j0, i0, n, m, c_row, c_col, out_row, out_col, alpha, beta,
                HAS_C, ROWS, BN, BM,
            )  # fmt: skip


def rows_of(x: torch.Tensor) -> int:
    """How the rows of a float32 matrix, or of a batch's matrices, lie, for ``store_tile``.

    2: contiguous and at multiples of 16 bytes, 1: contiguous, neighbouring threads then write
    neighbouring elements; 0: neither, or so far apart that offsets within a tile exceed 32 bits.
    """
    starts = x.data_ptr() if x.ndim == 2 else x.data_ptr() | 4 * x.stride(0)
    return rows_by(x.stride()[-2:], x.shape[-1], starts % 16 == 0)


def rows_by(strides: tuple[int, ...], columns: int, aligned: bool) -> int:
    """``rows_of`` a matrix by its strides, columns, and whether it starts at 16 bytes."""
    row, col = strides
    if col != 1 or row >= 2**23:
        return 0
    return 2 if row % 4 == 0 and columns % 4 == 0 and aligned else 1
