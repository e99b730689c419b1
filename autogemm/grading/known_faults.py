"""What torch's own product does wrong on this machine, and strategies built on it inherit.

``docs/accuracy.md`` lists these under its limits. A grading reports them apart from breaches.
"""

from __future__ import annotations

import functools
import itertools

import torch

from autogemm.grading.trials import EXTENTS
from autogemm.strategies.guarded import aligned_extent

FLUSHES = "oneDNN's bfloat16 products take subnormal operands for 0 on this CPU"
SCALES_FIRST = "torch.addmm scales an operand by alpha before the product on this device"

_TORCHS_UPDATE = ("addmm", "baddbmm", "loop", "half")
"""Strategies that hand their operands and α to ``torch.addmm``; others apply α themselves."""
_CUBLAS = ("padded", "cublaslt")
"""Others that hand α to cuBLAS."""


def known_fault(
    strategy: str, dtype: torch.dtype, device_type: str, name: str, alpha: complex
) -> str | None:
    """What excuses a strategy on the hostile operands ``name``, or None."""
    at_the_ends = "largest_" in name or "smallest_number" in name
    # Of cuBLAS's kernels those for aligned float64 products do so on an H200, and some for a few
    # small sizes of other types.
    heirs = (*_TORCHS_UPDATE, *_CUBLAS) if device_type == "cuda" else _TORCHS_UPDATE
    if strategy not in heirs:
        return None
    if dtype is torch.bfloat16 and device_type == "cpu":
        subnormal = "subnormal" in name or "smallest_number" in name
        return FLUSHES if subnormal and torch_flushes_bfloat16_subnormals() else None
    if at_the_ends and alpha != 1 and torch_scales_an_operand_first(dtype, device_type):
        return SCALES_FIRST
    return None


def errors_cancel(dtype: torch.dtype, device_type: str, name: str) -> bool:
    """Whether rounding errors on the data ``name`` are as often positive as negative.

    Tensor cores truncate sums, so on data of one sign the error grows like k: on an H200 R is 354
    for uniform [0, 1) float16 operands at k = 4096, by cuBLAS and by our own kernel alike. That is
    below a(k) = k, which is promised, and above 4·sqrt(k), to which other random data are held.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    return not (half and device_type == "cuda" and name == "uniform")


@functools.cache
def torch_flushes_bfloat16_subnormals() -> bool:
    """Whether subnormal elements of bfloat16 operands vanish from a product here."""
    subnormal = torch.full((64, 64), 2.0**-130, dtype=torch.bfloat16)
    large = torch.full((64, 64), 2.0**100, dtype=torch.bfloat16)
    return bool((torch.mm(subnormal, large) == 0).any())


@functools.cache
def torch_scales_an_operand_first(
    dtype: torch.dtype = torch.float32, device_type: str = "cpu"
) -> bool:
    """Whether α meets an operand before the product, in any size that hostile operands come in.

    Libraries choose kernels by size and alignment: in float64 cuBLAS was seen to do so at 5x8x34
    where a product of 64x64x64 showed nothing of it (H200, cuBLAS 13.1).
    """
    graded = {shape for extent in EXTENTS.values() for shape in extent.shapes}
    aligned = {
        (m, aligned_extent(n, dtype.itemsize), aligned_extent(k, dtype.itemsize))
        for m, n, k in graded
    }
    return any(
        _scales_first(shape, dtype, device_type) for shape in graded | aligned | {(64, 64, 64)}
    )


def _scales_first(shape: tuple[int, int, int], dtype: torch.dtype, device_type: str) -> bool:
    """Half the smallest number is 0 and 1.5 times the largest is inf, their products are not."""
    m, n, k = shape
    facts = torch.finfo(dtype)
    smallest, large = facts.smallest_normal * facts.eps, 2.0**-6 / facts.smallest_normal
    ends = ((0.5, smallest, large), (1.5, facts.max, facts.smallest_normal))
    zero = torch.zeros(m, n, dtype=dtype, device=device_type)
    for (alpha, *values), turned in itertools.product(ends, (False, True)):
        a, b = reversed(values) if turned else values
        A, B = zero.new_full((m, k), a), zero.new_full((k, n), b)
        result = torch.addmm(zero, A, B, alpha=alpha)
        if not (result.isfinite() & (result != 0)).all():
            return True
    return False
