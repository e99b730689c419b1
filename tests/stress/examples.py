"""Calls that hypothesis makes up: any shapes, strides, types, scalars, aliases and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as random_seed
from hypothesis import strategies as st

from autogemm import InvalidProblem, NoStrategy, gemm
from autogemm.grading.known_faults import torch_flushes_bfloat16_subnormals
from autogemm.grading.oracle import Truth
from autogemm.precision import LEVELS, Tolerance
from autogemm.problem import DTYPES
from stress import Figures, GoingOn

SIZES = st.one_of(st.integers(0, 9), st.sampled_from((15, 16, 17, 31, 33, 64, 65, 127)))
REALS = st.one_of(
    st.sampled_from(
        (0, 1, -1, 2, 0.0, -0.0, 1.0, -1.0, 0.5, 1.5, -3.25, 5e-324, 1e-45, 1e-40, 1e30,
         math.inf, -math.inf, math.nan)
    ),
    st.floats(-4, 4),
)  # fmt: skip
# No more than 1e30: MKL may scale an operand by alpha first (docs/accuracy.md, Limits).
ODD_ONES = st.sampled_from((1j, 1 + 2j, complex(0, math.inf), True, 1e39, 1e300, 10**400, None))
SCALARS = st.integers(0, 29).flatmap(lambda i: REALS if i else ODD_ONES)
LAYOUTS = ("row", "row", "col", "sliced", "stepped", "expanded row", "expanded column", "offset")


@dataclass
class Call:
    """The arguments of one call."""

    alpha: Any
    A: torch.Tensor
    B: torch.Tensor
    beta: Any
    C: torch.Tensor | None
    precision: str | float | None
    out: torch.Tensor | None
    requires_grad: bool

    def __repr__(self) -> str:
        def facts(x: torch.Tensor | None) -> str:
            return "None" if x is None else f"{x.dtype} {tuple(x.shape)} strides {x.stride()}"

        return (
            f"gemm({self.alpha!r}, A: {facts(self.A)}, B: {facts(self.B)}, {self.beta!r}, C: "
            f"{facts(self.C)}, precision={self.precision!r}, out: {facts(self.out)}"
            f"{' is C' if self.out is not None and self.out is self.C else ''}"
            f"{', requires grad' if self.requires_grad else ''})"
        )


@st.composite
def matrices(
    draw: st.DrawFn, batch: tuple[int, ...], rows: int, cols: int, dtype: torch.dtype
) -> torch.Tensor:
    """A matrix or a batch of them in some layout, sometimes with values that are hard."""
    layout = draw(st.sampled_from(LAYOUTS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    wide = torch.complex128 if dtype.is_complex else torch.float64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*batch, *shape, dtype=wide, generator=g).to(dtype)

    if layout == "col":
        x = normal(cols, rows).mT
    elif layout == "sliced":
        x = normal(rows + 2, cols + 3)[..., 1 : rows + 1, 2 : cols + 2]
    elif layout == "stepped":
        x = normal(2 * rows, 3 * cols)[..., ::2, ::3]
    elif layout == "expanded row":
        x = normal(1, cols).expand(*batch, rows, cols)
    elif layout == "expanded column":
        x = normal(rows, 1).expand(*batch, rows, cols)
    elif layout == "offset":
        x = torch.randn(math.prod(batch) * rows * cols + 1, dtype=wide, generator=g).to(dtype)
        x = x[1:].view(*batch, rows, cols)
    else:
        x = normal(rows, cols)
    if x.numel() and draw(st.integers(0, 9)) == 0:
        value = draw(st.sampled_from((0.0, -0.0, math.inf, -math.inf, math.nan, 1e-42, 1e-5, 6e4)))
        x = x.clone() if 0 in x.stride() else x
        x.select(-2, draw(st.integers(0, rows - 1))).select(-1, 0).fill_(value)
    return x


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call that is right, or wrong in a way that has promised words."""
    dtype = draw(st.sampled_from((*DTYPES.values(), torch.float32)))
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)
    batch = draw(st.sampled_from(((), (), (), (1,), (3,), (2, 2), (0,))))
    shared = draw(st.sampled_from(("none", "none", "A", "B")))
    A = draw(matrices(() if shared == "A" else batch, m, k, dtype))
    inner = k if draw(st.integers(0, 29)) else k + 1
    B = draw(matrices(() if shared == "B" else batch, inner, n, dtype))
    alpha, beta = draw(SCALARS), draw(SCALARS)
    C = None
    if draw(st.integers(0, 9 if beta else 2)):
        shape = (m, n) if draw(st.integers(0, 29)) else (m, n + 1)
        C = draw(matrices(batch, *shape, dtype))
    out = None
    if draw(st.integers(0, 3)) == 0:
        what = draw(st.sampled_from(("new", "C", "A", "part of C", "odd", "of another type")))
        if what == "new":
            out = torch.full((*batch, m, n), 7, dtype=dtype)
        elif what == "odd":
            out = draw(matrices(batch, m, n, dtype))
        elif what == "of another type":
            out = torch.empty(*batch, m, n, dtype=torch.int32)
        elif what == "A":
            out = A
        elif C is not None:
            out = C if what == "C" else C[..., :, : n // 2]
    requires_grad = draw(st.integers(0, 5)) == 0
    precision = draw(st.sampled_from((*LEVELS * 4, *[None] * 9, 1e-2, 1e-2, 1e-30, "best")))
    return Call(alpha, A, B, beta, C, precision, out, requires_grad)


def check_call(call: Call) -> bool:
    """Make the call; False where it was refused in words, else the result keeps its contract."""
    A, B, C, out = call.A, call.B, call.C, call.out
    before = [None if x is None else x.clone() for x in (A, B, C)]
    if call.requires_grad:
        A = A.detach().requires_grad_()
    try:
        result = gemm(call.alpha, A, B, call.beta, C, precision=call.precision, out=out)
    except (InvalidProblem, NoStrategy):
        for x, y in zip((A, B, C), before, strict=True):
            assert y is None or _same(x.detach(), y), "a refused call wrote"
        return False
    if out is not None:
        assert result is out
    else:
        assert result.is_contiguous()
    for x, y in zip((A, B, C), before, strict=True):
        if y is not None and x is not out:
            assert _same(x.detach(), y), "an operand was written"
    _check_each(call, result.detach(), before)
    if call.requires_grad:
        assert result.requires_grad
    return True


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return bool(((x == y) | ((x != x) & (y != y))).all())


def _check_each(call: Call, result: torch.Tensor, before: list[torch.Tensor | None]) -> None:
    """Judge each matrix of a batch by the oracle."""
    A, B, C = before
    assert A is not None
    assert B is not None
    batch = A.shape[:-2] or B.shape[:-2]
    assert result.shape == (*batch, A.shape[-2], B.shape[-1])
    level = call.precision or "highest"
    tolerance = Tolerance(level) if isinstance(level, str) else Tolerance("highest", level)
    count = math.prod(batch)
    flat = [
        None if x is None else x.expand(*batch, *x.shape[-2:]).reshape(count, *x.shape[-2:])
        for x in (A, B, C)
    ]
    alpha, beta = complex(call.alpha), complex(call.beta)
    if not A.is_complex():
        alpha, beta = alpha.real, beta.real
    for i, one in enumerate(result.reshape(count, *result.shape[-2:])):
        a, b, c = (None if x is None else x[i] for x in flat)
        if one.dtype is torch.bfloat16 and torch_flushes_bfloat16_subnormals():
            one = _unflushed(one, alpha, a, b, beta, c)
        Truth(alpha, a, b, beta, c if beta != 0 else None).check(one, tolerance)


def _unflushed(
    result: torch.Tensor, alpha: Any, a: Any, b: Any, beta: Any, c: torch.Tensor | None
) -> torch.Tensor:
    """Without torch's own fault: its bfloat16 gives 0 for subnormal results (docs/accuracy.md)."""
    exact = alpha * (a.double() @ b.double())
    if c is not None and beta != 0:
        exact += beta * c.double()
    flushed = (result == 0) & (exact.abs() < torch.finfo(torch.bfloat16).smallest_normal)
    return torch.where(flushed, exact.to(result.dtype), result)


def try_examples(count: int, seed: int = 0) -> Figures:
    """Let hypothesis try ``count`` calls; it shrinks the first that fails and tells it."""
    tried = [0, 0]

    @random_seed(seed)
    @settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(calls())
    def each(call: Call) -> None:
        tried[check_call(call)] += 1

    each()
    return {"examples": sum(tried), "computed": tried[1], "refused": tried[0], "failures": 0}


def try_many(going_on: GoingOn) -> Figures:
    """The same in rounds of a thousand, each on a seed of its own."""
    total = {"examples": 0, "computed": 0, "refused": 0, "failures": 0}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are tiny
    try:
        while going_on(total["examples"]):
            for what, figure in try_examples(1000, seed=total["examples"]).items():
                total[what] += int(figure)
    finally:
        torch.set_num_threads(threads)
    return dict(total)
