"""What kernels for Hopper's warpgroups ask of a tile's elements, without masks where it is whole.

In Gluon; ``kernels/fused_product.py`` has the same for Triton's.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def any_of(condition):
    """1 where it holds for any element, else 0."""
    return gl.max(gl.max(condition.to(gl.int32), 1), 0)


@gluon.jit
def count_of(condition):
    """How many elements it holds for."""
    return gl.sum(gl.sum(condition.to(gl.int32), 1), 0)


@gluon.jit
def within(rows, cols, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr):
    """Which elements there are of a tile of which so many rows and columns are in the matrix."""
    r = gl.arange(0, BM, layout=gl.SliceLayout(1, L))
    q = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
    return (r < rows)[:, None] & (q < cols)[None, :]


@gluon.jit
def least_of(x, rows, cols, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr):
    """The least element of those there are. Of a whole tile none is asked whether it is one."""
    if cols < BN:
        q = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
        x = gl.where((q < cols)[None, :], x, float("inf"))
    r = gl.arange(0, BM, layout=gl.SliceLayout(1, L))
    return gl.min(gl.where(r < rows, gl.min(x, 1), float("inf")), 0)


@gluon.jit
def number_of_bad(
    x, rows, cols, ALL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """How many elements of a tile are inf or NaN; unless ALL, 1 for any number of them."""
    sums = gl.sum(gl.sum(x * 0.0, 1), 0)  # NaN where one is: all that ordinary tiles take
    number = rows * 0
    if sums != sums:
        # 0: no sum is a signalling NaN. The compiler, which cannot know, makes masks here and not,
        # for every tile, before the loop.
        nothing = (sums.to(gl.int32, bitcast=True) == 0x7F800001).to(gl.int32)
        bad = (gl.abs(x) < float("inf")) == 0
        bad &= within(rows + nothing, cols + nothing, BM, BN, L)
        number = count_of(bad) if ALL else any_of(bad)
    return number
