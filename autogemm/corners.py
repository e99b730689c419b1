"""BLAS's corners: α = 0, k = 0 and empty results, where β·C is all there is to compute."""

from __future__ import annotations

import math

import torch

from autogemm.errors import NoStrategy
from autogemm.precision import ErrorBound, Tolerance
from autogemm.problem import result_shape


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
