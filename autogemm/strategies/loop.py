"""A batch as one product after another, each by a strategy for single products.

It pays where the library's batched kernels are worse than its single ones: float32 on a CPU,
where torch hands batches to MKL and single products may go to oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.strategies.addmm import Addmm
from autogemm.strategies.base import Params, ParamValue, Run, Strategy, one_of
from autogemm.strategies.matmul_axpby import MatmulAxpby
from autogemm.strategies.onednn import OneDNN

_INNER: dict[ParamValue, tuple[Strategy, Params]] = {
    "addmm": (Addmm(), {"reduction": "full"}),
    "matmul_axpby": (MatmulAxpby(), {}),
    "onednn": (OneDNN(), {}),
}


class Loop(Strategy):
    """The strategy ``inner`` on every matrix, which writes it into its place in the result."""

    name = "loop"
    dtypes = frozenset(DTYPE_NAMES)
    depends_on = ("torch", "cuda", "cublas", "triton")
    single = False
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {"inner": one_of(*_INNER)}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        inner, inner_params = _INNER[params["inner"]]
        return inner.reasons_not(replace(problem, batch=1), device, inner_params)

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        return [{"inner": name} for name in _INNER]

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        inner, inner_params = _INNER[params["inner"]]
        return inner.bound(replace(problem, batch=1), inner_params)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        inner, inner_params = _INNER[params["inner"]]
        return inner.workspace_bytes(replace(problem, batch=1), inner_params)

    def launches(self, problem: Problem) -> int:
        return problem.batch

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        inner, inner_params = _INNER[params["inner"]]
        run_one = inner.bind(replace(problem, batch=1), device, inner_params)
        shape = (problem.batch, problem.m, problem.n)

        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            result = A.new_empty(shape) if out is None else out
            places = result.unbind()
            if C is None:
                for a, b, place in zip(A.unbind(), B.unbind(), places, strict=True):
                    run_one(alpha, a, b, beta, None, place)
            else:
                addends = places if C is out else C.unbind()
                for a, b, c, place in zip(A.unbind(), B.unbind(), addends, places, strict=True):
                    run_one(alpha, a, b, beta, c, place)
            return result

        return run
