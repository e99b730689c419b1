"""Any call at all: refused in words, or a result that keeps the contract."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stress.examples import try_examples

import autogemm
from autogemm import InvalidProblem, NoStrategy, explain, gemm
from autogemm.database import locations
from autogemm.grading.oracle import check
from autogemm.precision import Tolerance
from autogemm.problem import DTYPES

HIGHEST = Tolerance("highest")
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(autouse=True)
def no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))
    for place in ("_user_directory", "_shipped_directory"):
        monkeypatch.setattr(locations, place, lambda: tmp_path / "elsewhere")
    autogemm.reload_tables()
    yield
    autogemm.reload_tables()


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    shapes = ((4, 2), (2, 15), (4, 15))
    a, b, c = (torch.randn(*shape, dtype=wide).to(dtype) for shape in shapes)
    return a, b, c


def test_made_up_calls_are_refused_in_words_or_keep_the_contract() -> None:
    figures = try_examples(300)
    assert min(figures["computed"], figures["refused"]) > 50


@EVERY_DTYPE
@pytest.mark.parametrize("alpha", [math.nan, 5e-324, 1e-46, -1e-40, math.inf])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1e-40, math.nan])
def test_scalars_at_the_edge_of_float32_count_as_what_they_are(
    dtype: torch.dtype, alpha: float, beta: float
) -> None:
    """torch's own products take some of them for 0, and leave results unwritten."""
    A, B, C = operands(dtype)
    if dtype in (torch.float32, torch.bfloat16):
        A *= 1e30
    for _ in range(2):  # an ordinary call in between must not warm the way for these
        gemm(1.5, A, B, 0.5, C)
        out = torch.full_like(C, 7)
        assert gemm(alpha, A, B, beta, C, out=out) is out
        check(out, alpha, A, B, beta, C, HIGHEST)
        check(gemm(alpha, A, B, beta, C), alpha, A, B, beta, C, HIGHEST)


def test_a_scalar_at_the_edge_leaves_derivatives_right() -> None:
    A, B, C = operands(torch.float32)
    A.requires_grad_()
    gemm(1e-40, A, B * 1e30, 0.5, C).sum().backward()
    expected = 1e-40 * (B.double() * 1e30).sum(1).expand(4, 2)
    assert torch.allclose(A.grad.double(), expected, rtol=1e-4)  # type: ignore[union-attr]


def test_a_c_that_is_not_read_has_no_say_in_how_a_batch_is_laid_out() -> None:
    A, B, C = torch.randn(3, 64, 7), torch.randn(7, 64), torch.randn(3, 64, 64).mT
    for _ in range(2):
        assert torch.allclose(gemm(1.5, A, B, 0.0, C), 1.5 * A @ B, atol=1e-4)


def test_a_budget_that_one_rounding_exceeds_is_refused_where_nothing_is_multiplied() -> None:
    A, B, C = operands(torch.float32)
    for call in (gemm, explain):
        with pytest.raises(NoStrategy, match=r"beta\*C is rounded"):
            call(0.0, A, B, 0.3, C, precision=1e-30)
        call(0.0, A, B, 1.0, C, precision=1e-30)
        call(0.0, A, B, 0.3, C, precision=1e-7)


@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm"])
def test_torchs_own_sample_inputs_give_torchs_results_or_are_refused(name: str) -> None:
    pytest.importorskip("expecttest")
    samples = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    taken = 0
    for op in (op for op in samples.op_db if op.name == name):
        for dtype in DTYPES.values():
            if dtype not in op.supported_dtypes("cpu"):
                continue
            for sample in op.sample_inputs("cpu", dtype):
                taken += _follows_torch(op, name, sample)
    assert taken >= 6


def _follows_torch(op: Any, name: str, sample: Any) -> bool:
    has_C = name in ("addmm", "baddbmm")
    alpha, beta = sample.kwargs.get("alpha", 1), sample.kwargs.get("beta", 1 if has_C else 0)
    if has_C:
        C, (A, B) = sample.input, sample.args
        C = C.expand(*A.shape[:-1], B.shape[-1])
    else:
        A, (B, *_), C = sample.input, sample.args, None
    try:
        result = gemm(alpha, A, B, beta, C)
    except InvalidProblem:
        return False
    expected = op(sample.input, *sample.args, **sample.kwargs)
    assert result.shape == expected.shape
    half = A.dtype in (torch.float16, torch.bfloat16)
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if half else {"rtol": 1e-4, "atol": 1e-4}
    assert torch.allclose(result, expected.to(A.dtype), **tolerance, equal_nan=True)
    return True
