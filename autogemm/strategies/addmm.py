"""``torch.addmm`` at full accuracy: the baseline every other strategy must beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.strategies.base import Candidate, Params, ParamValue, Run, Strategy, one_of


class Addmm(Strategy):
    """One call of ``torch.addmm`` (``torch.mm`` where α = 1 and β = 0).

    ``reduction`` is ``full`` (float32 partial sums, IEEE float32) or, for 16-bit types on a
    GPU, ``reduced``: partial sums of a split k may be rounded to 16 bits, torch's default.
    """

    name = "addmm"
    dtypes = frozenset(DTYPE_NAMES)

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {"reduction": one_of("full", "reduced")}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if params["reduction"] == "reduced" and not (problem.is_half and device.has_cuda):
            return ["only 16-bit products on a GPU have a reduced-precision reduction"]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        return [{"reduction": "full"}, {"reduction": "reduced"}]

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # α, β and the sum of both terms round once each; ``kept_wide`` rounds β once more.
        rho = 4.0 if _may_round_twice(problem) else 3.0
        if params["reduction"] == "reduced":
            # Partial sums and their total round to 16 bits once each, as torch documents it.
            rho += 2 * precision.unit_roundoff(problem.dtype) / precision.accumulation_roundoff(
                problem.dtype
            )
        return ErrorBound(rho, precision.growth(problem.dtype, problem.k))

    def lowers(self, problem: Problem, params: Params) -> bool:
        state = precision.current_state(problem.dtype, problem.device_type)
        return params["reduction"] == "reduced" and not state.reduced_reduction

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        reduced = params["reduction"] == "reduced"
        run = _run if reduced or not _may_round_twice(problem) else _run_wide
        if problem.update == "bias" and device.has_cuda and min(problem.n, problem.k) > 1:
            run = _one_row(run)
        if problem.m == 1 and device.has_cuda:
            run = _restrided(run)
        return switched(run, full_accuracy_switch(problem, reduced=reduced))


def baseline(problem: Problem, level: str) -> Candidate:
    """What an untuned call runs: torch's own operator in the form the level allows.

    That is ``torch.addmm``, for a batch ``torch.baddbmm``.
    """
    reduced = problem.is_half and problem.device_type == "cuda" and level != "highest"
    name = "addmm" if problem.batch == 1 else "baddbmm"
    return Candidate.of(name, reduction="reduced" if reduced else "full")


def switched(run: Run, switch: AbstractContextManager[None] | None) -> Run:
    """``run`` inside a context; itself where there is none."""
    if switch is None:
        return run

    def run_switched(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        with switch:
            return run(alpha, A, B, beta, C, out)

    return run_switched


def full_accuracy_switch(
    problem: Problem, *, reduced: bool = False
) -> AbstractContextManager[None] | None:
    """The context torch's own product needs for full accuracy, None where torch is set so.

    Reads torch's settings now; the plan cache keeps plans apart by those settings.
    """
    state = precision.current_state(problem.dtype, problem.device_type)
    if problem.dtype is torch.float32 and state.fp32 != "ieee":
        return precision.fp32_compute(problem.device_type, "ieee")
    if problem.is_half and problem.device_type == "cuda":
        accumulates_in_16_bits = (
            problem.dtype is torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation
        )
        if state.reduced_reduction != reduced or accumulates_in_16_bits:
            return precision.reduced_reduction(problem.dtype, reduced)
    return None


def torchs_own(
    product: Callable[..., torch.Tensor], update: Callable[..., torch.Tensor]
) -> Run:
    """One call of torch: ``product`` where α = 1 and β = 0, else ``update``."""

    def run(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        if C is not None:
            if out is None:
                return update(C, A, B, beta=beta, alpha=alpha)
            return update(C, A, B, beta=beta, alpha=alpha, out=out)
        if alpha == 1:
            return product(A, B) if out is None else product(A, B, out=out)
        unread = A.new_empty(1)  # addmm wants an input even where beta = 0 leaves it unread
        if out is None:
            return update(unread, A, B, beta=0, alpha=alpha)
        return update(out, A, B, beta=0, alpha=alpha, out=out)

    return run


_run = torchs_own(torch.mm, torch.addmm)


_ALMOST_ONE = 1.0 - 2.0**-24


def kept_wide(beta: complex | float) -> complex | float:
    """β for a 16-bit product of cuBLAS that must not be rounded before β·C is added.

    At β = 1 cuBLAS adds 16-bit numbers: the product, rounded, to C (H200, cuBLAS 13.1: errors up
    to half a unit in the last place of the product, whatever torch's settings). At the float32
    next to 1 it adds in float32. What rounds to 1 in float32 is 1 to cuBLAS.
    """
    return _ALMOST_ONE if -(2.0**-25) <= beta.real - 1 <= 2.0**-24 else beta


def _may_round_twice(problem: Problem) -> bool:
    return problem.is_half and problem.device_type == "cuda"


def _run_wide(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    return _run(alpha, A, B, kept_wide(beta), C, out)


def _one_row(otherwise: Run) -> Run:
    """The run for a C that is one row, repeated; n and k are at least 2."""

    def run(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        assert C is not None
        # A 1-D input lets torch use cuBLASLt's bias epilogue, which adds in float32, instead of
        # filling the result first; but only where both lie as it likes (torch 2.11, Blas.cpp).
        if beta == 1 and C.stride(1) == 1 and (out is None or out.is_contiguous()):
            return _run(alpha, A, B, beta, C[0], out)
        return otherwise(alpha, A, B, beta, C, out)

    return run


def _restrided(run: Run) -> Run:
    """``run`` for a result of one row: the stride over it says nothing, but where β = 1 torch 2.11
    hands it to cuBLASLt, which refuses one below n.
    """

    def run_restrided(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        if out is None or out.stride(1) != 1 or out.stride(0) >= out.shape[1]:
            return run(alpha, A, B, beta, C, out)
        row = out.as_strided(out.shape, (out.shape[1], 1))
        run(alpha, A, B, beta, row if C is out else C, row)
        return out

    return run_restrided
