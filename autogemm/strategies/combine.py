"""α·P + β·C in one pass where Triton is at hand: the last step of several strategies."""

from __future__ import annotations

import torch

from autogemm.device import Device
from autogemm.problem import Problem


def accumulator_dtype(problem: Problem) -> torch.dtype:
    """The type products are accumulated in: float32 for 16-bit operands, else their own."""
    return torch.float32 if problem.is_half else problem.dtype


def fuses_combine(problem: Problem, device: Device) -> bool:
    """Whether ``combine`` runs as one Triton pass (which knows float32 and 16-bit types)."""
    return (
        device.has_cuda
        and device.has_package("triton")
        and (problem.is_half or problem.dtype is torch.float32)
    )


def combine(
    alpha: complex | float,
    P: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    fused: bool,
) -> torch.Tensor:
    """Return α·P + β·C in ``dtype``, rounded once from P's type; P may be overwritten.

    P, C and out are matrices, or batches of them. ``out`` receives the result and may be C.
    Without ``out`` the result may be P itself.
    """
    if C is None and alpha == 1 and P.dtype == dtype and (
        P is out or (out is None and P.is_contiguous())
    ):
        return P
    if fused and _stack(P, C, out):
        from autogemm.kernels.axpby import axpby

        if out is None:
            reuse = P.dtype == dtype and P.is_contiguous()
            out = P if reuse else P.new_empty(P.shape, dtype=dtype)
        axpby(alpha, _stacked(P), beta, None if C is None else _stacked(C), _stacked(out))
        return out
    if alpha != 1:
        P.mul_(alpha)
    if C is not None:
        if out is None:
            out = P if P.dtype == dtype and P.is_contiguous() else P.new_empty(P.shape, dtype=dtype)
        return torch.add(P, C, alpha=beta, out=out)
    if out is None:
        return P.to(dtype).contiguous()
    return out if out is P else out.copy_(P)


def _stack(*operands: torch.Tensor | None) -> bool:
    """Whether batches are matrices of batch·m rows to a kernel that knows matrices only."""
    return all(
        x is None or x.ndim == 2 or x.shape[1] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
        for x in operands
    )


def _stacked(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 2 else x.view(-1, x.shape[2])
