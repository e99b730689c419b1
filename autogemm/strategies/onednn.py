"""oneDNN's own float32 kernels on the CPU, where ``torch.mm`` would call another BLAS.

PyTorch's x86 builds multiply float32 matrices with MKL, which on some CPUs is far from the
hardware's speed. On an AMD EPYC (family 26, 2 threads, torch 2.13) oneDNN took 4.5 ms for
1024³ where ``torch.mm`` took 10.1, with equal errors.
"""

from __future__ import annotations

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.addmm import full_accuracy_switch
from autogemm.strategies.base import Params, Run, Strategy
from autogemm.strategies.combine import combine


class OneDNN(Strategy):
    """The operator behind ``torch.compile``'s CPU linear layers, then one elementwise pass."""

    name = "onednn"
    dtypes = frozenset({torch.float32})
    device_types = frozenset({"cpu"})
    depends_on = ("torch",)

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if not torch.backends.mkldnn.is_available():
            return ["this build of torch has no oneDNN"]
        if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return ["this build of torch does not offer oneDNN's linear operator"]
        return []

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(4.0, precision.growth(problem.dtype, problem.k))

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        return problem.m * problem.n * problem.itemsize

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        linear = torch.ops.mkldnn._linear_pointwise.default
        switch = full_accuracy_switch(problem)

        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            if switch is None:
                P = linear(A, B.t(), None, "none", [], "")
            else:
                with switch:
                    P = linear(A, B.t(), None, "none", [], "")
            return combine(alpha, P, beta, C, out, A.dtype, fused=False)

        return run
