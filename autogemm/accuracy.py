"""The measured side of the accuracy contract: R of a candidate on random and hostile data.

R = max (|Ĉ - C| - u_out·|C|) / (u·G): the error beyond the final rounding, in units of
u·(|α||A||B| + |β||C|). The reference has float64's precision. Large results are judged on
sampled rows, batches on sampled matrices; float64 and complex128 on sampled elements, whose
products are summed exactly before α, β and the sum round (an R below 3 says nothing there).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from autogemm import precision
from autogemm.operands import Operands, graded, make_operands, normal, uniform
from autogemm.problem import Problem
from autogemm.strategies.base import Run

_SAMPLE_FLOPS = 2e10
_EXACT_PRODUCTS = 400_000
_MATRICES = 3
"""Of a batch: the first, the middle one and the last."""
_DOUBLE = (torch.float64, torch.complex128)


@dataclass(frozen=True, slots=True)
class Sample:
    """One set of operands with the reference for some of the result's elements."""

    name: str
    typical: bool
    operands: Operands
    matrices: torch.Tensor
    """Which of a batch; unused for a single product."""
    rows: torch.Tensor
    cols: torch.Tensor
    reference: torch.Tensor
    scale: torch.Tensor
    """G, elementwise."""

    def of(self, result: torch.Tensor) -> torch.Tensor:
        """The elements of a result that are judged."""
        return _picked(result, self.matrices, self.rows, self.cols)


def sample_references(
    problem: Problem, device: torch.device, alpha: float, beta: float
) -> list[Sample]:
    """Normal, uniform and graded operands with their references."""
    fills = [("normal", True, normal), ("uniform", True, uniform), ("graded", False, graded)]
    samples = []
    for name, typical, fill in fills:
        operands = make_operands(problem, device, fill)
        samples.append(_sample(name, typical, operands, problem, alpha, beta))
    return samples


def worst_ratio(
    samples: list[Sample], run: Run, problem: Problem, alpha: float, beta: float, *,
    bound: precision.ErrorBound,
) -> tuple[float, str]:  # fmt: skip
    """R over all samples, and what it exceeds ("" where the bound held).

    Hostile data are held to ``bound``; random data to 4·sqrt(k) in place of a larger growth.
    """
    worst, complaint = 0.0, ""
    for sample in samples:
        result = _run_on(sample, run, alpha, beta)
        ratio = _ratio(result, sample, problem)
        worst = max(worst, ratio)
        typical = min(bound.growth, 4 * math.sqrt(problem.k))
        allowed = bound.rho + (typical if sample.typical else bound.growth)
        if ratio > allowed and not complaint:
            why = "rho + 4*sqrt(k)" if sample.typical else "its declared bound"
            complaint = f"R = {ratio:.4g} on {sample.name} data exceeds {allowed:.4g}, {why}"
    return worst, complaint


def error_norm(samples: list[Sample], run: Run, alpha: float, beta: float) -> float:
    """‖Ĉ - C‖/‖C‖ (Frobenius) on the first sample, normal data, over its sampled elements."""
    sample = samples[0]
    result = _run_on(sample, run, alpha, beta)
    error = sample.of(result).to(sample.reference.dtype) - sample.reference
    return float(error.norm() / sample.reference.norm())


def _run_on(sample: Sample, run: Run, alpha: float, beta: float) -> torch.Tensor:
    A, B, C, out = (getattr(sample.operands, name) for name in ("A", "B", "C", "out"))
    if sample.operands.in_place:
        C = out = C.clone()  # the sample serves other candidates too
    return run(alpha, A, B, 0.0 if C is None else beta, C, out)


def _ratio(result: torch.Tensor, sample: Sample, problem: Problem) -> float:
    values = sample.of(result)
    ratio = ratios(values, sample.reference, sample.scale, problem.dtype, problem.k)
    worst = float(ratio.max())
    return math.inf if math.isnan(worst) else worst


def ratios(
    values: torch.Tensor,
    reference: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    k: int,
    alpha: complex = 1.0,
) -> torch.Tensor:
    """R of each element, given the reference and G in double precision; waits for no GPU.

    NaN and inf where a result is not finite and should be.
    """
    error = (values.to(reference.dtype) - reference).abs()
    error -= precision.unit_roundoff(dtype) * reference.abs()
    error -= max(1.0, abs(alpha)) * precision.underflow(dtype, k)
    unit = precision.accumulation_roundoff(dtype) * scale
    # Not "error > 0": a NaN must count, and x/0 with x > 0 is inf, as it should be.
    ratio = torch.where(error <= 0, 0.0, error / unit)
    # Where the exact result is beyond the type's range, inf is right.
    return ratio.masked_fill_(reference.abs() > 0.99 * torch.finfo(dtype).max, 0.0)


def _sample(
    name: str, typical: bool, operands: Operands, problem: Problem, alpha: float, beta: float
) -> Sample:
    m, n, k = problem.m, problem.n, problem.k
    device = operands.A.device
    matrices = _spread(problem.batch, _MATRICES, device)
    count = len(matrices)
    if problem.dtype in _DOUBLE:
        edge = max(1, min(8, math.isqrt(_EXACT_PRODUCTS // max(k * count, 1))))
        rows, cols = _spread(m, edge, device), _spread(n, edge, device)
    else:
        limit = int(_SAMPLE_FLOPS / (2.0 * n * k * count)) if device.type == "cuda" else 32
        rows, cols = _spread(m, max(8, min(limit, 256)), device), torch.arange(n, device=device)
    A = _picked(operands.A, matrices, rows, None)
    B = _picked(operands.B, matrices, None, cols)
    C = None if operands.C is None else _picked(operands.C, matrices, rows, cols)
    reference, scale = _reference(A, B, C, alpha, beta)
    return Sample(name, typical, operands, matrices, rows, cols, reference, scale)


def _picked(
    x: torch.Tensor,
    matrices: torch.Tensor,
    rows: torch.Tensor | None,
    cols: torch.Tensor | None,
) -> torch.Tensor:
    """Some matrices of a batch, some rows and columns of each; None for all."""
    if x.ndim == 3:
        x = x[matrices]
    if rows is not None:
        x = x[..., rows, :]
    return x if cols is None else x[..., cols]


def _spread(extent: int, count: int, device: torch.device) -> torch.Tensor:
    """``count`` indices over an extent, its first, middle and last among them."""
    if count >= extent:
        return torch.arange(extent, device=device)
    if count == 1:
        return torch.tensor([extent // 2], device=device)
    fixed = torch.tensor([0, extent // 2, extent - 1])
    drawn = torch.randint(extent, (max(count - 3, 0),))
    indices: torch.Tensor = torch.unique(torch.cat([fixed, drawn]))
    return indices.to(device)


def _reference(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, alpha: float, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.complex128 if A.dtype.is_complex else torch.float64
    if A.dtype in _DOUBLE:
        product = _exact_product(A, B)
    else:
        product = A.to(wide) @ B.to(wide)
    scale = abs(alpha) * (A.abs().double() @ B.abs().double())
    reference = alpha * product
    if C is not None:
        reference += beta * C.to(wide)
        scale += abs(beta) * C.abs().double()
    return reference, scale


def _exact_product(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """A·B with every element rounded once, by error-free products and ``math.fsum``."""
    if A.ndim == 3:
        return torch.stack([_exact_product(a, b) for a, b in zip(A, B, strict=True)])
    if A.dtype.is_complex:
        real = _exact_product(torch.cat([A.real, -A.imag], 1), torch.cat([B.real, B.imag], 0))
        imag = _exact_product(torch.cat([A.real, A.imag], 1), torch.cat([B.imag, B.real], 0))
        return torch.complex(real, imag)
    a, b = A.cpu(), B.cpu()
    result = torch.empty(a.shape[0], b.shape[1], dtype=torch.float64)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            result[i, j] = math.fsum(torch.cat(_two_product(a[i], b[:, j])).tolist())
    return result.to(A.device)


def _two_product(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x·y as an unevaluated sum (Dekker 1971, with Veltkamp's splitting by 2²⁷ + 1)."""

    def split(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = v * (2.0**27 + 1)
        high = c - (c - v)
        return high, v - high

    product = x * y
    (xh, xl), (yh, yl) = split(x), split(y)
    return product, ((xh * yh - product) + xh * yl + xl * yh) + xl * yl
