"""Operands that form a given problem, filled with data to time or to test on.

Random normal data for timing: zeros run up to 15 % faster on an H200, for they draw less power.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from autogemm.problem import Problem, contiguous_problem

Fill = Callable[[int, int, torch.dtype, torch.device], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Operands:
    """A, B, C (None where β = 0) and out: C itself for an update in place, else None unless the
    problem's result lies as no new one would.
    """

    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor | None
    out: torch.Tensor | None

    @property
    def in_place(self) -> bool:
        """Whether the result takes C's place."""
        return self.out is not None and self.out is self.C

    @property
    def bytes(self) -> int:
        """Memory the operands take."""
        all_of_them = {id(x): x for x in (self.A, self.B, self.C, self.out) if x is not None}
        return sum(x.numel() * x.element_size() for x in all_of_them.values())


def make_operands(problem: Problem, device: torch.device, fill: Fill) -> Operands:
    """Allocate and fill operands with the problem's layouts: 2-D, or 3-D for a batch."""
    m, n, k, dtype = problem.m, problem.n, problem.k, problem.dtype
    batch = () if problem.batch == 1 else (problem.batch,)

    def filled(rows: int, cols: int) -> torch.Tensor:
        return fill(problem.batch * rows, cols, dtype, device).view(*batch, rows, cols)

    A = _laid_out(filled(m, k), problem.a, problem)
    B = _laid_out(filled(k, n), problem.b, problem)
    C: torch.Tensor | None = None
    if problem.update == "bias":
        C = fill(1, n, dtype, device).expand(*batch, m, n)
    elif problem.update != "none":
        C = filled(m, n)
    out = None
    if problem.update == "inplace":
        assert C is not None
        C = out = _laid_out(C, problem.out, problem)
    elif problem.out != _new_result(problem).out:
        out = _laid_out(A.new_empty(*batch, m, n), problem.out, problem)
        if problem.update == "add":  # the caller who keeps one so keeps the other
            assert C is not None
            C = _laid_out(C, problem.out, problem)
    return Operands(A, B, C, out)


def _new_result(problem: Problem) -> Problem:
    """A problem of the same sizes whose result is a new tensor."""
    return contiguous_problem(
        problem.m, problem.n, problem.k, problem.dtype, device_type=problem.device_type
    )


def _laid_out(x: torch.Tensor, layout: str, problem: Problem) -> torch.Tensor:
    """A copy of x in a layout; an unaligned one gets an odd stride if its extent is aligned."""
    shape = x.shape
    order = "col" if layout.startswith("col") else "row"
    if order == "col":
        x = x.mT
    natural = contiguous_problem(
        1, x.shape[-1], 1, problem.dtype, device_type=problem.device_type
    ).out
    spread = layout == "strided" or (layout.endswith("-unaligned") and natural == "row")
    if spread:
        step = 2 if layout == "strided" else 1
        wide = x.new_empty(*x.shape[:-1], x.shape[-1] * step + (step == 1))
        view = wide[..., ::step] if step == 2 else wide[..., : x.shape[-1]]
        x = view.copy_(x)
    else:
        x = x.contiguous()
    x = x.mT if order == "col" else x
    assert x.shape == shape
    return x


def normal(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Standard normal elements."""
    return torch.randn(rows, cols, dtype=dtype, device=device)


def uniform(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Elements in [0, 1): nothing cancels, so that a biased accumulation shows."""
    return torch.rand(rows, cols, dtype=dtype, device=device)


def graded(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Hostile elements: wide exponents, mantissas halfway between shorter ones, zeros, a subnormal.

    The exponents leave room for products and their sums in every type.
    """
    spread = 4 if dtype is torch.float16 else 20
    exponents = torch.randint(-spread, spread + 1, (rows, cols), device=device)
    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    scale = torch.exp2(exponents.to(real))
    # 1 + 2^-8 + 2^-11 + 2^-23: nearly a tie at 8 and at 11 significant bits.
    mantissa = 1 + 2.0**-8 + 2.0**-11 + 2.0**-23
    sign = torch.where(torch.rand(rows, cols, device=device) < 0.5, -1.0, 1.0).to(real)
    values = sign * scale * mantissa
    values = torch.where(torch.rand(rows, cols, device=device) < 0.02, 0.0, values)
    result = values.to(dtype)
    if dtype is torch.float32:
        result[rows // 2, cols // 2] = 2.0**-130
    return result
