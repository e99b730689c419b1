"""α·A·B + β·C of 16-bit operands in one launch: float32 sums, rounded once, into any result.

Operands come through tensor descriptors, which zero what lies outside; C and the result are
read and written by plain masked accesses, so that their leading dimensions may be odd. A
program computes one tile (``programs`` given: one tile after another) over one slice of k; of a
batch (``kernels/half_batch.py``), a tile of one matrix.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import ceil_div, launch, registers_for_two, workspace, written
from autogemm.kernels.operands import described, load_either
from autogemm.kernels.raster import tile_origin
from autogemm.kernels.reduce import reduce_slices
from autogemm.kernels.split_product import Tiling

_FAR_ROW = 2**31 // 256
"""Offsets within a tile fit 32 bits below this stride: tiles have at most 256 rows."""


@triton.jit
def _sum_of_products(
    a, b, a_z, b_z, i0, j0, first, last, A_T: tl.constexpr, B_T: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in tl.range(first, last, BK, num_stages=STAGES):
        x, y = load_either(a, b, a_z, b_z, i0, j0, at, A_T, B_T)
        total = tl.dot(x, y, total)
    return total


@triton.jit
def offsets(row, col, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Of a tile's elements from its first. UNIT: columns are contiguous, and 32 bits suffice."""
    r = tl.arange(0, BM)[:, None]
    q = tl.arange(0, BN)[None, :]
    if UNIT:
        at = r * row + q
    else:
        at = r.to(tl.int64) * row + q.to(tl.int64) * col
    return at


@triton.jit
def read_tile(x, rows, cols, row, col, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """A tile's elements from its first, and zeros beyond ``rows`` and ``cols``."""
    inside = (tl.arange(0, BM)[:, None] < rows) & (tl.arange(0, BN)[None, :] < cols)
    return tl.load(x + offsets(row, col, UNIT, BM, BN), mask=inside, other=0.0)


@triton.jit
def _store_columns(
    total, read, c, out, rows, cols, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, AHEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write α·total + β·C, AT_ONCE columns after one another so that registers suffice.

    AHEAD: ``read`` is C's first part, and C's part behind these columns is returned, whose
    reading nothing had to wait for.
    """
    if BN > AT_ONCE:
        halves = tl.permute(tl.reshape(total, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        read = _store_columns(
            left, read, c, out, rows, cols, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
            C_UNIT, OUT_UNIT, AHEAD, BM, BN // 2, AT_ONCE,
        )  # fmt: skip
        read = _store_columns(
            right, read, c + (BN // 2) * c_col, out + (BN // 2) * out_col, rows, cols - BN // 2,
            c_row, c_col, out_row, out_col, alpha, beta, HAS_C, C_UNIT, OUT_UNIT, AHEAD, BM,
            BN // 2, AT_ONCE,
        )  # fmt: skip
    else:
        here = read
        if HAS_C:
            if AHEAD:
                read = read_tile(c + BN * c_col, rows, cols - BN, c_row, c_col, C_UNIT, BM, BN)
            else:
                here = read_tile(c, rows, cols, c_row, c_col, C_UNIT, BM, BN)
        total *= alpha
        if HAS_C:
            total += beta * here.to(tl.float32)
        inside = (tl.arange(0, BM)[:, None] < rows) & (tl.arange(0, BN)[None, :] < cols)
        at = offsets(out_row, out_col, OUT_UNIT, BM, BN)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
    return read


@triton.jit
def compute_tile(
    program, a, b, a_z, b_z, c, out, m, n, k, c_row, c_col, out_row, out_col, slice_k, group,
    alpha, beta,
    HAS_C: tl.constexpr, C_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, ALIGNED: tl.constexpr,
    AHEAD: tl.constexpr, TURNED: tl.constexpr, SLICED: tl.constexpr,
    A_T: tl.constexpr, B_T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """All that is done for a tile; of matrices a_z and b_z of batches, unless these are None."""
    first = 0
    last = k
    if SLICED:
        tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
        slice_ = program // tiles
        program = program % tiles
        first = slice_ * slice_k
        last = tl.minimum(first + slice_k, k)
        size = m.to(tl.int64) * n  # one matrix a slice
        if ALIGNED:
            size = size // 8 * 8
        out += slice_ * size
    i0, j0 = tile_origin(program, m, n, group, BM, BN)
    if TURNED:
        rows, cols = n - j0, m - i0
        row, col = j0.to(tl.int64), i0.to(tl.int64)
    else:
        rows, cols = m - i0, n - j0
        row, col = i0.to(tl.int64), j0.to(tl.int64)
    if C_UNIT:
        c_col = 1
    else:  # whose multiples may not fit 32 bits
        c_col = c_col.to(tl.int64)
    if OUT_UNIT:
        out_col = 1
    else:
        out_col = out_col.to(tl.int64)
    if ALIGNED:  # the one form in which Triton takes note: hints on arguments are dropped
        cols = cols // 8 * 8
        c_row = c_row // 8 * 8
        out_row = out_row // 8 * 8
    c += row * c_row + col * c_col
    out += row * out_row + col * out_col
    total = _sum_of_products(
        a, b, a_z, b_z, i0, j0, first, last, A_T, B_T, BM, BN, BK, STAGES
    )
    read = 0.0
    if TURNED:
        _store_columns(
            total.T, read, c, out, rows, cols, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
            C_UNIT, OUT_UNIT, False, BN, BM, BM,
        )  # fmt: skip
    else:
        if AHEAD:
            read = read_tile(c, rows, cols, c_row, c_col, C_UNIT, BM, AT_ONCE)
        _store_columns(
            total, read, c, out, rows, cols, c_row, c_col, out_row, out_col, alpha, beta, HAS_C,
            C_UNIT, OUT_UNIT, AHEAD, BM, BN, AT_ONCE,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "c_row", "c_col", "out_row", "out_col", "slice_k", "group", "alpha", "beta",
    ]
)  # fmt: skip
def _product_kernel(
    a, b, c, out, m, n, k, c_row, c_col, out_row, out_col, slice_k, group, alpha, beta,
    SLICED: tl.constexpr, PERSISTENT: tl.constexpr, HAS_C: tl.constexpr, C_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr, ALIGNED: tl.constexpr, AHEAD: tl.constexpr, TURNED: tl.constexpr,
    A_T: tl.constexpr, B_T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    if PERSISTENT:
        tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
        # Flattened: the next tile's operands are on their way while this one is written.
        for tile in tl.range(
            tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES, flatten=True
        ):
            compute_tile(
                tile, a, b, None, None, c, out, m, n, k, c_row, c_col, out_row, out_col, slice_k,
                group, alpha, beta, HAS_C, C_UNIT, OUT_UNIT, ALIGNED, AHEAD, TURNED, SLICED, A_T,
                B_T, BM, BN, BK, STAGES, AT_ONCE,
            )  # fmt: skip
    else:
        compute_tile(
            tl.program_id(0), a, b, None, None, c, out, m, n, k, c_row, c_col, out_row, out_col,
            slice_k, group, alpha, beta, HAS_C, C_UNIT, OUT_UNIT, ALIGNED, AHEAD, TURNED, SLICED,
            A_T, B_T, BM, BN, BK, STAGES, AT_ONCE,
        )  # fmt: skip


def half_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: Tiling,
    slices: int,
    programs: int | None = None,
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    All are float16, or all bfloat16. ``is_ready`` holds for A (m, k) and B (k, n), which may
    be larger by zeros: ``out`` (m, n) says what is computed, from the first min(columns of A,
    rows of B) elements of k. C and ``out`` have any strides. ``slices`` parts of k are computed
    apart and added in float32 by a second launch; ``programs`` compute tile after tile instead
    of one each.
    """
    m, n = out.shape
    k = min(A.shape[1], B.shape[0])
    slice_k = ceil_div(ceil_div(k, slices), tiling.bk) * tiling.bk
    slices = ceil_div(k, slice_k)
    turned = out.stride(0) == 1 and out.stride(1) != 1
    result, addend = (out.t(), None if C is None else C.t()) if turned else (out, C)
    target, source = result, addend
    if slices > 1:
        target = workspace(slices * m * n, dtype=torch.float32, device=A.device)
        target, source = target.view(slices * result.shape[0], result.shape[1]), None
    read = result if source is None else source
    tiles = ceil_div(m, tiling.bm) * ceil_div(n, tiling.bn)
    a_t, b_t = not is_row_major(A), not is_row_major(B)
    launch(
        _product_kernel,
        tiles * slices if programs is None or slices > 1 else min(tiles, programs),
        (read, target),
        (
            m,
            n,
            k,
            *read.stride(),
            *target.stride(),
            slice_k,
            tiling.group,
        ),
        (alpha, beta) if slices == 1 else (1.0, 0.0),
        {
            "SLICED": slices > 1,
            "PERSISTENT": programs is not None and slices == 1,
            **constants(
                read, target, tiling, adds=source is not None, turned=turned, a_t=a_t, b_t=b_t
            ),
        },
        num_warps=tiling.warps,
        registers=registers_of(tiling),
        descriptors=(
            described(A, a_t, tiling.bm, tiling.bk),
            described(B, b_t, tiling.bk, tiling.bn),
        ),
    )
    if slices > 1:
        reduce_slices(alpha, target.view(slices, *result.shape), beta, addend, result)
    else:
        written(out)


def constants(
    read: torch.Tensor, target: torch.Tensor, tiling: Tiling, *, adds: bool, turned: bool,
    a_t: bool, b_t: bool,
) -> dict[str, int | bool]:  # fmt: skip
    """What ``compute_tile`` is compiled for: C (``read``) and the result as they lie, and a tile.

    ``turned``: both are given transposed. ``a_t`` and ``b_t``: operands are described transposed.
    """
    c_unit, out_unit = has_unit_columns(read), has_unit_columns(target)
    aligned = c_unit and out_unit and is_aligned(read) and is_aligned(target)
    at_once = tiling.bn
    if not turned:
        at_once = min(at_once, 64 if aligned else 32)
    return {
        "HAS_C": adds,
        "C_UNIT": c_unit,
        "OUT_UNIT": out_unit,
        "ALIGNED": aligned,
        "AHEAD": adds and _is_large(tiling) and tiling.bm <= 128,
        "TURNED": turned,
        "A_T": a_t,
        "B_T": b_t,
        "BM": tiling.bm,
        "BN": tiling.bn,
        "BK": tiling.bk,
        "STAGES": tiling.stages,
        "AT_ONCE": at_once,
    }


def registers_of(tiling: Tiling) -> int | None:
    """Registers a thread, where it is to have fewer than the compiler would take.

    Two programs share a multiprocessor: one is written while the other multiplies.
    """
    return registers_for_two(8) if tiling.warps == 8 and not _is_large(tiling) else None


def _is_large(tiling: Tiling) -> bool:
    return tiling.bm * tiling.bn > 128 * 128


def is_ready(x: torch.Tensor) -> bool:
    """Whether a 16-bit matrix can be read as it lies: one extent contiguous, 16-byte aligned."""
    if not is_row_major(x):
        x = x.t()
    rows, pitch, step = x.shape[0], *x.stride()
    return (
        (step == 1 or x.shape[1] == 1)
        and (rows == 1 or (pitch > 0 and pitch % 8 == 0))
        and x.data_ptr() % 16 == 0
    )


def is_row_major(x: torch.Tensor) -> bool:
    """Whether x, or a batch's matrices, are to be read along rows; else along columns."""
    (rows, cols), (row, col) = x.shape[-2:], x.stride()[-2:]
    if cols == 1:
        return row != 1
    return col == 1 or (rows > 1 and row != 1)


def has_unit_columns(x: torch.Tensor, every: int = 1) -> bool:
    """Whether columns are contiguous and a tile's offsets fit 32 bits, if it has every so many-th
    row.
    """
    row, col = x.stride()[-2:]
    return col == 1 and every * row < _FAR_ROW


def is_aligned(x: torch.Tensor) -> bool:
    """Whether rows are whole multiples of 16 bytes, at such addresses."""
    *steps, _ = x.stride()
    return all(s % 8 == 0 for s in steps) and x.shape[-1] % 8 == 0 and x.data_ptr() % 16 == 0
