"""α·A·B + β·C in IEEE float32 for a few rows: the large operand passes by once, as it lies.

With so few rows a multiprocessor's float32 units keep up with its memory, so nothing has to be
split for tensor cores, and there is no element that needs a guard. A program computes all rows
of some columns over one slice of k.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.epilogue import ieee_blocks
from autogemm.kernels.launch import ceil_div, launch
from autogemm.kernels.operands import described
from autogemm.kernels.reduce import finish, target_of
from autogemm.kernels.split_product import Tiling

CHUNK = 128
"""Elements of k that are summed before their sum is added to the total."""


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "c_row", "c_col", "out_row", "out_col", "slice_k", "alpha", "beta",
    ]
)  # fmt: skip
def _skinny_kernel(
    a, b, c, out, m, n, k, c_row, c_col, out_row, out_col, slice_k, alpha, beta,
    HAS_C: tl.constexpr, A_T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(n, BN)
    slice_ = tl.program_id(0) // tiles
    j0 = tl.program_id(0) % tiles * BN
    first = slice_ * slice_k
    last = tl.minimum(first + slice_k, k)
    total = alpha * ieee_blocks(a, b, 0, j0, first, last, BLOCKS, A_T, False, BM, BN, BK, STAGES)
    i = tl.arange(0, BM).to(tl.int64)[:, None]
    j = (j0 + tl.arange(0, BN)).to(tl.int64)[None, :]
    inside = (i < m) & (j < n)
    if HAS_C:
        total += beta * tl.load(c + i * c_row + j * c_col, mask=inside, other=0.0)
    out += slice_.to(tl.int64) * m * n  # one matrix a slice
    tl.store(out + i * out_row + j * out_col, total, mask=inside)


def skinny_product(
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

    All are float32; A has no more rows than ``tiling.bm``, and one contiguous extent; B lies by
    rows. Rows (columns, of A) are 16-byte aligned. C and ``out`` have any strides. ``slices`` parts
    of k are computed apart and added by a second launch.
    """
    (m, k), n = A.shape, B.shape[1]
    slice_k = ceil_div(ceil_div(k, slices), tiling.bk) * tiling.bk
    slices = ceil_div(k, slice_k)
    target, source = target_of(slices, C, out)
    read = target if source is None else source
    a_t = A.stride(1) != 1
    launch(
        _skinny_kernel,
        ceil_div(n, tiling.bn) * slices,
        (read, target),
        (m, n, k, *read.stride(), *target.stride(), slice_k),
        (alpha, beta) if slices == 1 else (1.0, 0.0),
        {
            "HAS_C": source is not None,
            "A_T": a_t,
            "BM": tiling.bm,
            "BN": tiling.bn,
            "BK": tiling.bk,
            "STAGES": tiling.stages,
            "BLOCKS": CHUNK // tiling.bk,
        },
        num_warps=tiling.warps,
        descriptors=(
            described(A, a_t, tiling.bm, tiling.bk),
            described(B, False, tiling.bk, tiling.bn),
        ),
    )
    finish(alpha, target, slices, beta, C, out)
