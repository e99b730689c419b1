"""One row or column of a tile, what one bad element spoils, in IEEE arithmetic (Gluon).

Where the bad element's product outweighs all others of a sum, so that they may be left out, that
product is the line, and hardly anything is read. Else the other operand is, a block of k at a time.
A sum is one over a block, in some order, of chains of one element a block: at most P/B + B
roundings for P elements in blocks of B.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from autogemm.kernels.warpgroups import arrive, barrier, bring, in_registers

_NEGLIGIBLE = gl.constexpr(2.0**27)
"""Once more than the others of a sum together: these are an eighth of a unit of its bound."""
_STEPS = gl.constexpr(16)
"""For so many steps the line's own elements are read at a time, while the steps before last."""


@gluon.jit
def _outlier(x, x_k, first, last, W: gl.constexpr):
    """Where over k in [first, last) x[k] has the largest magnitude; the next largest magnitude.

    As integers compare, NaN being the largest.
    """
    L: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    SIZE: gl.constexpr = 256 * W  # eight elements to a thread
    each = gl.arange(0, SIZE, layout=L)
    most = gl.zeros([SIZE], gl.int32, L)
    next_most = gl.zeros([SIZE], gl.int32, L)
    place = each * 0 + first
    for start in range(first, last, SIZE):
        k = start + each
        value = gl.load(x + k.to(gl.int64) * x_k, mask=k < last, other=0.0)
        value = value.to(gl.int32, bitcast=True) & 0x7FFFFFFF
        next_most = gl.maximum(next_most, gl.minimum(value, most))
        place = gl.where(value > most, k, place)
        most = gl.maximum(value, most)
    of_all = gl.max(most, 0)
    at = gl.max(gl.where(most == of_all, place, first), 0)
    is_it = (most == of_all) & (place == at)
    rest = gl.max(gl.where(is_it, next_most, most), 0)
    return at, rest.to(gl.float32, bitcast=True)


@gluon.jit
def by_outlier(
    x, x_k, y, y_k, y_col, cols, reach, first, last, WIDE: gl.constexpr, W: gl.constexpr
):  # fmt: skip
    """x[k]·y[k, j] of the largest magnitude x[k], and whether that will do for all columns j.

    It will where the sum over k in [first, last) without it is below 2^-27 of it, or it is NaN.
    For these columns y is finite, and no |y| is as large as ``reach``.
    """
    L: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    at, rest = _outlier(x, x_k, first, last, W)
    at = at.to(gl.int64)
    j = gl.arange(0, WIDE, layout=L)
    y += j.to(gl.int64) * y_col
    product = gl.load(x + at * x_k) * gl.load(y + at * y_k, mask=j < cols, other=0.0)
    # Nothing is lost by underflow.
    others = gl.where(rest > 0, gl.maximum(rest * reach, 2.0**-126), 0.0)
    others *= (last - first) * _NEGLIGIBLE
    outweighs = (gl.abs(product) >= others) | (product != product)
    is_short = gl.max((outweighs == 0).to(gl.int32) * (j < cols).to(gl.int32), 0)
    will_do = (is_short == 0) & (rest < float("inf")) & (others < float("inf"))
    return product + 0.0, will_do  # -0 is no sum


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
    LX: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [W, 1], [1, 0])
    STEP: gl.constexpr = KINDS * BK
    ROWS: gl.constexpr = _STEPS * KINDS
    x_s = gl.allocate_shared_memory(
        gl.float32, [1, ROWS, BK], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    ).index(0)
    x_rows = x_s._reinterpret(gl.float32, [ROWS, BK], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    each = (
        gl.arange(0, ROWS, layout=gl.SliceLayout(1, LX))[:, None] * BK
        + gl.arange(0, BK, layout=gl.SliceLayout(0, LX))[None, :]
    )
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
    coming = gl.load(x + (first + each).to(gl.int64) * x_k, mask=first + each < last, other=0.0)
    for bulk in range(first, last, _STEPS * STEP):
        barrier()
        x_s.store(coming)
        barrier()
        k = bulk + _STEPS * STEP + each
        coming = gl.load(x + k.to(gl.int64) * x_k, mask=k < last, other=0.0)
        for start in range(bulk, gl.minimum(bulk + _STEPS * STEP, last), STEP):
            for h in gl.static_range(KINDS):
                value = x_rows.index((start - bulk) // BK + h).load(gl.SliceLayout(1, L))
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
def line_beside_tiles(
    x, x_k, y, y_k, y_col, cols, reach, is_finite, tiles, kinds, j0, first, last,
    K_FIRST: gl.constexpr, KINDS: gl.constexpr, BK: gl.constexpr, WIDE: gl.constexpr,
    STAGES: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``line_of_tiles``; y are the same elements, from column j0 on.

    ``is_finite``: all of these are, and their magnitudes below ``reach``.
    """
    L: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    row = gl.zeros([WIDE], gl.float32, L)
    is_done = is_finite
    if is_finite:
        row, is_done = by_outlier(x, x_k, y, y_k, y_col, cols, reach, first, last, WIDE, W)
    if is_done == 0:
        row = gl.convert_layout(
            line_of_tiles(
                x, x_k, tiles, kinds, j0, first, last, K_FIRST, KINDS, BK, WIDE, STAGES, W
            ),
            L,
        )
    return row


@gluon.jit
def _next_of_memory(
    x, x_k, y, y_k, start, cols, last, STEP: gl.constexpr, WIDE: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    k = start + gl.arange(0, STEP, layout=gl.SliceLayout(1, L))
    j = gl.arange(0, WIDE, layout=gl.SliceLayout(0, L))
    value = gl.load(x + k.to(gl.int64) * x_k, mask=k < last, other=0.0)
    others = gl.load(
        y + (k.to(gl.int64) * y_k)[:, None],
        mask=(k < last)[:, None] & (j < cols)[None, :],
        other=0.0,
    )
    return value, others


@gluon.jit
def line_of_memory(
    x, x_k, y, y_k, y_col, cols, first, last, FAST: gl.constexpr, WIDE: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """The sums of x[k]·y[k, j] over k in [first, last) for columns j, which lie as they like.

    FAST is the contiguous dimension of y, -1 where it is not known.
    """
    LANES: gl.constexpr = [4, 8] if FAST < 0 else [32, 1] if FAST == 0 else [1, 32]
    L: gl.constexpr = gl.BlockedLayout(
        [1, 1], LANES, [1, W] if FAST == 0 else [W, 1], [0, 1] if FAST == 0 else [1, 0]
    )
    # Up to 32 elements to a thread, and as many on their way; no more chains than are declared.
    STEP: gl.constexpr = 1024 * W // WIDE if 16 * W <= WIDE else 64
    j = gl.arange(0, WIDE, layout=gl.SliceLayout(0, L))
    y += (j.to(gl.int64) * y_col)[None, :]
    total = gl.zeros([STEP, WIDE], gl.float32, L)
    value, others = _next_of_memory(x, x_k, y, y_k, first, cols, last, STEP, WIDE, L)
    for start in range(first, last, STEP):
        coming = _next_of_memory(x, x_k, y, y_k, start + STEP, cols, last, STEP, WIDE, L)
        total += value[:, None] * others
        value, others = coming
    return gl.sum(total, 0)


@gluon.jit
def line_beside_memory(
    x, x_k, y, y_k, y_col, cols, reach, is_finite, first, last, FAST: gl.constexpr,
    WIDE: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """As ``line_of_memory``, and ``line_beside_tiles``."""
    L: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    row = gl.zeros([WIDE], gl.float32, L)
    is_done = is_finite
    if is_finite:
        row, is_done = by_outlier(x, x_k, y, y_k, y_col, cols, reach, first, last, WIDE, W)
    if is_done == 0:
        row = gl.convert_layout(
            line_of_memory(x, x_k, y, y_k, y_col, cols, first, last, FAST, WIDE, W), L
        )
    return row


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
