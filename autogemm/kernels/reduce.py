"""α·ΣP + β·C: adds the parts of a product whose k was sliced."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from autogemm.kernels.launch import ceil_div, launch, workspace, written

_BLOCK = 2048
"""Elements that a program reads at a time: as many slices as there are, up to 32, times as
few elements of the result as make a memory transaction."""


@triton.jit(
    do_not_specialize=["m", "n", "slices", "c_row", "c_col", "out_row", "out_col", "alpha", "beta"]
)
def _reduce_kernel(
    parts, c, out, m, n, slices, c_row, c_col, out_row, out_col, alpha, beta,
    HAS_C: tl.constexpr, E: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * E + tl.arange(0, E)
    size = m.to(tl.int64) * n
    inside = e < size
    total = tl.zeros((E,), dtype=tl.float32)
    for first in range(0, slices, S):
        s = first + tl.arange(0, S)
        part = tl.load(
            parts + s.to(tl.int64)[:, None] * size + e[None, :],
            mask=(s < slices)[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(part, 0)
    i = e // n
    j = e % n
    total *= alpha
    if HAS_C:
        total += beta * tl.load(c + i * c_row + j * c_col, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i * out_row + j * out_col, total, mask=inside)


def reduce_slices(
    alpha: float, parts: torch.Tensor, beta: float, C: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Write α·(parts[0] + parts[1] + …) + β·C into ``out`` (m, n), always in one order.

    ``parts`` (slices, m, n) is contiguous; C and ``out`` have any strides, ``out`` may be C.
    """
    slices, m, n = parts.shape
    source = out if C is None else C
    at_once = min(32, 1 << (slices - 1).bit_length())
    elements = _BLOCK // at_once
    launch(
        _reduce_kernel,
        ceil_div(m * n, elements),
        (parts, source, out),
        (m, n, slices, *source.stride(), *out.stride()),
        (alpha, beta),
        {"HAS_C": C is not None, "E": elements, "S": at_once},
        num_warps=4,
    )
    written(out)


def target_of(
    slices: int, C: torch.Tensor | None, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where a kernel writes, and the C that it adds: a matrix a slice, and none, where k is cut."""
    if slices == 1:
        return out, C
    m, n = out.shape
    return workspace(slices * m, n, dtype=torch.float32, device=out.device), None


def finish(
    alpha: float, target: torch.Tensor, slices: int, beta: float, C: torch.Tensor | None,
    out: torch.Tensor,
) -> None:  # fmt: skip
    """Make ``out`` of what was written to ``target_of`` it."""
    if slices > 1:
        reduce_slices(alpha, target.view(slices, *out.shape), beta, C, out)
    else:
        written(out)
