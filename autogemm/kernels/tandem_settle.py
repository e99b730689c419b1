"""What ``kernels/tandem_product.py`` does with a tile that its sums do not vouch for (Gluon).

A function of its own, called and not inlined: ordinary tiles, which never run it, keep no registers
for it. Numbers, pointers and descriptors are handed over and no tensors, so that blocks are read
again and scales found again.

It is one function: handed over to two, descriptors would be addressed from registers in the
kernel's main loop.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from autogemm.kernels.checks import line_of, places_of
from autogemm.kernels.lines import line_beside_tiles, store_line
from autogemm.kernels.tandem_steps import BLOCK
from autogemm.kernels.warpgroups import (
    barrier,
    barriers_of,
    by_tma,
    scale_of,
    weighing,
    write_again,
)
from autogemm.kernels.weights import most_of, too_light, weight_of


@gluon.jit(noinline=True)
def _line_in_doubt(
    a, b, attempts, places, i0, j0, m, n, first, last, a_row, a_k, b_row, b_k,
    A_T: gl.constexpr, B_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, LINES: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """``line_of`` elements that are bad and those whose products of larger terms weigh too little.

    ``attempts`` says by which scales the tile was computed, those of the first block or of all.
    """
    L: gl.constexpr = weighing(W)
    end = gl.where(attempts > 1, last, first + 1)
    a_most = most_of(a, i0, m, first, end, last, a_row, a_k, A_T, BM, W)
    b_most = most_of(b, j0, n, first, end, last, b_row, b_k, not B_T, BN, W)
    weight = weight_of(
        a, b, scale_of(a_most), scale_of(b_most), i0, j0, m, n, first, last, a_row, a_k, b_row, b_k,
        A_T, B_T, BM, BN, W,
    )  # fmt: skip
    light = too_light(weight, last - first, m - i0, n - j0, BM, BN, L)
    return line_of(places | places_of(light, 0, BM, BN, L), LINES, BM)


@gluon.jit(noinline=True)
def settle(
    a_tiles, b_tiles, a, b, a_reach, b_reach, c, out, doubtful, attempts, places, i0, j0, m, n,
    first, last, chunk, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, A_T: gl.constexpr, B_T: gl.constexpr,
    OUT_T: gl.constexpr, GRAM: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, LINES: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Compute a tile again over k in [first, last), sums of ``chunk`` elements each, and write it.

    ``places`` are ``places_of`` the elements that are bad. The tile is weighed if it is
    ``doubtful``; if LINES and all that is bad or weighs too little lies in a single row or column,
    only that is computed. Finite elements of A and B are below ``a_reach`` and ``b_reach``.
    Returned is whether anything was written.
    """
    # Whoever has come is done with the kernel's shared memory and has stored the tile; that the
    # compiler looks into what a function does before its first barrier is not to be relied on.
    barrier()
    BK: gl.constexpr = BLOCK
    line = line_of(places, LINES, BM)
    if (doubtful > 0) & (line != -1):
        line = _line_in_doubt(
            a, b, attempts, places, i0, j0, m, n, first, last, 1 if A_T else a_row,
            a_k if A_T else 1, b_row if B_T else 1, 1 if B_T else b_k, A_T, B_T, BM, BN, LINES,
            W,
        )  # fmt: skip
    if line == -1:
        write_again(
            a, b, c, out, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, c_row, c_col,
            out_row, out_col, alpha, beta, HAS_C, ROWS, OUT_T, GRAM, BM, BN, W,
        )  # fmt: skip
    if LINES:  # noqa: SIM102 - together they would not be decided when compiled
        if line >= 0:
            # Lines beside this one prove the other operand to be finite. What two operands'
            # stages took is there for one's.
            if line < BM:
                DEEP: gl.constexpr = STAGES * (BM + BN) // BN
                B_SHAPE: gl.constexpr = [DEEP, BN, BK] if B_T else [DEEP, BK, BN]
                SB: gl.constexpr = by_tma(BK if B_T else BN, 32)
                b_s = gl.allocate_shared_memory(gl.float32, B_SHAPE, SB)
                odd_b_s = gl.allocate_shared_memory(gl.float32, B_SHAPE, SB)
                row = line_beside_tiles(
                    a + (i0 + line).to(gl.int64) * a_row, a_k, b + j0.to(gl.int64) * b_row, b_k,
                    b_row, n - j0, b_reach, m - i0 > 1, b_tiles,
                    ((b_s, barriers_of(DEEP)), (odd_b_s, barriers_of(DEEP))), j0, first, last,
                    not B_T, 2, BK, BN, DEEP, W,
                )  # fmt: skip
                store_line(
                    row, c, out, i0 + line, j0, n - j0, i0 != j0, c_row, c_col, out_row, out_col,
                    alpha, beta, HAS_C, GRAM, BN, W,
                )  # fmt: skip
            else:
                HIGH: gl.constexpr = STAGES * (BM + BN) // BM
                A_SHAPE: gl.constexpr = [HIGH, BK, BM] if A_T else [HIGH, BM, BK]
                SA: gl.constexpr = by_tma(BM if A_T else BK, 32)
                a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
                odd_a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
                col = line_beside_tiles(
                    b + (j0 + line - BM).to(gl.int64) * b_row, b_k, a + i0.to(gl.int64) * a_row,
                    a_k, a_row, m - i0, a_reach, n - j0 > 1, a_tiles,
                    ((a_s, barriers_of(HIGH)), (odd_a_s, barriers_of(HIGH))), i0, first, last, A_T,
                    2, BK, BM, HIGH, W,
                )  # fmt: skip
                store_line(
                    col, c, out, j0 + line - BM, i0, m - i0, i0 != j0, c_col, c_row, out_col,
                    out_row, alpha, beta, HAS_C, GRAM, BM, W,
                )  # fmt: skip
    return (line > -2).to(gl.int32)
