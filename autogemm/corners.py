"""BLAS's corners: α = 0, k = 0 and empty results, where β·C is all there is to compute.

And scalars that are too small for the type a product is summed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from autogemm.errors import NoStrategy
from autogemm.precision import ErrorBound, Tolerance, accumulation_roundoff
from autogemm.problem import result_shape

TINY: Any = torch.finfo(torch.float32).tiny
"""Scalars below this lose digits, or become 0, in a product that is summed in float32."""


def corner(alpha: complex | float, A: torch.Tensor, B: torch.Tensor) -> str | None:
    """Why nothing is multiplied, or None."""
    shape = result_shape(A, B)
    if math.prod(shape) == 0:
        return f"the result is empty ({' x '.join(map(str, shape))})"
    if A.shape[-1] == 0:
        return "k = 0, so the result is beta*C"
    if alpha == 0:
        return "alpha = 0, so the result is beta*C and A and B are not read"
    return None


def check_scale(beta: complex | float, dtype: torch.dtype, tolerance: Tolerance) -> None:
    """β·C rounds once; raise ``NoStrategy`` where the budget does not allow even that."""
    reason = tolerance.shortfall(ErrorBound(0.0, 0.0), dtype, 0)
    if reason is not None and beta not in (0, 1):
        raise NoStrategy(
            f"nothing is multiplied, but beta*C is rounded: {reason}. Ask for less, or use a "
            "wider type."
        )


def scale(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """β·C, where there is nothing to multiply."""
    if beta == 0 or C is None:
        return A.new_zeros(result_shape(A, B)) if out is None else out.zero_()
    if out is None:
        return (C * beta).contiguous()
    return torch.mul(C, beta, out=out)


def is_below_range(scalar: complex | float, dtype: torch.dtype) -> bool:
    """Whether α or β would lose digits, or become 0, in the type ``dtype`` is summed in.

    For a 0 libraries skip the product and may leave the result unwritten (oneDNN in torch 2.13).
    """
    return 0 < abs(scalar) < TINY and accumulation_roundoff(dtype) > 2.0**-30


def in_wider_type(
    gemm: Callable[..., torch.Tensor], alpha: complex | float, A: torch.Tensor, B: torch.Tensor,
    beta: complex | float, C: torch.Tensor | None, precision: Any,
) -> torch.Tensor:  # fmt: skip
    """α·A·B + β·C for such scalars, as a new tensor."""
    wide = torch.complex128 if A.dtype.is_complex else torch.float64
    Z = None if C is None or beta == 0 else C.to(wide)
    if 0 < abs(alpha) < TINY:  # MKL multiplies an operand by it, and may make 0 of both
        result = alpha * gemm(1.0, A.to(wide), B.to(wide), precision=precision)
        result = result if Z is None else result + beta * Z
    else:
        result = gemm(alpha, A.to(wide), B.to(wide), beta, Z, precision=precision)
    return result.to(A.dtype)
