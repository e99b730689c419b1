"""TF32: float32 operands rounded to 11 significant bits on the way into the tensor cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import Params, ParamValue, one_of
from autogemm.strategies.guarded import GuardedPass

# Measured on an H200 (torch 2.11, cuBLAS 13.1), square, skinny, long-k, odd and transposed
# shapes: cuBLAS rounds operands to the nearest TF32 number, keeps TF32 subnormals (multiples
# of 2^-136) and turns magnitudes that round to 2^128 into inf.
_SMALLEST = 2.0**-126
_LARGEST = (2 - 2.0**-10) * 2.0**127

_TF32 = precision.fp32_compute("cuda", "tf32")


class TF32(GuardedPass):
    """cuBLAS's TF32 product under a guard for subnormal and near-overflow elements.

    ``pad`` copies unaligned operands into aligned ones in the pass that checks them.
    """

    name = "tf32"
    emulates = True
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    min_capability = (8, 0)

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {"pad": one_of(True, False)}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if "rocm" in device.features:
            return ["its rounding was measured on NVIDIA GPUs only"]
        if params["pad"] and not is_unaligned(problem):
            return ["operands and result are aligned already; there is nothing to pad"]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        return [{"pad": False}, {"pad": True}]

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # Each operand rounds by at most v/(1+v), v = 2^-11, so a product by about
        # 2v - v^2 = 2^-10 - 2^-22: 4u of room below 2^14·u for alpha, beta and their sum.
        return ErrorBound(2.0**14, precision.growth(problem.dtype, problem.k))

    def lowers(self, problem: Problem, params: Params) -> bool:
        return precision.lowers_fp32("cuda", "tf32")

    def staged_dtype(self, params: Params) -> torch.dtype:
        return torch.float32

    def limits(self, params: Params) -> tuple[float, float]:
        return _SMALLEST, _LARGEST

    def copies(self, params: Params) -> bool:
        return bool(params["pad"])

    def multiply(self, A: torch.Tensor, B: torch.Tensor, P: torch.Tensor) -> None:
        with _TF32:
            torch.mm(A, B, out=P)


def is_unaligned(problem: Problem) -> bool:
    """Whether an operand or the result lacks the alignment fast kernels need."""
    layouts = (problem.a, problem.b, problem.out)
    return any(layout == "strided" or layout.endswith("-unaligned") for layout in layouts)
