"""What ``kernels/tandem_product.py`` does with a tile that its sums do not vouch for (Gluon).

A function of its own, called and not inlined: ordinary tiles, which never run it, keep no registers
for it. Numbers, pointers and descriptors are handed over and no tensors, so that blocks are read
again and scales found again.

Tiles are weighed by products of single warps: a warpgroup's, in a function that is called, would
make the compiler have the kernel's own products wait for one another. And it is one function:
handed over to two, descriptors would be addressed from registers in the kernel's main loop.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from autogemm.kernels.lines import line_of_tiles, line_or_tile, mark, store_line
from autogemm.kernels.tandem_steps import BLOCK
from autogemm.kernels.warpgroups import (
    absolute,
    barrier,
    barriers_of,
    by_tma,
    in_registers,
    largest,
    scale_of,
    weighing,
)


@gluon.jit
def _blocks(
    a, b, at, i, j, m, n, last, a_row, a_k, b_row, b_k, LX: gl.constexpr, LY: gl.constexpr
):  # fmt: skip
    """Float32 blocks of A and of B at ``at`` of k, zeros behind ``last``."""
    x_k = at + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LX))
    y_k = at + gl.arange(0, BLOCK, layout=gl.SliceLayout(1, LY))
    x = gl.load(
        a + (i.to(gl.int64)[:, None] * a_row + x_k.to(gl.int64)[None, :] * a_k),
        mask=(i < m)[:, None] & (x_k < last)[None, :],
        other=0.0,
    )
    y = gl.load(
        b + (y_k.to(gl.int64)[:, None] * b_k + j.to(gl.int64)[None, :] * b_row),
        mask=(y_k < last)[:, None] & (j < n)[None, :],
        other=0.0,
    )
    return x, y


@gluon.jit
def _number_of_light(
    a, b, out, attempts, wrong, i0, j0, m, n, first, last, a_row, a_k, b_row, b_k, out_row, out_col,
    A_T: gl.constexpr, B_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, LINE: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """``mark`` the elements for which the products of the larger terms weigh too little.

    ``attempts`` says by which scales the tile was computed, those of the first block or of all.
    """
    BK: gl.constexpr = BLOCK
    L: gl.constexpr = weighing(W)
    LX: gl.constexpr = in_registers(0 if A_T else 1, BM, BK, W)
    LY: gl.constexpr = in_registers(0 if B_T else 1, BK, BN, W)
    i = i0 + gl.arange(0, BM, layout=gl.SliceLayout(1, LX))
    j = j0 + gl.arange(0, BN, layout=gl.SliceLayout(0, LY))
    a_most = gl.zeros([BM], gl.float32, gl.SliceLayout(1, LX))
    b_most = gl.zeros([BN], gl.float32, gl.SliceLayout(0, LY))
    for at in range(first, gl.where(attempts > 1, last, first + 1), BK):
        x, y = _blocks(a, b, at, i, j, m, n, last, a_row, a_k, b_row, b_k, LX, LY)
        a_most = gl.maximum(a_most, largest(x, 1))
        b_most = gl.maximum(b_most, largest(y, 0))
    a_down = scale_of(a_most)
    b_down = scale_of(b_most)
    weight = gl.zeros([BM, BN], gl.float32, L)
    for at in range(first, last, BK):
        x, y = _blocks(a, b, at, i, j, m, n, last, a_row, a_k, b_row, b_k, LX, LY)
        x = gl.convert_layout(absolute(x, a_down[:, None]), gl.DotOperandLayout(0, L, 2))
        y = gl.convert_layout(absolute(y, b_down[None, :]), gl.DotOperandLayout(1, L, 2))
        weight = mma_v2(x, y, weight)
    return mark(
        weight, last - first, wrong, out, i0, j0, m, n, out_row, out_col, LINE, BM, BN, L
    )


@gluon.jit(noinline=True)
def settle(
    a_tiles, b_tiles, a, b, c, out, doubtful, attempts, wrong, i0, j0, m, n, first, last, chunk,
    a_row, a_k, b_row, b_k, c_row, c_col, out_row, out_col, alpha, beta, HAS_C: gl.constexpr,
    ROWS: gl.constexpr, A_T: gl.constexpr, B_T: gl.constexpr, OUT_T: gl.constexpr,
    GRAM: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    LINE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Compute a tile again over k in [first, last), sums of ``chunk`` elements each, and write it.

    If no more than LINE of its elements are ``wrong``, and what is inf or NaN as it was stored lies
    in a single row or column, only that is computed.
    """
    # Whoever has come is done with the kernel's shared memory and has stored the tile; that the
    # compiler looks into what a function does before its first barrier is not to be relied on.
    barrier()
    BK: gl.constexpr = BLOCK
    is_open = (wrong <= LINE) if LINE > 0 else (wrong == 0)
    if (doubtful > 0) & is_open:
        wrong = _number_of_light(
            a, b, out, attempts, wrong, i0, j0, m, n, first, last, 1 if A_T else a_row,
            a_k if A_T else 1, b_row if B_T else 1, 1 if B_T else b_k, out_row, out_col, A_T, B_T,
            BM, BN, LINE, W,
        )  # fmt: skip
    line = line_or_tile(
        a, b, c, out, wrong, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, c_row,
        c_col, out_row, out_col, alpha, beta, HAS_C, ROWS, OUT_T, GRAM, BM, BN, LINE, W,
    )  # fmt: skip
    if LINE > 0:  # noqa: SIM102 - together they would not be decided when compiled
        if line >= 0:
            bars = barriers_of(STAGES)
            odd_bars = barriers_of(STAGES)
            if line < BM:
                B_SHAPE: gl.constexpr = [STAGES, BN, BK] if B_T else [STAGES, BK, BN]
                SB: gl.constexpr = by_tma(BK if B_T else BN, 32)
                b_s = gl.allocate_shared_memory(gl.float32, B_SHAPE, SB)
                odd_b_s = gl.allocate_shared_memory(gl.float32, B_SHAPE, SB)
                row = line_of_tiles(
                    a + (i0 + line).to(gl.int64) * a_row, a_k, b_tiles,
                    ((b_s, bars), (odd_b_s, odd_bars)), j0, first, last, not B_T, 2, BK, BN,
                    STAGES, W,
                )  # fmt: skip
                store_line(
                    row, c, out, i0 + line, j0, n - j0, i0 != j0, c_row, c_col, out_row, out_col,
                    alpha, beta, HAS_C, GRAM, BN, W,
                )  # fmt: skip
            else:
                A_SHAPE: gl.constexpr = [STAGES, BK, BM] if A_T else [STAGES, BM, BK]
                SA: gl.constexpr = by_tma(BM if A_T else BK, 32)
                a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
                odd_a_s = gl.allocate_shared_memory(gl.float32, A_SHAPE, SA)
                col = line_of_tiles(
                    b + (j0 + line - BM).to(gl.int64) * b_row, b_k, a_tiles,
                    ((a_s, bars), (odd_a_s, odd_bars)), i0, first, last, A_T, 2, BK, BM, STAGES,
                    W,
                )  # fmt: skip
                store_line(
                    col, c, out, j0 + line - BM, i0, m - i0, i0 != j0, c_col, c_row, out_col,
                    out_row, alpha, beta, HAS_C, GRAM, BM, W,
                )  # fmt: skip
    return wrong
