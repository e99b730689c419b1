"""What ``kernels/streamed_product.py`` does with a tile that its sums do not vouch for (Gluon).

A function of its own, as ``kernels/tandem_settle.py`` explains.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from autogemm.kernels.checks import CERTIFIED, stretches, within
from autogemm.kernels.lines import (
    are_in_one,
    line_beside_memory,
    line_or_tile,
    mark,
    store_line,
)
from autogemm.kernels.streamed_steps import above_zero, scale_of_columns
from autogemm.kernels.warpgroups import barrier, inverse, scale_of, weighing
from autogemm.kernels.weights import most_of, too_light, weight_of

ROOM = gl.constexpr(16.0)
"""How much larger B's scales may become behind the first block, which certifies a tile."""
GROWN = gl.constexpr(2)
"""What ``doubtful`` is where scales of B have become so; 1 where rows are in doubt, 3 for both."""


@gluon.jit(noinline=True)
def _number_of_light(
    a, b, scales, out, doubtful, attempts, wrong, i0, j0, m, n, first, last, chunk, a_row, a_k,
    b_row, b_k, out_row, out_col, A_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, LINE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``tandem_settle`` has it. ``scales`` are those of B for the columns from j0 on.

    What the first block does not certify is taken for light if it lies in one line: to compute that
    takes less than to weigh the tile. (A function of its own again: without it the compiler has the
    kernel's main loop address copies' descriptors from registers, though none is handed over.)
    """
    L: gl.constexpr = weighing(W)
    chunks = (last - first + chunk - 1) // chunk
    unit, _ = stretches(scales, n, n - j0, first * 0, chunks, BN, W)
    unit = gl.convert_layout(unit, gl.SliceLayout(0, L))
    of_first = scale_of_columns(scales, gl.arange(0, BN, layout=gl.SliceLayout(0, L)), n - j0)
    inside = within(m - i0, n - j0, BM, BN, L)
    light = inside & (unit > of_first * ROOM)[None, :]
    end = gl.where(attempts > 1, last, gl.minimum(first + BK, last))
    is_settled = attempts == 1
    if LINE > 0:
        if is_settled:
            if doubtful != GROWN:
                a_most = most_of(a, i0, m, first, end, last, a_row, a_k, A_T, BM, W)
                weight = weight_of(
                    a, b, scale_of(a_most), inverse(above_zero(of_first)), i0, j0, m, n, first,
                    end, a_row, a_k, b_row, b_k, A_T, False, BM, BN, W,
                )  # fmt: skip
                light |= inside & (weight < (CERTIFIED + 1.0) * ROOM)
            is_settled = are_in_one(light)
    else:
        is_settled = attempts < 0
    if is_settled == 0:
        a_most = most_of(a, i0, m, first, end, last, a_row, a_k, A_T, BM, W)
        weight = weight_of(
            a, b, scale_of(a_most), inverse(above_zero(unit)), i0, j0, m, n, first, last, a_row,
            a_k, b_row, b_k, A_T, False, BM, BN, W,
        )  # fmt: skip
        light = too_light(weight, last - first, m - i0, n - j0, BM, BN, L)
    return mark(light, wrong, out, i0, j0, out_row, out_col, LINE, BM, BN, L)


@gluon.jit(noinline=True)
def settle(
    a, b, a_reach, b_reach, scales, c, out, doubtful, attempts, wrong, i0, j0, m, n, first, last,
    chunk, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta, HAS_C: gl.constexpr,
    ROWS: gl.constexpr, A_T: gl.constexpr, OUT_T: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, BK: gl.constexpr, LINE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``tandem_settle`` has it, B's scales being for stretches of ``chunk``."""
    barrier()  # as in ``tandem_settle``
    is_open = (wrong <= LINE) if LINE > 0 else (wrong == 0)
    if (doubtful > 0) & is_open:
        wrong = _number_of_light(
            a, b, scales, out, doubtful, attempts, wrong, i0, j0, m, n, first, last, chunk,
            1 if A_T else a_row, a_k if A_T else 1, b_row, b_k, out_row, out_col, A_T, BM, BN, BK,
            LINE, W,
        )  # fmt: skip
    line = line_or_tile(
        a, b, c, out, wrong, i0, j0, m, n, first, last, chunk // 2, a_row, a_k, b_row, b_k, c_row,
        c_col, out_row, out_col, alpha, beta, HAS_C, ROWS, OUT_T, False, BM, BN, LINE, W,
    )  # fmt: skip
    if LINE > 0:  # noqa: SIM102 - together they would not be decided when compiled
        if line >= 0:
            x = a + i0.to(gl.int64) * a_row
            y = b + j0.to(gl.int64) * b_row
            # Lines beside this one prove the other operand to be finite.
            if line < BM:
                row = line_beside_memory(
                    x + line.to(gl.int64) * a_row, a_k, y, b_k, b_row, n - j0, b_reach, m - i0 > 1,
                    first, last, -1, BN, W,
                )  # fmt: skip
                store_line(
                    row, c, out, i0 + line, j0, n - j0, False, c_row, c_col, out_row, out_col,
                    alpha, beta, HAS_C, False, BN, W,
                )  # fmt: skip
            else:
                col = line_beside_memory(
                    y + (line - BM).to(gl.int64) * b_row, b_k, x, a_k, a_row, m - i0, a_reach,
                    n - j0 > 1, first, last, 1 if A_T else 0, BM, W,
                )  # fmt: skip
                store_line(
                    col, c, out, j0 + line - BM, i0, m - i0, False, c_col, c_row, out_col, out_row,
                    alpha, beta, HAS_C, False, BM, W,
                )  # fmt: skip
    return wrong
