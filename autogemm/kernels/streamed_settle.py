"""What ``kernels/streamed_product.py`` does with a tile that its sums do not vouch for (Gluon).

A function of its own, as ``kernels/tandem_settle.py`` explains.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from autogemm.kernels.checks import LEAST_SHARE
from autogemm.kernels.lines import (
    line_of_memory,
    line_of_tiles,
    line_or_tile,
    mark,
    store_line,
)
from autogemm.kernels.streamed_steps import (
    above_zero,
    fetch_pair,
    half_of_a,
    scale_of_columns,
    weigh,
)
from autogemm.kernels.warpgroups import (
    arrive,
    barrier,
    barriers_of,
    by_tma,
    forget,
    inverse,
    largest,
    scale_of,
    weighing,
)


@gluon.jit
def _number_of_light(
    a_tiles, b_tiles, scales, out, attempts, wrong, i0, j0, m, n, first, last, chunk, out_row,
    out_col, A_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    LINE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``tandem_settle`` has it. ``scales`` are those of B for the columns from j0 on."""
    PAIR: gl.constexpr = 2 * BK
    BYTES: gl.constexpr = PAIR * (BM * 4 + BN * 2)
    L: gl.constexpr = weighing(W)
    LX: gl.constexpr = gl.DotOperandLayout(0, L, 2)
    A_SHAPE: gl.constexpr = [1, PAIR, BM] if A_T else [1, BM, PAIR]
    a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, by_tma(BM if A_T else PAIR, 32))
    b_hi = gl.allocate_shared_memory(gl.float16, [1, BN, PAIR], by_tma(PAIR, 16))
    bars = barriers_of(1)
    fence_async_shared()
    barrier()
    used = first * 0
    most = gl.zeros([BM], gl.float32, gl.SliceLayout(1, LX))
    for at in range(first, gl.where(attempts > 1, last, first + 1), PAIR):
        barrier()
        fetch_pair(
            a_tiles, b_tiles, a_s, b_hi, b_hi, bars, i0, j0, n, at, used, True, A_T, 1, BYTES, 1
        )
        arrive(bars, used, 1)
        most = gl.maximum(most, largest(half_of_a(a_s, used, 0, A_T, BK, 1, LX), 1))
        if attempts > 1:
            most = gl.maximum(most, largest(half_of_a(a_s, used, 1, A_T, BK, 1, LX), 1))
        used += 1
    a_down = scale_of(most)
    cols = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
    unit = gl.zeros([BN], gl.float32, gl.SliceLayout(0, L))
    scale = scales
    for _ in range(first, last, chunk):
        unit = gl.maximum(unit, scale_of_columns(scale, cols, n - j0))
        scale += n
    down = inverse(above_zero(unit))
    weight = gl.zeros([BM, BN], gl.float32, L)
    for at in range(first, last, PAIR):
        barrier()
        fetch_pair(
            a_tiles, b_tiles, a_s, b_hi, b_hi, bars, i0, j0, n, at, used, True, A_T, 1, BYTES, 1
        )
        arrive(bars, used, 1)
        part = weigh(a_s, b_hi, used, 0, a_down, A_T, 1, BM, BN, BK, W)
        part += weigh(a_s, b_hi, used, 1, a_down, A_T, 1, BM, BN, BK, W)
        of_chunk = scale_of_columns(
            scales + ((at - first) // chunk).to(gl.int64) * n, cols, n - j0
        )
        # Not so small that a sum vanishes: 0 proves that all products are.
        weight += part * gl.maximum(of_chunk * down, LEAST_SHARE)[None, :]
        used += 1
    forget(bars, 1)
    return mark(
        weight, last - first, wrong, out, i0, j0, m, n, out_row, out_col, LINE, BM, BN, L
    )


@gluon.jit(noinline=True)
def settle(
    a_tiles, b_tiles, a, b, scales, c, out, doubtful, attempts, wrong, i0, j0, m, n, first, last,
    chunk, a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, A_T: gl.constexpr, OUT_T: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    LINE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``tandem_settle`` has it, B's scales being for stretches of ``chunk``."""
    barrier()  # as in ``tandem_settle``
    PAIR: gl.constexpr = 2 * BK
    is_open = (wrong <= LINE) if LINE > 0 else (wrong == 0)
    if (doubtful > 0) & is_open:
        wrong = _number_of_light(
            a_tiles, b_tiles, scales, out, attempts, wrong, i0, j0, m, n, first, last, chunk,
            out_row, out_col, A_T, BM, BN, BK, LINE, W,
        )  # fmt: skip
    line = line_or_tile(
        a, b, c, out, wrong, i0, j0, m, n, first, last, chunk // 2, a_row, a_k, b_row, b_k, c_row,
        c_col, out_row, out_col, alpha, beta, HAS_C, ROWS, OUT_T, False, BM, BN, LINE, W,
    )  # fmt: skip
    if LINE > 0:  # noqa: SIM102 - together they would not be decided when compiled
        if line >= 0:
            if line < BM:
                barrier()
                row = line_of_memory(
                    a + (i0 + line).to(gl.int64) * a_row, a_k, b + j0.to(gl.int64) * b_row, b_k,
                    b_row, n - j0, first, last, BN, W,
                )  # fmt: skip
                store_line(
                    row, c, out, i0 + line, j0, n - j0, False, c_row, c_col, out_row, out_col,
                    alpha, beta, HAS_C, False, BN, W,
                )  # fmt: skip
            else:
                A_SHAPE: gl.constexpr = [STAGES, PAIR, BM] if A_T else [STAGES, BM, PAIR]
                SA: gl.constexpr = by_tma(BM if A_T else PAIR, 32)
                a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
                col = line_of_tiles(
                    b + (j0 + line - BM).to(gl.int64) * b_row, b_k, a_tiles,
                    ((a_s, barriers_of(STAGES)),), i0, first, last, A_T, 1, PAIR, BM, STAGES, W,
                )  # fmt: skip
                store_line(
                    col, c, out, j0 + line - BM, i0, m - i0, False, c_col, c_row, out_col, out_row,
                    alpha, beta, HAS_C, False, BM, W,
                )  # fmt: skip
    return wrong
