"""The level and the error budget of a call, and what torch's settings make of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import (
    EVERY_DTYPE,
    HIGHEST,
    has_bfloat16_passes,
    operands,
    serve,
)
from invented import BF16, FULL

from autogemm import NoStrategy, explain, gemm
from autogemm.grading.oracle import check, error_ratio
from autogemm.precision import Tolerance
from autogemm.strategies import half

pytestmark = pytest.mark.usefixtures("tables")


@EVERY_DTYPE
@pytest.mark.parametrize("factor", [1.0, 1.5, 100.0])
def test_a_budget_is_kept(dtype: torch.dtype, factor: float) -> None:
    A, B, C = operands(7, 9, 500, dtype)
    budget = factor * tightest(A, B, C)
    check(gemm(1.5, A, B, -0.5, C, precision=budget), 1.5, A, B, -0.5, C, Tolerance("", budget))


@EVERY_DTYPE
def test_too_tight_a_budget_is_told_the_tightest_one(dtype: torch.dtype) -> None:
    for k in (1, 5, 100, 1000, 12345):
        A, B, C = operands(3, 4, k, dtype)
        best = tightest(A, B, C)
        assert best < 0.1
        gemm(1.5, A, B, -0.5, C, precision=best)
        with pytest.raises(NoStrategy, match="exceeds the budget"):
            gemm(1.5, A, B, -0.5, C, precision=best / 1.2)


def tightest(*operands: torch.Tensor) -> float:
    A, B, C = operands
    with pytest.raises(NoStrategy) as caught:
        gemm(1.5, A, B, -0.5, C, precision=1e-30)
    told = re.search(r"tightest budget .* is ([0-9.e-]+)\. Ask for that", str(caught.value))
    assert told is not None, str(caught.value)
    return float(told[1])


def test_a_budget_below_what_one_accumulation_promises_takes_a_split_sum() -> None:
    A, B, C = operands(7, 9, 5000)
    assert explain(1.5, A, B, 0.5, C, precision=1e-3).strategy == "addmm"
    tight = explain(1.5, A, B, 0.5, C, precision=1e-4)
    assert tight.strategy == "ksplit"
    assert any(c == FULL and "budget" in reason for c, reason in tight.plan.passed_over)
    hostile = (torch.ones_like(A) / 3, torch.ones_like(B) / 3)  # every rounding goes one way
    check(
        gemm(1.5, *hostile, 0.5, C, precision=1e-4), 1.5, *hostile, 0.5, C, Tolerance("", 1e-4)
    )


SETTINGS = {"ieee": "highest", "tf32": "high", "bf16": "medium"}


@pytest.mark.usefixtures("restored_torch_settings")
def test_the_level_follows_what_torch_was_told() -> None:
    A, B, C = operands(6, 5, 9)
    assert explain(1, A, B, 1, C).plan.tolerance.level == "highest"
    for setting, level in SETTINGS.items():
        torch.backends.mkldnn.matmul.fp32_precision = setting
        told = explain(1, A, B, 1, C)
        assert told.plan.tolerance.level == level
        assert setting in told.plan.tolerance.source
        assert "torch.backends.mkldnn" in str(told)
        assert explain(1, A, B, 1, C, precision="highest").plan.tolerance.level == "highest"
    wide = [x.double() for x in (A, B, C)]
    assert explain(1, *wide[:2], 1, wide[2]).plan.tolerance.level == "highest"


@pytest.mark.usefixtures("restored_torch_settings")
def test_warm_calls_follow_the_setting_as_it_changes_and_leave_it_alone(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tables, BF16, torch.float32, 48, 40, 64)
    fast: list[int] = []
    real = half._run_on_cpu

    def spy(*args: Any) -> torch.Tensor:
        fast.append(1)
        return real(*args)

    monkeypatch.setattr(half, "_run_on_cpu", spy)
    A, B, C = operands(48, 40, 64)
    for setting in ("ieee", "bf16", "tf32", "bf16", "ieee"):
        torch.backends.mkldnn.matmul.fp32_precision = setting
        for _ in range(3):
            level = SETTINGS[setting]
            told = explain(1, A, B, 1, C)
            assert told.strategy == ("half" if level == "medium" else "addmm"), setting
            fast.clear()
            check(gemm(1, A, B, 1, C), 1, A, B, 1, C, Tolerance(level), typical=True)
            assert bool(fast) == (level == "medium")
            fast.clear()
            check(gemm(1, A, B, 1, C, precision="highest"), 1, A, B, 1, C, HIGHEST, typical=True)
            assert not fast
            assert torch.backends.mkldnn.matmul.fp32_precision == setting


@pytest.mark.usefixtures("restored_torch_settings")
def test_float32_is_not_degraded_unless_somebody_said_so(tables: Path) -> None:
    """The fast 16-bit pass is in the table, and chosen only where it was asked for."""
    serve(tables, BF16, torch.float32, 48, 40, 64)
    A, B, C = operands(48, 40, 64)
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # another device's setting
    for precision in (None, "highest", "high", None):
        for _ in ("cold", "warm"):
            result = gemm(1.5, A, B, 0.5, C, precision=precision)
            check(result, 1.5, A, B, 0.5, C, HIGHEST, typical=True)
    assert explain(1.5, A, B, 0.5, C, precision="medium").strategy == "half"
    fast = gemm(1.5, A, B, 0.5, C, precision="medium")
    if has_bfloat16_passes():
        assert error_ratio(fast, 1.5, A, B, 0.5, C) > 1000


@pytest.mark.usefixtures("restored_torch_settings")
def test_highest_is_highest_whatever_torch_was_told() -> None:
    A, B, C = operands(64, 48, 96)
    for setting in SETTINGS:
        torch.backends.mkldnn.matmul.fp32_precision = setting
        for _ in ("cold", "warm"):
            result = gemm(1.5, A, B, 0.5, C, precision="highest")
            check(result, 1.5, A, B, 0.5, C, HIGHEST, typical=True)
            assert torch.backends.mkldnn.matmul.fp32_precision == setting
