"""Odd sizes brought to the 16-byte alignment that fast kernels need, and back.

cuBLAS runs 16-bit products whose k, n or leading dimensions are not multiples of 16 bytes
at 15-20 % of the speed of their aligned neighbours (H200, cuBLAS 13.1), and an aligned stride
alone does not help: the extents themselves must be padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.addmm import Addmm
from autogemm.strategies.base import Params, ParamValue, Run, Strategy, one_of
from autogemm.strategies.combine import combine
from autogemm.strategies.guarded import aligned_extent
from autogemm.strategies.matmul_axpby import wide_product
from autogemm.strategies.tf32 import is_unaligned


class Padded(Strategy):
    """One pass over each operand that lacks alignment, the product, one pass back.

    ``through`` carries C through the padded result, so that α and β are applied by the
    library; ``fused`` applies them in the pass that brings the result back.
    """

    name = "padded"
    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    depends_on = ("torch", "cuda", "cublas", "triton")

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {"form": one_of("through", "fused")}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if not is_unaligned(problem):
            return ["operands and result are aligned already; there is nothing to pad"]
        if params["form"] == "fused" and problem.dtype is torch.float64:
            return ["the fused pass back computes in float32"]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        return [{"form": "through"}, {"form": "fused"}]

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(5.0, precision.growth(problem.dtype, problem.k))

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        m, n, k = problem.m, problem.n, problem.k
        wide = 4 if params["form"] == "fused" else problem.itemsize
        return (m * k + k * n) * problem.itemsize + m * n * wide

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        from autogemm.kernels.staging import stage, stage_both

        m, n, k = problem.m, problem.n, problem.k
        size, dtype = problem.itemsize, problem.dtype
        a_is_col, b_is_col = problem.a.startswith("col"), problem.b.startswith("col")
        # What is contiguous somewhere must be padded: m in a column-major A only, k in a
        # row-major A or column-major B, n in a row-major B or the result.
        m_padded = aligned_extent(m, size) if a_is_col else m
        n_padded = aligned_extent(n, size)
        k_padded = k if a_is_col and not b_is_col else aligned_extent(k, size)
        a_needs = problem.a not in ("row", "col") or (m_padded, k_padded) != (m, k)
        b_needs = problem.b not in ("row", "col") or (k_padded, n_padded) != (k, n)
        result_needs = problem.out != "row" or (m_padded, n_padded) != (m, n)
        fused = params["form"] == "fused"
        product = wide_product(problem, device)
        # A staged C lies in the result, where no row of it can be a bias that is read meanwhile.
        padded = replace(
            problem, m=m_padded, n=n_padded, k=k_padded,
            update="inplace" if result_needs else problem.update,
        )  # fmt: skip
        through = Addmm().bind(padded, device, {"reduction": "full"})

        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            if a_needs and b_needs:
                a, b = stage_both(A, B, m=m_padded, n=n_padded, k=k_padded, dtype=dtype)
            else:
                a = stage(A, rows=m_padded, cols=k_padded, dtype=dtype) if a_needs else A
                b = stage(B, rows=k_padded, cols=n_padded, dtype=dtype) if b_needs else B
            if fused:
                P = product(a, b, None)[:m, :n]
                return combine(alpha, P, beta, C, out, dtype, fused=True)
            if not result_needs:
                return through(alpha, a, b, beta, C, out)
            if C is None:
                result = torch.empty(m_padded, n_padded, dtype=dtype, device=A.device)
            else:
                C = result = stage(C, rows=m_padded, cols=n_padded, dtype=dtype)
            through(alpha, a, b, beta, C, result)
            if out is None:
                out = torch.empty(m, n, dtype=dtype, device=A.device)
            stage_back(result[:m, :n], out)
            return out

        def stage_back(result: torch.Tensor, out: torch.Tensor) -> None:
            if dtype is torch.float64:
                out.copy_(result)
            else:
                combine(1, result, 0, None, out, dtype, fused=True)

        return run
