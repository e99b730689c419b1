"""α·A·B + β·C in IEEE float32 for short k, of matrices or of a batch, in one launch.

With short k a product is bound by memory, which the float32 units keep up with: nothing has to be
split for tensor cores, and there is no element that needs a guard. A program computes a tile of
one matrix over all of k. Read directly, C is asked for before A and B are: all that small tiles
wait for arrives together, and their registers allow it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.epilogue import read_parts, read_tile, rows_of, store_parts
from autogemm.kernels.launch import launch, written
from autogemm.kernels.operands import described_batch, load_batched_tiles, place_of
from autogemm.kernels.raster import tile_count, tile_origin
from autogemm.kernels.split_product import Tiling


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "a_batch", "a_row", "a_k", "b_batch", "b_k", "b_col", "c_batch", "c_row",
        "c_col", "out_batch", "out_row", "out_col", "group", "alpha", "beta",
    ]
)  # fmt: skip
def _short_kernel(
    a, b, c, out, m, n, k, a_batch, a_row, a_k, b_batch, b_k, b_col, c_batch, c_row, c_col,
    out_batch, out_row, out_col, group, alpha, beta,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr,
    A_ROWS: tl.constexpr, B_ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A_ROWS and B_ROWS: None if a and b are descriptors, else what ``rows_of`` says of A and B.

    Of their transposes where A_T and B_T say so. WHOLE: a tile is a matrix.
    """
    if WHOLE:
        z = tl.program_id(0)
        i0 = 0 * z
        j0 = 0 * z
    else:
        tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
        i0, j0 = tile_origin(tl.program_id(0) % tiles, m, n, group, BM, BN)
        z = tl.program_id(0) // tiles
    far = z.to(tl.int64)
    if ROWS == 2:  # the one form in which Triton takes note: hints on arguments are dropped
        c_batch = c_batch // 4 * 4
        out_batch = out_batch // 4 * 4
    c += far * c_batch
    out += far * out_batch
    total = tl.zeros((BM, BN), dtype=tl.float32)
    if A_ROWS is None:
        a_z = place_of(z, a_batch)
        b_z = place_of(z, b_batch)
        for at in tl.range(0, k, BK, num_stages=STAGES):
            x, y = load_batched_tiles(a, b, a_z, b_z, i0, j0, at, A_T, B_T)
            total = tl.dot(x, y, total, input_precision="ieee")
        source = read_parts(c, i0, j0, m, n, c_row, c_col, HAS_C, ROWS, BM, BN)
    else:
        source = read_parts(c, i0, j0, m, n, c_row, c_col, HAS_C, ROWS, BM, BN)
        if A_ROWS == 2:
            a_batch = a_batch // 4 * 4
        if B_ROWS == 2:
            b_batch = b_batch // 4 * 4
        a += far * a_batch
        b += far * b_batch
        for step in tl.range(0, k, BK, num_stages=STAGES):
            at = step + 0 * i0  # a tensor for Triton's interpreter, too
            if A_T:
                x = read_tile(a, at, i0, k, m, a_k, a_row, A_ROWS, BK, BM).T
            else:
                x = read_tile(a, i0, at, m, k, a_row, a_k, A_ROWS, BM, BK)
            if B_T:
                y = read_tile(b, j0, at, n, k, b_col, b_k, B_ROWS, BN, BK).T
            else:
                y = read_tile(b, at, j0, k, n, b_k, b_col, B_ROWS, BK, BN)
            total = tl.dot(x, y, total, input_precision="ieee")
    store_parts(
        total, source, out, i0, j0, m, n, out_row, out_col, alpha, beta, HAS_C, ROWS, BM, BN
    )


def short_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: Tiling,
    direct: bool = False,
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    All are float32, and matrices, or batches (batch, m, k) and so on. Matrices of A and of B have
    one contiguous extent, and begin, as their rows (columns) do, at multiples of 16 bytes; if
    they are read ``direct`` they have any strides, as C and ``out`` have. A, B and C may be
    expanded.
    """
    A, B, out = _as_batch(A), _as_batch(B), _as_batch(out)
    read = out if C is None else _as_batch(C)
    (batch, m, k), n = A.shape, B.shape[2]
    a_t, b_t = (x.stride(2) != 1 and (not direct or x.stride(1) == 1) for x in (A, B))
    descriptors = () if direct else (
        described_batch(A, a_t, tiling.bm, tiling.bk),
        described_batch(B, b_t, tiling.bk, tiling.bn),
    )  # fmt: skip
    launch(
        _short_kernel,
        batch * tile_count(m, n, tiling.bm, tiling.bn, gram=False),
        (A, B, read, out) if direct else (read, out),
        (
            m,
            n,
            k,
            *A.stride(),
            *B.stride(),
            *read.stride(),
            *out.stride(),
            tiling.group,
        ),
        (alpha, beta),
        {
            "HAS_C": C is not None,
            "ROWS": min(rows_of(read), rows_of(out)),
            "A_T": a_t,
            "B_T": b_t,
            "A_ROWS": rows_of(A.mT if a_t else A) if direct else None,
            "B_ROWS": rows_of(B.mT if b_t else B) if direct else None,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "WHOLE": m <= tiling.bm and n <= tiling.bn,
        },
        num_warps=tiling.warps,
        descriptors=descriptors,
    )
    written(out)


def _as_batch(x: torch.Tensor) -> torch.Tensor:
    """A matrix as a batch of one, whose stride over the batch is 0."""
    return x if x.ndim == 3 else x.as_strided((1, *x.shape), (0, *x.stride()))
