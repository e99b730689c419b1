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
def places_of(condition, nothing, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr):
    """Where in a tile of up to 256 rows and columns it holds: bits, of which ``line_of`` tells.

    A place has 16 bits, 8 of its row and 8 of its column. The lower half has those that are 1 in
    any place, the upper those that are 0 in any. ``|`` unites two sets; none is 0. ``nothing`` is
    0, but where the compiler does not know it, it computes places where they are asked for.
    """
    r = gl.arange(0, BM, layout=gl.SliceLayout(1, L))
    q = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
    place = ((r << 24) ^ (r << 8))[:, None] ^ ((q << 16) ^ q ^ nothing)[None, :] ^ -0x10000
    return gl.reduce_or(gl.where(condition, place, 0), None)


@gluon.jit
def line_of(places, LINES: gl.constexpr, BM: gl.constexpr):
    """The one row or column that holds all ``places``.

    A row's number, a column's behind all of the rows', -1 where there is none (unless LINES there
    never is), -2 where there are no places.
    """
    line = places * 0 - 1
    if LINES:
        vary = places & (places >> 16)  # bits that are 1 in one place and 0 in another
        line = gl.where((vary & 0xFF) == 0, BM + (places & 0xFF), -1)
        line = gl.where((vary & 0xFF00) == 0, (places >> 8) & 0xFF, line)
    return gl.where(places == 0, -2, line)


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
    x, doubt, rows, cols, WITHIN: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """``places_of`` elements that are inf or NaN, and whether a row is in ``doubt`` (1, else 0).

    Where elements beyond the matrix are zeros of an operand times elements of the other, they are
    bad only in rows and columns that are within; else WITHIN leaves them out.
    """
    # NaN where one is inf or NaN: all that ordinary tiles take.
    sums = gl.sum(gl.sum(x * 0.0, 1) + doubt, 0)
    places = rows * 0
    doubtful = (sums > 0).to(gl.int32)
    if sums != sums:
        # 0: no sum is a signalling NaN. The compiler, which cannot know, makes masks and places
        # here and not, for every tile, before the loop.
        nothing = (sums.to(gl.int32, bitcast=True) == 0x7F800001).to(gl.int32)
        bad = (gl.abs(x) < float("inf")) == 0
        if WITHIN:
            bad &= within(rows + nothing, cols + nothing, BM, BN, L)
        places = places_of(bad, nothing, BM, BN, L)
        doubtful = (gl.max(doubt, 0) > 0).to(gl.int32)
    return places, doubtful


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
