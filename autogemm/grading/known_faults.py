"""What torch's own product does wrong on this machine, and strategies built on it inherit.

``docs/accuracy.md`` lists these under its limits. A grading reports them apart from breaches.
"""

from __future__ import annotations

import functools

import torch

FLUSHES = "oneDNN's bfloat16 products take subnormal operands for 0 on this CPU"
SCALES_FIRST = "torch.addmm scales an operand by alpha before the product on this device"

_BUILT_ON_TORCHS_PRODUCT = ("addmm", "baddbmm", "loop", "ksplit", "half")
_CUBLAS = ("padded", "cublaslt")
"""Others that hand α to cuBLAS."""


def known_fault(
    strategy: str, dtype: torch.dtype, device_type: str, name: str, alpha: complex
) -> str | None:
    """What excuses a strategy on the hostile operands ``name``, or None."""
    at_the_ends = "largest_" in name or "smallest_number" in name
    if device_type == "cuda":
        # Of cuBLAS's kernels those for aligned float64 products do so, on an H200.
        inherits = dtype is torch.float64 and strategy in (*_BUILT_ON_TORCHS_PRODUCT, *_CUBLAS)
    else:
        inherits = strategy in _BUILT_ON_TORCHS_PRODUCT
    if not inherits:
        return None
    if dtype is torch.bfloat16:
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
    """Whether α meets an operand first: half the smallest number is 0, half a product is not."""
    if dtype is not torch.float64:
        dtype = torch.float32
    least = 2.0**-1074 if dtype is torch.float64 else 2.0**-149

    def full(value: float) -> torch.Tensor:
        return torch.full((64, 64), value, dtype=dtype, device=device_type)

    smallest, large, zero = full(least), full(2.0**100), full(0.0)
    return any(
        bool((torch.addmm(zero, *operands, alpha=0.5) == 0).any())
        for operands in ((smallest, large), (large, smallest))
    )
