"""α·A·B + β·C in IEEE float32 for a few rows, k spread over a program's threads (Gluon).

A program computes all rows of some columns over one slice of k. A thread has sums for all rows
and eight columns over its own part of k, so that what it reads from shared memory serves many
products; the threads' sums are added at the end. The large operand passes by once, as it lies,
be it along k or across, and there is no element that needs a guard.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from autogemm.kernels.epilogue import rows_of
from autogemm.kernels.launch import ceil_div, launch
from autogemm.kernels.reduce import finish
from autogemm.kernels.split_product import Tiling
from autogemm.kernels.warpgroups import (
    arrive,
    barrier,
    barriers_of,
    bring,
    by_tma,
    described_rows,
    described_tiles,
    in_fours,
    is_turned,
    store,
    written_to,
)

_LINE = 32
"""Elements of 128 bytes."""
_COLUMN_BITS = 3
"""A thread has eight columns, and all rows."""


@gluon.constexpr_function
def _bits_of(bn, b_t, warps):
    """Bits of a thread's number: lane's for columns and for k, warp's for columns and for k.

    Lanes share 128 bytes, be they of k or of columns.
    """
    columns = bn.bit_length() - 1 - _COLUMN_BITS
    lane_n = 0 if b_t else min(2, columns)
    warp_n = columns - lane_n
    return lane_n, 5 - lane_n, warp_n, warps.bit_length() - 1 - warp_n


@gluon.constexpr_function
def _parts(bn, b_t, warps):
    """How many parts of k the threads have."""
    _, lane_k, _, warp_k = _bits_of(bn, b_t, warps)
    return 1 << (lane_k + warp_k)


@gluon.constexpr_function
def _halvings(bn, b_t, warps):
    """How often a warp's parts can be halved."""
    return _bits_of(bn, b_t, warps)[1]


@gluon.constexpr_function
def _sums(bm, bn, b_t, warps):
    """The layout of sums (rows, columns, parts of k); bits for columns come before those for k."""
    lane_n, lane_k, warp_n, warp_k = _bits_of(bn, b_t, warps)
    return gl.BlockedLayout(
        [bm, 1 << _COLUMN_BITS, 1],
        [1, 1 << lane_n, 1 << lane_k],
        [1, 1 << warp_n, 1 << warp_k],
        [1, 2, 0],
    )


@gluon.constexpr_function
def _halved(step, bm, bn, b_t, warps):
    """The layout of sums that were halved ``step`` times, ready for it once more.

    Two parts are a thread's own: a bit of a lane's part has changed places with one of a row's or
    a column's, of which a thread has half as many then.
    """
    lane_n, lane_k, warp_n, warp_k = _bits_of(bn, b_t, warps)
    rows = [[1 << bit, 0, 0] for bit in range(bm.bit_length() - 1)]
    columns = [[0, 1 << bit, 0] for bit in range(_COLUMN_BITS + lane_n + warp_n)]
    parts = [[0, 0, 1 << bit] for bit in range(lane_k - step + warp_k)]
    of_thread, of_lane = columns[:_COLUMN_BITS], columns[_COLUMN_BITS:][:lane_n]
    own = rows + of_thread
    return gl.DistributedLinearLayout(
        [parts[0], *own[step + 1 :]],
        of_lane + own[: step + 1] + parts[1 : lane_k - step],
        columns[_COLUMN_BITS + lane_n :] + parts[lane_k - step :],
        [],
        [bm, bn, 1 << len(parts)],
    )


@gluon.constexpr_function
def _packed(bm, bn, b_t, warps):
    """The layout of lines of A, several elements of k in each, that threads need for ``_sums``."""
    lane_n, lane_k, warp_n, warp_k = _bits_of(bn, b_t, warps)
    rows = [[0, 1 << bit] for bit in range(bm.bit_length() - 1)]
    at_once = _LINE // bm
    parts = [
        [0, bm << bit] if 1 << bit < at_once else [(1 << bit) // at_once, 0]
        for bit in range(lane_k + warp_k)
    ]
    return gl.DistributedLinearLayout(
        rows,
        [[0, 0]] * lane_n + parts[:lane_k],
        [[0, 0]] * warp_n + parts[lane_k:],
        [],
        [(1 << len(parts)) // at_once, _LINE],
    )


@gluon.jit
def _fetch(
    a, b, a_s, b_s, bars, j0, at, number, wanted, A_T: gl.constexpr, B_T: gl.constexpr,
    AT_ONCE: gl.constexpr, BYTES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start to bring the block at ``at`` of k to where block ``number`` of all goes."""
    stage = number % STAGES
    bar = bars.index(stage)
    mbarrier.expect(bar, BYTES, pred=wanted)
    bring(b, j0, at, bar, b_s.index(stage), wanted, not B_T)
    bring(a, j0 * 0, at // AT_ONCE, bar, a_s.index(stage), wanted, A_T)


@gluon.jit
def _add_block(
    x, y, sums, A_T: gl.constexpr, B_T: gl.constexpr, AT_ONCE: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, BK: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Add a block's products to the threads' sums."""
    L: gl.constexpr = _sums(BM, BN, B_T, W)
    PARTS: gl.constexpr = _parts(BN, B_T, W)
    if not B_T:
        y = y.permute((1, 0))
    for step in gl.static_range(BK // PARTS):
        if AT_ONCE > 1:
            u = x.slice(step * (PARTS // AT_ONCE), PARTS // AT_ONCE, 0)
            u = gl.reshape(u.load(_packed(BM, BN, B_T, W)), [PARTS, BM])
            u = gl.convert_layout(gl.permute(u, (1, 0)), gl.SliceLayout(1, L))
        elif A_T:
            u = x.permute((1, 0)).slice(step * PARTS, PARTS, 1).load(gl.SliceLayout(1, L))
        else:
            u = x.slice(step * PARTS, PARTS, 1).load(gl.SliceLayout(1, L))
        v = y.slice(step * PARTS, PARTS, 1).load(gl.SliceLayout(0, L))
        sums += gl.expand_dims(u, 1) * gl.expand_dims(v, 0)
    return sums


@gluon.jit
def _sum_of_parts(
    sums, B_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, W: gl.constexpr
):  # fmt: skip
    """The sum over parts: lanes give each other half of what they have, again and again."""
    for step in gl.static_range(_halvings(BN, B_T, W)):
        sums = gl.convert_layout(sums, _halved(step, BM, BN, B_T, W))
        even, odd = gl.split(gl.reshape(sums, [BM, BN, sums.shape[2] // 2, 2]))
        sums = even + odd
    return gl.sum(sums, 2)


@gluon.jit(
    do_not_specialize=[
        "m", "n", "k", "c_row", "c_col", "out_row", "out_col", "slice_k", "alpha", "beta",
    ]
)  # fmt: skip
def _lanes_kernel(
    a, b, c, out, m, n, k, c_row, c_col, out_row, out_col, slice_k, alpha, beta,
    HAS_C: gl.constexpr, ROWS: gl.constexpr, OUT_T: gl.constexpr, A_T: gl.constexpr,
    B_T: gl.constexpr, AT_ONCE: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """AT_ONCE: elements of k in a line of A, where its columns are contiguous."""
    BYTES: gl.constexpr = 4 * BK * (BM + BN)
    A_LINES: gl.constexpr = BK // AT_ONCE if A_T else BM
    A_LINE: gl.constexpr = BM * AT_ONCE if A_T else BK
    B_LINES: gl.constexpr = BN if B_T else BK
    B_LINE: gl.constexpr = BK if B_T else BN
    tiles = (n + BN - 1) // BN
    slice_ = gl.program_id(0) // tiles
    j0 = gl.program_id(0) % tiles * BN
    first = slice_ * slice_k
    blocks = (gl.minimum(slice_k, k - first) + BK - 1) // BK
    a_s = gl.allocate_shared_memory(gl.float32, [STAGES, A_LINES, A_LINE], by_tma(A_LINE, 32))
    b_s = gl.allocate_shared_memory(gl.float32, [STAGES, B_LINES, B_LINE], by_tma(B_LINE, 32))
    bars = barriers_of(STAGES)
    fence_async_shared()
    barrier()
    for s in gl.static_range(STAGES - 1):
        _fetch(
            a, b, a_s, b_s, bars, j0, first + s * BK, s, s < blocks, A_T, B_T, AT_ONCE, BYTES,
            STAGES,
        )  # fmt: skip
    PARTS: gl.constexpr = _parts(BN, B_T, W)
    sums = gl.zeros([BM, BN, PARTS], gl.float32, _sums(BM, BN, B_T, W))
    for block in range(first * 0, blocks):
        arrive(bars, block, STAGES)
        barrier()  # all have read the block before this one, where the next goes
        ahead = block + STAGES - 1
        _fetch(
            a, b, a_s, b_s, bars, j0, first + ahead * BK, ahead, ahead < blocks, A_T, B_T,
            AT_ONCE, BYTES, STAGES,
        )  # fmt: skip
        x = a_s.index(block % STAGES)
        y = b_s.index(block % STAGES)
        sums = _add_block(x, y, sums, A_T, B_T, AT_ONCE, BM, BN, BK, W)
    barrier()  # sums pass through the memory of blocks
    total = _sum_of_parts(sums, B_T, BM, BN, W)
    m, n = in_fours(m, n, ROWS, OUT_T)
    out += slice_.to(gl.int64) * m * n  # one matrix a slice
    store(
        total, c, out, j0 * 0, j0, m, n, c_row, c_col, out_row, out_col, alpha, beta, HAS_C, ROWS,
        OUT_T, False, BM, BN, W,
    )  # fmt: skip


def lanes_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    slices: int,
    tiling: Tiling,
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    All are float32; A has no more rows than ``tiling.bm``, which is 8 or 16. A and B have one
    contiguous extent each, rows (columns) of it 16-byte aligned; C and ``out`` have any strides.
    There is a warp for every eight of ``tiling.bn`` columns at least, ``tiling.bk`` is 128 at
    least, and there are two stages or more. ``slices`` parts of k are computed apart and added by
    a second launch.
    """
    (m, k), n = A.shape, B.shape[1]
    slice_k = ceil_div(ceil_div(k, slices), tiling.bk) * tiling.bk
    slices = ceil_div(k, slice_k)
    result = written_to(slices, C, out)
    a_t, b_t = is_turned(A), is_turned(B)
    at_once = _elements_in_line(A, tiling.bm) if a_t else 1
    launch(
        _lanes_kernel,
        ceil_div(n, tiling.bn) * slices,
        (result.read, result.target),
        (m, n, k, *result.places, slice_k),
        (alpha, beta) if slices == 1 else (1.0, 0.0),
        {
            "HAS_C": result.adds,
            "ROWS": min(rows_of(result.read), rows_of(result.target)),
            "OUT_T": result.out_t,
            "A_T": a_t,
            "B_T": b_t,
            "AT_ONCE": at_once,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "W": tiling.warps,
        },
        num_warps=tiling.warps,
        descriptors=(
            _described_lines(A, tiling.bk, at_once)
            if at_once > 1
            else described_tiles(A, a_t, tiling.bm, tiling.bk),
            described_tiles(B, b_t, tiling.bk, tiling.bn),
        ),
    )
    finish(alpha, result.target, slices, beta, result.added, result.lying)


def _elements_in_line(A: torch.Tensor, bm: int) -> int:
    """Elements of k that lie in 128 bytes of A by columns, if these follow without a gap.

    A column by itself is 32 or 64 bytes; with 64 an H200 takes 4 to 6 % longer.
    """
    m, k = A.shape
    at_once = _LINE // bm
    return at_once if m == bm and A.stride(1) == m and k % at_once == 0 else 1


def _described_lines(A: torch.Tensor, bk: int, at_once: int) -> TensorDescriptor:
    """A descriptor of lines of 128 bytes of A, whose columns follow without a gap."""
    lines = A.shape[1] // at_once
    return described_rows(A, (lines, _LINE), _LINE, (bk // at_once, _LINE))
