"""α·P + β·C in one pass, rounded once: P may be wider than the result, C may be a bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import ceil_div, launch, written

_BLOCK = 1024


@triton.jit(do_not_specialize=["alpha", "beta"])
def _axpby_kernel(
    p, c, out, rows, cols, p_row, p_col, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(cols, BLOCK_C)
    i = (tl.program_id(0) // across * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    j = (tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
    inside = (i < rows) & (j < cols)
    value = tl.load(p + i * p_row + j * p_col, mask=inside).to(tl.float32) * alpha
    if HAS_C:
        value += tl.load(c + i * c_row + j * c_col, mask=inside).to(tl.float32) * beta
    tl.store(out + i * out_row + j * out_col, value.to(out.dtype.element_ty), mask=inside)


def axpby(
    alpha: complex | float,
    P: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Write α·P + β·C (α·P where C is None) into ``out``, computed in float32.

    P, C and out are (m, n) of float32, float16 or bfloat16 with any strides; ``out`` may be P
    or C.
    """
    if out.stride(0) == 1 and out.stride(1) != 1:
        P, out = P.t(), out.t()
        C = None if C is None else C.t()
    rows, cols = out.shape
    block_cols = min(_BLOCK, 1 << (cols - 1).bit_length())
    block_rows = _BLOCK // block_cols
    source = P if C is None else C
    launch(
        _axpby_kernel,
        ceil_div(rows, block_rows) * ceil_div(cols, block_cols),
        (P, source, out),
        (rows, cols, *P.stride(), *source.stride(), *out.stride()),
        (float(alpha.real), float(beta.real)),
        {"HAS_C": C is not None, "BLOCK_R": block_rows, "BLOCK_C": block_cols},
        num_warps=4,
    )
    written(out)
