"""One 16-bit pass for float32 operands, with a float32 result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPES, Problem
from autogemm.strategies.base import Params, ParamValue, Run, one_of
from autogemm.strategies.guarded import GuardedPass


class Half(GuardedPass):
    """Operands rounded once to ``bfloat16`` (8 bits) or ``float16`` (11 bits), float32 sums.

    On a GPU the rounding pass pads and checks the operands too, and tiles with an element
    outside the 16-bit type's normal range are recomputed. On a CPU oneDNN converts on the
    way, and operands out of range are computed in float32 instead.
    """

    name = "half"
    emulates = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {"dtype": one_of("bfloat16", "float16")}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if device.has_cuda:
            if "rocm" in device.features:
                return ["its treatment of subnormals was measured on NVIDIA GPUs only"]
            if not device.has_package("triton"):
                return ["needs the package 'triton', which is not installed"]
            need = (8, 0) if params["dtype"] == "bfloat16" else (7, 0)
            if device.capability < need:
                return [f"{params['dtype']} tensor cores need compute capability {need[0]}.0"]
            return []
        if params["dtype"] != "bfloat16":
            return ["on a CPU oneDNN offers bfloat16 passes only"]
        if "onednn_bf16" not in device.features:
            return ["oneDNN has no bfloat16 instructions to use on this CPU"]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        return [{"dtype": "bfloat16"}, {"dtype": "float16"}]

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # Both operands round by at most v/(1+v), v the unit roundoff, so that a product is
        # off by about 2v - v^2; the rounding of alpha, beta and their sum fits below 2v.
        v = precision.unit_roundoff(self.staged_dtype(params))
        rho = 2 * v / precision.accumulation_roundoff(problem.dtype)
        return ErrorBound(rho, precision.growth(problem.dtype, problem.k))

    def lowers(self, problem: Problem, params: Params) -> bool:
        return problem.device_type == "cpu" and precision.lowers_fp32("cpu", "bf16")

    def staged_dtype(self, params: Params) -> torch.dtype:
        return DTYPES[str(params["dtype"])]

    def limits(self, params: Params) -> tuple[float, float]:
        facts = torch.finfo(self.staged_dtype(params))
        return float(facts.tiny), float(facts.max)

    def multiply(self, A: torch.Tensor, B: torch.Tensor, P: torch.Tensor) -> None:
        torch.mm(A, B, out_dtype=torch.float32, out=P)

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        return super().bind(problem, device, params) if device.has_cuda else _run_on_cpu

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        return super().workspace_bytes(problem, params) if problem.device_type == "cuda" else 0


# AVX512-BF16 and AMX flush subnormal operands, products and sums to zero. Products of
# magnitudes whose product is at least this large, and hence their sums (multiples of the
# smallest product's last bit, 2^-14 below it), stay normal.
_SMALLEST_PRODUCT = 2.0**-110


def _run_on_cpu(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    from autogemm.strategies.addmm import _run

    mode = "bf16" if _keeps_bound_on_cpu(A, B) else "ieee"
    with precision.fp32_compute("cpu", mode):
        if mode == "ieee":
            return _run(alpha, A, B, beta, C, out)
        # alpha and beta stay outside: what oneDNN scales in bfloat16 is the product alone.
        P = torch.mm(A, B)
    if alpha != 1:
        P.mul_(alpha)
    if C is None:
        return P if out is None else out.copy_(P)
    return torch.add(P, C, alpha=beta, out=P if out is None else out)


def _keeps_bound_on_cpu(A: torch.Tensor, B: torch.Tensor) -> bool:
    a_low, a_high = _magnitudes(A)
    b_low, b_high = _magnitudes(B)
    largest = float(torch.finfo(torch.bfloat16).max)
    smallest = float(torch.finfo(torch.float32).tiny)
    return (
        a_low * b_low >= _SMALLEST_PRODUCT
        and min(a_low, b_low) >= smallest
        and max(a_high, b_high) <= largest
    )


def _magnitudes(x: torch.Tensor) -> tuple[float, float]:
    """The smallest nonzero and the largest magnitude, (inf, 0) for zeros; NaN if there is one."""
    low, high = torch.aminmax(x.abs())
    if low == 0:
        magnitude = x.abs()
        low = torch.where(magnitude == 0, torch.inf, magnitude).amin()
    return float(low), float(high)
