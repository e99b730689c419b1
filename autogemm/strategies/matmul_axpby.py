"""A product, then α·P + β·C in a pass of its own: C is never copied into the result first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.strategies.addmm import full_accuracy_switch
from autogemm.strategies.base import Params, Run, Strategy
from autogemm.strategies.combine import accumulator_dtype, combine, fuses_combine


class MatmulAxpby(Strategy):
    """``torch.mm`` (``bmm``) with a float32 (or wider) result, then one elementwise pass.

    16-bit operands give a float32 product, so that the result is rounded once: on a GPU by
    cuBLAS, on a CPU by converting the operands first.
    """

    name = "matmul_axpby"
    dtypes = frozenset(DTYPE_NAMES)
    depends_on = ("torch", "cuda", "cublas", "triton")
    batched = True

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(4.0, precision.growth(problem.dtype, problem.k))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        product = wide_product(problem, device)
        fused = fuses_combine(problem, device)
        # The product may be written straight into out unless C lives there or types differ.
        direct = problem.update != "inplace" and not problem.is_half

        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            P = product(A, B, out if direct else None)
            return combine(alpha, P, beta, C, out, A.dtype, fused=fused)

        return run

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        if problem.is_half or problem.update == "inplace":
            return problem.batch * problem.m * problem.n * accumulator_dtype(problem).itemsize
        return 0


def wide_product(
    problem: Problem, device: Device
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """``product(A, B, out)``: A·B with the accumulator's type, 2-D or batched, full accuracy."""
    half_on_gpu = problem.is_half and device.has_cuda
    half_on_cpu = problem.is_half and not device.has_cuda
    switch = full_accuracy_switch(
        replace(problem, dtype=torch.float32) if half_on_cpu else problem
    )

    def multiply(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        op = torch.bmm if A.ndim == 3 else torch.mm
        if half_on_gpu:
            if out is None:
                return op(A, B, out_dtype=torch.float32)
            return op(A, B, out_dtype=torch.float32, out=out)
        if half_on_cpu:
            A, B = A.float(), B.float()
        return op(A, B) if out is None else op(A, B, out=out)

    # A float32 result leaves 16-bit partial sums no place; 16-bit accumulation torch refuses it.
    accumulates_in_16_bits = half_on_gpu and torch.backends.cuda.matmul.allow_fp16_accumulation
    if switch is None or (half_on_gpu and not accumulates_in_16_bits):
        return multiply

    def multiply_switched(
        A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None
    ) -> torch.Tensor:
        with switch:
            return multiply(A, B, out)

    return multiply_switched
