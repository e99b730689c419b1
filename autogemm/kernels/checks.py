"""What kernels for Hopper's warpgroups ask of a tile's elements, without masks where it is whole.

In Gluon; ``kernels/fused_product.py`` has the same for Triton's.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

CERTIFIED = gl.constexpr(2.0**19)
"""What an element's products of larger terms must weigh in ``tandem`` and ``streamed``."""
LEAST_SHARE = gl.constexpr(2.0**-64)
"""Of a block's sum, which is below 2^38, this is less than what is allowed for one product."""
FEW_CHUNKS = gl.constexpr(8)
"""How many chunks' scales are read at a time."""


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
def least_of_rows(x, rows, cols, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr):
    """The least element of each row of those there are, inf where there is no row."""
    if cols < BN:
        q = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
        x = gl.where((q < cols)[None, :], x, float("inf"))
    r = gl.arange(0, BM, layout=gl.SliceLayout(1, L))
    return gl.where(r < rows, gl.min(x, 1), float("inf"))


@gluon.jit
def look_over(
    x, doubt, rows, cols, ALL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """How many elements of a tile are inf or NaN, and whether any row is in ``doubt`` (1, else 0).

    Unless ALL, the number is 1 for any of them.
    """
    # NaN where one is inf or NaN: all that ordinary tiles take.
    sums = gl.sum(gl.sum(x * 0.0, 1) + doubt, 0)
    number = rows * 0
    doubtful = (sums > 0).to(gl.int32)
    if sums != sums:
        # 0: no sum is a signalling NaN. The compiler, which cannot know, makes masks here and not,
        # for every tile, before the loop.
        nothing = (sums.to(gl.int32, bitcast=True) == 0x7F800001).to(gl.int32)
        bad = (gl.abs(x) < float("inf")) == 0
        bad &= within(rows + nothing, cols + nothing, BM, BN, L)
        number = count_of(bad) if ALL else any_of(bad)
        doubtful = (gl.max(doubt, 0) > 0).to(gl.int32)
    return number, doubtful


@gluon.jit
def stretches(scales, pitch, rows, first_row, chunks, BLOCK: gl.constexpr, W: gl.constexpr):
    """The largest scale of each row over all chunks, and whether any of them is flagged."""
    L: gl.constexpr = gl.BlockedLayout([FEW_CHUNKS, 1], [1, 32], [1, W], [1, 0])
    r = first_row + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, L))
    most = gl.zeros([BLOCK], gl.float32, gl.SliceLayout(0, L))
    least = gl.zeros([BLOCK], gl.float32, gl.SliceLayout(0, L))
    for first in range(first_row * 0, chunks, FEW_CHUNKS):
        chunk = first + gl.arange(0, FEW_CHUNKS, layout=gl.SliceLayout(1, L))
        scale = gl.load(
            scales + chunk.to(gl.int64)[:, None] * pitch + r[None, :],
            mask=(chunk < chunks)[:, None] & (r < rows)[None, :],
            other=0.0,
        )
        most = gl.maximum(most, gl.max(gl.abs(scale), 0))
        least = gl.minimum(least, gl.min(scale, 0))
    return most, least
