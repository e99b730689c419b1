"""What ``fused_product`` computes again, in IEEE arithmetic: a tile, or one line of it (Triton).

A function of its own, called and not inlined: ordinary tiles, which never run it, keep neither
registers nor places in memory for it. ``kernels/lines.py`` has lines for Gluon's kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogemm.kernels.epilogue import ieee_tile, store_both

_AT_ONCE = tl.constexpr(8192)
"""Elements of the other operand that are on their way at a time, of small tiles fewer."""
_LOOKED_AT = tl.constexpr(1024)
"""Elements of a line that are looked over at a time: few instructions, each fetched for once."""
_STAGES = tl.constexpr(3)
"""Blocks of k that are on their way where a whole tile is computed again."""
_NEGLIGIBLE = tl.constexpr(2.0**27)
"""As in ``kernels/lines.py``."""


@triton.jit
def places_of(condition, nothing, BM: tl.constexpr, BN: tl.constexpr):
    """As in ``kernels/checks.py``."""
    r = tl.arange(0, BM)
    q = tl.arange(0, BN)
    place = ((r << 24) ^ (r << 8))[:, None] ^ ((q << 16) ^ q ^ nothing)[None, :] ^ -0x10000
    return tl.reduce_or(tl.where(condition, place, 0), None)


@triton.jit
def line_of(places, LINES: tl.constexpr, BM: tl.constexpr):
    """As in ``kernels/checks.py``."""
    line = places * 0 - 1
    if LINES:
        vary = places & (places >> 16)
        line = tl.where((vary & 0xFF) == 0, BM + (places & 0xFF), -1)
        line = tl.where((vary & 0xFF00) == 0, (places >> 8) & 0xFF, line)
    return tl.where(places == 0, -2, line)


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
    a, b, a_reach, b_reach, c, out, line, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k,
    c_row, c_col, out_row, out_col, alpha, beta, HAS_C: tl.constexpr, ROWS: tl.constexpr,
    A_T: tl.constexpr, B_T: tl.constexpr, GRAM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute a tile again over k in [first, last), and write it: sums of ``chunk`` elements each.

    If there is a ``line`` (``line_of``) that holds all that is wrong, only that is computed. Finite
    elements of A and B are below ``a_reach`` and ``b_reach``; other lines prove all to be finite
    that are multiplied by this one.
    """
    # Small tiles share a multiprocessor with many others while these take few registers.
    AT_ONCE: tl.constexpr = BM * BN if BM * BN < _AT_ONCE // 2 else _AT_ONCE
    tl.debug_barrier()  # whichever thread stored an element is to have done so
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
                c_row, c_col, out_row, out_col, alpha, beta, HAS_C, GRAM, BN, _LOOKED_AT,
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
                c_col, c_row, out_col, out_row, alpha, beta, HAS_C, GRAM, BM, _LOOKED_AT,
            )  # fmt: skip
        if is_done == 0:
            col = _line(
                x, b_k, y, a_k if A_T else a_row, m - i0, first, last, not A_T, BM, AT_ONCE // BM
            )
            _store_line(
                col, c, out, j, i0, m - i0, i0 != j0, c_col, c_row, out_col, out_row, alpha, beta,
                HAS_C, GRAM, BM,
            )  # fmt: skip
