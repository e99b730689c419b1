"""What ``fused_product`` computes again, in IEEE arithmetic: a tile, or one line of it (Triton).

A function of its own, called and not inlined: ordinary tiles, which never run it, keep neither
registers nor places in memory for it. ``kernels/lines.py`` has lines for Gluon's kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogemm.kernels.epilogue import ieee_tile, store_both, within

_AT_ONCE = tl.constexpr(8192)
"""Elements of the other operand that are on their way at a time, of small tiles fewer."""
_STAGES = tl.constexpr(3)
"""Blocks of k that are on their way where a whole tile is computed again."""
_NEGLIGIBLE = tl.constexpr(2.0**27)
"""As in ``kernels/lines.py``."""


@triton.jit
def mark(wrong, out, i0, j0, out_row, out_col, BM: tl.constexpr, BN: tl.constexpr):
    """Make NaN of elements of a tile that was stored."""
    i = (i0 + tl.arange(0, BM)).to(tl.int64)
    j = (j0 + tl.arange(0, BN)).to(tl.int64)
    nan = tl.full((BM, BN), float("nan"), tl.float32)
    tl.debug_barrier()  # whichever thread stored an element is to have done so
    tl.store(out + (i[:, None] * out_row + j[None, :] * out_col), nan, mask=wrong)


@triton.jit
def _line_in(out, i0, j0, m, n, out_row, out_col, BM: tl.constexpr, BN: tl.constexpr):
    """The one line that holds all that is inf or NaN of a stored tile in which something is.

    A row's number, a column's behind all of the rows', or -1 where there is no such line.
    """
    r = tl.arange(0, BM)
    q = tl.arange(0, BN)
    x = tl.load(
        out + ((i0 + r).to(tl.int64)[:, None] * out_row + (j0 + q).to(tl.int64)[None, :] * out_col),
        mask=within(m - i0, n - j0, BM, BN),
        other=0.0,
    )
    is_bad = ((tl.abs(x) < float("inf")) == 0).to(tl.int32)
    rows = tl.max(is_bad, 1)
    cols = tl.max(is_bad, 0)
    line = tl.where(tl.sum(cols, 0) == 1, BM + tl.sum(cols * q, 0), -1)
    return tl.where(tl.sum(rows, 0) == 1, tl.sum(rows * r, 0), line)


@triton.jit
def _sum_of_leaves(x, BY_K: tl.constexpr, WIDE: tl.constexpr, LEAVES: tl.constexpr):
    """Sums over the last axis (BY_K) or the first, as a tree: ``tl.sum`` may add in a row."""
    if LEAVES == 1:
        total = tl.reshape(x, (WIDE,))
    elif BY_K:
        halves = tl.sum(tl.reshape(x, (WIDE, 2, LEAVES // 2)), 1)
        total = _sum_of_leaves(halves, BY_K, WIDE, LEAVES // 2)
    else:
        halves = tl.sum(tl.reshape(x, (2, LEAVES // 2, WIDE)), 0)
        total = _sum_of_leaves(halves, BY_K, WIDE, LEAVES // 2)
    return total


@triton.jit
def _line(
    x, x_k, y, y_step, cols, first, last, BY_K: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """The sums of x[k]·y[k, j] over k in [first, last) for columns j.

    Of y either columns (BY_K) or rows are contiguous, the others ``y_step`` apart. A sum is a tree
    over a block of STEP elements of k, its leaves chains of one element a block.
    """
    if BY_K:
        j = tl.arange(0, WIDE)[:, None]
        each = tl.arange(0, STEP)[None, :]
    else:
        j = tl.arange(0, WIDE)[None, :]
        each = tl.arange(0, STEP)[:, None]
    total = tl.zeros((WIDE, STEP) if BY_K else (STEP, WIDE), dtype=tl.float32)
    for start in range(first, last, STEP):
        k = start + each
        value = tl.load(x + k.to(tl.int64) * x_k, mask=k < last, other=0.0)
        if BY_K:
            at = y + j.to(tl.int64) * y_step + k
        else:
            at = y + k.to(tl.int64) * y_step + j
        total += value * tl.load(at, mask=(k < last) & (j < cols), other=0.0)
    return _sum_of_leaves(total, BY_K, WIDE, STEP)


@triton.jit
def _outlier(x, x_k, first, last, SIZE: tl.constexpr):
    """As in ``kernels/lines.py``."""
    each = tl.arange(0, SIZE)
    most = tl.zeros((SIZE,), dtype=tl.int32)
    next_most = tl.zeros((SIZE,), dtype=tl.int32)
    place = each * 0 + first
    for start in range(first, last, SIZE):
        k = start + each
        value = tl.load(x + k.to(tl.int64) * x_k, mask=k < last, other=0.0)
        value = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        next_most = tl.maximum(next_most, tl.minimum(value, most))
        place = tl.where(value > most, k, place)
        most = tl.maximum(value, most)
    of_all = tl.max(most, 0)
    at = tl.max(tl.where(most == of_all, place, first), 0)
    is_it = (most == of_all) & (place == at)
    rest = tl.max(tl.where(is_it, next_most, most), 0)
    return at, rest.to(tl.float32, bitcast=True)


@triton.jit
def _by_outlier(
    x, x_k, y, y_k, y_col, cols, reach, first, last, WIDE: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """As in ``kernels/lines.py``."""
    at, rest = _outlier(x, x_k, first, last, SIZE)
    at = at.to(tl.int64)
    j = tl.arange(0, WIDE)
    y += j.to(tl.int64) * y_col
    product = tl.load(x + at * x_k) * tl.load(y + at * y_k, mask=j < cols, other=0.0)
    others = tl.where(rest > 0, tl.maximum(rest * reach, 2.0**-126), 0.0)
    others *= (last - first) * _NEGLIGIBLE
    outweighs = (tl.abs(product) >= others) | (product != product)
    is_short = tl.max((outweighs == 0).to(tl.int32) * (j < cols).to(tl.int32), 0)
    will_do = (is_short == 0) & (rest < float("inf")) & (others < float("inf"))
    return product + 0.0, will_do


@triton.jit
def _store_line(
    total, c, out, i, j, cols, is_mirrored, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, GRAM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write α·total + β·C to row i from column j on; of a Gram matrix also its mirror image."""
    each = tl.arange(0, WIDE)
    at = (j + each).to(tl.int64)
    far = i.to(tl.int64)
    result = alpha * total
    if HAS_C:
        result += beta * tl.load(c + (far * c_row + at * c_col), mask=each < cols, other=0.0)
    tl.store(out + (far * out_row + at * out_col), result, mask=each < cols)
    if GRAM:  # noqa: SIM102 - together they would not be decided when compiled
        if is_mirrored:
            _store_line(
                total, c, out, i, j, cols, is_mirrored, c_col, c_row, out_col, out_row, alpha,
                beta, HAS_C, False, WIDE,
            )  # fmt: skip


@triton.jit(noinline=True)
def _store_outlier(
    x, x_k, y, y_k, y_col, reach, first, last, c, out, i, j, cols, is_mirrored, c_row, c_col,
    out_row, out_col, alpha, beta, HAS_C: tl.constexpr, GRAM: tl.constexpr, WIDE: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Write a line by ``_by_outlier`` if that will do; whether it did."""
    total, will_do = _by_outlier(x, x_k, y, y_k, y_col, cols, reach, first, last, WIDE, SIZE)
    if will_do:
        _store_line(
            total, c, out, i, j, cols, is_mirrored, c_row, c_col, out_row, out_col, alpha, beta,
            HAS_C, GRAM, WIDE,
        )  # fmt: skip
    return will_do.to(tl.int32)


@triton.jit(noinline=True)
def settle(
    a, b, a_reach, b_reach, c, out, wrong, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k,
    c_row, c_col, out_row, out_col, alpha, beta, HAS_C: tl.constexpr, ROWS: tl.constexpr,
    A_T: tl.constexpr, B_T: tl.constexpr, GRAM: tl.constexpr, LINE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute a tile again over k in [first, last), and write it: sums of ``chunk`` elements each.

    If no more than LINE of its elements are ``wrong``, and what is inf or NaN as it was stored lies
    in a single row or column, only that is computed. Finite elements of A and B are below
    ``a_reach`` and ``b_reach``; other lines prove all to be finite that are multiplied by this one.
    """
    # Small tiles share a multiprocessor with many others while these take few registers.
    AT_ONCE: tl.constexpr = BM * BN if BM * BN < _AT_ONCE // 2 else _AT_ONCE
    tl.debug_barrier()  # whichever thread stored an element is to have done so
    line = i0 * 0 - 1
    if wrong <= LINE:
        line = _line_in(out, i0, j0, m, n, out_row, out_col, BM, BN)
    if line < 0:
        again = ieee_tile(
            a, b, i0, j0, m, n, first, last, chunk, 1 if A_T else a_row, a_k if A_T else 1,
            b_row if B_T else 1, 1 if B_T else b_k, BM, BN, _STAGES,
        )  # fmt: skip
        store_both(
            again, c, out, i0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
            GRAM, BM, BN,
        )  # fmt: skip
    elif line < BM:
        i = i0 + line
        x = a + i.to(tl.int64) * a_row
        y = b + j0.to(tl.int64) * b_row
        is_done = 0
        if m - i0 > 1:
            is_done = _store_outlier(
                x, a_k, y, b_k, b_row, b_reach, first, last, c, out, i, j0, n - j0, i0 != j0,
                c_row, c_col, out_row, out_col, alpha, beta, HAS_C, GRAM, BN, AT_ONCE // 2,
            )  # fmt: skip
        if is_done == 0:
            row = _line(
                x, a_k, y, b_row if B_T else b_k, n - j0, first, last, B_T, BN, AT_ONCE // BN
            )
            _store_line(
                row, c, out, i, j0, n - j0, i0 != j0, c_row, c_col, out_row, out_col, alpha, beta,
                HAS_C, GRAM, BN,
            )  # fmt: skip
    else:
        j = j0 + line - BM
        x = b + j.to(tl.int64) * b_row
        y = a + i0.to(tl.int64) * a_row
        is_done = 0
        if n - j0 > 1:
            is_done = _store_outlier(
                x, b_k, y, a_k, a_row, a_reach, first, last, c, out, j, i0, m - i0, i0 != j0,
                c_col, c_row, out_col, out_row, alpha, beta, HAS_C, GRAM, BM, AT_ONCE // 2,
            )  # fmt: skip
        if is_done == 0:
            col = _line(
                x, b_k, y, a_k if A_T else a_row, m - i0, first, last, not A_T, BM, AT_ONCE // BM
            )
            _store_line(
                col, c, out, j, i0, m - i0, i0 != j0, c_col, c_row, out_col, out_row, alpha, beta,
                HAS_C, GRAM, BM,
            )  # fmt: skip
