"""α·A·B + β·C in IEEE float32 for short k, of matrices or of a batch, in one launch.

With short k a product is bound by memory, which the float32 units keep up with: nothing has to be
split for tensor cores, and there is no element that needs a guard. A program computes a tile of
one matrix over all of k.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.epilogue import rows_of, store_tile
from autogemm.kernels.launch import launch, written
from autogemm.kernels.operands import described_batch, load_batched_tiles, place_of
from autogemm.kernels.raster import tile_count, tile_origin
from autogemm.kernels.split_product import Tiling


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "a_batch", "b_batch", "c_batch", "c_row", "c_col", "out_batch", "out_row",
        "out_col", "group", "alpha", "beta",
    ]
)  # fmt: skip
def _short_kernel(
    a, b, c, out, m, n, k, a_batch, b_batch, c_batch, c_row, c_col, out_batch, out_row, out_col,
    group, alpha, beta,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, A_T: tl.constexpr, B_T: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    i0, j0 = tile_origin(tl.program_id(0) % tiles, m, n, group, BM, BN)
    z = tl.program_id(0) // tiles
    a_z = place_of(z, a_batch)
    b_z = place_of(z, b_batch)
    if ROWS == 2:  # the one form in which Triton takes note: hints on arguments are dropped
        c_batch = c_batch // 4 * 4
        out_batch = out_batch // 4 * 4
    far = z.to(tl.int64)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for at in tl.range(0, k, BK, num_stages=STAGES):
        x, y = load_batched_tiles(a, b, a_z, b_z, i0, j0, at, A_T, B_T)
        total = tl.dot(x, y, total, input_precision="ieee")
    store_tile(
        total, c + far * c_batch, out + far * out_batch, i0, j0, m, n, c_row, c_col, out_row,
        out_col, alpha, beta, HAS_C, ROWS, BM, BN,
    )  # fmt: skip


def short_product(
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: Tiling,
) -> None:
    """Write α·A·B + β·C (α·A·B where C is None) into ``out``, which may be C.

    All are float32, and matrices, or batches (batch, m, k) and so on. Matrices of A and of B have
    one contiguous extent, and begin, as their rows (columns) do, at multiples of 16 bytes; C and
    ``out`` have any strides. A, B and C may be expanded.
    """
    A, B, out = _as_batch(A), _as_batch(B), _as_batch(out)
    read = out if C is None else _as_batch(C)
    (batch, m, k), n = A.shape, B.shape[2]
    a_t, b_t = A.stride(2) != 1, B.stride(2) != 1
    launch(
        _short_kernel,
        batch * tile_count(m, n, tiling.bm, tiling.bn, gram=False),
        (read, out),
        (
            m,
            n,
            k,
            A.stride(0),
            B.stride(0),
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
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
        },
        num_warps=tiling.warps,
        descriptors=(
            described_batch(A, a_t, tiling.bm, tiling.bk),
            described_batch(B, b_t, tiling.bk, tiling.bn),
        ),
    )
    written(out)


def _as_batch(x: torch.Tensor) -> torch.Tensor:
    """A matrix as a batch of one, whose stride over the batch is 0."""
    return x if x.ndim == 3 else x.as_strided((1, *x.shape), (0, *x.stride()))
