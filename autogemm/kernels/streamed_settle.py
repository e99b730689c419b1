"""What ``kernels/streamed_product.py`` does with a tile that its sums do not vouch for (Gluon).

A function of its own, as ``kernels/tandem_settle.py`` explains.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from autogemm.kernels.checks import CERTIFIED, line_of, places_of, stretches, within
from autogemm.kernels.lines import line_beside_memory, store_line
from autogemm.kernels.streamed_steps import above_zero, scale_of_columns
from autogemm.kernels.warpgroups import barrier, inverse, scale_of, weighing, write_again
from autogemm.kernels.weights import most_of, too_light, weight_of

ROOM = gl.constexpr(16.0)
"""How much larger B's scales may become behind the first block, which certifies a tile."""
GROWN = gl.constexpr(2)
"""What ``doubtful`` is where scales of B have become so; 1 where rows are in doubt, 3 for both."""


@gluon.jit
def _first_in_doubt(
    a, b, of_first, unit, doubtful, i0, j0, m, n, first, end, a_row, a_k, b_row, b_k,
    A_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """``places_of`` elements that the first block does not certify, which ends at ``end``.

    B's columns have the scales ``of_first`` there and ``unit`` in the end.
    """
    L: gl.constexpr = weighing(W)
    grown = unit > of_first * ROOM
    j = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
    places = gl.reduce_or(gl.where(grown, (j << 16) ^ j ^ 0xFF0000, 0), 0)
    if places != 0:  # whole columns, with row 0 and perhaps 1
        places |= gl.where(m - i0 > 1, -0xFFFF00, -0x1000000)
    if doubtful != GROWN:
        a_most = most_of(a, i0, m, first, end, end, a_row, a_k, A_T, BM, W)
        weight = weight_of(
            a, b, scale_of(a_most), inverse(above_zero(of_first)), i0, j0, m, n, first, end, a_row,
            a_k, b_row, b_k, A_T, False, BM, BN, W,
        )  # fmt: skip
        light = grown[None, :] | (weight < (CERTIFIED + 1.0) * ROOM)
        places = places_of(within(m - i0, n - j0, BM, BN, L) & light, 0, BM, BN, L)
    return places


@gluon.jit(noinline=True)
def _line_in_doubt(
    a, b, scales, doubtful, attempts, places, i0, j0, m, n, first, last, chunk, a_row, a_k,
    b_row, b_k, A_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    LINES: gl.constexpr, W: gl.constexpr,
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
    line = first * 0 - 1
    if LINES:  # noqa: SIM102 - together they would not be decided when compiled
        if attempts == 1:
            uncertified = _first_in_doubt(
                a, b, of_first, unit, doubtful, i0, j0, m, n, first, gl.minimum(first + BK, last),
                a_row, a_k, b_row, b_k, A_T, BM, BN, W,
            )  # fmt: skip
            line = line_of(places | uncertified, LINES, BM)
    if line == -1:
        end = gl.where(attempts > 1, last, gl.minimum(first + BK, last))
        a_most = most_of(a, i0, m, first, end, last, a_row, a_k, A_T, BM, W)
        weight = weight_of(
            a, b, scale_of(a_most), inverse(above_zero(unit)), i0, j0, m, n, first, last, a_row,
            a_k, b_row, b_k, A_T, False, BM, BN, W,
        )  # fmt: skip
        light = too_light(weight, last - first, m - i0, n - j0, BM, BN, L)
        line = line_of(places | places_of(light, 0, BM, BN, L), LINES, BM)
    return line


@gluon.jit(noinline=True)
def settle(
    a, b, a_reach, b_reach, scales, c, out, doubtful, attempts, places, i0, j0, m, n, first,
    last, chunk, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, A_T: gl.constexpr, OUT_T: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, LINES: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``tandem_settle`` has it, B's scales being for stretches of ``chunk``."""
    barrier()  # as in ``tandem_settle``
    line = line_of(places, LINES, BM)
    if (doubtful > 0) & (line != -1):
        line = _line_in_doubt(
            a, b, scales, doubtful, attempts, places, i0, j0, m, n, first, last, chunk,
            1 if A_T else a_row, a_k if A_T else 1, b_row, b_k, A_T, BM, BN, BK, LINES, W,
        )  # fmt: skip
    if line == -1:
        write_again(
            a, b, c, out, i0, j0, m, n, first, last, chunk // 2, a_row, a_k, b_row, b_k, c_row,
            c_col, out_row, out_col, alpha, beta, HAS_C, ROWS, OUT_T, False, BM, BN, W,
        )  # fmt: skip
    if LINES:  # noqa: SIM102 - together they would not be decided when compiled
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
    return (line > -2).to(gl.int32)
