"""``torch.baddbmm`` at full accuracy: the baseline for batches of products."""

from __future__ import annotations

from dataclasses import replace

import torch

from autogemm.device import Device
from autogemm.problem import Problem
from autogemm.strategies.addmm import Addmm, full_accuracy_switch, switched, torchs_own
from autogemm.strategies.base import Params, Run
from autogemm.strategies.matmul_axpby import MatmulAxpby


class Baddbmm(Addmm):
    """One call of ``torch.baddbmm`` (``torch.bmm`` where α = 1 and β = 0).

    ``reduction`` is as for ``addmm``. torch forbids cuBLAS 16-bit partial sums in single
    products only (torch 2.11, CUDABlas.cpp: ``bgemm`` reads none of the settings), so that
    ``full`` has the 16-bit products of a GPU written in float32 and combined in a second pass.
    """

    name = "baddbmm"
    depends_on = ("torch", "cuda", "cublas", "triton")
    single = False
    batched = True

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        reduced = params["reduction"] == "reduced"
        if not _may_reduce(problem) or reduced:
            return switched(_run, full_accuracy_switch(problem, reduced=reduced))
        # ROCm and old GPUs have no product of 16-bit operands that is written in float32.
        has_wide_product = device.capability >= (8, 0) and "rocm" not in device.features
        if has_wide_product:
            return MatmulAxpby().bind(problem, device, {})
        return switched(_run_widened, full_accuracy_switch(replace(problem, dtype=torch.float32)))

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        if _may_reduce(problem) and params["reduction"] == "full":
            return MatmulAxpby().workspace_bytes(problem, {})
        return 0


def _may_reduce(problem: Problem) -> bool:
    return problem.is_half and problem.device_type == "cuda"


_run = torchs_own(torch.bmm, torch.baddbmm)


def _run_widened(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    wide = None if C is None else C.float()
    result = _run(alpha, A.float(), B.float(), beta, wide, None).to(A.dtype)
    return result if out is None else out.copy_(result)
