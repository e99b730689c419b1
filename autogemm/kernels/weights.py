"""What the products of a tile's larger terms weigh, in functions that kernels call (Gluon).

Operands are read where they lie, not by descriptors: handed over to functions these are likely to
be addressed from registers in the kernel's main loop. Products are those of single warps: a
warpgroup's would, in a function that is called, make the kernel's own wait for one another.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from autogemm.kernels.checks import CERTIFIED, within
from autogemm.kernels.warpgroups import absolute, in_registers, largest, weighing

_BLOCK = gl.constexpr(32)
"""Elements of k that are read at a time."""


@gluon.jit
def _block(
    x, x0, rows, at, last, x_row, x_k, ROWS: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """Elements of ROWS rows (columns of B) at ``at`` of k, zeros behind ``rows`` and ``last``."""
    i = x0 + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L))
    k = at + gl.arange(0, _BLOCK, layout=gl.SliceLayout(0, L))
    return gl.load(
        x + (i.to(gl.int64)[:, None] * x_row + k.to(gl.int64)[None, :] * x_k),
        mask=(i < rows)[:, None] & (k < last)[None, :],
        other=0.0,
    )


@gluon.jit
def most_of(
    x, x0, rows, first, end, last, x_row, x_k, TURNED: gl.constexpr, ROWS: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """The largest finite magnitudes of rows (columns of B), in blocks that begin before ``end``.

    TURNED: rows are contiguous and not k.
    """
    L: gl.constexpr = in_registers(0 if TURNED else 1, ROWS, _BLOCK, W)
    most = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, L))
    for at in range(first, end, _BLOCK):
        most = gl.maximum(most, largest(_block(x, x0, rows, at, last, x_row, x_k, ROWS, L), 1))
    return most


@gluon.jit
def weight_of(
    a, b, a_down, b_down, i0, j0, m, n, first, last, a_row, a_k, b_row, b_k, A_T: gl.constexpr,
    B_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """The sum of |hi·hi| over k in [first, last), in the layout ``weighing``."""
    L: gl.constexpr = weighing(W)
    LX: gl.constexpr = in_registers(0 if A_T else 1, BM, _BLOCK, W)
    LY: gl.constexpr = in_registers(1 if B_T else 0, BN, _BLOCK, W)
    a_down = gl.convert_layout(a_down, gl.SliceLayout(1, LX))
    b_down = gl.convert_layout(b_down, gl.SliceLayout(1, LY))
    weight = gl.zeros([BM, BN], gl.float32, L)
    for at in range(first, last, _BLOCK):
        x = _block(a, i0, m, at, last, a_row, a_k, BM, LX)
        y = _block(b, j0, n, at, last, b_row, b_k, BN, LY)
        x = gl.convert_layout(absolute(x, a_down[:, None]), gl.DotOperandLayout(0, L, 2))
        y = gl.permute(absolute(y, b_down[:, None]), (1, 0))
        weight = mma_v2(x, gl.convert_layout(y, gl.DotOperandLayout(1, L, 2)), weight)
    return weight


@gluon.jit
def too_light(
    weight, length, rows, cols, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """Which elements' ``weight`` over so many products is too little; L is its layout."""
    # What underflows to 2^-24 weighs too much, by 2^-8 a product at most.
    enough = CERTIFIED + length * 0.0078125
    return within(rows, cols, BM, BN, L) & (weight < enough) & (weight != 0)
