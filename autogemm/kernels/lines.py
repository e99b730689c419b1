"""One row or column of a tile, what one bad element spoils, in IEEE arithmetic (Gluon).

It is found in what was stored. Only the other operand is read, a block of k at a time. A sum is one
over a block, in some order, of chains of one element a block: at most P/B + B roundings for P
elements in blocks of B.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from autogemm.kernels.checks import CERTIFIED, any_of, count_of, within
from autogemm.kernels.warpgroups import arrive, barrier, bring, in_registers, write_again

_AT_ONCE = gl.constexpr(16)
"""Columns of a tile that are read at a time; no tile has fewer."""


@gluon.jit
def mark(
    weight, length, wrong, out, i0, j0, m, n, out_row, out_col, LINE: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr,
):  # fmt: skip
    """How many elements' ``weight`` over so many products is too little; ``wrong`` if that is more.

    1 for any number of them unless LINE; up to LINE of them become NaN in the tile as it was
    stored. L is the layout of ``weight``.
    """
    # What underflows to 2^-24 weighs too much, by 2^-8 a product at most.
    enough = CERTIFIED + length * 0.0078125
    light = within(m - i0, n - j0, BM, BN, L) & (weight < enough) & (weight != 0)
    if LINE > 0:
        wrong = gl.maximum(wrong, count_of(light))  # an inf weighs little, too
        if wrong <= LINE:
            _make_nan(light, out, i0, j0, out_row, out_col, BM, BN, L)
    else:
        wrong = any_of(light)
    return wrong


@gluon.jit
def _make_nan(
    where, out, i0, j0, out_row, out_col, BM: gl.constexpr, BN: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    i = (i0 + gl.arange(0, BM, layout=gl.SliceLayout(1, L))).to(gl.int64)
    j = (j0 + gl.arange(0, BN, layout=gl.SliceLayout(0, L))).to(gl.int64)
    nan = gl.zeros([BM, BN], gl.float32, L) + float("nan")
    barrier()  # whichever thread stored an element is to have done so
    gl.store(out + (i[:, None] * out_row + j[None, :] * out_col), nan, mask=where)


@gluon.jit
def line_in(
    out, i0, j0, m, n, out_row, out_col, BM: gl.constexpr, BN: gl.constexpr, W: gl.constexpr
):  # fmt: skip
    """The one line that holds all that is inf or NaN of a stored tile in which something is.

    A row's number, a column's behind all of the rows', or -1 where there is no such line.
    """
    L: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [W, 1], [1, 0])
    barrier()
    i = gl.arange(0, BM, layout=gl.SliceLayout(1, L))
    out += (i0 + i).to(gl.int64)[:, None] * out_row
    in_row = i * 0
    cols = i0 * 0  # how many in the upper half, the sum of their numbers in the lower
    for at in range(0, BN, _AT_ONCE):
        each = at + gl.arange(0, _AT_ONCE, layout=gl.SliceLayout(0, L))
        x = gl.load(
            out + (j0 + each).to(gl.int64)[None, :] * out_col,
            mask=(i < m - i0)[:, None] & (each < n - j0)[None, :],
            other=0.0,
        )
        is_bad = ((gl.abs(x) < float("inf")) == 0).to(gl.int32)
        in_row = gl.maximum(in_row, gl.max(is_bad, 1))
        cols += gl.sum(gl.max(is_bad, 0) * (65536 + each), 0)
    rows = gl.sum(in_row * (65536 + i), 0)
    line = gl.where(cols >> 16 == 1, BM + (cols & 65535), -1)
    return gl.where(rows >> 16 == 1, rows & 65535, line)


@gluon.jit
def line_or_tile(
    a, b, c, out, wrong, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, c_row, c_col,
    out_row, out_col, alpha, beta, HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr,
    GRAM: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, LINE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """What ``line_in`` finds, if up to LINE elements are ``wrong``; else -1.

    Where something is wrong and it is -1, the tile is computed again.
    """
    line = first * 0 - 1
    if LINE > 0:  # noqa: SIM102 - together they would not be decided when compiled
        if (wrong > 0) & (wrong <= LINE):
            line = line_in(out, i0, j0, m, n, out_row, out_col, BM, BN, W)
    if (wrong > 0) & (line < 0):
        # Nobody is to be waited for. Without it the copies' descriptors are addressed from
        # registers of each thread in the main loop of ``streamed`` (ptxas 12.8).
        barrier()
        write_again(
            a, b, c, out, i0, j0, m, n, first, last, chunk, a_row, a_k, b_row, b_k, c_row, c_col,
            out_row, out_col, alpha, beta, HAS_C, ROWS, OUT_T, GRAM, BM, BN, W,
        )  # fmt: skip
    return line


@gluon.jit
def _bring(
    tiles, kind, at, j0, number, wanted, K_FIRST: gl.constexpr, BYTES: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Start to bring a tile to where number ``number`` of its kind goes."""
    tiles_s, bars = kind
    stage = number % STAGES
    bar = bars.index(stage)
    mbarrier.expect(bar, BYTES, pred=wanted)
    bring(tiles, j0, at, bar, tiles_s.index(stage), wanted, K_FIRST)


@gluon.jit
def line_of_tiles(
    x, x_k, tiles, kinds, j0, first, last, K_FIRST: gl.constexpr, KINDS: gl.constexpr,
    BK: gl.constexpr, WIDE: gl.constexpr, STAGES: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """The sums of x[k]·y[k, j] over k in [first, last), y being the other operand's tiles.

    These are of BK by WIDE, or transposed unless K_FIRST, and arrive in turn at the ``kinds`` of
    memory with their barriers, none of which has been used.
    """
    L: gl.constexpr = in_registers(1 if K_FIRST else 0, BK, WIDE, W)
    STEP: gl.constexpr = KINDS * BK
    each = gl.arange(0, BK, layout=gl.SliceLayout(1, L))
    used = first * 0
    fence_async_shared()
    barrier()
    for s in gl.static_range(STAGES):
        for h in gl.static_range(KINDS):
            at = first + s * STEP + h * BK
            _bring(
                tiles, kinds[h], at, j0, used + s, first + s * STEP < last, K_FIRST,
                4 * BK * WIDE, STAGES,
            )  # fmt: skip
    total = gl.zeros([BK, WIDE], gl.float32, L)
    for start in range(first, last, STEP):
        for h in gl.static_range(KINDS):
            k = start + h * BK + each
            value = gl.load(x + k.to(gl.int64) * x_k, mask=k < last, other=0.0)
            tiles_s, bars = kinds[h]
            arrive(bars, used, STAGES)
            y = tiles_s.index(used % STAGES)
            if not K_FIRST:
                y = y.permute((1, 0))
            total += value[:, None] * y.load(L)
        barrier()
        ahead = start + STAGES * STEP
        for h in gl.static_range(KINDS):
            _bring(
                tiles, kinds[h], ahead + h * BK, j0, used + STAGES, ahead < last, K_FIRST,
                4 * BK * WIDE, STAGES,
            )  # fmt: skip
        used += 1
    return gl.sum(total, 0)


@gluon.jit
def line_of_memory(
    x, x_k, y, y_k, y_col, cols, first, last, WIDE: gl.constexpr, W: gl.constexpr
):  # fmt: skip
    """The sums of x[k]·y[k, j] over k in [first, last) for columns j, which lie as they like."""
    L: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [W, 1], [1, 0])
    STEP: gl.constexpr = 512 * W // WIDE  # sixteen elements to a thread
    each = gl.arange(0, STEP, layout=gl.SliceLayout(1, L))
    j = gl.arange(0, WIDE, layout=gl.SliceLayout(0, L))
    y += (j.to(gl.int64) * y_col)[None, :]
    total = gl.zeros([STEP, WIDE], gl.float32, L)
    for start in range(first, last, STEP):
        k = start + each
        value = gl.load(x + k.to(gl.int64) * x_k, mask=k < last, other=0.0)
        others = gl.load(
            y + (k.to(gl.int64) * y_k)[:, None],
            mask=(k < last)[:, None] & (j < cols)[None, :],
            other=0.0,
        )
        total += value[:, None] * others
    return gl.sum(total, 0)


@gluon.jit
def store_line(
    total, c, out, i, j, cols, is_mirrored, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: gl.constexpr, GRAM: gl.constexpr, WIDE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Write α·total + β·C to row i from column j on; of a Gram matrix also its mirror image."""
    i = i.to(gl.int64)
    j = j.to(gl.int64)
    _store_line(
        total, c + (i * c_row + j * c_col), out + (i * out_row + j * out_col), cols, c_col,
        out_col, alpha, beta, HAS_C, WIDE, W,
    )  # fmt: skip
    if GRAM:  # noqa: SIM102 - together they would not be decided when compiled
        if is_mirrored:
            _store_line(
                total, c + (j * c_row + i * c_col), out + (j * out_row + i * out_col), cols, c_row,
                out_row, alpha, beta, HAS_C, WIDE, W,
            )  # fmt: skip


@gluon.jit
def _store_line(
    total, c, out, cols, c_step, out_step, alpha, beta, HAS_C: gl.constexpr, WIDE: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    L: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    j = gl.arange(0, WIDE, layout=L)
    total = alpha * gl.convert_layout(total, L)
    if HAS_C:
        total += beta * gl.load(c + j.to(gl.int64) * c_step, mask=j < cols, other=0.0)
    gl.store(out + j.to(gl.int64) * out_step, total, mask=j < cols)
